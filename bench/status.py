# SPDX-License-Identifier: Apache-2.0
"""Reading what was stored while there is much of it: a lane's status, pages of devices, lists of deployments.

Through the API as it is installed, one request after the other over one connection that stays open. The rows
are made by SQL, as the product would have left them. Every answer is checked.
"""

import asyncio
import http.client
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlencode, urlsplit
from uuid import UUID

import asyncpg
import httpx
from starlette.requests import Request

from app.api.devices import BY_LANE
from app.api.paging import page_request
from app.database import database_url
from app.supervisor import Installation
from bench.accept import intent
from bench.installation import installed
from bench.report import Comparison, Goal, Report
from bench.rounds import Once, Size, alternate
from tests.databases import connected

LIMIT = 50
DEVICES = """
    INSERT INTO device_results (lane_id, device_id, name, state, error_code, connectivity)
    SELECT $1, 'device-' || lpad(number::text, 12, '0'), 'PC-' || number,
        CASE WHEN number % 1000 = 0 THEN 'FAILED' ELSE 'SUCCEEDED' END::device_state,
        CASE WHEN number % 1000 = 0 THEN '0x80070643' END, 'online'
    FROM generate_series(1, $2::int) AS number
"""
FIRST_LANE = "SELECT id FROM ring_deployments WHERE deployment_id = $1 ORDER BY position LIMIT 1"
COUNTERS = """
    UPDATE ring_deployments SET status = 'MEASURING', targeted = counted.total, success_count = counted.done,
        failure_count = counted.failed
    FROM (SELECT count(*) AS total, count(*) FILTER (WHERE state = 'SUCCEEDED') AS done,
        count(*) FILTER (WHERE state = 'FAILED') AS failed FROM device_results WHERE lane_id = $1) AS counted
    WHERE id = $1
"""
DEPLOYMENTS = """
    INSERT INTO deployments (id, correlation_id, app_name, app_version, planes, target_ring, promotion,
        privileged, criticality, risk_factors, risk_score, risk_model, risk_breakdown, requires_cab_approval,
        gates, gate_policy, status, submitted_by, created_at, updated_at, finished_at)
    SELECT gen_random_uuid(), gen_random_uuid(), 'App ' || number % 1000, '1.0', planes, target_ring,
        promotion, privileged, criticality, '{}', risk_score, risk_model, '[]', requires_cab_approval, '{}',
        gate_policy, CASE WHEN number <= $3 THEN 'ROLLED_BACK' ELSE 'COMPLETED' END::deployment_status,
        submitted_by, at, at, at
    FROM generate_series(1, $2::int) AS number
    CROSS JOIN LATERAL (SELECT now() - make_interval(secs => $2 - number + 3600) AS at) AS time
    CROSS JOIN deployments WHERE deployments.id = $1
"""
"""Those that were rolled back are the oldest: who looks for them from the newest on looks at all."""
INDEX = "ix_deployments_status_created"
"""What PostgreSQL has to go by where a list is narrowed by a status."""

EXPLAINED = """
    EXPLAIN (ANALYZE) SELECT * FROM deployments WHERE status = 'ROLLED_BACK'
    ORDER BY created_at DESC, id DESC LIMIT 50
"""

Check = Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Question:
    """A path to be read, and whether the answer is right."""

    path: str
    right: Check


@dataclass(frozen=True, slots=True)
class Lane:
    """A deployment whose first lane has so many devices."""

    deployment_id: UUID
    id: UUID
    devices: int

    @property
    def path(self) -> str:
        """Of its deployment."""
        return f"/api/v1/deployments/{self.deployment_id}"


async def measure(size: Size) -> Report:
    """All on one installation."""
    report = Report("status")
    many, few = size.of(1_000_000, 10_000), size.of(10_000, 1000)
    async with installed() as installation, connected(database_url(installation.settings)) as database:
        small, large = [await filled(installation, database, number) for number in (few, many)]
        await age(database, small, many)
        ask = partial(compare, report, Asking(installation, size))
        lane = await ask("reading a deployment", status_questions(small, large))
        page = await ask(f"{LIMIT} devices of a lane of {many:,}", await page_questions(large))
        await ask(f"{LIMIT} of {many:,} deployments", list_questions())
        await require_index(database)
    report.goals += [
        Goal(f"a lane of {many:,} devices / {few:,}", lane, 2, 1.2, at_most=True),
        Goal(f"a page at depth {deep(many):,} / the first", page, 3, 1.5, at_most=True),
    ]
    report.notes.append("Medians over one connection; every answer was what the rows and counters say.")
    return report


def deep(devices: int) -> int:
    """How many devices stand before the page that is deep in a list of so many."""
    return devices * 9 // 10


async def filled(installation: Installation, database: asyncpg.Connection, devices: int) -> Lane:
    """A deployment that was submitted, its first lane with so many devices, measured."""
    body = intent(installation.place.path).replace("{n}", f"with {devices}")
    headers = {"Authorization": f"Bearer {installation.token}", "Idempotency-Key": str(devices)}
    async with httpx.AsyncClient(base_url=installation.url, trust_env=False) as client:
        headers["Content-Type"] = "application/json"
        answer = await client.post("/api/v1/deployments", content=body, headers=headers)
        deployment_id = UUID(answer.raise_for_status().json()["id"])
    lane_id = await database.fetchval(FIRST_LANE, deployment_id)
    await database.execute(DEVICES, lane_id, devices, timeout=600)
    await database.execute(COUNTERS, lane_id, timeout=600)
    return Lane(deployment_id, lane_id, devices)


