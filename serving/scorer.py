"""What an inference worker does with its shard: read rows, judge them, build tuples, run the model.

Imported by worker processes: no torch, feast, mlflow or numba may come in with it.

Shape letters: B payments of the shard, V views of the model (account views, then pair views). Every view has 2B rows:
those of the senders and then of the receivers, or of the pairs (sender, receiver) and then (receiver, sender).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from operator import itemgetter
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from graph_features.clock import NEVER_MS
from graph_features.embeddings import of_encoder
from graph_features.errors import ModelError
from graph_features.input_spec import NEIGHBOUR_VIEW, InputSpec
from graph_features.schema import Cadence, EntityKey, ViewSchema
from graph_features.stores.blocks import RowBlock
from graph_features.stores.codec import NO_CREATED
from graph_features.tuples import InputTuples, TransactionColumns, TupleBlocks, build_tuples, row_requests
from serving.api import Explanation
from serving.explain import explain
from training.bundle import Bundle

Bools = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

ABSENT_MS = -1
"""as_of of a row that a score was made without."""

MODELS_KEPT = 4
"""The model in use and the one that is about to be, or was until now; the same of a challenger."""


class State(IntEnum):
    """What keeps a row from being used as it stands."""

    MISSING = 1
    STALE = 2
    FUTURE = 3
    TOO_OLD = 4


class OnlineReader(Protocol):
    """The part of an online store that scoring needs."""

    def read_with_pending(
        self, requests: Sequence[tuple[ViewSchema, Sequence[EntityKey]]], keys: Sequence[EntityKey]
    ) -> tuple[list[list[bytes | None]], dict[EntityKey, str]]:
        """Rows per request and key, and the tokens of pending keys, in one round trip."""


@dataclass(frozen=True, kw_only=True)
class ModelRef:
    """A registered model version and the folder its bundle lies in."""

    name: str
    version: str
    alias: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Shard:
    """B payments to score.

    `overrides` gives, per view name and row position (0 to 2B - 1), the packed row to take instead of what the online
    store has; None stands for "never anything happened", which a missing row alone does not prove. `complete` names,
    per entity, the positions whose rows were just renewed: what is missing there never happened either.
    """

    transactions: TransactionColumns
    overrides: dict[str, dict[int, bytes | None]] = field(default_factory=dict)
    complete: dict[str, list[int]] = field(default_factory=dict)
    explain: bool = False

    def __len__(self) -> int:
        return len(self.transactions)


@dataclass(frozen=True, kw_only=True)
class ShardScores:
    """Scores of B payments and what they rest on.

    `score` float32 [B]. `as_of_ms` and `created_us` int64 [V, 2B], ABSENT_MS where no row was used. `state` int8
    [V, 2B], 0 where the row could be used as it stands, else a State.
    """

    score: Float32
    as_of_ms: Int64
    created_us: Int64
    state: npt.NDArray[np.int8]
    read_ms: float
    build_ms: float
    infer_ms: float
    explanation: list[Explanation] = field(default_factory=list)
    """One per payment, when asked for."""


class ShardScorer:
    """Scores shards with one model from one online store; one per worker, since a bundle is not for many threads."""

    def __init__(self, online: OnlineReader) -> None:
        self._online = online
        self._bundles: dict[tuple[str, str], Bundle] = {}

    def load(self, model: ModelRef) -> str:
        """Have `model` ready and warm; return its feature hash. Raises ModelError."""
        bundle = self._bundle(model)
        example = bundle.example()
        for _ in range(3):
            scores = bundle.score(example)
        check_scores(scores, model)
        return bundle.info.feature_hash

    def golden(self, model: ModelRef) -> Float32:
        """Scores of the payments that were saved beside the model."""
        bundle = self._bundle(model)
        return bundle.score(bundle.example())

    def score(self, model: ModelRef, shard: Shard) -> ShardScores:
        """Score B payments from their newest rows, `shard.overrides` first."""
        bundle = self._bundle(model)
        spec = bundle.info.inputs
        begun = time.perf_counter()
        values, pending = self._read(spec, shard.transactions)
        read = time.perf_counter()
        judged = judge(spec, shard, values, pending)
        tuples = build_tuples(spec, shard.transactions, judged.blocks)
        built = time.perf_counter()
        score = bundle.score(tuples)
        check_scores(score, model)
        return ShardScores(
            score=score,
            as_of_ms=judged.as_of_ms,
            created_us=judged.created_us,
            state=judged.state,
            read_ms=(read - begun) * 1e3,
            build_ms=(built - read) * 1e3,
            infer_ms=(time.perf_counter() - built) * 1e3,
            explanation=self._explain(bundle, tuples, judged.blocks) if shard.explain else [],
        )

    def _explain(self, bundle: Bundle, tuples: InputTuples, blocks: TupleBlocks) -> list[Explanation]:
        neighbours = blocks.accounts.get(NEIGHBOUR_VIEW)
        return explain(bundle.info.inputs, tuples, bundle.score, bundle.ordinary(), neighbours)

    def _read(
        self, spec: InputSpec, transactions: TransactionColumns
    ) -> tuple[list[Sequence[bytes | None]], dict[EntityKey, str]]:
        """Rows in the order of row_requests, every key asked for once."""
        wanted = row_requests(spec, transactions)
        distinct = {view.entity: list(dict.fromkeys(keys)) for view, keys in wanted}
        found, pending = self._online.read_with_pending(
            [(view, distinct[view.entity]) for view, _ in wanted], [key for keys in distinct.values() for key in keys]
        )
        spread = {view.entity: _spread(distinct[view.entity], keys) for view, keys in wanted}
        return [spread[view.entity](group) for (view, _), group in zip(wanted, found, strict=True)], pending

    def _bundle(self, model: ModelRef) -> Bundle:
        key = (model.version, model.path)
        bundle = self._bundles.pop(key, None) or Bundle.load(Path(model.path))
        # The one used last stands last: the first goes when there are too many.
        self._bundles[key] = bundle
        while len(self._bundles) > MODELS_KEPT:
            del self._bundles[next(iter(self._bundles))]
        return bundle


def _spread(
    distinct: Sequence[EntityKey], keys: Sequence[EntityKey]
) -> Callable[[Sequence[bytes | None]], Sequence[bytes | None]]:
    """What turns values of the distinct keys into values of all keys."""
    if len(distinct) == len(keys):
        return lambda values: values
    place = {key: at for at, key in enumerate(distinct)}
    # With a single place itemgetter gives the value itself, not a tuple of one.
    places = [place[key] for key in keys]
    return itemgetter(*places) if len(places) > 1 else lambda values: [values[places[0]]]


def check_scores(scores: Float32, model: ModelRef) -> None:
    """Refuse a model that gives anything but probabilities."""
    if not bool(np.all((scores >= 0) & (scores <= 1))):
        raise ModelError(f"model {model.name} version {model.version} gives scores outside 0 to 1; promote another one")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Rows as the model gets them, and what was found about each; see ShardScores."""

    blocks: TupleBlocks
    as_of_ms: Int64
    created_us: Int64
    state: npt.NDArray[np.int8]


