# SPDX-License-Identifier: Apache-2.0
"""``eucora audit``: whether the history is what it was, asked of the installation's own database."""

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.settings import Settings
from app.terminal import AsJson, DataDir, settings_of

if TYPE_CHECKING:
    from app.domain.audit import Report

Against = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="Checkpoints that `eucora audit export` printed before."),
]

audit = typer.Typer(help="The history of all deployments, and whether it was altered.", no_args_is_help=True)


def register(cli: typer.Typer) -> None:
    """Make it part of the command line."""
    cli.add_typer(audit, name="audit")


@audit.command()
def verify(*, against: Against = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Check every chain of events and every checkpoint; names the first broken link of each. Exits with 1."""
    from app import admin

    report = asyncio.run(admin.verify_history(settings_of(data_dir), against))
    typer.echo(json.dumps(asdict(report), indent=2) if as_json else in_words(report))
    sys.exit(1 if report.broken else 0)


def in_words(report: "Report") -> str:
    """What was looked at, and a line for each broken link."""
    looked = f"{report.events} events of {report.deployments} deployments, {report.checkpoints} checkpoints"
    if report.exported:
        looked += f", {report.exported} exported ones"
    verdict = f"{len(report.broken)} broken" if report.broken else "all as they were recorded"
    return "\n".join([*map(str, report.broken), f"{looked}: {verdict}"])


@audit.command()
def export(
    *,
    after: Annotated[int, typer.Option(min=0, help="Only checkpoints behind this number.")] = 0,
    data_dir: DataDir = None,
) -> None:
    """Make a checkpoint, print all of them, a line of JSON each: keep them where nobody can alter them."""
    asyncio.run(print_checkpoints(settings_of(data_dir), after))


async def print_checkpoints(settings: Settings, after: int) -> None:
    """As they come."""
    from app import admin

    async for line in admin.export_history(settings, after=after):
        typer.echo(line)
