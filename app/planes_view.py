# SPDX-License-Identifier: Apache-2.0
"""Planes as a table for a terminal, from what the API says of them."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.client import Json


def show(planes: Sequence[Json]) -> None:
    """Print them."""
    Console().print(table(planes))


def table(planes: Sequence[Json]) -> Table:
    """One line each, in the order of the API."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("plane", "packages", "targets"):
        made.add_column(column)
    made.add_column("where it is, or what is missing; what it cannot do")
    for plane in planes:
        made.add_row(*row(plane))
    return made


def row(plane: Json) -> Iterable[str]:
    """The cells of one plane."""
    yield f"[{'green' if plane['configured'] else 'red'}]{plane['plane']}[/]"
    yield ", ".join(plane["package_kinds"])
    yield ", ".join(plane["target_kinds"])
    place = plane["base_url"] if plane["configured"] else f"not configured: {plane['missing']}"
    cannot = [f"cannot {each['capability']}: {each['reason']}" for each in plane["limitations"]]
    yield escape("\n".join([place, *cannot]))
