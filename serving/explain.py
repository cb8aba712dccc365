"""Why a score is what it is: which inputs and which neighbours move it away from that of an ordinary payment.

Works on any bundle, since it only scores variants of the payment. A part of the inputs (a view of one side, a single
feature, one neighbour edge) is judged twice: what the payment's log-odds lose when the part becomes ordinary, and what
an ordinary payment's gain when it gets the part. The mean of the two is the part's effect. The first alone overlooks
parts that say the same, the second alone those that matter only together; over all orders in which parts may come,
theirs are the last place and the first one (compare Shapley values).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graph_features.input_spec import InputSpec
from graph_features.neighbour_spec import SENT
from graph_features.stores.blocks import RowBlock
from graph_features.tuples import InputTuples
from serving.api import Explanation, FeatureEffect, NeighbourEffect

Bools = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Score = Callable[[InputTuples], Float32]

GROUPS_LOOKED_INTO = 3
LARGEST = 5
"""So many features, and so many neighbours, are named."""

LARGEST_ODDS = 1e7
"""Scores nearer to 0 or 1 than this are as good as certain: float32 says no more."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some of the inputs of one payment: columns of each block, and neighbour edges. All bool."""

    name: str
    sender: Bools
    receiver: Bools
    transaction: Bools
    edge: Bools


def explain(
    spec: InputSpec, tuples: InputTuples, score: Score, ordinary: InputTuples, neighbours: RowBlock | None
) -> list[Explanation]:
    """Explain each of B payments.

    `ordinary` is one payment without neighbours, made of each input's median; `neighbours` the block (2B rows) that the
    edges were made of, None for models that look at none.
    """
    return [_explain_one(spec, tuples, at, score, ordinary, neighbours) for at in range(len(tuples))]


def _explain_one(
    spec: InputSpec, tuples: InputTuples, at: int, score: Score, ordinary: InputTuples, neighbours: RowBlock | None
) -> Explanation:
    one = tuples.take(np.array([at]))
    blank = _blank(one)
    groups = _groups(spec, blank)
    edges = [_part(blank, str(number), edge=[number]) for number in range(len(one.neighbour_index))]
    effect = _effects(one, ordinary, score, [*groups, *edges])
    by_group = dict(zip((group.name for group in groups), effect[: len(groups)].tolist(), strict=True))
    order = np.argsort(-np.abs(effect[: len(groups)]))
    told = _features(spec, one, ordinary, [groups[place] for place in order[:GROUPS_LOOKED_INTO]])
    features = _feature_effects(one, ordinary, told, _effects(one, ordinary, score, [part for part, _ in told]))
    return Explanation(
        groups=dict(sorted(by_group.items(), key=lambda item: -abs(item[1]))),
        features=features,
        neighbours=_neighbour_effects(one, at, len(tuples), effect[len(groups) :], neighbours),
    )


def _effects(one: InputTuples, ordinary: InputTuples, score: Score, parts: Sequence[Part]) -> Float64:
    """Effect of each part, in log-odds; positive ones push the score up."""
    if not parts:
        return np.empty(0)
    everything = _blank(one, value=True)
    masks = [everything, *(_inverse(part) for part in parts), _blank(one), *parts]
    odds = _log_odds(score(_mixed(one, ordinary, masks)))
    without, only = odds[1 : len(parts) + 1], odds[len(parts) + 2 :]
    effects: Float64 = (odds[0] - without + only - odds[len(parts) + 1]) / 2
    return effects


def _mixed(one: InputTuples, ordinary: InputTuples, masks: Sequence[Part]) -> InputTuples:
    """A payment per mask: `one` where the mask is set, `ordinary` elsewhere, and the edges that are set."""
    sides = one.neighbour_index
    edge = np.stack([mask.edge for mask in masks])
    found = [np.nonzero(edge & (sides == side)) for side in (0, 1)]
    return InputTuples(
        sender_x=np.where(np.stack([mask.sender for mask in masks]), one.sender_x, ordinary.sender_x),
        receiver_x=np.where(np.stack([mask.receiver for mask in masks]), one.receiver_x, ordinary.receiver_x),
        transaction_x=np.where(
            np.stack([mask.transaction for mask in masks]), one.transaction_x, ordinary.transaction_x
        ),
        neighbour_x=np.concatenate([one.neighbour_x[number] for _, number in found]),
        neighbour_index=np.concatenate([row + side * len(masks) for side, (row, _) in enumerate(found)]),
    )


def _log_odds(score: Float32) -> Float64:
    probability = np.clip(score.astype(np.float64), 1 / LARGEST_ODDS, 1 - 1 / LARGEST_ODDS)
    odds: Float64 = np.log(probability / (1 - probability))
    return odds


