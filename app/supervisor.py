# SPDX-License-Identifier: Apache-2.0
"""``eucora up``: servers, sandbox, API and workers of one machine, started and stopped in order."""

import asyncio
import functools
import json
import os
import secrets
import shlex
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import SecretStr

import app
from app import admin, examples, serving
from app.children import Child, ChildFailed, Recipe, Report, say_yes, stop_leftovers
from app.connectors.catalogue import MANIFESTS
from app.data_folder import DataFolder, open_data_folder
from app.database import database_url
from app.embedded import embedded_postgres, embedded_valkey
from app.sandbox_targets import store_sandbox_targets
from app.settings import Settings

HOST = "127.0.0.1"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What each may take to stop; together with the servers' own patience it stays below 15 s.
PATIENCE_API, PATIENCE_WORKER, PATIENCE_SANDBOX = 2.5, 4.0, 2.0
API_GRACE = 1
COMPLETION_WAIT = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to start. ``sandbox_port`` left out: the port of the last time, or any that is free."""

    settings: Settings
    port: int = 8000
    workers: int = 1
    sandbox_port: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What runs. ``token`` is an administrator's; ``settings`` are those of the API and the workers."""

    url: str
    token: str
    settings: Settings
    place: DataFolder


async def up(plan: Plan, *, report: Report) -> None:
    """Run an installation until this process is told to stop.

    Raises:
        ChildFailed: something did not start.
    """
    with until_told_to_stop():
        async with running(plan, report=report) as installation:
            report(greeting(installation))
            await asyncio.get_running_loop().create_future()
    report("stopped")


@contextmanager
def until_told_to_stop() -> Iterator[None]:
    """Leave the block at Ctrl-C or SIGTERM, wherever it is; a second signal does not disturb the way out."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    told: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        if not told and task is not None:
            task.cancel()
        told.append(number)

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        yield
    except asyncio.CancelledError:
        if not told:
            raise
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


@asynccontextmanager
async def running(plan: Plan, *, report: Report) -> AsyncIterator[Installation]:
    """Everything started and ready; at the end stopped: API, workers, sandbox, Valkey, PostgreSQL.

    Raises:
        ChildFailed: something did not start; what had is stopped again.
    """
    async with AsyncExitStack() as stack:
        place = stack.enter_context(open_data_folder(plan.settings.data_dir, report=report))
        await stop_leftovers(place.run, report)
        require_free(plan.port, "--port")
        settings = await start_servers(stack, complete(plan.settings, place), place, report)
        settings = await prepare(stack, plan, settings, place, report)
        recipes = [worker_recipe(place, settings, number) for number in range(1, plan.workers + 1)]
        workers = [Child(recipe, report=report) for recipe in recipes]
        api = Child(api_recipe(place, settings, plan.port), report=report)
        await start_in(stack, [workers, [api]])
        yield Installation(
            url=f"http://{HOST}:{plan.port}", token=token_of(settings), settings=settings, place=place
        )


async def start_in(
    stack: AsyncExitStack, groups: Sequence[Sequence[Child]], *alongside: Coroutine[Any, Any, None]
) -> None:
    """Start all children, and do something else, at once; the stack stops group by group, the last one first.

    Raises:
        ChildFailed: one did not start.
    """
    for group in groups:
        stack.push_async_callback(stop_together, group)
    starts = [child.start() for group in groups for child in group]
    try:
        async with asyncio.TaskGroup() as tasks:
            for work in (*alongside, *starts):
                tasks.create_task(work)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures


async def stop_together(children: Sequence[Child]) -> None:
    """Stop them at once."""
    await asyncio.gather(*(child.stop() for child in children))


def complete(settings: Settings, place: DataFolder) -> Settings:
    """The settings with what ``up`` decides: an administrator's token and a short wait for running jobs."""
    worker = settings.worker
    if "completion_wait" not in worker.model_fields_set:
        worker = worker.model_copy(update={"completion_wait": COMPLETION_WAIT})
    token = settings.bootstrap_token or SecretStr(kept_token(place.path / "admin-token"))
    return settings.model_copy(update={"data_dir": place.path, "bootstrap_token": token, "worker": worker})


