"""A backfill of event rows by partition, on Ray and in processes, against the whole graph in one process.

What is measured is what a worker does to its chunks: map or read the records, build indexes, compute every row of every
event view in the last days. Rows are counted and checked against each other, and not stored: stores have their own
benchmarks.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import pyarrow as pa

from bench.features_data import Payments
from bench.report import Figure
from bench.timing import note
from graph_features.catalog import catalog
from graph_features.clock import DAY_MS
from graph_features.drivers.batch import event_rows
from graph_features.edge_files import load_edges, save_edges
from graph_features.edges import EdgeTable
from graph_features.executor import Executor, ProcessPool, open_executor
from graph_features.jobs.work import accounts_of
from graph_features.partitions import PartitionedEdges
from graph_features.settings import ExecutorSettings, FeatureSettings
from graph_features.sources.base import Records

KINDS = ("transactions", "statuses", "labels")
MEMORY_GOAL = 3.0
EFFICIENCY_GOAL = 0.8
MB = 1_000_000


@dataclass(frozen=True, kw_only=True)
class MappedRecords:
    """A record store whose cache is warm: tables that are mapped from files."""

    folder: Path

    def read_all(self, *, before_ms: int | None = None, max_seq: int | None = None) -> Records:  # noqa: ARG002
        tables = {
            kind: pa.ipc.open_file(pa.memory_map(str(self.folder / f"{kind}.arrow"))).read_all() for kind in KINDS
        }
        newest = max(int(table["seq"].to_numpy()[-1]) for table in tables.values() if table.num_rows)
        return Records(**tables, max_seq=newest)

    @classmethod
    def write(cls, payments: Payments, folder: Path) -> MappedRecords:
        for kind in KINDS:
            table: pa.Table = getattr(payments, kind)
            with pa.OSFile(str(folder / f"{kind}.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table.combine_chunks(), max_chunksize=max(table.num_rows, 1))
        return cls(folder=folder)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A partition of a job, or all of it, that any process of this machine can compute."""

    records: Path
    files: Path | None
    partition: int
    partitions: int
    from_ms: int
    to_ms: int


@dataclass(frozen=True, kw_only=True)
class Done:
    """Rows by view, and the most memory of its own that the process held meanwhile."""

    rows: dict[str, int]
    peak_mb: float


def compute(piece: Piece) -> Done:
    """Compute every event row of a piece."""
    with own_memory() as peak:
        if piece.files is None:
            found = MappedRecords(folder=piece.records).read_all()
            edges = EdgeTable.from_arrow(found.transactions, found.statuses, found.labels, max_seq=found.max_seq)
            del found
            accounts = None
        else:
            edges = PartitionedEdges(folder=piece.files, partitions=piece.partitions).edges(piece.partition)
            accounts = accounts_of(edges, piece.partition, piece.partitions)
        rows = {}
        for view in catalog().event_views():
            tables = event_rows(
                view, edges, from_ms=piece.from_ms, to_ms=piece.to_ms, settings=FeatureSettings(), accounts=accounts
            )
            rows[view.name] = sum(table.num_rows for table in tables)
    return Done(rows=rows, peak_mb=peak.mb)


class own_memory(threading.Thread):  # noqa: N801  a context manager, used as a function
    """Samples what this process holds for itself: files that it maps are every worker's, and can be dropped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mb = 0.0
        self._done = threading.Event()

    def __enter__(self) -> own_memory:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        while not self._done.wait(0.1):
            held = re.search(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
            assert held is not None, "Linux tells it since 4.5"
            self.mb = max(self.mb, int(held[1]) * 1_024 / MB)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What all pieces of one way of doing it took."""

    seconds: float
    rows: dict[str, int]
    peak_mb: float


def run(executor: Executor, pieces: list[Piece]) -> Run:
    """Do the pieces; `peak_mb` is that of the largest worker."""
    started = perf_counter()
    done = [result.get() for result in executor.map(compute, pieces)]
    seconds = perf_counter() - started
    rows = {view: sum(one.rows[view] for one in done) for view in done[0].rows}
    return Run(seconds=seconds, rows=rows, peak_mb=max(one.peak_mb for one in done))


