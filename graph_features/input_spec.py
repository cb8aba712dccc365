"""What a model reads, in order: derived from the catalogue by rule, saved as JSON in its bundle.

Pure data, so that an inference worker needs neither kernels nor the catalogue: the bundle's own spec says which views
to read and how to lay their columns out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from graph_features.embeddings import EncoderRef
from graph_features.errors import SchemaMismatchError
from graph_features.schema import DType, FeatureSchema, ViewSchema
from graph_features.transaction import REQUEST_FEATURES
from graph_features.window_spec import FINISHED, WINDOWS_VIEW

Side = Literal["sender", "receiver"]
HistoryKind = Literal["ratio", "deviation", "percentile"]
PairSide = Literal["pair", "reverse"]

NEIGHBOUR_VIEW = "account_neighbours"
PAIR_VIEW = "pair_history"
EDGE_FEATURES = ("amount_log", "is_outgoing", "gap_log_s", "is_other_party")
"""Per neighbour edge, before the neighbour's profile: ln(1 + amount), whether the account paid (1) or was paid (0),
ln(1 + seconds from that payment to this one), whether the neighbour is the payment's other party."""

DIRECTIONS: dict[Side, str] = {"sender": "sent", "receiver": "received"}
"""Which of its own payments an account's amounts are compared with: the sender's sent, the receiver's received."""


