"""Which payments train, validate and test a model: periods that follow each other in time."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime

from graph_features.clock import from_ms, to_ms
from graph_features.errors import InvalidInputError
from graph_features.settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class Periods:
    """Instants in epoch milliseconds; a period excludes its end.

    Training rows lie in [train_from, validation_from), validation rows in [validation_from, train_to), with labels
    known before `label_cut`; test rows lie in [test_from, test_to), which is empty when nothing is tested.
    """

    train_from: int
    validation_from: int
    train_to: int
    label_cut: int
    test_from: int
    test_to: int

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def plan(
        cls,
        *,
        train_from: datetime,
        train_to: datetime,
        validation_from: datetime | None,
        label_cut: datetime | None,
        test_from: datetime | None,
        test_to: datetime | None,
        settings: TrainingSettings,
    ) -> Periods:
        """Fill in what is not given (see `train_model`); raise InvalidInputError unless all is in order."""
        start, end = to_ms(train_from), to_ms(train_to)
        cut = to_ms(label_cut) if label_cut is not None else end + settings.label_maturity_s * 1_000
        validation = end - int((end - start) * settings.validation_share)
        test_start = to_ms(test_from) if test_from is not None else max(end, cut)
        periods = cls(
            train_from=start,
            validation_from=to_ms(validation_from) if validation_from is not None else validation,
            train_to=end,
            label_cut=cut,
            test_from=test_start,
            test_to=to_ms(test_to) if test_to is not None else test_start,
        )
        periods._check()
        return periods

    def _check(self) -> None:
        order = [
            ("validation_from", self.train_from, self.validation_from, "after train_from"),
            ("train_to", self.validation_from, self.train_to, "after validation_from"),
        ]
        for field, earlier, later, expected in order:
            if later <= earlier:
                raise InvalidInputError(
                    field=field, expected=f"an instant {expected} ({_day(earlier)})", got=_day(later)
                )
        if self.test_from < self.train_to:
            raise InvalidInputError(
                field="test_from", expected=f"train_to ({_day(self.train_to)}) or later", got=_day(self.test_from)
            )
        if self.test_to < self.test_from:
            expected = f"an instant after the test period's beginning ({_day(self.test_from)})"
            raise InvalidInputError(field="test_to", expected=expected, got=_day(self.test_to))


def _day(ms: int) -> str:
    return from_ms(ms).isoformat(timespec="minutes")
