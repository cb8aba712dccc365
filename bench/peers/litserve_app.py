"""LitServe with the model: `python litserve_app.py PORT WORKERS`."""

from __future__ import annotations

import sys
from typing import Any

import litserve
from forward import Forward


class Scores(litserve.LitAPI):
    """Decodes, scores, answers."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - what LitServe calls
        """Load the model in the worker."""
        self._forward = Forward()

    def decode_request(self, request):  # type: ignore[no-untyped-def] # noqa: ANN - LitServe reads annotations
        """Arrays of the body, which LitServe has decoded."""
        return self._forward.arrays(request)

    def predict(self, arrays: dict[str, Any]) -> list[float]:
        """One forward pass."""
        return self._forward.score(arrays)

    def encode_response(self, scores: list[float]) -> dict[str, list[float]]:
        """As ours."""
        return {"scores": scores}


if __name__ == "__main__":
    server = litserve.LitServer(Scores(), accelerator="cpu", workers_per_device=int(sys.argv[2]), timeout=60)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
