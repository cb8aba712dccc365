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
from graph_features.stores.keys import decode_key, encode_key, row_keys, row_prefix

if TYPE_CHECKING:
    import pyarrow as pa
    import redis

T = TypeVar("T")

ROWS_PER_SCRIPT = 256
SCRIPTS_PER_TRIP = 16
KEYS_PER_MGET = 5_000
FIELDS_PER_COMMAND = 2_000
SCANNED_PER_STEP = 2_000

# KEYS are rows, ARGV their values (codec). A value wins over one of another feature set or format, and over one whose
# (event_timestamp, created_timestamp) is not later. Lua's numbers are doubles, so 64-bit integers are compared by
# halves: little-endian, low word first.
_WRITE = """
local function later(old, new, at)
  local old_low, old_high = struct.unpack('<I4i4', old, at)
  local new_low, new_high = struct.unpack('<I4i4', new, at)
  if old_high ~= new_high then return old_high > new_high end
  if old_low ~= new_low then return old_low > new_low end
  return nil
end
local stored = 0
for i, key in ipairs(KEYS) do
  local new, old = ARGV[i], redis.call('GETRANGE', key, 0, 31)
  local keep = false
  if #old == 32 and old:sub(1, 16) == new:sub(1, 16) then
    keep = later(old, new, 17)
    if keep == nil then keep = later(old, new, 25) end
  end
  if not keep then
    redis.call('SET', key, new)
    stored = stored + 1
  end
end
return stored
"""

# KEYS[1] is the hash, ARGV alternates fields and the tokens they must still have.
_CLEAR = """
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
"""