def _groups(spec: InputSpec, blank: Part) -> list[Part]:
    """The parts that an explanation begins with: views by side, the payment, its amount, its pair, the neighbours."""
    groups = []
    for columns in spec.account_columns:
        named = range(columns.first, columns.first + len(columns.names))
        if len(named):
            groups.append(_part(blank, f"sender:{columns.view.name}", sender=named))
            groups.append(_part(blank, f"receiver:{columns.view.name}", receiver=named))
    first, after = len(spec.request), len(spec.request) + len(spec.history)
    groups.append(_part(blank, "payment", transaction=range(first)))
    for side in ("sender", "receiver"):
        places = [first + place for place, feature in enumerate(spec.history) if feature.side == side]
        groups.append(_part(blank, f"amount_against_{side}", transaction=places))
    groups.append(_part(blank, "pair", transaction=range(after, after + len(spec.pair))))
    groups.append(_part(blank, "reverse_pair", transaction=range(after + len(spec.pair), len(spec.transaction_names))))
    groups.append(_part(blank, "neighbours", edge=range(len(blank.edge))))
    return [group for group in groups if any(mask.any() for mask in _masks(group))]


def _features(
    spec: InputSpec, one: InputTuples, ordinary: InputTuples, groups: Sequence[Part]
) -> list[tuple[Part, tuple[str, int]]]:
    """Every single feature of some groups that is not ordinary anyway, each with its block and column."""
    found = []
    blank = _blank(one)
    for group in groups:
        for block in ("sender", "receiver", "transaction"):
            values, usual = getattr(one, f"{block}_x")[0], getattr(ordinary, f"{block}_x")[0]
            differs = ~((values == usual) | (np.isnan(values) & np.isnan(usual)))
            for column in np.flatnonzero(getattr(group, block) & differs).tolist():
                names = spec.transaction_names if block == "transaction" else spec.account
                found.append((_part(blank, names[column], **{block: [column]}), (block, column)))
    return found


def _feature_effects(
    one: InputTuples, ordinary: InputTuples, told: Sequence[tuple[Part, tuple[str, int]]], effect: Float64
) -> list[FeatureEffect]:
    largest = np.argsort(-np.abs(effect))[:LARGEST]
    return [
        FeatureEffect(
            role="payment" if told[place][1][0] == "transaction" else told[place][1][0],
            feature=told[place][0].name,
            value=_number(one, *told[place][1]),
            ordinary=_number(ordinary, *told[place][1]),
            effect=float(effect[place]),
        )
        for place in largest.tolist()
    ]


def _number(tuples: InputTuples, block: str, column: int) -> float | None:
    value = float(getattr(tuples, f"{block}_x")[0, column])
    return None if np.isnan(value) else value


def _neighbour_effects(
    one: InputTuples, at: int, payments: int, effect: Float64, block: RowBlock | None
) -> list[NeighbourEffect]:
    if block is None or len(effect) == 0:
        return []
    offsets, ids = block.lists("neighbour_ids")
    amounts = block.lists("neighbour_amounts")[1]
    directions, moments = block.lists("neighbour_directions")[1], block.lists("neighbour_timestamps")[1]
    found = []
    for number in np.argsort(-np.abs(effect))[:LARGEST].tolist():
        side = int(one.neighbour_index[number])
        place = number - int(one.first_edge[side]) + int(offsets[at + side * payments])
        found.append(
            NeighbourEffect(
                role="receiver" if side else "sender",
                account_id=str(ids[place]),
                direction="sent" if directions[place] == SENT else "received",
                amount_minor=int(amounts[place]),
                event_timestamp_ms=int(moments[place]),
                effect=float(effect[number]),
            )
        )
    return found


def _blank(one: InputTuples, *, value: bool = False) -> Part:
    """A part with nothing, or with everything, of a payment."""
    widths = (one.sender_x.shape[1], one.receiver_x.shape[1], one.transaction_x.shape[1], len(one.neighbour_index))
    sender, receiver, transaction, edge = (np.full(width, value) for width in widths)
    return Part(name="", sender=sender, receiver=receiver, transaction=transaction, edge=edge)


def _part(blank: Part, name: str, **places: Sequence[int]) -> Part:
    masks = {block: getattr(blank, block).copy() for block in ("sender", "receiver", "transaction", "edge")}
    for block, at in places.items():
        masks[block][list(at)] = True
    return Part(name=name, **masks)


def _inverse(part: Part) -> Part:
    return Part(name=part.name, **{name: ~mask for name, mask in zip(_BLOCKS, _masks(part), strict=True)})


_BLOCKS = ("sender", "receiver", "transaction", "edge")


def _masks(part: Part) -> tuple[Bools, Bools, Bools, Bools]:
    return part.sender, part.receiver, part.transaction, part.edge