def judge(
    spec: InputSpec, shard: Shard, values: Sequence[Sequence[bytes | None]], pending: Mapping[EntityKey, str]
) -> Judged:
    """Apply DESIGN's rule of availability to every row (docs/rest-api.md, "Which rows a score rests on").

    A missing row of an event view is handed to the model as unknown (null), not as "nothing ever happened". That takes
    an override, or for a pair the payer's own rows: ingest marks an account and its pair together, and a mark goes only
    when the row is written, so where the payer's rows are all there and neither is marked, the pair never paid.
    """
    wanted = row_requests(spec, shard.transactions)
    event_ms = np.tile(shard.transactions.event_ms, 2)
    blocks: dict[str, RowBlock] = {}
    shape = (len(wanted), len(event_ms))
    as_of_ms, created_us = np.full(shape, ABSENT_MS, np.int64), np.full(shape, NO_CREATED, np.int64)
    state = np.zeros(shape, np.int8)
    # Row i of a pair is paid by the account in row i: sender to receiver first, then back.
    payer_known = np.ones(len(event_ms), np.bool_)
    for at, ((view, keys), stored) in enumerate(zip(wanted, values, strict=True)):
        given = shard.overrides.get(view.name, {})
        if given:
            stored = [given.get(row, value) for row, value in enumerate(stored)]
        block = of_encoder(RowBlock.from_packed(view, stored), spec.encoder)
        state[at] = _states(view, keys, block, event_ms, pending)
        if view.cadence is Cadence.EVENT:
            marked = _marked(keys, pending)
            if view.entity == "account":
                payer_known &= block.present & ~marked
            else:
                state[at, ~block.present & ~marked & payer_known] = 0
            if renewed := shard.complete.get(view.entity):
                state[at, [row for row in renewed if not block.present[row]]] = 0
            if given:
                # What was computed for this very payment speaks for its instant, whatever the store has.
                state[at, list(given)] = 0
        unknown = np.flatnonzero(state[at] == State.MISSING)
        if view.cadence is Cadence.EVENT and len(unknown):
            block = _as_unknown(block, unknown)
        used = block.present & (block.as_of_ms <= event_ms) & (state[at] != State.TOO_OLD)
        as_of_ms[at] = np.where(used, block.as_of_ms, ABSENT_MS)
        created_us[at] = np.where(used, block.created_us, NO_CREATED)
        blocks[view.name] = block
    return Judged(
        blocks=TupleBlocks(
            accounts={view.name: blocks[view.name] for view in spec.account_views},
            pairs={view.name: blocks[view.name] for view in spec.pair_views},
        ),
        as_of_ms=as_of_ms,
        created_us=created_us,
        state=state,
    )


def _states(
    view: ViewSchema,
    keys: Sequence[EntityKey],
    block: RowBlock,
    event_ms: Int64,
    pending: Mapping[EntityKey, str],
) -> npt.NDArray[np.int8]:
    """State of each row; later assignments matter more."""
    state = np.zeros(len(keys), np.int8)
    event = view.cadence is Cadence.EVENT
    if event:
        state[_marked(keys, pending)] = State.STALE
    if view.max_age_s is not None and not event:
        state[event_ms - block.as_of_ms > view.max_age_s * 1_000] = State.TOO_OLD
    state[block.as_of_ms > event_ms] = State.FUTURE
    state[~block.present] = State.MISSING
    return state


def _marked(keys: Sequence[EntityKey], pending: Mapping[EntityKey, str]) -> npt.NDArray[np.bool_]:
    if not pending:
        return np.zeros(len(keys), np.bool_)
    return np.fromiter((key in pending for key in keys), np.bool_, len(keys))


def _as_unknown(block: RowBlock, rows: Int64) -> RowBlock:
    """The block with `rows`, which are absent, as rows for the end of time: the tuple builder makes nulls of them."""
    as_of_ms, present = block.as_of_ms.copy(), block.present.copy()
    as_of_ms[rows] = NEVER_MS
    present[rows] = True
    return replace(block, present=present, columns=replace(block.columns, as_of_ms=as_of_ms))
