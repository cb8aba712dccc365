"""keys: who may call the REST server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from infra.console import say, table

if TYPE_CHECKING:
    from serving.keys import KeyTable

DAY_MS = 86_400_000

app = typer.Typer(help="API keys of the REST server: make, show and revoke them.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for, for instance the program that will use it.")],
    scope: Annotated[list[str], typer.Option(help="predict, read, write or admin; repeat it for several.")],
    expires_days: Annotated[int | None, typer.Option(min=1, max=3_650, help="Days until it expires.")] = None,
) -> None:
    """Make a key and print it. It is shown this once: only its digest is kept."""
    from graph_features.errors import InvalidInputError
    from serving.keys import Scope

    unknown = [given for given in scope if given not in list(Scope)]
    if unknown:
        raise InvalidInputError(field="scope", expected=", ".join(Scope), got=unknown[0])
    now_ms = _now_ms()
    expires_at_ms = None if expires_days is None else now_ms + expires_days * DAY_MS
    with _keys() as keys:
        key, text = keys.create(name, [Scope(given) for given in scope], now_ms=now_ms, expires_at_ms=expires_at_ms)
    say(f"key {key.id} ({name}: {', '.join(sorted(key.scopes))}); keep it, it cannot be shown again:", err=True)
    say(text)


@app.command("list")
def list_() -> None:
    """Show the keys, never their secrets."""
    now_ms = _now_ms()
    with _keys() as keys:
        found = keys.all()
    rows = [
        [
            key.id,
            key.name,
            " ".join(sorted(key.scopes)),
            _moment(key.created_at_ms),
            _moment(key.expires_at_ms),
            "revoked" if key.revoked_at_ms else "usable" if key.usable(now_ms) else "expired",
        ]
        for key in found
    ]
    table("keys", ["key", "name", "scopes", "created", "expires", "state"], rows)


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(help="As `ringfence keys list` shows it.")]) -> None:
    """Make a key useless for good; servers notice within RINGFENCE_AUTH_REFRESH_S."""
    with _keys() as keys:
        keys.revoke(key_id, now_ms=_now_ms())
    say(f"key {key_id} is revoked")


@contextmanager
def _keys() -> Iterator[KeyTable]:
    from graph_features.settings import PlatformSettings, load
    from serving.decisions import open_engine
    from serving.keys import KeyTable

    engine = open_engine(load(PlatformSettings))
    try:
        yield KeyTable(engine)
    finally:
        engine.dispose()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _moment(ms: int | None) -> str:
    from graph_features.clock import from_ms

    return "" if ms is None else from_ms(ms).isoformat(timespec="seconds")


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="keys")
