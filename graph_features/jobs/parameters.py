"""Parameters of jobs as they come from REST, the command line and schedule files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from graph_features.clock import to_ms
from graph_features.errors import InvalidInputError

Parameters = TypeVar("Parameters", bound=BaseModel)

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DURATION = re.compile(r"(\d+)\s*([smhdw])")


def parse_duration(value: object) -> timedelta:
    """Read `90s`, `15m`, `6h`, `1d` or `2w`; raise ValueError."""
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError("write a duration as 90s, 15m, 6h, 1d or 2w")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def format_duration(value: timedelta) -> str:
    """The shortest form that `parse_duration` reads back."""
    seconds = int(value.total_seconds())
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds and seconds % length == 0:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    Field(ge=timedelta(0), le=timedelta(days=3_660)),
]
PositiveDuration = Annotated[Duration, Field(ge=timedelta(seconds=1))]


def parse(model: type[Parameters], values: Mapping[str, Any], *, where: str = "") -> Parameters:
    """Validate `values`; raise InvalidInputError naming the first wrong field (after `where`) and what was expected."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"]) or "parameters"
        expected = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            names = (info.alias or name for name, info in model.model_fields.items())
            expected = f"only {', '.join(names)}"
        raise InvalidInputError(field=f"{where}{name}", expected=expected, got=first["input"]) from None


class JobParameters(BaseModel):
    """Base of all parameters: frozen, nothing unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class BackfillParameters(JobParameters):
    """A period [from, to) and the views to fill; without a period the whole history, or its `last` stretch.

    Slice views get a row at from, from + every, ...; event views one per event and a snapshot before `from`.
    """

    views: tuple[str, ...] | None = Field(default=None, min_length=1, description="Feature views; all by default.")
    from_: AwareDatetime | None = Field(default=None, alias="from")
    to: AwareDatetime | None = None
    last: PositiveDuration | None = Field(
        default=None, description="Instead of from and to: up to when the job is due."
    )
    every: PositiveDuration = Field(default=timedelta(days=1), description="Distance of slices.")
    partitions: int = Field(
        default=1, ge=1, le=1_024, description="Pieces that event views are split into, by account."
    )
    workers: int = Field(default=1, ge=1, le=64, description="Processes, each with chunks of its own.")

    @model_validator(mode="after")
    def _one_period(self) -> Self:
        if (self.from_ is None) != (self.to is None):
            raise ValueError("from and to come together")
        if self.last is not None and self.from_ is not None:
            raise ValueError("either from and to, or last")
        if self.from_ is not None and self.to is not None and self.from_ >= self.to:
            raise ValueError("from lies before to")
        return self

    def period_ms(self, due_at: datetime) -> tuple[int, int] | None:
        """[from, to) in epoch milliseconds; None stands for the whole history."""
        if self.last is not None:
            return to_ms(due_at - self.last), to_ms(due_at)
        if self.from_ is None or self.to is None:
            return None
        return to_ms(self.from_), to_ms(self.to)


class RecomputeParameters(JobParameters):
    """Compute anew what is stale: slices that late records changed, and everything that other code has made."""

    views: tuple[str, ...] | None = Field(default=None, min_length=1, description="Feature views; all by default.")
    workers: int = Field(default=1, ge=1, le=64, description="Processes, each with chunks of its own.")


class SlicesParameters(JobParameters):
    """One slice of the slice views, at `as_of` or when the job is due."""

    views: tuple[str, ...] | None = Field(default=None, min_length=1, description="Slice views; all by default.")
    as_of: AwareDatetime | None = Field(default=None, description="The instant of the slice; by default the job's own.")


class MaterializeParameters(JobParameters):
    """Bring every pending account and pair up to date; with `as_of` compute the slice views at that instant too."""

    as_of: AwareDatetime | None = None
    workers: int = Field(default=1, ge=1, le=64, description="Processes that compute and store pending rows.")


class NoParameters(JobParameters):
    """None."""
