"""Explanations on planted fraud: how often the planted cause is among the top three, against picking at random.

    python -m bench.explanations --home .ringfence --from 2025-02-13 --to 2025-02-21 --truth truth.parquet

Takes a home with a model, and the simulator's truth. For a scenario, the groups of inputs in which its plan shows are
named below; for rings, the accounts of the ring among the neighbours count too.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.report import Figure, publish
from bench.timing import note

if TYPE_CHECKING:
    from graph_features.stores.blocks import RowBlock
    from graph_features.tuples import InputTuples
    from serving.api import Explanation

TOP = 3

_RING = (
    "sender:account_rings",
    "receiver:account_rings",
    "sender:account_proximity",
    "receiver:account_proximity",
    "neighbours",
)
CAUSES: Mapping[str, Sequence[str]] = {
    # A shop at which card after card is charged: what is known of its earlier payments.
    "compromised_terminal": ("receiver:account_exposure", "receiver:account_activity"),
    # A few purchases within days, where the owner never shops, often larger.
    "stolen_card": ("pair", "amount_against_sender", "sender:account_exposure", "sender:account_activity"),
    # Transfers within hours to somebody new, who takes in far more than usual.
    "account_takeover": ("pair", "amount_against_sender", "sender:account_activity", "receiver:account_activity"),
    "cycle": _RING,
    # Many pay one, or one pays many, within two days: in the activity of the one as well.
    "fan_in": (*_RING, "receiver:account_activity"),
    "fan_out": (*_RING, "sender:account_activity"),
    "scatter_gather": _RING,
}


@dataclass(frozen=True, kw_only=True)
class Explained:
    """One fraudulent payment: whether the model finds it, whether what was planted is named, and would be by chance."""

    scenario: str
    found: bool
    cause: bool
    chance: float
    ring_edges: int
    """How many of its neighbour edges lead to an account of its ring."""
    ring_named: bool
    ring_chance: float


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--from", dest="from_", required=True, help="start of the period, a date")
    parser.add_argument("--to", required=True, help="its end, excluded")
    parser.add_argument("--truth", type=Path, required=True, help="the simulator's truth.parquet")
    parser.add_argument("--version", help="by default the champion")
    asked = parser.parse_args()
    os.environ["RINGFENCE_HOME"] = str(asked.home.resolve())
    explained, spent_ms = explain_frauds(asked)
    publish("explanations", figures(explained, spent_ms))


def explain_frauds(asked: argparse.Namespace) -> tuple[list[Explained], list[float]]:
    """Explain every planted fraud of the period, one payment at a time; milliseconds beside."""
    from graph_features.settings import PlatformSettings, TrainingSettings
    from graph_features.tuples import TransactionColumns, build_tuples
    from serving.explain import explain
    from training.bundle import Bundle
    from training.dataset import historical_blocks
    from training.history import open_history
    from training.registry import CHAMPION, Registry

    platform, settings = PlatformSettings(), TrainingSettings()
    registry = Registry.open(platform.home)
    version = asked.version or registry.resolve(settings.model_name, CHAMPION)[0]
    bundle = Bundle.load(registry.download(settings.model_name, version))
    truth = pq.read_table(asked.truth)
    with open_history(platform, settings) as history:
        stored = history.records.read_all().transactions
        frauds = planted(stored, truth, asked)
        joined = as_of_payment(history.store, frauds)
    blocks = historical_blocks(bundle.info.inputs, joined)
    tuples = build_tuples(bundle.info.inputs, TransactionColumns.from_arrow(frauds), blocks)
    flagged = bundle.score(tuples) >= bundle.info.threshold
    note(f"{len(frauds)} frauds, {flagged.sum()} of them at the threshold or above")
    rings = Rings.of(truth, stored)
    found, spent = [], []
    for at, row in enumerate(frauds.select(["scenario", "ring_id"]).to_pylist()):
        block = blocks.accounts["account_neighbours"].take(np.array([at, at + len(frauds)]))
        one = tuples.take(np.array([at]))
        begun = process_time()
        (explanation,) = explain(bundle.info.inputs, one, bundle.score, bundle.ordinary(), block)
        spent.append((process_time() - begun) * 1e3)
        edges = edge_accounts(one, block)
        found.append(judged(row, explanation, found=bool(flagged[at]), edges=edges, rings=rings))
    return found, spent


def planted(stored: pa.Table, truth: pa.Table, asked: argparse.Namespace) -> pa.Table:
    """The period's payments that belong to a scenario, with its name and ring."""
    from graph_features.clock import to_ms
    from infra.console import instant

    event_ms = stored["event_timestamp"].cast(pa.int64()).to_numpy()
    inside = (event_ms >= to_ms(instant(asked.from_))) & (event_ms < to_ms(instant(asked.to)))
    named = truth.filter(pc.is_valid(truth["scenario"])).select(["transaction_id", "scenario", "ring_id"])
    return stored.filter(pa.array(inside)).join(named, "transaction_id", join_type="inner").combine_chunks()


