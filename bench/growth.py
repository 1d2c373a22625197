# SPDX-License-Identifier: Apache-2.0
"""Device results into the database, with the lane's counters, beside COPY of the same rows.

All write to the same table, emptied before each turn; rows and counters are counted after it.
The product stores pages as planes give them, each in a transaction of its own; so do the others, unless their
names say otherwise. They make new rows and count nothing. The product makes new rows when it reads a target;
what devices tell later updates them, and moves the counters in the same statement.
"""

import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import asyncpg

from app.connectors.contract import DeviceReport, InstallState, Member
from app.database import database_url
from app.domain import devices
from app.domain.devices import ROLLOUT_STATES
from app.models import DeviceState, RingDeployment
from app.runtime import Runtime, open_runtime
from bench.installation import servers
from bench.report import Comparison, Goal, Report
from bench.rounds import Once, Size, alternate
from tests.databases import connected
from tests.factories import NOON, make_deployment

PAGE = 999
"""Rows of a page, as many as Intune gives."""
SINGLES = 1000
COPY, COPY_PAGES = "COPY, one for all", "COPY, one for each page"
FILL = "this product: a target's devices, counted"
FIRST = "this product: first results, with counters"
AGAIN = "this product: the same results again"
LATE = "this product: results of unknown devices"
COLUMNS = (
    *("lane_id", "device_id", "name", "state", "detail", "error_code"),
    *("connectivity", "late", "updated_at"),
)
UNNEST = f"""
    INSERT INTO device_results ({", ".join(COLUMNS)})
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::device_state[], $5::text[], $6::text[],
        $7::connectivity[], $8::boolean[], $9::timestamptz[])
    ON CONFLICT (lane_id, device_id) DO UPDATE SET state = excluded.state, detail = excluded.detail,
        error_code = excluded.error_code, updated_at = excluded.updated_at
"""  # noqa: S608 - our own names
INSERT = f"INSERT INTO device_results ({', '.join(COLUMNS)}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"  # noqa: S608
STORED = "SELECT state::text, count(*) FROM device_results WHERE lane_id = $1 GROUP BY state"
COUNTED = """
    SELECT targeted, success_count, failure_count, unreachable_count, late_count
    FROM ring_deployments WHERE id = $1
"""
EMPTY = """
    TRUNCATE device_results;
    UPDATE ring_deployments SET targeted = 0, success_count = 0, failure_count = 0, unreachable_count = 0,
        late_count = 0;
    CHECKPOINT;
"""
ANSWERS = (
    *[(InstallState.INSTALLED, None, None)] * 45,
    *[(InstallState.FAILED, "The installer ended with an error.", "0x80070643")] * 4,
    (InstallState.UNREACHABLE, "not heard of", None),
)
"""What fifty devices tell."""

