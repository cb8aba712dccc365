"""Run Feast's own universal tests of online stores over Feast's Redis store and over ours; print them side by side.

    python -m tests.feast_universal.run --feast CHECKOUT --python PYTHON

CHECKOUT is a clone of Feast's repository near the pinned version; PYTHON an interpreter that has this project's
packages and what Feast's tests import besides (testcontainers, docker, minio, boto3, python-keycloak, pycryptodome,
grpcio-reflection, google-cloud-bigquery, google-cloud-storage, pytest-asyncio, pytest-xdist, pytest-mock, pytest-env).
A Redis is started for the run. Tests that start containers of their own are left out by name.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from infra.local import servers

ROOT = Path(__file__).parents[2]
ONLINE = "tests/integration/online_store"
SUITES = {
    "redis": (
        f"{ONLINE}/test_universal_online.py",
        f"{ONLINE}/test_universal_e2e.py",
        f"{ONLINE}/test_push_features_to_online_store.py",
        "tests/integration/materialization/test_universal_materialization.py",
        "tests/integration/offline_store/test_universal_materialization.py",
    ),
    "sqlite": (f"{ONLINE}/test_universal_online_types.py",),
}
"""Test files by the name under which they look for an online store."""
WITHOUT = "not dynamo"
STORES = {
    "feast": ("redis", "local"),
    "ours": (
        "feature_repo.stores.online.RedisPackedOnlineStore",
        "feature_repo.stores.engine.ColumnarComputeEngine",
    ),
}


def main() -> int:
    """Run both; the exit status is 1 where ours fails a test that Feast's own passes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--feast", type=Path, required=True, help="a checkout of Feast's repository")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="interpreter to run Feast's tests")
    given = parser.parse_args()
    tests = given.feast / "sdk" / "python" / "tests"
    if not (tests / "universal").is_dir():
        parser.error(
            f"--feast {given.feast}: expected a checkout of Feast's repository with sdk/python/tests/universal"
        )
    with tempfile.TemporaryDirectory(prefix="feast-universal-") as folder:
        place = Path(folder)
        prepare(place, tests)
        running = servers.up(place / "home", only=["redis"], durable=False)
        try:
            redis = running.redis
            address = f"{redis.host}:{redis.port},password={redis.password.get_secret_value()}"
            results = {
                store: run(place, given.python, store, f"{address},db={number}")
                for number, store in enumerate(STORES, start=1)
            }
        finally:
            servers.down(place / "home")
    return report(results)


def prepare(place: Path, tests: Path) -> None:
    """A folder from which Feast's tests run against the installed Feast, not that of the checkout."""
    (place / "tests").symlink_to(tests.resolve())
    (place / "pytest.ini").write_text((tests.parent / "pytest.ini").read_text(encoding="utf-8"), encoding="utf-8")
    shutil.copy(Path(__file__).with_name("creators.py"), place / "universal_creators.py")


def run(place: Path, python: Path, store: str, connection_string: str) -> dict[str, str]:
    """Outcomes by test of one store."""
    kind, engine = STORES[store]
    outcomes: dict[str, str] = {}
    for name, files in SUITES.items():
        log = place / f"{store}-{name}.xml"
        environment = {
            **os.environ,
            "FULL_REPO_CONFIGS_MODULE": "universal_creators",
            "PYTHONPATH": os.pathsep.join([str(place), str(ROOT)]),
            "UNIVERSAL_BATCH_ENGINE": engine,
            "UNIVERSAL_NAME": name,
            "UNIVERSAL_ONLINE_STORE": json.dumps({"type": kind, "connection_string": connection_string}),
        }
        options = ["-p", "no:cacheprovider", "-o", "addopts=", "--integration", "-q", "-k", WITHOUT]
        subprocess.run(
            [python, "-m", "pytest", *options, f"--junitxml={log}", *files],
            cwd=place,
            env=environment,
            check=False,
            stdout=sys.stderr,
        )
        if not log.exists():
            raise SystemExit(f"{store}: Feast's tests could not be started; see above for what is missing")
        outcomes.update(read(log))
    return outcomes


def read(log: Path) -> dict[str, str]:
    """Outcomes by test from pytest's report."""
    outcomes = {}
    for case in ElementTree.parse(log).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name', '').split('[')[0]}"
        tail = case.get("name", "").rpartition("]-")[2] or case.get("name", "").rpartition("id=None)-")[2]
        found = {child.tag for child in case}
        outcome = next((tag for tag in ("error", "failure", "skipped") if tag in found), "passed")
        key, number = f"{name} {tail}", 1
        while key in outcomes:
            number += 1
            key = f"{name} {tail} #{number}"
        outcomes[key] = outcome
    return outcomes


def report(results: dict[str, dict[str, str]]) -> int:
    """Print counts and every test whose outcome differs."""
    sides = list(results.values())
    totals = [Counter(side.values()) for side in sides]
    lines = [f"{'':12}" + "".join(f"{store:>10}" for store in results)]
    lines += [
        f"{outcome:12}" + "".join(f"{total[outcome]:>10}" for total in totals)
        for outcome in ("passed", "failure", "error", "skipped")
    ]
    worse = 0
    for test in sorted(set().union(*sides)):
        feast, ours = (side.get(test, "missing") for side in sides)
        if feast != ours:
            lines.append(f"{test}: feast {feast}, ours {ours}")
        worse += feast == "passed" and ours != "passed"
    sys.stdout.write("\n".join(lines) + "\n")
    return int(worse > 0)


if __name__ == "__main__":
    sys.exit(main())
