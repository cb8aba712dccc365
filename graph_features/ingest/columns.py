"""Source columns of a chunk to the raw columns of our targets, as a mapping says."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from graph_features.ingest.faults import Faults
from graph_features.ingest.mapping import Constant, Delay, FromColumn, RowNumber, Source, Template
from graph_features.ingest.times import TimeFormat
from graph_features.ingest.values import as_text, flat

Int64 = npt.NDArray[np.int64]


def raw_column(target: str, source: Source, chunk: pa.Table, row_numbers: Int64, faults: Faults) -> pa.Array:
    """The values that `source` gives for `target`, unchecked, one per row of `chunk`."""
    match source:
        case FromColumn():
            return _from_column(target, source, flat(chunk[source.column]), faults)
        case Constant():
            return pa.repeat(pa.scalar(source.value, pa.string()), chunk.num_rows)
        case RowNumber():
            return _prefixed(source.prefix, pa.array(row_numbers).cast(pa.string()))
        case Template():
            texts = [as_text(target, flat(chunk[column]), faults) for column in source.columns]
            joined = [item for pair in zip(source.parts[::2], [*texts, None], strict=True) for item in pair][:-1]
            return pc.binary_join_element_wise(*joined, "")
        case Delay():
            return pa.nulls(chunk.num_rows, pa.string())


def time_format(source: Source) -> TimeFormat:
    """How the source's times are meant."""
    if isinstance(source, FromColumn):
        return TimeFormat(unit=source.unit, epoch_ms=source.epoch_ms, timezone=source.timezone)
    return TimeFormat()


def _from_column(target: str, source: FromColumn, raw: pa.Array, faults: Faults) -> pa.Array:
    if source.words:
        text = as_text(target, raw, faults)
        place = pc.index_in(text, value_set=pa.array(list(source.words), pa.string()))
        raw = pc.coalesce(pa.array(list(source.words.values()), pa.string()).take(place), text)
    return _prefixed(source.prefix, as_text(target, raw, faults)) if source.prefix else raw


def _prefixed(prefix: str, text: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(prefix, text, "") if prefix else text
