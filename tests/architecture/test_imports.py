"""The house has one-way stairs: graph_features <- feature_repo <- training <- serving <- infra."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("graph_features", "feature_repo", "training", "serving", "infra")


def imported_rooms(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        for name in names:
            room = name.partition(".")[0]
            if room in ROOMS:
                yield room, node.lineno


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    """No module of a room imports a room that stands above it, not even inside a function."""
    allowed = ROOMS[: ROOMS.index(room) + 1]
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, f"{room} has no modules"
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {other}"
        for path in files
        for other, line in imported_rooms(path)
        if other not in allowed
    ]
    assert not wrong


def test_relative_imports_are_not_used() -> None:
    """A relative import would hide from the rule above."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ]
    assert not wrong


# What each entry must not pull in: it would cost seconds or hundreds of megabytes where nobody uses it.
LIGHT = {
    "infra.cli": {"ray", "torch", "feast", "mlflow", "numba", "pyarrow", "numpy", "duckdb", "fastapi", "neo4j"},
    "graph_features.schema": {"torch", "feast", "mlflow", "numba", "duckdb"},
    "graph_features.tuples": {"torch", "feast", "mlflow", "numba", "duckdb"},
    "graph_features.stores.blocks": {"torch", "feast", "mlflow", "numba", "duckdb"},
    "graph_features.backends": {"ray", "torch", "feast", "mlflow", "numba", "duckdb", "neo4j", "psycopg", "redis"},
    "training.bundle": {"ray", "torch", "feast", "mlflow", "numba", "sklearn", "matplotlib"},
    "serving.scorer": {"ray", "torch", "feast", "mlflow", "numba"},
    "serving.pool": {"ray", "torch", "feast", "mlflow", "numba"},
    "serving.app": {"ray", "torch", "feast"},
}


@pytest.mark.parametrize("module", sorted(LIGHT))
def test_importing_a_light_module_loads_nothing_heavy(module: str) -> None:
    """Heavy packages are imported where they are used and nowhere else."""
    code = f"import sys, {module}; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = LIGHT[module] & set(loaded.stdout.split())
    assert not heavy, f"{module} imports {sorted(heavy)}"


def test_ray_is_imported_where_it_is_used_only() -> None:
    """Ray is an extra: no module imports it before someone asks for it, and none but those on Ray at all."""
    users = set()
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            at_import = [node for node in tree.body if _imports(node, "ray")]
            assert not at_import, f"{path.relative_to(ROOT)} imports Ray when it is imported itself"
            if any(_imports(node, "ray") for node in ast.walk(tree)):
                users.add(path.stem)
    assert users
    assert all(name.startswith("ray_") for name in users)


def _imports(node: ast.AST, package: str) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.partition(".")[0] == package for alias in node.names)
    return isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == package


def test_modules_on_ray_can_be_imported_without_it() -> None:
    """Where Ray is not installed, what uses it can be imported and says which extra is missing."""
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for room in ROOMS
        for path in (ROOT / room).rglob("ray_*.py")
    )
    assert modules
    code = f"""
import importlib, sys
sys.modules["ray"] = None
for name in {modules!r}:
    importlib.import_module(name)
from graph_features.errors import SettingsError
from graph_features.ray_cluster import connect
from graph_features.settings import ExecutorSettings
try:
    connect(ExecutorSettings())
except SettingsError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "ringfence[ray]" in done.stdout


def test_cypher_and_sql_live_in_their_files() -> None:
    """Cypher stands in queries.cypher alone."""
    wrong = [
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if any(word in path.read_text(encoding="utf-8") for word in ("MATCH (", "MERGE (", "UNWIND $"))
    ]
    assert not wrong


def test_no_registry_host_is_named() -> None:
    """Lock files and code name packages, never the host they come from."""
    hosts = ("pypi" + ".org", "pythonhosted" + ".org", "repo1.maven" + ".org", "registry.npmjs" + ".org")
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    wrong = [
        name
        for name in tracked
        if (ROOT / name).is_file()
        and any(host in (ROOT / name).read_text(encoding="utf-8", errors="ignore") for host in hosts)
    ]
    assert not wrong
