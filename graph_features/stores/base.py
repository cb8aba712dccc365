"""What the rest of the house may ask of a feature store's two sides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from graph_features.schema import EntityKey, ViewSchema
from graph_features.stores.storing import PLAIN, Storing


class OnlineStore(Protocol):
    """Newest rows, one packed value (see codec) per entity and view, and the marks of entities with unseen events.

    A write wins over what is stored when its (event_timestamp, created_timestamp) is later or equal; the comparison
    and the write are one atomic step.
    """

    def ping(self) -> None:
        """Raise StoreUnavailableError unless the store answers."""

    def epoch(self) -> str:
        """A name for this life of the store: another one means that acknowledged writes may have been lost."""

    def write(self, view: ViewSchema, table: pa.Table) -> int:
        """Write rows (view.arrow_schema); return how many were stored, the rest being older than what is there."""

    def read(self, requests: Sequence[tuple[ViewSchema, Sequence[EntityKey]]]) -> list[list[bytes | None]]:
        """Packed values per request and key, None where there is no row; one round trip for all."""

    def read_with_pending(
        self, requests: Sequence[tuple[ViewSchema, Sequence[EntityKey]]], keys: Sequence[EntityKey]
    ) -> tuple[list[list[bytes | None]], dict[EntityKey, str]]:
        """`read` and `pending` together, the marks read first: a row just renewed may pass for pending, never else."""

    def mark_pending(self, keys: Sequence[EntityKey]) -> None:
        """Mark accounts and pairs whose accepted events are not in their rows yet. Called inside the ingest lock."""

    def pending(self, keys: Sequence[EntityKey]) -> dict[EntityKey, str]:
        """Those of the keys that are pending, with the token of their latest mark."""

    def all_pending(self) -> dict[EntityKey, str]:
        """Every pending key with its token."""

    def clear_pending(self, tokens: Mapping[EntityKey, str]) -> None:
        """Remove marks whose token is still the given one; a newer mark stays."""

    def delete(self, view: ViewSchema, keys: Sequence[EntityKey]) -> None:
        """Remove the rows of these entities in one view."""

    def delete_view(self, view: ViewSchema) -> None:
        """Remove every row of one view."""

    def teardown(self) -> None:
        """Remove every key of this project and nothing else."""

    def close(self) -> None: ...


class ValueStore(Protocol):
    """The same store as bytes by name: what packed values of any format (codec, general) need."""

    @property
    def project(self) -> str: ...

    def put(self, names: Sequence[bytes], values: Sequence[bytes], storing: Storing = PLAIN) -> int:
        """Write values under names (keys.row_prefix and an entity key); return how many were stored."""

    def get(self, names: Sequence[bytes]) -> list[bytes | None]:
        """Values in order, None where there is none."""

    def delete_rows(self, view_name: str) -> None:
        """Remove every row of one view."""

    def teardown(self) -> None:
        """Remove every key of this project and nothing else."""

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Written:
    """Offline rows of one piece of work: how many, and where (a table, or a file renamed into place).

    `connection` is that of the transaction (psycopg) which wrote them and is about to commit; None where rows are
    files, which count already.
    """

    rows: int
    name: str
    connection: Any = None


OnWritten = Callable[[Written], None]
"""Called when a piece's rows are complete; where there is a transaction, an error takes them back."""


class OfflineStore(Protocol):
    """Every version of every row. Reading it is Feast's business."""

    def ping(self) -> None:
        """Raise StoreUnavailableError unless the store answers."""

    def create_view(self, view: ViewSchema) -> None:
        """Create the view's table and indexes if missing."""

    def write(self, view: ViewSchema, table: pa.Table, *, part: str) -> int:
        """Write rows all or none. A version that exists (keys, event and created timestamp) is replaced, not doubled.

        `part` names the piece of work, so that writing it again replaces what an earlier try left.
        """

    def write_all(self, view: ViewSchema, tables: Iterable[pa.Table], *, part: str, on_written: OnWritten) -> int:
        """`write` the tables of one piece together, all or none, and call `on_written` before they are committed."""

    def state(self, views: Sequence[ViewSchema]) -> str:
        """A text that is another one after rows of these views were added, replaced by newer ones, or deleted."""

    def count_entity(self, view: ViewSchema, entity_id: str) -> int:
        """Row versions that name an account: as (a part of) their key, or in a list."""

    def delete_entities(self, view: ViewSchema, entity_ids: Sequence[str]) -> int:
        """Remove every version of every row that names one of these accounts in its key; return how many."""

    def delete_before(self, view: ViewSchema, before_ms: int) -> int:
        """Remove row versions older than `before_ms`; of event views each entity keeps its newest one of them."""

    def close(self) -> None: ...
