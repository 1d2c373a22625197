# SPDX-License-Identifier: Apache-2.0
"""Half an hour of steady rollouts, with a plane that fails and recovers: what grows, and what is lost.

All of it is the product; its second quarter of the time is compared with its last. What is kept on purpose
(deployments, their history) grows, and is measured by the row.
"""

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import httpx

from app import examples
from app.database import database_url
from app.settings import BreakerSettings, WorkerSettings
from app.supervisor import Installation
from bench.installation import installed
from bench.load import Load, send
from bench.report import Comparison, Goal, Report
from bench.rounds import Size
from bench.watching import MB, Sample, Stored, Watch
from tests.databases import connected
from tests.installation import FLEET, MADE_ONCE, quick_policy
from tests.servers import scratch_folder

MINUTES = "EUCORA_BENCH_SOAK_MINUTES"
EXAMPLES = {"intune": "firefox", "ansible": "ansible-example-agent"}
"""What is rolled out on each plane."""
BURST = 30
"""Rollouts on each plane, at once and before anything is watched: they tell what the machine carries."""
SHARE = 0.4
"""Of that is submitted steadily; a plane that was away needs the rest to catch up."""
SLOWEST = 0.25
"""Submissions a second: the API ends connections that say nothing for 5 s."""
SICK_PLANE = "intune"
SICK_PART = 0.25
"""Of each cycle, at its end: the plane is well first."""
CYCLE = 75.0
"""Seconds, about: each quarter holds as many whole cycles of each sickness as the others."""
HANGS = 3600.0
DRAIN = 600.0
SECOND, LAST = "second quarter", "this product, last quarter"
QUARTERS = ("first quarter", SECOND, "third quarter", LAST)
BYTES = "bytes for each row of "
UNITS = {"RSS": "MB", "memory": "MB", "loop lag": "ms", "age": "s"}
HOT_TABLES = ("operations", "effects", "ring_deployments", "idempotency_keys", "deployments")
FLAT = {
    "RSS": (1.10, 1.05),
    "memory of Valkey": (1.10, 1.05),
    "keys in Valkey": (1.2, 1.1),
    "connections": (1.1, 1.0),
    **{f"{BYTES}{table}": (1.5, 1.2) for table in HOT_TABLES},
}
"""How much more the last quarter may have than the second: what must be, and what is aimed at."""
PEAKS = ("open rollouts", "wake-ups in the queues", "age of the oldest state")
COMPLETED = "SELECT count(*) FROM deployments WHERE status = 'COMPLETED'"
NONE = {
    "deployments that did not complete": "SELECT count(*) FROM deployments WHERE status <> 'COMPLETED'",
    "deployments whose history has gaps": """
        SELECT count(*) FROM deployments AS one WHERE event_sequence <> (
            SELECT count(*) FROM events WHERE deployment_id = one.id)""",
    "changes that are not confirmed": "SELECT count(*) FROM effects WHERE state <> 'CONFIRMED'",
    "lanes that are not promoted": "SELECT count(*) FROM ring_deployments WHERE status <> 'PROMOTED'",
    "devices that have failed": "SELECT count(*) FROM device_results WHERE state = 'FAILED'",
    "operations that failed": "SELECT count(*) FROM operations WHERE status = 'FAILED'",
}
"""What must not be found at the end."""
LATE = """
    SELECT lane.deployment_id, lane.ring, lane.plane, lane.status, lane.held_for, lane.error
    FROM deployments AS one JOIN ring_deployments AS lane ON lane.deployment_id = one.id
    WHERE one.finished_at IS NULL AND lane.status <> 'PROMOTED' LIMIT 5
"""
STUCK = LATE.replace("<> 'PROMOTED'", "IN ('HELD', 'FAILED')")
"""Only a person can move these; a plane that is sick makes nobody wait for one."""


async def measure(size: Size) -> Report:
    """Roll out, watch, wait until all has ended, and look for what was lost or made twice."""
    seconds = 1.0 if size.small else 60 * float(os.environ.get(MINUTES, "30"))
    workers = size.of(2, 1)
    with scratch_folder() as folder:
        quick = {
            "gate_policy": quick_policy(folder, silence=600),
            "worker": WorkerSettings(backoff=0.2),
            "breakers": {SICK_PLANE: BreakerSettings(reset_timeout=size.of(5, 1))},
        }
        async with installed(workers=workers, **quick) as product:
            return await soak(product, workers, seconds, size)


