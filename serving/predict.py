"""The flow of a scoring request: split, score, send what is not available to the feature workers, score that again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from graph_features.input_spec import InputSpec
from graph_features.schema import Cadence, EntityKey, ViewSchema
from graph_features.tuples import TransactionColumns
from serving.api import Explanation
from serving.engineering import Cause, FeatureEngineering, Moment, PackedRows
from serving.models import LoadedModel
from serving.pool import Pool
from serving.scorer import ABSENT_MS, ModelRef, Shard, ShardScores, State

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

FIRST_ATTEMPT = 0.4
"""Share of a scoring task's time after which its worker counts as hung; the rest is for another one."""

LARGEST = 5
"""Shards of the configured size that one task may hold."""

Row = int
"""A row position, 0 to 2B - 1; see serving.scorer."""


@dataclass(kw_only=True)
class Sheet:
    """Everything known about one request while it is worked on: arrays as in ShardScores, over all its B payments."""

    transactions: TransactionColumns
    views: tuple[ViewSchema, ...]
    score: Float32
    as_of_ms: Int64
    created_us: Int64
    state: npt.NDArray[np.int8]
    explanation: dict[int, Explanation] = field(default_factory=dict)
    overrides: dict[str, dict[Row, bytes | None]] = field(default_factory=dict)
    complete: dict[str, set[Row]] = field(default_factory=lambda: {"account": set(), "pair": set()})
    causes: dict[EntityKey, Cause] = field(default_factory=dict)
    unseen: set[Row] = field(default_factory=set)
    engineered: int = 0
    stage_ms: dict[str, float] = field(default_factory=dict)
    begun: float = 0.0
    """When its first inference began, by the loop's time: the deadline counts from here."""

    @classmethod
    def blank(cls, spec: InputSpec, transactions: TransactionColumns) -> Sheet:
        views = (*spec.account_views, *spec.pair_views)
        shape = (len(views), 2 * len(transactions))
        return cls(
            transactions=transactions,
            views=views,
            score=np.zeros(len(transactions), np.float32),
            as_of_ms=np.full(shape, ABSENT_MS, np.int64),
            created_us=np.zeros(shape, np.int64),
            state=np.zeros(shape, np.int8),
        )

    def __len__(self) -> int:
        return len(self.transactions)

    def event_ms(self, row: Row) -> int:
        return int(self.transactions.event_ms[row % len(self)])

    def key(self, entity: str, row: Row) -> EntityKey:
        payment = row % len(self)
        sender, receiver = self.transactions.sender_id[payment], self.transactions.receiver_id[payment]
        first = row < len(self)
        if entity == "account":
            return (sender if first else receiver,)
        return (sender, receiver) if first else (receiver, sender)

    def event_views(self, entity: str) -> list[int]:
        return [at for at, view in enumerate(self.views) if view.entity == entity and view.cadence is Cadence.EVENT]

    def rows_in(self, entity: str, *states: State) -> list[Row]:
        """Rows of which some event view is in one of `states`."""
        views = self.event_views(entity)
        return np.flatnonzero(np.isin(self.state[views], states).any(axis=0)).tolist() if views else []

    def lacking(self, sizes: Sequence[int]) -> list[bool]:
        """Of consecutive parts of these sizes, which have a payment with a row that was not available."""
        rows = np.flatnonzero(self.state.any(axis=0)) % len(self)
        of_part = np.repeat(np.arange(len(sizes)), sizes)
        counts: list[int] = np.bincount(of_part[rows], minlength=len(sizes)).tolist()
        return [count > 0 for count in counts]

    def take(self, payments: Int64) -> Sheet:
        """The payments at these positions as a sheet of their own, as after a first inference without explanations."""
        rows = np.concatenate([payments, payments + len(self)])
        return Sheet(
            transactions=self.transactions.take(payments),
            views=self.views,
            score=self.score[payments],
            as_of_ms=self.as_of_ms[:, rows],
            created_us=self.created_us[:, rows],
            state=self.state[:, rows],
            explanation={
                at: self.explanation[row] for at, row in enumerate(payments.tolist()) if row in self.explanation
            },
            stage_ms=dict(self.stage_ms),
            begun=self.begun,
        )

    def shard(self, payments: Int64, *, explain: bool) -> Shard:
        """The payments at these positions with what is known about their rows."""
        rows = np.concatenate([payments, payments + len(self)])
        place = {row: at for at, row in enumerate(rows.tolist())}
        return Shard(
            transactions=self.transactions.take(payments),
            overrides={
                name: {place[row]: packed for row, packed in given.items() if row in place}
                for name, given in self.overrides.items()
            },
            complete={entity: [place[row] for row in rows_ if row in place] for entity, rows_ in self.complete.items()},
            explain=explain,
        )

    def fill(self, payments: Int64, result: ShardScores) -> None:
        """Take over the scores of the payments at these positions."""
        rows = np.concatenate([payments, payments + len(self)])
        self.score[payments] = result.score
        self.as_of_ms[:, rows] = result.as_of_ms
        self.created_us[:, rows] = result.created_us
        self.state[:, rows] = result.state
        if result.explanation:
            self.explanation.update(zip(payments.tolist(), result.explanation, strict=True))

    def override(self, entity: str, row: Row, packed: PackedRows) -> None:
        """Say what the event rows of this position are, whatever the online store has."""
        for at in self.event_views(entity):
            name = self.views[at].name
            self.overrides.setdefault(name, {})[row] = packed.get(name)


