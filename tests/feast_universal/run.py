"""Run Feast's own universal tests over the stores that Feast ships and over ours; print both side by side.

    python -m tests.feast_universal.run CHECKOUT [--python PYTHON] [--only online|offline] [-k EXPRESSION]

CHECKOUT is a clone of Feast's repository near the pinned version. PYTHON is an interpreter that has this project's
packages and what Feast's tests import besides: testcontainers, docker, minio, boto3, python-keycloak, pycryptodome,
grpcio-reflection, google-cloud-bigquery, google-cloud-storage, pytest-asyncio, pytest-xdist, pytest-mock, pytest-env,
pytest-timeout. PostgreSQL and Redis are started for the run, and both sides use them, in databases of their own.

Left out by name: tests that start containers, and tests of what only another store has (see LEFT_OUT).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.homes import guarded_home
from infra.local import servers
from infra.local.servers import Services

ROOT = Path(__file__).parents[2]
LIMIT_S = 3_600
SUITES = {
    "online": (
        "tests/integration/online_store/test_universal_online.py",
        "tests/integration/online_store/test_universal_online_types.py",
        "tests/integration/online_store/test_universal_e2e.py",
        "tests/integration/online_store/test_push_features_to_online_store.py",
        "tests/integration/materialization/test_universal_materialization.py",
    ),
    "offline": (
        "tests/integration/offline_store/test_offline_write.py",
        "tests/integration/offline_store/test_push_features_to_offline_store.py",
        "tests/integration/offline_store/test_feature_logging.py",
        "tests/integration/offline_store/test_non_entity_mode.py",
        "tests/integration/offline_store/test_universal_historical_retrieval.py",
        "tests/integration/offline_store/test_universal_materialization.py",
        "tests/integration/offline_store/test_universal_types.py",
    ),
}
LEFT_OUT = {
    "dynamo": "DynamoDB, in a container",
    "test_retrieve_online_documents": "vector search, which no Redis store of Feast's has",
    "milvus": "the same",
    "image_search": "the same",
    "openai": "the same",
    "test_connection_pool_online_stores": "PostgreSQL as an online store",
}
"""Parts of test names, and why the tests are not run on either side. `test_redis_versioning.py` starts a container."""
OUTCOMES = ("passed", "failed", "cannot", "skipped", "error")
"""`cannot` is a failure with NotImplementedError, and a skip for want of logs: the store has no such function."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one of the two runs with."""

    online: str
    offline: str
    engine: str
    logging: str
    database: int


SIDES = {
    "stock": Side(online="redis", offline="postgres", engine="local", logging="", database=1),
    "ours": Side(
        online="feature_repo.stores.online.RedisPackedOnlineStore",
        offline="feature_repo.stores.postgres.RingfencePostgreSQLOfflineStore",
        engine="feature_repo.stores.engine.ColumnarComputeEngine",
        logging="feature_repo.stores.pglogging.PostgreSQLLoggingDestination",
        database=2,
    ),
}


def main() -> int:
    """Run both sides; the exit status is 1 where ours does not pass a test that the stock stores pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a clone of Feast's repository")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="interpreter for Feast's tests")
    parser.add_argument("--only", choices=SUITES, help="one half")
    parser.add_argument("-k", dest="expression", default="", help="tests, as for pytest")
    given = parser.parse_args()
    tests = given.checkout / "sdk" / "python" / "tests"
    if not (tests / "universal").is_dir():
        parser.error(f"{given.checkout}: expected a clone of Feast's repository, found no sdk/python/tests/universal")
    files = [file for name, files in SUITES.items() if given.only in (None, name) for file in files]
    with guarded_home() as home, tempfile.TemporaryDirectory(prefix="feast-universal-") as folder:
        place = Path(folder)
        prepare(place, tests)
        running = servers.up(home, only=["postgres", "redis"], durable=False)
        results = {
            name: run(place, given.python, name, environment(running, side), files, given.expression)
            for name, side in SIDES.items()
        }
    return report(results)


def prepare(place: Path, tests: Path) -> None:
    """A folder from which Feast's tests run against the installed Feast, not that of the checkout."""
    (place / "tests").symlink_to(tests.resolve())
    shutil.copy(tests.parent / "pytest.ini", place)
    shutil.copy(Path(__file__).with_name("creators.py"), place / "universal_creators.py")