def as_of_payment(store: Any, frauds: pa.Table) -> pa.Table:
    """Their feature rows as of each payment."""
    from training.dataset import MODEL_SERVICE, ROW

    entities = frauds.drop_columns(["scenario", "ring_id"]).to_pandas()
    entities[ROW] = np.arange(len(entities))
    entities["payment_timestamp"] = entities["event_timestamp"]
    service = store.get_feature_service(MODEL_SERVICE)
    job = store.get_historical_features(entity_df=entities, features=service, full_feature_names=True)
    return job.to_arrow().sort_by(ROW)


@dataclass(frozen=True, kw_only=True)
class Rings:
    """Which accounts belong to each ring."""

    members: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, truth: pa.Table, stored: pa.Table) -> Rings:
        named = truth.filter(pc.is_valid(truth["ring_id"])).select(["transaction_id", "ring_id"])
        joined = named.join(
            stored.select(["transaction_id", "sender_id", "receiver_id"]), "transaction_id", join_type="inner"
        )
        members: dict[str, set[str]] = {}
        for row in joined.to_pylist():
            members.setdefault(row["ring_id"], set()).update((row["sender_id"], row["receiver_id"]))
        return cls(members={ring: frozenset(accounts) for ring, accounts in members.items()})


def edge_accounts(one: InputTuples, block: RowBlock) -> list[str]:
    """The account at the other end of each neighbour edge of one payment."""
    offsets, ids = block.lists("neighbour_ids")
    sides = one.neighbour_index.tolist()
    return [str(ids[at - int(one.first_edge[side]) + int(offsets[side])]) for at, side in enumerate(sides)]


def judged(
    row: Mapping[str, Any], explanation: Explanation, *, found: bool, edges: Sequence[str], rings: Rings
) -> Explained:
    """Whether what was planted is among the top three of what pushed the score up, and how likely by chance."""
    causes = [name for name in CAUSES[row["scenario"]] if name in explanation.groups]
    pushed = sorted(explanation.groups, key=lambda name: -explanation.groups[name])[:TOP]
    ring = rings.members.get(row["ring_id"] or "", frozenset())
    first = sorted(explanation.neighbours, key=lambda one: -one.effect)[:TOP]
    return Explained(
        scenario=row["scenario"],
        found=found,
        cause=any(name in causes for name in pushed),
        chance=_chance(len(causes), len(explanation.groups)),
        ring_edges=sum(account in ring for account in edges),
        ring_named=any(one.account_id in ring for one in first),
        ring_chance=_chance(sum(account in ring for account in edges), len(edges)),
    )


def _chance(hits: int, total: int) -> float:
    """Probability that three drawn of `total` hold one of `hits`."""
    return 1 - comb(total - hits, min(TOP, total)) / comb(total, min(TOP, total)) if total else 0.0


def figures(explained: Sequence[Explained], spent_ms: Sequence[float]) -> list[Figure]:
    """Shares by scenario, of frauds that the model finds and of all, and the time of one explanation."""
    out = []
    for name, rows in (("found", [one for one in explained if one.found]), ("all", list(explained))):
        for scenario in (*CAUSES, ""):
            out += _share(f"{name}, {scenario or 'every scenario'}: cause in top {TOP}", rows, scenario)
        ringed = [one for one in rows if one.ring_edges]
        if ringed:
            out.append(
                Figure(
                    name=f"{name}, rings: a member among the top {TOP} neighbours",
                    value=float(np.mean([one.ring_named for one in ringed])),
                    unit="share",
                    better="higher",
                    peer="at random",
                    peer_value=float(np.mean([one.ring_chance for one in ringed])),
                    conditions=f"{len(ringed)} payments with a member of their ring among the neighbours",
                )
            )
    p50, p99 = np.quantile(spent_ms, (0.5, 0.99))
    conditions = f"{len(spent_ms)} payments, one thread, processor time; p99 {p99:.1f} ms"
    return [*out, Figure(name="explain one payment, p50", value=float(p50), unit="ms", goal=50, conditions=conditions)]


def _share(name: str, rows: Sequence[Explained], scenario: str) -> list[Figure]:
    of = [one for one in rows if scenario in ("", one.scenario)]
    if not of:
        return []
    return [
        Figure(
            name=name,
            value=float(np.mean([one.cause for one in of])),
            unit="share",
            better="higher",
            peer="at random",
            peer_value=float(np.mean([one.chance for one in of])),
            conditions=f"{len(of)} payments",
        )
    ]


if __name__ == "__main__":
    main()
