"""How good the models are: the whole ladder on the book's data, by the book's protocol.

    python -m bench.quality --data FOLDER [--home FOLDER] [--only PART ...] [--seeds 3] [--folds 4]

FOLDER holds handbook_2018-04-01_2018-09-05.parquet (Le Borgne et al., "Reproducible Machine Learning for Credit Card
Fraud Detection"). Parts: book (its own features and XGBoost, which says that the protocol is right), trees, trees-60
(sixty training days), network (alone, and with the trees), ladder (every rung on the single split), earlier (folds 28
days before, on which all choices were made). Scores are kept under the home, by features, rung, fold and seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.handbook import FILE
from bench.quality_book import book_features, book_scores
from bench.quality_data import Fold, Payments
from bench.report import Figure, publish
from bench.timing import note
from graph_features.clock import DAY_MS
from graph_features.settings import TrainingSettings
from training.dataset import Dataset
from training.evaluate import CARDS
from training.ladder import RUNGS, Workshop
from training.metrics import average_precision, card_precision, roc_auc
from training.tabular import Columns, columns
from training.trees import Trees, TreeSettings

Float64 = npt.NDArray[np.float64]

TEST_FOLDS = ("2018-07-25", "2018-08-01", "2018-08-08", "2018-08-15")
EARLIER_FOLDS = ("2018-06-27", "2018-07-04", "2018-07-11", "2018-07-18")
"""Every test payment of these happened before the first one of TEST_FOLDS. All choices were made on them."""

PUBLISHED_SPLIT = (0.862, 0.639, 0.273)
PUBLISHED_FOLDS = (0.869, 0.687, 0.303)
ORACLE = 0.767
"""Mean AP of a model that knows the generator's rules and sees labels a week late."""

Triple = tuple[float, float, float]
NAMES = ("AUC", "AP", "CP@100")


def measure(dataset: Dataset, score: Float64) -> Triple:
    """AUC, AP and CP@100."""
    cards = card_precision(dataset.is_fraud, score, dataset.event_ms, dataset.sender_id, k=CARDS)
    return roc_auc(dataset.is_fraud, score), average_precision(dataset.is_fraud, score), float(np.mean(cards))


class Bench:
    """The payments, what the parts share, and the scores that earlier runs left."""

    def __init__(self, payments: Payments, seeds: int, folds: int, threads: int) -> None:
        self.payments, self.seeds, self.folds = payments, seeds, folds
        self.settings = TrainingSettings(device="cpu")
        self.trees = TreeSettings(threads=threads)
        self.figures: list[Figure] = []
        self.threads = threads

    def test_folds(self, *, train_days: int = 7) -> list[Fold]:
        return [Fold.of(day, train_days=train_days) for day in TEST_FOLDS[: self.folds]]

    def scores(self, rung: str, fold: Fold, seed: int, test: Dataset, fit: Callable[[], Float64]) -> Float64:
        """The scores of an earlier run of the same, else fit's."""
        what = {"rung": rung, "fold": asdict(fold), "seed": seed, "spec": self.payments.spec.feature_hash}
        models = {"trees": {**asdict(self.trees), "threads": 0}, "settings": self.settings.model_dump(mode="json")}
        key = json.dumps({**what, **models, "data": self.payments.digest}, sort_keys=True)
        name = rung.replace(" ", "")
        path = self.payments.home / "scores" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.npy"
        if path.is_file() and len(found := np.load(path)) == len(test):
            return np.asarray(found, np.float64)
        started = perf_counter()
        score = np.asarray(fit(), np.float64)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, score)
        note(f"  {rung}, {fold.name}, seed {seed}: AP {measure(test, score)[1]:.4f}, {perf_counter() - started:.0f} s")
        return score

    def report(
        self, name: str, rows: list[list[Triple]], *, goal: float | None = None, peer: float | None = None
    ) -> None:
        """One figure per metric, the mean over folds and seeds; `rows` holds the seeds of each fold."""
        found = np.array(rows)
        for at, metric in enumerate(NAMES):
            by_seed = " ".join(f"{value:.4f}" for value in found[:, :, at].mean(axis=0))
            by_fold = " ".join(f"{value:.4f}" for value in found[:, :, at].mean(axis=1))
            is_ap = metric == "AP"
            self.figures.append(
                Figure(
                    name=f"{name}: {metric}",
                    value=float(found[:, :, at].mean()),
                    unit="",
                    better="higher",
                    peer="book's XGBoost" if is_ap and peer is not None else None,
                    peer_value=peer if is_ap else None,
                    goal=goal if is_ap else None,
                    conditions=f"seeds {by_seed}; folds {by_fold}",
                )
            )
            note(f"{self.figures[-1].name} {self.figures[-1].value:.4f} ({self.figures[-1].conditions})")


