"""Named statements out of queries.cypher: `// name: read_blocks` starts one, the next such line or the end ends it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

_NAME = re.compile(r"^//\s*name:\s*(\w+)\s*$", re.MULTILINE)


@cache
def load_cypher(package: str = "graph_features.sources", filename: str = "queries.cypher") -> Mapping[str, str]:
    """Return the statements of a package's file by name, in the file's order, comments left out.

    Raises ValueError when a name comes twice or a statement stands before the first name.
    """
    text = files(package).joinpath(filename).read_text(encoding="utf-8")
    head, *parts = _NAME.split(text)
    if _without_comments(head):
        raise ValueError(f"{package}/{filename}: expected '// name: …' before the first statement")
    statements: dict[str, str] = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        if name in statements:
            raise ValueError(f"{package}/{filename}: the name {name} comes twice")
        statements[name] = _without_comments(body)
    return MappingProxyType(statements)


def _without_comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.strip() and not line.startswith("//"))
