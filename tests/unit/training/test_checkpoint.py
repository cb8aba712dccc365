"""A training that is killed goes on where its last epoch ended, and a search for settings keeps to its time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from graph_features.clock import DAY_MS
from graph_features.errors import ModelError
from graph_features.input_spec import InputSpec
from graph_features.settings import TrainingSettings
from training.checkpoint import Checkpoint, checkpoint_folder
from training.dataset import Dataset
from training.fit import fit_payments
from training.periods import Periods
from training.search import search_settings

ROOT = Path(__file__).parents[3]
NEIGHBOURS = 4

TRAIN = """
import sys
from pathlib import Path

import numpy as np

from graph_features.input_spec import InputSpec
from graph_features.settings import TrainingSettings
from graph_features.tuples import InputTuples
from training.checkpoint import Checkpoint
from training.fit import fit_payments

folder = Path(sys.argv[1])
arrays = np.load(folder / "rows.npz")
is_fraud = arrays["is_fraud"]
tuples = InputTuples(**{name: arrays[name] for name in arrays.files if name != "is_fraud"})
spec = InputSpec.derive([], feature_hash="", profile=(), neighbours=4)
settings = TrainingSettings.model_validate_json((folder / "settings.json").read_text())
half = np.arange(len(tuples)) < 400
parts = [(tuples.take(np.flatnonzero(mask)), is_fraud[mask]) for mask in (half, ~half)]
fitted = fit_payments(*parts, settings, spec=spec, checkpoint=Checkpoint(path=folder / "fit.pt", key="k"))
np.savez(folder / "weights.npz", **{name: value.numpy() for name, value in fitted.model.state_dict().items()})
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", TRAIN, str(folder)], env=environment, cwd=ROOT)


def epochs_done(path: Path) -> int:
    state = Checkpoint(path=path, key="k").load()
    return 0 if state is None else len(state["history"])


def test_killed_training_goes_on_bit_for_bit(
    tmp_path: Path, make_dataset: Callable[..., Dataset], quick: TrainingSettings, spec: InputSpec
) -> None:
    """SIGKILL after some epochs, then the same call again: weights are those of a training in one go."""
    dataset = make_dataset(800)
    settings = quick.model_copy(update={"epochs": 40, "patience": 40, "batch_rows": 64})
    np.savez(tmp_path / "rows.npz", is_fraud=dataset.is_fraud, **dataset.tuples.feeds())
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    killed = start(tmp_path)
    deadline = time.monotonic() + 300
    while not (tmp_path / "fit.pt").is_file():
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(60) == -signal.SIGKILL
    assert 1 <= epochs_done(tmp_path / "fit.pt") < 40
    assert start(tmp_path).wait(300) == 0
    parts = [dataset.take(np.arange(400)), dataset.take(np.arange(400, 800))]
    whole = fit_payments(*((part.tuples, part.is_fraud) for part in parts), settings, spec=spec)  # type: ignore[misc]
    with np.load(tmp_path / "weights.npz") as weights:
        for name, value in whole.model.state_dict().items():
            np.testing.assert_array_equal(weights[name], value.numpy(), err_msg=name)


def test_a_checkpoint_of_something_else_is_not_taken_up(tmp_path: Path) -> None:
    """Another key, or no file, is nothing to go on with; what is saved comes back."""
    path = tmp_path / "fit.pt"
    assert Checkpoint(path=path, key="a").load() is None
    Checkpoint(path=path, key="a").save({"x": torch.ones(2), "history": [[0.5, float("nan")]]})
    assert Checkpoint(path=path, key="b").load() is None
    state = Checkpoint(path=path, key="a").load()
    assert state is not None
    assert torch.equal(state["x"], torch.ones(2))


def test_folder_stays_until_the_training_ends_well(tmp_path: Path) -> None:
    """An error leaves what there is for the next try; a good end removes it; what nobody wanted goes after a week."""
    old = tmp_path / "checkpoints" / "old"
    old.mkdir(parents=True)
    os.utime(old, (0, 0))

    def fail() -> None:
        with checkpoint_folder(tmp_path, "f" * 64) as folder:
            (folder / "fit.pt").write_bytes(b"x")
            raise ModelError("no")

    with pytest.raises(ModelError):
        fail()
    assert not old.exists()
    with checkpoint_folder(tmp_path, "f" * 64) as again:
        assert (again / "fit.pt").read_bytes() == b"x"
    assert not again.exists()


@pytest.fixture
def periods() -> Periods:
    return Periods(
        train_from=0,
        validation_from=8 * DAY_MS,
        train_to=10 * DAY_MS,
        label_cut=11 * DAY_MS,
        test_from=11 * DAY_MS,
        test_to=11 * DAY_MS,
    )


def test_search_returns_the_best_trial(
    tmp_path: Path, make_dataset: Callable[..., Dataset], quick: TrainingSettings, spec: InputSpec, periods: Periods
) -> None:
    """The first trial is what was given; the best of all is returned; a second call knows the trials of the first."""
    dataset = make_dataset(900)
    call = {"known": dataset, "periods": periods, "spec": spec, "settings": quick, "folder": tmp_path}
    found = search_settings(**call, minutes=10, trials=2)  # type: ignore[arg-type]
    assert len(found.trials) == 2
    first = next(trial for trial in found.trials if trial["number"] == 0)
    assert first["settings"]["hidden"] == quick.hidden
    best = found.best()
    assert best is not None
    assert best >= first["average_precision"]
    assert found.settings.hidden == found.trials[0]["settings"]["hidden"]
    again = search_settings(**call, minutes=10, trials=2)  # type: ignore[arg-type]
    assert again.trials == found.trials


def test_search_keeps_to_its_time(
    tmp_path: Path, make_dataset: Callable[..., Dataset], quick: TrainingSettings, spec: InputSpec, periods: Periods
) -> None:
    """A trial under way when time is up is given up, and without a finished one the settings stay as they were."""
    endless = quick.model_copy(update={"epochs": 1_000, "patience": 1_000})
    begun = time.monotonic()
    found = search_settings(make_dataset(900), periods, spec, endless, minutes=0.03, folder=tmp_path)
    assert time.monotonic() - begun < 60
    assert found.settings == endless
    assert [trial["state"] for trial in found.trials] == ["PRUNED"]


def test_folds_lie_before_the_test(make_dataset: Callable[..., Dataset], periods: Periods) -> None:
    """Each fold is validated on what comes after its training rows, and none reaches beyond the training period."""
    from training.search import FOLDS, _folds

    folds = _folds(make_dataset(900), periods)
    assert len(folds) == FOLDS
    ends = [int(held_out.event_ms[-1]) for _, held_out in folds]
    assert all(int(train.event_ms[-1]) < int(held_out.event_ms[0]) for train, held_out in folds)
    assert ends == sorted(ends)
    assert ends[-1] < periods.train_to


def test_fit_goes_on_only_with_its_own_rows(
    tmp_path: Path, make_dataset: Callable[..., Dataset], quick: TrainingSettings, spec: InputSpec
) -> None:
    """A finished checkpoint gives the finished network at once, without another epoch."""
    dataset = make_dataset(300)
    rows = (dataset.tuples, dataset.is_fraud)
    checkpoint = Checkpoint(path=tmp_path / "fit.pt", key="k")
    first = fit_payments(rows, None, quick, spec=spec, epochs=2, checkpoint=checkpoint)
    steps: list[float] = []
    second = fit_payments(
        rows, None, quick, spec=spec, epochs=2, checkpoint=checkpoint, progress=lambda done, *_: steps.append(done)
    )
    assert steps == []
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
