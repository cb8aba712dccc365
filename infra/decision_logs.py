"""Decisions as feature logs of Feast: what each score rested on, feature by feature, in the offline store.

The server records decisions as versions of rows and does not wait for this. A job takes what was recorded since the
last time, reads the rows as of each payment out of the offline store, and writes them through Feast's feature logging.
A value is logged only if the row that Feast joins is the very version that the score rested on; otherwise its status is
INVALID. Lists are left out: they name other accounts.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from graph_features.clock import CREATED_EPOCH, from_ms, to_ms
from graph_features.jobs.parameters import NoParameters
from graph_features.jobs.runner import JobContext, JobKind
from graph_features.settings import PlatformSettings, PostgresSettings, Profile, load
from graph_features.sources.base import Traces

if TYPE_CHECKING:
    import feast

    from infra.wiring import Platform
    from serving.decisions import DecisionLog

log = logging.getLogger(__name__)

READER = "decisions"
TABLE = "decision_log"
PARTS = {"sender": ("sender_id",), "receiver": ("receiver_id",), "pair": ("sender_id", "receiver_id")}
"""The logs, with the accounts that each names. One table of all would have rows that PostgreSQL cannot hold."""

BATCH = 2_000
INVALID, PRESENT, NULL_VALUE, NOT_FOUND = range(4)
"""Feast's FieldStatus."""

_INPUTS = ("sender_id", "receiver_id", "amount_base", "channel")
_PLACES = ("sender_lat", "sender_lon", "receiver_lat", "receiver_lon")


def decision_log_kinds(platform: Platform) -> dict[str, JobKind]:
    """Return the kind `log_decisions`, working on the active profile."""
    return {
        "log_decisions": JobKind(
            run=lambda context: _run(context, platform),
            parameters=NoParameters,
            description="Write decisions since the last time as feature logs of Feast to the offline store.",
        )
    }


def _run(context: JobContext, platform: Platform) -> None:
    from serving.decisions import DecisionLog, open_engine

    engine = open_engine(platform.settings)
    try:
        until_ms = to_ms(context.due_at)
        written = log_decisions(platform.settings, DecisionLog(engine), until_ms=until_ms, check=context.check)
    finally:
        engine.dispose()
    log.info("decisions logged: %s", written)


def log_decisions(
    settings: PlatformSettings, decisions: DecisionLog, *, until_ms: int, check: Any = lambda: None
) -> int:
    """Log the decisions made before `until_ms` that were not logged yet; return how many. At least once each."""
    import feature_repo

    store = feature_repo.open_store(settings)
    services = [_service(store, settings, part) for part in PARTS]
    total = 0
    while records := decisions.unlogged(READER, until_ms=until_ms, limit=BATCH):
        check()
        joined = _join(store, records)
        for service in services:
            store.write_logged_features(_table(store, service, joined, records), service)
        decisions.logged(READER, up_to=records[-1]["id"])
        total += len(records)
    return total


def _service(store: feast.FeatureStore, settings: PlatformSettings, part: str) -> feast.FeatureService:
    """What the fraud model reads of a part, without lists, with somewhere to be logged to."""
    from feast import FeatureService
    from feast.feature_logging import LoggingConfig
    from feast.infra.offline_stores.file_source import FileLoggingDestination

    from feature_repo.objects import MODEL_SERVICE
    from feature_repo.stores.pglogging import PostgreSQLLoggingDestination

    destination = (
        PostgreSQLLoggingDestination(table=f"features.{TABLE}_{part}")
        if settings.profile is Profile.SERVICES
        else FileLoggingDestination(path=str(_folder(settings, part)))
    )
    service = FeatureService(
        name=f"{READER}_{part}", features=[], logging_config=LoggingConfig(destination=destination)
    )
    for projection in store.get_feature_service(MODEL_SERVICE).feature_view_projections:
        shown: str = projection.name_to_use()  # type: ignore[no-untyped-call]
        if _part(shown) != part:
            continue
        own = copy.copy(projection)
        own.features = [field for field in projection.features if "Array" not in str(field.dtype)]
        own.name_alias = _short(shown)
        service.feature_view_projections.append(own)
    return service


