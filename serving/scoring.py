"""From decoded payments to recorded scores: what /predict and the Open Inference routes share."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from graph_features.errors import RingfenceError
from graph_features.settings import ServingSettings
from graph_features.tuples import TransactionColumns
from serving import traces
from serving.admission import Admission
from serving.api import Score, Transaction
from serving.assemble import decision_batch, scores_of
from serving.batching import Batcher, Entry, context_of
from serving.journal import DecisionJournal
from serving.metrics import Metrics
from serving.models import LoadedModel, ModelFollower
from serving.parse import check_batch
from serving.payments import Payments, Rows
from serving.pool import Pool
from serving.predict import Predictor, Sheet
from serving.shadow import Shadow


class Parts(Protocol):
    """The parts of the server that scoring works with; see serving.services.Services."""

    settings: ServingSettings
    payments: Payments
    inference: Pool
    predictor: Predictor
    follower: ModelFollower
    decisions: DecisionJournal
    metrics: Metrics
    shadow: Shadow | None

    @property
    def clock_ms(self) -> Callable[[], int]: ...


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request as it waits for others: its payments, the model in use when it came, how much was at work then."""

    payments: Sequence[Transaction]
    model: LoadedModel
    explain: bool
    request_id: str
    entered: float
    among: int


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores in the order of the payments, once their decision records are durable."""

    model: LoadedModel
    scores: list[Score]
    engineered: int
    notices: list[str]
    timing_ms: dict[str, float]


Waiting = Entry[Asked, Scored]


class Scoring:
    """Scores requests, small ones together; each gets what it would get alone."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.admission = Admission(limit_s=parts.settings.overload_ms / 1e3)
        self._batcher: Batcher[Asked, Scored] = Batcher(
            self._together,
            workers=parts.inference.size,
            max_rows=parts.settings.shard_rows,
            window_s=parts.settings.batch_window_ms / 1e3,
        )
        self._finishing: set[asyncio.Task[None]] = set()

    async def score(self, payments: Sequence[Transaction], *, explain: bool, request_id: str, begun: float) -> Scored:
        """Score payments and record the decisions. `begun` is the perf_counter() at which the request came."""
        parts = self._parts
        check_batch("transactions", list(payments), parts.settings.max_batch)
        model = parts.follower.require()
        count = len(payments)
        among = self.admission.enter(count)
        entered = time.perf_counter()
        asked = Asked(
            payments=payments, model=model, explain=explain, request_id=request_id, entered=entered, among=among
        )
        try:
            with traces.span("score", model_version=model.ref.version, payments=count):
                done = await self._batcher.ask(asked, rows=count, kind=model.ref, alone=explain)
                traces.stages({name: value for name, value in done.timing_ms.items() if name != "score"})
        finally:
            self.admission.leave(count)
        done.timing_ms["parse"] += (entered - begun) * 1e3
        done.timing_ms["total"] = (time.perf_counter() - begun) * 1e3
        _count(parts.metrics, done)
        return done

    # ------------------------------------------------------------ a group on its way

    async def _together(self, group: list[Waiting]) -> None:
        """Answer a group; where it cannot be done together, each request alone gets what is its own."""
        try:
            await self._infer(group)
        except RingfenceError as error:
            if len(group) == 1:
                group[0].fail(error)
            else:
                # Whatever one of them did to the others, alone it does it to itself.
                await self._one_by_one(group)
        except Exception as error:  # noqa: BLE001 - handed on to everyone who waits for it
            for entry in group:
                entry.fail(error)

    async def _one_by_one(self, group: list[Waiting]) -> None:
        alone = (asyncio.create_task(self._together([entry]), context=entry.context) for entry in group)
        await asyncio.gather(*alone)

    async def _infer(self, group: list[Waiting]) -> None:
        """Make one table of all payments and score it once; what is lacking in some holds up nobody else."""
        parts = self._parts
        scored_at_ms = parts.clock_ms()
        begun = time.perf_counter()
        payments = [payment for entry in group for payment in entry.asked.payments]
        rows = parts.payments.transactions(payments, now_ms=scored_at_ms)
        if rows.notices and len(group) > 1:
            # Something is to be said to one of them: alone it is known to whom.
            await self._one_by_one(group)
            return
        first = group[0].asked
        columns = TransactionColumns.from_arrow(rows.table)
        parse_ms = (time.perf_counter() - begun) * 1e3
        sheet = await parts.predictor.infer(first.model, columns, explain=first.explain)
        sheet.stage_ms = {"parse": parse_ms, **sheet.stage_ms}
        now = time.perf_counter()
        for entry in group:
            self.admission.observe(now - entry.asked.entered, among=entry.asked.among)
        for some, part, its_rows in _split(group, sheet, rows):
            finish = self._finish(some, part, its_rows, scored_at_ms)
            task = asyncio.create_task(finish, context=context_of(some))
            self._finishing.add(task)
            task.add_done_callback(self._finishing.discard)

    async def _finish(self, group: list[Waiting], sheet: Sheet, rows: Rows, scored_at_ms: int) -> None:
        """Get what is lacking, record the decisions, and answer."""
        try:
            await self._answer(group, sheet, rows, scored_at_ms)
        except Exception as error:  # noqa: BLE001 - handed on to everyone who waits for it
            for entry in group:
                entry.fail(error)

    async def _answer(self, group: list[Waiting], sheet: Sheet, rows: Rows, scored_at_ms: int) -> None:
        parts, first = self._parts, group[0].asked
        await parts.predictor.complete(first.model, sheet, explain=first.explain)
        if parts.shadow is not None:
            parts.shadow.offer(sheet, first.model)
        scores = scores_of(sheet, rows.table["transaction_id"].to_pylist(), first.model)
        scored = time.perf_counter()
        kept = _sampled(parts.settings.decision_sample, len(sheet))
        if kept is None or kept:
            requests = [entry.asked.request_id for entry in group for _ in range(entry.rows)]
            batch = decision_batch(
                sheet, rows.table, scores, first.model, request_ids=requests, scored_at_ms=scored_at_ms, kept=kept
            )
            await asyncio.wrap_future(parts.decisions.write(batch))
        record_ms = (time.perf_counter() - scored) * 1e3
        at = 0
        for entry in group:
            score_ms = (scored - entry.asked.entered) * 1e3
            entry.finish(
                Scored(
                    model=first.model,
                    scores=scores[at : at + entry.rows],
                    engineered=sheet.engineered,
                    notices=rows.notices,
                    timing_ms={**sheet.stage_ms, "score": score_ms, "record": record_ms},
                )
            )
            at += entry.rows


