# SPDX-License-Identifier: Apache-2.0
"""``eucora deployments``, ``approvals``, ``blockers`` and ``forecast``: clients of the public API only."""

import contextlib
import json
import sys
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import typer

from app.terminal import URL, ApiToken, ApiUrl, AsJson, Why, api_client, ends_at, fail, run

Json = dict[str, Any]
Id = Annotated[UUID, typer.Argument(metavar="ID")]
IntentFile = Annotated[
    typer.FileText, typer.Argument(metavar="FILE", help="An intent as JSON; - reads standard input.")
]
NOT_DONE = {"REJECTED", "CANCELLED", "ROLLED_BACK", "FAILED"}

deployments = typer.Typer(
    help="Rollouts: what they do, and what operators order of them.", no_args_is_help=True
)
approvals = typer.Typer(help="What the change advisory board is asked and decides.", no_args_is_help=True)


def register(cli: typer.Typer) -> None:
    """Make them part of the command line."""
    cli.add_typer(deployments, name="deployments")
    cli.add_typer(approvals, name="approvals")
    cli.command("blockers")(show_blockers)
    cli.command("forecast")(show_forecast)


def read_intent(file: typer.FileText) -> Json:
    """The JSON object in a file."""
    try:
        body = json.load(file)
    except ValueError as error:
        fail(f"{file.name} is no JSON: {error}", code=2)
    if not isinstance(body, dict):
        fail(f"{file.name} holds no JSON object", code=2)
    intent: Json = body
    return intent


def show(found: Any, *, as_json: bool, view: Any) -> None:
    """Print a document for programs, or draw it for people."""
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    from rich.console import Console

    drawn = view(found)
    if isinstance(drawn, str):
        typer.echo(drawn)
    else:
        Console().print(drawn)