async def soak(product: Installation, workers: int, seconds: float, size: Size) -> Report:
    """One run."""
    sandbox = str(product.settings.sandbox_url)
    names = ["api", *(f"worker-{number}" for number in range(1, workers + 1))]
    async with (
        httpx.AsyncClient(base_url=sandbox, trust_env=False, timeout=60) as planes,
        Watch(product, names) as watch,
    ):
        await make_ready(planes, size)
        pace = await pace_of(product, size)
        count = max(1, round(pace * seconds))
        submitting = submit(product, count, pace=pace, size=size)
        work = asyncio.gather(submitting, sicken(planes, seconds, size))
        samples = await look_until(work, watch, every=min(5.0, seconds / 40))
        await work
        drained = await drain(product)
        accepted = await require_all(product, planes, at_least=count * len(EXAMPLES))
        end = await watch.look()
    report = report_of(samples)
    report.notes.append(
        f"{accepted:,} rollouts were accepted, {pace:.2g} a second on each plane for {seconds / 60:.3g} "
        f"minutes; each has COMPLETED, the last {drained:.0f} s after that, and each change was made once."
    )
    report.notes += notes_of(end.tables)
    return report


async def make_ready(planes: httpx.AsyncClient, size: Size) -> None:
    """A few quick devices to each ring, and no rate limits: what grows is looked for, not what is allowed."""
    rings = {ring: {**odds, "devices": size.of(4, 1)} for ring, odds in FLEET["rings"].items()}
    for plane in EXAMPLES:
        (await planes.put(f"/{plane}/_sandbox/fleet", json=FLEET | {"rings": rings})).raise_for_status()
    await set_faults(planes, [])


async def set_faults(planes: httpx.AsyncClient, items: Sequence[dict[str, object]]) -> None:
    """Of the plane that is sick at times."""
    document = {"items": list(items), "throttle": False}
    (await planes.put(f"/{SICK_PLANE}/_sandbox/faults", json=document)).raise_for_status()


async def pace_of(product: Installation, size: Size) -> float:
    """Rollouts a second on each plane that the machine carries to the end, whoever else is on it."""
    if size.small:
        return 1.0
    began = time.monotonic()
    await submit(product, BURST, pace=BURST, size=size)
    await drain(product)
    return max(SLOWEST, SHARE * BURST / (time.monotonic() - began))


async def submit(product: Installation, count: int, *, pace: float, size: Size) -> None:
    """So many on each plane at so many a second, each of an application of its own."""
    url, place = f"{product.url}/api/v1/deployments", product.place.path / "examples"
    ring = "LAB" if size.small else "GLOBAL"
    bodies = [body_of(example, place, ring) for example in EXAMPLES.values()]
    loads = [Load(url, body, count, connections=1, pace=pace, token=product.token) for body in bodies]
    for answers in await asyncio.gather(*map(send, loads)):
        answers.require(202)


def body_of(example: str, place: Path, ring: str) -> str:
    """Up to a ring; each submission is of an application of its own."""
    intent = json.loads(examples.make(example, place).read_text())
    return json.dumps(intent | {"app_name": "App {n}", "target_ring": ring})


async def sicken(planes: httpx.AsyncClient, seconds: float, size: Size) -> None:
    """Well, then sick for a while, in turn in each way; well at the end."""
    kinds: list[dict[str, object]] = [
        {"status": 503},
        {"latency": HANGS if not size.small else 0.5},
        {"reset": True},
    ]
    cycles = cycles_of(seconds, len(kinds))
    for number in range(cycles):
        await asyncio.sleep(seconds / cycles * (1 - SICK_PART))
        await set_faults(planes, [kinds[number % len(kinds)]])
        await asyncio.sleep(seconds / cycles * SICK_PART)
        await set_faults(planes, [])


def cycles_of(seconds: float, kinds: int) -> int:
    """In each quarter as many whole ones of each kind."""
    return 4 * kinds * max(1, round(seconds / (4 * kinds * CYCLE)))


async def look_until(work: "asyncio.Future[tuple[None, None]]", watch: Watch, every: float) -> list[Sample]:
    """Look again and again while the work goes on."""
    samples = []
    while not work.done():
        samples.append(await watch.look())
        await asyncio.wait([work], timeout=every)
    return samples


async def drain(product: Installation) -> float:
    """Wait until nothing is open; the seconds.

    Raises:
        SystemExit: something cannot end by itself, or did not in time.
    """
    began = time.monotonic()
    async with connected(database_url(product.settings)) as database:
        while await database.fetchval("SELECT count(*) FROM deployments WHERE finished_at IS NULL"):
            late = time.monotonic() - began > DRAIN
            if stuck := await database.fetch(LATE if late else STUCK):
                raise SystemExit(f"not everything ends: {[dict(each) for each in stuck]}")
            await asyncio.sleep(0.2)
    return time.monotonic() - began