def book(bench: Bench) -> None:
    """The book's features, model and split."""
    raw = bench.payments.raw
    x, is_fraud = book_features(raw), raw["TX_FRAUD"].to_numpy() == 1
    ids = raw["TRANSACTION_ID"].to_numpy()
    event_ms = raw["TX_DATETIME"].to_numpy().astype("datetime64[ms]").astype(np.int64)
    rows: list[list[Triple]] = []
    for fold in bench.test_folds():
        test = bench.payments.test(fold)
        place = np.searchsorted(ids, test.transaction_id.astype(np.int64))
        train = (event_ms >= fold.train_from_ms) & (event_ms < fold.train_to_ms)
        note(f"  {fold.name}: {train.sum():,} / {is_fraud[train].sum()}, {len(test):,} / {test.is_fraud.sum()}")

        def fit(train: Any = train, place: Any = place) -> Float64:
            return book_scores(x[train], is_fraud[train], x[place], threads=bench.threads)

        rows.append([measure(test, bench.scores("book", fold, 0, test, fit))])
    for metric, published, found in zip(NAMES, PUBLISHED_SPLIT, rows[0][0], strict=True):
        bench.figures.append(
            Figure(
                name=f"book, single split: {metric}",
                value=found,
                unit="",
                better="higher",
                peer="published",
                peer_value=published,
            )
        )
    bench.report("book's features, XGBoost untuned, folds", rows, peer=PUBLISHED_FOLDS[1])


def trees(bench: Bench, *, train_days: int = 7, goal: float = 0.745, folds: list[Fold] | None = None) -> None:
    """Our trees on our features."""
    rows = []
    for fold in folds or bench.test_folds(train_days=train_days):
        test = bench.payments.test(fold)
        table = Table(bench, fold)
        seeds = range(bench.seeds)
        rows.append([measure(test, bench.scores("trees + graph", fold, s, test, table.fit(s, test))) for s in seeds])
    bench.report(f"trees, {train_days} days", rows, goal=goal, peer=PUBLISHED_FOLDS[1])


class Table:
    """A fold's training rows as columns, made part by part and only when something is fitted on them."""

    def __init__(self, bench: Bench, fold: Fold) -> None:
        self._bench, self._fold = bench, fold
        self._made: tuple[Columns, npt.NDArray[np.bool_]] | None = None

    def _columns(self) -> tuple[Columns, npt.NDArray[np.bool_]]:
        if self._made is None:
            payments, fold = self._bench.payments, self._fold
            names: tuple[str, ...] = ()
            x, is_fraud = [], []
            for part in payments.between(fold.train_from_ms, fold.train_to_ms):
                found = columns(payments.spec, part.tuples, graph=True)
                names = found.names
                x.append(found.x)
                is_fraud.append(part.is_fraud)
            self._made = Columns(names=names, x=np.concatenate(x)), np.concatenate(is_fraud)
        return self._made

    def fit(self, seed: int, test: Dataset) -> Callable[[], Float64]:
        def run() -> Float64:
            model = Trees.fit(*self._columns(), self._bench.trees, seed=seed)
            gain = list(model.gain().items())[:25]
            note("   " + ", ".join(f"{name} {share:.3f}" for name, share in gain))
            return model.logit(columns(self._bench.payments.spec, test.tuples, graph=True))

        return run


def climb(bench: Bench, rungs: tuple[str, ...], folds: list[Fold], title: str, goals: dict[str, float]) -> None:
    """Rungs on folds, all seeds."""
    found: dict[str, list[list[Triple]]] = {rung: [] for rung in rungs}
    for fold in folds:
        test = bench.payments.test(fold)
        shops = list(_shops(bench, fold))
        for rung in rungs:
            seeds = enumerate(shops)
            found[rung].append(
                [measure(test, bench.scores(rung, fold, s, test, _fit(rung, shop, test))) for s, shop in seeds]
            )
    for rung, rows in found.items():
        bench.report(f"{rung}, {title}", rows, goal=goals.get(rung), peer=PUBLISHED_FOLDS[1])


def _fit(rung: str, shop: Callable[[], Workshop], test: Dataset) -> Callable[[], Float64]:
    return lambda: RUNGS[rung](shop())(test.tuples)


def _shops(bench: Bench, fold: Fold) -> Iterator[Callable[[], Workshop]]:
    """A workshop per seed; they read the fold once, and only if anything is fitted."""
    known: list[Dataset] = []

    def shop(seed: int, made: list[Workshop]) -> Workshop:
        if not known:
            known.append(bench.payments.training(fold))
        if not made:
            settings = bench.settings.model_copy(update={"seed": seed})
            span = fold.train_to_ms - fold.train_from_ms
            made.append(
                Workshop(
                    spec=bench.payments.spec,
                    known=known[0],
                    validation_from_ms=fold.train_to_ms - int(span * settings.validation_share),
                    settings=settings,
                    trees=bench.trees,
                )
            )
        return made[0]

    for seed in range(bench.seeds):
        made: list[Workshop] = []
        yield lambda seed=seed, made=made: shop(seed, made)  # type: ignore[misc]


