"""Named queries: each by its name, and a file that is not well formed is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from graph_features.sources.sql import load_queries


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An importable package of this test's own, in tmp_path."""
    name = f"sql_package_{tmp_path.name.replace('-', '_')}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def write(package: str, tmp_path: Path, text: str) -> None:
    (tmp_path / package / "q.sql").write_text(text)


def test_queries_come_by_name(package: str, tmp_path: Path) -> None:
    """A query is what stands between its name and the next, without the last semicolon."""
    write(package, tmp_path, "-- about this file\n\n-- name: one\nSELECT 1;\n\n--name: two\nSELECT ';'\n-- why\n")
    queries = load_queries(package, "q.sql")
    assert queries == {"one": b"SELECT 1", "two": b"SELECT ';'\n-- why"}
    with pytest.raises(TypeError):
        queries["three"] = b""  # type: ignore[index]


@pytest.mark.parametrize("text", ["SELECT 1\n", "-- name: a\nSELECT 1\n-- name: a\nSELECT 2\n"])
def test_a_file_that_is_not_well_formed_is_refused(package: str, tmp_path: Path, text: str) -> None:
    """A statement without a name, or a name twice, would be a query that nobody runs."""
    write(package, tmp_path, text)
    with pytest.raises(ValueError, match=r"q\.sql"):
        load_queries(package, "q.sql")


@pytest.mark.parametrize("filename", ["queries.sql", "sqlite.sql"])
def test_our_own_files_load(filename: str) -> None:
    """Both record stores' files are well formed and have a query in every section."""
    assert all(load_queries("graph_features.sources", filename).values())
