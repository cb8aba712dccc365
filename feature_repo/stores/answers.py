"""What was read, as Feast's online reads answer it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

import numpy as np

from feature_repo.stores.general import SCALARS
from feature_repo.stores.protowire import (
    FeatureVector,
    messages_of,
    moments,
    statuses,
    values_of_floats,
    values_of_integers,
    values_of_messages,
)
from feature_repo.stores.values import OnlineRow, to_feast, value_protos
from graph_features.clock import SECOND_MS, from_ms
from graph_features.schema import DType
from graph_features.stores.blocks import RowBlock
from graph_features.stores.general import GeneralBlock, Kind
from graph_features.stores.heads import Int64

Block = RowBlock | GeneralBlock

_OWN_FIELDS = {DType.INT64: "int64_val", DType.FLOAT64: "double_val", DType.TIMESTAMP: "unix_timestamp_val"}


def rows_of(block: Block, names: Sequence[str]) -> list[OnlineRow]:
    """What `online_read` answers: event time and values by name, (None, None) for absent rows."""
    if isinstance(block, RowBlock):
        return to_feast(block, names)
    columns = []
    for name in names:
        vector = FeatureVector.FromString(_values(block, name, np.arange(len(block))))
        columns.append(list(vector.values))
    answers: list[OnlineRow] = []
    for row, present in enumerate(block.present.tolist()):
        values = {name: column[row] for name, column in zip(names, columns, strict=True)}
        answers.append((_moment(int(block.event_us[row])), values) if present else (None, None))
    return answers


def _moment(event_us: int) -> datetime:
    return from_ms(0) + timedelta(microseconds=event_us)


def vectors(block: Block, names: Sequence[str], rows: Int64) -> Iterable[bytes]:
    """One encoded FeatureVector per feature, whose i-th value is that of row rows[i] of the block."""
    event_us = block.as_of_ms * 1_000 if isinstance(block, RowBlock) else block.event_us
    present = block.present[rows]
    rest = statuses(present) + moments(event_us[rows], present)
    for name in names:
        yield _values(block, name, rows) + rest


def _values(block: Block, name: str, rows: Int64) -> bytes:
    valid = block.valid(name)[rows]
    if isinstance(block, RowBlock):
        dtype = block.view.feature(name).dtype
        if dtype.is_list:
            encoded = messages_of(value_protos(block, name))
            return values_of_messages([encoded[row] for row in rows.tolist()])
        if dtype is DType.FLOAT64:
            return values_of_floats("double_val", block.float64(name)[rows], valid)
        integers = block.int64(name)[0][rows]
        return values_of_integers(_OWN_FIELDS[dtype], integers // (SECOND_MS if dtype is DType.TIMESTAMP else 1), valid)
    field = block.view.fields[block.view.position(name)]
    if field.kind is Kind.MESSAGE:
        encoded = block.messages(name)
        return values_of_messages([encoded[row] for row in rows.tolist()])
    if field.kind is Kind.FLOAT:
        return values_of_floats(SCALARS[field.type], block.floats(name)[rows], valid)
    return values_of_integers(SCALARS[field.type], block.integers(name)[rows], valid)
