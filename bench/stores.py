"""The Feast stores against Feast's own, on the same servers in one run.

    python -m bench.stores [--only online|offline]

Each part is a module with `figures()`.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from importlib.util import find_spec

from bench.report import Figure, publish

PARTS = tuple(name for name in ("online", "offline") if find_spec(f"bench.{name}"))


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="one part")
    only = parser.parse_args().only
    figures: list[Figure] = []
    for name in PARTS:
        if only in (None, name):
            figures += import_module(f"bench.{name}").figures()
    publish("stores", figures)


if __name__ == "__main__":
    main()
