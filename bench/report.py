"""One figure a line: value, peer, ratio, goal. Written as JSON lines and printed as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

OUT = Path(__file__).parent / "out"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number.

    `ratio` is how many times better than the peer (above 1 is better), both measured in the same run. `goal` is in the
    unit of `value`, or of `ratio` where `goal_on` says so.
    """

    name: str
    value: float
    unit: str
    better: Literal["lower", "higher"] = "lower"
    peer: str | None = None
    peer_value: float | None = None
    goal: float | None = None
    goal_on: Literal["value", "ratio"] = "value"
    conditions: str = ""

    @property
    def ratio(self) -> float | None:
        if self.peer_value is None or self.value == 0 or self.peer_value == 0:
            return None
        return self.peer_value / self.value if self.better == "lower" else self.value / self.peer_value

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        if self.goal_on == "ratio":
            return self.ratio is not None and self.ratio >= self.goal
        return self.value <= self.goal if self.better == "lower" else self.value >= self.goal

    def row(self) -> dict[str, object]:
        return {**asdict(self), "ratio": self.ratio, "met": self.met}


def publish(name: str, figures: Sequence[Figure]) -> None:
    """Write bench/out/NAME.jsonl and print the figures as a table, ratio last."""
    from rich.console import Console
    from rich.table import Table

    OUT.mkdir(exist_ok=True)
    lines = (json.dumps(figure.row()) for figure in figures)
    (OUT / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    table = Table(title=name, title_justify="left")
    for column in ("figure", "value", "unit", "peer", "peer value", "goal", "met", "ratio"):
        table.add_column(column)
    for figure in figures:
        met = {None: "", True: "met", False: "not met"}[figure.met]
        goal = "" if figure.goal is None else f"{figure.goal:g}{' x' if figure.goal_on == 'ratio' else ''}"
        peer_value = "" if figure.peer_value is None else f"{figure.peer_value:,.4g}"
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
        table.add_row(figure.name, f"{figure.value:,.4g}", figure.unit, figure.peer or "", peer_value, goal, met, ratio)
    Console(width=150).print(table)
