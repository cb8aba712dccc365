"""The server on real PostgreSQL, Redis and Neo4j while they fail: no wrong score, and all is well again soon after."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import faults
from bench.features_data import Payments
from bench.homes import guarded_home
from bench.proxy import Mode
from bench.report import Figure
from bench.serving_world import World

pytestmark = pytest.mark.services

FAULT_S = 1.5


@pytest.fixture(scope="module")
def scene() -> Iterator[faults.Scene]:
    """A small world of its own, a server behind proxies, and requests whose scores are known."""
    with guarded_home() as home:
        world = World(home=Path(home).resolve(), payments=Payments(n_accounts=300, n_payments=2_000, days=60, seed=7))
        world.fill()
        faults.write_offline(world)
        with faults.scene(world, fault_s=FAULT_S, kill_s=2, count=5, size=10) as made:
            yield made
        world.close()


def found(scene: faults.Scene, name: str) -> dict[str, Figure]:
    """Figures of one fault by what they say."""
    return {figure.name.rpartition(": ")[2]: figure for figure in scene.figures if figure.name.startswith(name)}


def test_killed_workers(scene: faults.Scene) -> None:
    """Workers killed at work cost no request and no wrong score."""
    faults.killed_workers(scene)
    figures = found(scene, "worker killed")
    assert (figures["wrong answers"].value, figures["failed"].value) == (0, 0), figures


@pytest.mark.parametrize("store", faults.STORES)
def test_stores_that_refuse_and_come_back(scene: faults.Scene, store: str) -> None:
    """While a store refuses there is no wrong score, and good ones come again; without Redis alone there is none."""
    proxy = scene.proxies[store]

    def fault() -> None:
        proxy.set(Mode.REFUSE)
        faults.time.sleep(FAULT_S)

    scene.run(f"{store} stopped", fault, lambda: proxy.set(Mode.PASS), goal_s=None)
    figures = found(scene, f"{store} stopped")
    assert figures["wrong answers"].value == 0, figures
    assert (figures["failed"].value == 0) is (store != "redis"), figures


def test_a_full_disk(scene: faults.Scene) -> None:
    """What cannot be recorded is not answered with a score, and scoring goes on when there is room again."""
    faults.disk(scene)
    figures = found(scene, "disk full")
    assert figures["wrong answers"].value == 0, figures
    assert figures["failed"].value > 0, figures


def test_decision_records_give_their_scores_again(scene: faults.Scene) -> None:
    """After all that every decision record must give its score again, from rows of the offline store."""
    figure = faults.check_records(scene)
    assert figure.value == 0, figure
