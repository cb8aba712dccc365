"""`python -m infra.local.relock` resolves Neo4j's classpath anew and rewrites the lock file beside this module.

For whoever raises the version in jars.py. Takes a minute; review the difference before keeping it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from infra.local.jars import LOCK_FILE, ROOT

HEADER = f"""\
# Every jar of the runtime classpath of {ROOT}, one per line:
# group:artifact:version[:classifier] sha256
# Made by `python -m infra.local.relock`; review the difference before keeping it.
"""


def relock(path: Path) -> int:
    """Write the lock file at `path`; return how many jars it names."""
    import jgo

    lines = set()
    for artifact in jgo.resolve(ROOT):
        if artifact.packaging != "jar":
            continue
        digest = hashlib.sha256(artifact.resolve().read_bytes()).hexdigest()
        parts = (artifact.groupId, artifact.artifactId, artifact.version, artifact.classifier)
        lines.add(f"{':'.join(part for part in parts if part)} {digest}\n")
    path.write_text(HEADER + "".join(sorted(lines)), encoding="ascii")
    return len(lines)


if __name__ == "__main__":
    relock(Path(__file__).with_name(LOCK_FILE))
