"""Computes account embeddings at given instants and stores them: what the job `embeddings` does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from graph_features.backends import open_offline, open_online
from graph_features.catalog import catalog
from graph_features.clock import created_timestamp
from graph_features.contracts import CREATED, TIMESTAMP
from graph_features.embeddings import EMBEDDING_SIZE, EMBEDDING_VIEWS
from graph_features.errors import ModelError, SchemaMismatchError
from graph_features.refresh import newest_rows
from graph_features.schema import ViewSchema
from graph_features.settings import FeatureSettings, PlatformSettings, TrainingSettings, load
from graph_features.sources.base import Records
from graph_features.stores.blocks import RowBlock
from graph_features.tuples import build_account_inputs
from training.bundle import read_info
from training.dataset import ROW
from training.encoder import Encoder, embedding_view
from training.history import History, open_history
from training.progress import Progress, no_progress
from training.registry import CHAMPION, PREVIOUS, Registry

if TYPE_CHECKING:
    import feast

log = logging.getLogger(__name__)

ACCOUNT_SERVICE = "account_features"
CHUNK_ROWS = 20_000


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Every account that ever paid or was paid, in order of its id, and when first (epoch ms)."""

    account_id: npt.NDArray[np.object_]
    first_ms: npt.NDArray[np.int64]
    max_seq: int

    @classmethod
    def of(cls, records: Records) -> Seen:
        transactions = records.transactions
        event_ms = transactions["event_timestamp"].cast(pa.int64()).to_numpy()
        both = np.concatenate([transactions["sender_id"].to_numpy(), transactions["receiver_id"].to_numpy()])
        account_id, code = np.unique(both.astype(object), return_inverse=True)
        first_ms = np.full(len(account_id), np.iinfo(np.int64).max)
        np.minimum.at(first_ms, code, np.tile(event_ms, 2))
        return cls(account_id=account_id, first_ms=first_ms, max_seq=records.max_seq)


def store_embeddings(
    platform: PlatformSettings,
    history: History,
    encoder: Encoder,
    view: ViewSchema,
    *,
    as_of_ms: Sequence[int],
    progress: Progress = no_progress,
) -> int:
    """Write the embeddings of every account seen by then, per instant, offline and online; return the rows written.

    Features are read through Feast's historical join, so they must have been backfilled. Online the newest row of an
    account wins. Raises SchemaMismatchError when the features are not those that the encoder was trained on.
    """
    _check(encoder)
    seen = Seen.of(history.records.read_all(before_ms=max(as_of_ms)))
    wanted = _wanted_rows(seen, sorted(as_of_ms))
    offline, online = open_offline(platform), open_online(platform)
    rows, total = 0, float(len(wanted))
    try:
        for slot in EMBEDDING_VIEWS.values():
            offline.create_view(slot)  # training reads both, whichever has rows
        for first in range(0, len(wanted), CHUNK_ROWS):
            progress(float(first), total, "embedding accounts")
            table = embedding_rows(history.store, encoder, view, wanted.slice(first, CHUNK_ROWS), seen.max_seq)
            part = f"embeddings-{encoder.info.id:x}-{min(as_of_ms)}-{max(as_of_ms)}-{first}"
            rows += offline.write(view, table, part=part)
            online.write(view, newest_rows(view, table))
        progress(total, total, "embedding accounts")
    finally:
        offline.close()
        online.close()
    return rows


def _wanted_rows(seen: Seen, as_of_ms: Sequence[int]) -> pa.Table:
    """account_id and event_timestamp: per account, oldest first, every instant before which it had been seen."""
    instants = np.array(as_of_ms, np.int64)
    account, instant = np.nonzero(seen.first_ms[:, None] < instants)
    return pa.table(
        {
            "account_id": pa.array(seen.account_id[account], pa.string()),
            "event_timestamp": pa.array(instants[instant]).cast(TIMESTAMP),
        }
    )


