"""Neo4j's own graph algorithms (Graph Data Science, open source) on a real server, as a peer and nothing else.

GDS is under the GPL: it is never a dependency of Ringfence. Its jars are fetched into a cache of their own when a
benchmark asks for them, and Neo4j loads them as a plugin. `python -m bench.gds` resolves them anew and rewrites the
lock file beside this module.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from graph_features.errors import ServiceError
from infra.local.base import folder_of
from infra.local.jars import cache_folder, classpath, fetch_into, locked_jars, parse_lock
from infra.local.neo4j import DATABASE, Neo4jServer
from infra.local.relock import relock
from infra.local.state import ServerState, exclusive

VERSION = "2.13.9"  # the line for Neo4j 5.26
GROUP = "org.neo4j.gds"
PROCEDURES = "proc"
ROOT = f"{GROUP}:{PROCEDURES}:{VERSION}+{GROUP}:opengds-extension:{VERSION}"
LOCK = Path(__file__).with_name(f"gds-{VERSION}.lock")
ADMIN_CLASS = "org.neo4j.cli.AdminTool"
HEAP_MB = 4096
PAGE_CACHE_MB = 1536


def fetch_plugin(say: Callable[[str], None]) -> Path:
    """Return the plugin folder of GDS, its jars fetched and verified the first time."""
    folder = cache_folder().with_name(f"gds-{VERSION}")
    library = folder / "lib"
    library.mkdir(parents=True, exist_ok=True)
    text = LOCK.read_text(encoding="ascii")
    mark, digest = folder / "complete", hashlib.sha256(text.encode("ascii")).hexdigest()
    with exclusive(folder.with_name(f"{folder.name}.lock"), lambda: say("waiting for another download")):
        if not mark.is_file() or mark.read_text(encoding="ascii") != digest:
            jars = parse_lock(text)
            fetch_into(library, jars, say)
            # Neo4j loads every class of what it scans for procedures, so that holds nothing else.
            for jar in jars:
                target = folder / jar.file_name
                if jar.group == GROUP and PROCEDURES in jar.artifact and not target.exists():
                    os.link(library / jar.file_name, target)
            mark.write_text(digest, encoding="ascii")
    return folder


@dataclass(frozen=True, kw_only=True)
class LoadedServer(Neo4jServer):
    """A Neo4j that holds these stored transactions when it first starts, imported offline.

    Accounts and payments as Neo4jGraph writes them, at a hundred times its speed; devices, cards and ips are left out.
    """

    transactions: pa.Table

    def prepare(self, state: ServerState, say: Callable[[str], None]) -> None:
        """See Server.prepare."""
        super().prepare(state, say)
        if (folder_of(state) / "data" / "databases" / DATABASE).exists():
            return
        say(f"importing {self.transactions.num_rows:,} payments")
        with TemporaryDirectory(dir=folder_of(state)) as folder:
            _import(state, _write_csv(self.transactions, Path(folder)))


def server(transactions: pa.Table, say: Callable[[str], None]) -> Neo4jServer:
    """A Neo4j with `transactions`, GDS, and memory enough for both."""
    options = {
        "dbms.security.procedures.unrestricted": "gds.*",
        "server.memory.pagecache.size": f"{PAGE_CACHE_MB}m",
    }
    return LoadedServer(plugins=fetch_plugin(say), heap_mb=HEAP_MB, options=options, transactions=transactions)


def _write_csv(transactions: pa.Table, folder: Path) -> list[str]:
    """Write what the import reads, and return its arguments."""
    accounts = pc.unique(
        pa.chunked_array([*transactions["sender_id"].chunks, *transactions["receiver_id"].chunks], pa.string())
    )
    payments = {
        ":START_ID": transactions["sender_id"],
        ":END_ID": transactions["receiver_id"],
        "transaction_id:string": transactions["transaction_id"],
        "ts:long": transactions["event_timestamp"].cast(pa.int64()),
        "amount:long": transactions["amount_base"],
        "seq:long": transactions["seq"],
    }
    tables = {
        "account": pa.table({"id:ID": accounts}),
        "sync": pa.table({"name:string": ["transactions"], "seq:long": [pc.max(transactions["seq"]).as_py()]}),
        "sent": pa.table(payments),
    }
    for name, table in tables.items():
        csv.write_csv(table, folder / f"{name}.csv", csv.WriteOptions(quoting_style="none"))
    nodes = [f"--nodes={label}={folder / label.lower()}.csv" for label in ("Account", "Sync")]
    return [*nodes, f"--relationships=SENT={folder / 'sent.csv'}"]


def _import(state: ServerState, what: list[str]) -> None:
    folder = folder_of(state)
    command = [state.binary, f"-Xmx{HEAP_MB}m", "-cp", classpath(), ADMIN_CLASS, "database", "import", "full"]
    done = subprocess.run(
        [*command, f"--report-file={folder / 'import.report'}", DATABASE, *what],
        env={**os.environ, "NEO4J_HOME": str(folder), "NEO4J_CONF": str(folder / "conf")},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ServiceError(f"Neo4j's import ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")


if __name__ == "__main__":
    neo4j_has = {(jar.group, jar.artifact) for jar in locked_jars()}
    relock(LOCK, root=ROOT, module="bench.gds", besides=neo4j_has)