def _part(alias: str) -> str:
    return next((side for side in ("sender", "receiver") if alias.startswith(f"{side}_account_")), "pair")


def _short(alias: str) -> str:
    """PostgreSQL's names have 63 characters at most: `sender_account_activity` is logged as `s_activity`."""
    for long, short in (("sender_account_", "s_"), ("receiver_account_", "r_")):
        alias = alias.replace(long, short)
    return alias


def _long(alias: str) -> str:
    """The name that the join knows a logged view by."""
    for long, short in (("sender_account_", "s_"), ("receiver_account_", "r_")):
        if alias.startswith(short):
            return alias.replace(short, long, 1)
    return alias


def _folder(settings: PlatformSettings, part: str) -> Path:
    folder = settings.home.resolve() / TABLE / part
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _table(
    store: feast.FeatureStore, service: feast.FeatureService, joined: pa.Table, records: Sequence[Mapping[str, Any]]
) -> pa.Table:
    from feast.feature_logging import FeatureServiceLoggingSource

    schema = FeatureServiceLoggingSource(service, store.project).get_schema(store.registry)
    moments = [from_ms(record["event_timestamp_ms"]) for record in records]
    scored = [from_ms(record["scored_at_ms"]) for record in records]
    columns: dict[str, Any] = {
        **_entities(records),
        "__log_timestamp": scored,
        "__log_date": [moment.date() for moment in scored],
        "__request_id": [f"{record['request_id']}/{record['transaction_id']}" for record in records],
    }
    for projection in service.feature_view_projections:
        columns |= _columns(projection, joined, records, moments)
    return pa.table([_cast(columns[field.name], field.type) for field in schema], schema=schema)


def _cast(values: Any, kind: pa.DataType) -> Any:
    return values.cast(kind) if isinstance(values, pa.ChunkedArray | pa.Array) else pa.array(values, kind)


