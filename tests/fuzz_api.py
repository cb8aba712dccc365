"""`make fuzz-api`: thousands of cases made from the OpenAPI document, against a running server; then the parsers alone.

`python -m tests.fuzz_api [--cases N] [--seconds S] [--seed N] [--url URL]`. Without a URL it starts a server of the
embedded profile with a model of random weights and keys wanted. Exit status 1 when any answer was a 500, was not
documented, or was not what the document says.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import parser_fuzz
from tests.acceptance.conftest import Server

KEY = "an administrator's key for an afternoon"
# A valid document can still be refused: a currency without a rate, the same payment twice, an unknown feature.
EXCLUDED = "positive_data_acceptance"


def main() -> int:
    """Run and count; the report of schemathesis is printed as it comes."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        if options.url:
            return fuzz(options.url, os.environ.get("RINGFENCE_API_KEY", ""), options, Path(folder))
        with _server(Path(folder)) as server:
            failed = fuzz(server.url, KEY, options, Path(folder))
            assert server.answers("/health/live"), "the server did not survive"
    sys.stdout.write(f"parsers: {parser_fuzz.fuzz(options.seconds, options.seed):,} bodies, none of them a failure\n")
    return failed


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="least number of cases")
    parser.add_argument("--seconds", type=float, default=60.0, help="for the parsers alone")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--url", help="a server that runs; its key is taken from RINGFENCE_API_KEY")
    return parser.parse_args()


@contextmanager
def _server(folder: Path) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RINGFENCE_", "MLFLOW_"))}
    home = folder / "home"
    home.mkdir()
    settings = {"RINGFENCE_HOME": str(home), "RINGFENCE_AUTH_MODE": "on", "RINGFENCE_AUTH_ADMIN_KEY": KEY}
    server = Server(home=home, port=port, environment={**inherited, **settings, "RINGFENCE_WORKERS": "1"})
    server.start()
    try:
        server.promote(seed=1)
        server.until(lambda: server.answers("/health/ready"), 300)
        yield server
    finally:
        server.stop()


def fuzz(url: str, key: str, options: argparse.Namespace, folder: Path) -> int:
    """Send at least that many cases, in rounds of other seeds; return 1 when an answer was wrong."""
    operations = _operations(url)
    sent = failures = rounds = 0
    while sent < options.cases:
        report = folder / f"round-{rounds}.ndjson"
        per_operation = max(10, 2 * (options.cases - sent) // operations)
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"]
        command += ["--header", f"Authorization: Bearer {key}", "--exclude-checks", EXCLUDED]
        command += ["--phases", "examples,coverage,fuzzing", "--max-examples", str(per_operation)]
        command += ["--seed", str(options.seed + rounds), "--continue-on-failure", "--suppress-health-check", "all"]
        command += ["--request-timeout", "120", "--report", "ndjson", "--report-ndjson-path", str(report)]
        # In a folder of its own, where it keeps what it has found: the next run is to find it for itself.
        done = subprocess.run(command, check=False, cwd=folder)
        count = _cases(report)
        if not count:
            raise SystemExit(f"no case was sent (exit status {done.returncode})")
        failures += done.returncode != 0
        sent += count
        rounds += 1
        sys.stdout.write(f"round {rounds}: {sent:,} cases in all, {failures} rounds with failures" + "\n")
    return 1 if failures else 0


def _operations(url: str) -> int:
    import httpx

    paths = httpx.get(f"{url}/openapi.json", timeout=60).json()["paths"]
    return sum(len(methods) for methods in paths.values())


def _cases(report: Path) -> int:
    """Interactions that a report of schemathesis holds."""
    total = 0
    for line in report.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        recorder = next(iter(event.values())).get("recorder") if isinstance(event, dict) else None
        # What is empty is left out.
        total += len(recorder.get("interactions", ())) if recorder else 0
    return total


if __name__ == "__main__":
    sys.exit(main())
