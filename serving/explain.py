"""Why a score is what it is: how far it moves when a group of inputs is taken away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from graph_features.input_spec import InputSpec
from graph_features.tuples import InputTuples

Float32 = npt.NDArray[np.float32]


def explain(
    spec: InputSpec, tuples: InputTuples, score: Callable[[InputTuples], Float32], scores: Float32
) -> dict[str, Float32]:
    """Per group of inputs, float32 [B]: the score less the score with the whole group unknown (null).

    Groups are each account view of the sender and of the receiver, the payment itself, the pair's history both ways,
    and the neighbours. Positive values pushed the score up. Groups act together, so the parts need not add up.
    """
    return {name: scores - score(without) for name, without in _without_each(spec, tuples)}


def _without_each(spec: InputSpec, tuples: InputTuples) -> Iterator[tuple[str, InputTuples]]:
    for view in spec.account_views:
        columns = [at for at, name in enumerate(spec.account) if name.startswith(f"{view.name}:")]
        if columns:
            yield f"sender:{view.name}", replace(tuples, sender_x=_unknown(tuples.sender_x, columns))
            yield f"receiver:{view.name}", replace(tuples, receiver_x=_unknown(tuples.receiver_x, columns))
    own = len(spec.request) + len(spec.history)
    width = tuples.transaction_x.shape[1]
    yield "transaction", replace(tuples, transaction_x=_unknown(tuples.transaction_x, list(range(own))))
    if width > own:
        yield "pair", replace(tuples, transaction_x=_unknown(tuples.transaction_x, list(range(own, width))))
    yield (
        "neighbours",
        replace(tuples, neighbour_x=tuples.neighbour_x[:0], neighbour_index=tuples.neighbour_index[:0]),
    )


def _unknown(matrix: Float32, columns: list[int]) -> Float32:
    out = matrix.copy()
    out[:, columns] = np.nan
    return out
