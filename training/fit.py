"""Trains one network: seeded, early-stopped on validation AP, calibrated. Knows nothing of stores or MLflow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from graph_features.errors import ModelError
from graph_features.input_spec import InputSpec
from graph_features.settings import TrainingSettings
from graph_features.tuples import InputTuples
from training.checkpoint import Checkpoint
from training.cuts import CutPoints
from training.metrics import average_precision
from training.model import FraudGnn, ModelConfig, Network, PaymentNetwork
from training.progress import Progress, no_progress
from training.sampler import BatchSampler, positive_weight
from training.scaling import ColumnScaling
from training.towers import head_network

log = logging.getLogger(__name__)

Bools = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]

AVERAGE_STEPS = 100
"""Weights are averaged over about so many steps: what one odd batch did to them does not reach validation."""

GRADIENT_LIMIT = 1.0
SCORING_ROWS = 8_192


class Inputs(Protocol):
    """Rows that a network takes, whatever they are: payments or accounts."""

    def __len__(self) -> int: ...

    def take(self, rows: npt.NDArray[np.int64]) -> Inputs: ...

    def feeds(self) -> dict[str, npt.NDArray[Any]]: ...


NetworkT = TypeVar("NetworkT", bound=Network)


class Team(Protocol):
    """Those who train one network together: see training.team."""

    @property
    def leads(self) -> bool: ...

    def begin(self, seed: int) -> None: ...

    def share(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]: ...

    def combine(self, network: nn.Module, loss: Tensor, rows: npt.NDArray[np.int64]) -> float: ...


class Alone:
    """A team of one."""

    leads = True

    def begin(self, seed: int) -> None:
        """Go on as seeded."""

    def share(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return rows

    def combine(self, network: nn.Module, loss: Tensor, rows: npt.NDArray[np.int64]) -> float:  # noqa: ARG002
        return float(loss.detach())


ALONE = Alone()


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One pass over the training rows: mean loss, and AP of the averaged weights on the validation rows."""

    number: int
    loss: float
    validation_ap: float


@dataclass(frozen=True, kw_only=True)
class Fitted(Generic[NetworkT]):
    """A trained network on the CPU, what each epoch brought, and the epoch whose weights were kept (1-based)."""

    model: NetworkT
    epochs: tuple[Epoch, ...]
    best_epoch: int
    device: str


def fit(
    train: tuple[InputTuples, Bools],
    validation: tuple[InputTuples, Bools] | None,
    settings: TrainingSettings,
    *,
    neighbours: int,
    epochs: int | None = None,
    progress: Progress = no_progress,
) -> Fitted[FraudGnn]:
    """Train the payment model on (tuples, is_fraud); see `fit_network`."""
    return fit_network(
        lambda: graph_network(*train, settings, neighbours),
        train,
        validation,
        settings,
        epochs=epochs,
        progress=progress,
    )


def fit_payments(
    train: tuple[InputTuples, Bools],
    validation: tuple[InputTuples, Bools] | None,
    settings: TrainingSettings,
    *,
    spec: InputSpec,
    epochs: int | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Progress = no_progress,
    team: Team = ALONE,
) -> Fitted[PaymentNetwork]:
    """Train the network that suits the inputs: a head where they are embeddings, else the graph network."""

    def build() -> PaymentNetwork:
        if spec.encoder is not None:
            return head_network(*train, settings)
        return graph_network(*train, settings, spec.neighbours)

    return fit_network(
        build, train, validation, settings, epochs=epochs, checkpoint=checkpoint, progress=progress, team=team
    )


def fit_network(
    build: Callable[[], NetworkT],
    train: tuple[Inputs, Bools],
    validation: tuple[Inputs, Bools] | None,
    settings: TrainingSettings,
    *,
    epochs: int | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Progress = no_progress,
    team: Team = ALONE,
) -> Fitted[NetworkT]:
    """Train what `build` makes on (inputs, is_fraud), keep the epoch with the best validation AP.

    Without validation rows it runs exactly `epochs` epochs and keeps the last. The same inputs, settings and device
    give the same weights, bit for bit on the CPU, in one go or taken up from `checkpoint`, which is written after every
    epoch. Raises ModelError when there is no fraud to learn from.
    """
    inputs, is_fraud = train
    if not is_fraud.any() or is_fraud.all():
        raise ModelError(
            f"training needs both fraud and genuine rows, got {int(is_fraud.sum())} frauds among {len(is_fraud)}: "
            "choose a longer period, or a later label cut"
        )
    device = _device(settings.device)
    with _deterministic(settings.seed):
        model = build().to(device)
        team.begin(settings.seed)
        run = _Run(model, inputs, is_fraud, validation, settings, epochs or settings.epochs, device, team)
        history, best_epoch = run.run(progress, checkpoint)
    return Fitted(model=model.to("cpu").eval(), epochs=history, best_epoch=best_epoch, device=str(device))


