# SPDX-License-Identifier: Apache-2.0
"""Deployments, blockers, approvals and forecasts for a terminal of 80 columns, from what the API says."""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from app.client import Client, Json
from app.rings_view import COLOURS, drawn, lines
from app.terminal import span, until

EVERY = 1.0
OVER = frozenset({"COMPLETED", "REJECTED", "CANCELLED", "ROLLED_BACK", "FAILED"})


def table(*columns: str) -> Table:
    """An empty table; its last column takes what is left."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns[:-1]:
        made.add_column(column, no_wrap=True)
    made.add_column(columns[-1])
    return made


def status(name: str) -> str:
    """A state in its colour."""
    colour = COLOURS.get(name)
    return f"[{colour}]{name}[/]" if colour else name


def list_deployments(found: Sequence[Json], now: datetime) -> Table:
    """One line each."""
    made = table("id", "status", "to", "since", "application")
    for each in found:
        flag = " ‖" if each["paused"] else ""
        name = escape(f"{each['app_name']} {each['app_version']}")
        since = until(each["updated_at"], now)
        made.add_row(each["id"], status(each["status"]) + flag, each["target_ring"], since, name)
    return made


def whole(deployment: Json, blockers: Sequence[Json], now: datetime) -> RenderableType:
    """Its rings, what is known of it, and why it does not move."""
    ways = ", ".join(f"{plane}: {way or 'not asked yet'}" for plane, way in deployment["ways_back"].items())
    facts = [
        f"id        {deployment['id']}",
        f"risk      {deployment['risk_score']}"
        + (", needs the board" if deployment["requires_cab_approval"] else ""),
        f"way back  {ways}",
        f"by        {deployment['submitted_by']}, {until(deployment['created_at'], now)}",
    ]
    parts: list[RenderableType] = [drawn(deployment), Text("\n".join(facts), style="dim")]
    return Group(*parts, reasons(blockers, now)) if blockers else Group(*parts)


def reasons(blockers: Sequence[Json], now: datetime) -> Table:
    """Why it does not move, one line each."""
    made = table("does not move", "where", "next look", "until")
    for each in blockers:
        who = "" if each["who_can_act"] == "nobody" else f" ({each['who_can_act']})"
        look = until(each["next_check_at"], now)
        made.add_row(f"[yellow]{each['code']}[/]", each["subject"], look, escape(each["unblocks_when"]) + who)
    return made


def list_approvals(found: Sequence[Json], now: datetime) -> Table:
    """The queue, one line each."""
    made = table("id", "status", "risk", "expires", "what")
    for each in found:
        expires = until(each["expires_at"], now) if each["status"] == "PENDING" else ""
        what = escape(f"{each['app_name']} {each['app_version']} to {each['target_ring']}")
        made.add_row(each["id"], each["status"], str(each["risk_score"]), expires, what)
    return made


def approval(request: Json, now: datetime) -> str:
    """Everything that is to be decided, or was."""
    planes = ", ".join(request["planes"])
    shown = [
        f"{request['app_name']} {request['app_version']} to {request['target_ring']} on {planes}",
        f"status      {request['status']}",
        f"risk        {request['risk_score']}" + (", privileged" if request["privileged"] else ""),
        f"deployment  {request['deployment_id']}",
        f"asked       by {request['submitted_by']}, {until(request['created_at'], now)}",
        f"digest      {request['digest']}",
    ]
    if request["irreversible"]:
        shown.append(f"no way back on {', '.join(request['irreversible'])}")
    if request["status"] == "PENDING":
        shown.append(f"expires     {until(request['expires_at'], now)}")
    if request["decided_by"]:
        shown.append(f"decided     by {request['decided_by']}: {request['reason']}")
    if request["conditions"]:
        shown.append(f"conditions  {request['conditions']}")
    if request["exception"]:
        given = request["exception"]
        shown.append(f"exception   until {given['expires_at']}: {given['compensating_controls']}")
    return "\n".join(shown)


def forecast(told: Json) -> RenderableType:
    """The rings, then what is waited for."""
    made = table("ring", "begins", "ends", "devices", "calls", "rolled back above")
    for ring in told["rings"]:
        above = ", ".join(f"{lane['rolls_back_above']} on {lane['plane']}" for lane in ring["lanes"])
        begins, ends = after(ring["earliest_start"]), after(ring["earliest_end"])
        made.add_row(
            ring["ring"], begins, ends, str(ring["devices_at_risk"]), str(ring["plane_calls"]), above
        )
    waits = [wait for ring in told["rings"] for wait in _waits_of(ring)]
    head = Text(
        f"risk {told['risk_score']}, {told['devices']} devices, at most {told['peak_devices_at_risk']} "
        f"at risk at once, {told['plane_calls']} calls, done {after(told['earliest_end'])}"
    )
    undone = [f"cannot be rolled back on {plane}" for plane in told["irreversible"]]
    undone += [
        f"{plane} is asked in LAB whether it can be rolled back" for plane in told["unknown_until_asked"]
    ]
    tail = Text("\n".join([*waits, *undone]), style="yellow")
    return Group(head, made, tail) if waits or undone else Group(head, made)


def _waits_of(ring: Json) -> Iterable[str]:
    for each in [*ring["needs"], *(wait for lane in ring["lanes"] for wait in lane["waits"])]:
        end = f" (until {after(each['until'])})" if each["until"] is not None else ""
        yield f"{ring['ring']}: {each['code']}{end}: {each['unblocks_when']}"


def after(seconds: float | None) -> str:
    """How long after the beginning."""
    return "nobody can tell" if seconds is None else f"after {span(seconds)}"


async def watch(client: Client, deployment_id: str) -> Json:
    """Show a deployment until it is over; it as it is then. Lines where there is no terminal to draw on."""
    console = Console()
    if not console.is_terminal:
        return await _watch_in_lines(client, deployment_id)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            deployment, blockers = await look(client, deployment_id)
            live.update(whole(deployment, blockers, datetime.now(UTC)), refresh=True)
            if deployment["status"] in OVER:
                return deployment
            await asyncio.sleep(EVERY)


async def look(client: Client, deployment_id: str) -> tuple[Json, Sequence[Json]]:
    """A deployment, and why it does not move."""
    deployment = await client.deployment(deployment_id)
    return deployment, await client.every(f"/deployments/{deployment_id}/blockers")


async def _watch_in_lines(client: Client, deployment_id: str) -> Json:
    before: Json | None = None
    known: list[tuple[str, str]] = []
    while True:
        deployment, blockers = await look(client, deployment_id)
        for line in lines(before, deployment):
            typer.echo(line)
        now = [(each["code"], each["subject"]) for each in blockers]
        for each in blockers:
            if (each["code"], each["subject"]) not in known:
                typer.echo(f"{each['subject']} waits: {each['code']}: {each['unblocks_when']}")
        before, known = deployment, now
        if deployment["status"] in OVER:
            return deployment
        await asyncio.sleep(EVERY)
