# SPDX-License-Identifier: Apache-2.0
"""Breakers as a table for a terminal, from what the API says of them."""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from app.client import Client, Json

EVERY = 1.0
COLOURS = {
    "closed": "green",
    "open": "red",
    "half_open": "yellow",
    "isolated": "magenta",
    "disabled": "cyan",
}


async def watch(client: Client) -> None:
    """Show them until interrupted, as of each second; once, where there is no terminal to draw on."""
    console = Console()
    if not console.is_terminal:
        return await show(client)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(table(await client.every("/breakers"), datetime.now(UTC)), refresh=True)
            await asyncio.sleep(EVERY)


async def show(client: Client) -> None:
    """Show them once."""
    Console().print(table(await client.every("/breakers"), datetime.now(UTC)))


def table(breakers: Sequence[Json], now: datetime) -> Table:
    """One line each: first what somebody should look at, then the order of the API."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("service", "state", "failed", "next look"):
        made.add_column(column, no_wrap=True)
    made.add_column("why, and which processes keep away on their own")
    for breaker in sorted(breakers, key=is_quiet):
        made.add_row(*row(breaker, now))
    return made


def is_quiet(breaker: Json) -> bool:
    """Whether there is nothing to be seen."""
    return (
        breaker["state"] == "closed"
        and not breaker["fail_counter"]
        and not breaker["open_in"]
        and not breaker["throttled_until"]
    )


def row(breaker: Json, now: datetime) -> Iterable[str]:
    """The cells of one breaker."""
    state = breaker["state"]
    yield breaker["service"]
    yield f"[{COLOURS[state]}]{state}[/]"
    yield f"{breaker['fail_counter']}/{breaker['fail_max']}"
    yield left(breaker["retry_at"] or breaker["throttled_until"] or breaker["expires_at"], now)
    yield escape("\n".join(filter(None, [why(breaker), *breaker["open_in"]])))


def why(breaker: Json) -> str:
    """Who ordered it, or what failed last."""
    if breaker["actor"]:
        return ": ".join(filter(None, [f"by {breaker['actor']}", breaker["reason"]]))
    if breaker["throttled_until"]:
        return "the service asked for a pause"
    return breaker["last_error"] or ""


def left(instant: str | None, now: datetime) -> str:
    """The time until then."""
    if instant is None:
        return ""
    seconds = max(0, round((datetime.fromisoformat(instant) - now).total_seconds()))
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"in {hours} h {minutes} min"
    return f"in {minutes} min" if minutes > 4 else f"in {60 * minutes + rest} s"
