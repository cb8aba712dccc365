"""Input tuples as one flat table, for models that know nothing of graphs: the ladder below the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from graph_features.input_spec import InputSpec
from graph_features.tuples import InputTuples

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

OWN_VIEWS: Final = ("account_activity", "account_behaviour", "account_exposure")
"""What an account's own payments and their labels tell. Everything else in the catalogue looks at other accounts."""

SENDER, RECEIVER = "sender_", "receiver_"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Named columns of B payments, float32 [B, len(names)]; NaN is null."""

    names: tuple[str, ...]
    x: Float32

    def beside(self, names: tuple[str, ...], x: Float32) -> Columns:
        """Return these columns and more."""
        return Columns(names=(*self.names, *names), x=np.concatenate([self.x, x], axis=1))


def columns(spec: InputSpec, tuples: InputTuples, *, graph: bool) -> Columns:
    """Lay tuples out as columns: what both parties' own payments tell; with `graph`, also what others' do.

    The graph's columns are those of pairs, of whole-graph views, and the mean of each neighbour column over the edges
    of each side.
    """
    account = np.array([graph or name.partition(":")[0] in OWN_VIEWS for name in spec.account], np.bool_)
    kept = np.flatnonzero(account)
    own = len(spec.request) + len(spec.history)
    payment = len(spec.transaction_names) if graph else own
    names = [f"{side}{spec.account[at]}" for side in (SENDER, RECEIVER) for at in kept]
    found = Columns(
        names=(*names, *spec.transaction_names[:payment]),
        x=np.concatenate(
            [tuples.sender_x[:, kept], tuples.receiver_x[:, kept], tuples.transaction_x[:, :payment]], axis=1
        ),
    )
    return found.beside(*_neighbour_means(spec, tuples)) if graph else found


def _neighbour_means(spec: InputSpec, tuples: InputTuples) -> tuple[tuple[str, ...], Float32]:
    """Mean over the edges of each side, NaN without any."""
    sides, width = 2 * len(tuples), len(spec.neighbour_names)
    first = tuples.first_edge
    count = np.diff(first)
    running = np.zeros((len(tuples.neighbour_x) + 1, width))
    np.cumsum(tuples.neighbour_x, axis=0, dtype=np.float64, out=running[1:])
    mean = np.full((sides, width), np.nan)
    some = count > 0
    mean[some] = (running[first[1:]] - running[first[:-1]])[some] / count[some, None]
    names = tuple(f"{side}{name}_mean" for side in (SENDER, RECEIVER) for name in spec.neighbour_names)
    return names, mean.reshape(2, len(tuples), width).transpose(1, 0, 2).reshape(len(tuples), -1).astype(np.float32)
