"""A head on stored embeddings against the whole two-sided graph model: AP lost, latency won.

    python -m bench.embeddings --home .ringfence --from 2025-02-13 --to 2025-02-21 --whole 1 --head 2

Takes a home with both models registered: `ringfence demo`, then `ringfence train-head` with the same periods.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

import numpy as np

from bench.report import Figure, publish
from bench.timing import alternately, note

SIZES = (1, 200, 1_000)
ROUNDS = 15


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--from", dest="from_", required=True, help="start of the test period, a date")
    parser.add_argument("--to", required=True, help="its end, excluded")
    parser.add_argument("--whole", required=True, help="version of the whole model")
    parser.add_argument("--head", required=True, help="version of the head")
    asked = parser.parse_args()
    os.environ["RINGFENCE_HOME"] = str(asked.home.resolve())
    publish("embeddings", [*quality(asked), *latency(asked)])


def quality(asked: argparse.Namespace) -> list[Figure]:
    """AP, CP@100 and AUC of both on the same payments."""
    from graph_features.settings import PlatformSettings
    from infra.console import instant
    from training.assess import evaluate_model

    found = []
    for version in (asked.head, asked.whole):
        note(f"version {version} on the test period")
        found.append(
            evaluate_model(
                PlatformSettings(), test_from=instant(asked.from_), test_to=instant(asked.to), version=version
            )
        )
    head, whole = found
    assert (head.dataset.transaction_id == whole.dataset.transaction_id).all()
    conditions = f"{len(head.dataset)} payments, {int(head.dataset.is_fraud.sum())} frauds"
    return [
        Figure(
            name=f"{name} of the head",
            value=getattr(head.result, name),
            unit="",
            better="higher",
            peer="the whole model",
            peer_value=getattr(whole.result, name),
            conditions=conditions,
        )
        for name in ("average_precision", "card_precision", "roc_auc")
    ]


def latency(asked: argparse.Namespace) -> list[Figure]:
    """A worker's whole task: read rows, build tuples, run the graph; one thread, the embedded online store."""
    from graph_features.backends import open_online, open_records
    from graph_features.settings import PlatformSettings
    from graph_features.tuples import TransactionColumns
    from serving.scorer import ModelRef, Shard, ShardScorer
    from training.registry import Registry

    platform = PlatformSettings()
    registry = Registry.open(platform.home)
    refs = [
        ModelRef(name="ringfence", version=one, alias="", path=str(registry.download("ringfence", one)))
        for one in (asked.head, asked.whole)
    ]
    records = open_records(platform)
    newest = records.read_all().transactions.sort_by("event_timestamp")
    records.close()
    online = open_online(platform)
    scorer = ShardScorer(online)
    figures = []
    for size in SIZES:
        columns = TransactionColumns.from_arrow(newest.slice(newest.num_rows - size))
        shard = Shard(transactions=columns)
        sides = [partial(scorer.score, ref, shard) for ref in refs]
        for side in sides:
            side()
        note(f"{size} payments")
        head_s, whole_s = alternately(ROUNDS, *sides)
        parts = [np.median([getattr(scorer.score(ref, shard), f"{part}_ms") for _ in range(5)])
                 for ref in refs for part in ("read", "build", "infer")]  # fmt: skip
        told = "read, build, infer: head {:.2f}, {:.2f}, {:.2f} ms; whole {:.2f}, {:.2f}, {:.2f} ms".format(*parts)
        note(told)
        figures.append(
            Figure(
                name=f"score {size} payments",
                value=head_s * 1e3,
                unit="ms",
                peer="the whole model",
                peer_value=whole_s * 1e3,
                goal=2,
                goal_on="ratio",
                conditions=told,
            )
        )
    online.close()
    return figures


if __name__ == "__main__":
    main()
