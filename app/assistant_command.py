# SPDX-License-Identifier: Apache-2.0
"""``eucora ask`` and ``eucora ai``: the assistant from a terminal; clients of the public API only."""

import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

import typer

from app.deployments_command import Id, post, show
from app.terminal import URL, ApiToken, ApiUrl, AsJson, Why, api_client, fail, run

if TYPE_CHECKING:
    from app.client import Client

Json = dict[str, Any]
Kind = Literal[
    "summarise_rollout",
    "triage_failures",
    "draft_change_request",
    "propose_rollback",
    "propose_promotion_plan",
]
DeploymentId = Annotated[UUID, typer.Argument(metavar="DEPLOYMENT")]
LookedAt = Annotated[
    str | None, typer.Option("--digest", help="Only if this is still the digest of the proposal.")
]
LOOK_EVERY, PATIENCE = 0.5, 330.0
"""Seconds: how often it is asked whether the proposal is there, and for how long."""

ai = typer.Typer(help="Tasks of the assistant: it proposes, another person decides.", no_args_is_help=True)


def register(cli: typer.Typer) -> None:
    """Make them part of the command line."""
    cli.command("ask")(ask)
    cli.add_typer(ai, name="ai")


def ask(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help='As "why is firefox stuck?".')],
    *,
    conversation: Annotated[
        UUID | None, typer.Option(metavar="ID", help="Go on with this one, instead of a new one.")
    ] = None,
    url: ApiUrl = URL,
    token: ApiToken,
    as_json: AsJson = False,
) -> None:
    """Ask the assistant; the answer is printed as it comes. Exits with 1 if it had no end."""
    answer = run(converse(url, token, question, conversation, quiet=as_json))
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    if answer["status"] != "COMPLETE":
        fail(f"the answer has no end: {answer['error']['message']}", code=1)


async def converse(url: str, token: str, question: str, conversation: UUID | None, *, quiet: bool) -> Json:
    """Say it, and listen; the whole answer."""
    path = "/ai/conversations" + (f"/{conversation}/messages" if conversation else "")
    async with api_client(url, token) as client:
        made = await client.post(path, {"content": question})
        answer = await listen(client, made, print_event if not quiet else lambda _: None)
    if not quiet:
        typer.echo(f"\n\n(go on with: eucora ask --conversation {made['id']} …)", err=True)
    return answer


async def listen(client: "Client", conversation: Json, told: Any) -> Json:
    """The answer that is being written; each event of it is ``told``."""
    number = conversation["messages"][-1]["sequence"]
    async for event in client.events(
        f"/ai/conversations/{conversation['id']}/events", after=f"{number}.0.0.0.0"
    ):
        told(event)
        if event["type"] == "answer":
            message: Json = event["message"]
            return message
    read = await client.get(f"/ai/conversations/{conversation['id']}")
    last: Json = read["messages"][-1]
    return last


def print_event(event: Json) -> None:
    """Text as it comes on standard output, everything about it on standard error."""
    kind = event["type"]
    if kind == "token":
        typer.echo(event["text"], nl=False)
        sys.stdout.flush()
    elif kind == "tool":
        typer.echo(
            f"· {event['tool']} {event['arguments']}" + ("" if event["ok"] else " (refused)"), err=True
        )
    elif kind == "restarted":
        whole = ", and so do the calls" if event["anew"] else ""
        typer.echo(f"\n(the answer begins anew{whole})\n", err=True)
    elif kind == "answer" and event["message"]["stop_reason"] == "refusal":
        typer.echo("\n(the model declined to answer)", err=True)
    elif kind == "answer" and event["message"]["unverified"]:
        named = ", ".join(each["id"] for each in event["message"]["unverified"])
        typer.echo(f"\n(not looked up by the assistant, do not rely on it: {named})", err=True)


@ai.command("task")
def task(
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help="As propose_rollback or triage_failures.")],
    deployment_id: DeploymentId,
    *,
    instructions: Annotated[str | None, typer.Option(help="What to look at in particular.")] = None,
    url: ApiUrl = URL,
    token: ApiToken,
    as_json: AsJson = False,
) -> None:
    """Have a proposal made about a deployment, and show it. Exits with 1 if there is none."""
    body = {"kind": kind, "deployment_id": str(deployment_id)}
    body |= {"instructions": instructions} if instructions else {}
    made = run(proposed(url, token, body))
    show(made, as_json=as_json, view=view_of())
    if made["status"] == "FAILED":
        sys.exit(1)


async def proposed(url: str, token: str, body: Json) -> Json:
    """The task once somebody may decide on it, or it has failed."""
    async with api_client(url, token) as client:
        return await settled(client, await client.post("/ai/tasks", body))


async def settled(client: "Client", made: Json, *, patience: float = PATIENCE) -> Json:
    """A task that nobody works on any more."""
    until = time.monotonic() + patience
    while made["status"] in {"PENDING", "RUNNING", "REVISION_REQUESTED", "APPROVED", "EXECUTING"}:
        if time.monotonic() > until:
            fail(f"task {made['id']} is still {made['status']}: see operation {made['operation_id']}", code=1)
        await asyncio.sleep(LOOK_EVERY)
        made = await client.get(f"/ai/tasks/{made['id']}")
    return made


@ai.command("list")
def list_tasks(
    *,
    everything: Annotated[bool, typer.Option("--all", help="Decided ones too.")] = False,
    url: ApiUrl = URL,
    token: ApiToken,
    as_json: AsJson = False,
) -> None:
    """Show the queue: proposals that wait for a decision."""
    from app import assistant_view

    asked = {} if everything else {"status": "AWAITING_APPROVAL"}

    async def look() -> Any:
        async with api_client(url, token) as client:
            return await client.every("/ai/tasks", **asked)

    now = datetime.now(UTC)
    show(run(look()), as_json=as_json, view=lambda found: assistant_view.list_tasks(found, now))


@ai.command("show")
def show_task(task_id: Id, *, url: ApiUrl = URL, token: ApiToken, as_json: AsJson = False) -> None:
    """Show a task with its proposal, and what became of it."""

    async def look() -> Any:
        async with api_client(url, token) as client:
            return await client.get(f"/ai/tasks/{task_id}")

    show(run(look()), as_json=as_json, view=view_of())


def add_decision(command: str, path: str, told: str) -> None:
    """A command that decides on a proposal."""

    @ai.command(command, help=told)
    def decide(
        task_id: Id,
        *,
        reason: Why = None,
        digest: LookedAt = None,
        url: ApiUrl = URL,
        token: ApiToken,
        as_json: AsJson = False,
    ) -> None:
        given = {"reason": reason, "digest": digest}
        body = {name: value for name, value in given.items() if value is not None}
        answer = run(post(url, token, f"/ai/tasks/{task_id}/{path}", body))
        show(answer, as_json=as_json, view=lambda made: f"{made['kind']} is {made['status']}")


add_decision("approve", "approve", "Say yes to a proposal: its actions are carried out, once.")
add_decision("reject", "reject", "Say no, for good.")
add_decision("revise", "request-revision", "Have it proposed once more, with the reason in mind.")


def view_of() -> Any:
    """How one task is drawn now."""
    from app import assistant_view

    now = datetime.now(UTC)
    return lambda found: assistant_view.whole(found, now)
