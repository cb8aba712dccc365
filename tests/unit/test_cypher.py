"""Cypher is loaded by name from one file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from graph_features.sources.cypher import load_cypher


def test_every_statement_has_a_name_and_no_comment() -> None:
    """The file's statements come by name, in its order, without comments, each of them with text."""
    statements = load_cypher()
    assert next(iter(statements)) == "schema_account"
    assert all(text and "//" not in text for text in statements.values())
    assert statements["ping"] == "RETURN 1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("RETURN 1\n// name: a\nRETURN 2\n", "before the first statement"),
        ("// name: a\nRETURN 1\n// name: a\nRETURN 2\n", "the name a comes twice"),
    ],
)
def test_a_file_that_is_not_in_order_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    """Statements without a name and names that come twice are mistakes."""
    package = tmp_path / "cypher_in_disorder"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "file.cypher").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        with pytest.raises(ValueError, match=message):
            load_cypher.__wrapped__("cypher_in_disorder", "file.cypher")
    finally:
        sys.modules.pop("cypher_in_disorder", None)
