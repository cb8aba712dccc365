"""serve, schedule, predict, demo: what runs, and what asks it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infra.console import fail, say, table


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; RINGFENCE_SERVING_HOST.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0 takes a free one.")] = None,
) -> None:
    """Serve the REST API. SIGTERM and Ctrl-C let running requests end first."""
    from graph_features.settings import PlatformSettings, ServingSettings, load
    from serving.main import run

    changes = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    run(load(PlatformSettings), load(ServingSettings).model_copy(update=changes))


def schedule(
    file: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="YAML file of schedules.")],
    check: Annotated[bool, typer.Option("--check", help="Only validate the file and show it.")] = False,
) -> None:
    """Run the jobs of a schedule file when they are due, until Ctrl-C or SIGTERM."""
    import signal
    import threading

    from graph_features.jobs.schedule import check_schedule, run_schedule
    from infra.jobs import job_runner

    with job_runner() as runner:
        entries = check_schedule(file, runner).jobs
        rows = [[job.name, job.kind, job.cron or f"every {job.every}", job.parameters or ""] for job in entries]
        table(str(file), ["schedule", "job", "when", "parameters"], rows)
        if check:
            return
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        run_schedule(file, runner.handlers, runner.ledger, stop, settings=runner.settings)


def predict(
    path: Annotated[Path, typer.Argument(help='JSON as for POST /predict, or "-" for standard input.')],
    url: Annotated[str, typer.Option(help="Where the server listens.")] = "http://127.0.0.1:8000",
    json_: Annotated[bool, typer.Option("--json", help="Print the reply as it came.")] = False,
) -> None:
    """Have a running server score payments; RINGFENCE_API_KEY is sent where it is set."""
    import sys

    import httpx

    from infra.client import key_headers

    body = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    try:
        headers = {"content-type": "application/json", **key_headers()}
        reply = httpx.post(f"{url}/predict", content=body, headers=headers, timeout=60)
    except httpx.TransportError as error:
        fail(f"no server at {url} ({error}): start one with `ringfence serve`")
    if json_:
        say(reply.text)
    if reply.is_error:
        document = reply.json()
        fail(f"{document.get('title', reply.status_code)}: {document.get('detail', reply.text)}")
    if not json_:
        document = reply.json()
        rows = [
            [score["transaction_id"], f"{score['fraud_score']:.4f}", score["decision"], ", ".join(score["degraded"])]
            for score in document["scores"]
        ]
        model = document["model"]
        table(f"{model['name']} {model['version']}", ["transaction", "fraud score", "decision", "degraded"], rows)


def demo(
    accounts: Annotated[int, typer.Option(min=200)] = 2_000,
    days: Annotated[int, typer.Option(min=40)] = 60,
    seed: Annotated[int, typer.Option(min=0)] = 7,
) -> None:
    """The main job from end to end on simulated payments: what `make demo` runs."""
    from infra.demo import run

    run(accounts=accounts, days=days, seed=seed)


def register(app: typer.Typer) -> None:
    for command in (serve, schedule, predict, demo):
        app.command()(command)