Item = TypeVar("Item")
Record = tuple[Any, ...]
Write = Callable[[asyncpg.Connection, Sequence[Record]], Awaitable[object]]
Step = Callable[["Stage"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Stage:
    """A lane, and what its devices tell."""

    runtime: Runtime
    connection: asyncpg.Connection
    lane_id: UUID
    reports: Sequence[DeviceReport]

    @property
    def states(self) -> Counter[str]:
        """How many devices are in which state once all have told."""
        return Counter(ROLLOUT_STATES[report.state].value for report in self.reports)

    def records(self) -> list[Record]:
        """The rows as others write them."""
        return [
            (
                *(self.lane_id, report.device_id, report.name, ROLLOUT_STATES[report.state].value),
                *(report.detail, report.error_code, "online", False, NOON),
            )
            for report in self.reports
        ]


async def measure(size: Size) -> Report:
    """Everything takes its turn on the same servers."""
    report = Report("growth")
    async with staged(size.of(50_000, 1000)) as stage:
        figures = await alternate(contenders(stage), size.rounds)
    speed = Comparison(f"rows stored, {len(stage.reports):,} devices", "a second", figures, COPY)
    report.comparisons.append(speed)
    report.goals += [
        Goal("new rows, counted / COPY", speed.ratio(FILL), 0.3, 0.5),
        Goal("first results with counters (updates) / COPY", speed.ratio(FIRST), 0.3, 0.5),
    ]
    report.notes.append("After each turn the rows by state and the lane's counters were what was told.")
    return report


def contenders(stage: Stage) -> dict[str, Once]:
    """By name. The product's begin where its own steps before them have led."""
    return {
        COPY: partial(of_others, stage, copy, page=len(stage.reports)),
        COPY_PAGES: partial(of_others, stage, copy),
        "unnest upsert, no counters": partial(of_others, stage, unnest),
        "executemany": partial(of_others, stage, execute_many),
        "single inserts": partial(of_others, stage, execute_many, page=1, most=SINGLES),
        FILL: partial(of_the_product, stage, read_target),
        FIRST: partial(of_the_product, stage, store_reports, read_target),
        AGAIN: partial(of_the_product, stage, store_reports, read_target, store_reports),
        LATE: partial(of_the_product, stage, store_reports),
    }


async def of_others(stage: Stage, write: Write, *, page: int = PAGE, most: int | None = None) -> float:
    """One round of one that only makes rows."""
    records = stage.records()[:most]
    await stage.connection.execute(EMPTY)
    began = time.perf_counter()
    for some in pages(records, page):
        await write(stage.connection, some)
    seconds = time.perf_counter() - began
    await require_stored(stage, Counter(record[3] for record in records))
    return len(records) / seconds


async def copy(connection: asyncpg.Connection, records: Sequence[Record]) -> object:
    """The fastest way there is."""
    return await connection.copy_records_to_table("device_results", records=records, columns=COLUMNS)


async def unnest(connection: asyncpg.Connection, records: Sequence[Record]) -> object:
    """One statement with an array for each column."""
    return await connection.execute(UNNEST, *zip(*records, strict=True))


async def execute_many(connection: asyncpg.Connection, records: Sequence[Record]) -> object:
    """One statement for each row, sent together."""
    return await connection.executemany(INSERT, records)


async def of_the_product(stage: Stage, step: Step, *before: Step) -> float:
    """One round of one step, after those before it."""
    await stage.connection.execute(EMPTY)
    for each in before:
        await each(stage)
    began = time.perf_counter()
    await step(stage)
    seconds = time.perf_counter() - began
    await require_counted(stage, targeted=read_target in (step, *before), told=step is store_reports)
    return len(stage.reports) / seconds


async def read_target(stage: Stage) -> None:
    """As a push does: page by page, and counted at its end."""
    members = [Member(report.device_id, report.name, NOON) for report in stage.reports]
    for some in pages(members):
        async with stage.runtime.transaction() as session:
            await devices.store_members(session, stage.lane_id, some, now=NOON)
    async with stage.runtime.transaction() as session:
        lane = await session.get_one(RingDeployment, stage.lane_id)
        lane.targeted = await devices.count_members(session, stage.lane_id)


async def store_reports(stage: Stage) -> None:
    """As a measurement does."""
    for some in pages(stage.reports):
        async with stage.runtime.transaction() as session:
            await devices.store_reports(session, stage.lane_id, some, now=NOON)


def pages(rows: Sequence[Item], page: int = PAGE) -> Iterator[Sequence[Item]]:
    """All rows, so many at a time."""
    for start in range(0, len(rows), page):
        yield rows[start : start + page]


async def require_counted(stage: Stage, *, targeted: bool, told: bool) -> None:
    """Rows and counters are what the steps have led to."""
    number, states = len(stage.reports), stage.states
    await require_stored(stage, states if told else Counter({DeviceState.PENDING.value: number}))
    moved = [states[state] if told and targeted else 0 for state in ("SUCCEEDED", "FAILED", "UNREACHABLE")]
    expected = [number if targeted else 0, *moved, 0 if targeted else number]
    counted = list(await stage.connection.fetchrow(COUNTED, stage.lane_id))
    if counted != expected:
        raise SystemExit(f"the lane's counters are {counted}, not {expected}: nothing was measured")


async def require_stored(stage: Stage, expected: Counter[str]) -> None:
    """So many rows in each state, or nothing was measured."""
    stored = dict(await stage.connection.fetch(STORED, stage.lane_id))
    if stored != expected:
        raise SystemExit(f"the lane's devices are {stored}, not {dict(expected)}: nothing was measured")


@asynccontextmanager
async def staged(number: int) -> AsyncIterator[Stage]:
    """Servers, and the first lane of a deployment of so many devices."""
    async with (
        servers() as settings,
        connected(database_url(settings)) as connection,
        open_runtime(settings, process="bench") as runtime,
    ):
        async with runtime.transaction() as session:
            lane_id = (await make_deployment(session)).lanes[0].id
        reports = [
            DeviceReport(f"device-{each:012}", f"PC-{each:06}", *ANSWERS[each % len(ANSWERS)])
            for each in range(number)
        ]
        yield Stage(runtime, connection, lane_id, reports)
