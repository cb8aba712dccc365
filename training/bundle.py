"""A model as it lies on disk and as serving runs it: an ONNX graph and what it needs to be fed. Imports no torch.

A bundle is a folder: `model.onnx` (serving), `model.pt2` (the same network as a torch.export archive, no pickle),
`spec.json` (BundleInfo), `example.npz` (a few input tuples), `golden.npy` (the network's own scores of them) and
`ordinary.npz` (the median payment, see explanations).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from graph_features.errors import ModelError
from graph_features.input_spec import InputSpec
from graph_features.tuples import InputTuples

if TYPE_CHECKING:
    import onnxruntime

ONNX_FILE = "model.onnx"
PT2_FILE = "model.pt2"
SPEC_FILE = "spec.json"
EXAMPLE_FILE = "example.npz"
ORDINARY_FILE = "ordinary.npz"
GOLDEN_FILE = "golden.npy"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class BundleInfo:
    """What a bundle says about itself.

    `model` is the ModelConfig, `threshold` the score from which a payment is an alert, `calibration` the scale and
    shift of the logit that are folded into the graph, `window` the data periods in epoch milliseconds, `metrics` those
    of the test period.
    """

    inputs: InputSpec
    model: dict[str, Any]
    threshold: float
    calibration: dict[str, float]
    git_revision: str
    seed: int
    window: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def feature_hash(self) -> str:
        """Hash of the feature definitions that the model was trained on; serving compares it with its catalogue's."""
        return self.inputs.feature_hash

    def to_json(self) -> dict[str, Any]:
        return {
            **{name: value for name, value in asdict(self).items() if name != "inputs"},
            "inputs": self.inputs.to_json(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> BundleInfo:
        return cls(**{**data, "inputs": InputSpec.from_json(data["inputs"])})

    def save(self, path: Path) -> None:
        """Write spec.json into the bundle folder `path`."""
        text = json.dumps(self.to_json(), indent=1, sort_keys=True, allow_nan=False)
        (path / SPEC_FILE).write_text(text + "\n", encoding="utf-8")


class Bundle:
    """A loaded model. `score` is not thread-safe by contract of its one-thread session; make one per worker."""

    def __init__(self, *, path: Path, info: BundleInfo, session: onnxruntime.InferenceSession) -> None:
        self.path = path
        self.info = info
        self._session = session
        self._ordinary: InputTuples | None = None
        self._inputs = [item.name for item in session.get_inputs()]

    @classmethod
    def load(cls, path: Path | str, *, threads: int = 1) -> Bundle:
        """Open the bundle in folder `path`; raise ModelError when something of it is missing or of another format."""
        folder = Path(path)
        info = read_info(folder)
        return cls(path=folder, info=info, session=open_session(folder / ONNX_FILE, threads=threads))

    def score(self, tuples: InputTuples) -> npt.NDArray[np.float32]:
        """Return the probability of fraud per payment, float32 [B], 0 to 1."""
        if len(tuples) == 0:
            return np.empty(0, np.float32)
        return np.asarray(self._session.run(None, self.feeds(tuples))[0], np.float32)

    def feeds(self, tuples: InputTuples) -> dict[str, npt.NDArray[Any]]:
        """What the graph is run on: the exporter drops an input that the network does not use."""
        feeds = tuples.feeds()
        return {name: feeds[name] for name in self._inputs}

    def ordinary(self) -> InputTuples:
        """One payment that is ordinary in every input, without neighbours; that of its examples in an older bundle."""
        if self._ordinary is None:
            path = self.path / ORDINARY_FILE
            if path.is_file():
                with np.load(path, allow_pickle=False) as arrays:
                    self._ordinary = InputTuples(**{name: arrays[name] for name in arrays.files})
            else:
                self._ordinary = ordinary_payment(self.example())
        return self._ordinary

    def example(self) -> InputTuples:
        """The input tuples that were saved beside the model: warm a worker up with them."""
        with np.load(self.path / EXAMPLE_FILE, allow_pickle=False) as arrays:
            return InputTuples(**{name: arrays[name] for name in arrays.files})


def read_golden(folder: Path) -> npt.NDArray[np.float32] | None:
    """Scores of the example as the network gave them where it was exported; None in older bundles."""
    path = folder / GOLDEN_FILE
    return np.asarray(np.load(path, allow_pickle=False), np.float32) if path.is_file() else None


def ordinary_payment(sample: InputTuples) -> InputTuples:
    """One payment of each input's median over a sample, without neighbours; null where most are null."""
    medians = {}
    for name in ("sender_x", "receiver_x", "transaction_x"):
        values: npt.NDArray[np.float32] = getattr(sample, name)
        ranked = np.sort(values, axis=0)  # nulls come last
        middle = ranked[len(values) // 2]
        known = (~np.isnan(values)).sum(axis=0)
        inner = ranked[np.maximum(known - 1, 0) // 2, np.arange(values.shape[1])]
        medians[name] = np.where(np.isnan(middle), np.float32(np.nan), inner)[None, :]
    return InputTuples(**medians, neighbour_x=sample.neighbour_x[:0], neighbour_index=sample.neighbour_index[:0])


def open_session(path: Path, *, threads: int = 1) -> onnxruntime.InferenceSession:
    """Open an ONNX graph for the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # An idle worker's spinning thread would take the core from its neighbours.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), sess_options=options, providers=["CPUExecutionProvider"])


def read_info(folder: Path) -> BundleInfo:
    """Read spec.json of a bundle folder; raise ModelError when the folder is no bundle of this format."""
    missing = [name for name in (SPEC_FILE, ONNX_FILE) if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder} is no model bundle: {', '.join(missing)} missing; train and promote a model")
    data = json.loads((folder / SPEC_FILE).read_text(encoding="utf-8"))
    if data.get("format_version") != FORMAT_VERSION:
        raise ModelError(
            f"{folder}: expected bundle format {FORMAT_VERSION}, got {data.get('format_version')}; train a new model"
        )
    return BundleInfo.from_json(data)
