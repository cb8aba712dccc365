"""Every error Ringfence raises on purpose.

One base class; a subclass's docstring is its default message and says what to do next. Callers that face a person
(the CLI, the REST API) catch `RingfenceError` and show it without a traceback.
"""

from __future__ import annotations

import inspect


class RingfenceError(Exception):
    """Ringfence could not go on."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.cleandoc(type(self).__doc__ or RingfenceError.__doc__ or ""))


class SettingsError(RingfenceError):
    """A setting is missing or wrong: see docs/configuration.md for every name, type and default."""


class InvalidInputError(RingfenceError):
    """Input is not what was expected.

    `field` names what is wrong, `expected` what would be right and `got` what came (shortened).
    """

    def __init__(self, *, field: str, expected: str, got: object) -> None:
        self.field = field
        self.expected = expected
        self.got = shorten(got)
        super().__init__(f"{field}: expected {expected}, got {self.got}")


class ConflictError(RingfenceError):
    """The same id was accepted before with other content; nothing was changed."""


class StoreUnavailableError(RingfenceError):
    """A store did not answer: check that it runs (`ringfence services status`) and that its address is right."""


class SchemaMismatchError(RingfenceError):
    """A stored row or a model was made for another feature set: apply and backfill, or promote a matching model."""


class UnknownFeatureError(RingfenceError):
    """No such feature: `ringfence features --list` names them all."""


class FeatureComputationError(RingfenceError):
    """Some accounts' features could not be computed; they are named, none was stored as zero."""

    def __init__(self, failed: dict[str, str]) -> None:
        self.failed = failed
        first = "; ".join(f"{account}: {reason}" for account, reason in list(failed.items())[:3])
        super().__init__(f"{len(failed)} accounts could not be computed ({first})")


class JobError(RingfenceError):
    """A job failed: `ringfence backfill --status ID` shows its chunks and their errors."""


class UnknownJobError(RingfenceError):
    """No such job: GET /jobs lists them all."""


class JobCancelledError(RingfenceError):
    """The job was cancelled; what it has finished is kept, and resuming it does the rest."""


class ModelError(RingfenceError):
    """No usable model: train and promote one (`ringfence train`, `ringfence promote`)."""


class ServiceError(RingfenceError):
    """A local server could not be started or stopped: its log is in the state folder."""


def shorten(value: object, limit: int = 80) -> str:
    """Return a printable form of `value`, at most `limit` characters long."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
