"""The trail of promotions, and embeddings in PostgreSQL: what differs from the embedded profile."""

from __future__ import annotations

import threading

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from psycopg import sql

from graph_features.contracts import CREATED, TIMESTAMP
from graph_features.embeddings import EMBEDDING_SIZE, EMBEDDING_VIEWS
from graph_features.errors import ModelError, StoreUnavailableError
from graph_features.settings import PlatformSettings, PostgresSettings, Profile
from graph_features.stores.postgres import PostgresOfflineStore, sql_table
from training.trail import Entry, Trail

pytestmark = pytest.mark.services


@pytest.fixture
def platform(
    postgres_settings: PostgresSettings, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> PlatformSettings:
    for name, value in postgres_settings.conninfo().items():
        variable = {"dbname": "DATABASE"}.get(name, name.upper())
        monkeypatch.setenv(f"RINGFENCE_POSTGRES_{variable}", str(value))
    return PlatformSettings(profile=Profile.SERVICES, home=tmp_path_factory.mktemp("home"))


def entry(version: str, previous: str | None = None) -> Entry:
    return Entry(
        decided_by="ann",
        decision="promoted",
        model="m",
        alias="champion",
        version=version,
        previous=previous,
        reasons=("every gate holds",),
        figures={"models": [{"average_precision": 0.5}], "score_shift": None},
    )


def test_the_trail_is_a_table_of_the_system_of_record(
    platform: PlatformSettings, postgres_settings: PostgresSettings
) -> None:
    """Decisions lie in ringfence.promotions, readable with plain SQL; a failed move and a killed one are told apart."""
    with Trail.open(platform) as trail:
        with trail.moving(entry("1")):
            pass
        with pytest.raises(ModelError), trail.moving(entry("2", "1")):
            raise ModelError("meanwhile")
        trail.record(entry("3", "1"))
    with Trail.open(platform) as again:
        again.settle("m", "champion", "3")
        last = again.last_moved("m", "champion")
        assert last is not None
        assert (last.version, last.figures) == ("3", entry("3").figures)
    query = "SELECT version, decision, moved_at IS NOT NULL, figures -> 'models' -> 0 ->> 'average_precision' FROM"
    with psycopg.connect(**postgres_settings.conninfo()) as connection:  # type: ignore[arg-type]
        rows = connection.execute(f"{query} ringfence.promotions ORDER BY id").fetchall()  # type: ignore[arg-type]
    assert rows == [
        ("1", "promoted", True, "0.5"),
        ("2", "interrupted", False, "0.5"),
        ("3", "promoted", True, "0.5"),
    ]


def test_moves_come_one_after_the_other(platform: PlatformSettings) -> None:
    """A second promotion waits until the first has moved the alias, in another connection as in another process."""
    order: list[str] = []

    def second() -> None:
        with Trail.open(platform) as other, other.moving(entry("2")):
            order.append("second")

    with Trail.open(platform) as trail, trail.moving(entry("1")):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(timeout=0.5)
        order.append("first")
    thread.join(timeout=60)
    assert order == ["first", "second"]


def test_a_database_that_is_away_is_said_so(platform: PlatformSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the trail and hides the password."""
    monkeypatch.setenv("RINGFENCE_POSTGRES_PORT", "1")
    monkeypatch.setenv("RINGFENCE_POSTGRES_PASSWORD", "secret-word")
    with pytest.raises(StoreUnavailableError, match="trail of promotions") as caught, Trail.open(platform):
        pass
    assert "secret-word" not in str(caught.value)


def test_embeddings_written_again_are_replaced(postgres_settings: PostgresSettings) -> None:
    """A slot's rows of one instant are those of the encoder that wrote last, without doubles."""
    view = EMBEDDING_VIEWS["account_embeddings_green"]
    store = PostgresOfflineStore(postgres_settings)
    store.create_view(view)
    for encoder in (7, 8):
        columns = [
            pa.array(["a", "b"]),
            pa.array([1_700_000_000_000] * 2).cast(TIMESTAMP),
            pa.array([1] * 2).cast(CREATED),
            pa.array([encoder] * 2),
            *(pa.array(np.zeros(2)) for _ in range(EMBEDDING_SIZE)),
        ]
        store.write(view, pa.Table.from_arrays(columns, schema=view.arrow_schema), part=f"{encoder}")
    assert store.count_entity(view, "a") == 1
    store.close()
    with psycopg.connect(**postgres_settings.conninfo()) as connection:  # type: ignore[arg-type]
        query = sql.SQL("SELECT DISTINCT encoder_id FROM {}").format(sql_table(view.name))
        found = connection.execute(query).fetchall()
    assert found == [(8,)]
