"""Materialize one view in a process of its own: `python -m bench.online_materialize SIDE FOLDER ROWS` prints JSON.

The password of Redis comes in RINGFENCE_REDIS_*, as everywhere.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, cast

import psutil

if TYPE_CHECKING:
    from bench.online_repo import Side


def main(side: Side, folder: Path, rows: int) -> dict[str, float]:
    """Seconds that `materialize` took; peak memory of the whole process, and by how much it grew, in bytes."""
    from bench.online_repo import PERIOD, Place, open_repo, redis_store, views
    from graph_features.settings import RedisSettings, load

    warnings.simplefilter("ignore")
    place = Place(folder=folder, redis=load(RedisSettings))
    store = open_repo(place, side, redis_store(place, side), name="materialize")
    store.apply(views(place, rows, count=1))
    before = psutil.Process().memory_info().rss
    started = perf_counter()
    store.materialize(*PERIOD)
    took = perf_counter() - started
    peak = peak_bytes()
    last = {"account_id": f"account-{rows - 1:07}"}
    assert store.get_online_features(["view_0:f1"], [last]).to_dict()["f1"] != [None], "the last row is not online"
    return {"seconds": took, "peak": peak, "grown": peak - before}


def peak_bytes() -> int:
    """The most memory that this process ever held; Linux."""
    # Not getrusage: its figure starts with that of the process which started this one.
    [kilobytes] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(kilobytes) * 1024


if __name__ == "__main__":
    # Feast imports PyTorch wherever it is installed, for images: half a gigabyte that neither side uses.
    sys.modules["torch"] = None  # type: ignore[assignment]
    with redirect_stdout(sys.stderr):
        done = main(cast("Side", sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.write(json.dumps(done) + "\n")
