"""What was read, as Feast's online reads answer it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from datetime import datetime, timedelta

import numpy as np

from feature_repo.stores.general import SCALARS
from feature_repo.stores.protowire import (
    FEW,
    FeatureVector,
    messages_of,
    moments,
    statuses,
    values_of_few,
    values_of_floats,
    values_of_integers,
    values_of_messages,
    varint,
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
    columns = (_values(block, name, rows) for name in names)
    if isinstance(block, GeneralBlock) and len(rows) <= FEW:
        columns = _few_values(block, names, rows)
    for values in columns:
        yield values + rest


def _few_values(block: GeneralBlock, names: Sequence[str], rows: Int64) -> Generator[bytes]:
    """What `_values` makes of each feature; the block is taken apart once, not feature by feature."""
    slots = np.ascontiguousarray(block.slots[rows].T)
    valid, words, doubles = block.valid_all[rows].T.tolist(), slots.view(np.uint64).tolist(), slots.tobytes()
    with np.errstate(all="ignore"):
        # Words of integers and of lengths are turned as well, and are not looked at.
        floats = slots.view(np.float64).astype("<f4").tobytes()
    for name in names:
        place = block.view.position(name)
        field = block.view.fields[place]
        if field.kind is Kind.MESSAGE:
            yield _values(block, name, rows)
        elif field.kind is Kind.INTEGER:
            yield values_of_few(SCALARS[field.type], [varint(word) for word in words[place]], valid[place])
        else:
            raw, width = (floats, 4) if field.type == "FLOAT" else (doubles, 8)
            first = place * len(rows) * width
            encoded = [raw[at : at + width] for at in range(first, first + len(rows) * width, width)]
            yield values_of_few(SCALARS[field.type], encoded, valid[place])


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