def prepared(folder: Path, records: Path, partitions: int) -> tuple[float, float]:
    """Make the files of the partitions in a process of its own; return its seconds and peak memory."""
    command = [sys.executable, "-m", "bench.scale_backfill", str(folder), str(records), str(partitions)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    spent, peak = json.loads(done.stdout.splitlines()[-1])
    return float(spent), float(peak)


def figures(settings: ExecutorSettings, payments: Payments, *, partitions: int, days: int) -> list[Figure]:
    """Measure preparation, the whole, partitions one at a time and two at a time."""
    with TemporaryDirectory(prefix="ringfence-scale-") as name:
        folder = Path(name)
        (folder / "records").mkdir()
        records = MappedRecords.write(payments, folder / "records").folder
        period = (payments.end_ms - days * DAY_MS, payments.end_ms)
        whole = [_piece(records, None, 0, 1, period)]
        pieces = [_piece(records, folder / "job", at, partitions, period) for at in range(partitions)]
        cut_s, cut_mb = prepared(folder / "job", records, partitions)
        note(f"  {partitions} partitions prepared in {cut_s:.1f} s, {cut_mb:.0f} MB")
        runs: dict[str, Run] = {}
        for label, executor, work in _ways(settings, whole, pieces):
            _warm(executor)
            runs[label] = run(executor, work)
            executor.close()
            note(f"  {label}: {runs[label].seconds:.1f} s, {runs[label].peak_mb:.0f} MB")
            if runs[label].rows != runs["whole"].rows:
                raise AssertionError(f"{label}: {runs[label].rows} rows, the whole graph gives {runs['whole'].rows}")
    conditions = f"{payments.conditions}; rows of the last {days} days: {sum(runs['whole'].rows.values()):,}"
    return _told(runs, cut_s, cut_mb, partitions, conditions)


def _ways(
    settings: ExecutorSettings, whole: list[Piece], pieces: list[Piece]
) -> Iterator[tuple[str, Executor, list[Piece]]]:
    yield "whole", ProcessPool(1), whole
    yield "processes 1", ProcessPool(1), pieces
    yield "processes 2", ProcessPool(2), pieces
    yield "ray 1", open_executor(1, settings), pieces
    yield "ray 2", open_executor(2, settings), pieces


def _warm(executor: Executor) -> None:
    """Have every worker up, with its kernels loaded, before the clock runs."""
    list(executor.map(_compiled, range(4 * executor.workers)))


def _compiled(_: int) -> None:
    from bench.features_catalogue import compile_kernels

    compile_kernels()


def _piece(records: Path, files: Path | None, partition: int, partitions: int, period: tuple[int, int]) -> Piece:
    return Piece(
        records=records,
        files=files,
        partition=partition,
        partitions=partitions,
        from_ms=period[0],
        to_ms=period[1],
    )


def _told(runs: dict[str, Run], cut_s: float, cut_mb: float, partitions: int, conditions: str) -> list[Figure]:
    whole, by_two, on_ray = runs["whole"], runs["processes 2"], runs["ray 2"]
    return [
        Figure(name=f"cutting into {partitions} partitions", value=cut_s, unit="s", conditions=conditions),
        Figure(name=f"cutting into {partitions} partitions: peak memory", value=cut_mb, unit="MB"),
        Figure(
            name="backfill by partition on Ray, 2 workers",
            value=on_ray.seconds,
            unit="s",
            peer="the whole in 1 process",
            peer_value=whole.seconds,
            conditions=conditions,
        ),
        Figure(
            name="backfill by partition on Ray, peak memory of a worker",
            value=on_ray.peak_mb,
            unit="MB",
            peer="the whole in 1 process",
            peer_value=whole.peak_mb,
            goal=MEMORY_GOAL,
            goal_on="ratio",
        ),
        Figure(
            name="backfill by partition on Ray, 2 workers",
            value=on_ray.seconds,
            unit="s",
            peer="process pool, 2 workers",
            peer_value=by_two.seconds,
        ),
        *(
            Figure(
                name=f"efficiency from one to two workers, {label}",
                value=runs[f"{label} 1"].seconds / runs[f"{label} 2"].seconds / 2,
                unit="share",
                better="higher",
                goal=EFFICIENCY_GOAL,
            )
            for label in ("ray", "processes")
        ),
    ]


def sharing(settings: ExecutorSettings, payments: Payments) -> list[Figure]:
    """A table of all payments in a worker: from mapped files against from Ray's object store."""
    from graph_features.ray_cluster import connect

    ray = connect(settings)
    with TemporaryDirectory(prefix="ringfence-scale-") as name:
        edges, folder = payments.edges(), Path(name) / "edges"
        started = perf_counter()
        save_edges(edges, folder)
        saved_s = perf_counter() - started
        started = perf_counter()
        reference = ray.put(
            {column: getattr(edges, column) for column in ("ts_ms", "sender", "receiver", "amount", "seq")}
        )
        put_s = perf_counter() - started
        task = ray.remote(_first_use)
        mapped_s, stored_s = (
            min(ray.get([task.remote(str(folder), held) for _ in range(6)])) for held in (None, [reference])
        )
        del reference
    return [
        Figure(
            name="edges for the workers of a node: writing files",
            value=saved_s,
            unit="s",
            peer="Ray's object store, five of the columns",
            peer_value=put_s,
            conditions=payments.conditions,
        ),
        Figure(
            name="edges for the workers of a node: first use in a task",
            value=mapped_s * 1e3,
            unit="ms",
            peer="Ray's object store, five of the columns",
            peer_value=stored_s * 1e3,
        ),
    ]


def _first_use(folder: str, held: list[Any] | None) -> float:
    import ray

    started = perf_counter()
    if held is None:
        edges = load_edges(Path(folder))
        total = int(edges.amount.sum() + edges.sender.sum())
    else:
        columns = ray.get(held[0])
        total = int(columns["amount"].sum() + columns["sender"].sum())
    assert total > 0
    return perf_counter() - started


def main() -> None:
    """Cut records into partitions, and say what it took: the process that is measured."""
    folder, records, partitions = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    with own_memory() as peak:
        started = perf_counter()
        store = MappedRecords(folder=records)
        newest = store.read_all().max_seq
        files = PartitionedEdges(folder=folder, partitions=partitions)
        files.prepare(store, before_ms=2**60, max_seq=newest)  # type: ignore[arg-type]
        spent = perf_counter() - started
    print(json.dumps([spent, peak.mb]))


if __name__ == "__main__":
    main()
