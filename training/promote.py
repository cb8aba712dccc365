"""Puts a model into service, or takes it back: a comparison, the alias, and a trail of who did what and why.

Serving follows the alias `champion`. Moving it in MLflow's own UI works too; only the trail is then missing.
"""

from __future__ import annotations

import getpass
import json
import logging
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from graph_features.catalog import catalog
from graph_features.errors import ModelError, UnknownFeatureError
from graph_features.settings import FeatureSettings, PlatformSettings, TrainingSettings, load
from training.bundle import Bundle
from training.compare import compare_models
from training.gates import Comparison, Gates, failures
from training.progress import Progress, no_progress
from training.registry import CHAMPION, PREVIOUS, Registry
from training.trail import Decision, Entry, Trail

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """A decision: `promoted` or not, and why (gates that failed, or what was done). `previous` was champion before."""

    name: str
    version: str
    previous: str | None
    promoted: bool
    reasons: tuple[str, ...]
    comparison: Comparison | None = None


def promote_model(
    platform: PlatformSettings,
    *,
    version: str | None = None,
    gates: Path | Gates | None = None,
    rollback: bool = False,
    force: bool = False,
    who: str | None = None,
    alias: str = CHAMPION,
    settings: TrainingSettings | None = None,
    progress: Progress = no_progress,
) -> Promotion:
    """Compare a version (the newest by default) with the champion and move the alias to it when every gate holds.

    With `force` nothing is compared; the trail says so. With `rollback` the alias goes back to the version that was
    champion before, without comparison. Neither takes a version that serving would refuse. The decision, its figures,
    gates, who and when become a row of the trail and tags of the version. Raises ModelError when there is nothing to
    promote or to go back to, or when the champion changed meanwhile.
    """
    settings = settings or load(TrainingSettings)
    with Trail.open(platform) as trail:
        desk = _Desk(
            platform=platform,
            registry=Registry.open(platform.home),
            trail=trail,
            name=settings.model_name,
            alias=alias,
            who=who or _user(),
            settings=settings,
        )
        if rollback:
            return desk.roll_back()
        held = gates if isinstance(gates, Gates) else Gates.load(gates)
        return desk.promote(version, None if force else held, progress)


def history(platform: PlatformSettings, *, limit: int = 20, settings: TrainingSettings | None = None) -> list[Entry]:
    """Decisions on the configured model, newest first."""
    settings = settings or load(TrainingSettings)
    with Trail.open(platform) as trail:
        return list(trail.newest(settings.model_name, limit=limit))


def present_hash(bundle: Bundle) -> str | None:
    """The feature hash that a bundle's views have today; None when one of them is gone."""
    try:
        return catalog().feature_hash(bundle.info.inputs.hashed_views, settings=load(FeatureSettings))
    except UnknownFeatureError:
        return None


