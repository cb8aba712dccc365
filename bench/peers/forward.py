"""The same model behind both peers: arrays of a request in, scores out. Imports NumPy and ONNX Runtime only."""

from __future__ import annotations

import base64
import os
from typing import Any

import numpy as np
import onnxruntime


class Forward:
    """One session with one thread, as our workers have it."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            os.environ["BENCH_MODEL"], sess_options=options, providers=["CPUExecutionProvider"]
        )
        self._inputs = {one.name: np.int64 if "int64" in one.type else np.float32 for one in self._session.get_inputs()}

    def arrays(self, given: dict[str, Any]) -> dict[str, Any]:
        """Arrays of a decoded body: lists by input name, or `shapes` by input name and all their bytes as `packed`."""
        if "packed" not in given:
            return {name: np.array(given[name], kind) for name, kind in self._inputs.items()}
        data, at, arrays = base64.b64decode(given["packed"]), 0, {}
        for name, shape in given["shapes"].items():
            kind = np.dtype(self._inputs[name])
            count = int(np.prod(shape))
            arrays[name] = np.frombuffer(data, kind, count, at).reshape(shape)
            at += count * kind.itemsize
        return arrays

    def score(self, arrays: dict[str, Any]) -> list[float]:
        """Scores in order."""
        scores: list[float] = self._session.run(None, arrays)[0].tolist()
        return scores
