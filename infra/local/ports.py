"""Free TCP ports on the loopback interface."""

from __future__ import annotations

import random
import socket

from graph_features.errors import ServiceError

HOST = "127.0.0.1"
# Below the range that systems hand out to outgoing connections: a stopped server finds its port free again.
FIRST, LAST = 20_000, 32_000
TRIES = 200


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that nothing listens on, chosen at random so that concurrent callers rarely meet."""
    for port in random.SystemRandom().sample(range(FIRST, LAST), TRIES):
        if is_free(port):
            return port
    raise ServiceError(f"no free port on {HOST} between {FIRST} and {LAST}")