@dataclass(frozen=True, kw_only=True)
class HistoryFeature:
    """The payment's amount against one side's history.

    ratio: amount / mean (or median, or largest). deviation: (amount - mean) / standard deviation, or (amount - median)
    / interquartile range. percentile: rank in the histogram, 0 to 1.
    `columns` are those of `view` that it takes: (mean, median or max,), (mean, std), (median, iqr) or (histogram,).
    """

    name: str
    kind: HistoryKind
    side: Side
    view: str
    columns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ViewColumns:
    """Where one view's scalar features stand in an input matrix: columns [first, first + len(names)).

    `empty` holds their values for what was never seen, NaN for null; `timestamps` are (position in names, name).
    `finished` are the positions of features whose windows move on after the row, and `finished_names` their names.
    """

    view: ViewSchema
    first: int
    names: tuple[str, ...]
    empty: tuple[float, ...]
    timestamps: tuple[tuple[int, str], ...]
    finished: tuple[int, ...]
    finished_names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """Ordered inputs of a model.

    `account` and `pair` name columns as "view:feature"; timestamps among them enter as seconds before the payment,
    never as themselves, and windows as of the payment, for which WINDOWS_VIEW must be among the views. transaction_x
    holds `request`, then `history`, then `pair` columns, then `reverse` ones (those of the receiver's payments to the
    sender). `profile` is what each neighbour edge carries of the neighbour after EDGE_FEATURES. `neighbours` is K, per
    account. `views` are the schemas that all of it was derived from. Raises SchemaMismatchError.
    """

    account: tuple[str, ...]
    pair: tuple[str, ...]
    reverse: tuple[str, ...]
    request: tuple[str, ...]
    history: tuple[HistoryFeature, ...]
    profile: tuple[str, ...]
    neighbours: int
    base_exponent: int
    feature_hash: str
    views: tuple[ViewSchema, ...]
    encoder: EncoderRef | None = None
    """Whose rows it takes of a view of embeddings, when it reads one."""

    def __post_init__(self) -> None:
        moving = [view.name for view in self.views if any(is_finished(view.name, name) for name in view.names)]
        if moving and all(view.name != WINDOWS_VIEW for view in self.views):
            raise SchemaMismatchError(
                f"the model's inputs have windows of {', '.join(moving)} without view {WINDOWS_VIEW}, which they are "
                "finished from: add it to the views"
            )

    @cached_property
    def hashed_views(self) -> tuple[str, ...]:
        """Names of the views whose definitions `feature_hash` covers: its own, and those that its encoder reads."""
        behind = () if self.encoder is None else self.encoder.views
        return tuple(dict.fromkeys((*(view.name for view in self.views), *behind)))

    @cached_property
    def transaction_names(self) -> tuple[str, ...]:
        """Columns of transaction_x, in order."""
        reverse = tuple(f"reverse_{name}" for name in self.reverse)
        return (*self.request, *(feature.name for feature in self.history), *self.pair, *reverse)

    @cached_property
    def neighbour_names(self) -> tuple[str, ...]:
        """Columns of neighbour_x, in order."""
        return (*EDGE_FEATURES, *(f"neighbour_{name}" for name in self.profile))

    @cached_property
    def account_views(self) -> tuple[ViewSchema, ...]:
        """Views to read for senders and receivers."""
        return tuple(view for view in self.views if view.entity == "account")

    @cached_property
    def pair_views(self) -> tuple[ViewSchema, ...]:
        """Views to read for pairs, forth and back."""
        return tuple(view for view in self.views if view.entity == "pair")

    @cached_property
    def account_columns(self) -> tuple[ViewColumns, ...]:
        """The layout of `account`, view by view."""
        return _layout(self.account_views, self.account)

    @cached_property
    def pair_columns(self) -> tuple[ViewColumns, ...]:
        """The layout of `pair`, view by view."""
        return _layout(self.pair_views, self.pair)

    def view(self, name: str) -> ViewSchema:
        """Return the schema of view `name`; raise SchemaMismatchError."""
        for view in self.views:
            if view.name == name:
                return view
        raise SchemaMismatchError(
            f"the model's inputs name view {name!r}; its views are {[v.name for v in self.views]}"
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "views": [view.to_json() for view in self.views]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> InputSpec:
        """Rebuild from `to_json` after a trip through JSON."""
        names = {key: tuple(data[key]) for key in ("account", "pair", "reverse", "request", "profile")}
        return cls(
            **names,
            history=tuple(HistoryFeature(**{**item, "columns": tuple(item["columns"])}) for item in data["history"]),
            neighbours=data["neighbours"],
            base_exponent=data["base_exponent"],
            feature_hash=data["feature_hash"],
            views=tuple(ViewSchema.from_json(view) for view in data["views"]),
            encoder=_encoder(data.get("encoder")),
        )

    @classmethod
    def derive(
        cls,
        views: Iterable[ViewSchema],
        *,
        feature_hash: str,
        profile: tuple[str, ...],
        neighbours: int,
        base_exponent: int = 2,
        encoder: EncoderRef | None = None,
    ) -> InputSpec:
        """Take every scalar feature of the views: account views, pair views, and what follows from their names."""
        views = tuple(views)
        accounts = [view for view in views if view.entity == "account"]
        pairs = [view for view in views if view.entity == "pair"]
        pair = tuple(name for view in pairs for name in _scalars(view))
        return cls(
            account=tuple(name for view in accounts for name in _scalars(view)),
            pair=pair,
            reverse=pair,
            request=tuple(feature.name for feature in REQUEST_FEATURES),
            history=tuple(feature for view in accounts for feature in _history(view)),
            profile=profile,
            neighbours=neighbours,
            base_exponent=base_exponent,
            feature_hash=feature_hash,
            views=views,
            encoder=encoder,
        )


def _encoder(data: dict[str, Any] | None) -> EncoderRef | None:
    return None if data is None else EncoderRef(id=data["id"], views=tuple(data["views"]))


def _layout(views: tuple[ViewSchema, ...], names: tuple[str, ...]) -> tuple[ViewColumns, ...]:
    layout, first = [], 0
    for view in views:
        features = [view.feature(name.partition(":")[2]) for name in names if name.startswith(f"{view.name}:")]
        stamps = [(at, one.name) for at, one in enumerate(features) if one.dtype is DType.TIMESTAMP]
        layout.append(
            ViewColumns(
                view=view,
                first=first,
                names=tuple(feature.name for feature in features),
                empty=tuple(math.nan if feature.empty is None else feature.empty for feature in features),
                timestamps=tuple(stamps),
                finished=tuple(at for at, one in enumerate(features) if is_finished(view.name, one.name)),
                finished_names=tuple(one.name for one in features if is_finished(view.name, one.name)),
            )
        )
        first += len(features)
    return tuple(layout)


def is_finished(view: str, feature: str) -> bool:
    """Whether a model reads the feature from the rows of WINDOWS_VIEW, finished for the payment's own time."""
    return feature in FINISHED.get(view, ())


def _scalars(view: ViewSchema) -> list[str]:
    return [f"{view.name}:{feature.name}" for feature in view.features if _is_input(feature)]


def _is_input(feature: FeatureSchema) -> bool:
    """Lists have readers of their own; a name of a group (a community's number) has no order to learn from."""
    return not feature.dtype.is_list and feature.unit != "id"


def _history(view: ViewSchema) -> list[HistoryFeature]:
    found: list[HistoryFeature] = []
    for side, direction in DIRECTIONS.items():
        for feature in view.features:
            found.extend(_against(view, feature, side, direction))
    return found


def _against(view: ViewSchema, feature: FeatureSchema, side: Side, direction: str) -> list[HistoryFeature]:
    name = feature.name
    if name == f"{direction}_amount_histogram":
        return [_history_feature(f"amount_percentile_{side}", "percentile", side, view, (name,))]
    for operation in ("mean", "max", "median"):
        prefix = f"{direction}_amount_{operation}_"
        if name.startswith(prefix):
            ratio = f"amount_over_{side}_{operation}_{name.removeprefix(prefix)}"
            return [_history_feature(ratio, "ratio", side, view, (name,))]
    median = f"{direction}_amount_median_all"
    if name == f"{direction}_amount_iqr_all" and median in view.names:
        return [_history_feature(f"amount_ranges_above_{side}_median_all", "deviation", side, view, (median, name))]
    prefix = f"{direction}_amount_std_"
    window = name.removeprefix(prefix)
    mean = f"{direction}_amount_mean_{window}"
    if name.startswith(prefix) and mean in view.names:
        return [_history_feature(f"amount_deviation_{side}_{window}", "deviation", side, view, (mean, name))]
    return []


def _history_feature(
    name: str, kind: HistoryKind, side: Side, view: ViewSchema, columns: tuple[str, ...]
) -> HistoryFeature:
    return HistoryFeature(name=name, kind=kind, side=side, view=view.name, columns=columns)
