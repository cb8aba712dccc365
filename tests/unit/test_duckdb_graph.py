"""What is particular to the embedded graph: segments, the manifest, several processes."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_features.clock import NEVER_MS
from graph_features.contracts import STORED_TRANSACTION_SCHEMA
from graph_features.errors import StoreUnavailableError
from graph_features.sources import segments
from graph_features.sources.checksum import bucket_checksums
from graph_features.sources.duckdb import DuckdbGraph
from graph_features.sources.segments import (
    LARGEST_SEGMENT_ROWS,
    MERGE_WIDTH,
    SMALLEST_CLASS_ROWS,
    Manifest,
    Segment,
    SegmentFolder,
    segments_to_merge,
)

# Writes payments 1, 2, 3, … in batches of one to seven until it is killed; a batch's size follows from its start.
ENDLESS_WRITER = """
import sys
from pathlib import Path
import pyarrow as pa
from graph_features.contracts import STORED_TRANSACTION_SCHEMA
from graph_features.sources.duckdb import DuckdbGraph

def batch(first, rows):
    seqs = range(first, first + rows)
    columns = {
        "seq": list(seqs), "transaction_id": [f"t{i:06d}" for i in seqs], "event_timestamp": [i * 10 for i in seqs],
        "sender_id": [f"a{i % 13}" for i in seqs], "receiver_id": [f"b{i % 7}" for i in seqs],
        "amount": [i for i in seqs], "currency": ["EUR"] * rows, "amount_base": [i for i in seqs],
    }
    empty = [None] * rows
    return pa.RecordBatch.from_pydict(
        {field.name: pa.array(columns.get(field.name, empty)).cast(field.type) for field in STORED_TRANSACTION_SCHEMA},
        schema=STORED_TRANSACTION_SCHEMA,
    )

graph = DuckdbGraph(Path(sys.argv[1]))
graph.create_schema()
while True:
    first = graph.watermark() + 1
    rows = 1 + first % 7
    graph.write_edges(batch(first, rows), watermark=first + rows - 1)