def kept_token(file: Path) -> str:
    """The token of the last time, or a new one that only we may read."""
    if not file.exists():
        with open(file, "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as new:
            new.write(f"eucora_{secrets.token_urlsafe(32)}\n")
    return file.read_text().strip()


def token_of(settings: Settings) -> str:
    """The administrator's token in plain text."""
    return settings.bootstrap_token.get_secret_value() if settings.bootstrap_token else ""


async def start_servers(
    stack: AsyncExitStack, settings: Settings, place: DataFolder, report: Report
) -> Settings:
    """Start those servers that the settings do not name, and name them there."""
    if settings.database_url is None:
        postgres = await stack.enter_async_context(embedded_postgres(place, report=report))
        settings = settings.model_copy(update={"database_url": SecretStr(postgres.url)})
    if settings.redis_url is None:
        valkey = await stack.enter_async_context(embedded_valkey(place, report=report))
        settings = settings.model_copy(update={"redis_url": SecretStr(valkey.url)})
    return settings


async def prepare(
    stack: AsyncExitStack, plan: Plan, settings: Settings, place: DataFolder, report: Report
) -> Settings:
    """Migrate; start the sandbox unless a plane is configured or the settings name one; set targets."""
    url = database_url(settings)
    children: list[Child] = []
    if not settings.planes and settings.sandbox_url is None:
        port = sandbox_port(place.path / "sandbox-port", plan.sandbox_port)
        children = [Child(sandbox_recipe(place, settings, port), report=report)]
        settings = settings.model_copy(update={"sandbox_url": f"http://{HOST}:{port}"})
    await start_in(stack, [children], admin.migrate(url))
    if not settings.planes and settings.sandbox_url:
        await store_sandbox_targets(url, settings.sandbox_url)
    return settings


def sandbox_port(note: Path, wanted: int | None) -> int:
    """The port asked for, or that of the last time (so that stored addresses stay true), or a free one."""
    if wanted is not None:
        require_free(wanted, "--sandbox-port")
        return wanted
    last = int(note.read_text()) if note.exists() else 0
    port = last if last and is_free(last) else free_port()
    note.write_text(f"{port}\n")
    return port


def require_free(port: int, option: str) -> None:
    """Say at once, and plainly, that somebody else listens there."""
    if not is_free(port):
        raise ChildFailed(f"port {port} is in use: stop what listens there, or choose another with {option}")


def is_free(port: int) -> bool:
    """Whether a server could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def api_recipe(place: DataFolder, settings: Settings, port: int) -> Recipe:
    """How the API is run; ready when it says it lives."""
    ready = functools.partial(http_answers, port, "/api/v1/health/live")
    command = serving.command("api", HOST, str(port), str(API_GRACE))
    return eucora_recipe(place, settings, "api", command, PATIENCE_API, ready=ready)


def worker_recipe(place: DataFolder, settings: Settings, number: int) -> Recipe:
    """How a worker is run."""
    return eucora_recipe(place, settings, f"worker-{number}", serving.command("worker"), PATIENCE_WORKER)


def sandbox_recipe(place: DataFolder, settings: Settings, port: int) -> Recipe:
    """How the sandbox is run; ready when it says it is well."""
    arguments = ("sandbox", "--port", str(port), "--state", str(place.path / "sandbox.json"))
    command = (sys.executable, "-m", "app.cli", *arguments)
    ready = functools.partial(http_answers, port, "/health")
    return eucora_recipe(place, settings, "sandbox", command, PATIENCE_SANDBOX, ready=ready)


def eucora_recipe(
    place: DataFolder,
    settings: Settings,
    name: str,
    command: tuple[str, ...],
    patience: float,
    *,
    ready: Callable[[], Awaitable[bool]] = say_yes,
) -> Recipe:
    """One of our own processes as a child."""
    return Recipe(
        name=name,
        command=command,
        folder=Path.cwd(),
        run=place.run,
        logs=place.logs,
        environment=os.environ | environment(settings),
        patience=patience,
        ready=ready,
    )


def environment(settings: Settings) -> dict[str, str]:
    """What ``up`` decided, as the variables that its children read."""
    decided = {
        "EUCORA_DATABASE_URL": settings.database_url,
        "EUCORA_REDIS_URL": settings.redis_url,
        "EUCORA_BOOTSTRAP_TOKEN": settings.bootstrap_token,
        "EUCORA_SANDBOX_URL": settings.sandbox_url,
        "EUCORA_DATA_DIR": settings.data_dir,
        "EUCORA_GATE_POLICY": settings.gate_policy,
        "EUCORA_WORKER": settings.worker.model_dump_json(),
        "EUCORA_LIMITS": settings.limits.model_dump_json(),
        "EUCORA_RECONCILIATION": settings.reconciliation.model_dump_json(),
        "EUCORA_HOUSEKEEPING": settings.housekeeping.model_dump_json(),
        "EUCORA_BREAKERS": json.dumps({name: part.model_dump() for name, part in settings.breakers.items()}),
    }
    root = str(Path(app.__file__).parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {name: plain(value) for name, value in decided.items() if value is not None} | {"PYTHONPATH": path}


def plain(value: object) -> str:
    """A setting as a variable holds it."""
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


async def http_answers(port: int, path: str) -> bool:
    """Whether a server there answers a GET with success."""
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(5):
            status = await reader.readline()
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()
    return status.startswith(b"HTTP/1.1 2")


def greeting(installation: Installation) -> str:
    """What somebody who just started it wants to know."""
    sandbox = installation.settings.sandbox_url
    example = examples.make("firefox", installation.place.path / "examples")
    return "\n".join(
        [
            f"EUCORA runs at {installation.url} (its documentation: {installation.url}/docs)",
            f"  admin token    {installation.token}",
            f"  sandbox planes {sandbox}/{{{','.join(plane.value for plane in MANIFESTS)}}}"
            if sandbox
            else "  planes         as configured; `eucora check` asks them",
            f"  gate policy    {installation.settings.gate_policy}{policy_hint(installation.settings)}",
            f"  data and logs  {installation.place.path}",
            "Next, in another terminal:",
            f"  curl -sSi {installation.url}/api/v1/deployments \\",
            f"    -H 'Authorization: Bearer {installation.token}' \\",
            f"    -H 'Content-Type: application/json' -H 'Idempotency-Key: {uuid4()}' \\",
            f"    --data @{shlex.quote(str(example))}",
            "Follow it, by the id in the answer:",
            f"  curl -sSN -H 'Authorization: Bearer {installation.token}' \\",
            f"    -H 'Accept: text/event-stream' {installation.url}/api/v1/deployments/ID/events",
            "Ctrl-C stops everything.",
        ]
    )


def policy_hint(settings: Settings) -> str:
    """Somebody who tries the product should not wait a day for the first ring."""
    return (
        " (rings soak for days; EUCORA_GATE_POLICY=demo for seconds)"
        if settings.gate_policy == "standard"
        else ""
    )
