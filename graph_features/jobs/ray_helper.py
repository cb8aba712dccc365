"""Helpers of a run as tasks of a Ray cluster: each claims chunks from the ledger, wherever it runs.

The ledger and the stores are reached through connections of the task's own. Passwords do not travel: a node has them in
its environment, as every other process of Ringfence has.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from graph_features.jobs.crew import StartHelper
from graph_features.jobs.engine import reopened
from graph_features.jobs.helper import Assignment, work
from graph_features.jobs.ledger import Ledger
from graph_features.jobs.records import Job
from graph_features.jobs.runner import JobContext
from graph_features.jobs.stores import Stores
from graph_features.ray_cluster import adopt, connect, options, sent_environment
from graph_features.settings import ExecutorSettings, JobSettings, PostgresSettings, load


@dataclass(frozen=True, kw_only=True)
class LedgerAddress:
    """Where a ledger is, without its password; pickled in place of the ledger."""

    url: str
    expiry_s: float

    @classmethod
    def of(cls, ledger: Ledger) -> LedgerAddress:
        url = ledger.engine.url.set(password=None)
        return cls(url=url.render_as_string(hide_password=False), expiry_s=ledger.expiry.total_seconds())

    def open(self) -> Ledger:
        """Open the ledger with the password that this node knows."""
        url = sa.make_url(self.url)
        if url.get_backend_name() == "postgresql":
            url = url.set(password=load(PostgresSettings).password.get_secret_value() or None)
        return Ledger(reopened(url.render_as_string(hide_password=False)), expiry_s=self.expiry_s)


class RayHelper:
    """A task that helps. Cancelled, it puts down its work; killed with its node, it is known to have died."""

    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray = ray
        self._reference = reference

    def ended(self) -> str | None:
        from ray.exceptions import RayError

        done, _ = self._ray.wait([self._reference], timeout=0)
        if not done:
            return None
        try:
            self._ray.get(self._reference)
        except RayError as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return ""

    def stop(self) -> None:
        self._ray.cancel(self._reference)

    def join(self, timeout_s: float) -> None:
        done, _ = self._ray.wait([self._reference], timeout=timeout_s)
        if not done:
            self._ray.cancel(self._reference, force=True)


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a task is told; nothing of it is secret."""

    stores: Stores
    ledger: LedgerAddress
    job: Job
    name: str
    settings: JobSettings
    environment: Mapping[str, str]


def ray_starter(settings: ExecutorSettings) -> StartHelper:
    """Return a function that starts helpers on the cluster of `settings`."""
    ray = connect(settings)
    task = ray.remote(_help).options(max_retries=0, **options(settings))

    def start(context: JobContext, stores: Stores, name: str) -> RayHelper:
        told = Told(
            stores=stores,
            ledger=LedgerAddress.of(context.ledger),
            job=context.job,
            name=name,
            settings=context.settings,
            environment=sent_environment(),
        )
        return RayHelper(ray, task.remote(told))

    return start


def _help(told: Told) -> None:
    adopt(told.environment)
    ledger = told.ledger.open()
    assignment = Assignment(stores=told.stores, ledger=ledger, job=told.job, name=told.name, settings=told.settings)
    try:
        with suppress(KeyboardInterrupt):  # how Ray cancels
            work(assignment, threading.Event())
    finally:
        ledger.close()