class _Run:
    """The state of one training: network, averaged copy, optimiser."""

    def __init__(
        self,
        model: Network,
        inputs: Inputs,
        is_fraud: Bools,
        validation: tuple[Inputs, Bools] | None,
        settings: TrainingSettings,
        epochs: int,
        device: torch.device,
        team: Team,
    ) -> None:
        self.team = team
        self.model, self.inputs, self.validation, self.epochs, self.device = model, inputs, validation, epochs, device
        self.patience = settings.patience
        self.targets = torch.from_numpy(is_fraud.astype(np.float32))
        self.sampler = BatchSampler(
            labels=is_fraud,
            batch_rows=settings.batch_rows,
            seed=settings.seed,
            negatives_per_positive=settings.negatives_per_positive or None,
        )
        weight = positive_weight(is_fraud, limit=settings.positive_weight_limit)
        self.loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weight, device=device))
        self.optimiser = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        steps = settings.epochs * self.sampler.count() + 1
        # The rate falls along a cosine over all epochs that may come, whether or not training stops early.
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser,
            max_lr=settings.learning_rate,
            total_steps=steps,
            # A tenth of the way, and a step at least.
            pct_start=max(0.1, 2 / steps),
        )
        self.averaged = torch.optim.swa_utils.AveragedModel(model, avg_fn=_average)
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}
        self.best_epoch = 0

    def run(self, progress: Progress, checkpoint: Checkpoint | None) -> tuple[tuple[Epoch, ...], int]:
        """Train; leave the best weights in the network; return what each epoch brought, and the best one's number."""
        if checkpoint is not None and (left := checkpoint.load()) is not None:
            self._take_up(left)
        total = float(self.epochs * self.sampler.count())
        for number in range(len(self.history) + 1, self.epochs + 1):
            if self.history and self.validation is not None and len(self.history) - self.best_epoch >= self.patience:
                break
            loss = self._epoch(number, progress, total)
            ap = self._validate()
            self.history.append(Epoch(number=number, loss=loss, validation_ap=ap))
            log.info("epoch %d: loss %.4f, validation AP %.4f", number, loss, ap)
            if self.validation is None or not self.best or ap > self.history[self.best_epoch - 1].validation_ap:
                self.best_epoch = number
                self.best = {name: value.detach().clone() for name, value in self.averaged.module.state_dict().items()}
            if checkpoint is not None and self.team.leads:
                checkpoint.save(self._state())
        self.model.load_state_dict(self.best)
        return tuple(self.history), self.best_epoch

    def _state(self) -> dict[str, Any]:
        """Everything that the epochs to come depend on."""
        return {
            "history": [[epoch.loss, epoch.validation_ap] for epoch in self.history],
            "best_epoch": self.best_epoch,
            "best": self.best,
            **{name: part.state_dict() for name, part in self._parts().items()},
            "rng": torch.get_rng_state(),
            "device_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def _take_up(self, left: dict[str, Any]) -> None:
        self.history = [
            Epoch(number=number, loss=loss, validation_ap=ap) for number, (loss, ap) in enumerate(left["history"], 1)
        ]
        self.best_epoch = left["best_epoch"]
        self.best = {name: value.to(self.device) for name, value in left["best"].items()}
        for name, part in self._parts().items():
            part.load_state_dict(left[name])
        torch.set_rng_state(left["rng"])
        if left["device_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(left["device_rng"], self.device)
        log.info("going on after epoch %d", len(self.history))

    def _parts(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "averaged": self.averaged,
            "optimiser": self.optimiser,
            "schedule": self.schedule,
        }

    def _epoch(self, number: int, progress: Progress, total: float) -> float:
        self.model.train()
        losses, step = 0.0, (number - 1) * self.sampler.count()
        for rows in self.sampler.batches(number):
            mine = self.team.share(rows)
            logit = self.model.logit(*tensors(self.inputs.take(mine), self.device))
            loss = self.loss(logit, self.targets[mine].to(self.device))
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            mean_loss = self.team.combine(self.model, loss, rows)
            nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_LIMIT)
            self.optimiser.step()
            self.schedule.step()
            self.averaged.update_parameters(self.model)
            losses += mean_loss * len(rows)
            step += 1
            progress(step, total, f"epoch {number}")
        return losses / max(1, len(self.sampler.rows(number)))

    def _validate(self) -> float:
        if self.validation is None:
            return float("nan")
        inputs, is_fraud = self.validation
        return average_precision(is_fraud, logits(cast(Network, self.averaged.module), inputs))


def logits(model: Network, inputs: Inputs) -> Float64:
    """Uncalibrated logits of all rows, float64 [B], in pieces that bound memory."""
    model.eval()
    device = next(model.parameters()).device
    out = np.empty(len(inputs), np.float64)
    with torch.no_grad():
        for start in range(0, len(inputs), SCORING_ROWS):
            rows = np.arange(start, min(start + SCORING_ROWS, len(inputs)))
            out[rows] = model.logit(*tensors(inputs.take(rows), device)).cpu().numpy()
    return out


def hidden(model: PaymentNetwork, inputs: Inputs) -> npt.NDArray[np.float32]:
    """What goes into the last layer, float32 [B, H]: the network's own picture of each row."""
    last = model.head[-1]
    caught: list[npt.NDArray[np.float32]] = []
    handle = last.register_forward_pre_hook(lambda _module, given: caught.append(given[0].cpu().numpy()))
    try:
        logits(model, inputs)
    finally:
        handle.remove()
    return np.concatenate(caught)


def tensors(inputs: Inputs, device: torch.device) -> list[Tensor]:
    """A network's inputs on `device`, in order."""
    return [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in inputs.feeds().values()]


def _average(averaged: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
    """Moving average that looks back AVERAGE_STEPS steps, fewer at the beginning, where weights still travel."""
    seen = torch.as_tensor(updates, device=current.device)
    decay = torch.clamp((1.0 + seen) / (10.0 + seen), max=1.0 - 1.0 / AVERAGE_STEPS)
    return torch.lerp(current, averaged, decay.to(current.dtype))


def graph_network(tuples: InputTuples, is_fraud: Bools, settings: TrainingSettings, neighbours: int) -> FraudGnn:
    """The graph network with its scaling measured, and its cut points found, on training rows."""
    account = ColumnScaling.measure(tuples.sender_x, tuples.receiver_x)
    transaction = ColumnScaling.measure(tuples.transaction_x)
    neighbour = ColumnScaling.measure(tuples.neighbour_x, with_log=False)
    sides = (tuples.sender_x, tuples.receiver_x, tuples.transaction_x)
    sender_cuts, receiver_cuts, transaction_cuts = (
        CutPoints.find(x, is_fraud, most=settings.cut_points) for x in sides
    )
    config = ModelConfig(
        account_features=tuples.sender_x.shape[1],
        transaction_features=tuples.transaction_x.shape[1],
        neighbour_features=tuples.neighbour_x.shape[1],
        account_nulls=len(account.null_columns),
        transaction_nulls=len(transaction.null_columns),
        neighbour_nulls=len(neighbour.null_columns),
        neighbours=neighbours,
        hidden=settings.hidden,
        heads=settings.heads,
        dropout=settings.dropout,
        sender_cuts=len(sender_cuts),
        receiver_cuts=len(receiver_cuts),
        transaction_cuts=len(transaction_cuts),
    )
    model = FraudGnn(config)
    model.sender_cuts.load(sender_cuts)
    model.receiver_cuts.load(receiver_cuts)
    model.transaction_cuts.load(transaction_cuts)
    model.account_scaler.load(account)
    model.transaction_scaler.load(transaction)
    model.neighbour_scaler.load(neighbour)
    return model


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelError("RINGFENCE_TRAIN_DEVICE is cuda, but torch sees no GPU here: set it to auto or cpu")
    return torch.device(wanted)


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Seed torch and forbid operations whose result depends on scheduling; the caller's state comes back after.

    One thread: sums then do not depend on the number of cores, and matrices of this size gain nothing from a second,
    whose waiting spins and takes ten times as long on a busy machine.
    """
    before, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
            torch.set_num_threads(threads)
