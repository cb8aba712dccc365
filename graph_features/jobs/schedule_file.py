"""The schedule file: which jobs run when. Validated as a whole before anything starts."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from apscheduler.triggers.cron import CronTrigger
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from graph_features.errors import InvalidInputError
from graph_features.jobs.parameters import Duration, PositiveDuration, parse


class ScheduledJob(BaseModel):
    """One line of the schedule: a kind of job, when it is due, and its parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="Unique; ticks are counted by it.")
    kind: str = Field(min_length=1, description="What to run: sync_graph, materialize, slices, backfill, train, …")
    cron: str | None = Field(default=None, description="minute hour day month weekday, weekdays as mon to sun.")
    every: PositiveDuration | None = Field(default=None, description="Instead of cron: 30s, 15m, 6h, 1d; from 1970 on.")
    time_zone: str | None = Field(
        default=None, alias="timezone", description="IANA name for cron; default: the file's."
    )
    jitter: Duration = Field(default=timedelta(0), description="Delay of up to this, spread evenly, for each tick.")
    misfire_grace: PositiveDuration = Field(
        default=timedelta(hours=1), description="How late a tick may still run; `catch_up` says which of several do."
    )
    catch_up: Literal["last", "all"] = Field(
        default="last", description="After downtime: the last missed tick for all, or each of them in order."
    )
    parameters: dict[str, Any] = Field(default_factory=dict)

    @field_validator("time_zone")
    @classmethod
    def _zone_exists(cls, value: str | None) -> str | None:
        return None if value is None else _known_zone(value)

    @field_validator("cron")
    @classmethod
    def _cron_is_valid(cls, value: str | None) -> str | None:
        if value is None:
            return None
        fields = value.split()
        if len(fields) != 5:
            raise ValueError("write five fields: minute hour day month weekday")
        # Zero is Sunday in crontab and Monday in APScheduler; a name cannot be misread.
        if any(character.isdigit() for character in fields[4]):
            raise ValueError("write weekdays as names, mon to sun: numbers start on different days in different crons")
        CronTrigger.from_crontab(value, timezone="UTC")
        return value

    @model_validator(mode="after")
    def _one_trigger(self) -> Self:
        if (self.cron is None) == (self.every is None):
            raise ValueError(f"give job {self.name} either cron or every")
        if self.every is not None and self.jitter >= self.every:
            raise ValueError(f"the jitter of job {self.name} is shorter than every")
        return self


class ScheduleFile(BaseModel):
    """A whole schedule file."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    time_zone: str = Field(default="UTC", alias="timezone")
    jobs: tuple[ScheduledJob, ...] = Field(min_length=1)

    @field_validator("time_zone")
    @classmethod
    def _zone_exists(cls, value: str) -> str:
        return _known_zone(value)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [job.name for job in self.jobs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"job names must be unique, {', '.join(twice)} comes twice")
        return self

    def zone(self, job: ScheduledJob) -> ZoneInfo:
        return ZoneInfo(job.time_zone or self.time_zone)


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("write an IANA time zone such as UTC or Europe/Berlin") from None
    return name


def read_schedule(path: Path) -> ScheduleFile:
    """Read and validate a schedule file; raise InvalidInputError that names the file, the field and what is wrong."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(field=str(path), expected="a readable schedule file", got=str(error)) from error
    except yaml.YAMLError as error:
        raise InvalidInputError(field=str(path), expected="valid YAML", got=str(error)) from error
    if not isinstance(data, dict):
        raise InvalidInputError(field=str(path), expected="a mapping with a list named jobs", got=data)
    return parse(ScheduleFile, data, where=f"{path}: ")