def _split(group: list[Waiting], sheet: Sheet, rows: Rows) -> list[tuple[list[Waiting], Sheet, Rows]]:
    """Those that lack nothing together, and each of the others for itself."""
    if len(group) == 1 or not sheet.state.any():
        return [(group, sheet, rows)]
    sizes = [entry.rows for entry in group]
    lacking = sheet.lacking(sizes)
    begins = list(itertools.accumulate(sizes, initial=0))
    whole = [at for at, lacks in enumerate(lacking) if not lacks]
    found = []
    for places in ([whole] if whole else []) + [[at] for at, lacks in enumerate(lacking) if lacks]:
        payments = np.concatenate([np.arange(begins[at], begins[at + 1]) for at in places])
        part = Rows(table=rows.table.take(payments), notices=[])
        found.append(([group[at] for at in places], sheet.take(payments), part))
    return found


def _sampled(share: float, count: int) -> list[int] | None:
    """Positions of the payments whose decision is recorded; None is all."""
    return None if share >= 1 else [at for at in range(count) if random.random() < share]


def _count(metrics: Metrics, done: Scored) -> None:
    for stage, value in done.timing_ms.items():
        metrics.stage_seconds.labels(stage).observe(value / 1e3)
    flagged = sum(score.decision == "flag" for score in done.scores)
    for decision, count in (("flag", flagged), ("pass", len(done.scores) - flagged)):
        metrics.scores.labels(done.model.ref.version, decision).inc(count)
    for score in done.scores:
        for item in score.degraded:
            metrics.degraded.labels(item.view, item.reason).inc()
