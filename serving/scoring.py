"""From decoded payments to recorded scores: what /predict and the Open Inference routes share."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from graph_features.tuples import TransactionColumns
from serving import traces
from serving.api import Score, Transaction
from serving.assemble import decision_batch, scores_of
from serving.models import LoadedModel
from serving.parse import check_batch
from serving.predict import Sheet
from serving.services import Services


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores in the order of the payments, once their decision records are durable."""

    model: LoadedModel
    scores: list[Score]
    sheet: Sheet
    notices: list[str]
    timing_ms: dict[str, float]


async def score(
    services: Services, payments: Sequence[Transaction], *, explain: bool, request_id: str, begun: float
) -> Scored:
    """Score payments and record the decisions. `begun` is the perf_counter() at which the request came."""
    with traces.span("parse", payments=len(payments)):
        check_batch("transactions", list(payments), services.settings.max_batch)
        scored_at_ms = services.clock_ms()
        rows = services.payments.transactions(payments, now_ms=scored_at_ms)
    model = services.follower.require()
    parsed = time.perf_counter()
    with traces.span("score", model_version=model.ref.version):
        sheet = await services.predictor.score(model, TransactionColumns.from_arrow(rows.table), explain=explain)
        traces.stages(sheet.stage_ms)
    if services.shadow is not None:
        services.shadow.offer(sheet, model)
    scores = scores_of(sheet, rows.table["transaction_id"].to_pylist(), model)
    scored = time.perf_counter()
    kept = _sampled(services.settings.decision_sample, len(sheet))
    if kept is None or kept:
        batch = decision_batch(
            sheet, rows.table, scores, model, request_id=request_id, scored_at_ms=scored_at_ms, kept=kept
        )
        with traces.span("record"):
            await asyncio.wrap_future(services.decisions.write_batch(batch))
    done = time.perf_counter()
    timing = {
        "parse": (parsed - begun) * 1e3,
        **sheet.stage_ms,
        "score": (scored - parsed) * 1e3,
        "record": (done - scored) * 1e3,
        "total": (done - begun) * 1e3,
    }
    _count(services, scores, model, timing)
    return Scored(model=model, scores=scores, sheet=sheet, notices=rows.notices, timing_ms=timing)


def _sampled(share: float, count: int) -> list[int] | None:
    """Positions of the payments whose decision is recorded; None is all."""
    return None if share >= 1 else [at for at in range(count) if random.random() < share]


def _count(services: Services, scores: list[Score], model: LoadedModel, timing: dict[str, float]) -> None:
    metrics = services.metrics
    for stage, value in timing.items():
        metrics.stage_seconds.labels(stage).observe(value / 1e3)
    flagged = sum(score.decision == "flag" for score in scores)
    for decision, count in (("flag", flagged), ("pass", len(scores) - flagged)):
        metrics.scores.labels(model.ref.version, decision).inc(count)
    for score in scores:
        for item in score.degraded:
            metrics.degraded.labels(item.view, item.reason).inc()
