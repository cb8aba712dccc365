"""`python -m infra.local.relock` resolves Neo4j's classpath anew and rewrites the lock file beside this module.

For whoever raises the version in jars.py. Takes a minute; review the difference before keeping it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container
from pathlib import Path

from infra.local.jars import LOCK_FILE, ROOT

HEADER = """\
# Every jar of the runtime classpath of {root}, one per line:
# group:artifact:version[:classifier] sha256
# Made by `python -m {module}`; review the difference before keeping it.
"""


def relock(
    path: Path, *, root: str = ROOT, module: str = "infra.local.relock", besides: Container[tuple[str, str]] = ()
) -> int:
    """Write the lock file at `path` for `root`, made by `module`; return how many jars it names.

    `besides` are (group, artifact) pairs to leave out.
    """
    import jgo

    lines = set()
    for artifact in jgo.resolve(root):
        if artifact.packaging != "jar" or (artifact.groupId, artifact.artifactId) in besides:
            continue
        digest = hashlib.sha256(artifact.resolve().read_bytes()).hexdigest()
        parts = (artifact.groupId, artifact.artifactId, artifact.version, artifact.classifier)
        lines.add(f"{':'.join(part for part in parts if part)} {digest}\n")
    path.write_text(HEADER.format(root=root, module=module) + "".join(sorted(lines)), encoding="ascii")
    return len(lines)


if __name__ == "__main__":
    relock(Path(__file__).with_name(LOCK_FILE))
