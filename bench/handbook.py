"""The book's data through the whole pipeline, then its live path over REST.

    python -m bench.handbook --data FOLDER [--home FOLDER] [--profile services] [--replay 20000]

FOLDER holds handbook_2018-04-01_2018-09-05.parquet (Le Borgne et al., "Reproducible Machine Learning for Credit Card
Fraud Detection"). Two stores are filled: one with everything, where a model is trained on the book's first training
week and tested on its test week, and one that ends where the test week starts, into which the first payments of that
week are replayed over HTTP: scored, then ingested, with labels when they mature. Both must give the same scores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from bench.http_load import KEY
from bench.replay import replay
from bench.report import Figure, publish
from bench.steps import Step, ringfence

FILE = "handbook_2018-04-01_2018-09-05.parquet"
MAPPING = Path(__file__).parents[1] / "docs" / "mappings" / "handbook.yaml"
TRAIN = datetime(2018, 7, 25, tzinfo=UTC)
TEST = datetime(2018, 8, 8, tzinfo=UTC)
WEEK = timedelta(days=7)
LABEL_DELAY = timedelta(days=7)


def day(moment: datetime) -> str:
    return moment.date().isoformat()


def environment(home: Path, profile: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RINGFENCE_", "MLFLOW_"))}
    # One MLflow for both stores, so that the live one serves the champion of the full one.
    tracking = f"sqlite:///{home.parent / 'mlflow.db'}"
    ours = {"RINGFENCE_HOME": str(home), "RINGFENCE_PROFILE": profile, "MLFLOW_TRACKING_URI": tracking}
    return {**kept, **ours, "RINGFENCE_BASE_CURRENCY": "EUR", "RINGFENCE_AUTH_ADMIN_KEY": KEY}


def split(data: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Write the payments before the test week, and the labels known by then; return how to ingest each."""
    table = pq.read_table(data)
    times = table["TX_DATETIME"]
    early, known = folder / "payments-before-test.parquet", folder / "labels-before-test.parquet"
    pq.write_table(table.filter(pc.less(times, pa.scalar(TEST, times.type))), early)
    labelled = table.filter(pc.less(times, pa.scalar(TEST - LABEL_DELAY, times.type)))
    known_at = pc.add(labelled["TX_DATETIME"], pa.scalar(LABEL_DELAY, pa.duration(times.type.unit)))
    pq.write_table(labelled.append_column("KNOWN_AT", known_at), known)
    whole = yaml.safe_load(MAPPING.read_text(encoding="utf-8"))
    label_columns = {"is_fraud", "label_timestamp"}
    payments = {name: source for name, source in whole["columns"].items() if name not in label_columns}
    labels = {"transaction_id": "TRANSACTION_ID", "is_fraud": "TX_FRAUD", "label_timestamp": "KNOWN_AT"}
    commands = []
    for name, path, columns in (("transactions", early, payments), ("labels", known, labels)):
        mapping = folder / f"{name}.yaml"
        mapping.write_text(yaml.safe_dump({**whole, "columns": columns}), encoding="utf-8")
        commands.append(["ingest", str(path), "--kind", name, "--mapping", str(mapping), "--no-graph"])
    return commands[0], commands[1]


def pipeline(data: Path, env: dict[str, str], scores: Path) -> list[Step]:
    """Everything ingested; features of the training and test period; train, evaluate, promote."""
    period = ["--from", day(TRAIN), "--to", day(TEST + WEEK)]
    window = ["--from", day(TRAIN), "--to", day(TRAIN + WEEK), "--label-cut", day(TEST)]
    test = ["evaluate", "--from", day(TEST), "--to", day(TEST + WEEK)]
    return [
        ringfence("ingest", ["ingest", str(data), "--mapping", str(MAPPING), "--no-graph"], environment=env),
        ringfence("graph", ["sync"], environment=env),
        ringfence("verify", ["verify"], environment=env),
        ringfence("apply", ["apply"], environment=env),
        ringfence("backfill", ["backfill", *period, "--every", "1d"], environment=env),
        ringfence("materialize", ["materialize"], environment=env),
        ringfence("train", ["train", *window], environment=env),
        ringfence("promote", ["promote", "--force"], environment=env),
        ringfence("score", [*test, "--scores", str(scores)], environment=env),
        ringfence("evaluate", [*test, "--protocol", "handbook", "--json"], environment=env),
    ]


def live(payments: list[str], labels: list[str], env: dict[str, str]) -> list[Step]:
    """The second store: what was known when the test week started."""
    return [
        ringfence("live ingest", payments, environment=env),
        ringfence("live labels", labels, environment=env),
        ringfence("live graph", ["sync"], environment=env),
        ringfence("live apply", ["apply"], environment=env),
        ringfence("live materialize", ["materialize", "--as-of", day(TEST)], environment=env),
    ]


def figures(steps: list[Step], rows: int) -> list[Figure]:
    found = []
    for step in steps:
        found.append(Figure(name=f"{step.name} time", value=step.seconds, unit="s"))
        found.append(Figure(name=f"{step.name} peak memory", value=step.peak_mb, unit="MB"))
        if step.name in {"ingest", "graph"}:
            speed = rows / step.seconds
            found.append(Figure(name=f"{step.name} speed", value=speed, unit="rows/s", better="higher"))
    return found


def metrics(step: Step) -> list[Figure]:
    """AUC, AP and CP@100 as `ringfence evaluate --json` prints them."""
    document = json.loads(re.findall(r"^\{.*\}$", step.output, re.MULTILINE)[-1])
    names = ("roc_auc", "average_precision", "card_precision")
    return [Figure(name=f"test {name}", value=document[name], unit="", better="higher") for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {FILE}")
    parser.add_argument("--home", type=Path, default=Path(".ringfence/handbook"), help="state folder; kept afterwards")
    parser.add_argument("--profile", choices=("embedded", "services"), default="services")
    parser.add_argument("--live-only", action="store_true", help="take model and scores of an earlier run in --home")
    parser.add_argument("--replay", type=int, default=20_000, help="payments of the test week to replay; 0 for none")
    arguments = parser.parse_args()
    data = arguments.data / FILE
    if not data.is_file():
        sys.exit(f"{data} is not there: --data names the folder that holds it (see the book's data set)")
    home = arguments.home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    full, live_env = (environment(home / part, arguments.profile) for part in ("full", "live"))
    scores = home / "scores.parquet"
    rows = pq.read_metadata(data).num_rows
    with_servers = arguments.profile == "services"
    found: list[Figure] = []
    try:
        if not arguments.live_only:
            if with_servers:
                ringfence("services", ["services", "up"], environment=full)
            steps = pipeline(data, full, scores)
            found += figures(steps, rows) + metrics(steps[-1])
            if with_servers:
                ringfence("services", ["services", "down"], environment=full)
        if arguments.replay:
            if with_servers:
                ringfence("services", ["services", "up"], environment=live_env)
            found += figures(live(*split(data, home), live_env), rows)
            found += replay(data, scores, live_env, start=TEST, n=arguments.replay)
    finally:
        if with_servers:
            ringfence("services down", ["services", "down"], environment=full)
            ringfence("services down", ["services", "down"], environment=live_env)
        publish("handbook-live" if arguments.live_only else "handbook", found)


if __name__ == "__main__":
    main()
