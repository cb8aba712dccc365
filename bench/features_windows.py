"""Sixty daily slices of all window features: ours in one sweep, DuckDB's slice by slice."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bench.features_data import Payments
from bench.report import Figure
from bench.timing import note, seconds
from graph_features.activity import ACTIVITY
from graph_features.clock import DAY_MS
from graph_features.contracts import STATUSES
from graph_features.edges import EdgeTable, Int64
from graph_features.rows import AccountRows, to_arrow
from graph_features.settings import FeatureSettings
from graph_features.sources.sql import load_queries
from graph_features.window_spec import BOUNDED, WINDOWS

SLICES = 60
GOAL = 20.0
ROUNDS = 3
"""Of ours; the peer goes through its slices once between them, and takes a minute."""
ACCOUNTS_AT_ONCE = 2_000
INTO_DAY_MS = 29_843_456
"""Slices are taken at 08:17:23.456, so that the rounding of windows' starts shows."""
OPERATIONS = ("count", "amount_sum", "amount_mean", "amount_max", "amount_std")
RELATIVE = 1e-9

Columns = dict[str, npt.NDArray[np.float64]]


def slices_of(payments: Payments) -> Int64:
    """The last SLICES daily instants of the period."""
    return payments.end_ms - DAY_MS * np.arange(SLICES, 0, -1) + INTO_DAY_MS


def ours(edges: EdgeTable, as_of_ms: Int64, threads: int) -> Iterator[pa.Table]:
    """Yield the window features of every account at every instant, some accounts at a time, as Arrow columns."""

    def part(first: int) -> pa.Table:
        return _window_rows(edges, np.arange(first, min(first + ACCOUNTS_AT_ONCE, edges.n_accounts)), as_of_ms)

    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[pa.Table]] = deque()
        for first in range(0, edges.n_accounts, ACCOUNTS_AT_ONCE):
            waiting.append(pool.submit(part, first))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


def _window_rows(edges: EdgeTable, accounts: Int64, as_of_ms: Int64) -> pa.Table:
    rows = AccountRows(
        edges=edges,
        as_of_ms=np.tile(as_of_ms, len(accounts)),
        settings=FeatureSettings(),
        account=np.repeat(accounts, len(as_of_ms)).astype(np.int32),
    )
    features = [feature for feature in ACTIVITY.features if feature.window is not None]
    columns = {one.schema.name: to_arrow(one.compute(rows), one.schema.dtype) for one in features}
    return pa.table({"account": rows.account, "as_of_ms": rows.as_of_ms, **columns})


class DuckdbWindows:
    """The same in SQL: payments in memory, sorted by time, a thread per core."""

    def __init__(self, edges: EdgeTable, threads: int) -> None:
        queries = load_queries("bench", "features_windows.sql")
        self._slice = queries["slice"].decode()
        self._connection = duckdb.connect(config={"threads": threads})
        void_ts = np.zeros(edges.n_edges, np.int64)
        out = edges.statuses.value != STATUSES.index("completed")
        void_ts[edges.statuses.edge[out]] = edges.statuses.ts_ms[out]
        given = pa.table(
            {
                "sender": edges.sender,
                "receiver": edges.receiver,
                "ts": edges.ts_ms,
                "amount": edges.amount,
                "void_ts": pa.array(void_ts, mask=void_ts == 0),
            }
        )
        self._connection.register("given", given)
        self._connection.execute(queries["load"].decode())

    def at(self, as_of_ms: int) -> dict[str, pa.Table]:
        """One slice: sent and received."""
        starts = {f"start_{one.name}": int(one.start_ms(np.int64(as_of_ms))) for one in BOUNDED}  # type: ignore[arg-type]
        given = {"as_of": as_of_ms, **starts}
        return {
            side: self._connection.sql(self._slice.format(side=side), params=given).to_arrow_table()
            for side in ("sent", "received")
        }


def differences(edges: EdgeTable, peer: dict[str, pa.Table], own: pa.Table) -> int:
    """Count values of one slice that differ, nulls included; floats may by rounding."""
    differing = 0
    account = own["account"].to_numpy()
    for side, table in peer.items():
        at = np.full(edges.n_accounts, -1, np.int64)
        at[table["account"].to_numpy()] = np.arange(table.num_rows)
        seen = at[account] >= 0
        others = "unique_receivers" if side == "sent" else "unique_senders"
        names = {f"{side}_{what}_{window.name}": f"{what}_{window.name}" for what in OPERATIONS for window in WINDOWS}
        names |= {f"{others}_{window}": f"others_{window}" for window in ("7d", "30d", "all")}
        for mine, theirs in names.items():
            left, right = _floats(own[mine])[seen], _floats(table[theirs])[at[account[seen]]]
            if "_amount_sum_" in mine:
                right = np.nan_to_num(right)  # SQL's sum of nothing is null
            close = np.abs(left - right) <= RELATIVE * np.maximum(np.abs(right), 1.0)
            differing += int(np.sum(~(close | (np.isnan(left) & np.isnan(right)))))
            if mine.startswith(f"{side}_count"):
                differing += int(np.sum(_floats(own[mine])[~seen] != 0))
    return differing


def _floats(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    return column.cast(pa.float64(), safe=False).to_numpy()  # type: ignore[no-any-return]


def window_figures(payments: Payments, edges: EdgeTable, threads: int) -> list[Figure]:
    """Part `windows`."""
    as_of_ms = slices_of(payments)
    peer = DuckdbWindows(edges, threads)
    last = int(as_of_ms[-1])
    own = pa.concat_tables(ours(edges, as_of_ms[-1:], threads))
    differing = differences(edges, peer.at(last), own)
    del own
    if differing:
        note(f"  {differing} values of the last slice differ")

    def all_of_ours() -> None:
        # A new table each time, so that its indexes are made anew.
        for _ in ours(dataclasses.replace(edges), as_of_ms, threads):
            pass

    taken = [seconds(all_of_ours) for _ in range(ROUNDS - 1)]
    by_slice = [seconds(lambda at=at: peer.at(int(at))) for at in as_of_ms]  # type: ignore[misc]
    taken.append(seconds(all_of_ours))
    note(f"  ours {' '.join(f'{one:.2f}' for one in taken)} s, DuckDB {sum(by_slice):.1f} s")
    n = sum(feature.window is not None for feature in ACTIVITY.features)
    return [
        Figure(
            name=f"{SLICES} daily slices of {n} window features",
            value=float(np.median(taken)),
            unit="s",
            peer=f"DuckDB {duckdb.__version__}, {threads} threads",
            peer_value=float(sum(by_slice)),
            goal=GOAL,
            goal_on="ratio",
            conditions=f"{payments.conditions}; ours with as many threads, indexes included; Arrow columns both",
        ),
        Figure(name="window features, values that differ", value=differing, unit="values", goal=0),
    ]
