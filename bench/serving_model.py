"""Registers a model over the whole catalogue in MLflow: `python -m bench.serving_model SEED [ALIAS]`.

The network has the size that the settings give a trained one, and random weights: what is measured is serving, not what
it has learnt. An empty alias leaves every alias where it is.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from graph_features.settings import PlatformSettings, TrainingSettings, load
from graph_features.tuples import TransactionColumns, TupleBlocks, build_tuples
from training.bundle import BundleInfo
from training.export import write_bundle
from training.history import current_spec
from training.model import FraudGnn, ModelConfig
from training.registry import CHAMPION, Registry


def register(seed: int, alias: str, scratch: Path) -> str:
    """Write the bundle, log it and point the alias, if there is one, to it; return its version."""
    settings = TrainingSettings()
    spec = current_spec(settings)
    payments = TransactionColumns.from_mapping(
        {
            "event_timestamp": np.array([1_700_000_000_000, 1_700_000_001_000]),
            "sender_id": ["a", "b"],
            "receiver_id": ["b", "c"],
            "amount_base": np.array([1000, 2000]),
        }
    )
    blocks = TupleBlocks.from_packed(spec, [[None] * 4 for _ in spec.views])
    torch.manual_seed(seed)
    config = ModelConfig(
        account_features=len(spec.account),
        transaction_features=len(spec.transaction_names),
        neighbour_features=len(spec.neighbour_names),
        account_nulls=0,
        transaction_nulls=0,
        neighbour_nulls=0,
        neighbours=spec.neighbours,
        hidden=settings.hidden,
        heads=settings.heads,
        sender_cuts=settings.cut_points,
        receiver_cuts=settings.cut_points,
        transaction_cuts=settings.cut_points,
    )
    info = BundleInfo(
        inputs=spec,
        model=config.to_json(),
        threshold=0.5,
        calibration={"scale": 1.0, "shift": 0.0},
        git_revision="",
        seed=seed,
    )
    bundle = write_bundle(scratch / "bundle", FraudGnn(config), info, build_tuples(spec, payments, blocks))
    registry = Registry.open(load(PlatformSettings).home)
    _, version = registry.log(
        bundle, experiment="ringfence", name="ringfence", parameters={}, metrics={}, history={}, plots={}
    )
    if alias:
        registry.set_alias("ringfence", alias, version)
    return version


def main() -> None:
    """Register one model."""
    alias = sys.argv[2] if len(sys.argv) > 2 else CHAMPION
    with tempfile.TemporaryDirectory() as scratch:
        version = register(int(sys.argv[1]), alias, Path(scratch))
    sys.stdout.write(f"{version}\n")


if __name__ == "__main__":
    main()
