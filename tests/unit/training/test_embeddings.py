"""Embeddings: made in batch by an encoder, read by a head, and never those of another encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from graph_features.catalog import catalog
from graph_features.clock import DAY_MS
from graph_features.contracts import CREATED, TIMESTAMP
from graph_features.embeddings import EMBEDDING_SIZE, EMBEDDING_VIEWS, ENCODER_ID, EncoderRef, of_encoder
from graph_features.errors import SchemaMismatchError
from graph_features.input_spec import InputSpec
from graph_features.settings import FeatureSettings, TrainingSettings
from graph_features.stores.blocks import RowBlock
from graph_features.stores.sqlite import SqliteOnlineStore
from graph_features.tuples import InputTuples, TransactionColumns, build_tuples, row_requests
from serving.scorer import Shard, State, judge
from training.bundle import BundleInfo
from training.dataset import Dataset
from training.export import encoder_id, export_encoder, write_bundle
from training.fit import fit_payments
from training.head import accounts_of, head_spec
from training.towers import OTHER_PARTY, AccountEncoder, Towers

BLUE = EMBEDDING_VIEWS["account_embeddings_blue"]
NOW_MS = 1_700_000_000_000
OURS = EncoderRef(id=7, views=("account_activity",))


def rows(**encoder_of: int) -> pa.Table:
    """One row of the blue view per account, a second before NOW_MS, by the given encoder."""
    n = len(encoder_of)
    columns = [
        pa.array(list(encoder_of), pa.string()),
        pa.array([NOW_MS - 1_000] * n, pa.int64()).cast(TIMESTAMP),
        pa.array([1] * n, pa.int64()).cast(CREATED),
        pa.array(list(encoder_of.values()), pa.int64()),
        *(pa.array([at / 100] * n, pa.float64()) for at in range(EMBEDDING_SIZE)),
    ]
    return pa.Table.from_arrays(columns, schema=BLUE.arrow_schema)


@pytest.fixture
def head() -> InputSpec:
    """Inputs of a head that reads nothing but embeddings and the payment."""
    return head_spec(TrainingSettings(), BLUE.name, (), OURS)


@pytest.fixture
def towers(make_tuples: Callable[..., InputTuples], quick: TrainingSettings) -> Towers:
    torch.manual_seed(0)
    return Towers(make_tuples(200), [0, 2, 5], slots=4, settings=quick).eval()


def test_rows_of_another_encoder_are_absent() -> None:
    """Only rows of the named encoder are there; other views stay as they are; naming none is an error."""
    block = RowBlock.from_arrow(BLUE, rows(a=7, b=8, c=7))
    assert of_encoder(block, OURS).present.tolist() == [True, False, True]
    with pytest.raises(SchemaMismatchError, match="names the encoder"):
        of_encoder(block, None)
    pair = catalog().schema("pair_history")
    empty = RowBlock.from_packed(pair, [None, None])
    assert of_encoder(empty, None) is empty


def test_a_score_never_rests_on_another_models_embeddings(tmp_path: Path, head: InputSpec) -> None:
    """Online rows of another encoder, and rows past their age, are named as what they are, and enter as unknown."""
    store = SqliteOnlineStore(tmp_path / "online.sqlite", project="p")
    store.write(BLUE, rows(ours=7, theirs=8))
    payments = TransactionColumns.from_mapping(
        {
            "event_timestamp": np.array([NOW_MS, NOW_MS + 4 * DAY_MS]),
            "sender_id": ["ours", "ours"],
            "receiver_id": ["theirs", "nobody"],
            "amount_base": np.array([100, 100]),
        }
    )
    values = store.read(row_requests(head, payments))
    store.close()
    found = judge(head, Shard(transactions=payments), values, {})
    assert found.state[0].tolist() == [0, State.TOO_OLD, State.MISSING, State.MISSING]
    tuples = build_tuples(head, payments, found.blocks)
    np.testing.assert_allclose(tuples.sender_x[0], np.arange(EMBEDDING_SIZE) / 100, rtol=1e-6)
    assert np.isnan(tuples.sender_x[1]).all()
    assert np.isnan(tuples.receiver_x).all()


def test_the_encoders_name_is_no_input(head: InputSpec) -> None:
    """A head reads the components and not who made them; its inputs come back from JSON with the encoder."""
    assert len(head.account) == EMBEDDING_SIZE
    assert not any(ENCODER_ID in name for name in head.account)
    assert InputSpec.from_json(json.loads(json.dumps(head.to_json()))) == head
    assert head.hashed_views == (BLUE.name, "account_activity")
    expected = catalog().feature_hash(["account_activity", BLUE.name], settings=FeatureSettings())
    assert head.feature_hash == expected


def test_encoder_on_disk_is_the_network(
    towers: Towers, make_tuples: Callable[..., InputTuples], spec: InputSpec, tmp_path: Path
) -> None:
    """ONNX gives what the network gives, for many accounts in pieces as in one go, with edges and without."""
    accounts = accounts_of(make_tuples(2_500, seed=3))
    made = export_encoder(tmp_path, towers.encoder, spec, accounts_of(make_tuples(50)))
    assert made.info.id == encoder_id(towers.encoder, spec)
    with torch.no_grad():
        expected = towers.encoder(
            *(torch.from_numpy(array) for array in (accounts.account_x, accounts.neighbour_x, accounts.neighbour_index))
        ).numpy()
    assert expected.shape == (5_000, EMBEDDING_SIZE)
    np.testing.assert_allclose(made.embed(accounts), expected, atol=5e-6)
    assert {path.name for path in tmp_path.iterdir()} == {"encoder.onnx", "encoder.pt2", "encoder.json"}


def test_an_encoder_is_named_by_its_weights(towers: Towers, spec: InputSpec) -> None:
    """The same weights and inputs have one id; another weight, or other inputs, another."""
    first = encoder_id(towers.encoder, spec)
    assert encoder_id(towers.encoder, spec) == first
    assert encoder_id(towers.encoder, replace(spec, feature_hash="other")) != first
    with torch.no_grad():
        towers.encoder.out.bias[0] += 1e-6
    assert encoder_id(towers.encoder, spec) != first
    assert 0 <= first < 2**63


def test_embeddings_know_nothing_of_a_payment(towers: Towers, make_tuples: Callable[..., InputTuples]) -> None:
    """Whether a neighbour is the payment's other party changes no embedding: in batch there is no payment."""
    encoder: AccountEncoder = towers.encoder
    accounts = accounts_of(make_tuples(20))
    other = accounts.neighbour_x.copy()
    other[:, OTHER_PARTY] = 1 - np.nan_to_num(other[:, OTHER_PARTY])
    given = np.nan_to_num(accounts.neighbour_x), np.nan_to_num(other)
    with torch.no_grad():
        first, second = (
            encoder(*(torch.from_numpy(array) for array in (accounts.account_x, edges, accounts.neighbour_index)))
            for edges in given
        )
    assert torch.equal(first, second)


def test_a_head_becomes_a_bundle(
    make_dataset: Callable[..., Dataset], quick: TrainingSettings, head: InputSpec, tmp_path: Path
) -> None:
    """A head trains, exports and scores like any other model, whatever neighbours its payments have."""
    dataset = make_dataset(400)
    fitted = fit_payments((dataset.tuples, dataset.is_fraud), None, quick, spec=head, epochs=2)
    info = BundleInfo(
        inputs=head,
        model=fitted.model.config.to_json(),
        threshold=0.5,
        calibration={"scale": 1.0, "shift": 0.0},
        git_revision="",
        seed=1,
    )
    bundle = write_bundle(tmp_path / "bundle", fitted.model, info, dataset.tuples.take(np.arange(64)))
    assert bundle.info.inputs.encoder == OURS
    score = bundle.score(dataset.tuples)
    np.testing.assert_array_equal(
        score,
        bundle.score(replace(dataset.tuples, neighbour_x=dataset.tuples.neighbour_x[:0],
                             neighbour_index=dataset.tuples.neighbour_index[:0])),
    )  # fmt: skip
