"""Opens what training reads: Feast, the record store, and the inputs that the catalogue stands for today."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graph_features.backends import open_records
from graph_features.catalog import catalog
from graph_features.input_spec import InputSpec
from graph_features.neighbour_spec import NEIGHBOUR_PROFILE
from graph_features.settings import FeatureSettings, PlatformSettings, TrainingSettings, load
from graph_features.sources.base import RecordStore
from training.dataset import Dataset, build_dataset
from training.progress import Progress, no_progress

if TYPE_CHECKING:
    import feast


@dataclass(frozen=True, kw_only=True)
class History:
    """Where labelled tuples of any period come from."""

    store: feast.FeatureStore
    records: RecordStore
    settings: TrainingSettings

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
        """Labelled tuples of a period; `name` says in the progress which one it is. See `build_dataset`."""
        return build_dataset(
            self.store,
            self.records,
            spec=spec,
            start_ms=start_ms,
            end_ms=end_ms,
            label_cut_ms=label_cut_ms,
            maturity_s=self.settings.label_maturity_s,
            chunk_rows=self.settings.chunk_rows,
            progress=lambda done, total, text: progress(done, total, f"{text} ({name})"),
        )


@contextmanager
def open_history(platform: PlatformSettings, settings: TrainingSettings) -> Iterator[History]:
    """Open the active profile's feature store and records, and close them after."""
    from feature_repo import open_store

    records = open_records(platform)
    try:
        yield History(store=open_store(platform), records=records, settings=settings)
    finally:
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
