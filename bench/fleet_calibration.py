# SPDX-License-Identifier: Apache-2.0
"""What one operation costs, by kind and plane: the product's own jobs against the sandbox planes, watched.

The jobs run in this process, one at a time, so that its CPU is theirs; the requests are those that the plane
has counted, the transactions and the log of changes those that PostgreSQL has.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx

from app import examples
from app.client import Client
from app.connectors.catalogue import MANIFESTS
from app.connectors.contract import Call, Capability, Plane
from app.database import database_url
from app.domain import comparison, operations, outcomes
from app.domain.operations import OperationKind, Subject
from app.models import Operation, new_id
from app.runtime import Runtime, open_runtime
from app.supervisor import Installation
from tests.databases import connected
from workers.main import JOBS
from workers.runner import Runner
from workers.watchdog import Watchdog

PUSH, CHANGED, UNCHANGED = "push", "measure, all changed", "measure, nothing changed"
LOOK, COUNT, ROLLBACK = "reconcile one lane", "count", "rollback"
WORK = (PUSH, CHANGED, UNCHANGED, LOOK, COUNT, ROLLBACK)
EXAMPLES = {
    Plane.INTUNE: "firefox",
    Plane.JAMF: "jamf-firefox",
    Plane.SCCM: "sccm-example-editor",
    Plane.LANDSCAPE: "landscape-example-editor",
    Plane.ANSIBLE: "ansible-example-agent",
}
FAILING = 0.04
"""Of the devices, in the rollout that shows what failures add; LAB lets 5 % pass."""
REPEATS = 5
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Reading:
    """Where all counters stand, or by how much they moved. CPU in seconds, ``log`` in bytes."""

    requests: float
    transactions: float
    log: float
    worker: float
    database: float

    def since(self, before: "Reading") -> "Reading":
        """By how much."""
        return Reading(*(getattr(self, name) - getattr(before, name) for name in self.__slots__))

    def and_of(self, other: "Reading") -> "Reading":
        """Both."""
        return Reading(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    def part(self, number: int) -> "Reading":
        """Of so many, each."""
        return Reading(*(getattr(self, name) / number for name in self.__slots__))


NOTHING = Reading(0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Line:
    """So much at least, and so much more for each."""

    fixed: float
    each: float

    @classmethod
    def through(cls, first: tuple[float, float], second: tuple[float, float]) -> "Line":
        """Two points; noise does not make it fall."""
        each = max(0.0, (second[1] - first[1]) / (second[0] - first[0]))
        return cls(max(0.0, first[1] - each * first[0]), each)

    def at(self, number: float) -> float:
        """Its value."""
        return self.fixed + self.each * number


@dataclass(frozen=True, slots=True)
class Cost:
    """One kind of work on one plane: ``requests`` and ``transactions`` by pages, the others by devices."""

    requests: Line
    transactions: Line
    log: Line
    worker: Line
    database: Line


@dataclass(frozen=True, slots=True)
class Costs:
    """All work on one plane. ``page``: devices on one page of its reports.

    ``others``: requests for each page of devices that are on the plane, but not in the ring. Failures add
    requests to a measurement: so many for each failed device, or for each page that has one.
    """

    page: int
    of: Mapping[str, Cost]
    others: float
    per_failed: float
    per_failing_page: float

    def pages(self, devices: int) -> int:
        """Of so many devices."""
        return ceil(devices / self.page)


class Bench:
    """The product's jobs in this process, on a whole installation without workers."""

    def __init__(
        self,
        installation: Installation,
        runtime: Runtime,
        client: Client,
        planes: httpx.AsyncClient,
        database: asyncpg.Connection,
    ) -> None:
        self.runtime, self.client, self.planes, self.database = runtime, client, planes, database
        self._folder = installation.place.path / "calibration"
        self._runner = Runner(runtime, JOBS, ended=outcomes.operation_ended, watchdog=Watchdog(overrun=60))
        self._postmaster = int(
            (installation.place.path / "postgres" / "postmaster.pid").read_text().split()[0]
        )

    async def read(self, plane: Plane) -> Reading:
        """All counters now."""
        told = (await self.planes.get(f"/{plane}/_sandbox/requests")).raise_for_status().json()["counts"]
        row = await self.database.fetchrow(
            "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::float8 AS transactions,"
            " pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8 AS log"
        )
        requests, cpu = sum(told.values()), cpu_below(self._postmaster)
        return Reading(requests, row["transactions"], row["log"], time.process_time(), cpu)

    async def fleet(self, plane: Plane, devices: int, *, failing: float = 0.0, others: int = 0) -> None:
        """So many devices in LAB, and in GLOBAL ``others`` that are not asked for."""
        rings = {ring: {"devices": 0} for ring in ("CANARY", "PILOT", "DEPARTMENT")}
        lab = {"devices": devices, "delay": [0.2, 0.25], "fail": failing}
        body = {"rings": {**rings, "LAB": lab, "GLOBAL": {"devices": others}}}
        (await self.planes.put(f"/{plane}/_sandbox/fleet", json=body)).raise_for_status()

    async def submit(self, plane: Plane, number: int) -> UUID:
        """One more version of the plane's example, to LAB."""
        body = json.loads(examples.make(EXAMPLES[plane], self._folder).read_text())
        body |= {"version": f"{number}.0", "target_ring": "LAB", "rollback_version": None}
        if plane is Plane.SCCM:
            body["package"]["name"] = name = f"{body['app_name']} {number}.0"
            item = {"name": name, "product": body["app_name"], "version": body["version"]}
            await self.tell(plane, "applications", {"items": [item]})
        if plane is Plane.LANDSCAPE:
            await self.tell(plane, "archive", {"packages": {body["package"]["name"]: body["version"]}})
        return UUID((await self.client.post("/deployments", body))["id"])

    async def tell(self, plane: Plane, what: str, body: object) -> None:
        """Set something at a sandbox."""
        (await self.planes.put(f"/{plane}/_sandbox/{what}", json=body)).raise_for_status()

    async def once(self, plane: Plane, operation_id: UUID) -> tuple[Reading, Operation]:
        """One run of an operation that is due, and what it has moved."""
        before = await self.read(plane)
        await self._runner.deliver({}, str(operation_id))
        moved = (await self.read(plane)).since(before)
        async with self.runtime.transaction() as session:
            found = await operations.get(session, operation_id)
        if found.error is not None:
            raise SystemExit(f"{found.kind} on {plane}: {found.error}")
        return moved, found

    async def newest(self, deployment_id: UUID, kind: OperationKind) -> UUID:
        """The operation of a kind, made due."""
        async with self.runtime.transaction() as session:
            found = await operations.find(session, limit=1, deployment_id=deployment_id, kind=kind)
            await operations.hasten(session, deployment_id)
        return found[0].id

    async def until_ended(self, plane: Plane, deployment_id: UUID, kind: OperationKind) -> Reading:
        """All runs together."""
        total = NOTHING
        for _ in range(200):
            moved, found = await self.once(plane, await self.newest(deployment_id, kind))
            total = total.and_of(moved)
            if found.status in operations.ENDED:
                return total
            await asyncio.sleep(0.02)
        raise SystemExit(f"{kind} on {plane} does not end")


