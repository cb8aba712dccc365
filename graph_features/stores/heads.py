"""The part that packed values of every format share: header, null bitmap and one word per feature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]
T = TypeVar("T", np.int64, np.bool_)

WORD = 8
HEADER_WORDS = 3
HEADER_BYTES = HEADER_WORDS * WORD


def first_word(magic: bytes, fingerprint: int) -> int:
    """Format (8 bytes) and the view's fingerprint (64 bits) as one signed integer: what every value begins with."""
    word = int.from_bytes(magic, "little") ^ fingerprint
    return word - 2**64 if word >= 2**63 else word


def bitmap_words(features: int) -> int:
    """Words of the null bitmap."""
    return -(-features // 64)


def build_heads(word: int, event: Int64, created: Int64, valid: Bool, slots: Int64) -> Int64:
    """Return int64[n, fixed words]: all of a value that comes before what is of variable width."""
    n, features = slots.shape
    bitmap = bitmap_words(features)
    head = np.zeros((n, HEADER_WORDS + bitmap + features), np.int64)
    head[:, 0], head[:, 1], head[:, 2] = word, event, created
    bits = np.zeros((n, bitmap * WORD), np.uint8)
    packed = np.packbits(valid, axis=1, bitorder="little")
    bits[:, : packed.shape[1]] = packed
    head[:, HEADER_WORDS : HEADER_WORDS + bitmap] = bits.view(np.int64)
    head[:, HEADER_WORDS + bitmap :] = slots
    return head


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The k of n values that have the right first word; whether they are whole is for the format to say.

    `given` is bool[n]: where there was a value at all. `rows` (places among the n), `starts` and `words` (place and
    length in `buffer`, in words), `event`, `created`, `valid` and `slots` are of the k values. `data` is the bytes of
    `buffer`.
    """

    given: Bool
    rows: Int64
    data: bytes
    buffer: Int64
    starts: Int64
    words: Int64
    event: Int64
    created: Int64
    valid: Bool
    slots: Int64


def read_heads(word: int, features: int, values: Sequence[bytes | None]) -> Heads:
    """Read the heads of values that begin with `word` and are long enough; None for absent ones."""
    n, bitmap = len(values), bitmap_words(features)
    fixed = HEADER_WORDS + bitmap + features
    is_given = np.ones(n, np.bool_)
    if None in values:
        is_given = np.array([value is not None for value in values], np.bool_)
        values = [b"" if value is None else value for value in values]
    given = cast(Sequence[bytes], values)
    sizes = np.fromiter(map(len, given), np.int64, n)
    fit = (sizes >= fixed * WORD) & (sizes % WORD == 0)
    rows = np.flatnonzero(fit)
    data = b"".join(given if len(rows) == n else [given[row] for row in rows.tolist()])
    buffer = np.frombuffer(data, np.int64)
    lengths = sizes[rows] // WORD
    starts = np.cumsum(lengths) - lengths
    if len(rows) and (lengths == lengths[0]).all():
        head = buffer.reshape(len(rows), -1)[:, :fixed]
    else:
        head = buffer[starts[:, None] + np.arange(fixed)]
    good = head[:, 0] == word
    if not good.all():
        rows, starts, lengths, head = rows[good], starts[good], lengths[good], head[good]
    slots = head[:, HEADER_WORDS + bitmap :]
    bits = np.ascontiguousarray(head[:, HEADER_WORDS : HEADER_WORDS + bitmap]).view(np.uint8)
    return Heads(
        given=is_given,
        rows=rows,
        data=data,
        buffer=buffer,
        starts=starts,
        words=lengths,
        event=head[:, 1],
        created=head[:, 2],
        valid=np.unpackbits(bits, axis=1, count=features, bitorder="little").view(np.bool_),
        slots=slots,
    )


def over_all(n: int, rows: Int64, some: npt.NDArray[T], absent: int = 0) -> npt.NDArray[T]:
    """Return n rows of which `rows` are `some`, in order, and the others `absent`; `some` itself where it is all."""
    if len(rows) == n:
        return some
    out = np.full((n, *some.shape[1:]), absent, some.dtype)
    out[rows] = some
    return out


def float32_of(slots: Int64, valid: Bool, places: Sequence[int], floating: Bool) -> Float32:
    """Return float32[n, len(places)] of these columns, those that are `floating` by their bits; NaN where not valid."""
    if list(places) != list(range(slots.shape[1])):
        slots, valid = slots[:, places], valid[:, places]
    with np.errstate(over="ignore", invalid="ignore"):
        if floating.all():
            out = slots.view(np.float64).astype(np.float32)
        else:
            out = slots.astype(np.float32)
            np.copyto(out, slots.view(np.float64), where=floating, casting="same_kind")
    np.copyto(out, np.float32(np.nan), where=~valid)
    return out
