"""Random histories, the slow reference, and how rows are compared."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest

from graph_features.clock import to_ms


def _load(name: str) -> ModuleType:
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"ringfence_tests_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def stories() -> ModuleType:
    """The module histories.py: History, Payment, Change, MemoryRecords and the strategies."""
    return _load("histories")


@pytest.fixture(scope="session")
def reference() -> Any:
    """The class of slow answers: reference(history).row(view, key, as_of_ms)."""
    return _load("reference").Reference


def plain(value: Any) -> Any:
    return to_ms(value) if isinstance(value, datetime) else value


def same(got: Any, want: Any) -> bool:
    """Equal: integers and strings exactly, floats to 1e-9 relative, lists item by item."""
    if isinstance(want, list):
        return isinstance(got, list) and len(got) == len(want) and all(map(same, got, want))
    if isinstance(got, float) and want is not None:
        return math.isclose(got, want, rel_tol=1e-9, abs_tol=1e-12)
    return got == want and type(got) in (type(want), int)


@pytest.fixture(scope="session")
def assert_same() -> Callable[[dict[str, Any], dict[str, Any], str], None]:
    """assert_same(row, wanted, where): every wanted column is there, with the wanted value, and no other."""

    def check(row: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
        got = {name: plain(value) for name, value in row.items()}
        assert got.keys() == wanted.keys(), where
        wrong = {name: (got[name], want) for name, want in wanted.items() if not same(got[name], want)}
        assert not wrong, f"{where}: (got, wanted) {wrong}"

    return check


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Any, pa.Table], list[tuple[tuple[str, ...], int, dict[str, Any]]]]:
    """rows_of(view, table): (key, as_of_ms, features) of every row."""

    def split(view: Any, table: pa.Table) -> list[tuple[tuple[str, ...], int, dict[str, Any]]]:
        view.check(table)
        return [
            (tuple(row[k] for k in view.keys), to_ms(row["event_timestamp"]), {name: row[name] for name in view.names})
            for row in table.to_pylist()
        ]

    return split
