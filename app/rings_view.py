# SPDX-License-Identifier: Apache-2.0
"""A deployment's rings, drawn for a terminal: bars where there is one, plain lines where there is none."""

from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Json = dict[str, Any]

COLOURS = {
    "COMPLETED": "green",
    "PROMOTED": "green",
    "ROLLED_BACK": "yellow",
    "ROLLING_BACK": "yellow",
    "FAILED": "red",
    "HELD": "red",
    "WAITING_PLANE": "magenta",
    "MEASURING": "cyan",
    "PUSHING": "cyan",
    "DEPLOYING": "cyan",
}


def drawn(deployment: Json) -> RenderableType:
    """A headline and one line for each lane; fits into 80 columns."""
    table = Table.grid(padding=(0, 1))
    for width, justify in (
        (10, "left"),
        (10, "left"),
        (13, "left"),
        (20, "left"),
        (11, "right"),
        (8, "right"),
    ):
        table.add_column(width=width, justify="right" if justify == "right" else "left", no_wrap=True)
    for lane in deployment["lanes"]:
        table.add_row(*_cells(lane))
    return Group(_headline(deployment), table)


def _headline(deployment: Json) -> Text:
    status = deployment["status"] + (" (paused)" if deployment["paused"] else "")
    title = Text(f"{deployment['app_name']} {deployment['app_version']}  ", style="bold")
    return title.append(status, style=COLOURS.get(deployment["status"], ""))


def _cells(lane: Json) -> tuple[RenderableType, ...]:
    bar = ProgressBar(total=max(lane["targeted"], 1), completed=lane["success_count"], width=20)
    failed = f"{lane['failure_count']} bad" if lane["failure_count"] else ""
    return (
        Text(lane["ring"]),
        Text(lane["plane"], style="dim"),
        Text(lane["status"], style=COLOURS.get(lane["status"], "dim")),
        bar,
        Text(f"{lane['success_count']}/{lane['targeted']}" if lane["targeted"] else "-"),
        Text(failed, style="red"),
    )


def lines(before: Json | None, deployment: Json) -> list[str]:
    """What changed since ``before``, one line for each state that is new."""
    name = f"{deployment['app_name']} {deployment['app_version']}"
    same = before is not None and before["status"] == deployment["status"]
    known = {(lane["ring"], lane["plane"]): lane["status"] for lane in before["lanes"]} if before else {}
    changed = [
        f"{name}: {lane['ring']} on {lane['plane']}: {lane['status']}{_counts(lane)}"
        for lane in deployment["lanes"]
        if lane["status"] not in {"PENDING", known.get((lane["ring"], lane["plane"]))}
    ]
    return changed if same else [*changed, f"{name}: {deployment['status']}"]


def _counts(lane: Json) -> str:
    if not lane["targeted"] or lane["status"] not in {"MEASURING", "PROMOTED", "HELD"}:
        return ""
    return f" ({lane['success_count']} of {lane['targeted']} succeeded, {lane['failure_count']} failed)"
