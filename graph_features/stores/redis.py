"""The online store on Redis: one string per entity and view, one hash of pending marks per project."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from graph_features.errors import StoreUnavailableError
from graph_features.schema import EntityKey, ViewSchema
from graph_features.settings import RedisSettings
from graph_features.stores.codec import encode
from graph_features.stores.keys import decode_key, encode_key, pending_name, row_keys, row_prefix, rows_prefix
from graph_features.stores.redis_link import SCANNED_PER_STEP, Link, RedisTarget, open_link
from graph_features.stores.redis_scripts import CLEAR, WRITE
from graph_features.stores.storing import PLAIN, Storing, slices

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

FIELDS_PER_COMMAND = 2_000
COMMANDS_PER_TRIP = 16


class RedisOnlineStore:
    """Newest rows and pending marks on Redis; safe to share between threads, pickled and forked.

    Every call raises StoreUnavailableError when Redis does not do what it was asked.
    """

    def __init__(self, settings: RedisSettings | RedisTarget, *, project: str) -> None:
        self._target = settings if isinstance(settings, RedisTarget) else RedisTarget.from_settings(settings)
        self._project = project
        self._pending_hash = pending_name(project)

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("_target", "_project", "_pending_hash")}

    @property
    def project(self) -> str:
        return self._project

    @cached_property
    def _link(self) -> Link:
        return open_link(self._target)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        import redis

        try:
            yield
        except redis.RedisError as error:
            raise StoreUnavailableError(
                f"Redis at {self._target.address} failed ({type(error).__name__}: {error}); check that it runs "
                "(`ringfence services status`) and its address: RINGFENCE_REDIS_*, or connection_string in "
                "feature_store.yaml"
            ) from error

    def ping(self) -> None:
        with self._answering():
            self._link.client.ping()

    def put(self, names: Sequence[bytes], values: Sequence[bytes], storing: Storing = PLAIN) -> int:
        with self._answering():
            return self._link.run(WRITE, names, values, storing.tail)

    def get(self, names: Sequence[bytes]) -> list[bytes | None]:
        with self._answering():
            return self._link.get(names)

    def epoch(self) -> str:
        """The servers' run ids: without an append-only file a restart loses what came after the last snapshot."""
        with self._answering():
            client: Any = self._link.client
            # A cluster answers for every node by its name.
            found = client.info(target_nodes="all") if hasattr(client, "nodes_manager") else client.info()
        nodes = [found] if "run_id" in found else [found[name] for name in sorted(found)]
        lives = ("append-only" if node.get("aof_enabled") else str(node["run_id"]) for node in nodes)
        return " ".join(lives)

    def write(self, view: ViewSchema, table: pa.Table) -> int:
        values = encode(view, table)
        columns = [table[key].to_pylist() for key in view.keys]
        return self.put(row_keys(self._project, view.name, list(zip(*columns, strict=True))), values)

    def read(self, requests: Sequence[tuple[ViewSchema, Sequence[EntityKey]]]) -> list[list[bytes | None]]:
        values = self.get([name for view, wanted in requests for name in row_keys(self._project, view.name, wanted)])
        return _regroup(values, [len(wanted) for _, wanted in requests])

    def read_with_pending(
        self, requests: Sequence[tuple[ViewSchema, Sequence[EntityKey]]], keys: Sequence[EntityKey]
    ) -> tuple[list[list[bytes | None]], dict[EntityKey, str]]:
        """`read` and `pending` in one round trip; on a cluster in two.

        The marks are read first: a row that is renewed in between may be taken for pending, never the reverse.
        """
        # Views of one entity ask for the same keys, and so do the marks: each is encoded once.
        ends: dict[int, list[bytes]] = {}
        known: dict[EntityKey, bytes] = {}
        names: list[bytes] = []
        for view, wanted in requests:
            if id(wanted) not in ends:
                ends[id(wanted)] = [encode_key(key) for key in wanted]
                known |= zip(wanted, ends[id(wanted)], strict=True)
            prefix = row_prefix(self._project, view.name)
            names += [prefix + end for end in ends[id(wanted)]]
        fields = [known.get(key) or encode_key(key) for key in keys]
        with self._answering():
            found, values = self._link.get_with_fields(self._pending_hash, fields, names)
        tokens = {key: token.decode() for key, token in zip(keys, found, strict=True) if token is not None}
        return _regroup(values, [len(wanted) for _, wanted in requests]), tokens

    def mark_pending(self, keys: Sequence[EntityKey]) -> None:
        token = secrets.token_hex(8)
        with self._answering():
            for trip in slices(len(keys), FIELDS_PER_COMMAND * COMMANDS_PER_TRIP):
                pipeline = self._link.client.pipeline(transaction=False)
                for part in slices(trip.stop, FIELDS_PER_COMMAND, trip.start):
                    pipeline.hset(self._pending_hash, mapping={encode_key(key): token for key in keys[part]})
                pipeline.execute()

    def pending(self, keys: Sequence[EntityKey]) -> dict[EntityKey, str]:
        _, tokens = self.read_with_pending((), keys)
        return tokens

    def all_pending(self) -> dict[EntityKey, str]:
        with self._answering():
            marks = self._link.client.hscan_iter(self._pending_hash, count=SCANNED_PER_STEP)
            return {decode_key(field): token.decode() for field, token in marks}

    def clear_pending(self, tokens: Mapping[EntityKey, str]) -> None:
        pairs = [(encode_key(key), token.encode()) for key, token in tokens.items()]
        with self._answering():
            # A round trip each: a cluster's pipeline takes no scripts.
            for part in slices(len(pairs), FIELDS_PER_COMMAND):
                flat = [item for pair in pairs[part] for item in pair]
                self._link.client.eval(CLEAR, 1, self._pending_hash, *flat)

    def delete(self, view: ViewSchema, keys: Sequence[EntityKey]) -> None:
        names = row_keys(self._project, view.name, keys)
        with self._answering():
            for part in slices(len(names), SCANNED_PER_STEP):
                self._link.unlink(names[part])

    def delete_view(self, view: ViewSchema) -> None:
        self.delete_rows(view.name)

    def delete_rows(self, view_name: str) -> None:
        self._delete(row_prefix(self._project, view_name))

    def teardown(self) -> None:
        self._delete(rows_prefix(self._project))
        with self._answering():
            self._link.client.unlink(self._pending_hash)

    def _delete(self, prefix: bytes) -> None:
        pattern = b"".join(b"\\" + bytes([char]) if char in b"*?[]\\^-" else bytes([char]) for char in prefix) + b"*"
        with self._answering():
            names = []
            for name in self._link.scan(pattern):
                names.append(name)
                if len(names) == SCANNED_PER_STEP:
                    self._link.unlink(names)
                    names = []
            self._link.unlink(names)

    def close(self) -> None:
        if "_link" in self.__dict__:
            self._link.client.close()
            del self.__dict__["_link"]


def _regroup(values: list[T], lengths: Sequence[int]) -> list[list[T]]:
    groups, start = [], 0
    for length in lengths:
        groups.append(values[start : start + length])
        start += length
    return groups
