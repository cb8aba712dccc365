"""The ladder: the same rows and the same labels for every kind of model, from rules to a network with trees beside it.

A network that is not better than trees on the same features has no reason to be in service; this is where one sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from graph_features.errors import ModelError
from graph_features.input_spec import InputSpec
from graph_features.settings import TrainingSettings
from graph_features.tuples import InputTuples
from training.calibrate import platt, sigmoid
from training.dataset import Dataset
from training.tabular import RECEIVER, Columns, columns
from training.trees import Trees, TreeSettings

if TYPE_CHECKING:
    from training.fit import Fitted
    from training.model import FraudGnn

Float64 = npt.NDArray[np.float64]
Score = Callable[[InputTuples], Float64]
"""Log odds of fraud, float64 [B], in the model's own units: only their order counts."""

RULES: Final = (
    ("amount_deviation_sender_all", 3.0),
    ("amount_over_sender_max_all", 1.0),
    ("amount_ranges_above_sender_median_all", 4.0),
    (f"{RECEIVER}account_exposure:received_known_fraud_ratio_30d", 0.2),
    (f"{RECEIVER}account_exposure:received_run_is_fraud", 0.5),
    ("sender_account_exposure:sent_known_fraud_count_30d", 0.5),
)
"""Column and the value above which an investigator looks twice. A payment scores a point for each."""


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """What the rungs fit on, and the models that several of them share, each fitted when first asked for.

    `known` holds the labelled payments of the training period; those from `validation_from_ms` on stop the network and
    weigh a blend, before everything is fitted once more on all of them.
    """

    spec: InputSpec
    known: Dataset
    validation_from_ms: int
    settings: TrainingSettings
    trees: TreeSettings = field(default_factory=TreeSettings)

    @cached_property
    def _parts(self) -> tuple[Dataset, Dataset]:
        cut = int(np.searchsorted(self.known.event_ms, self.validation_from_ms))
        early, late = self.known.take(np.arange(cut)), self.known.take(np.arange(cut, len(self.known)))
        for name, part in (("training", early), ("validation", late)):
            if not part.is_fraud.any():
                raise ModelError(f"no fraud among the {len(part)} {name} payments: choose a longer training period")
        return early, late

    def fit_trees(self, rows: Dataset, *, graph: bool) -> Trees:
        table = columns(self.spec, rows.tuples, graph=graph)
        return Trees.fit(table, rows.is_fraud, self.trees, seed=self.settings.seed)

    @cached_property
    def graph_trees(self) -> Trees:
        return self.fit_trees(self.known, graph=True)

    @cached_property
    def early_network(self) -> Fitted[FraudGnn]:
        """The network that has not seen the validation payments but to know when to stop."""
        from training.fit import fit

        early, late = self._parts
        rows = (early.tuples, early.is_fraud)
        return fit(rows, (late.tuples, late.is_fraud), self.settings, neighbours=self.spec.neighbours)

    @cached_property
    def network(self) -> Fitted[FraudGnn]:
        """The network on all payments, for as many epochs as the early one wanted."""
        from training.fit import fit

        if not self.settings.refit:
            return self.early_network
        everything, epochs = (self.known.tuples, self.known.is_fraud), self.early_network.best_epoch
        return fit(everything, None, self.settings, neighbours=self.spec.neighbours, epochs=epochs)

    @cached_property
    def blend(self) -> tuple[float, float]:
        """Weights of the trees' and the network's log odds, learned on payments that neither had seen."""
        from training.fit import logits

        early, late = self._parts
        trees = self.fit_trees(early, graph=True).logit(columns(self.spec, late.tuples, graph=True))
        return blend_weights(trees, logits(self.early_network.model, late.tuples), late.is_fraud)

    def halves(self) -> tuple[Dataset, Dataset]:
        """The training payments before and after their middle."""
        middle = len(self.known) // 2
        return self.known.take(np.arange(middle)), self.known.take(np.arange(middle, len(self.known)))


