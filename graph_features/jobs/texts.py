"""Words in the ledger's own texts: errors and parameters may name an account that is to be forgotten."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from graph_features.jobs.engine import transaction
from graph_features.jobs.tables import chunks, jobs

ERASED = "[erased]"


class TextLedger:
    """Texts of all jobs and chunks; reached through `ledger.count_text` and `ledger.forget_text`."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def count(self, words: Sequence[str]) -> int:
        """Return how many texts hold one of the words as a whole."""
        with transaction(self.engine) as connection:
            return sum(1 for _ in self._found(connection, words))

    def forget(self, words: Sequence[str]) -> None:
        """Replace the words in every text."""
        with transaction(self.engine) as connection:
            for table, key, values in list(self._found(connection, words)):
                connection.execute(table.update().where(table.c.id == key).values(values))

    def _found(self, connection: sa.Connection, words: Sequence[str]) -> Iterator[tuple[sa.Table, Any, dict[str, Any]]]:
        pattern = whole_words(words)
        if pattern is None:
            return
        for table, name in ((jobs, "error"), (chunks, "error"), (jobs, "parameters")):
            column = table.c[name]
            text = sa.cast(column, sa.Text)
            said = sa.or_(*(text.contains(json.dumps(word)[1:-1], autoescape=True) for word in words))
            for key, value in connection.execute(sa.select(table.c.id, column).where(said)).all():
                whole = value if name == "error" else json.dumps(value)
                if pattern.search(whole):
                    scrubbed = pattern.sub(ERASED, whole)
                    yield table, key, {name: scrubbed if name == "error" else json.loads(scrubbed)}


def whole_words(words: Sequence[str]) -> re.Pattern[str] | None:
    """A pattern for the words where they stand alone: `a1` is not in `a10`. None without words."""
    chosen = sorted((re.escape(word) for word in words if word), key=len, reverse=True)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(chosen)})(?![\w-])") if chosen else None
