"""The network in two parts: an encoder that runs in batch, once per account, and a head that runs for each payment.

Shape suffixes as in training.model; D is EMBEDDING_SIZE.
"""

# ruff: noqa: N806 - the capitals in names are shape suffixes

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from graph_features.embeddings import EMBEDDING_SIZE
from graph_features.input_spec import EDGE_FEATURES
from graph_features.settings import TrainingSettings
from graph_features.tuples import InputTuples
from training.cuts import CutPoints
from training.model import Cuts, NeighbourConv, Network, PaymentNetwork, Scaler, encoder
from training.scaling import ColumnScaling

OTHER_PARTY = EDGE_FEATURES.index("is_other_party")
"""The one edge feature that speaks of a payment: in batch there is none, so the encoder never looks at it."""


class AccountEncoder(nn.Module):
    """Accounts and their neighbour edges to embeddings.

    `forward` takes account_x [A, F], neighbour_x [E, N] and neighbour_index int64 [E] (sorted), raw values with NaN for
    null, and returns [A, D], each component from -1 to 1.
    """

    seen: Tensor

    def __init__(self, account: ColumnScaling, neighbour: ColumnScaling, *, slots: int, settings: TrainingSettings):
        super().__init__()
        hidden = settings.hidden
        self.account_scaler = Scaler(len(account.mean), len(account.null_columns))
        self.neighbour_scaler = Scaler(len(neighbour.mean), len(neighbour.null_columns), with_log=False)
        self.account_scaler.load(account)
        self.neighbour_scaler.load(neighbour)
        self.account = encoder(len(account.mean) + len(account.null_columns), hidden, settings.dropout)
        self.neighbours = NeighbourConv(
            in_features=len(neighbour.mean) + len(neighbour.null_columns),
            hidden=hidden,
            heads=settings.heads,
            slots=slots,
        )
        self.out = nn.Linear(2 * hidden, EMBEDDING_SIZE)
        seen = torch.ones(len(neighbour.mean))
        seen[OTHER_PARTY] = 0.0
        self.register_buffer("seen", seen)

    def forward(self, account_x: Tensor, neighbour_x: Tensor, neighbour_index: Tensor) -> Tensor:
        centre_AH = self.account(self.account_scaler(account_x))
        around_AH = self.neighbours(self.neighbour_scaler(neighbour_x * self.seen), centre_AH, neighbour_index)
        return torch.tanh(self.out(torch.cat([centre_AH, around_AH], dim=1)))


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """What rebuilds the head; see ModelConfig."""

    account_features: int
    transaction_features: int
    account_nulls: int
    transaction_nulls: int
    hidden: int
    dropout: float
    transaction_cuts: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class HeadNetwork(PaymentNetwork):
    """Scores B payments from what is stored of both accounts and what the payment says; looks at no neighbour.

    Takes the inputs of FraudGnn, of which sender_x and receiver_x hold embeddings.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        hidden = config.hidden
        self.account_scaler = Scaler(config.account_features, config.account_nulls)
        self.transaction_scaler = Scaler(config.transaction_features, config.transaction_nulls)
        width = config.account_features + config.account_nulls
        self.sender = nn.Sequential(nn.Linear(width, hidden), nn.ReLU())
        self.receiver = nn.Sequential(nn.Linear(width, hidden), nn.ReLU())
        self.transaction_cuts = Cuts(config.transaction_cuts)
        inputs = config.transaction_features + config.transaction_nulls + config.transaction_cuts
        self.transaction = encoder(inputs, hidden, config.dropout)
        self.head = _head(3 * hidden, hidden, config.dropout)

    def logit(self, *inputs: Tensor) -> Tensor:
        sender_x, receiver_x, transaction_x, *_ = inputs
        joined = torch.cat(
            [
                self.sender(self.account_scaler(sender_x)),
                self.receiver(self.account_scaler(receiver_x)),
                self.transaction(self.transaction_cuts.beside(self.transaction_scaler(transaction_x), transaction_x)),
            ],
            dim=1,
        )
        out: Tensor = self.head(joined).squeeze(1)
        return out


class Towers(Network):
    """What the encoder is trained in: both accounts through the one encoder, and a head like the real one.

    Takes the inputs of FraudGnn. Of transaction_x only `columns` are used, those that the real head will have: what
    else a payment needs must be in the embeddings.
    """

    columns: Tensor

    def __init__(self, tuples: InputTuples, columns: list[int], *, slots: int, settings: TrainingSettings) -> None:
        super().__init__()
        account = ColumnScaling.measure(tuples.sender_x, tuples.receiver_x)
        neighbour = ColumnScaling.measure(tuples.neighbour_x, with_log=False)
        payment = ColumnScaling.measure(tuples.transaction_x[:, columns])
        self.encoder = AccountEncoder(account, neighbour, slots=slots, settings=settings)
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.int64))
        self.transaction_scaler = Scaler(len(payment.mean), len(payment.null_columns))
        self.transaction_scaler.load(payment)
        hidden = settings.hidden
        self.transaction = encoder(len(payment.mean) + len(payment.null_columns), hidden, settings.dropout)
        self.head = _head(2 * EMBEDDING_SIZE + hidden, hidden, settings.dropout)

    def logit(self, *inputs: Tensor) -> Tensor:
        sender_x, receiver_x, transaction_x, neighbour_x, neighbour_index = inputs
        batch = transaction_x.shape[0]
        both_AD = self.encoder(torch.cat([sender_x, receiver_x]), neighbour_x, neighbour_index)
        payment = self.transaction(self.transaction_scaler(torch.index_select(transaction_x, 1, self.columns)))
        out: Tensor = self.head(torch.cat([both_AD[:batch], both_AD[batch:], payment], dim=1)).squeeze(1)
        return out


def head_network(tuples: InputTuples, is_fraud: npt.NDArray[np.bool_], settings: TrainingSettings) -> HeadNetwork:
    """A head with its scaling measured, and its cut points found, on training rows."""
    cuts = CutPoints.find(tuples.transaction_x, is_fraud, most=settings.cut_points)
    account = ColumnScaling.measure(tuples.sender_x, tuples.receiver_x)
    payment = ColumnScaling.measure(tuples.transaction_x)
    model = HeadNetwork(
        HeadConfig(
            account_features=len(account.mean),
            transaction_features=len(payment.mean),
            account_nulls=len(account.null_columns),
            transaction_nulls=len(payment.null_columns),
            hidden=settings.hidden,
            dropout=settings.dropout,
            transaction_cuts=len(cuts),
        )
    )
    model.transaction_cuts.load(cuts)
    model.account_scaler.load(account)
    model.transaction_scaler.load(payment)
    return model


def _head(width: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, 2 * hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(2 * hidden, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, 1),
    )