def network(bench: Bench) -> None:
    climb(
        bench, ("network", "network + trees"), bench.test_folds(), "7 days", {"network": 0.74, "network + trees": 0.755}
    )


def ladder(bench: Bench) -> None:
    climb(bench, tuple(RUNGS), bench.test_folds()[:1], "single split", {})


def earlier(bench: Bench) -> None:
    folds = [Fold.of(day, train_days=7) for day in EARLIER_FOLDS[: bench.folds]]
    climb(bench, ("trees + graph", "network", "network + trees"), folds, "earlier folds", {})


def limits(bench: Bench) -> None:
    """What no model can see: frauds of a compromised receiver before its first label, and recall by scenario."""
    unseen, known = [], []
    raw = bench.payments.raw
    frauds = raw[raw["TX_FRAUD_SCENARIO"] == 2]
    first_of = frauds.assign(ms=frauds["TX_DATETIME"].to_numpy().astype("datetime64[ms]").astype(np.int64))
    by_terminal = {key: group["ms"].to_numpy() for key, group in first_of.groupby("TERMINAL_ID")}
    terminal = raw.set_index("TRANSACTION_ID")["TERMINAL_ID"]
    recalls: list[list[float]] = []
    for fold in bench.test_folds():
        test = bench.payments.test(fold)
        scenario = bench.payments.scenario(test)
        rows = np.flatnonzero(scenario == 2)
        at = terminal.loc[test.transaction_id[rows].astype(np.int64)].to_numpy()
        hidden = [
            not ((by_terminal[key] < ms - 7 * DAY_MS) & (by_terminal[key] >= ms - 28 * DAY_MS)).any()
            for key, ms in zip(at, test.event_ms[rows], strict=True)
        ]
        unseen.append(sum(hidden) / max(1, len(rows)))
        known.append(sum(hidden) / max(1, int(test.is_fraud.sum())))
        table = Table(bench, fold)
        score = bench.scores("trees + graph", fold, 0, test, table.fit(0, test))
        recalls.append(_recall_by_scenario(test, score, scenario))
    for name, values in (("of compromised receivers' frauds", unseen), ("of all frauds", known)):
        bench.figures.append(Figure(name=f"before any label, share {name}", value=float(np.mean(values)), unit=""))
    for place, kind in enumerate(("large amount", "compromised receiver", "compromised card")):
        value = float(np.mean([row[place] for row in recalls]))
        name = f"trees, recall at 100 payments a day: {kind}"
        bench.figures.append(Figure(name=name, value=value, unit="", better="higher"))


def _recall_by_scenario(test: Dataset, score: Float64, scenario: npt.NDArray[np.int8]) -> list[float]:
    """Share of each scenario's frauds among the 100 highest payments of each day."""
    alert = np.zeros(len(test), np.bool_)
    day = test.event_ms // DAY_MS
    for one in np.unique(day):
        rows = np.flatnonzero(day == one)
        alert[rows[np.argsort(-score[rows], kind="stable")[:CARDS]]] = True
    return [float(alert[scenario == kind].mean()) if (scenario == kind).any() else float("nan") for kind in (1, 2, 3)]


PARTS: dict[str, Callable[[Bench], None]] = {
    "book": book,
    "trees": trees,
    "trees-60": lambda bench: trees(bench, train_days=60, goal=0.755),
    "network": network,
    "ladder": ladder,
    "limits": limits,
    "earlier": earlier,
}
BY_DEFAULT = ("book", "trees", "trees-60", "network", "ladder", "limits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {FILE}")
    parser.add_argument("--home", type=Path, default=Path(".ringfence/quality"), help="caches; kept afterwards")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(BY_DEFAULT), metavar="PART")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=len(TEST_FOLDS))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    data = arguments.data / FILE
    if not data.is_file():
        sys.exit(f"{data} is not there: --data names the folder that holds it (see the book's data set)")
    payments = Payments(data, arguments.home.absolute())
    bench = Bench(payments, arguments.seeds, arguments.folds, arguments.threads)
    for name in arguments.only:
        note(name)
        PARTS[name](bench)
    leaks = [one for one in bench.figures if one.name.endswith(": AP") and one.value > ORACLE + 0.008]
    publish("quality", bench.figures)
    if leaks:
        sys.exit(
            f"{leaks[0].name} is {leaks[0].value:.3f}: above {ORACLE + 0.008:.3f} is a leak until proven otherwise"
        )


if __name__ == "__main__":
    main()
