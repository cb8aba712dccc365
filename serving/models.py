"""The model in use: follows an alias of the registry, takes over only what was checked and is warm everywhere."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graph_features.errors import ModelError, RingfenceError, SchemaMismatchError, StoreUnavailableError
from serving.last_good import LastGood
from serving.metrics import Metrics
from serving.pool import Pool
from serving.scorer import ModelRef
from training.bundle import BundleInfo, read_golden, read_info

log = logging.getLogger("ringfence.serving.models")

Resolve = Callable[[], tuple[str, Path]]
"""Looks the alias up: (version, bundle folder). Raises ModelError when it points nowhere, StoreUnavailableError when
the registry does not answer."""

LOAD_TIMEOUT_S = 60.0
LOOK_UP_TIMEOUT_S = 30.0
GOLDEN_TOLERANCE = 1e-4
"""What kernels of another processor may differ by from those that the model was exported on."""

_SAME_SCORE = 1e-6


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model that every worker has loaded and that scored its own examples alike in all of them."""

    ref: ModelRef
    info: BundleInfo


class ModelFollower:
    """Keeps `current` at the version that the alias names; the last good one when the new one fails.

    `needed` is false for a challenger: new workers load it when they are first asked, not before they are up.
    """

    def __init__(
        self,
        *,
        name: str,
        alias: str,
        resolve: Resolve,
        feature_hash: Callable[[tuple[str, ...]], str],
        pool: Pool,
        metrics: Metrics,
        last_good: LastGood | None = None,
        needed: bool = True,
    ) -> None:
        self.current: LoadedModel | None = None
        self._name = name
        self._alias = alias
        self._resolve = resolve
        self._feature_hash = feature_hash
        self._pool = pool
        self._gauge = metrics.model if needed else metrics.challenger
        self._last_good = last_good
        self._needed = needed
        self._looking: asyncio.Future[tuple[str, Path]] | None = None
        self._problem = f"{name!r} with alias {alias!r} was not looked up yet, try again in a moment"

    def require(self) -> LoadedModel:
        """The model in use; raise ModelError when there is none."""
        if self.current is None:
            raise ModelError(f"no model is in use: {self._problem}")
        return self.current

    def ping(self) -> dict[str, Any]:
        """Raise ModelError without a model; else say which, and what is wrong with a newer one."""
        model = self.require()
        detail = {"name": model.ref.name, "version": model.ref.version, "feature_hash": model.info.feature_hash}
        return {**detail, "problem": self._problem} if self._problem else detail

    async def follow(self, every_s: float) -> None:
        """Look the alias up again and again, until cancelled."""
        while True:
            await self.step()
            await asyncio.sleep(every_s)

    async def step(self) -> bool:
        """Look the alias up once; return whether another model came into use."""
        try:
            version, path = await self._look_up()
            ref = ModelRef(name=self._name, version=str(version), alias=self._alias, path=str(path))
            if self.current is not None and self.current.ref == ref:
                self._problem = ""
                return False
            info = await self._take(ref)
        except RingfenceError as error:
            self._keep(str(error))
            return isinstance(error, StoreUnavailableError) and await self._fall_back()
        except Exception as error:  # noqa: BLE001 - the supervisor: whatever is wrong with a new model, the old one stays
            self._keep(f"the model could not be taken ({type(error).__name__}: {error})")
            return False
        self._use(LoadedModel(ref=ref, info=info))
        return True

    async def _look_up(self) -> tuple[str, Path]:
        """Ask the registry, once at a time: one that hangs holds one thread, not one more with every look."""
        if self._looking is None:
            self._looking = asyncio.ensure_future(asyncio.to_thread(self._resolve))
        done, _ = await asyncio.wait([self._looking], timeout=LOOK_UP_TIMEOUT_S)
        if not done:
            raise StoreUnavailableError(f"the model registry has not answered for {LOOK_UP_TIMEOUT_S:g} s or more")
        looked, self._looking = self._looking, None
        return looked.result()

    async def _fall_back(self) -> bool:
        """With the registry away and no model in use: take the one that served last."""
        ref = None if self.current is not None or self._last_good is None else self._last_good.read()
        if ref is None:
            return False
        problem = self._problem
        try:
            self._use(LoadedModel(ref=ref, info=await self._take(ref)))
        except Exception as error:  # noqa: BLE001 - as with a new model: the reason is kept, and there is none in use
            self._keep(f"{problem}; the model that served last could not be taken either ({error})")
            return False
        self._keep(problem)
        return True

    def _keep(self, problem: str) -> None:
        if problem != self._problem:
            log.warning("model not taken", extra={"error": problem})
        self._problem = problem

    async def _take(self, ref: ModelRef) -> BundleInfo:
        """Load `ref` in every worker and check it; raise without any change to the model in use."""
        info = await asyncio.to_thread(read_info, Path(ref.path))
        await asyncio.to_thread(self._check_features, info)
        await self._everywhere("load", ref)
        golden = await self._everywhere("golden", ref)
        if any(np.abs(scores - golden[0]).max(initial=0.0) > _SAME_SCORE for scores in golden):
            raise ModelError(f"model version {ref.version} scores its own examples differently from worker to worker")
        expected = await asyncio.to_thread(read_golden, Path(ref.path))
        if expected is not None and not np.allclose(golden[0], expected, rtol=0, atol=GOLDEN_TOLERANCE):
            raise ModelError(
                f"model version {ref.version} scores its own examples otherwise than where it was exported: by up to "
                f"{float(np.abs(golden[0] - expected).max()):.2e}, at most {GOLDEN_TOLERANCE:.0e} was expected"
            )
        return info

    def _check_features(self, info: BundleInfo) -> None:
        expected = self._feature_hash(info.inputs.hashed_views)
        if info.feature_hash != expected:
            raise SchemaMismatchError(
                f"the model was trained on feature set {info.feature_hash}, this server computes {expected}: "
                "train and promote a model on the present features"
            )

    async def _everywhere(self, method: str, *args: Any) -> list[Any]:
        futures = self._pool.everywhere(method, *args, timeout_s=LOAD_TIMEOUT_S)
        return list(await asyncio.gather(*(asyncio.wrap_future(future) for future in futures)))

    def _use(self, model: LoadedModel) -> None:
        # From here on new workers start with it; a score names its model, so requests under way end with theirs.
        if self._needed:
            self._pool.on_start("load", model.ref)
        previous, self.current = self.current, model
        self._problem = ""
        if previous is not None:
            self._gauge.labels(previous.ref.name, previous.ref.version).set(0)
        self._gauge.labels(model.ref.name, model.ref.version).set(1)
        log.info("model in use", extra={"version": model.ref.version, "feature_hash": model.info.feature_hash})
        self._remember(model.ref)

    def _remember(self, ref: ModelRef) -> None:
        if self._last_good is None:
            return
        try:
            self._last_good.write(ref)
        except OSError as error:
            # It is wanted by a start without the registry, and by nothing now.
            log.warning("model in use not remembered", extra={"version": ref.version, "error": str(error)})
