"""Structured logs: one JSON object per line. Ids of requests and versions, never of people, cards or accounts."""

from __future__ import annotations

import contextvars
import logging
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import msgspec

from serving import traces

REQUEST_ID: contextvars.ContextVar[str] = contextvars.ContextVar("ringfence_request_id", default="")
"""The id of the request at work in this context."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_OWN = len(vars(logging.makeLogRecord({})))
"""So many entries of a record come before those that were given as `extra`."""


class JsonFormatter(logging.Formatter):
    """A record as JSON: time, level, logger, message, request id, and whatever was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            entry["request_id"] = request_id
        if trace_id := traces.trace_id():
            entry["trace_id"] = trace_id
        entry |= {name: value for name, value in islice(vars(record).items(), _OWN, None) if name not in _STANDARD}
        if record.exc_info:
            entry["trace"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry, enc_hook=str).decode()


def configure(level: str) -> None:
    """Send all logs to standard error as JSON lines: ours from `level` up, those of libraries from warnings up.

    From then on records are made without what no line shows: thread, process and task.
    """
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.WARNING)
    for name in ("ringfence", "graph_features", "feature_repo", "training", "serving"):
        logging.getLogger(name).setLevel(level)