def embedding_rows(
    store: feast.FeatureStore, encoder: Encoder, view: ViewSchema, wanted: pa.Table, max_seq: int
) -> pa.Table:
    """Rows of `view` for (account_id, event_timestamp); what has no feature row by then is left out."""
    entities = wanted.to_pandas()
    entities[ROW] = np.arange(len(entities))
    service = store.get_feature_service(ACCOUNT_SERVICE)
    job = store.get_historical_features(entity_df=entities, features=service, full_feature_names=True)
    joined = job.to_arrow().sort_by(ROW)
    spec = encoder.info.inputs
    blocks = {one.name: RowBlock.from_arrow(one, joined, prefix=f"{one.name}__") for one in spec.account_views}
    rows = np.flatnonzero(np.any([block.present for block in blocks.values()], axis=0))
    if len(rows) == 0:
        raise ModelError(
            f"none of {len(wanted)} accounts (first: {wanted['account_id'][0]}) has a feature row by "
            f"{wanted['event_timestamp'][0]}: backfill features of that time first"
        )
    kept = wanted.take(pa.array(rows)).combine_chunks()
    instants = kept["event_timestamp"].cast(pa.int64()).to_numpy()
    nobody = np.full(len(rows), None, dtype=object)
    inputs = build_account_inputs(spec, instants, nobody, {name: block.take(rows) for name, block in blocks.items()})
    made = encoder.embed(inputs).astype(np.float64)
    columns = [
        kept["account_id"],
        kept["event_timestamp"],
        pa.repeat(pa.scalar(created_timestamp(max_seq), CREATED), len(rows)),
        pa.repeat(pa.scalar(encoder.info.id, pa.int64()), len(rows)),
        *(pa.array(np.ascontiguousarray(made[:, at])) for at in range(EMBEDDING_SIZE)),
    ]
    return view.check(pa.Table.from_arrays(columns, schema=view.arrow_schema))


def refresh_embeddings(
    platform: PlatformSettings,
    *,
    as_of_ms: Sequence[int],
    version: str | None = None,
    settings: TrainingSettings | None = None,
    progress: Progress = no_progress,
) -> dict[str, int]:
    """Store the embeddings of the models that want them; return rows written by model version.

    Without `version` those are the champion, and in the slot that it leaves the newest version or, if that has no
    encoder, the champion before, so that a promotion and a rollback each find their rows fresh. Models without an
    encoder want none.
    """
    settings = settings or load(TrainingSettings)
    registry = Registry.open(platform.home)
    name = settings.model_name
    wanted = _wanted(registry, name) if version is None else [version]
    taken: set[str] = set()
    written: dict[str, int] = {}
    with open_history(platform, settings) as history:
        for one in wanted:
            folder = registry.download(name, one)
            view = embedding_view(read_info(folder).inputs)
            if view is None or view.name in taken:
                continue
            taken.add(view.name)
            encoder = Encoder.load(folder)
            written[one] = store_embeddings(platform, history, encoder, view, as_of_ms=as_of_ms, progress=progress)
            log.info("version %s: %d embeddings in %s", one, written[one], view.name)
    return written


def free_slot(platform: PlatformSettings, settings: TrainingSettings, slots: Sequence[ViewSchema]) -> ViewSchema:
    """The view of embeddings that the champion does not read."""
    registry = Registry.open(platform.home)
    champion = registry.version_of(settings.model_name, CHAMPION)
    used = None
    if champion is not None:
        used = embedding_view(read_info(registry.download(settings.model_name, champion)).inputs)
    return next(view for view in slots if used is None or view.name != used.name)


def _wanted(registry: Registry, name: str) -> list[str]:
    champion = registry.version_of(name, CHAMPION)
    newest = [str(found.version) for found in registry.versions(name)[:1]]
    previous = None if champion is None else registry.tags(name, champion).get(PREVIOUS)
    named = [champion, *newest, previous]
    return list(dict.fromkeys(version for version in named if version))


def _check(encoder: Encoder) -> None:
    known, ref = encoder.info.inputs.feature_hash, encoder.info.ref
    present = catalog().feature_hash(ref.views, settings=load(FeatureSettings))
    if known != present:
        raise SchemaMismatchError(
            f"the encoder was trained on feature set {known}, there is {present} now: train a new model"
        )
