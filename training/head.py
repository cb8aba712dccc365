"""Trains a model in two parts: an encoder that embeds accounts in batch, and a head that runs on what is stored.

The encoder is trained together with a head of its own on fresh features. The head that counts is then trained on stored
embeddings, read through Feast as they were known at each payment: as old as they will be in service.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np

from graph_features.catalog import catalog
from graph_features.clock import DAY_MS
from graph_features.embeddings import EMBEDDING_VIEWS, EncoderRef
from graph_features.input_spec import InputSpec
from graph_features.settings import FeatureSettings, PlatformSettings, TrainingSettings, load
from graph_features.tuples import AccountInputs, InputTuples
from training.candidate import make_candidate, tested
from training.dataset import Dataset
from training.embed import free_slot, store_embeddings
from training.encoder import ENCODER_ONNX, ENCODER_PT2, ENCODER_SPEC, Encoder
from training.evaluate import Protocol
from training.history import current_spec, open_history
from training.keep import store_candidate
from training.periods import Periods
from training.progress import Progress, no_progress
from training.registry import Registry
from training.train import TrainReport, read_periods

log = logging.getLogger(__name__)

REAL_TIME_VIEWS = ("pair_history",)
"""What the head reads beside embeddings: of the pair, since no embedding of one account knows about the other."""

SAMPLE = 256


def train_head(
    platform: PlatformSettings,
    *,
    train_from: datetime,
    train_to: datetime,
    validation_from: datetime | None = None,
    test_from: datetime | None = None,
    test_to: datetime | None = None,
    label_cut: datetime | None = None,
    protocol: Protocol = "all",
    views: Sequence[str] = REAL_TIME_VIEWS,
    every_ms: int = DAY_MS,
    register: bool = True,
    settings: TrainingSettings | None = None,
    progress: Progress = no_progress,
) -> TrainReport:
    """Train encoder and head on [train_from, train_to), store embeddings of the whole time, test and register.

    `views` are what the head reads beside embeddings. Embeddings are stored at every multiple of `every_ms` since 1970
    up to the last record, in the slot that the champion does not use. Periods and errors as in
    `training.train.train_model`.
    """
    settings = settings or load(TrainingSettings)
    periods = Periods.plan(
        train_from=train_from,
        train_to=train_to,
        validation_from=validation_from,
        label_cut=label_cut,
        test_from=test_from,
        test_to=test_to,
        settings=settings,
    )
    slot = free_slot(platform, settings, tuple(EMBEDDING_VIEWS.values()))
    full = account_spec(settings)
    with tempfile.TemporaryDirectory(prefix="ringfence-head-") as place:
        scratch = Path(place)
        known, _ = read_periods(
            platform, full, replace(periods, test_to=periods.test_from), protocol, settings, progress
        )
        blank = head_spec(settings, slot.name, views, EncoderRef(id=0, views=()))
        encoder = make_encoder(scratch, known, periods, full, blank, settings, progress)
        spec = head_spec(settings, slot.name, views, encoder.info.ref)
        with open_history(platform, settings) as history:
            instants = _instants(periods, history.records.event_range_ms(), every_ms)
            store_embeddings(platform, history, encoder, slot, as_of_ms=instants, progress=progress)
        known, test = read_periods(platform, spec, periods, protocol, settings, progress)
        candidate = make_candidate(known, periods, spec, settings, scratch, progress)
        for name in (ENCODER_ONNX, ENCODER_PT2, ENCODER_SPEC):
            shutil.copy(scratch / name, candidate.bundle.path / name)
        candidate, result = tested(candidate, test)
        run_id, version, path = store_candidate(platform, candidate, known, test, periods, settings, register, scratch)
    if version is not None:
        tags = {"ringfence.encoder": f"{encoder.info.id:x}", "ringfence.embeddings": slot.name}
        Registry.open(platform.home).tag(settings.model_name, version, tags)
    return TrainReport.of(periods, path, run_id, version, known, candidate, result)


def account_spec(settings: TrainingSettings) -> InputSpec:
    """What the encoder reads: the account views of today's catalogue, and of a payment what Feast joins beside them."""
    spec = current_spec(settings)
    names = [view.name for view in spec.account_views]
    # Embeddings know nothing of pairs: whatever changes there leaves the encoder as good as it was.
    return replace(spec, feature_hash=catalog().feature_hash(names, settings=load(FeatureSettings)))


def head_spec(settings: TrainingSettings, slot: str, views: Sequence[str], encoder: EncoderRef) -> InputSpec:
    """What the head reads: embeddings of both accounts, the payment, and `views`."""
    known, constants = catalog(), load(FeatureSettings)
    wanted = [EMBEDDING_VIEWS[slot], *(known.schema(name) for name in views)]
    hashed = dict.fromkeys((*(view.name for view in wanted), *encoder.views))
    return InputSpec.derive(
        wanted,
        feature_hash=known.feature_hash(list(hashed), settings=constants),
        profile=(),
        neighbours=settings.neighbours,
        base_exponent=constants.base_exponent,
        encoder=encoder,
    )


def make_encoder(
    folder: Path,
    known: Dataset,
    periods: Periods,
    full: InputSpec,
    head: InputSpec,
    settings: TrainingSettings,
    progress: Progress,
) -> Encoder:
    """Train an encoder with early stopping on the validation rows, and export it into `folder`."""
    from training.export import export_encoder
    from training.fit import fit_network
    from training.towers import Towers

    train = known.between(periods.train_from, periods.validation_from)
    held_out = known.between(periods.validation_from, periods.train_to)
    columns = [full.transaction_names.index(name) for name in head.transaction_names]
    fitted = fit_network(
        lambda: Towers(train.tuples, columns, slots=full.neighbours, settings=settings),
        (train.tuples, train.is_fraud),
        (held_out.tuples, held_out.is_fraud),
        settings,
        progress=progress,
    )
    sample = accounts_of(known.tuples.take(np.arange(min(SAMPLE, len(known)))))
    return export_encoder(folder, fitted.model.encoder, full, sample)


def accounts_of(tuples: InputTuples) -> AccountInputs:
    """Senders, then receivers, of payments as accounts of their own; at least two edges, as tracing needs."""
    from training.export import traceable

    tuples = traceable(tuples)
    return AccountInputs(
        account_x=np.concatenate([tuples.sender_x, tuples.receiver_x]),
        neighbour_x=tuples.neighbour_x,
        neighbour_index=tuples.neighbour_index,
    )


def _instants(periods: Periods, records_ms: tuple[int, int] | None, every_ms: int) -> list[int]:
    """Multiples of `every_ms` from the last one before training to the last one before the newest record."""
    last_ms = max(periods.train_to, periods.test_to, 0 if records_ms is None else records_ms[1] + 1)
    return list(range(periods.train_from // every_ms * every_ms, last_ms, every_ms))
