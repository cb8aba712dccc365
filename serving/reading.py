"""Reads of the online store that come in the same moment share a round trip, whose cost is that of dozens of rows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import islice

from graph_features.schema import EntityKey, ViewSchema
from graph_features.stores.base import OnlineStore
from serving.batching import Batcher, Entry

Wanted = Sequence[tuple[ViewSchema, Sequence[EntityKey]]]
Packed = list[list[bytes | None]]

TRIPS = 4
"""Shared round trips at a time. On a quick store one is enough; a slow one must not keep everyone in a queue."""


class Reading:
    """Reads packed rows; requests of up to half of `max_rows` entities share a trip while another is on its way."""

    def __init__(self, store: OnlineStore, *, max_rows: int, window_s: float) -> None:
        self._store = store
        self._batcher: Batcher[Wanted, Packed] = Batcher(
            self._together, workers=TRIPS, max_rows=max_rows, window_s=window_s
        )

    async def rows(self, wanted: Wanted, *, entities: int) -> Packed:
        """Packed rows in the order asked for, as OnlineStore.read; raises what that does."""
        return await self._batcher.ask(wanted, rows=entities, kind=None)

    async def _together(self, group: list[Entry[Wanted, Packed]]) -> None:
        wanted = [one for entry in group for one in entry.asked]
        try:
            rows = iter(await asyncio.to_thread(self._store.read, wanted))
        except Exception as error:  # noqa: BLE001 - handed on to everyone who waits for it
            for entry in group:
                entry.fail(error)
        else:
            for entry in group:
                entry.finish(list(islice(rows, len(entry.asked))))
