"""What accounts had done by any instant, as mapped files: what partitions of a graph know of each other's accounts.

A neighbour row tells of counterparties, which may be in any partition. Each partition writes running totals of its own
accounts, whose payments it has all; whoever computes a partition's rows looks the others' up where they are mapped.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graph_features.edges import EdgeTable, Int64
from graph_features.errors import FeatureComputationError
from graph_features.kernels.ledgers import fraud_ledger, payment_ledger, totals_at
from graph_features.kernels.recent import Ledger
from graph_features.kernels.sweeps import check_sums
from graph_features.kernels.timeline import Side, read_only, timeline
from graph_features.standings import STANDING

_SIDES = (Side.SENT, Side.RECEIVED)
_PLACES = {"payments": ((0, 1), (2, 3)), "frauds": ((5,), (6,))}
"""Positions in STANDING of what each ledger of either side tells."""

_FIRST_MS = 4


def partitions_of(account_ids: Iterable[str], partitions: int) -> Int64:
    """Return the partition of each account: by a checksum of its id, so that new accounts move no old one."""
    return np.fromiter(map(zlib.crc32, map(str.encode, account_ids)), np.int64) % partitions


def save_standings(edges: EdgeTable, own: Int64, folder: Path) -> None:
    """Write what `edges` tells of the accounts with codes `own`, all of whose payments it has."""
    folder.mkdir()
    np.save(folder / "accounts.npy", np.array([id_.encode() for id_ in edges.account_ids[own].tolist()], np.bytes_))
    np.save(folder / "codes.npy", own)
    everything = timeline(edges, Side.EITHER)
    np.save(folder / "first_ms.npy", everything.ts_ms[everything.offsets[own]] if len(own) else own)
    for name, ledger_of in (("payments", payment_ledger), ("frauds", fraud_ledger)):
        for side in _SIDES:
            for column, values in ledger_of(edges, side)._asdict().items():
                np.save(folder / f"{name}-{side}-{column}.npy", values)
    too_large: dict[str, str] = {}
    for side in reversed(_SIDES):
        try:
            check_sums(edges, side, own)
        except FeatureComputationError as error:
            too_large |= error.failed
    (folder / "too_large.json").write_text(json.dumps(too_large))


@dataclass(frozen=True, kw_only=True)
class _Accounts:
    """Mapped totals of one partition's own accounts, `ids` sorted as bytes."""

    ids: npt.NDArray[np.bytes_]
    codes: Int64
    first_ms: Int64
    ledgers: dict[str, tuple[Ledger, ...]]
    too_large: dict[str, str]

    @classmethod
    def load(cls, folder: Path) -> _Accounts:
        def mapped(name: str) -> npt.NDArray[np.generic]:
            return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))

        return cls(
            ids=mapped("accounts"),  # type: ignore[arg-type]
            codes=read_only(mapped("codes")),
            first_ms=read_only(mapped("first_ms")),
            ledgers={
                name: tuple(
                    Ledger(**{column: read_only(mapped(f"{name}-{side}-{column}")) for column in Ledger._fields})
                    for side in _SIDES
                )
                for name in _PLACES
            },
            too_large=json.loads((folder / "too_large.json").read_text()),
        )

    def totals(self, account_ids: Sequence[str], account: Int64, as_of_ms: Int64) -> Int64:
        failed = {one: self.too_large[one] for one in account_ids if one in self.too_large} if self.too_large else {}
        if failed:
            raise FeatureComputationError(failed)
        at = np.searchsorted(self.ids, np.array([one.encode() for one in account_ids], self.ids.dtype))[account]
        group = self.codes[at]
        out = np.empty((len(STANDING), len(account)), np.int64)
        out[_FIRST_MS] = self.first_ms[at]
        for name, of_sides in _PLACES.items():
            for places, ledger in zip(of_sides, self.ledgers[name], strict=True):
                out[list(places)] = totals_at(ledger, group, as_of_ms)
        return out


class PartitionStandings:
    """Standings of every account of a partitioned graph, from the files of all its partitions."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._parts = [_Accounts.load(folder) for folder in folders]

    def knows(self, account_ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return that it can tell of any account that has a payment."""
        return np.ones(len(account_ids), np.bool_)

    def totals(self, account_ids: Sequence[str], account: Int64, as_of_ms: Int64) -> Int64:
        """Return the numbers of STANDING, (len(STANDING), k), of `account_ids[account]` before `as_of_ms`.

        Raises FeatureComputationError for accounts whose sums do not fit 64 bits.
        """
        part_of = partitions_of(account_ids, len(self._parts))
        out = np.empty((len(STANDING), len(account)), np.int64)
        for number in np.unique(part_of).tolist():
            here = np.flatnonzero(part_of == number)
            place = np.full(len(account_ids), -1)
            place[here] = np.arange(len(here))
            rows = np.flatnonzero(place[account] >= 0)
            asked = [account_ids[at] for at in here.tolist()]
            out[:, rows] = self._parts[number].totals(asked, place[account[rows]], as_of_ms[rows])
        return out
