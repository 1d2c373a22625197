# SPDX-License-Identifier: Apache-2.0
"""What commands share: how API or installation are reached, how they end, how times are given and shown."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.settings import Settings

if TYPE_CHECKING:
    from app.client import Client

URL = "http://127.0.0.1:8000"
ApiUrl = Annotated[str, typer.Option(envvar="EUCORA_URL", help="Where the API is.")]
ApiToken = Annotated[
    str,
    typer.Option(
        envvar=["EUCORA_TOKEN", "EUCORA_BOOTSTRAP_TOKEN"], show_envvar=True, help="A bearer token of the API."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
DataDir = Annotated[Path | None, typer.Option(help="Where everything is kept. Default: EUCORA_DATA_DIR.")]
Why = Annotated[str | None, typer.Option(help="Stands in the history.")]


def settings_of(data_dir: Path | None) -> Settings:
    """The settings, with the option of the command line before the variable."""
    return Settings() if data_dir is None else Settings(data_dir=data_dir)


def fail(reason: str, *, code: int) -> None:
    """Say why on standard error, and leave."""
    typer.echo(f"eucora: {reason}", err=True)
    sys.exit(code)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a command's coroutine; what it returns."""
    return asyncio.run(coroutine)


@contextlib.asynccontextmanager
async def api_client(url: str, token: str) -> AsyncIterator["Client"]:
    """A caller of the API; one that is out of reach is a sentence."""
    import httpx

    from app.client import Client

    try:
        async with Client(url, token) as client:
            yield client
    except httpx.TransportError as error:
        fail(f"{url} does not answer ({type(error).__name__})", code=1)


def ends_at(lasting: str | None) -> str | None:
    """The instant so far from now: ``90s``, ``30m``, ``2h``, ``1d``."""
    if lasting is None:
        return None
    unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}.get(lasting[-1:])
    if unit is None or not lasting[:-1].isdecimal():
        raise typer.BadParameter("must be a number and s, m, h or d, as 30m", param_hint="--for")
    return (datetime.now(UTC) + timedelta(**{unit: int(lasting[:-1])})).isoformat()


def span(seconds: float) -> str:
    """A duration in at most two units: ``3 d 4 h``, ``12 min``, ``45 s``."""
    whole = round(seconds)
    for size, unit, next_size, next_unit in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= size:
            rest = whole % size // next_size
            return f"{whole // size} {unit}" + (f" {rest} {next_unit}" if rest else "")
    return f"{whole // 60} min" if whole >= 120 else f"{whole} s"


def until(instant: str | None, now: datetime) -> str:
    """How long it is from now until then, or was since then."""
    if instant is None:
        return ""
    seconds = (datetime.fromisoformat(instant) - now).total_seconds()
    return f"in {span(seconds)}" if seconds >= 0 else f"{span(-seconds)} ago"