async def require_all(product: Installation, planes: httpx.AsyncClient, at_least: int) -> int:
    """Everything that was accepted has completed, was made once, and is told without gaps; how many.

    Raises:
        SystemExit: something was lost, or done twice.
    """
    async with connected(database_url(product.settings)) as database:
        completed = int(await database.fetchval(COMPLETED))
        wrong = {what: found for what, query in NONE.items() if (found := await database.fetchval(query))}
        changes = await database.fetch("SELECT plane, key FROM effects WHERE action = 'assign'")
    if completed < at_least or wrong:
        raise SystemExit(f"{completed} of {at_least} have completed; what must not be: {wrong}")
    for plane in EXAMPLES:
        keys = {change["key"] for change in changes if change["plane"] == plane}
        await require_once(planes, plane, keys)
    return completed


async def require_once(planes: httpx.AsyncClient, plane: str, keys: AbstractSet[str]) -> None:
    """Each assignment is there, and none of what an effect makes is there twice."""
    objects = (await planes.get(f"/{plane}/_sandbox/objects")).raise_for_status().json()
    made = Counter((each["type"], each["effect_key"]) for each in objects if each["type"] in MADE_ONCE[plane])
    twice = [each for each, number in made.items() if number > 1]
    missing = keys - {key for _, key in made}
    if twice or missing or not keys:
        raise SystemExit(f"{plane}: made twice {twice[:5]}, never {sorted(missing)[:5]}, of {len(keys)}")


def report_of(samples: Sequence[Sample]) -> Report:
    """By quarter of the time; what was nothing at times is only told."""
    report = Report("soak")
    quarters = quarters_of(samples)
    for what, unit in units_of(samples[-1]).items():
        figures = {name: [figure(each, what) for each in quarter] for name, quarter in quarters.items()}
        if all(figures[SECOND]):
            report.comparisons.append(Comparison(what, unit, figures, SECOND))
        else:
            report.notes.append(f"{what}, {unit}, most in each quarter: {most(figures)}")
    report.goals += flatness(report.comparisons)
    report.goals += [peak(what, quarters) for what in PEAKS]
    return report


def quarters_of(samples: Sequence[Sample]) -> dict[str, Sequence[Sample]]:
    """As many samples in each."""
    length = len(samples) // len(QUARTERS)
    if not length:
        raise SystemExit("too few looks to compare quarters: nothing was measured")
    return {name: samples[part * length : (part + 1) * length] for part, name in enumerate(QUARTERS)}


def units_of(sample: Sample) -> dict[str, str]:
    """All that is compared."""
    units = {what: unit_of(what) for what in sample.figures}
    return units | {f"{BYTES}{table}": "bytes" for table in sample.tables}


def unit_of(figure: str) -> str:
    """By what it begins with."""
    return next((unit for start, unit in UNITS.items() if figure.startswith(start)), "number")


def figure(sample: Sample, what: str) -> float:
    """One of ``units_of``; a connection that was never there is no connection."""
    if what.startswith(BYTES):
        return sample.tables[what.removeprefix(BYTES)].per_row
    return sample.figures.get(what, 0.0)


def most(figures: Mapping[str, Sequence[float]]) -> str:
    """Of each quarter."""
    return " · ".join(f"{max(each):.3g}" for each in figures.values())


def flatness(comparisons: Sequence[Comparison]) -> Iterator[Goal]:
    """How the last quarter stands to the second, of what should stay as it is."""
    for comparison in comparisons:
        for start, (floor, target) in FLAT.items():
            if comparison.title.startswith(start):
                found = comparison.ratio(LAST)
                yield Goal(f"{comparison.title}: last / second quarter", found, floor, target, at_most=True)


def peak(what: str, quarters: Mapping[str, Sequence[Sample]]) -> Goal:
    """The most of a quarter beside the most of the second; less than one counts as one."""
    second, last = (max(1.0, *(figure(each, what) for each in quarters[name])) for name in (SECOND, LAST))
    return Goal(f"{what}, most: last / second quarter", last / second, 1.5, 1.2, at_most=True)


def notes_of(tables: Mapping[str, Stored]) -> Iterator[str]:
    """How each table was written to in the whole run."""
    for name, table in sorted(tables.items()):
        hot = f"{table.hot / table.updates:.0%} of them HOT, " if table.updates else ""
        yield (
            f"{name}: {table.rows:,} rows, {table.updates:,} updates, {hot}{table.dead:,} dead rows left by "
            f"{table.vacuums} vacuums; {table.heap / MB:.3g} MB and {table.indexes / MB:.3g} MB of indexes"
        )
