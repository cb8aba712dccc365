"""Packed values of any view at all: the header of `codec`, whatever the types of the features.

The platform's own views have few types and are packed by `codec`. A view of somebody else's Feast repo may have any:
its numbers, truth values and times are one word each, and everything else is the encoded message that its client
expects, kept as it is::

    word 0         format and the view's fingerprint: names, order and types of its features
    word 1         event_timestamp, epoch microseconds
    word 2         created_timestamp, epoch microseconds
    1 bit each     which features are not null, in order, padded to a word
    1 word each    features in order: an integer, a float64, or the number of bytes of its message
    rest           the messages in order, one behind the other, padded to a word

Event timestamps are compared with those of a stored value only where both have one first word, so that their unit may
differ between formats.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from graph_features.errors import UnknownFeatureError
from graph_features.stores.codec import NO_CREATED
from graph_features.stores.heads import (
    HEADER_WORDS,
    WORD,
    Bool,
    Float32,
    Heads,
    Int64,
    bitmap_words,
    build_heads,
    first_word,
    float32_of,
    over_all,
    read_heads,
)

MAGIC = b"RF-any-2"


class Kind(StrEnum):
    """How a feature is kept: a word that is an integer or a float64, or a message of any length."""

    INTEGER = "integer"
    FLOAT = "float"
    MESSAGE = "message"


@dataclass(frozen=True, kw_only=True)
class GeneralField:
    """One feature. `type` is what its client calls it: a change of it is a change of the view."""

    name: str
    type: str
    kind: Kind


@dataclass(frozen=True, kw_only=True)
class GeneralView:
    """A view by the name of its rows, its join keys (name and type, sorted by name) and its features, in order."""

    name: str
    keys: tuple[tuple[str, str], ...]
    fields: tuple[GeneralField, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields)

    @cached_property
    def fingerprint(self) -> int:
        """64 bits over names, order and types."""
        text = json.dumps([self.name, [(field.name, field.type) for field in self.fields]])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")

    @cached_property
    def positions(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.names)}

    def position(self, name: str) -> int:
        """Where the feature stands; raise UnknownFeatureError."""
        if name not in self.positions:
            raise UnknownFeatureError(f"view {self.name} has no feature {name!r}; it has {', '.join(self.names)}")
        return self.positions[name]


@dataclass(frozen=True, kw_only=True)
class GeneralColumns:
    """n rows of a view of F features.

    `slots` is int64[n, F]: integers, and floats by their bits; anything for messages and nulls. `messages` has every
    message feature by name, empty where null.
    """

    event_us: Int64
    created_us: Int64
    slots: Int64
    valid: Bool
    messages: dict[str, Sequence[bytes]]


def header_word(view: GeneralView) -> int:
    """The first word of every value of `view`, as a signed integer."""
    return first_word(MAGIC, view.fingerprint)


def fixed_words(view: GeneralView) -> int:
    """Words of a value before its messages."""
    return HEADER_WORDS + bitmap_words(len(view.fields)) + len(view.fields)


def pack_general(view: GeneralView, columns: GeneralColumns) -> list[bytes]:
    """Return one value per row, in order."""
    slots = np.where(columns.valid, columns.slots, 0)
    ordered = [columns.messages[field.name] for field in view.fields if field.kind is Kind.MESSAGE]
    places = [place for place, field in enumerate(view.fields) if field.kind is Kind.MESSAGE]
    for place, messages in zip(places, ordered, strict=True):
        slots[:, place] = np.fromiter(map(len, messages), np.int64, len(messages))
    head = build_heads(header_word(view), columns.event_us, columns.created_us, columns.valid, slots)
    data, size = head.tobytes(), head.shape[1] * WORD
    starts = range(0, len(data), size)
    if not ordered:
        return [data[start : start + size] for start in starts]
    rests = map(b"".join, zip(*ordered, strict=True))
    return [
        b"".join((data[start : start + size], rest, bytes(-len(rest) % WORD)))
        for start, rest in zip(starts, rests, strict=True)
    ]


def _messages_of(view: GeneralView, heads: Heads) -> tuple[Int64, Int64]:
    """Where in the data each message begins, and how many words each value must have."""
    if all(field.kind is not Kind.MESSAGE for field in view.fields):
        return np.zeros((len(heads.rows), 0), np.int64), np.full(len(heads.rows), fixed_words(view), np.int64)
    is_message = np.array([field.kind is Kind.MESSAGE for field in view.fields], np.bool_)
    # A damaged length must not wrap around to a plausible total.
    lengths = np.where(is_message, np.clip(heads.slots, 0, 2**32), 0)
    ends = np.cumsum(lengths, axis=1)
    words: Int64 = fixed_words(view) - (-ends[:, -1] // WORD)
    return ((heads.starts + fixed_words(view)) * WORD)[:, None] + (ends - lengths), words


@dataclass(frozen=True, kw_only=True)
class GeneralBlock:
    """n rows of one view, some of them perhaps absent.

    `present` is bool[n]. `mismatched` is bool[n]: a value was there but of another schema or format; such rows count
    as absent. `event_us` and `created_us` (epoch microseconds) mean nothing where absent. Row i's message of the
    feature in place f is data[message_starts[i, f]:][: slots[i, f]]; a view without messages has no starts.
    """

    view: GeneralView
    present: Bool
    mismatched: Bool
    event_us: Int64
    created_us: Int64
    valid_all: Bool
    slots: Int64
    message_starts: Int64
    data: bytes

    @classmethod
    def from_packed(cls, view: GeneralView, values: Sequence[bytes | None]) -> GeneralBlock:
        """Decode packed values of `view`, None for absent rows."""
        heads = read_heads(header_word(view), len(view.fields), values)
        starts, words = _messages_of(view, heads)
        good = heads.words == words
        n, rows = len(values), heads.rows[good]
        event_us, created_us, valid, slots = heads.event, heads.created, heads.valid, heads.slots
        if not good.all():
            event_us, created_us, valid, slots, starts = (x[good] for x in (event_us, created_us, valid, slots, starts))
        present = over_all(n, rows, np.ones(len(rows), np.bool_))
        return cls(
            view=view,
            present=present,
            mismatched=heads.given & ~present,
            event_us=over_all(n, rows, event_us),
            created_us=over_all(n, rows, created_us, NO_CREATED),
            valid_all=over_all(n, rows, valid),
            slots=over_all(n, rows, slots),
            message_starts=over_all(n, rows, starts),
            data=heads.data,
        )

    def __len__(self) -> int:
        return len(self.present)

    def valid(self, name: str) -> Bool:
        """Where the row is present and the feature is not null."""
        return self.valid_all[:, self.view.position(name)]

    def integers(self, name: str) -> Int64:
        """Return int64[n] of an integer feature, 0 for null or absent."""
        return np.where(self.valid(name), self.slots[:, self._place(name, Kind.INTEGER)], 0)

    def floats(self, name: str) -> npt.NDArray[np.float64]:
        """Return float64[n] of a float feature, NaN for null or absent."""
        bits = np.ascontiguousarray(self.slots[:, self._place(name, Kind.FLOAT)])
        return np.where(self.valid(name), bits.view(np.float64), np.nan)

    def messages(self, name: str) -> list[bytes]:
        """The encoded messages of a feature, empty for null or absent."""
        place = self._place(name, Kind.MESSAGE)
        starts = self.message_starts[:, place]
        ends = starts + np.where(self.valid_all[:, place], self.slots[:, place], 0)
        return [self.data[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]

    def matrix(self, names: Sequence[str]) -> Float32:
        """Return float32[n, len(names)] of integer and float features, NaN for null or absent."""
        places = [self._place(name, Kind.INTEGER, Kind.FLOAT) for name in names]
        floating = np.array([self.view.fields[place].kind is Kind.FLOAT for place in places], np.bool_)
        return float32_of(self.slots, self.valid_all, places, floating)

    def _place(self, name: str, *kinds: Kind) -> int:
        place = self.view.position(name)
        if self.view.fields[place].kind not in kinds:
            expected, got = " or ".join(kinds), self.view.fields[place].kind
            raise UnknownFeatureError(f"{self.view.name}:{name} is kept as {got}, expected {expected}")
        return place
