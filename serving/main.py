"""Runs the server in this process: uvicorn, one process, drained on SIGTERM.

Started as `python -m serving.main` this module is what every worker process runs again before anything else, as
multiprocessing has it: whatever it imports at its top, each of them pays for at each start and holds.
"""

from __future__ import annotations

import logging
import os
import signal
from types import FrameType
from typing import NoReturn

from graph_features.settings import (
    PlatformSettings,
    ServingSettings,
    export_services_environment,
    load,
)

log = logging.getLogger("ringfence.serving")


def run(platform: PlatformSettings | None = None, settings: ServingSettings | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then exit with 0; settings come from the environment where they are not given."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    export_services_environment()
    platform = platform or load(PlatformSettings)
    settings = settings or load(ServingSettings)
    import uvicorn

    from serving import logs
    from serving.app import create_app
    from serving.auth import is_loopback
    from serving.build import check_access
    from serving.processes import Parent, exported, inherited
    from serving.protocol import Server, limited

    guarded = check_access(platform, settings)
    # MLflow would put its own lines between ours.
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
    logs.configure(settings.log_level)
    if settings.processes > 1:
        raise SystemExit(Parent(settings, exported(settings)).run())
    config = uvicorn.Config(
        create_app(platform, settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        timeout_keep_alive=settings.keep_alive_s,
        http=limited(settings),
        ws="none",
        ssl_certfile=settings.tls_certificate or None,
        ssl_keyfile=settings.tls_key or None,
    )
    # Bound before anything is built: a port that is taken is known at once, and port 0 gets its number.
    listener = inherited() or config.bind_socket()
    host, port = listener.getsockname()[:2]
    url = f"{'https' if settings.tls_certificate else 'http'}://{host}:{port}"
    log.info("listening", extra={"url": url, "pid": os.getpid(), "auth": "keys" if guarded else "off"})
    if not guarded:
        log.warning("no keys are asked for: embedded profile on loopback")
    elif not settings.tls_certificate and not is_loopback(settings.host):
        log.warning(
            "keys travel in the clear unless a proxy in front speaks TLS; see RINGFENCE_SERVING_TLS_CERTIFICATE"
        )
    Server(config).run(sockets=[listener])


def _leave(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - what signal handlers take
    """A stop that was asked for is no failure. Uvicorn sends its signals on here when it has ended."""
    raise SystemExit(0)


if __name__ == "__main__":
    run()
