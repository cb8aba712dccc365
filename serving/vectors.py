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
from graph_features.stores.heads import HEADER_WORDS, WORD, bitmap_words
from serving import online
from serving.online import Projection, instant

PLANS_KEPT = 64
NAMES_KEPT = 1_000
"""A plan of more names than this is not kept: clients that send ever new lists must not fill the memory."""

NO_TIME = "1970-01-01T00:00:00Z"

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
        places = {one.name: 2 + bitmap_words(len(of_all)) + at for at, one in enumerate(taken)}
        self._word = header_word(view)
        self._fixed = fixed_words(view)
        self._bitmap = range(2, 2 + bitmap_words(len(of_all)))
        self._unpack = struct.Struct(_format(of_all, taken)).unpack_from
        self._lists = [(places[one.name], one.dtype is DType.STRING_LIST) for one in taken if one.dtype.is_list]
        self._columns = [places[name] for name in features]
        self._bits = [(places[one.name], at) for at, one in enumerate(of_all) if one.name in chosen]
        self._needed = sum(1 << bit for _, bit in self._bits)
        self._times = [at for at, name in enumerate(features) if view.feature(name).dtype is DType.TIMESTAMP]
        self._absent: Row = (None,) * (2 + len(self._bitmap) + len(taken))

    def read(self, values: Values) -> tuple[Sequence[int | None], list[Sequence[Any]]]:
        """Return as_of per row in epoch milliseconds, None where absent, and a column of plain values per feature.

        Times are whole epoch seconds; null and absent are None.
        """
        columns = list(zip(*map(self._row, values), strict=True))
        found: list[Sequence[Any]] = [columns[place] for place in self._columns]
        for at in self._times:
            found[at] = [None if ms is None else ms // SECOND_MS for ms in found[at]]
        return columns[1], found

    def _row(self, value: bytes | None) -> Row:
        if value is None or len(value) < self._fixed * WORD:
            return self._absent
        row: Row = self._unpack(value)
        if row[0] != self._word or len(value) != (self._words(row) if self._lists else self._fixed) * WORD:
            return self._absent
        known = row[2]
        for at, place in enumerate(self._bitmap[1:], 1):
            known |= row[place] << 64 * at
        return row if known & self._needed == self._needed else self._with_nulls(row, known)

    def _words(self, row: Row) -> int:
        """How long a value must be, judged by its lists' lengths."""
        words = self._fixed
        for place, texts in self._lists:
            count = row[place]
            octets = 4 * (count & 0xFFFFFFFF) + (count >> 32 & 0xFFFFFFFF)
            words += -(-octets // WORD) if texts else min(max(count, -1), 2**32)
        return words

    def _with_nulls(self, row: Row, known: int) -> Row:
        cells = list(row)
        for place, bit in self._bits:
            if not known >> bit & 1:
                cells[place] = None
        return tuple(cells)


def _format(of_all: Sequence[FeatureSchema], taken: Sequence[FeatureSchema]) -> str:
    """First word, as_of, the null bitmap, and the features that are taken; the others are passed over."""
    names = {one.name for one in taken}
    letters = {DType.FLOAT64: "d"}
    cells = [letters.get(one.dtype, "q") if one.name in names else f"{WORD}x" for one in of_all]
    return f"<qq{(HEADER_WORDS - 2) * WORD}x{'Q' * bitmap_words(len(of_all))}{''.join(cells)}"


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
        return _encode(self.labels)[1:]

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
        parts = [_vectors([entities[name]], known) for name in keys]
        for one, reader in zip(self.projections, self._readers, strict=True):
            if reader is None:
                computed = online.of_payment(one, entities)
                parts.append(_scalar_vectors([computed[name] for name in one.features], known))
            else:
                as_of_ms, columns = reader.read(next(given))
                write = _scalar_vectors if isinstance(reader, ScalarReader) else _vectors
                parts.append(write(columns, _behind(as_of_ms)))
        names = b"".join([_encode(keys)[:-1], b"," if keys and self.labels else b"", self._labels_json])
        metadata = [b'{"metadata":{"feature_names":', names, self._views_json if views else b"", b'},"results":[']
        return b"".join([*metadata, b",".join(parts), b"]}"])


def _reader(view: ViewSchema, features: Sequence[str]) -> ScalarReader | ColumnReader:
    has_lists = any(view.feature(name).dtype.is_list for name in features)
    return ColumnReader(view, features) if has_lists else ScalarReader(view, features)


def _behind(as_of_ms: Sequence[int | None]) -> bytes:
    """What follows the values of each feature of a view: statuses and instants of its rows."""
    if None in as_of_ms:
        statuses = _encode(["NOT_FOUND" if ms is None else "PRESENT" for ms in as_of_ms])
    else:
        statuses = b'["PRESENT"%s]' % (b',"PRESENT"' * (len(as_of_ms) - 1))
    instants = '","'.join([NO_TIME if ms is None else instant(ms) for ms in as_of_ms])
    return b',"statuses":%s,"event_timestamps":["%s"]}' % (statuses, instants.encode())


def _vectors(columns: Sequence[Sequence[Any]], behind: bytes) -> bytes:
    """One api.FeatureVector after the other, without the brackets around them all."""
    between = behind + b',{"values":'
    return b'{"values":' + between.join(map(_encode, columns)) + behind


def _scalar_vectors(columns: Sequence[Sequence[Any]], behind: bytes) -> bytes:
    """`_vectors` of numbers and nulls, in whose JSON no bracket stands but those of the columns."""
    between = b"]" + behind + b',{"values":['
    return b'{"values":' + _encode(columns)[1:-2].replace(b"],[", between) + b"]" + behind


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