def _entities(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Accounts and payments as the join asks for them."""
    entities = {name: [record["inputs"].get(name) for record in records] for name in (*_INPUTS, *_PLACES)}
    return {**entities, "payment_timestamp": [from_ms(record["event_timestamp_ms"]) for record in records]}


def _join(store: feast.FeatureStore, records: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Everything that the fraud model reads, as of each payment, in the order of the payments."""
    import pandas as pd

    from feature_repo.objects import MODEL_SERVICE

    frame = pd.DataFrame(_entities(records))
    frame["event_timestamp"] = frame["payment_timestamp"]
    frame["__row"] = np.arange(len(frame))
    for name in _PLACES:
        frame[name] = frame[name].astype(float)
    service = store.get_feature_service(MODEL_SERVICE)
    job = store.get_historical_features(entity_df=frame, features=service, full_feature_names=True)
    return job.to_arrow().sort_by("__row")


def _columns(
    projection: Any, joined: pa.Table, records: Sequence[Mapping[str, Any]], moments: Sequence[datetime]
) -> dict[str, Any]:
    """Per feature of one projection its values, the instant they speak for, and their status."""
    logged = projection.name_to_use()
    alias = _long(logged)
    columns: dict[str, Any] = {}
    if f"{alias}__event_timestamp" in joined.column_names:
        as_of, used, same = _versions(alias, projection.name, joined, records)
    else:  # computed from the payment itself
        as_of, used = list(moments), np.ones(len(records), np.bool_)
        same = used
    for field in projection.features:
        joined_values = joined[f"{alias}__{field.name}"]
        values = pc.if_else(pa.array(same), joined_values, pa.scalar(None, joined_values.type))
        known = values.is_valid().to_numpy()
        status = np.where(same, np.where(known, PRESENT, NULL_VALUE), np.where(used, INVALID, NOT_FOUND))
        name = f"{logged}__{field.name}"
        columns[name] = values
        columns[f"{name}__timestamp"] = as_of
        columns[f"{name}__status"] = status.tolist()
    return columns


def _versions(
    alias: str, view: str, joined: pa.Table, records: Sequence[Mapping[str, Any]]
) -> tuple[list[datetime | None], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Per record the as_of of the row that was used, whether there was one, and whether the joined row is that one."""
    role = next((role for role in ("sender", "receiver", "reverse") if alias == f"{role}_{view}"), "pair")
    versions = [record["rows"].get(role, {}).get(view) for record in records]
    used = np.array([version is not None for version in versions], np.bool_)
    wanted = np.array([version or (-1, -1) for version in versions], np.int64)
    found_ms = _filled(joined[f"{alias}__event_timestamp"].cast(pa.timestamp("ms", tz="UTC")))
    found_us = _filled(joined[f"{alias}__created_timestamp"].cast(pa.timestamp("us", tz="UTC")))
    same = used & (found_ms == wanted[:, 0]) & (found_us - to_ms(CREATED_EPOCH) * 1_000 == wanted[:, 1])
    return [from_ms(version[0]) if version else None for version in versions], used, same


def _filled(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    filled: npt.NDArray[np.int64] = pc.fill_null(column.cast(pa.int64()), -1).to_numpy()
    return filled


class DecisionLogs:
    """The logs as a place of erasure and retention."""

    name = "feature logs of decisions"

    def __init__(self, settings: PlatformSettings) -> None:
        self._settings = settings

    def count(self, traces: Traces) -> int:
        """Rows of payments of an account."""
        return self._remove(account_id=traces.account_id, only_count=True)

    def erase(self, traces: Traces) -> None:
        """Remove them."""
        self._remove(account_id=traces.account_id)

    def purge(self, before: datetime) -> int:
        """Remove the rows of decisions made before a moment; return how many."""
        return self._remove(before=before)

    def _remove(
        self, *, account_id: str | None = None, before: datetime | None = None, only_count: bool = False
    ) -> int:
        if self._settings.profile is Profile.SERVICES:
            removed = (_remove_rows(part, account_id, before, only_count=only_count) for part in PARTS)
            return sum(removed)
        paths = [(part, path) for part in PARTS for path in (self._settings.home / TABLE / part).glob("*.parquet")]
        return sum(_remove_from(path, part, account_id, before, only_count=only_count) for part, path in sorted(paths))


def _remove_rows(part: str, account_id: str | None, before: datetime | None, *, only_count: bool) -> int:
    import psycopg
    from psycopg import sql

    name = f"{TABLE}_{part}"
    table = sql.Identifier("features", name)
    named = sql.SQL(" OR ").join(sql.SQL("{} = %(account)s").format(sql.Identifier(key)) for key in PARTS[part])
    condition = named if before is None else sql.SQL("__log_timestamp < %(before)s")
    action = sql.SQL("SELECT 1 FROM {} WHERE {}" if only_count else "DELETE FROM {} WHERE {}")
    options: Any = load(PostgresSettings).conninfo()
    with psycopg.connect(**options) as connection:
        found = connection.execute("SELECT to_regclass(%s) IS NOT NULL", [f"features.{name}"]).fetchone()
        if found is None or not found[0]:
            return 0
        return connection.execute(action.format(table, condition), {"account": account_id, "before": before}).rowcount


def _remove_from(path: Path, part: str, account_id: str | None, before: datetime | None, *, only_count: bool) -> int:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    unwanted = (
        reduce(pc.or_, [pc.equal(table[key], account_id) for key in PARTS[part]])
        if before is None
        else pc.less(table["__log_timestamp"], pa.scalar(before, table["__log_timestamp"].type))
    )
    count = int(pc.sum(unwanted).as_py() or 0)
    if count and not only_count:
        kept = table.filter(pc.invert(unwanted))
        if kept.num_rows:
            fresh = path.with_suffix(".new")
            pq.write_table(kept, fresh)
            fresh.replace(path)
        else:
            path.unlink()
    return count
