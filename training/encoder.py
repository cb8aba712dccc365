"""The part of a model that runs in batch, as it lies in its bundle: account inputs to embeddings. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from graph_features.embeddings import EMBEDDING_VIEWS, EncoderRef
from graph_features.errors import ModelError
from graph_features.input_spec import InputSpec
from graph_features.schema import ViewSchema
from graph_features.tuples import AccountInputs
from training.bundle import open_session

if TYPE_CHECKING:
    import onnxruntime

ENCODER_ONNX = "encoder.onnx"
ENCODER_PT2 = "encoder.pt2"
ENCODER_SPEC = "encoder.json"
PIECE = 4_096


@dataclass(frozen=True, kw_only=True)
class EncoderInfo:
    """What an encoder says about itself: its id, a hash of weights and inputs, and what it reads."""

    id: int
    inputs: InputSpec

    @property
    def ref(self) -> EncoderRef:
        return EncoderRef(id=self.id, views=tuple(view.name for view in self.inputs.account_views))

    def save(self, folder: Path) -> None:
        text = json.dumps({"id": self.id, "inputs": self.inputs.to_json()}, indent=1, sort_keys=True, allow_nan=False)
        (folder / ENCODER_SPEC).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> EncoderInfo:
        data = json.loads((folder / ENCODER_SPEC).read_text(encoding="utf-8"))
        return cls(id=data["id"], inputs=InputSpec.from_json(data["inputs"]))


class Encoder:
    """A loaded encoder."""

    def __init__(self, *, info: EncoderInfo, session: onnxruntime.InferenceSession) -> None:
        self.info = info
        self._session = session

    @classmethod
    def load(cls, folder: Path) -> Encoder:
        """Open the encoder in a bundle folder; raise ModelError when it has none."""
        if not (folder / ENCODER_SPEC).is_file():
            raise ModelError(f"{folder} holds no encoder: its model reads no embeddings; see `ringfence train-head`")
        return cls(info=EncoderInfo.read(folder), session=open_session(folder / ENCODER_ONNX))

    def embed(self, inputs: AccountInputs) -> npt.NDArray[np.float32]:
        """Embeddings of A accounts, float32 [A, EMBEDDING_SIZE], in pieces that bound memory."""
        accounts = len(inputs.account_x)
        first = np.searchsorted(inputs.neighbour_index, np.arange(accounts + 1))
        pieces = []
        for start in range(0, accounts, PIECE):
            end = min(start + PIECE, accounts)
            edges = slice(first[start], first[end])
            pieces.append(
                self._run(inputs.account_x[start:end], inputs.neighbour_x[edges], inputs.neighbour_index[edges] - start)
            )
        return np.concatenate(pieces)

    def _run(self, *arrays: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        names = [item.name for item in self._session.get_inputs()]
        return np.asarray(self._session.run(None, dict(zip(names, arrays, strict=True)))[0], np.float32)


def embedding_view(spec: InputSpec) -> ViewSchema | None:
    """The view of embeddings that a model reads, None when it reads none."""
    return next((view for view in spec.views if view.name in EMBEDDING_VIEWS), None)