"""


def payments(first_seq: int, rows: int) -> pa.RecordBatch:
    """Payments with consecutive sequence numbers, a second apart."""
    seqs = np.arange(first_seq, first_seq + rows)
    columns = {field.name: pa.nulls(rows, field.type) for field in STORED_TRANSACTION_SCHEMA}
    columns["seq"] = pa.array(seqs)
    columns["transaction_id"] = pa.array([f"t{seq:06d}" for seq in seqs])
    columns["event_timestamp"] = pa.array(seqs * 1_000).cast(STORED_TRANSACTION_SCHEMA.field("event_timestamp").type)
    columns["sender_id"] = pa.array([f"a{seq % 11}" for seq in seqs])
    columns["receiver_id"] = pa.array([f"b{seq % 5}" for seq in seqs])
    columns["currency"] = pa.array(["EUR"] * rows)
    columns["amount"] = columns["amount_base"] = pa.array(seqs)
    return pa.RecordBatch.from_pydict(columns, schema=STORED_TRANSACTION_SCHEMA)


def endless_writer(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", ENDLESS_WRITER, str(folder)])


def wait_for(graph: DuckdbGraph, watermark: int) -> None:
    deadline = time.monotonic() + 60
    while graph.watermark() < watermark:
        assert time.monotonic() < deadline, f"still at {graph.watermark()}"
        time.sleep(0.005)


def test_many_small_writes_leave_few_segments(tmp_path: Path) -> None:
    """Segments are merged as they come; nothing is lost by it."""
    graph = DuckdbGraph(tmp_path)
    for first in range(1, 301, 3):
        graph.write_edges(payments(first, 3), watermark=first + 2)
    assert len(SegmentFolder(tmp_path).manifest().segments) < MERGE_WIDTH
    assert graph.checksum() == bucket_checksums(pa.Table.from_batches([payments(1, 300)]))
    assert graph.neighbours(["a3"], before_ms=NEVER_MS, limit=2) == {"a3": ["b0", "b4"]}


@given(st.lists(st.integers(1, 3 * LARGEST_SEGMENT_ROWS // 2), max_size=400))
def test_merging_keeps_order_rows_and_bounds(sizes: list[int]) -> None:
    """However large the writes are, merged segments stay in order, whole, below the limit and few."""
    held: list[Segment] = []
    written, merged_rows = 0, 0
    for number, rows in enumerate(sizes):
        held.append(Segment(name=str(number), rows=rows, min_seq=written + 1, max_seq=written + rows))
        written += rows
        while count := segments_to_merge(held):
            tail = held[-count:]
            assert sum(segment.rows for segment in tail) <= LARGEST_SEGMENT_ROWS
            merged_rows += sum(segment.rows for segment in tail)
            held[-count:] = [
                Segment(
                    name="m",
                    rows=sum(one.rows for one in tail),
                    min_seq=tail[0].min_seq,
                    max_seq=tail[-1].max_seq,
                )
            ]
    assert sum(segment.rows for segment in held) == written
    assert all(a.max_seq + 1 == b.min_seq for a, b in itertools.pairwise(held))


@pytest.mark.parametrize("rows", [1, 10, SMALLEST_CLASS_ROWS - 1, 20_000])
def test_equal_writes_leave_logarithmically_many_segments(rows: int) -> None:
    """A live graph that gets small writes for a long time keeps a number of segments that grows as their logarithm."""
    held: list[Segment] = []
    most = 0
    for _ in range(min(20_000, 8 * LARGEST_SEGMENT_ROWS // rows)):
        held.append(Segment(name="s", rows=rows, min_seq=0, max_seq=0))
        while count := segments_to_merge(held):
            held[-count:] = [Segment(name="m", rows=sum(one.rows for one in held[-count:]), min_seq=0, max_seq=0)]
        most = max(most, len(held))
    assert most <= 40


def test_a_reader_never_sees_half_a_write(tmp_path: Path) -> None:
    """While another process writes and merges, every read is all payments up to some watermark, and never goes back."""
    writer = endless_writer(tmp_path)
    try:
        graph = DuckdbGraph(tmp_path)
        wait_for(graph, 1)
        last = 0
        while last < 300:
            before = graph.watermark()
            read = graph.read_edges(before_ms=NEVER_MS)
            after = graph.watermark()
            assert read["seq"].to_pylist() == list(range(1, read.num_rows + 1))
            assert max(before, last) <= read.num_rows <= after
            last = read.num_rows
    finally:
        writer.kill()
        writer.wait()


def test_a_killed_writer_leaves_a_whole_graph(tmp_path: Path) -> None:
    """kill -9 at any point leaves watermark and payments in step, no lock, and the next writer goes on."""
    rng = np.random.default_rng(0)
    graph = DuckdbGraph(tmp_path)
    for _ in range(4):
        start = graph.watermark()
        writer = endless_writer(tmp_path)
        wait_for(graph, start + 1)
        time.sleep(float(rng.uniform(0, 0.3)))
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        watermark = graph.watermark()
        assert graph.read_edges(before_ms=NEVER_MS)["seq"].to_pylist() == list(range(1, watermark + 1))
    with graph.lock("writer") as had:
        assert had


def test_files_that_nobody_names_are_cleared_away_in_time(tmp_path: Path) -> None:
    """Files of a killed writer and merged files go after the waiting time, not before; named ones stay however old."""
    graph = DuckdbGraph(tmp_path)
    graph.write_edges(payments(1, 5), watermark=5)
    orphan_old, orphan_new = tmp_path / "segments" / "9.payments.parquet", tmp_path / "segments" / "8.payments.parquet"
    orphan_old.touch()
    orphan_new.touch()
    long_ago = time.time() - segments.KEEP_UNNAMED_S - 10
    for path in (tmp_path / "segments").iterdir():
        if path != orphan_new:
            os.utime(path, (long_ago, long_ago))
    graph.write_edges(payments(6, 5), watermark=10)
    assert not orphan_old.exists()
    assert orphan_new.exists()
    assert graph.read_edges(before_ms=NEVER_MS).num_rows == 10


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    """Writers of several threads take turns, and no payment is lost or doubled."""
    graph = DuckdbGraph(tmp_path)
    batches = [payments(first, 10) for first in range(1, 201, 10)]

    def write(mine: list[pa.RecordBatch]) -> None:
        for batch in mine:
            DuckdbGraph(tmp_path).write_edges(batch, watermark=batch["seq"][-1].as_py())

    threads = [threading.Thread(target=write, args=(part,)) for part in (batches[::2], batches[1::2], batches)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert graph.checksum() == bucket_checksums(pa.Table.from_batches(batches))


def test_named_locks_exclude_each_other(tmp_path: Path) -> None:
    """The same name is held once, other names do not matter, and leaving the block lets go."""
    graph, other = DuckdbGraph(tmp_path), DuckdbGraph(tmp_path)
    with graph.lock("sync") as first, other.lock("sync") as second, other.lock("else/where") as third:
        assert (first, second, third) == (True, False, True)
    with other.lock("sync", wait_s=1) as had:
        assert had


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 99}', b"\xff\xfe"])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: bytes) -> None:
    """Whatever is wrong with the manifest, the error names the file and the way out."""
    graph = DuckdbGraph(tmp_path)
    graph.create_schema()
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(StoreUnavailableError, match=r"manifest\.json.*sync again"):
        graph.ping()


def test_a_lost_segment_is_named(tmp_path: Path) -> None:
    """A file that is missing for good is an error, not an empty answer."""
    graph = DuckdbGraph(tmp_path)
    graph.write_edges(payments(1, 5), watermark=5)
    for path in (tmp_path / "segments").iterdir():
        path.unlink()
    with pytest.raises(StoreUnavailableError, match="damaged"):
        graph.read_edges(before_ms=NEVER_MS)


def test_a_folder_that_cannot_be_is_unavailable(tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "graph").write_text("in the way")
    with pytest.raises(StoreUnavailableError, match="writable folder"):
        DuckdbGraph(tmp_path / "graph").ping()


def test_a_forked_child_reads_too(tmp_path: Path) -> None:
    """A process that was forked after the parent's first query opens its own database."""
    graph = DuckdbGraph(tmp_path)
    graph.write_edges(payments(1, 50), watermark=50)
    code = (
        "import os, sys; from pathlib import Path; from graph_features.sources.duckdb import DuckdbGraph\n"
        f"graph = DuckdbGraph(Path({str(tmp_path)!r}))\n"
        "assert graph.read_edges(before_ms=2**62).num_rows == 50\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if graph.read_edges(before_ms=2**62).num_rows == 50 else 3)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_a_manifest_survives_the_round_trip(tmp_path: Path) -> None:
    """What is committed is what is read."""
    folder = SegmentFolder(tmp_path)
    folder.create()
    manifest = Manifest(watermark=7, next_segment=3, segments=(Segment(name="x", rows=2, min_seq=1, max_seq=7),))
    folder.commit(manifest)
    assert folder.manifest() == manifest
