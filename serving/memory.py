"""How much memory a worker holds."""

from __future__ import annotations

import os
from pathlib import Path

MB = 1 << 20


def resident_bytes(pid: int) -> int:
    """Resident memory of a process of this machine; 0 where it is gone or the system does not tell."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_bytes().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
