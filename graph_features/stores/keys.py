"""Entity keys as bytes: the names that both online stores give to rows and marks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import index
from typing import Any

from graph_features.schema import EntityKey


def encode_key(key: EntityKey) -> bytes:
    """Return `key` as bytes, different for different keys whatever characters the ids hold.

    The number of parts, then every part but the last behind its own length: ("a", "b") is b"21:ab".
    """
    first = key[0].encode("utf-8", "surrogatepass")
    if len(key) == 1:
        return b"1" + first
    if len(key) == 2:
        return b"2%d:%b%b" % (len(first), first, key[1].encode("utf-8", "surrogatepass"))
    return join_parts([part.encode("utf-8", "surrogatepass") for part in key])


def join_parts(parts: Sequence[bytes]) -> bytes:
    """Return the parts of one key as its bytes."""
    if len(parts) == 1:
        return b"1" + parts[0]
    behind = b"".join([b"%d:%s" % (len(part), part) for part in parts[:-1]])
    return b"%d%s%s" % (len(parts), behind, parts[-1])


def decode_key(data: bytes) -> EntityKey:
    """Return the key that `encode_key` made `data` of."""
    parts, rest = [], data[1:]
    for _ in range(int(data[:1]) - 1):
        length, _, rest = rest.partition(b":")
        parts.append(rest[: int(length)])
        rest = rest[int(length) :]
    return tuple(part.decode("utf-8", "surrogatepass") for part in (*parts, rest))


# ---------------------------------------------------------------- keys of any type


def typed_keys(columns: Sequence[tuple[str, Sequence[Any]]]) -> list[bytes]:
    """Return the keys of rows given by columns of (type, values), in the order of their join keys' names.

    Types are those that Feast allows for join keys (KEY_TYPES). Each part begins with a letter for its type, so that
    the number 1 and the text "1" are different keys. Raises KeyError for another type, TypeError or ValueError for an
    id that is not of it.
    """
    parts = [KEY_TYPES[kind](values) for kind, values in columns]
    if not parts:
        return []
    if len(parts) == 1:
        return [b"1" + part for part in parts[0]]
    return [join_parts(row) for row in zip(*parts, strict=True)]


def _texts(values: Sequence[str]) -> list[bytes]:
    return [b"s" + str.encode(value) for value in values]


def _bytes(values: Sequence[bytes]) -> list[bytes]:
    return [b"b" + value for value in values]


def _integers(letter: bytes, bits: int, values: Sequence[Any]) -> list[bytes]:
    plain = [index(value) for value in values]
    limit = 1 << bits - 1
    if plain and not -limit <= min(plain) <= max(plain) < limit:
        raise ValueError(f"expected integers of {bits} bits, got {min(plain)} to {max(plain)}")
    return [b"%b%d" % (letter, value) for value in plain]


KEY_TYPES: dict[str, Callable[[Sequence[Any]], list[bytes]]] = {
    "STRING": _texts,
    "BYTES": _bytes,
    "INT32": partial(_integers, b"i", 32),
    "INT64": partial(_integers, b"l", 64),
    "UNIX_TIMESTAMP": partial(_integers, b"t", 64),
}


# ---------------------------------------------------------------- names


def _escape(name: str) -> str:
    """A name without the separator, so that no view's prefix begins another's."""
    return name.replace("%", "%25").replace(":", "%3A")


def rows_prefix(project: str) -> bytes:
    """What the keys of all rows of a project begin with."""
    return f"{_escape(project)}:rows:".encode()


def row_prefix(project: str, view_name: str) -> bytes:
    """What the keys of all rows of one view of a project begin with."""
    return rows_prefix(project) + f"{_escape(view_name)}:".encode()


def pending_name(project: str) -> str:
    """Where the pending marks of a project are kept."""
    return f"{_escape(project)}:pending"


def row_keys(project: str, view_name: str, keys: Sequence[EntityKey]) -> list[bytes]:
    """Return the names under which the rows of `keys` in one view are kept."""
    prefix = row_prefix(project, view_name)
    return [prefix + encode_key(key) for key in keys]
