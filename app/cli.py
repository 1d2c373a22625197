# SPDX-License-Identifier: Apache-2.0
"""The command line. Each command imports what it needs when it runs, so that ``--help`` is quick."""

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn
from uuid import UUID

import typer
from pydantic import ValidationError
from setproctitle import setproctitle

from app import assistant_command, audit_command, deployments_command, serving
from app.errors import ControlPlaneError
from app.settings import Settings, unknown_variables, what_is_wrong
from app.terminal import (
    URL,
    ApiToken,
    ApiUrl,
    DataDir,
    Why,
    api_client,
    ends_at,
    fail,
    run,
    settings_of,
)

EXIT_CODES = """Exit codes: 0 it was done · 1 it failed, or a check did (the reason is on standard error) ·
2 the command or a setting is wrong · 130 interrupted."""

Role = Literal["viewer", "packager", "publisher", "approver", "admin"]
Port = Annotated[int, typer.Option(min=1, max=65535)]
ServiceName = Annotated[str, typer.Argument(metavar="SERVICE", help="As in the table of breakers.")]
HowLong = Annotated[
    str | None, typer.Option("--for", metavar="DURATION", help="As 30m or 2h. Default: until enabled.")
]

cli = typer.Typer(
    name="eucora",
    help="EUCORA carries application rollouts out through the device managers that a company already has.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tokens = typer.Typer(help="Bearer tokens of the API.", no_args_is_help=True)
cli.add_typer(tokens, name="token")
breakers = typer.Typer(help="What keeps callers away from services that fail.")
cli.add_typer(breakers, name="breakers")
deployments_command.register(cli)
assistant_command.register(cli)
audit_command.register(cli)


def main() -> None:
    """Run the command line; a foreseen failure is one sentence, not a traceback."""
    try:
        cli(prog_name="eucora")
    except ValidationError as error:
        fail(what_is_wrong(error), code=2)
    except ControlPlaneError as error:
        fail(error.detail, code=1)


def say(line: str) -> None:
    """Print a line, unless nobody listens any more: what runs must not end because a terminal was closed."""
    with contextlib.suppress(OSError):
        typer.echo(line)


@cli.command()
def up(
    *,
    data_dir: DataDir = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the API.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 1,
    sandbox_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the sandbox planes. Default: a free one.")
    ] = None,
) -> None:
    """Run everything on this machine: servers, sandbox planes, API and workers. Ctrl-C stops it."""
    from app import supervisor

    setproctitle("eucora up")
    for variable in unknown_variables():
        typer.echo(f"eucora: unknown variable {variable}: it changes nothing", err=True)
    plan = supervisor.Plan(
        settings=settings_of(data_dir), port=port, workers=workers, sandbox_port=sandbox_port
    )
    run(supervisor.up(plan, report=say))


@cli.command()
def demo(
    *,
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document at the end.")] = False,
    example: Annotated[
        str | None, typer.Option(metavar="NAME", help="One of examples/ instead, or `ai`.")
    ] = None,
) -> None:
    """Carry two example rollouts out over a sandbox fleet and show what happens."""
    from app import assistant_demo, examples
    from app import demo as demonstration

    setproctitle("eucora demo")
    known = [assistant_demo.NAME, *examples.names()]
    if example not in {None, *known}:
        fail(f"there is no example {example}; there are {', '.join(known)}", code=2)
    if example == assistant_demo.NAME:
        sys.exit(assistant_demo.run(settings_of(data_dir), as_json=as_json))
    sys.exit(demonstration.run(settings_of(data_dir), as_json=as_json, example=example))


@cli.command()
def api(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Port = 8000,
    grace: Annotated[int, typer.Option(help="Seconds that open requests get at the end.")] = 20,
) -> None:
    """Run the API."""
    become(serving.command("api", host, str(port), str(grace)))


@cli.command()
def worker() -> None:
    """Run one worker process; start one per core, on as many machines as you like."""
    become(serving.command("worker"))


@cli.command()
def sandbox(
    *,
    port: Port,
    state: Annotated[Path | None, typer.Option(help="File that outlives a restart.")] = None,
) -> None:
    """Run the sandbox planes: device managers to try the product against without a tenant."""
    from sandbox.main import run as serve

    setproctitle("eucora sandbox")
    serve(port, state)


@cli.command()
def migrate(*, data_dir: DataDir = None) -> None:
    """Bring the database to the newest revision. Harmless when it is there, or when two try at once."""
    from app import admin

    run(admin.migrate_installation(settings_of(data_dir)))
    typer.echo("the database is at the newest revision")


