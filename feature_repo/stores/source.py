"""Where a feature view's rows are: the view's own table in whichever offline store is configured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa
from feast.data_source import DataSource
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
from feast.repo_config import RepoConfig
from feast.type_map import pa_to_feast_value_type
from feast.value_type import ValueType

from graph_features.schema import ViewSchema
from graph_features.stores.postgres import SCHEMA


class ViewSource(DataSource):
    """Rows of one view, by name: a table in PostgreSQL, a folder of Parquet files when embedded.

    The same in both profiles, so that definitions and registry entries need not know which one they serve.
    """

    def __init__(self, *, view: ViewSchema, name: str | None = None) -> None:
        super().__init__(
            name=name or f"{view.name}_rows",
            timestamp_field="event_timestamp",
            created_timestamp_column="created_timestamp",
            description=f"Every version of every row of {view.name}.",
        )
        self.view = view

    def __eq__(self, other: object) -> bool:
        same: bool = super().__eq__(other)  # type: ignore[no-untyped-call]
        return same and isinstance(other, ViewSource) and self.view == other.view

    def __hash__(self) -> int:
        return hash((self.name, self.view.name))

    def source_type(self) -> Any:
        """What Feast's registry files a source of a class of our own under."""
        return DataSourceProto.CUSTOM_SOURCE

    @staticmethod
    def from_proto(data_source: DataSourceProto) -> ViewSource:
        """Rebuild from the registry."""
        view = json.loads(data_source.custom_options.configuration)
        return ViewSource(view=ViewSchema.from_json(view), name=data_source.name)

    def _to_proto_impl(self) -> DataSourceProto:
        return DataSourceProto(
            name=self.name,
            type=DataSourceProto.CUSTOM_SOURCE,
            data_source_class_type=f"{type(self).__module__}.{type(self).__qualname__}",
            custom_options=DataSourceProto.CustomSourceOptions(configuration=json.dumps(self.view.to_json()).encode()),
            timestamp_field=self.timestamp_field,
            created_timestamp_column=self.created_timestamp_column,
            description=self.description,
            tags=self.tags,
            owner=self.owner,
        )

    def validate(self, config: RepoConfig) -> None:
        """Nothing to look at: `feast apply` itself creates the tables."""

    @staticmethod
    def source_datatype_to_feast_value_type() -> Callable[[str], ValueType]:
        """Types are given as Arrow writes them."""
        return pa_to_feast_value_type

    def get_table_column_names_and_types(self, config: RepoConfig) -> Iterable[tuple[str, str]]:  # noqa: ARG002
        """Names and Arrow types of the columns, in order."""
        return [(field.name, _feast_spelling(field.type)) for field in self.view.arrow_schema]

    def get_table_query_string(self) -> str:
        """The table in PostgreSQL."""
        return f'{SCHEMA}."{self.view.name}"'


def _feast_spelling(dtype: pa.DataType) -> str:
    return f"list<item: {dtype.value_type}>" if pa.types.is_list(dtype) else str(dtype)
