"""What runs inside an actor of the pool on Ray: one handler, one call at a time. Imports neither Ray nor features."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import uuid
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from graph_features.errors import ModelError
from graph_features.ray_cluster import adopt
from serving.worker import Call, HandlerSpec, Reply, answer, settle

Files = dict[str, bytes]
"""Contents by file name."""


def folders_of(call: Call) -> set[str]:
    """Return the folders of the models that a call names: a worker on another machine has none of them."""
    return {arg.path for arg in call.args if _is_model(arg)}


def files_in(folder: str) -> Files:
    """Return a model's files; raise ModelError when they cannot be read."""
    try:
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}
    except OSError as error:
        reason = f"the files of the model in {folder} cannot be read: {error.strerror}; promote it again"
        raise ModelError(reason) from None


def _is_model(value: object) -> bool:
    return is_dataclass(value) and not isinstance(value, type) and isinstance(getattr(value, "path", None), str)


class RayWorker:
    """One handler. Ray makes one actor of it; whatever goes wrong in a call comes back as its reply."""

    def __init__(self, spec: HandlerSpec) -> None:
        self._spec = spec
        self._handler: Any = None
        self._places: dict[str, str] = {}

    def build(self, environment: Mapping[str, str]) -> Reply:
        """Build the handler under the sender's settings; the reply has this process's id."""
        try:
            adopt(environment)
            self._handler = self._spec.build()
        except Exception as error:  # noqa: BLE001 - reported to the sender, which decides
            return Reply.of_error(error)
        settle()
        return Reply(value=os.getpid())

    def call(self, call: Call, shipped: Mapping[str, Any]) -> Reply:
        """Run one call; models that came with it, and are named later, are found where this machine keeps them."""
        try:
            for folder, reference in shipped.items():
                self._places[folder] = _kept(_fetched(reference))
            args = tuple(self._placed(arg) for arg in call.args)
            return Reply(value=answer(self._handler, Call(method=call.method, args=args)))
        except Exception as error:  # noqa: BLE001 - reported to the sender, which decides
            return Reply.of_error(error)

    def _placed(self, arg: Any) -> Any:
        place = self._places.get(arg.path) if self._places and _is_model(arg) else None
        return arg if place is None else replace(arg, path=place)

    def watch(self) -> None:
        """Never return: who waits for this learns of the worker's death at once."""
        threading.Event().wait()


def _fetched(reference: Any) -> Files:
    import ray

    files: Files = ray.get(reference)
    return files


def _kept(files: Files) -> str:
    """Return the folder of this machine with exactly these files, written when first seen."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}:{len(files[name])};".encode())
        digest.update(files[name])
    root = Path(tempfile.gettempdir()) / f"ringfence-models-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.stat().st_uid != os.getuid():
        raise PermissionError(f"{root} belongs to someone else: remove it or set TMPDIR")
    folder = root / digest.hexdigest()
    if not folder.exists():
        building = root / uuid.uuid4().hex
        building.mkdir()
        for name, content in files.items():
            (building / name).write_bytes(content)
        try:
            building.rename(folder)
        except OSError:  # another worker of this machine was first
            if not folder.exists():
                raise
    return str(folder)
