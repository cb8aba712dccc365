"""A refresh in several processes: each takes a part of the keys, computes their rows and stores them itself."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from graph_features.executor import Executor
from graph_features.refresh import BULK_KEYS, Progress, RefreshReport, refresh
from graph_features.schema import EntityKey
from graph_features.settings import FeatureSettings
from graph_features.sources.base import RecordStore
from graph_features.stores.base import OfflineStore, OnlineStore

PART_KEYS = 500
"""How many keys a worker gets at once, while it pays to compute them on demand."""


class RefreshStores(Protocol):
    """What a refresh reads and writes; pickled, it opens the same stores in another process."""

    @property
    def records(self) -> RecordStore: ...
    @property
    def online(self) -> OnlineStore: ...
    @property
    def offline(self) -> OfflineStore: ...
    @property
    def feature_settings(self) -> FeatureSettings: ...


@dataclass(frozen=True, kw_only=True)
class RefreshPart:
    """Keys that any process can refresh: it opens the stores itself, once."""

    keys: tuple[EntityKey, ...]
    stores: bytes
    in_bulk: bool


def refresh_in_parts(
    executor: Executor,
    keys: Sequence[EntityKey] | None,
    stores: RefreshStores,
    *,
    part_keys: int = PART_KEYS,
    bulk_keys: int = BULK_KEYS,
    on_rows: Progress | None = None,
) -> RefreshReport:
    """Do `refresh` of `keys` (None: of all that are pending) in parts on `executor`.

    A part whose process dies is done once more, as the executor promises; one that fails puts all its keys, which keep
    their marks, into `failed` with the reason. What an interrupted run has not done is still pending.
    """
    wanted = sorted(set(stores.online.all_pending() if keys is None else keys))
    in_bulk = len(wanted) > bulk_keys
    if in_bulk:
        part_keys = -(-len(wanted) // executor.workers)
    packed = pickle.dumps(stores)
    parts = (RefreshPart(keys=tuple(piece), stores=packed, in_bulk=in_bulk) for piece in _pieces(wanted, part_keys))
    rows: Counter[str] = Counter()
    never_seen: set[EntityKey] = set()
    failed: dict[EntityKey, str] = {}
    max_seqs: list[int] = []
    for result in executor.map(_refresh_part, parts):
        if result.error is not None:
            failed |= dict.fromkeys(result.part.keys, f"{type(result.error).__name__}: {result.error}")
            continue
        done = result.get()
        rows.update(done.rows)
        never_seen |= done.never_seen
        failed |= done.failed
        max_seqs.append(done.max_seq)
        if on_rows is not None:
            on_rows(sum(done.rows.values()))
    return RefreshReport(
        keys=len(wanted), rows=dict(rows), never_seen=never_seen, failed=failed, max_seq=min(max_seqs, default=0)
    )


def _pieces(keys: Sequence[EntityKey], size: int) -> Iterator[Sequence[EntityKey]]:
    """Cut sorted keys: an account and the pairs that it pays lie side by side and need the same payments."""
    return (keys[start : start + size] for start in range(0, len(keys), size))


def _refresh_part(part: RefreshPart) -> RefreshReport:
    stores = _opened(part.stores)
    return refresh(
        part.keys,
        records=stores.records,
        online=stores.online,
        offline=stores.offline,
        settings=stores.feature_settings,
        bulk_keys=0 if part.in_bulk else len(part.keys),
    )


@lru_cache(maxsize=2)
def _opened(stores: bytes) -> RefreshStores:
    opened: RefreshStores = pickle.loads(stores)  # noqa: S301  came from the parent process just now
    return opened