@asynccontextmanager
async def opened(installation: Installation) -> AsyncIterator[Bench]:
    """Everything that is watched."""
    async with (
        connected(database_url(installation.settings)) as database,
        open_runtime(installation.settings, process="bench") as runtime,
        Client(installation.url, installation.token) as client,
        httpx.AsyncClient(
            base_url=str(installation.settings.sandbox_url), trust_env=False, timeout=60
        ) as planes,
    ):
        yield Bench(installation, runtime, client, planes, database)


async def rollout(
    bench: Bench, plane: Plane, number: int, devices: int, failing: float
) -> dict[str, Reading]:
    """One version to LAB until its gate has passed, then a look at it."""
    await bench.fleet(plane, devices, failing=failing)
    deployment_id = await bench.submit(plane, number)
    found = {
        PUSH: await bench.until_ended(plane, deployment_id, OperationKind.DEPLOY_TO_CONNECTOR),
        CHANGED: await first_measurement(bench, plane, deployment_id, devices),
        UNCHANGED: await unchanged(bench, plane, deployment_id),
    }
    soaked = "UPDATE ring_deployments SET soak_elapsed = interval '30 days' WHERE deployment_id = $1"
    await bench.database.execute(soaked, deployment_id)
    await measurement(bench, plane, deployment_id)
    ended = await bench.client.deployment(deployment_id)
    if ended["status"] != "COMPLETED":
        raise SystemExit(f"the rollout on {plane} is {ended['status']}: {ended['lanes']}")
    if MANIFESTS[plane].can(Capability.OBSERVE):
        found[LOOK] = await look(bench, plane)
    found[COUNT] = await count(bench, plane)
    return found