def environment(running: Services, side: Side) -> dict[str, str]:
    """What creators.py reads."""
    redis, postgres = running.redis, running.postgres
    address = f"{redis.host}:{redis.port},password={redis.password.get_secret_value()},db={side.database}"
    offline = {
        "type": side.offline,
        "host": postgres.host,
        "port": postgres.port,
        "database": postgres.database,
        "db_schema": "public",
        "user": postgres.user,
        "password": postgres.password.get_secret_value(),
        "sslmode": "disable",
    }
    module = side.logging.rpartition(".")[0]
    return {
        "UNIVERSAL_ONLINE_STORE": json.dumps({"type": side.online, "connection_string": address}),
        "UNIVERSAL_OFFLINE_STORE": json.dumps(offline),
        "UNIVERSAL_BATCH_ENGINE": side.engine,
        "UNIVERSAL_LOGGING_DESTINATION": side.logging if module and importlib.util.find_spec(module) else "",
        "FULL_REPO_CONFIGS_MODULE": "universal_creators",
    }


def run(
    place: Path, python: Path, name: str, variables: Mapping[str, str], files: Sequence[str], expression: str
) -> dict[str, str]:
    """Outcomes by test of one side; pytest's own output goes to standard error."""
    log = place / f"{name}.xml"
    chosen = " and ".join(filter(None, (expression and f"({expression})", *(f"not {part}" for part in LEFT_OUT))))
    options = ["-p", "no:cacheprovider", "-o", "addopts=", "--integration", "-q", "--tb=short", "-k", chosen]
    subprocess.run(
        [python, "-m", "pytest", *options, f"--junitxml={log}", *files],
        cwd=place,
        env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join([str(place), str(ROOT)])},
        check=False,
        stdout=sys.stderr,
        timeout=LIMIT_S,
    )
    if not log.exists():
        raise SystemExit(f"{name}: Feast's tests could not be started; see above for what is missing")
    return read(log)


def read(log: Path) -> dict[str, str]:
    """Outcomes by test from pytest's report; the stores' names are taken out of the tests' names."""
    outcomes: dict[str, str] = {}
    for case in ElementTree.parse(log).iter("testcase"):
        shown = re.sub(r"ParameterSet\(.*?id=None\)|LOCAL:[^\]]*?python_fs:\w+", "", case.get("name", ""))
        key = first = f"{case.get('classname', '').rpartition('.')[2]}::{shown.replace('[]', '')}"
        number = 1
        while key in outcomes:
            number += 1
            key = f"{first} #{number}"
        outcomes[key] = outcome(case)
    return outcomes


def outcome(case: ElementTree.Element) -> str:
    """One of OUTCOMES."""
    for child in case:
        text = f"{child.get('message', '')} {child.text or ''}"
        if child.tag == "failure":
            return "cannot" if "NotImplementedError" in text else "failed"
        if child.tag == "skipped":
            return "cannot" if "keeps no feature logs" in text else "skipped"
        if child.tag == "error":
            return "error"
    return "passed"


def report(results: Mapping[str, Mapping[str, str]]) -> int:
    """Print counts, every test whose outcome differs, and every one that ours does not pass."""
    from rich.console import Console
    from rich.table import Table

    tests = sorted(set().union(*results.values()))
    table = Table(title="Feast's universal tests", title_justify="left")
    for column in ("", *results):
        table.add_column(column, overflow="fold")
    for kind in OUTCOMES:
        table.add_row(kind, *(str(Counter(side.values())[kind]) for side in results.values()))
    table.add_section()
    worse = 0
    for test in tests:
        stock, ours = (side.get(test, "missing") for side in results.values())
        worse += stock == "passed" and ours != "passed"
        if stock != ours or ours not in ("passed", "skipped"):
            table.add_row(test, stock, ours)
    Console(width=150).print(table)
    return int(worse > 0)


if __name__ == "__main__":
    sys.exit(main())
