"""Feature vectors in the form of Feast's own server, written as JSON straight from packed rows.

What does not change between requests is made once per list of features (`Plan`): projections, labels, and how to take
the features off a packed value. A view's rows become one JSON text: its statuses and instants are written once and
repeated behind each of its features.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from graph_features.clock import SECOND_MS
from graph_features.errors import InvalidInputError
from graph_features.schema import DType, EntityKey, FeatureSchema, ViewSchema
from graph_features.stores.blocks import RowBlock
from graph_features.stores.codec import fixed_words, header_word
from graph_features.stores.heads import HEADER_BYTES, WORD, bitmap_words
from serving import online
from serving.online import Projection

PLANS_KEPT = 64
NAMES_KEPT = 1_000
"""A plan of more names than this is not kept: clients that send ever new lists must not fill the memory."""

Values = Sequence[bytes | None]
Row = tuple[Any, ...]

_encode = msgspec.json.Encoder().encode


class ScalarReader:
    """Takes numbers and times of one view off packed values, row by row: see graph_features.stores.codec.

    For the few rows of a request this is much quicker than columns, whose price is by feature.
    """

    def __init__(self, view: ViewSchema, features: Sequence[str]) -> None:
        chosen, of_all = set(features), list(view.features)
        taken = [one for one in of_all if one.name in chosen or one.dtype.is_list]
        places = {one.name: 2 + at for at, one in enumerate(taken)}
        self._word = header_word(view)
        self._fixed = fixed_words(view)
        self._bitmap = slice(HEADER_BYTES, HEADER_BYTES + bitmap_words(len(of_all)) * WORD)
        self._unpack = struct.Struct(_format(of_all, taken)).unpack_from
        self._lists = [(places[one.name], one.dtype is DType.STRING_LIST) for one in taken if one.dtype.is_list]
        self._columns = [places[name] for name in features]
        self._places = {1 << at: places[one.name] for at, one in enumerate(of_all) if one.name in chosen}
        self._needed = sum(self._places)
        self._times = [at for at, name in enumerate(features) if view.feature(name).dtype is DType.TIMESTAMP]
        self._absent: Row = (None,) * (2 + len(taken))

    def read(self, values: Values) -> tuple[Sequence[int | None], list[Sequence[Any]]]:
        """Return as_of per row in epoch milliseconds, None where absent, and a column of plain values per feature.

        Times are whole epoch seconds; null and absent are None.
        """
        columns = list(zip(*self._rows(values), strict=True))
        found: list[Sequence[Any]] = [columns[place] for place in self._columns]
        for at in self._times:
            found[at] = [None if ms is None else ms // SECOND_MS for ms in found[at]]
        return columns[1], found

    def _rows(self, values: Values) -> list[Row]:
        unpack, word, bitmap, needed = self._unpack, self._word, self._bitmap, self._needed
        least = self._fixed * WORD
        rows = []
        for value in values:
            row: Row = self._absent
            if value is not None and len(value) >= least:
                cells = unpack(value)
                if cells[0] == word and len(value) == (self._words(cells) * WORD if self._lists else least):
                    known = int.from_bytes(value[bitmap], "little")
                    row = cells if known & needed == needed else self._with_nulls(cells, needed & ~known)
            rows.append(row)
        return rows

    def _words(self, row: Row) -> int:
        """How long a value must be, judged by its lists' lengths."""
        words = self._fixed
        for place, texts in self._lists:
            count = row[place]
            octets = 4 * (count & 0xFFFFFFFF) + (count >> 32 & 0xFFFFFFFF)
            words += -(-octets // WORD) if texts else min(max(count, -1), 2**32)
        return words

    def _with_nulls(self, row: Row, missing: int) -> Row:
        cells = list(row)
        while missing:
            lowest = missing & -missing
            cells[self._places[lowest]] = None
            missing ^= lowest
        return tuple(cells)


def _format(of_all: Sequence[FeatureSchema], taken: Sequence[FeatureSchema]) -> str:
    """First word, as_of, and the features that are taken; what else there is is passed over."""
    names = {one.name for one in taken}
    letters = {DType.FLOAT64: "d"}
    cells = [letters.get(one.dtype, "q") if one.name in names else f"{WORD}x" for one in of_all]
    between = HEADER_BYTES - 2 * WORD + bitmap_words(len(of_all)) * WORD
    return f"<qq{between}x{''.join(cells)}"


class ColumnReader:
    """Takes any features of a view off packed values, lists too, as `ScalarReader` does."""

    def __init__(self, view: ViewSchema, features: Sequence[str]) -> None:
        self._view = view
        self._features = features

    def read(self, values: Values) -> tuple[Sequence[int | None], list[Sequence[Any]]]:
        """See `ScalarReader.read`."""
        block = RowBlock.from_packed(self._view, values)
        pairs = zip(block.as_of_ms.tolist(), block.present.tolist(), strict=True)
        as_of_ms = [ms if present else None for ms, present in pairs]
        return as_of_ms, [online.column(block, name, epoch_s=True) for name in self._features]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a request's features are, worked out once: projections in order, and their column names."""

    projections: tuple[Projection, ...]
    labels: tuple[str, ...]

    @cached_property
    def stored(self) -> list[tuple[ViewSchema, Projection]]:
        """The projections that the online store has rows of."""
        return [(one.view, one) for one in self.projections if one.view is not None]

    @cached_property
    def _readers(self) -> list[ScalarReader | ColumnReader | None]:
        return [None if one.view is None else _reader(one.view, one.features) for one in self.projections]

    @cached_property
    def _labels_json(self) -> bytes:
        return _encode(self.labels)[1:-1]

    @cached_property
    def _views_json(self) -> bytes:
        named = [{"name": one.name} for one in self.projections]
        return b',"feature_view_metadata":' + _encode(named) if named else b""

    def requests(self, entities: Mapping[str, Sequence[Any]]) -> list[tuple[ViewSchema, list[EntityKey]]]:
        """What to ask the online store for; raise InvalidInputError where ids are missing."""
        keys: dict[tuple[str, ...], list[EntityKey]] = {}
        for _, one in self.stored:
            if one.keys not in keys:
                keys[one.keys] = online.keys_of(one, entities)
        return [(view, keys[one.keys]) for view, one in self.stored]

    def reply(self, entities: Mapping[str, Sequence[Any]], count: int, rows: Sequence[Values], *, views: bool) -> bytes:
        """The whole reply: api.OnlineFeaturesReply about `count` entities, `rows` being answers to `requests`."""
        keys = [name for name in entities if name not in online.REQUEST_COLUMNS]
        given = iter(rows)
        known = _behind([0] * count)
        names = b",".join([part for part in (_encode(keys)[1:-1], self._labels_json) if part])
        metadata = [b'{"metadata":{"feature_names":[', names, b"]", self._views_json if views else b"", b"}"]
        parts = [*metadata, b',"results":[']
        for name in keys:
            parts += _vectors([_encode(entities[name])], known)
        for one, reader in zip(self.projections, self._readers, strict=True):
            if reader is None:
                computed = online.of_payment(one, entities)
                parts += _vectors(_scalars([computed[name] for name in one.features]), known)
            else:
                as_of_ms, columns = reader.read(next(given))
                texts = _scalars(columns) if isinstance(reader, ScalarReader) else list(map(_encode, columns))
                parts += _vectors(texts, _behind(as_of_ms))
        # The last comma is one too many.
        parts[-1] = parts[-1][:-1] + b"]}"
        return b"".join(parts)


def _reader(view: ViewSchema, features: Sequence[str]) -> ScalarReader | ColumnReader:
    has_lists = any(view.feature(name).dtype.is_list for name in features)
    return ColumnReader(view, features) if has_lists else ScalarReader(view, features)


def _behind(as_of_ms: Sequence[int | None]) -> bytes:
    """What follows the values of each feature of a view: statuses and instants of its rows, and a comma."""
    if None in as_of_ms:
        statuses = _encode(["NOT_FOUND" if ms is None else "PRESENT" for ms in as_of_ms])
    else:
        statuses = b'["PRESENT"%s]' % (b',"PRESENT"' * (len(as_of_ms) - 1))
    instants = online.instants([0 if ms is None else ms for ms in as_of_ms])
    return b',"statuses":%s,"event_timestamps":["%s"]},' % (statuses, '","'.join(instants).encode())


def _scalars(columns: Sequence[Sequence[Any]]) -> list[bytes]:
    """The JSON of columns of numbers and nulls, at once: in it no bracket stands but those of the columns."""
    return [b"[%s]" % column for column in _encode(columns)[2:-2].split(b"],[")]


def _vectors(columns: Sequence[bytes], behind: bytes) -> list[bytes]:
    """An api.FeatureVector for each column of values, in parts."""
    parts = [b'{"values":', b"", behind] * len(columns)
    parts[1::3] = columns
    return parts


class Plans:
    """Makes plans, and keeps those that were used last: clients ask for the same features again and again."""

    def __init__(self, schemas: Mapping[str, ViewSchema]) -> None:
        self._schemas = schemas
        self._kept: OrderedDict[tuple[Any, ...], Plan] = OrderedDict()

    def of(self, names: Sequence[str], service: str | None, *, full: bool) -> Plan:
        """The plan of "view:feature" names or of a feature service; raise InvalidInputError. Not for many threads."""
        asked = (service, full, *(names if service is None else ()))
        plan = self._kept.get(asked)
        if plan is None:
            plan = self._made(names, service, full=full)
            if len(asked) <= NAMES_KEPT:
                self._kept[asked] = plan
                if len(self._kept) > PLANS_KEPT:
                    self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(asked)
        return plan

    def _made(self, names: Sequence[str], service: str | None, *, full: bool) -> Plan:
        if service is not None:
            projections = online.of_service(self._schemas, service)
        elif names:
            projections = online.of_names(self._schemas, names)
        else:
            raise InvalidInputError(field="features", expected='"view:feature" names, or a feature_service', got=[])
        labels = [label for item in projections for label in item.labels(full=full)]
        _check_labels(labels)
        return Plan(projections=tuple(projections), labels=tuple(labels))


def _check_labels(labels: Sequence[str]) -> None:
    if len(set(labels)) < len(labels):
        double = next(label for at, label in enumerate(labels) if label in labels[:at])
        raise InvalidInputError(
            field="full_feature_names", expected=f"true, since several views have a feature {double!r}", got=False
        )
