"""Several workers train one network: each takes its share of every batch, and all take the step of the whole batch.

Data parallel as in torch.distributed, over Gloo: gradients are added up, weighted by shares, so that a step is the one
that a single worker takes, but for the order of additions and for which inputs are dropped out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from graph_features.errors import ModelError
from graph_features.executor import PartResult, open_executor
from graph_features.input_spec import InputSpec
from graph_features.ray_cluster import own_address
from graph_features.settings import ExecutorKind, ExecutorSettings, TrainingSettings, load
from graph_features.tuples import InputTuples
from training.checkpoint import Checkpoint
from training.fit import Fitted, fit_payments
from training.model import PaymentNetwork
from training.progress import Progress, no_progress

Int64 = npt.NDArray[np.int64]
Rows = tuple[InputTuples, npt.NDArray[np.bool_]]

WAIT = timedelta(minutes=5)
"""For the other workers to start, or to end a step: then one of them is gone, or has no core."""

distributed: Any = torch.distributed
"""Its stubs leave out half of it."""

LOOPBACK = "127.0.0.1"


class Member:
    """One of `size` workers that train together."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def begin(self, seed: int) -> None:
        """Drop out other inputs than the others do; the network itself has been built alike by all."""
        torch.manual_seed(seed + 1_000_003 * self.rank)

    def share(self, rows: Int64) -> Int64:
        """Return this worker's rows of a batch; of one smaller than the team some get its first row, for nothing."""
        mine = rows[self.rank :: self.size]
        return mine if len(mine) else rows[:1]

    def combine(self, network: nn.Module, loss: Tensor, rows: Int64) -> float:
        """Replace gradients by those of the whole batch; return its loss."""
        weight = len(rows[self.rank :: self.size]) / len(rows)
        parameters = [one for one in network.parameters() if one.requires_grad]
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
        flat = torch.cat([*(one.reshape(-1) for one in gradients), loss.detach().reshape(1)]).cpu() * weight
        distributed.all_reduce(flat)
        at = 0
        for one in parameters:
            one.grad = flat[at : at + one.numel()].view_as(one).to(one.device)
            at += one.numel()
        return float(flat[-1])


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one worker is told. All rows go to all: a batch is drawn from everywhere."""

    rank: int
    size: int
    host: str
    port: int
    train: Rows
    validation: Rows | None
    settings: TrainingSettings
    spec: InputSpec
    epochs: int | None
    checkpoint: Checkpoint | None


def fit_by_workers(
    train: Rows,
    validation: Rows | None,
    settings: TrainingSettings,
    *,
    spec: InputSpec,
    epochs: int | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Progress = no_progress,
) -> Fitted[PaymentNetwork]:
    """Do `fit_payments` with RINGFENCE_TRAIN_WORKERS workers: here, in processes, or on Ray where that is set.

    Raises ModelError when a worker is lost or none of the others starts: what a checkpoint has is taken up next time.
    """
    size = settings.workers
    if size == 1:
        return fit_payments(
            train, validation, settings, spec=spec, epochs=epochs, checkpoint=checkpoint, progress=progress
        )
    progress(0.0, None, f"training with {size} workers")
    executor = open_executor(size, retries=0)
    try:
        with _meeting_point() as (host, port):
            parts = [
                Part(
                    rank=rank,
                    size=size,
                    host=host,
                    port=port,
                    train=train,
                    validation=validation,
                    settings=settings,
                    spec=spec,
                    epochs=epochs,
                    checkpoint=checkpoint,
                )
                for rank in range(size)
            ]
            results = list(executor.map(_work, parts))
    finally:
        executor.close()
    failed = [result for result in results if result.error is not None]
    if failed:
        raise _reason(failed)
    fitted = results[0].get()
    assert fitted is not None
    return fitted


def _reason(failed: list[PartResult[Part, Fitted[PaymentNetwork] | None]]) -> ModelError:
    """Return what ended a training: what a worker said is wrong, or a death, before what the others made of that."""
    for result in failed:
        if isinstance(result.error, ModelError):
            return result.error
    first = next((result for result in failed if result.lost), failed[0])
    what = "died" if first.lost else "failed"
    next_time = "train again" if first.part.checkpoint is None else "train again, which goes on from the checkpoint"
    # What Ray says of a death goes on for a page.
    said = str(first.error).strip().partition("\n")[0]
    return ModelError(
        f"worker {first.part.rank + 1} of {first.part.size} {what} amid the training, "
        f"{type(first.error).__name__}: {said}; {next_time}"
    )


@contextmanager
def _meeting_point() -> Iterator[tuple[str, int]]:
    """Hold a store in this process through which workers find each other; yield its address."""
    settings = load(ExecutorSettings)
    host = LOOPBACK if settings.executor is ExecutorKind.PROCESS else own_address(settings)
    store = distributed.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=WAIT)
    yield host, store.port


def _work(part: Part) -> Fitted[PaymentNetwork] | None:
    with _joined(part) as member:
        fitted = fit_payments(
            part.train,
            part.validation,
            part.settings,
            spec=part.spec,
            epochs=part.epochs,
            checkpoint=part.checkpoint,
            team=member,
        )
    return fitted if member.leads else None


@contextmanager
def _joined(part: Part) -> Iterator[Member]:
    if part.host == LOOPBACK:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = distributed.TCPStore(part.host, part.port, is_master=False, timeout=WAIT)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // part.size))
    distributed.init_process_group("gloo", store=store, rank=part.rank, world_size=part.size, timeout=WAIT)
    try:
        yield Member(part.rank, part.size)
    finally:
        distributed.destroy_process_group()
        torch.set_num_threads(threads)
