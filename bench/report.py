# SPDX-License-Identifier: Apache-2.0
"""What a benchmark found: figures by round, ratios, and how they stand to what must be reached."""

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.rounds import ratio

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "performance"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Figures of all that was compared, by name and round, and the one that the others stand beside."""

    title: str
    unit: str
    figures: dict[str, list[float]]
    beside: str

    def ratio(self, name: str) -> float:
        """How one stands to ``beside``."""
        return ratio(self.figures[name], self.figures[self.beside])


@dataclass(frozen=True, slots=True)
class Goal:
    """One number to reach: ``floor`` must be, ``target`` is aimed at. ``unit`` is x for ratios."""

    what: str
    found: float
    floor: float
    target: float
    unit: str = "x"
    at_most: bool = False

    @property
    def verdict(self) -> str:
        """In one word."""
        if self._reaches(self.target):
            return "target"
        return "floor" if self._reaches(self.floor) else "missed"

    def _reaches(self, number: float) -> bool:
        return self.found <= number if self.at_most else self.found >= number


@dataclass(frozen=True, slots=True)
class Listing:
    """What is no comparison: rows of words and numbers. It is in no picture."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass(slots=True)
class Report:
    """All that one benchmark found. ``notes``: counts that were checked, and what is good to know."""

    name: str
    comparisons: list[Comparison] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    listings: list[Listing] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """One document, with the machine it was found on."""
        return {
            "name": self.name,
            "machine": machine(),
            "comparisons": [
                {**asdict(each), "ratios": {name: round(each.ratio(name), 3) for name in each.figures}}
                for each in self.comparisons
            ],
            "goals": [{**asdict(goal), "verdict": goal.verdict} for goal in self.goals],
            "listings": [asdict(each) for each in self.listings],
            "notes": self.notes,
        }

    def keep(self) -> Path:
        """Write the document where the pictures are drawn from."""
        FOLDER.mkdir(exist_ok=True)
        path = FOLDER / f"{self.name}.json"
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n")
        return path


def machine() -> dict[str, Any]:
    """What figures depend on, without its name."""
    return {
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "architecture": platform.machine(),
        "load": round(os.getloadavg()[0], 1),
    }


def show(report: Report) -> None:
    """On the terminal."""
    console = Console()
    for comparison in report.comparisons:
        console.print(comparison_table(comparison))
    if report.goals:
        console.print(goals_table(report.goals))
    for listing in report.listings:
        console.print(listing_table(listing))
    for note in report.notes:
        console.print(f"· {note}")
    console.print()


def comparison_table(comparison: Comparison) -> Table:
    """Median, lowest and highest of each, and the ratio."""
    table = Table(title=f"{comparison.title} ({comparison.unit})", title_justify="left", box=None)
    table.add_column("")
    for column in ("median", "lowest", "highest", "ratio"):
        table.add_column(column, justify="right")
    for name, figures in comparison.figures.items():
        shown = [statistics.median(figures), min(figures), max(figures)]
        table.add_row(name, *(f"{each:,.4g}" for each in shown), f"{comparison.ratio(name):.3g}")
    return table


def goals_table(goals: Sequence[Goal]) -> Table:
    """How each stands."""
    table = Table(title="to be reached", title_justify="left", box=None)
    table.add_column("")
    for column in ("found", "floor", "target", "reached"):
        table.add_column(column, justify="right")
    for goal in goals:
        sign = "≤ " if goal.at_most else "≥ "
        limits = [f"{sign}{each:g} {goal.unit}" for each in (goal.floor, goal.target)]
        table.add_row(goal.what, f"{goal.found:.3g} {goal.unit}", *limits, goal.verdict)
    return table


def listing_table(listing: Listing) -> Table:
    """As it is."""
    table = Table(title=listing.title, title_justify="left", box=None)
    for number, column in enumerate(listing.columns):
        table.add_column(column, justify="right" if number else "left")
    for row in listing.rows:
        table.add_row(*row)
    return table