def blend_weights(one: Float64, other: Float64, is_fraud: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return what to multiply both log odds [n] with: shares that add up to 1, each times its own calibration.

    The shares are those of the smallest log loss; few frauds decide little, so they are drawn half way to equal ones.
    """
    from scipy.optimize import minimize_scalar

    target = is_fraud.astype(np.float64)
    scale_one, shift_one = platt(one, is_fraud)
    scale_other, shift_other = platt(other, is_fraud)
    first, second = scale_one * one + shift_one, scale_other * other + shift_other

    def loss(weight: float) -> float:
        z = weight * first + (1 - weight) * second
        return float(np.mean(np.logaddexp(0.0, z) - target * z))

    weight = (float(minimize_scalar(loss, bounds=(0.0, 1.0), method="bounded").x) + 0.5) / 2
    return weight * scale_one, (1 - weight) * scale_other


# ---------------------------------------------------------------- the rungs


def rules(shop: Workshop) -> Score:
    """Points for what an investigator would call odd; between equals, the larger amount for its sender comes first."""

    def score(tuples: InputTuples) -> Float64:
        table = columns(shop.spec, tuples, graph=False)
        at = {name: place for place, name in enumerate(table.names)}
        points = np.zeros(len(tuples))
        for name, limit in RULES:
            if name in at:
                points += np.nan_to_num(table.x[:, at[name]], nan=-np.inf) > limit
        amount = tuples.transaction_x[:, shop.spec.transaction_names.index("amount_log")].astype(np.float64)
        return points + np.nan_to_num(amount) / (1.0 + np.nanmax(amount, initial=1.0))

    return score


def logistic(shop: Workshop) -> Score:
    """Logistic regression on the same columns as the trees: logarithms of what has a long tail, standardised."""
    from sklearn.linear_model import LogisticRegression

    from training.scaling import ColumnScaling

    def table(tuples: InputTuples) -> npt.NDArray[np.float32]:
        return columns(shop.spec, tuples, graph=False).x

    scaling = ColumnScaling.measure(table(shop.known.tuples))
    model = LogisticRegression(C=0.01, class_weight="balanced", max_iter=500)
    model.fit(scaling.apply(table(shop.known.tuples)), shop.known.is_fraud)
    return lambda tuples: np.asarray(model.decision_function(scaling.apply(table(tuples))), np.float64)


def tabular_trees(shop: Workshop) -> Score:
    """Trees on what both parties' own payments tell."""
    model = shop.fit_trees(shop.known, graph=False)
    return lambda tuples: model.logit(columns(shop.spec, tuples, graph=False))


def graph_trees(shop: Workshop) -> Score:
    """Trees on all features of the catalogue."""
    return lambda tuples: shop.graph_trees.logit(columns(shop.spec, tuples, graph=True))


def embedding_trees(shop: Workshop) -> Score:
    """Trees on all features and the network's last hidden layer, the network fitted on the half before the trees'."""
    from training.fit import fit

    before, after = shop.halves()
    epochs = shop.early_network.best_epoch
    rows = (before.tuples, before.is_fraud)
    network = fit(rows, None, shop.settings, neighbours=shop.spec.neighbours, epochs=epochs).model

    def table(tuples: InputTuples) -> Columns:
        found = embeddings(network, tuples)
        names = tuple(f"embedding_{place}" for place in range(found.shape[1]))
        return columns(shop.spec, tuples, graph=True).beside(names, found)

    model = Trees.fit(table(after.tuples), after.is_fraud, shop.trees, seed=shop.settings.seed)
    return lambda tuples: model.logit(table(tuples))


def network(shop: Workshop) -> Score:
    """The graph network alone."""
    from training.fit import logits

    return lambda tuples: logits(shop.network.model, tuples)


def network_and_trees(shop: Workshop) -> Score:
    """Both, their log odds weighed as the validation payments want it."""
    from training.fit import logits

    of_trees, of_network = shop.blend

    def score(tuples: InputTuples) -> Float64:
        trees = shop.graph_trees.logit(columns(shop.spec, tuples, graph=True))
        return of_trees * trees + of_network * logits(shop.network.model, tuples)

    return score


RUNGS: Final[dict[str, Callable[[Workshop], Score]]] = {
    "rules": rules,
    "logistic regression": logistic,
    "trees": tabular_trees,
    "trees + graph": graph_trees,
    "trees + graph + embeddings": embedding_trees,
    "network": network,
    "network + trees": network_and_trees,
}
"""From the bottom to the top; see each function."""


def embeddings(model: FraudGnn, tuples: InputTuples) -> npt.NDArray[np.float32]:
    """Return the last hidden layer of the network's head, float32 [B, hidden]."""
    import torch

    from training.fit import logits

    found: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found.append(inputs[0].detach())

    hook = model.head[-1].register_forward_pre_hook(keep)
    try:
        logits(model, tuples)
    finally:
        hook.remove()
    return torch.cat(found).numpy()


def climb(shop: Workshop, test: Dataset, rungs: tuple[str, ...] = tuple(RUNGS)) -> Iterator[tuple[str, Float64]]:
    """Yield each rung's name and its scores of the test payments, log odds float64 [B]."""
    for name in rungs:
        yield name, RUNGS[name](shop)(test.tuples)


def with_seed(shop: Workshop, seed: int) -> Workshop:
    """Return the same with another seed, and nothing fitted."""
    return replace(shop, settings=shop.settings.model_copy(update={"seed": seed}))


def probability(score: Float64) -> npt.NDArray[Any]:
    """Log odds to (0, 1), order kept: for figures that want a score of that range."""
    return sigmoid(score)
