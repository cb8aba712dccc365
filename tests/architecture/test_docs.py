"""Pages that are made from code say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from graph_features.catalog import catalog
from graph_features.transaction import REQUEST_FEATURES
from infra.docgen import DOCS, PAGES
from infra.reference import REFERENCE

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(PAGES))
def test_derived_pages_are_up_to_date(name: str) -> None:
    """`make docs` would change nothing."""
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "run `make docs`"


def test_links_in_the_docs_lead_somewhere() -> None:
    """Every relative link of README and docs names a file that is there."""
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken


def test_the_reference_list_names_columns_that_exist() -> None:
    """Each of the sixty-two features has a column, in a view or of the payment itself."""
    known = {f"{name}:{column}" for name, schema in catalog().schemas.items() for column in schema.names}
    known |= {feature.name for feature in REQUEST_FEATURES}
    assert len(REFERENCE) == 62
    assert {column for _, _, columns in REFERENCE for column in columns} <= known