@dataclass(frozen=True, kw_only=True)
class _Desk:
    """Where one decision on one alias is made."""

    platform: PlatformSettings
    registry: Registry
    trail: Trail
    name: str
    alias: str
    who: str
    settings: TrainingSettings

    def promote(self, version: str | None, gates: Gates | None, progress: Progress) -> Promotion:
        current = self._current()
        candidate = version or self._newest()
        if candidate == current:
            return self._plain(candidate, current, promoted=True, reason=f"version {candidate} is {self.alias} already")
        challenger = Bundle.load(self.registry.download(self.name, candidate))
        if wrong := _unservable(challenger):
            promotion = self._plain(candidate, current, promoted=False, reason=wrong)
        elif gates is None:
            reason = "promoted by force, without a comparison"
            promotion = self._plain(candidate, current, promoted=True, reason=reason)
        else:
            promotion = self._compare(candidate, current, challenger, gates, progress)
        self._carry_out(promotion, gates)
        log.info("version %s of %s: %s", candidate, self.name, "; ".join(promotion.reasons))
        return promotion

    def roll_back(self) -> Promotion:
        current = self._current()
        if current is None:
            raise ModelError(f"{self.name!r} has no {self.alias}, so there is nothing to roll back")
        previous, how = self._before(current)
        if wrong := _unservable(Bundle.load(self.registry.download(self.name, previous))):
            raise ModelError(f"version {previous} cannot be served again: {wrong}")
        done = f"rolled back from version {current} to {previous}{how}"
        promotion = self._plain(previous, current, promoted=True, reason=done)
        entry = self._entry(promotion, "rolled back", None)
        with self.trail.moving(entry):
            self._move(previous, expected=current)
        # PREVIOUS stays as it was on both: a second rollback goes one further back, not forth again.
        self.registry.tag(self.name, current, _tags(entry))
        return promotion

    def _current(self) -> str | None:
        current = self.registry.version_of(self.name, self.alias)
        self.trail.settle(self.name, self.alias, current)
        return current

    def _newest(self) -> str:
        versions = self.registry.versions(self.name)
        if not versions:
            raise ModelError(f"no version of {self.name!r} to promote: train one (`ringfence train`)")
        return str(versions[0].version)

    def _before(self, current: str) -> tuple[str, str]:
        """The champion before `current`, and a note when the trail does not know how `current` came to be it."""
        last = self.trail.last_moved(self.name, self.alias)
        if last is not None and last.version != current:
            return last.version, f", the last that was put into service here: {current} was by other means"
        previous = self.registry.tags(self.name, current).get(PREVIOUS)
        if not previous:
            raise ModelError(
                f"version {current} of {self.name!r} was the first {self.alias}: there is none to roll back to"
            )
        return previous, ""

    def _compare(
        self, candidate: str, current: str | None, challenger: Bundle, gates: Gates, progress: Progress
    ) -> Promotion:
        champion, note = self._champion(current)
        found = compare_models(
            self.platform,
            challenger=(candidate, challenger),
            champion=None if champion is None or current is None else (current, champion),
            window_days=gates.window_days,
            settings=self.settings,
            progress=progress,
        )
        promotion = judge(self.name, candidate, current, found, gates)
        return replace(promotion, reasons=(*promotion.reasons, note)) if note else promotion

    def _champion(self, current: str | None) -> tuple[Bundle | None, str | None]:
        """The champion, if it can still be fed, and a note if it cannot."""
        if current is None:
            return None, None
        champion = Bundle.load(self.registry.download(self.name, current))
        if _unservable(champion):
            return None, f"version {current} reads features that are no longer computed and was not compared"
        return champion, None

    def _carry_out(self, promotion: Promotion, gates: Gates | None) -> None:
        entry = self._entry(promotion, "promoted" if promotion.promoted else "refused", gates)
        tags = _tags(entry)
        if not promotion.promoted:
            self.trail.record(entry)
        else:
            if promotion.previous is not None:
                tags[PREVIOUS] = promotion.previous
            # Before the alias: from the moment that it moves there is something to roll back to.
            self.registry.tag(self.name, promotion.version, {PREVIOUS: promotion.previous or ""})
            with self.trail.moving(entry):
                self._move(promotion.version, expected=promotion.previous)
        self.registry.tag(self.name, promotion.version, tags)

    def _move(self, version: str, *, expected: str | None) -> None:
        current = self.registry.version_of(self.name, self.alias)
        if current != expected:
            raise ModelError(
                f"{self.alias} of {self.name!r} was moved from version {expected} to {current} meanwhile: "
                "nothing was changed, try again"
            )
        self.registry.set_alias(self.name, self.alias, version)

    def _plain(self, version: str, previous: str | None, *, promoted: bool, reason: str) -> Promotion:
        return Promotion(name=self.name, version=version, previous=previous, promoted=promoted, reasons=(reason,))

    def _entry(self, promotion: Promotion, decision: Decision, gates: Gates | None) -> Entry:
        return Entry(
            decided_by=self.who,
            decision=decision,
            model=self.name,
            alias=self.alias,
            version=promotion.version,
            previous=promotion.previous,
            reasons=promotion.reasons,
            figures=None if promotion.comparison is None else promotion.comparison.to_json(),
            gates=None if gates is None else gates.model_dump(),
            decided_at=datetime.now(UTC),
        )


def judge(name: str, candidate: str, current: str | None, found: Comparison | None, gates: Gates) -> Promotion:
    """Hold a comparison against the gates; None stands for a window without a payment. Moves nothing."""
    if found is None:
        reasons = [
            "no matured payment lies after the models' training periods, so there is nothing to compare them on: "
            "wait for labels, or train up to an earlier day"
        ]
    else:
        reasons = failures(found, gates)
    promoted = not reasons
    if found is not None and promoted:
        reasons = [f"every gate holds on {found.payments} payments, {found.frauds} of them fraudulent"]
    return Promotion(
        name=name, version=candidate, previous=current, promoted=promoted, reasons=tuple(reasons), comparison=found
    )


def _unservable(bundle: Bundle) -> str | None:
    """Why serving would refuse the bundle, None when it would not."""
    present = present_hash(bundle)
    if bundle.info.feature_hash == present:
        return None
    return f"feature hash {bundle.info.feature_hash}, the catalogue's is {present}: train a new model"


def _tags(entry: Entry) -> dict[str, str]:
    assert entry.decided_at is not None
    return {
        "ringfence.decision": entry.decision,
        "ringfence.decided_by": entry.decided_by,
        "ringfence.decided_at": entry.decided_at.isoformat(timespec="seconds"),
        "ringfence.reasons": "; ".join(entry.reasons),
        "ringfence.figures": json.dumps(entry.figures),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
