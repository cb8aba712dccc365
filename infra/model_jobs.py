"""Jobs that need the rooms above the features: training and promotion, to be scheduled or asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Self

from pydantic import AwareDatetime, Field, model_validator

from graph_features.clock import to_ms
from graph_features.errors import ModelError
from graph_features.jobs.parameters import JobParameters, PositiveDuration
from graph_features.jobs.runner import JobContext, JobKind
from training.gates import Gates

if TYPE_CHECKING:
    from graph_features.settings import TrainingSettings
    from infra.wiring import Platform


log = logging.getLogger(__name__)


class TrainParameters(JobParameters):
    """Train on the newest period whose labels are known, tested on the time after it."""

    last: PositiveDuration = Field(default=timedelta(days=28), description="Length of the training period.")
    test: PositiveDuration = Field(default=timedelta(days=7), description="Length of the test period after it.")
    search_minutes: float | None = Field(default=None, ge=0, description="Look for better settings first, so long.")
    promote: bool = Field(default=False, description="Promote the model when it holds every gate.")
    gates: Gates | None = Field(default=None, description="Gates; else those of RINGFENCE_PROMOTION_GATES.")


class PromoteParameters(JobParameters):
    """Compare a version with the one in service on the newest matured payments, and promote it if it holds."""

    version: str | None = Field(default=None, description="The version; by default the newest.")
    gates: Gates | None = Field(default=None, description="Gates; else those of RINGFENCE_PROMOTION_GATES.")


class EmbeddingsParameters(JobParameters):
    """Embed every account at one instant, or at every step of a period [from, to)."""

    as_of: AwareDatetime | None = Field(default=None, description="The instant; by default the job's own.")
    from_: AwareDatetime | None = Field(default=None, alias="from")
    to: AwareDatetime | None = None
    every: PositiveDuration = Field(default=timedelta(days=1), description="Distance of the period's instants.")
    version: str | None = Field(
        default=None, description="A model version; by default the one in service, and the next or the one before."
    )

    @model_validator(mode="after")
    def _one_period(self) -> Self:
        if (self.from_ is None) != (self.to is None):
            raise ValueError("from and to come together")
        if self.as_of is not None and self.from_ is not None:
            raise ValueError("either as_of, or from and to")
        if self.from_ is not None and self.to is not None and self.from_ >= self.to:
            raise ValueError("from lies before to")
        return self

    def instants_ms(self, due_at: datetime) -> list[int]:
        """The instants in epoch milliseconds."""
        if self.from_ is None or self.to is None:
            return [to_ms(self.as_of or due_at)]
        return list(range(to_ms(self.from_), to_ms(self.to), int(self.every.total_seconds() * 1_000)))


class EvaluateParameters(JobParameters):
    """Score the newest period whose labels are known with the model in service, or another version."""

    last: PositiveDuration = Field(default=timedelta(days=7), description="Length of the period.")
    version: str | None = Field(default=None, description="A version; by default the one in service.")
    least_average_precision: float = Field(default=0.0, ge=0, le=1, description="Below it the job fails.")


def model_kinds(platform: Platform) -> dict[str, JobKind]:
    """Return the kinds `train`, `evaluate`, `promote` and `embeddings`, working on the active profile."""
    return {
        "embeddings": JobKind(
            run=lambda context: _embeddings(context, platform),
            parameters=EmbeddingsParameters,
            description="Embed every account for the models that read embeddings, offline and online.",
        ),
        "evaluate": JobKind(
            run=lambda context: _evaluate(context, platform),
            parameters=EvaluateParameters,
            description="Measure the model in service on the newest matured period, and log its figures.",
        ),
        "train": JobKind(
            run=lambda context: _train(context, platform),
            parameters=TrainParameters,
            description="Train on the newest matured period, register, and promote if asked and every gate holds.",
        ),
        "promote": JobKind(
            run=lambda context: _promote(context, platform),
            parameters=PromoteParameters,
            description="Compare the newest version with the one in service, and promote it if every gate holds.",
        ),
    }


def _embeddings(context: JobContext, platform: Platform) -> None:
    from training.embed import refresh_embeddings

    parameters = context.parameters(EmbeddingsParameters)
    written = refresh_embeddings(
        platform.settings,
        as_of_ms=parameters.instants_ms(context.due_at),
        version=parameters.version,
        progress=_advance(context),
    )
    if not written:
        log.info("no model in service reads embeddings: nothing to do")


def _evaluate(context: JobContext, platform: Platform) -> None:
    from graph_features.settings import TrainingSettings, load
    from training.assess import evaluate_model

    parameters = context.parameters(EvaluateParameters)
    settings = load(TrainingSettings)
    test_to = context.due_at - timedelta(seconds=settings.label_maturity_s)

    found = evaluate_model(
        platform.settings,
        test_from=test_to - parameters.last,
        test_to=test_to,
        version=parameters.version,
        settings=settings,
        progress=_advance(context),
    )
    figures = found.result.figures()
    log.info("%s %s: %s", found.name, found.version, figures)
    reached = figures.get("average_precision", 0.0)
    if reached < parameters.least_average_precision:
        raise ModelError(
            f"version {found.version} reaches an average precision of {reached:.4f}, "
            f"below {parameters.least_average_precision:.4f}"
        )


def _train(context: JobContext, platform: Platform) -> None:
    from graph_features.settings import TrainingSettings, load
    from training.train import train_model

    parameters = context.parameters(TrainParameters)
    settings = load(TrainingSettings)
    maturity = timedelta(seconds=settings.label_maturity_s)
    # Backwards from now: labels of the test period are known, and between training and test lies the time they take.
    test_to = context.due_at - maturity
    test_from = test_to - parameters.test
    train_to = test_from - maturity

    report = train_model(
        platform.settings,
        train_from=train_to - parameters.last,
        train_to=train_to,
        label_cut=test_from,
        test_from=test_from,
        test_to=test_to,
        search_minutes=parameters.search_minutes,
        settings=settings,
        progress=_advance(context),
    )
    if parameters.promote:
        _put_forward(context, platform, report.version, parameters.gates, settings)


def _promote(context: JobContext, platform: Platform) -> None:
    from graph_features.settings import TrainingSettings, load

    parameters = context.parameters(PromoteParameters)
    _put_forward(context, platform, parameters.version, parameters.gates, load(TrainingSettings))


def _put_forward(
    context: JobContext, platform: Platform, version: str | None, gates: Gates | None, settings: TrainingSettings
) -> None:
    """Promote a version; a refusal ends the job as failed with the reasons, so that somebody looks."""
    from graph_features.settings import PromotionSettings, load
    from training.promote import promote_model

    decision = promote_model(
        platform.settings,
        version=version,
        gates=gates or load(PromotionSettings).gates,
        who=f"{context.job.requested_by}, job {context.job.id}",
        settings=settings,
        progress=_advance(context),
    )
    log.info("version %s: %s", decision.version, "; ".join(decision.reasons))
    if not decision.promoted:
        raise ModelError(f"version {decision.version} was refused: {'; '.join(decision.reasons)}")


def _advance(context: JobContext) -> Callable[[float, float | None, str], None]:
    def advance(done: float, total: float | None, _text: str) -> None:
        context.progress(int(done), None if total is None else int(total))
        context.check()

    return advance
