"""Every event feature the slow, obvious way: plain Python over lists, written from the definitions alone."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

from graph_features.clock import DAY_MS, HOUR_MS
from graph_features.histogram import HISTOGRAM_EDGES
from graph_features.settings import FeatureSettings

MINUTE_MS = 60_000
WINDOWS = {
    "1h": (HOUR_MS, MINUTE_MS),
    "1d": (DAY_MS, HOUR_MS),
    "7d": (7 * DAY_MS, HOUR_MS),
    "30d": (30 * DAY_MS, DAY_MS),
    "all": None,
}
NEWEST = 16


def begins(window: str, as_of: int) -> int:
    """First instant of a window before as_of: a whole number of its grain since 1970."""
    if WINDOWS[window] is None:
        return -1
    length, grain = WINDOWS[window]
    return (as_of - length) // grain * grain


def bucket(ts: int, as_of: int, *windows: str) -> int | None:
    """Minute at which the bucket begins that an item is kept in: of the grain of the first window that holds it."""
    for window in windows:
        if ts >= begins(window, as_of):
            grain = WINDOWS[window][1]
            return ts // grain * grain // MINUTE_MS
    return None


class Reference:
    """Answers for one history."""

    def __init__(self, history: Any, settings: FeatureSettings | None = None) -> None:
        self.payments = sorted(history.payments, key=lambda payment: (payment.ts_ms, payment.id))
        # Arrival order breaks ties, and sorting is stable.
        self.statuses = sorted(history.statuses, key=lambda change: change.ts_ms)
        self.labels = sorted(history.labels, key=lambda change: change.ts_ms)
        self.settings = settings or FeatureSettings()

    # what was known

    def status(self, payment: Any, as_of: int) -> str:
        known = [s.value for s in self.statuses if s.id == payment.id and s.ts_ms < as_of]
        return known[-1] if known else "completed"

    def label(self, payment: Any, as_of: int) -> tuple[int, str | None] | None:
        """When the label that holds became known, and the party it names (None: genuine); None without a label."""
        known = [(max(c.ts_ms, payment.ts_ms), c.value) for c in self.labels if c.id == payment.id and c.ts_ms < as_of]
        return known[-1] if known else None

    def made(self, account: str, as_of: int, side: str) -> list[Any]:
        """Payments before as_of, whatever their status, oldest first."""
        ends = {"sent": lambda p: {p.sender}, "received": lambda p: {p.receiver}}
        end = ends.get(side, lambda p: {p.sender, p.receiver})
        return [p for p in self.payments if p.ts_ms < as_of and account in end(p)]

    def counting(self, account: str, as_of: int, side: str) -> list[Any]:
        return [p for p in self.made(account, as_of, side) if self.status(p, as_of) == "completed"]

    def event_times(self, key: tuple[str, ...], kinds: tuple[str, ...]) -> list[int]:
        mine = {
            p.id: p.ts_ms
            for p in self.payments
            if (key[0] in (p.sender, p.receiver) if len(key) == 1 else (p.sender, p.receiver) == key)
        }
        times = set(mine.values())
        for kind, changes in (("status", self.statuses), ("label", self.labels)):
            if kind in kinds:
                times |= {max(c.ts_ms, mine[c.id]) for c in changes if c.id in mine}
        return sorted(times)

    # views

    def row(self, view: str, key: tuple[str, ...], as_of: int) -> dict[str, Any]:
        return getattr(self, view)(*key, as_of)

    def account_activity(self, account: str, as_of: int) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for side in ("sent", "received"):
            counting = self.counting(account, as_of, side)
            for name in WINDOWS:
                inside = [p for p in counting if p.ts_ms >= begins(name, as_of)]
                found = [p.amount for p in inside]
                row[f"{side}_count_{name}"] = len(found)
                row[f"{side}_amount_sum_{name}"] = sum(found)
                row[f"{side}_amount_mean_{name}"] = mean(found)
                row[f"{side}_amount_max_{name}"] = max(found, default=None)
                row[f"{side}_amount_std_{name}"] = std(found)
                if name in ("7d", "30d", "all"):
                    others = {p.receiver if side == "sent" else p.sender for p in inside}
                    row[f"unique_{'receivers' if side == 'sent' else 'senders'}_{name}"] = len(others)
        for name in ("7d", "all"):
            row[f"net_flow_{name}"] = row[f"received_amount_sum_{name}"] - row[f"sent_amount_sum_{name}"]
        for name in ("1d", "7d", "30d"):
            row[f"transaction_count_{name}"] = row[f"sent_count_{name}"] + row[f"received_count_{name}"]
        return row | self.rhythm(account, as_of)

    def rhythm(self, account: str, as_of: int) -> dict[str, Any]:
        times = [p.ts_ms for p in self.counting(account, as_of, "either")]
        gaps = [(later - earlier) / 1000 for earlier, later in itertools.pairwise(times)]
        moments = [datetime.fromtimestamp(ts / 1000, UTC) for ts in times]
        span_days = (times[-1] - times[0]) / DAY_MS if times else 0
        return {
            "transaction_frequency": len(times) / span_days if span_days else None,
            "transaction_gap_mean_all": mean(gaps),
            "transaction_gap_variance_all": variance([b - a for a, b in itertools.pairwise(times)], 10**6),
            "first_transaction_timestamp": times[0] if times else None,
            "last_transaction_timestamp": times[-1] if times else None,
            "hour_of_day_mode": mode([moment.hour for moment in moments]),
            "day_of_week_mode": mode([moment.weekday() for moment in moments]),
        }

    def account_behaviour(self, account: str, as_of: int) -> dict[str, Any]:
        tried = self.made(account, as_of, "sent")
        unit = 10**self.settings.base_exponent
        limits = [limit * unit for limit in self.settings.thresholds]
        status = [self.status(p, as_of) for p in tried]
        both = [p for p in tried if p.sender_country and p.receiver_country]
        any_country = [p for p in tried if p.sender_country or p.receiver_country]
        risky = self.settings.high_risk_countries
        times = [p.ts_ms for p in tried]
        busiest = max((sum(ts <= other < ts + HOUR_MS for other in times) for ts in times), default=0)
        days = len({ts // DAY_MS for ts in times})
        made = self.made(account, as_of, "either")
        return {
            "sent_attempt_count_all": len(tried),
            "first_attempt_timestamp": made[0].ts_ms if made else None,
            "failed_transaction_ratio": mean([s == "failed" for s in status]),
            "reversal_ratio": mean([s == "reversed" for s in status]),
            "round_amount_ratio": mean([p.amount % (10 * unit) == 0 for p in tried]),
            "threshold_amount_ratio": mean(
                [any(Fraction(95, 100) * limit <= p.amount < limit for limit in limits) for p in tried]
            ),
            "channel_entropy": entropy([p.channel for p in tried if p.channel]),
            "cross_border_ratio": mean([p.sender_country != p.receiver_country for p in both]),
            "high_risk_country_ratio": mean(
                [p.sender_country in risky or p.receiver_country in risky for p in any_country]
            ),
            "burst_score": busiest / (len(times) / (24 * days)) if times else None,
            **{
                f"{side}_{name}": value
                for side in ("sent", "received")
                for name, value in self.amounts(account, as_of, side).items()
            },
        }

    def amounts(self, account: str, as_of: int, side: str) -> dict[str, Any]:
        tried = self.made(account, as_of, side)
        amounts = [p.amount for p in tried]
        unusual = [self.unusual(account, p, side) for p in tried]
        odd = [p.ts_ms for p, is_unusual in zip(tried, unusual, strict=True) if is_unusual]
        return {
            "amount_median_all": quartile(amounts, 2) if amounts else None,
            "amount_iqr_all": quartile(amounts, 3) - quartile(amounts, 1) if amounts else None,
            "unusual_amounts_of_last_5": sum(unusual[-5:]),
            "unusual_amounts_of_last_20": sum(unusual[-20:]),
            "last_unusual_amount_timestamp": odd[-1] if odd else None,
            "amount_histogram": histogram(self.counting(account, as_of, side)),
        }

    def unusual(self, account: str, payment: Any, side: str) -> bool:
        """Whether it lies 1.5 interquartile ranges above the upper quartile of what was tried before, four at least."""
        past = [p.amount for p in self.made(account, payment.ts_ms, side)]
        if len(past) < 4:
            return False
        lower, upper = quartile(past, 1), quartile(past, 3)
        return payment.amount > upper + Fraction(3, 2) * (upper - lower)

    def account_exposure(self, account: str, as_of: int) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for side in ("sent", "received"):
            row |= {f"{side}_{name}": value for name, value in self.exposure(account, as_of, side).items()}
        named = set()
        for p in self.made(account, as_of, "either"):
            label = self.label(p, as_of)
            if label and label[1] and p.sender != p.receiver:
                other, party = (p.receiver, "receiver") if p.sender == account else (p.sender, "sender")
                named |= {other} if label[1] in (party, "both") else set()
        return row | {"fraudulent_counterparty_count": len(named)}

    def exposure(self, account: str, as_of: int, side: str) -> dict[str, Any]:
        known = [(p, *label) for p in self.made(account, as_of, side) if (label := self.label(p, as_of))]
        row: dict[str, Any] = {}
        for name in ("1d", "7d", "30d", "all"):
            inside = [party is not None for _, at, party in known if at >= begins(name, as_of)]
            row[f"known_fraud_count_{name}"] = sum(inside)
            row[f"known_fraud_ratio_{name}"] = mean(inside)
            if name == "all":
                row["known_genuine_count_all"] = len(inside) - sum(inside)
        for kind, fraud in (("fraud", True), ("genuine", False)):
            of_kind = [(p, at) for p, at, party in known if (party is not None) is fraud]
            row[f"last_{kind}_timestamp"] = max((p.ts_ms for p, _ in of_kind), default=None)
            row[f"last_{kind}_label_timestamp"] = max((at for _, at in of_kind), default=None)
        row |= self.run(known)
        ordinary = [(p, at, party) for p, at, party in known if not self.unusual(account, p, side)]
        row |= {f"ordinary_{name}": value for name, value in self.run(ordinary).items()}
        frauds = [p.ts_ms for p, _, party in ordinary if party is not None]
        genuine = [p.ts_ms for p, _, party in ordinary if party is None]
        row["ordinary_fraud_count"] = len(frauds)
        row["last_ordinary_fraud_timestamp"] = max(frauds, default=None)
        row["last_ordinary_genuine_timestamp"] = max(genuine, default=None)
        other = genuine if row["ordinary_run_is_fraud"] else frauds
        row["ordinary_run_gap"] = (row["ordinary_run_start_timestamp"] - other[-1]) / 1_000 if other else None
        return row

    @staticmethod
    def run(known: list[Any]) -> dict[str, Any]:
        run: list[Any] = []
        for p, _, party in reversed(known):
            if (party is not None) != (known[-1][2] is not None):
                break
            run.append(p)
        return {
            "run_is_fraud": int(known[-1][2] is not None) if known else None,
            "run_length": len(run),
            "run_start_timestamp": run[-1].ts_ms if run else None,
        }

    def account_windows(self, account: str, as_of: int) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for side in ("sent", "received"):
            row |= {f"{side}_{name}": value for name, value in self.buckets(account, as_of, side).items()}
        return row

    def buckets(self, account: str, as_of: int, side: str) -> dict[str, list[Any]]:
        inside: dict[int, list[int]] = {}
        last: dict[str, int | None] = {}
        for p in self.counting(account, as_of, side):
            start = bucket(p.ts_ms, as_of, "1h", "7d", "30d")
            last[p.receiver if side == "sent" else p.sender] = start
            if start is not None:
                inside.setdefault(start, []).append(p.amount)
        many = [found for found in inside.values() if len(found) > 1]
        known: dict[int, list[int]] = {}
        for p in self.made(account, as_of, side):
            if label := self.label(p, as_of):
                start = bucket(label[0], as_of, "7d", "30d")
                if start is not None:
                    known.setdefault(start, [0, 0])[label[1] is not None] += 1
        others = list(last.values())
        return {
            "buckets": [x for at, found in inside.items() for x in (at, len(found), sum(found), others.count(at))],
            "bucket_amount_maxima": [max(found) for found in many],
            "bucket_amount_deviations": [variance(found) * (len(found) - 1) for found in many],
            "label_buckets": [value for start in sorted(known) for value in (start, *known[start])],
        }

    def account_neighbours(self, account: str, as_of: int) -> dict[str, Any]:
        newest = self.counting(account, as_of, "either")[::-1][:NEWEST]
        others = [p.receiver if p.sender == account else p.sender for p in newest]
        return {
            "neighbour_ids": others,
            "neighbour_directions": [int(p.sender == account) for p in newest],
            "neighbour_amounts": [p.amount for p in newest],
            "neighbour_timestamps": [p.ts_ms for p in newest],
            "neighbour_profile": [value for other in others for value in self.profile(other, as_of)],
        }

    def profile(self, account: str, as_of: int) -> list[float]:
        sent = [p.amount for p in self.counting(account, as_of, "sent")]
        received = [p.amount for p in self.counting(account, as_of, "received")]
        made = [*self.made(account, as_of, "sent"), *self.made(account, as_of, "received")]
        labels = [self.label(p, as_of) for p in made]
        return [
            math.log1p(len(sent)),
            math.log1p(len(received)),
            math.log1p(mean(sent) or 0),
            math.log1p(mean(received) or 0),
            (as_of - self.made(account, as_of, "either")[0].ts_ms) / DAY_MS,
            sum(label is not None and label[1] is not None for label in labels),
        ]

    def pair_history(self, sender: str, receiver: str, as_of: int) -> dict[str, Any]:
        paid = [p for p in self.counting(sender, as_of, "sent") if p.receiver == receiver]
        found = [p.amount for p in paid]
        return {
            "paid_count_all": len(found),
            "paid_amount_sum_all": sum(found),
            "paid_amount_mean_all": mean(found),
            "paid_first_timestamp": paid[0].ts_ms if paid else None,
            "paid_last_timestamp": paid[-1].ts_ms if paid else None,
        }


def quartile(values: list[int], quarter: int) -> int:
    """The value at place ceil(m * quarter / 4) of m in order, counting from 1."""
    return sorted(values)[math.ceil(len(values) * quarter / 4) - 1]


def mean(values: list[Any]) -> float | None:
    return sum(values) / len(values) if values else None


def variance(values: list[int], scale: int = 1) -> float | None:
    """Sample variance of integers over `scale`, exact until the end."""
    if len(values) < 2:
        return None
    centre = Fraction(sum(values), len(values))
    return float(sum((value - centre) ** 2 for value in values) / (len(values) - 1) / scale)


def std(values: list[int]) -> float | None:
    found = variance(values)
    return None if found is None else math.sqrt(found)


def mode(values: list[int]) -> int | None:
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value)) if counts else None


def entropy(values: list[str]) -> float | None:
    shares = [count / len(values) for count in Counter(values).values()]
    return -sum(share * math.log2(share) for share in shares) if shares else None


def histogram(payments: list[Any]) -> list[int]:
    edges = HISTOGRAM_EDGES.tolist()
    counts = Counter(max(sum(edge <= p.amount for edge in edges) - 1, 0) for p in payments)
    return [value for bin_ in sorted(counts) for value in (bin_, counts[bin_])]