async def first_measurement(bench: Bench, plane: Plane, deployment_id: UUID, devices: int) -> Reading:
    """The one by which every device has an outcome."""
    for _ in range(200):
        await asyncio.sleep(0.05)
        moved = await measurement(bench, plane, deployment_id)
        lane = (await bench.client.deployment(deployment_id))["lanes"][0]
        if lane["success_count"] + lane["failure_count"] == devices == lane["targeted"]:
            return moved
    raise SystemExit(f"not every device of {plane} has reported: {lane}")


async def measurement(bench: Bench, plane: Plane, deployment_id: UUID) -> Reading:
    """One more."""
    return (await bench.once(plane, await bench.newest(deployment_id, OperationKind.MEASURE_RING)))[0]


async def unchanged(bench: Bench, plane: Plane, deployment_id: UUID) -> Reading:
    """The mean of a few: PostgreSQL's CPU is only known to a hundredth of a second."""
    total = NOTHING
    for _ in range(REPEATS):
        total = total.and_of(await measurement(bench, plane, deployment_id))
    return total.part(REPEATS)


async def look(bench: Bench, plane: Plane) -> Reading:
    """Reconciliation when one lane is in force: the newest version's."""
    tick = bench.runtime.clock()
    async with bench.runtime.transaction() as session:
        in_force = await comparison.to_look_at(session, plane, since=tick, critical=False, limit=9)
    if len(in_force) != 1:
        raise SystemExit(f"{len(in_force)} lanes are in force on {plane}, not one")
    args = {"critical": False, "tick": tick.isoformat()}
    moved, found = await ordered(bench, plane, OperationKind.RECONCILE, Subject("plane", plane.value), args)
    if found.result != {"outcome": "looked", "not_readable": 0}:
        raise SystemExit(f"reconcile on {plane}: {found.result}")
    return moved


async def count(bench: Bench, plane: Plane) -> Reading:
    """How many devices LAB holds."""
    row = await bench.database.fetchrow(
        "SELECT kind, ref FROM ring_targets WHERE plane = $1 AND ring = 'LAB'", plane.value
    )
    return (
        await ordered(bench, plane, OperationKind.COUNT_TARGET, Subject("target", f"{plane}/LAB"), dict(row))
    )[0]


async def ordered(
    bench: Bench, plane: Plane, kind: OperationKind, subject: Subject, args: dict[str, Any]
) -> tuple[Reading, Operation]:
    """One operation that nothing has asked for yet."""
    async with bench.runtime.transaction() as session:
        made = await operations.enqueue(session, kind, subject=subject, correlation_id=new_id(), args=args)
    return await bench.once(plane, made)


async def take_back(bench: Bench, plane: Plane) -> Reading:
    """Roll the newest version back, all runs together."""
    newest = (await bench.client.get("/deployments", plane=plane.value, limit=1))["items"][0]
    await bench.client.post(f"/deployments/{newest['id']}/rollback", {"reason": "calibration"})
    return await bench.until_ended(plane, UUID(newest["id"]), OperationKind.EXECUTE_ROLLBACK)


