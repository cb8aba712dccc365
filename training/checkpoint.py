"""Where a training stands after each epoch, on disk: what a killed process left is taken up bit for bit."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

KEPT_S = 7 * 86_400
"""Checkpoints of trainings that nobody took up again go after so long."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One file. `key` says what is trained how; a file of another key is not taken up."""

    path: Path
    key: str

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file with `state` (tensors, numbers, texts, lists and dicts of them), whole or not at all."""
        import torch

        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        torch.save({**state, "key": self.key}, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(self.path)

    def load(self) -> dict[str, Any] | None:
        """The state that was saved last, None without one of this key. Reads no pickled object."""
        import torch

        if not self.path.is_file():
            return None
        state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        if state.pop("key", None) != self.key:
            return None
        return state


@contextmanager
def checkpoint_folder(home: Path, fingerprint: str) -> Iterator[Path]:
    """The folder for what a training leaves if it is killed; gone when the block ends well."""
    root = home.resolve() / "checkpoints"
    folder = root / fingerprint[:32]
    _sweep(root, keep=folder)
    if folder.is_dir():
        log.info("going on with what an earlier training left in %s", folder)
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _sweep(root: Path, *, keep: Path) -> None:
    for folder in root.iterdir() if root.is_dir() else ():
        if folder != keep and folder.is_dir() and folder.stat().st_mtime < time.time() - KEPT_S:
            shutil.rmtree(folder, ignore_errors=True)
