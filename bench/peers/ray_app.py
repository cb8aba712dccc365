"""Ray Serve with the model: `python ray_app.py PORT WORKERS`; runs until it is ended."""

from __future__ import annotations

import signal
import sys

import ray
from forward import Forward
from ray import serve
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=100, ray_actor_options={"num_cpus": 1})
class Scores:
    """Decodes, scores, answers."""

    def __init__(self) -> None:
        self._forward = Forward()

    async def __call__(self, request: Request) -> dict[str, list[float]]:
        """Scores of the body's arrays; GET says that it is ready."""
        if request.method == "GET":
            return {}
        return {"scores": self._forward.score(self._forward.arrays(await request.json()))}


if __name__ == "__main__":
    ray.init(num_cpus=int(sys.argv[2]) + 1, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Scores.options(num_replicas=int(sys.argv[2])).bind())
    signal.pause()
