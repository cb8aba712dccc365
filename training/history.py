"""Opens what training reads: Feast, the record store, and the inputs that the catalogue stands for today."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graph_features.backends import open_offline, open_records
from graph_features.catalog import catalog
from graph_features.clock import from_ms
from graph_features.errors import ModelError
from graph_features.input_spec import InputSpec
from graph_features.neighbour_spec import NEIGHBOUR_PROFILE
from graph_features.schema import ViewSchema
from graph_features.settings import FeatureSettings, PlatformSettings, TrainingSettings, load
from graph_features.sources.base import RecordStore
from training.dataset import Dataset, dataset_parts, labelled_payments
from training.dataset_files import DatasetCache, DatasetKey
from training.progress import Progress, no_progress

if TYPE_CHECKING:
    import feast


DATASETS = "cache/datasets"
"""Below RINGFENCE_HOME; may be deleted at any time."""


@dataclass(frozen=True, kw_only=True)
class History:
    """Where labelled tuples of any period come from. With `datasets`, each is written to disk once and read from there.

    `row_state` tells of some views when the rows that features are read from have changed.
    """

    store: feast.FeatureStore
    records: RecordStore
    settings: TrainingSettings
    datasets: DatasetCache | None = None
    row_state: Callable[[Sequence[ViewSchema]], str] = repr

    def read(
        self,
        spec: InputSpec,
        *,
        start_ms: int,
        end_ms: int,
        label_cut_ms: int,
        name: str,
        progress: Progress = no_progress,
    ) -> Dataset:
        """Labelled tuples of a period, labels as of the cut (see `labelled_payments`), features of each payment's time.

        `name` says in the progress which one it is. Raises ModelError for a period without payments.
        """
        period = {"start_ms": start_ms, "end_ms": end_ms, "label_cut_ms": label_cut_ms}
        period["maturity_s"] = self.settings.label_maturity_s
        payments = labelled_payments(self.records, **period)
        if len(payments) == 0:
            raise ModelError(
                f"no labelled payments from {from_ms(start_ms):%Y-%m-%d %H:%M} to {from_ms(end_ms):%Y-%m-%d %H:%M} UTC "
                f"({payments.left_out} have no label yet): ingest data of that period, or move the label cut"
            )
        parts = dataset_parts(
            self.store,
            payments,
            spec=spec,
            chunk_rows=self.settings.chunk_rows,
            progress=lambda done, total, text: progress(done, total, f"{text} ({name})"),
        )
        if self.datasets is None:
            return Dataset.concat(list(parts))
        key = DatasetKey(
            feature_hash=spec.feature_hash,
            spec_hash=hashlib.sha256(json.dumps(spec.to_json(), sort_keys=True, default=str).encode()).hexdigest(),
            payments=payments.digest(),
            rows=hashlib.sha256(self.row_state(spec.views).encode()).hexdigest(),
            **period,
        )
        return self.datasets.get(key, parts).read()


@contextmanager
def open_history(platform: PlatformSettings, settings: TrainingSettings) -> Iterator[History]:
    """Open the active profile's feature store, records and cache of datasets, and close them after."""
    from feature_repo import open_store

    records, offline = open_records(platform), open_offline(platform)
    cache = None
    if settings.dataset_cache_mb:
        cache = DatasetCache(platform.home / DATASETS, most_bytes=settings.dataset_cache_mb * 1_000_000)
    try:
        yield History(
            store=open_store(platform), records=records, settings=settings, datasets=cache, row_state=offline.state
        )
    finally:
        offline.close()
        records.close()


def current_spec(settings: TrainingSettings) -> InputSpec:
    """Inputs over every view of the catalogue as it is now."""
    views, constants = catalog(), load(FeatureSettings)
    return InputSpec.derive(
        views.schemas.values(),
        feature_hash=views.feature_hash(settings=constants),
        profile=NEIGHBOUR_PROFILE,
        neighbours=settings.neighbours,
        base_exponent=constants.base_exponent,
    )
