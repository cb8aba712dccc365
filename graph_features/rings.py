"""Traces of rings: money that runs in circles, fans out and in again, and accounts that share what they pay with.

Payments of the last 30 days before as_of count in the graph's terms (see graphs): not those known by then as failed or
reversed, and not those to oneself. A pattern is looked for within the ring window (7 days unless
RINGFENCE_FEATURE_RING_WINDOW_S says otherwise): less than that from its first payment to its last.

Hubs are bounded alike everywhere. From a payment received, cycles and scatter-gather follow the next 8 payments that
the account made, and back from a payment made the last 8 that it received (`kernels.flows`): an account with at most 8
each way in the period loses nothing, of a busier one only what passes through quickly is seen. Cycles count up to 1,000
(`kernels.cycles`), accounts that share something up to 100 (`kernels.sharing`). Fans have no limit and need none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

# What needs Numba is imported where it runs, so that reading the catalogue stays cheap.
from graph_features.catalog import View, feature
from graph_features.clock import DAY_MS, SECOND_MS
from graph_features.edges import EdgeTable, Int64
from graph_features.graphs import at_slice, fraud_accounts, standing_before
from graph_features.rows import AccountRows, Column
from graph_features.schema import Cadence, DType

if TYPE_CHECKING:
    import numpy.typing as npt

    from graph_features.kernels.cycles import Cycles
    from graph_features.kernels.flows import Flows
    from graph_features.kernels.scatter import Scatter
    from graph_features.kernels.sharing import Sharing

RINGS = View(
    name="account_rings",
    entity="account",
    cadence=Cadence.SLICE,
    description="Rings that the account may belong to: cycles of payments, fans, scatter-gather, shared devices.",
    max_age_s=3 * 86_400,
    modules=(
        __name__,
        "graph_features.graphs",
        "graph_features.kernels.flows",
        "graph_features.kernels.cycles",
        "graph_features.kernels.scatter",
        "graph_features.kernels.sharing",
        "graph_features.kernels.sorting",
    ),
)

LOOK_BACK_MS = 30 * DAY_MS
THINGS = ("device", "card", "ip")


def flows_at(edges: EdgeTable, as_of_ms: int) -> Flows:
    """Index the payments of the last 30 days before `as_of_ms` that are edges of the graph."""
    from graph_features.kernels.flows import flows_of

    standing = standing_before(edges, as_of_ms)
    standing[: int(np.searchsorted(edges.ts_ms, as_of_ms - LOOK_BACK_MS, side="left"))] = False
    at = np.flatnonzero(standing)
    return flows_of(edges.sender[at], edges.receiver[at], edges.ts_ms[at], edges.amount[at], edges.n_accounts)


def _as_of_ms(rows: AccountRows) -> int:
    """The one as_of of a slice; at_slice has refused rows of several."""
    return int(rows.as_of_ms[0]) if len(rows) else 0


def _window_ms(rows: AccountRows) -> int:
    return rows.settings.ring_window_s * SECOND_MS


def _flows(rows: AccountRows) -> Flows:
    return at_slice(rows, "ring_flows", lambda: flows_at(rows.edges, _as_of_ms(rows)))


def _cycles(rows: AccountRows) -> Cycles:
    from graph_features.kernels.cycles import cycles_of

    window_ms = _window_ms(rows)
    return at_slice(rows, f"cycles_{window_ms}", lambda: cycles_of(_flows(rows), window_ms))


def _scatter(rows: AccountRows) -> Scatter:
    from graph_features.kernels.scatter import scatter_gather

    window_ms = _window_ms(rows)
    return at_slice(rows, f"scatter_gather_{window_ms}", lambda: scatter_gather(_flows(rows), window_ms))


def _sharing(rows: AccountRows, thing: str) -> Sharing:
    from graph_features.kernels.sharing import sharing_at, uses_of

    edges = rows.edges
    return at_slice(
        rows, f"sharing_{thing}", lambda: sharing_at(uses_of(edges, thing), _as_of_ms(rows), edges.n_accounts)
    )


def _per_row(rows: AccountRows, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return per row the value of its account, 0 where it has no payment here."""
    account = rows.account.astype(np.int64)
    result = np.zeros(len(account), values.dtype)
    result[account >= 0] = values[account[account >= 0]]
    return result


def _where_in_cycle(rows: AccountRows, values: Int64) -> Column:
    return np.ma.masked_array(_per_row(rows, values), mask=_per_row(rows, _cycles(rows).longer) == 0)


@feature(view=RINGS, dtype=DType.INT64, unit="cycles", range="0 to 1,000", empty=0)
def cycle_count_30d(rows: AccountRows) -> Column:
    """Cycles of 3 to 6 payments through this account in the last 30 days, 1,000 or more counting as 1,000.

    Each payment is later than the one before and made by the account that the one before went to, the last goes to
    where the first came from, no account comes twice, and all lie within the ring window (7 days unless set). Of an
    account's payments only near ones are linked: the next 8 made after one received, and the last 8 received before one
    made; where the cycle begins, the next 8 received after its first payment and the last 8 made before its last.
    """
    from graph_features.kernels.cycles import MOST

    return _per_row(rows, np.minimum(_cycles(rows).longer, MOST))


