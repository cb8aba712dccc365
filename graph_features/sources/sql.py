"""Named queries out of .sql files: `-- name: read_accounts` starts one, the next such line or the end ends it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

_NAME = re.compile(r"^--\s*name:\s*(\w+)\s*$", re.MULTILINE)


@cache
def load_queries(package: str, filename: str) -> Mapping[str, bytes]:
    """Return the queries of a package's file by name, as bytes (psycopg wants no str that is not a literal).

    Raises ValueError when a name comes twice or text stands before the first name.
    """
    text = files(package).joinpath(filename).read_text(encoding="utf-8")
    head, *parts = _NAME.split(text)
    if any(line.strip() and not line.startswith("--") for line in head.splitlines()):
        raise ValueError(f"{package}/{filename}: expected '-- name: …' before the first statement")
    queries: dict[str, bytes] = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        if name in queries:
            raise ValueError(f"{package}/{filename}: the name {name} comes twice")
        queries[name] = body.strip().removesuffix(";").encode()
    return MappingProxyType(queries)
