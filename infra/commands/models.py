"""train, train-head, embeddings, evaluate, promote, promotions: from feature rows to a model in service."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.console import fail, instant_option, progress, say, table

if TYPE_CHECKING:
    from training.gates import Comparison
    from training.train import TrainReport

ProtocolOption = Annotated[str, typer.Option(help="all, or handbook: without senders whose fraud is known by then.")]
ScenariosOption = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="Parquet or CSV of transaction_id and scenario: figures per one."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print figures as one line of JSON.")]


def train(
    from_: Annotated[datetime, instant_option("--from", help="Start of the training period.")],
    to: Annotated[datetime, instant_option("--to", help="Its end, excluded.")],
    validation_from: Annotated[datetime | None, instant_option(help="By default the last fifth of the period.")] = None,
    label_cut: Annotated[datetime | None, instant_option(help="Labels known before; end plus maturity.")] = None,
    test_from: Annotated[datetime | None, instant_option(help="By default the label cut.")] = None,
    test_to: Annotated[datetime | None, instant_option(help="Without it nothing is tested.")] = None,
    protocol: ProtocolOption = "all",
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    register_: Annotated[bool, typer.Option("--register/--no-register", help="Register the model in MLflow.")] = True,
    reuse: Annotated[bool, typer.Option(help="Take the version that was trained on exactly this, if any.")] = False,
    scenarios: ScenariosOption = None,
    search: Annotated[float | None, typer.Option(min=0, help="Minutes to look for better settings first.")] = None,
    json_: JsonOption = False,
) -> None:
    """Train a model on a period, test it on a later one, and register it in MLflow."""
    from graph_features.settings import PlatformSettings, load
    from training.evaluate import protocol_named
    from training.scenarios import read_scenarios
    from training.train import train_model

    with progress("train") as advance:
        report = train_model(
            load(PlatformSettings),
            train_from=from_,
            train_to=to,
            validation_from=validation_from,
            label_cut=label_cut,
            test_from=test_from,
            test_to=test_to,
            protocol=protocol_named(protocol),
            seed=seed,
            register=register_,
            reuse=reuse,
            search_minutes=search,
            scenarios=None if scenarios is None else read_scenarios(scenarios),
            progress=advance,
        )
    _say_trained(report, json_=json_)


def train_head(
    from_: Annotated[datetime, instant_option("--from", help="Start of the training period.")],
    to: Annotated[datetime, instant_option("--to", help="Its end, excluded.")],
    validation_from: Annotated[datetime | None, instant_option(help="By default the last fifth of the period.")] = None,
    label_cut: Annotated[datetime | None, instant_option(help="Labels known before; end plus maturity.")] = None,
    test_from: Annotated[datetime | None, instant_option(help="By default the label cut.")] = None,
    test_to: Annotated[datetime | None, instant_option(help="Without it nothing is tested.")] = None,
    protocol: ProtocolOption = "all",
    views: Annotated[list[str] | None, typer.Option("--view", help="Views read beside embeddings; repeat it.")] = None,
    register_: Annotated[bool, typer.Option("--register/--no-register", help="Register the model in MLflow.")] = True,
    json_: JsonOption = False,
) -> None:
    """Train a model whose first layers run in batch: an encoder of accounts, and a head that reads what it stored."""
    from graph_features.settings import PlatformSettings, load
    from training.evaluate import protocol_named
    from training.head import REAL_TIME_VIEWS, train_head

    with progress("train-head") as advance:
        report = train_head(
            load(PlatformSettings),
            train_from=from_,
            train_to=to,
            validation_from=validation_from,
            label_cut=label_cut,
            test_from=test_from,
            test_to=test_to,
            protocol=protocol_named(protocol),
            views=REAL_TIME_VIEWS if views is None else views,
            register=register_,
            progress=advance,
        )
    _say_trained(report, json_=json_)


def embeddings(
    as_of: Annotated[datetime | None, instant_option(help="The instant; by default now.")] = None,
    from_: Annotated[datetime | None, instant_option("--from", help="Instead: start of a period.")] = None,
    to: Annotated[datetime | None, instant_option("--to", help="Its end, excluded.")] = None,
    every: Annotated[str, typer.Option(help="Distance of the period's instants: 6h, 1d.")] = "1d",
    version: Annotated[
        str | None, typer.Option(help="By default the version in service, and the next or the one before it.")
    ] = None,
) -> None:
    """Embed every account for the models that read embeddings, offline and online: a job of kind embeddings."""
    from infra.jobs import run_job

    moments = {"as_of": as_of, "from": from_, "to": to}
    named = {name: moment.isoformat() for name, moment in moments.items() if moment is not None}
    say(run_job("embeddings", {**named, "every": every, "version": version}))


def evaluate(
    from_: Annotated[datetime, instant_option("--from", help="Start of the period.")],
    to: Annotated[datetime, instant_option("--to", help="Its end, excluded.")],
    version: Annotated[str | None, typer.Option(help="A version; by default the one in service.")] = None,
    label_cut: Annotated[datetime | None, instant_option(help="Labels known before; by default all.")] = None,
    protocol: ProtocolOption = "all",
    scenarios: ScenariosOption = None,
    scores: Annotated[Path | None, typer.Option(help="Write each payment's score to this Parquet file.")] = None,
    ladder: Annotated[bool, typer.Option(help="Fit and measure every kind of model on the same rows instead.")] = False,
    json_: JsonOption = False,
) -> None:
    """Score a period with a model, through the same tuples as in serving, and measure it on the labels."""
    from graph_features.settings import PlatformSettings, load

    if ladder:
        from infra.commands.ladder import show_ladder

        show_ladder(from_, to, version=version, label_cut=label_cut, protocol=protocol, json_=json_)
        return
    from training.assess import evaluate_model
    from training.evaluate import protocol_named
    from training.scenarios import read_scenarios, scenario_figures

    with progress("evaluate") as advance:
        found = evaluate_model(
            load(PlatformSettings),
            test_from=from_,
            test_to=to,
            version=version,
            label_cut=label_cut,
            protocol=protocol_named(protocol),
            progress=advance,
        )
    if scores is not None:
        found.write_scores(scores)
    figures = found.result.figures()
    if scenarios is not None:
        known = read_scenarios(scenarios)
        figures |= scenario_figures(found.dataset, found.score, known, threshold=found.threshold)
    _show(f"{found.name} {found.version}", figures, quiet=json_)
    if json_:
        say(json.dumps({"version": found.version, **figures}))


def accounts(
    labels: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Parquet or CSV: account id and label.")],
    as_of: Annotated[datetime, instant_option("--as-of", help="The instant that the features speak for.")],
    id_column: Annotated[str, typer.Option(help="Column of the account id.")] = "account_id",
    label_column: Annotated[str, typer.Option(help="Column that is true (or 1) for fraudulent accounts.")] = "is_fraud",
    prefix: Annotated[str, typer.Option(help="What the mapping puts before the id.")] = "",
    folds: Annotated[int, typer.Option(min=2)] = 5,
    network: Annotated[bool, typer.Option("--network", help="The network's figures instead of the trees'.")] = False,
    scores: Annotated[Path | None, typer.Option(help="Write each account's score to this Parquet file.")] = None,
    json_: JsonOption = False,
) -> None:
    """Score accounts, where labels belong to accounts: cross-validated over folds of accounts."""
    from graph_features.settings import PlatformSettings, load
    from training.accounts import read_account_labels, score_accounts

    known = read_account_labels(labels, id_column=id_column, label_column=label_column, prefix=prefix)
    with progress("accounts") as advance:
        report = score_accounts(
            load(PlatformSettings),
            known,
            as_of=as_of,
            folds=folds,
            model="network" if network else "trees",
            progress=advance,
        )
    if scores is not None:
        report.write_scores(scores)
    if json_:
        say(json.dumps(report.figures()))
        return
    rows: list[list[Any]] = [[name, f"{value:.4f}"] for name, value in report.figures().items()]
    table(f"{len(known):,} accounts", ["figure", "value"], rows)


def promote(
    version: Annotated[str | None, typer.Option(help="The version; by default the newest.")] = None,
    gates: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="YAML file of gates.")] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Go back to the champion before this one.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Promote without comparing; the trail says so.")] = False,
    by: Annotated[str | None, typer.Option(help="Who decides; by default the user of this process.")] = None,
) -> None:
    """Put a version into service if it holds every gate against the one in service. Exit code 1 when refused.

    Gates come from --gates, else from the file that RINGFENCE_PROMOTION_GATES names, else they are the defaults.
    """
    from graph_features.settings import PlatformSettings, PromotionSettings, load
    from training.promote import promote_model

    with progress("promote") as advance:
        decision = promote_model(
            load(PlatformSettings),
            version=version,
            gates=gates or load(PromotionSettings).gates,
            rollback=rollback,
            force=force,
            who=by,
            progress=advance,
        )
    if decision.comparison is not None:
        _show_comparison(decision.comparison)
    verdict = "is champion" if decision.promoted else "was refused"
    text = f"version {decision.version} {verdict}: {'; '.join(decision.reasons)}"
    if not decision.promoted:
        fail(text)
    say(text)


def promotions(
    limit: Annotated[int, typer.Option(min=1)] = 20,
    json_: JsonOption = False,
) -> None:
    """Show who put which version into service or was refused, when and why, newest first."""
    from graph_features.settings import PlatformSettings, load
    from training.promote import history

    found = history(load(PlatformSettings), limit=limit)
    if json_:
        say(json.dumps([entry.to_json() for entry in found]))
        return
    rows = [
        [
            f"{entry.decided_at:%Y-%m-%d %H:%M:%S}",
            entry.decision,
            entry.version,
            entry.previous or "",
            entry.decided_by,
            "; ".join(entry.reasons),
        ]
        for entry in found
    ]
    table("promotions", ["when", "decision", "version", "champion before", "by", "why"], rows)


def _show_comparison(found: Comparison) -> None:
    models = [found.challenger, *([] if found.champion is None else [found.champion])]
    names = ["average_precision", "card_precision", "calibration_error", "latency_ms_per_1000"]
    rows: list[list[Any]] = [[name, *(f"{getattr(model, name):.4f}" for model in models)] for name in names]
    heads = ["challenger", "champion"][: len(models)]
    title = f"{found.payments:,} matured payments, {found.frauds:,} of them fraudulent"
    table(title, ["figure", *(f"{head} {model.version}" for head, model in zip(heads, models, strict=True))], rows)
    if found.score_shift is not None:
        low, high = found.gain_interval or (float("nan"), float("nan"))
        say(f"scores move by {found.score_shift:.4f} on average; AP gained: {low:+.4f} to {high:+.4f} (90 %)")


def _say_trained(report: TrainReport, *, json_: bool) -> None:
    if report.test is not None:
        _show(f"test of version {report.version}", report.test.figures(), quiet=json_)
    if json_:
        test = None if report.test is None else report.test.figures()
        say(json.dumps({"version": report.version, "run_id": report.run_id, "test": test}))
    else:
        rows = f"{report.train_rows:,} payments, {report.train_frauds:,} of them fraudulent"
        say(f"version {report.version}: trained on {rows}, in {report.best_epoch} epochs on {report.device}")


def _show(title: str, figures: Mapping[str, float], *, quiet: bool) -> None:
    if not quiet:
        table(title, ["figure", "value"], [[name, f"{value:,.4f}"] for name, value in figures.items()])


def register(app: typer.Typer) -> None:
    for command in (train, train_head, embeddings, evaluate, accounts, promote, promotions):
        app.command()(command)
