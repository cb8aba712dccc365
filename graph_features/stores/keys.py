"""Entity keys as bytes: the names that both online stores give to rows and marks."""

from __future__ import annotations

from collections.abc import Sequence

from graph_features.schema import EntityKey


def encode_key(key: EntityKey) -> bytes:
    """Return `key` as bytes, different for different keys whatever characters the ids hold.

    The number of parts, then every part but the last behind its own length: ("a", "b") is b"21:ab".
    """
    parts = [part.encode("utf-8", "surrogatepass") for part in key]
    if len(parts) == 1:
        return b"1" + parts[0]
    return b"%d" % len(parts) + b"".join(b"%d:%s" % (len(part), part) for part in parts[:-1]) + parts[-1]


def decode_key(data: bytes) -> EntityKey:
    """Return the key that `encode_key` made `data` of."""
    parts, rest = [], data[1:]
    for _ in range(int(data[:1]) - 1):
        length, _, rest = rest.partition(b":")
        parts.append(rest[: int(length)])
        rest = rest[int(length) :]
    return tuple(part.decode("utf-8", "surrogatepass") for part in (*parts, rest))


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
