"""`make audit`: known advisories against every pinned package. Without the advisory service it says so and passes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx

SERVICE = "https://api.osv.dev/v1/query"
LOCK = Path(__file__).with_name("all.lock")
ACCEPTED: dict[str, str] = {}
"""Advisories that do not touch this project, by id, each with the reason."""


def main() -> int:
    """Print what is known against the lock file; exit status 1 where that is anything."""
    try:
        httpx.get(SERVICE, timeout=5)
    except httpx.TransportError as error:
        return _not_audited(str(error))
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--disable-pip", "--require-hashes"]
    command += ["--vulnerability-service", "osv", "--format", "json", "--progress-spinner", "off", "--desc", "off"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return _not_audited((done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1])
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    found = [
        f"{package['name']} {package['version']}: {known['id']}, fixed in {', '.join(known['fix_versions']) or 'none'}"
        for package in packages
        for known in package.get("vulns", ())
        if known["id"] not in ACCEPTED
    ]
    _say(f"audit: {len(packages) - len(skipped)} packages, {len(found)} advisories, {len(skipped)} not audited")
    for line in found:
        _say(f"  {line}")
    return 1 if found else 0


def _not_audited(reason: str) -> int:
    _say(f"audit: NOT AUDITED, the advisory service {SERVICE} cannot be asked: {reason}")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
