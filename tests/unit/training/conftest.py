"""Small made-up tuples, models and bundles."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from graph_features.clock import DAY_MS
from graph_features.input_spec import InputSpec
from graph_features.schema import Cadence, DType, FeatureSchema, ViewSchema
from graph_features.settings import TrainingSettings
from graph_features.tuples import InputTuples
from training.bundle import Bundle, BundleInfo
from training.dataset import Dataset

NEIGHBOURS = 4
WIDTHS = {"account": 5, "transaction": 6, "neighbour": 4}

MakeTuples = Callable[..., InputTuples]
MakeDataset = Callable[..., Dataset]
MakeBundle = Callable[..., Bundle]


def _rows(generator: np.random.Generator, rows: int, columns: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    x = (generator.normal(size=(rows, columns)) * 30).astype(np.float32)
    x[generator.random((rows, columns)) < 0.1] = np.nan
    return x


@pytest.fixture(scope="session")
def make_tuples() -> MakeTuples:
    """make_tuples(rows, seed=0): random tuples with nulls and 0 to K neighbours a side."""

    def make(rows: int, seed: int = 0) -> InputTuples:
        generator = np.random.default_rng(seed)
        index = np.repeat(np.arange(2 * rows), generator.integers(0, NEIGHBOURS + 1, 2 * rows))
        return InputTuples(
            sender_x=_rows(generator, rows, WIDTHS["account"]),
            receiver_x=_rows(generator, rows, WIDTHS["account"]),
            transaction_x=_rows(generator, rows, WIDTHS["transaction"]),
            neighbour_x=_rows(generator, len(index), WIDTHS["neighbour"]),
            neighbour_index=index.astype(np.int64),
        )

    return make


@pytest.fixture(scope="session")
def make_dataset(make_tuples: MakeTuples) -> MakeDataset:
    """make_dataset(rows, seed=0): ten days of payments, fraud where two inputs say so."""

    def make(rows: int, seed: int = 0) -> Dataset:
        tuples = make_tuples(rows, seed)
        generator = np.random.default_rng(seed + 1)
        signal = np.nan_to_num(tuples.receiver_x[:, 0]) + np.nan_to_num(tuples.transaction_x[:, 1])
        senders = np.array([f"s{code}" for code in generator.integers(0, 400, rows)], dtype=object)
        return Dataset(
            tuples=tuples,
            is_fraud=signal + generator.normal(size=rows) * 5 > np.quantile(signal, 0.93),
            event_ms=np.sort(generator.integers(0, 10 * DAY_MS, rows)),
            transaction_id=np.array([f"p{row}" for row in range(rows)], dtype=object),
            sender_id=senders,
        )

    return make


@pytest.fixture(scope="session")
def quick() -> TrainingSettings:
    """Settings that train in a second."""
    return TrainingSettings(
        hidden=16, neighbours=NEIGHBOURS, epochs=4, patience=2, batch_rows=128, device="cpu", seed=1
    )


@pytest.fixture(scope="session")
def spec() -> InputSpec:
    """Inputs that say as much as a bundle needs."""
    features = (FeatureSchema(name="f", dtype=DType.INT64, description="", unit="", range=""),)
    view = ViewSchema(name="v", entity="account", cadence=Cadence.EVENT, description="", features=features)
    return InputSpec.derive([view], feature_hash="hash", profile=(), neighbours=NEIGHBOURS)


@pytest.fixture(scope="session")
def make_bundle(
    tmp_path_factory: pytest.TempPathFactory, make_dataset: MakeDataset, quick: TrainingSettings, spec: InputSpec
) -> MakeBundle:
    """make_bundle(seed=1): a trained bundle, the same one for the same seed; do not change its files."""

    @cache
    def make(seed: int = 1) -> Bundle:
        from training.export import write_bundle
        from training.fit import fit

        dataset = make_dataset(600)
        settings = quick.model_copy(update={"seed": seed})
        fitted = fit((dataset.tuples, dataset.is_fraud), None, settings, neighbours=NEIGHBOURS, epochs=2)
        info = BundleInfo(
            inputs=spec,
            model=fitted.model.config.to_json(),
            threshold=0.5,
            calibration={"scale": 1.0, "shift": 0.0},
            git_revision="",
            seed=seed,
        )
        folder = tmp_path_factory.mktemp("bundles") / f"bundle-{seed}"
        return write_bundle(folder, fitted.model, info, dataset.tuples.take(np.arange(64)))

    return make


@pytest.fixture(scope="session")
def worlds() -> ModuleType:
    """The module worlds.py: a small world of payments with planted fraud."""
    path = Path(__file__).with_name("worlds.py")
    found = importlib.util.spec_from_file_location("ringfence_tests_worlds", path)
    assert found is not None
    assert found.loader is not None
    module = sys.modules[found.name] = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module
