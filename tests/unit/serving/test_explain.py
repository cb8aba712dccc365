"""Explanations against scores whose causes are known because the test wrote them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from graph_features.input_spec import InputSpec
from graph_features.neighbours import NEIGHBOURS
from graph_features.schema import Cadence, DType, FeatureSchema, ViewSchema
from graph_features.stores.blocks import RowBlock
from graph_features.tuples import InputTuples
from serving.explain import explain

Float32 = npt.NDArray[np.float32]
FEATURES = 6


@pytest.fixture(scope="module")
def spec() -> InputSpec:
    """Two account views of three scalars each, a pair view, and neighbours."""

    def view(name: str, entity: str, *names: str) -> ViewSchema:
        features = tuple(
            FeatureSchema(name=one, dtype=DType.FLOAT64, description="", unit="", range="") for one in names
        )
        return ViewSchema(name=name, entity=entity, cadence=Cadence.EVENT, description="", features=features)

    views = [view("v", "account", "a", "b", "c"), view("w", "account", "d", "e", "f"), view("p", "pair", "g")]
    return InputSpec.derive([*views, NEIGHBOURS.schema()], feature_hash="", profile=(), neighbours=4)


def tuples_of(spec: InputSpec, rows: int, edges: list[int], seed: int = 0) -> InputTuples:
    """Payments with random inputs; `edges` names the account side of each edge."""
    generator = np.random.default_rng(seed)

    def block(n: int, width: int) -> Float32:
        return generator.normal(size=(n, width)).astype(np.float32)

    return InputTuples(
        sender_x=block(rows, FEATURES),
        receiver_x=block(rows, FEATURES),
        transaction_x=block(rows, len(spec.transaction_names)),
        neighbour_x=block(len(edges), len(spec.neighbour_names)),
        neighbour_index=np.array(edges, np.int64),
    )


def ordinary(spec: InputSpec) -> InputTuples:
    zero = tuples_of(spec, 1, [])
    return InputTuples(**{name: np.zeros_like(array) for name, array in zero.feeds().items()})


def scored_by(odds: Callable[[InputTuples], npt.NDArray[Any]]) -> Callable[[InputTuples], Float32]:
    def score(tuples: InputTuples) -> Float32:
        result: Float32 = (1 / (1 + np.exp(-odds(tuples).astype(np.float64)))).astype(np.float32)
        return result

    return score


def test_effects_of_a_sum_are_its_terms(spec: InputSpec) -> None:
    """Where log-odds are a sum of inputs, each effect is its own term, in groups and alone."""
    tuples = tuples_of(spec, 3, [])
    score = scored_by(lambda x: 2 * x.receiver_x[:, 4] - x.sender_x[:, 0] + 0.1 * x.transaction_x[:, -1])
    for at, found in enumerate(explain(spec, tuples, score, ordinary(spec), None)):
        assert found.groups["receiver:w"] == pytest.approx(2 * tuples.receiver_x[at, 4], abs=1e-4)
        assert found.groups["sender:v"] == pytest.approx(-tuples.sender_x[at, 0], abs=1e-4)
        assert found.groups["reverse_pair"] == pytest.approx(0.1 * tuples.transaction_x[at, -1], abs=1e-4)
        named = {(one.role, one.feature): one for one in found.features}
        assert named["receiver", "w:e"].effect == pytest.approx(2 * tuples.receiver_x[at, 4], abs=1e-4)
        assert named["receiver", "w:e"].value == pytest.approx(tuples.receiver_x[at, 4])
        assert named["receiver", "w:e"].ordinary == 0
        assert "neighbours" not in found.groups


def test_inputs_that_say_the_same_share_the_effect(spec: InputSpec) -> None:
    """Two features of which either suffices are both named: taking one away alone would show nothing."""
    tuples = tuples_of(spec, 1, [])
    tuples.sender_x[0, [1, 5]] = 3.0
    score = scored_by(lambda x: np.maximum(x.sender_x[:, 1], x.sender_x[:, 5]))
    (found,) = explain(spec, tuples, score, ordinary(spec), None)
    assert {one.feature: pytest.approx(one.effect, abs=1e-4) for one in found.features[:2]} == {"v:b": 1.5, "w:f": 1.5}


def test_the_neighbour_that_matters_is_named(spec: InputSpec) -> None:
    """Of several earlier payments the one that the score rests on comes first, with its party, amount and time."""
    view = NEIGHBOURS.schema()
    rows: dict[str, Any] = {
        "account_id": ["s1", "s2", "r1", "r2"],
        "event_timestamp": [9, 9, 9, 9],
        "created_timestamp": [1, 1, 1, 1],
        "neighbour_ids": [["x"], ["k", "l", "m"], [], ["y", "z"]],
        "neighbour_directions": [[1], [1, 0, 1], [], [0, 0]],
        "neighbour_amounts": [[10], [21, 22, 23], [], [41, 42]],
        "neighbour_timestamps": [[8], [7, 6, 5], [], [4, 3]],
        "neighbour_profile": [[0.0] * 6, [0.0] * 18, [], [0.0] * 12],
    }
    import pyarrow as pa

    table = pa.table({field.name: pa.array(rows[field.name], field.type) for field in view.arrow_schema})
    block = RowBlock.from_arrow(view, table)
    tuples = tuples_of(spec, 2, [0, 1, 1, 1, 3, 3])
    tuples.neighbour_x[:] = 0
    tuples.neighbour_x[[2, 5], 0] = [4.0, -1.0]

    def odds(x: InputTuples) -> npt.NDArray[Any]:
        out = np.zeros(len(x))
        np.add.at(out, x.neighbour_index % len(x), x.neighbour_x[:, 0])
        return out

    first, second = explain(spec, tuples, scored_by(odds), ordinary(spec), block)
    assert first.groups["neighbours"] == pytest.approx(0)
    one, other = second.neighbours[:2]
    assert (one.role, one.account_id, one.direction, one.amount_minor, one.event_timestamp_ms) == (
        *("sender", "l", "received"),
        *(22, 6),
    )
    assert one.effect == pytest.approx(4, abs=1e-4)
    assert (other.role, other.account_id, other.effect) == ("receiver", "z", pytest.approx(-1, abs=1e-4))


def test_one_payment_takes_few_scored_variants(spec: InputSpec) -> None:
    """An explanation scores two batches whose size follows from the inputs, not one call per input."""
    calls: list[int] = []
    plain = scored_by(lambda x: x.sender_x[:, 0])

    def score(tuples: InputTuples) -> Float32:
        calls.append(len(tuples))
        return plain(tuples)

    begun = time.perf_counter()
    explain(spec, tuples_of(spec, 1, [0, 0, 1]), score, ordinary(spec), None)
    assert time.perf_counter() - begun < 5
    assert len(calls) == 2
    assert sum(calls) < 4 + 2 * (2 * FEATURES + len(spec.transaction_names) + 3 + 12)
