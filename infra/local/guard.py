"""`python -m infra.local.guard HOME`: stop and purge the servers of HOME as soon as standard input ends.

For test runs: the caller keeps the other end of the pipe open, and however it ends, killed included, its end of the
pipe closes and nothing is left running.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from infra.local import servers


def main() -> None:
    """Wait for the end of standard input, then purge."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    servers.down(Path(sys.argv[1]), purge=True)


if __name__ == "__main__":
    main()
