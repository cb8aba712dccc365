"""Which model served last, remembered beside the bundles: a server that starts while MLflow is away serves it again."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

from serving.scorer import ModelRef


class LastGood:
    """One file per model and alias in `folder`."""

    def __init__(self, folder: Path, name: str, alias: str) -> None:
        self._path = folder / name / f"{alias}.json"

    def read(self) -> ModelRef | None:
        """The model that was in use last, if its bundle is still here."""
        try:
            ref = ModelRef(**json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return ref if Path(ref.path).is_dir() else None

    def write(self, ref: ModelRef) -> None:
        """Remember `ref`, in one step."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, scratch = tempfile.mkstemp(dir=self._path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(asdict(ref), file)
            Path(scratch).replace(self._path)
        except BaseException:
            Path(scratch).unlink()
            raise