class Predictor:
    """Scores payments; shared by all requests."""

    def __init__(
        self,
        *,
        pool: Pool,
        engineering: FeatureEngineering,
        shard_rows: int,
        score_timeout_s: float,
        deadline_s: float,
    ) -> None:
        self._pool = pool
        self._engineering = engineering
        self._shard_rows = shard_rows
        self._score_timeout_s = score_timeout_s
        self._deadline_s = deadline_s

    async def score(self, model: LoadedModel, transactions: TransactionColumns, *, explain: bool = False) -> Sheet:
        """Score payments in their order; what could not be had in time is left in `state` and `causes`."""
        sheet = await self.infer(model, transactions, explain=explain)
        await self.complete(model, sheet, explain=explain)
        return sheet

    async def infer(self, model: LoadedModel, transactions: TransactionColumns, *, explain: bool = False) -> Sheet:
        """Score payments from what is online; `state` tells which rows were not available."""
        sheet = Sheet.blank(model.info.inputs, transactions)
        sheet.begun = asyncio.get_running_loop().time()
        await self._infer(model, sheet, np.arange(len(sheet)), explain)
        return sheet

    async def complete(self, model: LoadedModel, sheet: Sheet, *, explain: bool = False) -> None:
        """Send the rows that were not available to the feature workers, and score those payments again."""
        sheet.stage_ms["feature_engineering"] = 0.0
        if not sheet.state.any():
            return
        loop_time = asyncio.get_running_loop().time
        scored = loop_time()
        for renew in (True, False):
            changed = await self._engineer(sheet, renew=renew, deadline=sheet.begun + self._deadline_s)
            if not changed:
                break
            await self._infer(model, sheet, np.array(sorted(changed), np.int64), explain)
        sheet.stage_ms["feature_engineering"] = (loop_time() - scored) * 1e3

    async def _infer(self, model: LoadedModel, sheet: Sheet, payments: Int64, explain: bool) -> None:
        """Route 2: score the payments at these positions, a shard per task."""
        parts = np.array_split(payments, self._shards(len(payments)))
        results: list[ShardScores] = await asyncio.gather(
            *(self._submit(model.ref, sheet.shard(part, explain=explain)) for part in parts)
        )
        for part, result in zip(parts, results, strict=True):
            sheet.fill(part, result)
        for stage in ("read_ms", "build_ms", "infer_ms"):
            name = stage.removesuffix("_ms")
            longest = max(getattr(result, stage) for result in results)
            sheet.stage_ms[name] = sheet.stage_ms.get(name, 0.0) + longest

    def _shards(self, payments: int) -> int:
        """How many tasks: as many as there are workers, but none for less than a shard and none of many shards.

        A task costs some milliseconds whatever its size, and a worker that gets one task more than the others is what
        everyone waits for.
        """
        wanted, least = (-(-payments // rows) for rows in (self._shard_rows, LARGEST * self._shard_rows))
        return max(least, min(wanted, self._pool.size))

    async def _submit(self, model: ModelRef, shard: Shard) -> ShardScores:
        timeout_s = self._score_timeout_s
        future = self._pool.submit("score", model, shard, timeout_s=timeout_s, hang_s=timeout_s * FIRST_ATTEMPT)
        scores: ShardScores = await asyncio.wrap_future(future)
        return scores

    async def _engineer(self, sheet: Sheet, *, renew: bool, deadline: float) -> set[int]:
        """Route 1: get what is not available; return the payments for which something has changed.

        The first time (`renew`) missing and stale rows are renewed in the online store. What is still not available
        then, because events keep coming or the payment lies in the past, is computed as of the payment itself.
        """
        if renew:
            await self._find_unseen(sheet, deadline)
            renewed, computed = await asyncio.gather(
                self._renew(sheet, deadline), self._compute(sheet, deadline, State.FUTURE)
            )
            rows = renewed | computed | sheet.unseen | self._unseen_pairs(sheet)
        else:
            rows = await self._compute(sheet, deadline, State.MISSING, State.STALE, State.FUTURE)
        return {row % len(sheet) for row in rows}

    async def _find_unseen(self, sheet: Sheet, deadline: float) -> None:
        """Accounts without rows: those that never sent or received anything have none to be had."""
        rows = sheet.rows_in("account", State.MISSING)
        if not rows:
            return
        latest_ms = max(sheet.event_ms(row) for row in rows)
        accounts = {sheet.key("account", row)[0] for row in rows}
        outcome = await self._engineering.seen(accounts, latest_ms, deadline=deadline)
        sheet.causes |= {(account,): cause for (account, _), cause in outcome.failed.items()}
        for row in rows:
            if outcome.done.get((sheet.key("account", row)[0], latest_ms)) is False:
                sheet.unseen.add(row)
                sheet.override("account", row, {})

    def _unseen_pairs(self, sheet: Sheet) -> set[Row]:
        """An account that was never seen has no pairs either."""
        rows = {row for row in sheet.rows_in("pair", State.MISSING) if self._has_unseen_end(sheet, row)}
        for row in rows:
            sheet.override("pair", row, {})
        return rows

    def _has_unseen_end(self, sheet: Sheet, row: Row) -> bool:
        payment = row % len(sheet)
        return payment in sheet.unseen or payment + len(sheet) in sheet.unseen

    async def _renew(self, sheet: Sheet, deadline: float) -> set[Row]:
        by_key: dict[EntityKey, set[Row]] = {}
        for entity in ("account", "pair"):
            for row in sheet.rows_in(entity, State.MISSING, State.STALE):
                key = sheet.key(entity, row)
                unseen = row in sheet.unseen if entity == "account" else self._has_unseen_end(sheet, row)
                if not unseen and key not in sheet.causes:
                    by_key.setdefault(key, set()).add(row)
        outcome = await self._engineering.refresh(by_key, deadline=deadline)
        sheet.engineered += len(by_key)
        sheet.causes |= outcome.failed
        for key in outcome.done:
            sheet.complete["account" if len(key) == 1 else "pair"] |= by_key[key]
        return {row for key in outcome.done for row in by_key[key]}

    async def _compute(self, sheet: Sheet, deadline: float, *states: State) -> set[Row]:
        by_moment: dict[Moment, set[tuple[str, Row]]] = {}
        for entity in ("account", "pair"):
            for row in sheet.rows_in(entity, *states):
                key = sheet.key(entity, row)
                if key not in sheet.causes:
                    by_moment.setdefault((key, sheet.event_ms(row)), set()).add((entity, row))
        outcome = await self._engineering.rows_at(by_moment, deadline=deadline)
        sheet.engineered += len(by_moment)
        sheet.causes |= {key: cause for (key, _), cause in outcome.failed.items()}
        changed: set[Row] = set()
        for moment, packed in outcome.done.items():
            for entity, row in by_moment[moment]:
                sheet.override(entity, row, packed)
                changed.add(row)
                if entity == "account" and not any(packed.values()):
                    sheet.unseen.add(row)
        return changed