@feature(view=RINGS, dtype=DType.INT64, unit="payments", range="3 to 6")
def cycle_length_min_30d(rows: AccountRows) -> Column:
    """Length of the shortest of these cycles (see cycle_count_30d), null without one."""
    return _where_in_cycle(rows, _cycles(rows).shortest)


@feature(view=RINGS, dtype=DType.FLOAT64, unit="share", range="0 to 1")
def cycle_amount_kept_max_30d(rows: AccountRows) -> Column:
    """Smallest over largest amount, of that of these cycles where it is largest; null without one."""
    cycles = _cycles(rows)
    return np.where(_per_row(rows, cycles.longer) > 0, _per_row(rows, cycles.kept), np.nan)


@feature(view=RINGS, dtype=DType.TIMESTAMP, unit="UTC", range="before as_of")
def cycle_last_timestamp_30d(rows: AccountRows) -> Column:
    """Time of the last payment of the newest of these cycles, null without one."""
    return _where_in_cycle(rows, _cycles(rows).newest_ms)


@feature(view=RINGS, dtype=DType.INT64, unit="cycles", range="0 to 1,000", empty=0)
def round_trip_count_30d(rows: AccountRows) -> Column:
    """Cycles of 2 payments, there and later back within the ring window, found and counted like cycle_count_30d."""
    from graph_features.kernels.cycles import MOST

    return _per_row(rows, np.minimum(_cycles(rows).round_trips, MOST))


@feature(view=RINGS, dtype=DType.INT64, unit="accounts", range="0 or more", empty=0)
def sent_fan_out_max_30d(rows: AccountRows) -> Column:
    """Most distinct receivers of payments with less than a day between first and last, in the last 30 days."""
    from graph_features.kernels.scatter import widest_fan

    flows = _flows(rows)
    return _per_row(rows, widest_fan(flows.made_start, flows.made, flows.receiver, flows.ts_ms, DAY_MS))


@feature(view=RINGS, dtype=DType.INT64, unit="accounts", range="0 or more", empty=0)
def received_fan_in_max_30d(rows: AccountRows) -> Column:
    """Most distinct senders of payments with less than a day between first and last, in the last 30 days."""
    from graph_features.kernels.scatter import widest_fan

    flows = _flows(rows)
    return _per_row(rows, widest_fan(flows.received_start, flows.received, flows.sender, flows.ts_ms, DAY_MS))


@feature(view=RINGS, dtype=DType.INT64, unit="accounts", range="0 or more", empty=0)
def scatter_gather_source_max_30d(rows: AccountRows) -> Column:
    """Most accounts that this one paid and that each later paid one same other account, in the last 30 days.

    All their payments lie within the ring window. Of an intermediary's payments only near ones are linked (see
    cycle_count_30d).
    """
    return _per_row(rows, _scatter(rows).source)


@feature(view=RINGS, dtype=DType.INT64, unit="accounts", range="0 or more", empty=0)
def scatter_gather_sink_max_30d(rows: AccountRows) -> Column:
    """The same where this account is the one that they all paid after one same other account had paid them."""
    return _per_row(rows, _scatter(rows).sink)


@feature(view=RINGS, dtype=DType.INT64, unit="accounts", range="0 or more", empty=0)
def scatter_gather_between_max_30d(rows: AccountRows) -> Column:
    """The largest such number of any source and sink between which this account passed money on."""
    return _per_row(rows, _scatter(rows).between)


@feature(view=RINGS, dtype=DType.INT64, unit="accounts", range="0 or more", empty=0)
def gather_scatter_max_30d(rows: AccountRows) -> Column:
    """Largest k such that k accounts paid this one within the ring window before a payment that it made and it paid k.

    Those that it paid count from that payment on, within another ring window; all in the last 30 days.
    """
    from graph_features.kernels.scatter import gather_scatter

    return _per_row(rows, gather_scatter(_flows(rows), _window_ms(rows)))


@feature(view=RINGS, sides=THINGS, dtype=DType.INT64, unit="accounts", range="0 to 100", empty=0)
def shared_accounts(rows: AccountRows, thing: str) -> Column:
    """Other accounts that paid with a {side} that this one paid with, ever before; 100 or more counting as 100.

    Failed and reversed payments count too.
    """
    from graph_features.kernels.sharing import others

    return _per_row(rows, others(_sharing(rows, thing)))


@feature(view=RINGS, sides=THINGS, dtype=DType.INT64, unit="accounts", range="0 to 100", empty=0)
def shared_frauds(rows: AccountRows, thing: str) -> Column:
    """Other known fraud accounts that paid with a {side} that this one paid with; 100 or more counting as 100."""
    from graph_features.kernels.sharing import others

    frauds = at_slice(rows, "fraud_accounts", lambda: fraud_accounts(rows.edges, _as_of_ms(rows)))
    return _per_row(rows, others(_sharing(rows, thing), frauds))
