"""The console command as a person meets it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = [
    *("services", "simulate", "ingest", "verify", "apply", "materialize", "backfill"),
    *("train", "evaluate", "promote", "serve", "schedule", "predict", "features"),
]


def ringfence(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("ringfence")), *arguments]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RINGFENCE_")}
    variables |= {"RINGFENCE_HOME": str(home), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=120)


def test_help_names_every_command_within_a_second(tmp_path: Path) -> None:
    """`ringfence --help` is quick, because nothing heavy is imported for it: by its own time, whatever else runs."""
    seconds = []
    for _ in range(3):
        before = os.times()
        result = ringfence("--help", home=tmp_path)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert result.returncode == 0, result.stderr
    assert not [command for command in COMMANDS if command not in result.stdout]
    assert min(seconds) < 1.0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, tmp_path: Path) -> None:
    """Each command has help of its own."""
    result = ringfence(command, "--help", home=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Usage" in result.stdout


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    """A bad environment variable ends the command with its name, not with a traceback."""
    result = ringfence("verify", home=tmp_path, RINGFENCE_WORKERS="many")
    assert result.returncode == 1
    assert "RINGFENCE_WORKERS" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unreachable_server_is_named(tmp_path: Path) -> None:
    """Without its servers the services profile says which one did not answer, without its password."""
    settings = {"RINGFENCE_PROFILE": "services", "RINGFENCE_POSTGRES_PORT": "1", "RINGFENCE_POSTGRES_PASSWORD": "hush"}
    result = ringfence("verify", home=tmp_path, **settings)
    assert result.returncode == 1
    assert "PostgreSQL" in result.stderr
    assert "hush" not in result.stderr
    assert "Traceback" not in result.stderr
