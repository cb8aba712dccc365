"""How rows and entity keys of a Feast view become names and packed values, whoever's the view is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
from feast.protos.feast.types.EntityKey_pb2 import EntityKey as EntityKeyProto
from feast.repo_config import RepoConfig

from feature_repo.stores import general
from feature_repo.stores.answers import Block
from feature_repo.stores.source import ViewSource
from feature_repo.stores.values import FeastRow, entity_key, to_table
from graph_features.schema import ViewSchema
from graph_features.stores.blocks import RowBlock
from graph_features.stores.codec import encode
from graph_features.stores.general import GeneralBlock, GeneralColumns, GeneralView, pack_general
from graph_features.stores.keys import encode_key, row_prefix


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Rows ready to be put: names, values and event times (epoch milliseconds)."""

    names: list[bytes]
    values: list[bytes]
    event_ms: Sequence[int]


class Packer(Protocol):
    """What the plugin asks of a view."""

    @property
    def view(self) -> ViewSchema | GeneralView: ...

    @property
    def prefix(self) -> bytes:
        """What the names of the view's rows begin with."""

    def of_keys(self, keys: Sequence[EntityKeyProto]) -> list[bytes]:
        """Entity keys as the rest of a row's name."""

    def of_rows(self, rows: Sequence[FeastRow]) -> Packing:
        """Rows as Feast hands them to a store."""

    def of_table(self, rows: pa.Table) -> Packing:
        """Rows with the columns of the view's source, by the names that its field mapping gives them."""

    def block(self, values: Sequence[bytes | None]) -> Block:
        """Decode values."""


def packing(table: Any, config: RepoConfig) -> Packer:
    """Return the packer of a Feast view of any kind."""
    source = getattr(table, "batch_source", None)
    if isinstance(source, ViewSource):
        return OwnPacker(view=source.view, project=config.project)
    return GeneralPacker(view=general.general_view(table, config), project=config.project, source=source)


@dataclass(frozen=True, kw_only=True)
class OwnPacker:
    """A view of the platform's catalogue."""

    view: ViewSchema
    project: str

    @property
    def prefix(self) -> bytes:
        return row_prefix(self.project, self.view.name)

    def of_keys(self, keys: Sequence[EntityKeyProto]) -> list[bytes]:
        return [encode_key(entity_key(self.view, key)) for key in keys]

    def of_rows(self, rows: Sequence[FeastRow]) -> Packing:
        return self._packing(to_table(self.view, rows))

    def of_table(self, rows: pa.Table) -> Packing:
        return self._packing(rows.select(self.view.arrow_schema.names).cast(self.view.arrow_schema, safe=False))

    def _packing(self, table: pa.Table) -> Packing:
        prefix, columns = self.prefix, [table[name].to_pylist() for name in self.view.keys]
        return Packing(
            names=[prefix + encode_key(key) for key in zip(*columns, strict=True)],
            values=encode(self.view, table),
            event_ms=table["event_timestamp"].cast(pa.int64()).to_pylist(),
        )

    def block(self, values: Sequence[bytes | None]) -> RowBlock:
        return RowBlock.from_packed(self.view, values)


@dataclass(frozen=True, kw_only=True)
class GeneralPacker:
    """Any other view; `source` is its batch source."""

    view: GeneralView
    project: str
    source: Any

    @property
    def prefix(self) -> bytes:
        return row_prefix(self.project, self.view.name)

    def of_keys(self, keys: Sequence[EntityKeyProto]) -> list[bytes]:
        return general.key_bytes(keys)

    def of_rows(self, rows: Sequence[FeastRow]) -> Packing:
        return self._packing(general.from_protos(self.view, rows), general.key_bytes([row[0] for row in rows]))

    def of_table(self, rows: pa.Table) -> Packing:
        mapping, created = self.source.field_mapping or {}, self.source.created_timestamp_column
        columns = general.from_arrow(
            self.view,
            rows,
            event=mapping.get(self.source.timestamp_field, self.source.timestamp_field),
            created=mapping.get(created, created) if created else None,
        )
        return self._packing(columns, general.key_columns(self.view, rows))

    def _packing(self, columns: GeneralColumns, keys: Sequence[bytes]) -> Packing:
        prefix = self.prefix
        return Packing(
            names=[prefix + key for key in keys],
            values=pack_general(self.view, columns),
            event_ms=(columns.event_us // 1_000).tolist(),
        )

    def block(self, values: Sequence[bytes | None]) -> GeneralBlock:
        return GeneralBlock.from_packed(self.view, values)