@deployments.command("list")
def list_deployments(
    *,
    status: Annotated[str | None, typer.Option(help="As DEPLOYING.")] = None,
    app_name: Annotated[str | None, typer.Option("--app", help="The application's name.")] = None,
    plane: Annotated[str | None, typer.Option(help="As intune.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="At most so many, the newest.")] = 20,
    url: ApiUrl = URL,
    token: ApiToken,
    as_json: AsJson = False,
) -> None:
    """Show deployments, the newest first."""
    from app import deployments_view

    asked = {"status": status, "app_name": app_name, "plane": plane, "limit": limit}
    given = {name: value for name, value in asked.items() if value is not None}

    async def ask() -> Any:
        async with api_client(url, token) as client:
            return (await client.get("/deployments", **given))["items"]

    now = datetime.now(UTC)
    show(run(ask()), as_json=as_json, view=lambda found: deployments_view.list_deployments(found, now))


@deployments.command("show")
def show_deployment(
    deployment_id: Id, *, url: ApiUrl = URL, token: ApiToken, as_json: AsJson = False
) -> None:
    """Show a deployment's rings, and why it does not move."""
    from app import deployments_view

    async def ask() -> Any:
        async with api_client(url, token) as client:
            deployment, blockers = await deployments_view.look(client, str(deployment_id))
            return {**deployment, "blockers": blockers}

    now = datetime.now(UTC)
    show(
        run(ask()),
        as_json=as_json,
        view=lambda found: deployments_view.whole(found, found["blockers"], now),
    )


@deployments.command("watch")
def watch_deployment(deployment_id: Id, *, url: ApiUrl = URL, token: ApiToken) -> None:
    """Show a deployment live until it is over. Exits with 0 if it was completed, else with 1."""
    from app import deployments_view

    async def follow() -> Any:
        async with api_client(url, token) as client:
            return await deployments_view.watch(client, str(deployment_id))

    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(1 if run(follow())["status"] in NOT_DONE else 0)
    sys.exit(130)


@deployments.command("submit")
def submit_deployment(
    file: IntentFile, *, url: ApiUrl = URL, token: ApiToken, as_json: AsJson = False
) -> None:
    """Submit an intent; its first ring starts at once."""
    made = run(post(url, token, "/deployments", read_intent(file)))
    show(made, as_json=as_json, view=lambda found: f"{found['id']} is {found['status']}")


def order(deployment_id: UUID, command: str, body: Json, *, url: str, token: str, as_json: bool) -> None:
    """Give an order, and say how the deployment stands then."""
    given = {name: value for name, value in body.items() if value is not None}
    answer = run(post(url, token, f"/deployments/{deployment_id}/{command}", given))
    show(answer, as_json=as_json, view=stands)


def stands(deployment: Json) -> str:
    """How it stands, in a sentence."""
    paused = ", paused" if deployment["paused"] else ""
    return f"{deployment['app_name']} {deployment['app_version']} is {deployment['status']}{paused}"


async def post(url: str, token: str, path: str, body: Json) -> Json:
    """The answer to a POST."""
    async with api_client(url, token) as client:
        return await client.post(path, body)


@deployments.command("promote")
def promote_deployment(
    deployment_id: Id,
    *,
    reason: Why = None,
    override: Annotated[
        str | None, typer.Option(help="Why a gate is passed over; takes an approver.")
    ] = None,
    lasting: Annotated[
        str, typer.Option("--for", metavar="DURATION", help="Until when the next ring must have begun.")
    ] = "1d",
    url: ApiUrl = URL,
    token: ApiToken,
    as_json: AsJson = False,
) -> None:
    """Go on to the next ring by hand."""
    given = {"reason": override, "expires_at": ends_at(lasting)} if override else None
    body = {"reason": reason, "override": given}
    order(deployment_id, "promote", body, url=url, token=token, as_json=as_json)


def add_order(command: str, told: str) -> None:
    """A command that gives an order which takes nothing but a reason."""

    @deployments.command(command, help=told)
    def give(
        deployment_id: Id, *, reason: Why = None, url: ApiUrl = URL, token: ApiToken, as_json: AsJson = False
    ) -> None:
        order(deployment_id, command, {"reason": reason}, url=url, token=token, as_json=as_json)


add_order("pause", "Touch no new device until it is resumed; a rollback is stopped just so.")
add_order("resume", "Go on; nothing is repeated.")
add_order("cancel", "End it where it is: what is installed stays, what devices have not begun is withdrawn.")
add_order("rollback", "Take it back from every device it may have reached, newest ring first.")


@deployments.command("retry")
def retry_deployment(
    deployment_id: Id,
    *,
    reason: Why = None,
    reset_budget: Annotated[
        bool, typer.Option("--reset-budget", help="Give the one fresh retry budget; needs a reason.")
    ] = False,
    url: ApiUrl = URL,
    token: ApiToken,
    as_json: AsJson = False,
) -> None:
    """Push failed lanes and failed devices again, and nothing else."""
    body = {"reason": reason, "reset_budget": reset_budget}
    order(deployment_id, "retry", body, url=url, token=token, as_json=as_json)


@approvals.command("list")
def list_approvals(
    *,
    everything: Annotated[bool, typer.Option("--all", help="Decided ones too.")] = False,
    url: ApiUrl = URL,
    token: ApiToken,
    as_json: AsJson = False,
) -> None:
    """Show the queue: what waits for a decision."""
    from app import deployments_view

    asked = {} if everything else {"status": "PENDING"}

    async def ask() -> Any:
        async with api_client(url, token) as client:
            return await client.every("/approvals", **asked)

    now = datetime.now(UTC)
    show(run(ask()), as_json=as_json, view=lambda found: deployments_view.list_approvals(found, now))


@approvals.command("show")
def show_approval(approval_id: Id, *, url: ApiUrl = URL, token: ApiToken, as_json: AsJson = False) -> None:
    """Show what is to be decided, or was."""
    from app import deployments_view

    async def ask() -> Any:
        async with api_client(url, token) as client:
            return await client.get(f"/approvals/{approval_id}")

    now = datetime.now(UTC)
    show(run(ask()), as_json=as_json, view=lambda found: deployments_view.approval(found, now))


@approvals.command("approve")
def approve(
    approval_id: Id,
    *,
    reason: Annotated[str, typer.Option(help="Stands in the history.")],
    conditions: Annotated[str | None, typer.Option(help="What has to be kept to.")] = None,
    controls: Annotated[
        str | None, typer.Option("--exception", help="Compensating controls: approve with an exception.")
    ] = None,
    lasting: Annotated[
        str, typer.Option("--for", metavar="DURATION", help="How long the exception lasts.")
    ] = "30d",
    url: ApiUrl = URL,
    token: ApiToken,
    as_json: AsJson = False,
) -> None:
    """Say yes: what waited for it goes on by itself."""
    body: Json = {"reason": reason}
    if conditions is not None:
        body["conditions"] = conditions
    if controls is not None:
        body["exception"] = {"compensating_controls": controls, "expires_at": ends_at(lasting)}
    decide(approval_id, "approve", body, url=url, token=token, as_json=as_json)


@approvals.command("reject")
def reject(
    approval_id: Id,
    *,
    reason: Annotated[str, typer.Option(help="Stands in the history.")],
    url: ApiUrl = URL,
    token: ApiToken,
    as_json: AsJson = False,
) -> None:
    """Say no: the deployment ends."""
    decide(approval_id, "reject", {"reason": reason}, url=url, token=token, as_json=as_json)


def decide(approval_id: UUID, verdict: str, body: Json, *, url: str, token: str, as_json: bool) -> None:
    """Decide, and say what was decided."""
    answer = run(post(url, token, f"/approvals/{approval_id}/{verdict}", body))
    show(
        answer,
        as_json=as_json,
        view=lambda made: f"{made['app_name']} {made['app_version']} is {made['status']}",
    )


def show_blockers(deployment_id: Id, *, url: ApiUrl = URL, token: ApiToken, as_json: AsJson = False) -> None:
    """Show why a deployment does not move; nothing where it moves or is over."""
    from app import deployments_view

    async def ask() -> Any:
        async with api_client(url, token) as client:
            return await client.every(f"/deployments/{deployment_id}/blockers")

    now = datetime.now(UTC)
    found = run(ask())
    if not found and not as_json:
        typer.echo("nothing holds it: it moves, or it is over")
        return
    show(found, as_json=as_json, view=lambda blockers: deployments_view.reasons(blockers, now))


def show_forecast(file: IntentFile, *, url: ApiUrl = URL, token: ApiToken, as_json: AsJson = False) -> None:
    """Show what an intent would do; nothing is stored and no plane is called."""
    from app import deployments_view

    told = run(post(url, token, "/deployments/forecast", read_intent(file)))
    show(told, as_json=as_json, view=deployments_view.forecast)
