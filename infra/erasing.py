"""Where else an account may be: decision records, caches, files of rejected rows, logs of local servers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graph_features.backends import RECORDS_CACHE
from graph_features.erasure import Place, Proof
from graph_features.errors import RingfenceError
from graph_features.jobs.texts import whole_words
from graph_features.settings import PlatformSettings
from graph_features.sources.base import Traces
from infra.decision_logs import DecisionLogs
from training.history import DATASETS

if TYPE_CHECKING:
    from serving.decisions import DecisionLog


class ErasureError(RingfenceError):
    """Something of the account is left: the proof names the places. Run the same command again."""


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """The decision records."""

    log: DecisionLog
    name: str = "decision records"

    def count(self, traces: Traces) -> int:
        return self.log.count_account(traces.account_id, devices=traces.devices, cards=traces.cards)

    def erase(self, traces: Traces) -> None:
        self.log.erase_account(traces.account_id, devices=traces.devices, cards=traces.cards)


@dataclass(frozen=True, kw_only=True)
class RecordsCacheFiles:
    """Copies of the records on this machine; others drop theirs at the next read, as the records' identity is new."""

    folder: Path
    name: str = "files: cache of records"

    def count(self, traces: Traces) -> int:
        return sum(_speaking_rows(path, traces) for path in self._files() if path.suffix == ".arrow")

    def erase(self, traces: Traces) -> None:  # noqa: ARG002 - the next read makes it anew
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file() and path.name != "lock"]


@dataclass(frozen=True, kw_only=True)
class DatasetFiles:
    """Training datasets kept on this machine: all go, whoever is in them; the next training writes them anew."""

    folder: Path
    name: str = "files: datasets"

    def count(self, traces: Traces) -> int:
        return sum(_named_payments(path, traces) for path in self.folder.glob("*/*.parquet"))

    def erase(self, traces: Traces) -> None:  # noqa: ARG002 - features of others tell of the account too
        shutil.rmtree(self.folder, ignore_errors=True)


def _named_payments(path: Path, traces: Traces) -> int:
    """Payments of a dataset that the account sent, or took part in."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["sender_id", "transaction_id"], partitioning=None)
    sent = pc.equal(table["sender_id"], traces.account_id)
    among = pc.is_in(table["transaction_id"], value_set=pa.array(traces.transaction_ids, pa.string()))
    return int(pc.sum(pc.or_(sent, among)).as_py() or 0)


def _speaking_rows(path: Path, traces: Traces) -> int:
    """Rows of a cached table that name the account, one of its payments, devices or cards."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = {
        "sender_id": (traces.account_id,),
        "receiver_id": (traces.account_id,),
        "transaction_id": traces.transaction_ids,
        "device_id": traces.devices,
        "card_id": traces.cards,
    }
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
        hits = [
            pc.is_in(table[name], value_set=pa.array(values, pa.string())).to_numpy()
            for name, values in wanted.items()
            if name in table.column_names
        ]
    return int(sum(hits[1:], hits[0]).sum()) if hits else 0


@dataclass(frozen=True, kw_only=True)
class TextFiles:
    """Lines of text files: rejected rows, and logs of local servers."""

    name: str
    paths: tuple[Path, ...]

    def count(self, traces: Traces) -> int:
        return sum(len(self._lines(path, traces)[1]) for path in self.paths)

    def erase(self, traces: Traces) -> None:
        for path in self.paths:
            kept, gone = self._lines(path, traces)
            if gone:
                # In place: whoever has the file open to append goes on at its new end.
                with path.open("r+", encoding="utf-8", errors="surrogateescape", newline="") as file:
                    file.writelines(kept)
                    file.truncate()

    def _lines(self, path: Path, traces: Traces) -> tuple[list[str], list[str]]:
        pattern = whole_words((traces.account_id, *traces.devices, *traces.cards, *traces.transaction_ids))
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            lines = file.readlines()
        gone = [line for line in lines if pattern is not None and pattern.search(line)]
        return [line for line in lines if line not in set(gone)], gone


def places(platform: PlatformSettings, decisions: DecisionLog, rejects: Sequence[Path]) -> list[Place]:
    """Everything beside the stores and the ledger; `rejects` names files outside of RINGFENCE_HOME."""
    home = platform.home
    found = sorted({path.resolve() for path in (*home.rglob("*.rejects.csv"), *rejects)})
    return [
        Decisions(log=decisions),
        DecisionLogs(platform),
        RecordsCacheFiles(folder=home / RECORDS_CACHE),
        DatasetFiles(folder=home / DATASETS),
        TextFiles(name="files: rejected rows", paths=tuple(found)),
        TextFiles(name="files: logs", paths=tuple(_logs(home))),
    ]


def _logs(home: Path) -> Iterator[Path]:
    return (path for path in sorted(home.rglob("*.log")) if path.is_file())


def keep(proof: Proof, home: Path) -> Path:
    """Write a proof to RINGFENCE_HOME/erasures and return where; raise ErasureError if something is left."""
    folder = home / "erasures"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{proof.erased_at:%Y%m%dT%H%M%S}-{proof.salt}.json"
    path.write_text(json.dumps(proof.to_json(), indent=2) + "\n", encoding="utf-8")
    left = [finding.place for finding in proof.findings if finding.after]
    if left:
        raise ErasureError(f"something is left in {', '.join(left)} ({path}): run the same command again")
    return path