class RedisOnlineStore:
    """Newest rows and pending marks on one Redis server; safe to share between threads, pickled and forked.

    Every call raises StoreUnavailableError when the server does not do what it was asked.
    """

    def __init__(self, settings: RedisSettings, *, project: str) -> None:
        self._settings = settings
        self._project = project
        self._pending_hash = f"{project}:pending"

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("_settings", "_project", "_pending_hash")}

    @cached_property
    def _client(self) -> redis.Redis:
        # Opens no connection yet; the pool behind it drops connections that a fork brought along.
        import redis
        from redis.backoff import ExponentialBackoff
        from redis.retry import Retry

        settings = self._settings
        return redis.Redis(
            host=settings.host,
            port=settings.port,
            db=settings.db,
            password=settings.password.get_secret_value() or None,
            ssl=settings.tls,
            socket_timeout=settings.timeout_s,
            socket_connect_timeout=settings.timeout_s,
            socket_keepalive=True,
            health_check_interval=30,
            # One repeat hides a connection that the server closed while idle; every command here may be repeated.
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.05), 1),
            client_name="ringfence",
        )

    @cached_property
    def _write_script(self) -> Any:
        return self._client.register_script(_WRITE)

    @cached_property
    def _clear_script(self) -> Any:
        return self._client.register_script(_CLEAR)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        import redis

        try:
            yield
        except redis.RedisError as error:
            address = f"{self._settings.host}:{self._settings.port}"
            raise StoreUnavailableError(
                f"Redis at {address} failed ({type(error).__name__}: {error}); check that it runs "
                "(`ringfence services status`) and RINGFENCE_REDIS_*"
            ) from error

    def ping(self) -> None:
        with self._answering():
            self._client.ping()

    def epoch(self) -> str:
        """The servers' run ids: without an append-only file a restart loses what came after the last snapshot."""
        with self._answering():
            found: Any = self._client.info()
        nodes = [found] if "run_id" in found else [found[name] for name in sorted(found)]
        lives = ("append-only" if node.get("aof_enabled") else str(node["run_id"]) for node in nodes)
        return " ".join(lives)

    def write(self, view: ViewSchema, table: pa.Table) -> int:
        values = encode(view, table)
        columns = [table[key].to_pylist() for key in view.keys]
        keys = row_keys(self._project, view.name, list(zip(*columns, strict=True)))
        stored = 0
        with self._answering():
            for trip in _slices(len(values), ROWS_PER_SCRIPT * SCRIPTS_PER_TRIP):
                pipeline = self._client.pipeline(transaction=False)
                for part in _slices(trip.stop, ROWS_PER_SCRIPT, trip.start):
                    self._write_script(keys=keys[part], args=values[part], client=pipeline)
                stored += sum(pipeline.execute())
        return stored

    def read(self, requests: Sequence[tuple[ViewSchema, Sequence[EntityKey]]]) -> list[list[bytes | None]]:
        rows, _ = self.read_with_pending(requests, ())
        return rows

    def read_with_pending(
        self, requests: Sequence[tuple[ViewSchema, Sequence[EntityKey]]], keys: Sequence[EntityKey]
    ) -> tuple[list[list[bytes | None]], dict[EntityKey, str]]:
        """`read` and `pending` in one round trip.

        The marks are read first: a row that is renewed in between may be taken for pending, never the reverse.
        """
        names = [name for view, wanted in requests for name in row_keys(self._project, view.name, wanted)]
        pipeline = self._client.pipeline(transaction=False)
        marks = [keys[part] for part in _slices(len(keys), FIELDS_PER_COMMAND)]
        for group in marks:
            pipeline.hmget(self._pending_hash, [encode_key(key) for key in group])
        for part in _slices(len(names), KEYS_PER_MGET):
            pipeline.mget(names[part])
        with self._answering():
            answers = pipeline.execute()
        tokens = {
            key: token.decode()
            for group, found in zip(marks, answers, strict=False)
            for key, token in zip(group, found, strict=True)
            if token is not None
        }
        values = [value for answer in answers[len(marks) :] for value in answer]
        return _regroup(values, [len(wanted) for _, wanted in requests]), tokens

    def mark_pending(self, keys: Sequence[EntityKey]) -> None:
        token = secrets.token_hex(8)
        with self._answering():
            pipeline = self._client.pipeline(transaction=False)
            for part in _slices(len(keys), FIELDS_PER_COMMAND):
                pipeline.hset(self._pending_hash, mapping={encode_key(key): token for key in keys[part]})
            pipeline.execute()

    def pending(self, keys: Sequence[EntityKey]) -> dict[EntityKey, str]:
        _, tokens = self.read_with_pending((), keys)
        return tokens

    def all_pending(self) -> dict[EntityKey, str]:
        with self._answering():
            marks = self._client.hscan_iter(self._pending_hash, count=SCANNED_PER_STEP)
            return {decode_key(field): token.decode() for field, token in marks}

    def clear_pending(self, tokens: Mapping[EntityKey, str]) -> None:
        pairs = [(encode_key(key), token.encode()) for key, token in tokens.items()]
        with self._answering():
            for trip in _slices(len(pairs), FIELDS_PER_COMMAND * SCRIPTS_PER_TRIP):
                pipeline = self._client.pipeline(transaction=False)
                for part in _slices(trip.stop, FIELDS_PER_COMMAND, trip.start):
                    flat = [item for pair in pairs[part] for item in pair]
                    self._clear_script(keys=[self._pending_hash], args=flat, client=pipeline)
                pipeline.execute()

    def delete(self, view: ViewSchema, keys: Sequence[EntityKey]) -> None:
        names = row_keys(self._project, view.name, keys)
        with self._answering():
            for part in _slices(len(names), KEYS_PER_MGET):
                self._client.unlink(*names[part])

    def delete_view(self, view: ViewSchema) -> None:
        self._delete(row_prefix(self._project, view.name))

    def teardown(self) -> None:
        self._delete(f"{self._project}:".encode())

    def _delete(self, prefix: bytes) -> None:
        pattern = b"".join(b"\\" + bytes([char]) if char in b"*?[]\\^-" else bytes([char]) for char in prefix) + b"*"
        with self._answering():
            names = []
            for name in self._client.scan_iter(match=pattern, count=SCANNED_PER_STEP):
                names.append(name)
                if len(names) == SCANNED_PER_STEP:
                    self._client.unlink(*names)
                    names = []
            if names:
                self._client.unlink(*names)

    def close(self) -> None:
        if "_client" in self.__dict__:
            self._client.close()


def _slices(stop: int, step: int, start: int = 0) -> list[slice]:
    return [slice(first, min(first + step, stop)) for first in range(start, stop, step)]


def _regroup(values: list[T], lengths: Sequence[int]) -> list[list[T]]:
    groups, start = [], 0
    for length in lengths:
        groups.append(values[start : start + length])
        start += length
    return groups