async def age(database: asyncpg.Connection, like: Lane, deployments: int) -> None:
    """So many deployments before those, and what a database that is not new has done by itself."""
    await database.execute(DEPLOYMENTS, like.deployment_id, deployments, LIMIT, timeout=600)
    await database.execute("VACUUM ANALYZE", timeout=600)


def status_questions(few: Lane, many: Lane) -> dict[str, Question]:
    """The same of a lane of few devices and of one of many."""

    def of(lane: Lane) -> Question:
        counters = (lane.devices, lane.devices - lane.devices // 1000, lane.devices // 1000)

        def right(answer: Any) -> bool:
            first = answer["lanes"][0]
            return (first["targeted"], first["success_count"], first["failure_count"]) == counters

        return Question(lane.path, right)

    return {
        f"a lane of {few.devices:,} devices": of(few),
        f"this product: a lane of {many.devices:,}": of(many),
    }


async def page_questions(lane: Lane) -> dict[str, Question]:
    """The first page, one far behind it, and the same of those in one state."""
    depth = deep(lane.devices)
    return {
        "the first page": await page_question(lane, 0),
        f"this product: the page at depth {depth:,}": await page_question(lane, depth),
        "this product: the first page of those that failed": await page_question(lane, 0, state="FAILED"),
        "this product: a deep page of those that failed": await page_question(lane, depth, state="FAILED"),
    }


async def page_question(lane: Lane, depth: int, **filters: str) -> Question:
    """The page behind so many devices; every thousandth of them has failed."""
    step = 1000 if filters else 1
    names = [f"device-{depth + step * number:012}" for number in range(1, LIMIT + 1)]
    path = f"{lane.path}/devices"
    query = {"limit": str(LIMIT), **filters}
    if depth:
        query["cursor"] = await cursor(path, query, f"device-{depth:012}")

    def right(answer: Any) -> bool:
        found = [item["device_id"] for item in answer["items"]]
        return bool(found) and found == names[: len(found)]

    return Question(f"{path}?{urlencode(query)}", right)


async def cursor(path: str, query: Mapping[str, str], last: str) -> str:
    """The one that the API gives where a page ends with this device of the first lane."""
    scope = {"type": "http", "path": path, "query_string": urlencode(query).encode(), "headers": []}
    page = await page_request(Request({**scope, "server": ("localhost", 80)}), LIMIT, None)
    return str(BY_LANE.encode((0, "intune", last), page))


def list_questions() -> dict[str, Question]:
    """The newest of all, and of the states that the newest and the oldest are in."""

    def of(path: str, *states: str) -> Question:
        def right(answer: Any) -> bool:
            return len(answer["items"]) == LIMIT and {item["status"] for item in answer["items"]} <= {*states}

        return Question(f"/api/v1/deployments?limit={LIMIT}{path}", right)

    return {
        "the newest": of("", "PENDING", "COMPLETED"),
        "this product: the newest that are completed": of("&status=COMPLETED", "COMPLETED"),
        "this product: the only ones that were rolled back": of("&status=ROLLED_BACK", "ROLLED_BACK"),
    }


@dataclass(frozen=True, slots=True)
class Asking:
    """Whom, and how often in how many rounds."""

    installation: Installation
    size: Size

    async def median(self, question: Question) -> float:
        """Milliseconds; every answer has to be right."""
        return await asyncio.to_thread(self._median, question, self.size.of(100, 5))

    def _median(self, question: Question, times: int) -> float:
        connection = http.client.HTTPConnection(urlsplit(self.installation.url).netloc, timeout=60)
        answers = [self._once(connection, question.path) for _ in range(times + 1)][1:]
        connection.close()
        if not all(question.right(json.loads(body)) for _, body in answers):
            raise SystemExit(f"{question.path} was answered wrong: nothing was measured")
        return statistics.median(milliseconds for milliseconds, _ in answers)

    def _once(self, connection: http.client.HTTPConnection, path: str) -> tuple[float, bytes]:
        began = time.perf_counter()
        connection.request("GET", path, headers={"Authorization": f"Bearer {self.installation.token}"})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != http.HTTPStatus.OK:
            raise SystemExit(f"{path} was answered with {answer.status}: {body.decode()}")
        return (time.perf_counter() - began) * 1000, body


async def compare(report: Report, asking: Asking, title: str, questions: Mapping[str, Question]) -> float:
    """Take turns; how the second stands to the first."""
    compared: dict[str, Once] = {name: partial(asking.median, each) for name, each in questions.items()}
    figures = await alternate(compared, asking.size.rounds)
    first, second = list(questions)[:2]
    comparison = Comparison(title, "ms", figures, first)
    report.comparisons.append(comparison)
    return comparison.ratio(second)


async def require_index(database: asyncpg.Connection) -> None:
    """A list narrowed by a status has an index to go by."""
    plan = "\n".join(row[0] for row in await database.fetch(EXPLAINED))
    if INDEX not in plan:
        raise SystemExit(f"the index {INDEX} is not used:\n{plan}")
