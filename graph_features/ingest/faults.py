"""What is wrong with rows: the first thing found per row, with what was expected and what came."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from graph_features.errors import InvalidInputError, shorten

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Row `row` (position in its batch) was refused because of `field`; `got` is shortened and printable."""

    row: int
    field: str
    expected: str
    got: str

    @property
    def reason(self) -> str:
        return f"expected {self.expected}, got {self.got}"


class Faults:
    """Collects the first fault of each of n rows, and counts what was accepted with a loss of precision."""

    def __init__(self, n_rows: int) -> None:
        self.good: Mask = np.ones(n_rows, np.bool_)
        self.truncated: Mask = np.zeros(n_rows, np.bool_)
        """Rows with an instant finer than a millisecond."""
        self.rounded: Mask = np.zeros(n_rows, np.bool_)
        """Rows whose amount carries the residue of float arithmetic."""
        self._found: list[Fault] = []

    def add(self, field: str, bad: Mask, expected: str, raw: pa.Array, *, secret: bool = False) -> None:
        """Note rows where `bad`; `raw` holds what came, which is left out when it is `secret`."""
        rows = np.flatnonzero(bad & self.good)
        if not len(rows):
            return
        self.good[rows] = False
        for row, value in zip(rows.tolist(), raw.take(pa.array(rows)).to_pylist(), strict=True):
            got = "a value that is not shown" if secret and value is not None else printable(value)
            self._found.append(Fault(row=row, field=field, expected=expected, got=got))

    @property
    def found(self) -> list[Fault]:
        """One fault per bad row, in the order of rows."""
        return sorted(self._found, key=lambda fault: fault.row)


def raise_first(faults: list[Fault], name: str) -> None:
    """Raise InvalidInputError for the first bad row, if any, its field written as `name[row].field`."""
    for fault in faults[:1]:
        error = InvalidInputError(field=f"{name}[{fault.row}].{fault.field}", expected=fault.expected, got=None)
        error.got = fault.got  # shortened already
        error.args = (f"{error.field}: {fault.reason}",)
        raise error


def printable(value: object) -> str:
    """A value as people write it: text in quotes, bytes as text where they are, nothing as 'nothing'."""
    if value is None:
        return "nothing"
    if isinstance(value, bytes):
        try:
            return shorten(value.decode())
        except UnicodeDecodeError:
            return shorten(value)
    return shorten(value)