@tokens.command("create")
def create_token(
    *,
    role: Annotated[Role, typer.Option(help="What its bearer may do.")],
    name: Annotated[str, typer.Option(help="Who its bearer is; stands in the history.")],
    expires_days: Annotated[int | None, typer.Option(min=1, max=3650, help="Default: never.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Make a token. Its text is printed once, alone on standard output; only its hash is stored."""
    from app import admin

    text = asyncio.run(
        admin.create_token(settings_of(data_dir), role=role, name=name, expires_days=expires_days)
    )
    typer.echo(text)


@tokens.command("list")
def list_tokens(*, data_dir: DataDir = None) -> None:
    """Show all tokens by id, never their text."""
    from app import admin

    for line in asyncio.run(admin.list_tokens(settings_of(data_dir))):
        typer.echo(line)


@tokens.command("revoke")
def revoke_token(
    token_id: Annotated[UUID, typer.Argument(metavar="ID")], *, data_dir: DataDir = None
) -> None:
    """End a token by its id (see ``eucora token list``)."""
    from app import admin

    run(admin.revoke_token(settings_of(data_dir), token_id))
    typer.echo(f"revoked {token_id}")


@breakers.callback(invoke_without_command=True)
def show_breakers(
    context: typer.Context,
    *,
    url: ApiUrl = URL,
    token: ApiToken,
    once: Annotated[bool, typer.Option(help="Show them once and leave.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and leave.")] = False,
) -> None:
    """Show the breakers of all services as all processes see them, live until Ctrl-C."""
    context.obj = url, token
    if context.invoked_subcommand is None:
        with contextlib.suppress(KeyboardInterrupt):
            run(print_breakers(url, token, once=once, as_json=as_json))


async def print_breakers(url: str, token: str, *, once: bool, as_json: bool) -> None:
    """Show them as asked for."""
    from app import breakers_view

    async with api_client(url, token) as client:
        if as_json:
            typer.echo(json.dumps(await client.every("/breakers"), indent=2))
        elif once:
            await breakers_view.show(client)
        else:
            await breakers_view.watch(client)


@breakers.command("reset")
def reset_breaker(context: typer.Context, service: ServiceName, *, reason: Why = None) -> None:
    """Close a breaker in all processes, forget its failures, and end any order."""
    run(order_breaker(context, service, "reset", {"reason": reason}))


@breakers.command("isolate")
def isolate_breaker(
    context: typer.Context, service: ServiceName, *, reason: Why = None, lasting: HowLong = None
) -> None:
    """Keep every caller away from a service."""
    run(order_breaker(context, service, "isolate", {"reason": reason, "expires_at": ends_at(lasting)}))


@breakers.command("disable")
def disable_breaker(
    context: typer.Context, service: ServiceName, *, reason: Why = None, lasting: HowLong = None
) -> None:
    """Let every caller through to a service, whatever fails."""
    run(order_breaker(context, service, "disable", {"reason": reason, "expires_at": ends_at(lasting)}))


@breakers.command("enable")
def enable_breaker(context: typer.Context, service: ServiceName, *, reason: Why = None) -> None:
    """End an isolation or a disabling."""
    run(order_breaker(context, service, "enable", {"reason": reason}))


async def order_breaker(
    context: typer.Context, service: str, command: str, body: dict[str, str | None]
) -> None:
    """Give the order, and say how the service stands then."""
    url, token = context.obj
    async with api_client(url, token) as client:
        breaker = await client.post(f"/breakers/{service}/{command}", body)
    until = f" until {breaker['expires_at']}" if breaker["expires_at"] else ""
    typer.echo(f"{service} is {breaker['state']}{until}")


@cli.command()
def planes(
    *,
    url: ApiUrl = URL,
    token: ApiToken,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show the planes: which are configured, what each can install, and what it cannot do."""
    run(print_planes(url, token, as_json=as_json))


async def print_planes(url: str, token: str, *, as_json: bool) -> None:
    """Show them as asked for."""
    from app import planes_view

    async with api_client(url, token) as client:
        found = await client.every("/planes")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        planes_view.show(found)


@cli.command()
def check(*, data_dir: DataDir = None) -> None:
    """Say what is wrong with settings, servers and planes, and how to mend it."""
    sys.exit(asyncio.run(print_findings(settings_of(data_dir))))


async def print_findings(settings: Settings) -> bool:
    """Print what is found as it is found; whether anything failed."""
    from app import check as checks

    failed = False
    async for finding in checks.check(settings):
        typer.echo(str(finding))
        failed |= finding.level is checks.Level.FAIL
    return failed


@cli.command()
def openapi() -> None:
    """Print the API's OpenAPI document."""
    from app.main import openapi_text

    typer.echo(openapi_text())


@cli.command(hidden=True)
def states() -> None:
    """Print the tables of all state machines, as they are kept in docs/states.md."""
    from app import admin

    typer.echo(admin.states_text(), nl=False)


FORWARDING = {"allow_extra_args": True, "ignore_unknown_options": True}


@cli.command(context_settings=FORWARDING)
def test(arguments: typer.Context) -> None:
    """Run the tests of a checkout, three processes side by side (``-n 0``: one). Arguments go to pytest."""
    options = ["-n", "3", "--dist", "loadfile", "--no-loadscope-reorder"]
    become_in_checkout("tests", "pytest", *options, *arguments.args)


@cli.command(context_settings=FORWARDING, add_help_option=False)
def bench(arguments: typer.Context) -> None:
    """Measure a checkout beside other libraries (``bench --help``: what there is to measure)."""
    become_in_checkout("bench", "bench", *arguments.args)


def become_in_checkout(folder: str, module: str, *arguments: str) -> NoReturn:
    """Be a module, in the checkout that has the folder."""
    root = Path(__file__).resolve().parent.parent
    if not (root / folder).exists():
        fail(f"{root} has no {folder}: this runs in a checkout", code=2)
    os.chdir(root)
    become((sys.executable, "-m", module, *arguments))


def become(command: tuple[str, ...]) -> NoReturn:
    """Be what this command starts, in place of this process."""
    os.execv(command[0], command)  # noqa: S606 - an argument list, no shell


if __name__ == "__main__":
    main()
