"""Which inputs a model rests on: what its AP loses when a group of them becomes ordinary for every payment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from graph_features.tuples import InputTuples
from training.bundle import Bundle
from training.dataset import Dataset
from training.metrics import average_precision

SAMPLE = 5_000
"""Genuine payments beside all frauds: more say the same."""


def importance(bundle: Bundle, dataset: Dataset) -> dict[str, float]:
    """AP lost by group of inputs, largest first; empty without fraud. Groups that say the same hide each other."""
    rows = _sample(dataset.is_fraud)
    tuples, is_fraud = dataset.tuples.take(rows), dataset.is_fraud[rows]
    if not is_fraud.any():
        return {}
    whole = average_precision(is_fraud, bundle.score(tuples))
    lost = {
        name: whole - average_precision(is_fraud, bundle.score(without))
        for name, without in _without_each(bundle, tuples)
    }
    return dict(sorted(lost.items(), key=lambda item: -item[1]))


def _sample(is_fraud: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    fraud, genuine = np.flatnonzero(is_fraud), np.flatnonzero(~is_fraud)
    if len(genuine) > SAMPLE:
        genuine = np.random.default_rng(0).choice(genuine, SAMPLE, replace=False)
    return np.sort(np.concatenate([fraud, genuine]))


def _without_each(bundle: Bundle, tuples: InputTuples) -> Iterator[tuple[str, InputTuples]]:
    spec, usual = bundle.info.inputs, bundle.ordinary()
    for columns in spec.account_columns:
        at = slice(columns.first, columns.first + len(columns.names))
        if columns.names:
            for side in ("sender", "receiver"):
                yield f"{side}:{columns.view.name}", _ordinary(tuples, usual, f"{side}_x", at)
    first, after = len(spec.request), len(spec.request) + len(spec.history)
    blocks = {
        "payment": slice(0, first),
        "amount_against_history": slice(first, after),
        "pair": slice(after, after + len(spec.pair)),
        "reverse_pair": slice(after + len(spec.pair), len(spec.transaction_names)),
    }
    for name, at in blocks.items():
        if at.stop > at.start:
            yield name, _ordinary(tuples, usual, "transaction_x", at)
    if len(tuples.neighbour_index):
        yield "neighbours", replace(tuples, neighbour_x=usual.neighbour_x, neighbour_index=usual.neighbour_index)


def _ordinary(tuples: InputTuples, usual: InputTuples, block: str, columns: slice) -> InputTuples:
    changed = getattr(tuples, block).copy()
    changed[:, columns] = getattr(usual, block)[:, columns]
    return replace(tuples, **{block: changed})
