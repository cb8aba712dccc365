"""MLflow on SQLite: registration, aliases, and bundles that come back as they went."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from graph_features.errors import ModelError
from graph_features.tuples import InputTuples
from training.bundle import Bundle
from training.registry import Registry

LOG = {"experiment": "e", "name": "m", "parameters": {"p": 1}, "metrics": {"ap": 0.5}, "history": {"loss": [2.0, 1.0]}}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Registry.open(tmp_path / "home")


def test_round_trip(
    registry: Registry, make_bundle: Callable[..., Bundle], make_tuples: Callable[..., InputTuples], tmp_path: Path
) -> None:
    """What is registered comes back by alias with the same scores, and the alias can be moved."""
    bundle = make_bundle()
    picture = tmp_path / "plot.png"
    picture.write_bytes(b"png")
    run_id, version = registry.log(bundle, **LOG, plots={"plot": picture})
    assert (version, registry.version_of("m", "champion")) == ("1", None)
    registry.set_alias("m", "champion", version)
    resolved, folder = registry.resolve("m", "champion")
    tuples = make_tuples(20, seed=5)
    again = Bundle.load(folder)
    np.testing.assert_array_equal(again.score(tuples), bundle.score(tuples))
    assert (resolved, again.info) == ("1", bundle.info)
    run = registry.client().get_run(run_id)
    assert (run.data.metrics["ap"], run.data.params["p"], run.data.metrics["loss"]) == (0.5, "1", 1.0)
    assert [item.path for item in registry.client().list_artifacts(run_id, "plots")] == ["plots/plot.png"]
    assert registry.tags("m", "1")["ringfence.feature_hash"] == "hash"


def test_model_says_what_it_takes(registry: Registry, make_bundle: Callable[..., Bundle]) -> None:
    """The registered model has a signature and an input example that it accepts; MLflow sends no telemetry."""
    import mlflow
    from mlflow.telemetry.utils import is_telemetry_disabled

    bundle = make_bundle()
    registry.log(bundle, **LOG, plots={})
    assert is_telemetry_disabled()
    loaded = mlflow.pyfunc.load_model("models:/m/1")
    assert loaded.metadata.signature.inputs.input_names() == list(bundle.feeds(bundle.example()))
    assert loaded.metadata.signature.outputs.input_names() == ["score"]
    example = loaded.input_example
    scores = next(iter(loaded.predict(example).values()))
    assert len(scores) == len(example["transaction_x"])


def test_unknown_alias_says_what_to_do(registry: Registry) -> None:
    """Without a champion the error names model and alias."""
    assert registry.version_of("m", "champion") is None
    with pytest.raises(ModelError, match=r"'champion'.*train and promote"):
        registry.resolve("m", "champion")


def test_tracking_uri_of_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLFLOW_TRACKING_URI is used where it is set, SQLite in the home otherwise."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert Registry.open(tmp_path).tracking_uri == "http://127.0.0.1:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert Registry.open(tmp_path).tracking_uri == f"sqlite:///{tmp_path.resolve()}/mlruns/mlflow.db"
