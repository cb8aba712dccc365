"""An EdgeTable as Arrow files in a folder, so that worker processes map it instead of receiving a copy."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from graph_features.edges import Changes, EdgeTable

_EDGE_COLUMNS = (
    "ts_ms",
    "sender",
    "receiver",
    "amount",
    "channel",
    "sender_country",
    "receiver_country",
    "device",
    "card",
    "ip",
    "seq",
)
_CHANGE_COLUMNS = ("edge", "ts_ms", "value", "seq")
_FACTS = b"ringfence"


def save_edges(edges: EdgeTable, folder: Path) -> None:
    """Write `edges` to a folder that must not exist; it appears complete or not at all."""
    building = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.building")
    building.mkdir(parents=True)
    try:
        facts = {"channels": edges.channels, "countries": edges.countries, "max_seq": edges.max_seq}
        accounts = pa.table({"account_id": pa.array(edges.account_ids, pa.string())})
        _write(building / "accounts.arrow", accounts.replace_schema_metadata({_FACTS: json.dumps(facts).encode()}))
        _write(building / "payments.arrow", pa.table({name: getattr(edges, name) for name in _EDGE_COLUMNS}))
        for name, changes in (("statuses", edges.statuses), ("labels", edges.labels)):
            columns = {column: getattr(changes, column) for column in _CHANGE_COLUMNS}
            _write(building / f"{name}.arrow", pa.table(columns))
        os.rename(building, folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def load_edges(folder: Path) -> EdgeTable:
    """Map what `save_edges` wrote; the columns are read-only."""
    accounts, payments = _read(folder / "accounts.arrow"), _read(folder / "payments.arrow")
    facts = json.loads(accounts.schema.metadata[_FACTS])
    columns: dict[str, Any] = {name: _column(payments, name) for name in _EDGE_COLUMNS}
    return EdgeTable(
        account_ids=accounts["account_id"].to_numpy(),
        statuses=_changes(folder / "statuses.arrow"),
        labels=_changes(folder / "labels.arrow"),
        channels=tuple(facts["channels"]),
        countries=tuple(facts["countries"]),
        max_seq=facts["max_seq"],
        **columns,
    )


def _changes(path: Path) -> Changes:
    table = _read(path)
    return Changes(**{name: _column(table, name) for name in _CHANGE_COLUMNS})


def _column(table: pa.Table, name: str) -> npt.NDArray[Any]:
    column = table[name]
    if column.num_chunks == 1:
        return column.chunk(0).to_numpy(zero_copy_only=True)  # type: ignore[no-any-return]
    return column.to_numpy()  # type: ignore[no-any-return]


def _write(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        # One batch, so that every column comes back as one mapped array.
        writer.write_table(table, max_chunksize=max(table.num_rows, 1))


def _read(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