async def calibrate(bench: Bench, plane: Plane, sizes: Sequence[int]) -> Costs:
    """Two fleets for the lines; a third must lie on them. One version fails here and there, two go back."""
    page = MANIFESTS[plane].costs[Call.STATUS].page
    await rollout(bench, plane, 1, 10, 0.0)  # connections are open, and there is an earlier version
    found = [await rollout(bench, plane, 2 + place, size, 0.0) for place, size in enumerate(sizes)]
    failed = await rollout(bench, plane, 9, sizes[0], FAILING)
    for place, size in ((0, sizes[0]), (1, sizes[1])):
        await rollout(bench, plane, 10 + place, size, 0.0)
        found[place][ROLLBACK] = await take_back(bench, plane)
    of = {kind: fitted(plane, kind, found[:2], sizes, page) for kind in WORK if kind in found[0]}
    for size, seen in list(zip(sizes, found, strict=True))[2:]:
        require_on_line(plane, of, ceil(size / page), seen)
    per_failed, per_page = of_failures(found[0], failed, sizes[0], page)
    return Costs(page, of, await of_others(bench, plane, page), per_failed, per_page)


async def calibrate_a_little(bench: Bench, plane: Plane, sizes: Sequence[int]) -> Costs:
    """As much as a small run needs."""
    page = MANIFESTS[plane].costs[Call.STATUS].page
    found = [await rollout(bench, plane, 1 + place, size, 0.0) for place, size in enumerate(sizes)]
    of = {kind: fitted(plane, kind, found[:2], sizes, page) for kind in WORK if kind in found[0]}
    return Costs(page, {**of, ROLLBACK: of[PUSH]}, others=0.0, per_failed=0.0, per_failing_page=0.0)


def of_failures(
    well: Mapping[str, Reading], failed: Mapping[str, Reading], devices: int, page: int
) -> tuple[float, float]:
    """What failures add to a measurement: requests for each failed device, or for each page that has one."""
    extra = max(0.0, failed[UNCHANGED].requests - well[UNCHANGED].requests)
    failures, pages = round(FAILING * devices), ceil(devices / page)
    return (extra / failures, 0.0) if extra >= failures else (0.0, extra / pages)


async def of_others(bench: Bench, plane: Plane, page: int) -> float:
    """What devices of other rings add to a reading of one ring's members, for each page of them."""
    await bench.fleet(plane, 10)
    alone = await count(bench, plane)
    await bench.fleet(plane, 10, others=3 * page)
    return ((await count(bench, plane)).requests - alone.requests) / 3


def fitted(
    plane: Plane, kind: str, found: Sequence[Mapping[str, Reading]], sizes: Sequence[int], page: int
) -> Cost:
    """The lines through both."""
    if any(each[kind].requests <= 0 for each in found):
        raise SystemExit(f"{kind} on {plane} has asked for nothing")

    def line(name: str, *, pages: bool) -> Line:
        first, second = (
            (float(ceil(size / page) if pages else size), float(getattr(each[kind], name)))
            for size, each in zip(sizes, found, strict=False)
        )
        return Line.through(first, second)

    by_pages = [line(name, pages=True) for name in ("requests", "transactions")]
    return Cost(*by_pages, *(line(name, pages=False) for name in ("log", "worker", "database")))


def require_on_line(plane: Plane, of: Mapping[str, Cost], pages: int, seen: Mapping[str, Reading]) -> None:
    """What the lines tell of a third fleet must be what was counted there, to one request."""
    for kind, moved in seen.items():
        expected = of[kind].requests.at(pages)
        if abs(expected - moved.requests) > max(1.0, 0.02 * moved.requests):
            raise SystemExit(f"{kind} on {plane}: {moved.requests} requests, not {expected:.1f}")


def cpu_below(parent: int) -> float:
    """Seconds of CPU that the children of a process have had, those that are gone too."""
    own = stat_of(parent)
    total = own[13] + own[14]  # of children that have ended
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        try:
            fields = stat_of(int(child))
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += fields[11] + fields[12]
    return total / TICKS


def stat_of(pid: int) -> list[int]:
    """The numbers behind a process's name; the letter of its state counts as 0."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return [0, *(int(word) for word in words[1:])]
