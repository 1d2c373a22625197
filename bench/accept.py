# SPDX-License-Identifier: Apache-2.0
"""The accept path: how many submissions one API process stores, and whether sick planes can be felt there.

Beside it, served by the same server over as many connections: a POST that only validates (what the framework
leaves to everybody), and one that stores a comparable row set with nothing around.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx

from app import examples, supervisor
from app.connectors.catalogue import MANIFESTS
from app.database import database_url
from app.supervisor import Installation
from bench import limits
from bench.installation import answering_process, installed
from bench.load import Load, send
from bench.report import Comparison, Goal, Report
from bench.rounds import Once, Size, alternate
from tests.databases import as_text, connected

OURS, EMPTY, STATEMENT = "this product's accept", "an empty POST", "one statement by asyncpg"
PREDECESSOR = 0.041
"""The accept and enqueue of the design before this one (Django, DRF, Celery) beside an empty POST, as it was
measured when it was replaced: 387 beside 9,500 a second. It is not run here."""
CONNECTIONS = 32
PACE = 100
SMALL_BODY = '{"app_name": "{n}", "version": "1.0", "planes": ["intune"]}'


async def measure(size: Size) -> Report:
    """Both questions, one after the other."""
    report = Report("accept")
    await measure_speed(size, report)
    await measure_calm(size, report)
    return report


async def measure_speed(size: Size, report: Report) -> None:
    """Submissions a second beside the limits; every one of them must be in the database."""
    count = size.of(6000, 100)
    async with installed() as installation, limits_server(installation) as limit:
        body = intent(installation.place.path)
        compared: dict[str, Once] = {
            EMPTY: partial(per_second, Load(f"{limit}/empty", SMALL_BODY, count, CONNECTIONS)),
            STATEMENT: partial(per_second, Load(f"{limit}/statement", SMALL_BODY, count, CONNECTIONS)),
            OURS: partial(per_second, submissions(installation, body, count)),
        }
        for once in compared.values():
            await once()  # connections are open and plans are made before anything counts
        figures = await alternate(compared, size.rounds)
        sent = count * (size.rounds + 1)
        await require_stored(installation, sent)
    speed = Comparison(f"answers to {CONNECTIONS} connections, one API process", "a second", figures, EMPTY)
    report.comparisons.append(speed)
    report.goals += [
        Goal("accept / an empty POST", speed.ratio(OURS), 0.15, 0.30),
        Goal("accept / the predecessor's", speed.ratio(OURS) / PREDECESSOR, 4, 8),
    ]
    report.notes.append(f"{sent:,} submissions were answered with 202, and are in the database.")


async def measure_calm(size: Size, report: Report) -> None:
    """The slowest hundredth of submissions at a steady pace, while all is well and while all planes hang."""
    count = size.of(1500, 100)
    async with installed(workers=1) as installation:
        load = submissions(installation, intent(installation.place.path), count, pace=PACE)
        async with httpx.AsyncClient(
            base_url=str(installation.settings.sandbox_url), trust_env=False
        ) as planes:
            compared: dict[str, Once] = {
                "every plane healthy": partial(slowest, load, planes, hanging=False),
                "every plane hangs": partial(slowest, load, planes, hanging=True),
            }
            await compared["every plane healthy"]()
            figures = await alternate(compared, size.rounds)
    calm = Comparison(f"p99 of accept at {PACE} a second, one worker", "ms", figures, "every plane healthy")
    report.comparisons.append(calm)
    found = calm.ratio("every plane hangs")
    report.goals.append(Goal("p99 with every plane hanging / healthy", found, 1.2, 1.05, at_most=True))


async def per_second(load: Load) -> float:
    """Of one round."""
    return (await send(load)).require(202).per_second


async def slowest(load: Load, planes: httpx.AsyncClient, *, hanging: bool) -> float:
    """The p99 of one round, in ms."""
    faults = {"items": [{"latency": 3600}] if hanging else []}
    for plane in MANIFESTS:
        (await planes.put(f"/{plane.value}/_sandbox/faults", json=faults)).raise_for_status()
    return (await send(load)).require(202).percentile(99)


def intent(folder: Path) -> str:
    """The Firefox example, five rings on one plane; each submission is of an application of its own."""
    body = examples.make("firefox", folder / "examples").read_text()
    return body.replace("Mozilla Firefox", "App {n}", 1)


def submissions(installation: Installation, body: str, count: int, *, pace: float = 0) -> Load:
    """To the API of an installation."""
    url = f"{installation.url}/api/v1/deployments"
    return Load(url, body, count, CONNECTIONS, pace, installation.token)


async def require_stored(installation: Installation, count: int) -> None:
    """Every submission with its lanes, its operation and its event, or nothing was measured."""
    tables = {"deployments": 1, "ring_deployments": 5, "operations": 1, "events": 1}
    async with connected(database_url(installation.settings)) as connection:
        for table, expected in tables.items():
            stored = await connection.fetchval(f"SELECT count(*) FROM {table}")  # noqa: S608 - our own names
            if stored < count * expected:
                raise SystemExit(f"{table} holds {stored} rows of {count * expected}: nothing was measured")


@asynccontextmanager
async def limits_server(installation: Installation) -> AsyncIterator[str]:
    """The limits on the same database, in a process of their own; their address."""
    url, port = database_url(installation.settings), supervisor.free_port()
    async with connected(url) as connection:
        await connection.execute(limits.TABLES)
    command = ("bench.limits", str(port), as_text(url.set(drivername="postgresql")))
    async with answering_process(port, "/openapi.json", *command) as address:
        yield address
