"""Account embeddings: what a model's first layers make of an account and its neighbourhood, stored as rows of a view.

There are two views, so that a challenger's embeddings can be written while the champion's stay in use. Each row says
which encoder made it, and a model takes only rows of its own encoder: a row of any other counts as absent.
Source: Lu et al., "BRIGHT: Graph Neural Networks in Real-Time Fraud Detection", 2022 (arXiv 2205.13084).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Final

from graph_features.errors import SchemaMismatchError
from graph_features.schema import Cadence, DType, FeatureSchema, ViewSchema
from graph_features.stores.blocks import RowBlock

EMBEDDING_SIZE: Final = 32
ENCODER_ID: Final = "encoder_id"
SLOTS: Final = ("blue", "green")
MAX_AGE_S: Final = 3 * 86_400


def _view(slot: str) -> ViewSchema:
    name = f"account_embeddings_{slot}"
    numbers = tuple(
        FeatureSchema(
            name=f"embedding_{at:02d}",
            dtype=DType.FLOAT64,
            description=f"Component {at} of the account's embedding.",
            unit="none",
            range="-1 to 1",
        )
        for at in range(EMBEDDING_SIZE)
    )
    # No input of a model: derive() leaves out what only names something.
    maker = FeatureSchema(
        name=ENCODER_ID, dtype=DType.INT64, description="Which encoder made the row.", unit="id", range="0 or more"
    )
    return ViewSchema(
        name=name,
        entity="account",
        cadence=Cadence.SLICE,
        description=f"What a model's encoder makes of the account and its neighbourhood; {slot} of two slots.",
        features=(maker, *numbers),
        max_age_s=MAX_AGE_S,
        code_hash=hashlib.sha256(f"{name} {EMBEDDING_SIZE} 1".encode()).hexdigest()[:16],
    )


EMBEDDING_VIEWS: Final = {view.name: view for view in map(_view, SLOTS)}
"""By name. They are in Feast and in every store, but not in the catalogue: no feature function computes them."""


@dataclass(frozen=True, kw_only=True)
class EncoderRef:
    """The encoder whose rows a model takes: its id (a hash of its weights), and the views that it reads itself."""

    id: int
    views: tuple[str, ...]


def of_encoder(block: RowBlock, encoder: EncoderRef | None) -> RowBlock:
    """The block with every row of another encoder absent; blocks of other views come back as they are.

    Raises SchemaMismatchError for embeddings that are to be read without naming an encoder.
    """
    if block.view.name not in EMBEDDING_VIEWS:
        return block
    if encoder is None:
        raise SchemaMismatchError(f"a model that reads {block.view.name} names the encoder whose rows it takes")
    made_by, known = block.int64(ENCODER_ID)
    return replace(block, present=block.present & known & (made_by == encoder.id))
