"""Feast's get_online_features in one read: every view's rows, then one encoded column per feature."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from feast import utils
from feast.metrics import track_feature_statuses
from feast.protos.feast.types.EntityKey_pb2 import EntityKey as EntityKeyProto
from feast.repo_config import RepoConfig

from feature_repo.stores.answers import Block, vectors
from feature_repo.stores.general import key_rows
from feature_repo.stores.packing import GeneralPacker, Packer, packing
from graph_features.stores.base import ValueStore
from graph_features.stores.heads import Int64

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Request:
    """Rows of one view, by the ends of their names."""

    packing: Packer
    keys: Sequence[bytes]


def read_blocks(store: ValueStore, requests: Sequence[Request]) -> list[Block]:
    """Read the rows of several views in one round trip."""
    names = [prefix + key for one in requests for prefix in [one.packing.prefix] for key in one.keys]
    values = iter(store.get(names))
    blocks = [one.packing.block(list(itertools.islice(values, len(one.keys)))) for one in requests]
    for block in blocks:
        if block.mismatched.any():
            logger.warning("%s: %d rows are of another schema", block.view.name, int(block.mismatched.sum()))
    return blocks


def answer(
    store: ValueStore,
    config: RepoConfig,
    grouped_refs: Sequence[tuple[Any, Sequence[str]]],
    join_key_values: dict[str, Any],
    entity_name_to_join_key_map: dict[str, str],
    response: Any,
    *,
    full_feature_names: bool,
    with_versions: bool,
) -> None:
    """Fill Feast's response with the rows of `join_key_values`, as Feast's own stores do."""
    keys = _Keys(join_key_values, entity_name_to_join_key_map)
    packers = [packing(table, config) for table, _ in grouped_refs]
    wanted = [keys.unique(packer, table) for packer, (table, _) in zip(packers, grouped_refs, strict=True)]
    requests = [Request(packing=packer, keys=unique) for packer, (unique, _) in zip(packers, wanted, strict=True)]
    blocks = read_blocks(store, requests)
    for block, (_, rows), (table, names) in zip(blocks, wanted, grouped_refs, strict=True):
        _extend(response, block, rows, table, names, full_feature_names=full_feature_names)
        if with_versions:
            _note_version(response, table)


class _Keys:
    """Entity keys of a request per view, each asked for once; views of the same columns share the work."""

    def __init__(self, join_key_values: dict[str, Any], join_keys: dict[str, str]) -> None:
        self._values = join_key_values
        self._join_keys = join_keys
        self._made: dict[Any, tuple[list[bytes], Int64]] = {}

    def unique(self, packer: Packer, table: Any) -> tuple[list[bytes], Int64]:
        """Different keys, and for each row of the request the place of its key among them."""
        columns = utils._get_table_entity_values(table, self._join_keys, self._values)
        if not columns or not all(len(values) for values in columns.values()):
            # Feast says what is missing.
            _, _, length = utils._get_unique_entities(table, self._values, self._join_keys)
            if not length:
                return [], np.zeros(0, np.int64)
        general = isinstance(packer, GeneralPacker)
        known = (general, *sorted((name, id(values)) for name, values in columns.items()))
        if known not in self._made:
            self._made[known] = _unique(key_rows(columns) if general else packer.of_keys(_protos(columns)))
        return self._made[known]


def _protos(columns: Mapping[str, Sequence[Any]]) -> list[EntityKeyProto]:
    names = list(columns)
    return [EntityKeyProto(join_keys=names, entity_values=row) for row in zip(*columns.values(), strict=True)]


def _unique(keys: Sequence[bytes]) -> tuple[list[bytes], Int64]:
    places: dict[bytes, int] = {}
    rows = [places.setdefault(key, len(places)) for key in keys]
    return list(places), np.array(rows, np.int64)


def _extend(
    response: Any, block: Block, rows: Int64, table: Any, names: Sequence[str], *, full_feature_names: bool
) -> None:
    shown = table.projection.name_to_use()
    response.metadata.feature_names.val.extend(f"{shown}__{name}" if full_feature_names else name for name in names)
    for data in vectors(block, names, rows):
        response.results.add().ParseFromString(data)
    found = int(block.present[rows].sum()) * len(names)
    track_feature_statuses(table.name, found, len(rows) * len(names) - found)


def _note_version(response: Any, table: Any) -> None:
    name = table.projection.name_alias or table.projection.name
    noted = response.metadata.feature_view_metadata
    if name not in [one.name for one in noted]:
        one = noted.add()
        one.name = name
        one.version = getattr(table, "current_version_number", 0) or 0
