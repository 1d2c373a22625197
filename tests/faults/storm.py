# SPDX-License-Identifier: Apache-2.0
"""Many rollouts at once while somebody pulls plugs: workers killed, Redis emptied, PostgreSQL crashed.

Which worker is killed, and how far the rollouts are when a server goes, follows from a seed; the sandboxes
are the witness.
"""

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from redis.asyncio import Redis

from app import admin, examples, supervisor
from app.client import Json, Refused
from app.database import database_url
from app.embedded import postmaster
from app.settings import BreakerSettings, Settings
from tests.databases import connected
from tests.installation import MADE_ONCE, World, open_world
from tests.wire import PLAIN

PLANES = ("intune", "jamf", "landscape")
OVER = {"COMPLETED", "ROLLED_BACK", "FAILED", "CANCELLED", "REJECTED"}
SHARES = (0.1, 0.8)
"""Between these shares of all rollouts being over, Redis is emptied and PostgreSQL crashed."""
EXAMPLE = {"intune": "firefox", "jamf": "jamf-firefox", "landscape": "landscape-example-editor"}
EVERYWHERE = "three-planes"
AWAY = (Refused, httpx.TransportError, ValueError)
"""What a caller of the API may see while PostgreSQL is away."""


@dataclass(frozen=True, slots=True)
class Size:
    """How big a storm is. ``devices`` are shared out over the planes, most of them in GLOBAL.

    ``reset`` is the database's breaker's: seconds for which it is kept away from after its crash.
    """

    deployments: int
    devices: int
    workers: int = 8
    kill_every: float = 2.0
    reset: float = 30.0
    seed: int = 1
    within: float = 1500.0

    def fleet(self, place: int) -> Json:
        """The fleet of one plane, by its place among them, in which nothing fails by itself."""
        each = (self.devices + place) // len(PLANES)
        lab, canary, pilot, department = each // 100 or 1, each // 20 or 2, each // 8 or 2, each // 4 or 2
        sizes = {"LAB": lab, "CANARY": canary, "PILOT": pilot, "DEPARTMENT": department}
        sizes["GLOBAL"] = each - sum(sizes.values())
        return {ring: {"devices": size, "delay": [0.05, 0.4]} for ring, size in sizes.items()}

    def target(self, number: int) -> str:
        """Most go to CANARY, some to PILOT, one in fifty to everybody."""
        if number % 50 == 0:
            return "GLOBAL"
        return "PILOT" if number % 10 == 0 else "CANARY"


@dataclass(slots=True)
class Weather:
    """What was done to the installation, and when it was over."""

    kills: int = 0
    emptied: int = 0
    crashes: int = 0
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0.0


def templates(packages: Path) -> Mapping[str, Json]:
    """The examples that intents are made of, by name; each package is written once."""
    names = (*EXAMPLE.values(), EVERYWHERE)
    return {name: json.loads(examples.make(name, packages).read_text()) for name in names}


def intent(number: int, size: Size, made: Mapping[str, Json]) -> Json:
    """The intent of one rollout: one plane each in turn, every tenth over all three."""
    body = deepcopy(made[EVERYWHERE if number % 10 == 5 else EXAMPLE[PLANES[number % len(PLANES)]]])
    for package in [body["package"]] if "package" in body else body["packages"].values():
        if package["kind"] == "deb":
            package["name"] = f"storm-{number}"
        if package["kind"] == "pkg":
            package["bundle_id"] = f"com.example.storm-{number}"
    return body | {"app_name": f"Storm {number}", "version": "1.0", "target_ring": size.target(number)}


class Crew:
    """Workers under a keeper that starts another one as soon as one is dead."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._environment = os.environ | supervisor.environment(settings)
        self._folder = folder
        self._numbers = itertools.count()
        self._alive: dict[asyncio.subprocess.Process, Path] = {}

    @property
    def at_work(self) -> list[int]:
        """Those living that have begun an operation, in the order in which they were started."""
        begun = b"operation_started"
        return [process.pid for process, log in self._alive.items() if begun in log.read_bytes()]

    async def keep(self, size: int) -> None:
        """Until cancelled; then all of them are stopped."""
        keepers = [asyncio.create_task(self._keep_one()) for _ in range(size)]
        try:
            await asyncio.gather(*keepers)
        finally:
            for process in self._alive:
                process.terminate()
            await asyncio.gather(*(process.wait() for process in self._alive))

    async def _keep_one(self) -> None:
        command = (sys.executable, "-m", "app.cli", "worker")
        while True:
            path = self._folder / f"storm-worker-{next(self._numbers)}.log"
            with path.open("wb") as log:
                process = await asyncio.create_subprocess_exec(
                    *command, env=self._environment, stdout=log, stderr=log
                )
            self._alive[process] = path
            await process.wait()
            del self._alive[process]


@asynccontextmanager
async def open_storm(folder: Path, size: Size) -> AsyncIterator[tuple[World, Crew]]:
    """An installation with servers of its own, which outlive their crash, and a big quick fleet."""
    breakers = {
        "intune": BreakerSettings(reset_timeout=5),
        "database": BreakerSettings(reset_timeout=size.reset),
    }
    async with open_world(Settings(), folder, workers=0, breakers=breakers) as world:
        for place, plane in enumerate(PLANES):
            await world.control(plane, "fleet", {"seed": size.seed, "rings": size.fleet(place)})
        offered = {f"storm-{number}": "1.0" for number in range(size.deployments)}
        await world.control("landscape", "archive", {"packages": offered})
        crew = Crew(world.installation.settings, folder)
        keeper = asyncio.create_task(crew.keep(size.workers))
        try:
            yield world, crew
        finally:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper


async def patiently(ask: Callable[[], Any]) -> Any:
    """Ask again while the API is without its database."""
    while True:
        try:
            return await ask()
        except AWAY:
            await asyncio.sleep(0.2)


async def submit_all(world: World, size: Size) -> list[Json]:
    """All intents, one after the other, each once whatever became of its answer."""
    made, submitted = templates(world.folder / "packages"), []
    headers = {"Authorization": f"Bearer {world.installation.token}"}
    async with httpx.AsyncClient(
        verify=PLAIN, base_url=world.installation.url, headers=headers, trust_env=False
    ) as http:
        for number in range(size.deployments):
            body = intent(number, size, made)
            submitted.append(await patiently(lambda: _post(http, number, body)))  # noqa: B023 - awaited at once
    return submitted


async def _post(http: httpx.AsyncClient, number: int, body: Json) -> Json:
    key = {"Idempotency-Key": f"storm-{number}"}
    answer = await http.post("/api/v1/deployments", json=body, headers=key, timeout=30)
    if answer.status_code >= 500:
        raise Refused(answer.status_code, answer.json())
    accepted: Json = answer.raise_for_status().json()
    return accepted


async def pull_plugs(
    world: World, crew: Crew, size: Size, weather: Weather, over: Callable[[], float]
) -> None:
    """Kill a worker again and again; empty Redis twice and crash PostgreSQL once on the way.

    Who is killed was at work the time before: where all die before they work, nothing is shown but that.
    """
    dice = random.Random(size.seed)
    emptied_at = sorted(dice.uniform(*SHARES) for _ in range(2))
    crashed_at, at_work = dice.uniform(*SHARES), list[int]()
    while True:
        await asyncio.sleep(size.kill_every)
        before, at_work = at_work, crew.at_work
        if still := [pid for pid in at_work if pid in before]:
            _kill(dice.choice(still), signal.SIGKILL)
            weather.kills += 1
        if weather.emptied < len(emptied_at) and over() >= emptied_at[weather.emptied]:
            await _empty_redis(world)
            weather.emptied += 1
        if weather.crashes == 0 and over() >= crashed_at:
            weather.crashes += crash_postgres(world)


def _kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


async def _empty_redis(world: World) -> None:
    url = world.installation.settings.redis_url
    assert url is not None
    async with Redis.from_url(url.get_secret_value()) as client:
        await client.flushall()


def crash_postgres(world: World) -> int:
    """SIGKILL the postmaster: no session is ended in good order, the write-ahead log is replayed."""
    pid = postmaster(world.installation.place.home / "postgres" / "postmaster.pid")
    assert pid is not None
    _kill(pid, signal.SIGKILL)
    return 1


async def weather_it(world: World, crew: Crew, size: Size) -> tuple[list[Json], Weather]:
    """Submit everything, let it storm until all is over, and the weather that it was.

    Raises:
        TimeoutError: something was not over in time.
    """
    weather, ended = Weather(), 0.0
    plugs = asyncio.create_task(pull_plugs(world, crew, size, weather, lambda: ended))
    try:
        async with asyncio.timeout(size.within):
            submitted = await submit_all(world, size)
            while ended < 1:
                if plugs.done():
                    plugs.result()
                await asyncio.sleep(1)
                found = await patiently(lambda: world.client.every("/deployments"))
                ended = sum(each["status"] in OVER for each in found) / len(submitted)
                print(f"{time.monotonic() - weather.began:5.0f} s  {ended:4.0%}  {weather}")  # noqa: T201
    finally:
        plugs.cancel()
    weather.seconds = time.monotonic() - weather.began
    return await patiently(lambda: world.client.every("/deployments")), weather


@dataclass(frozen=True, slots=True)
class Proof:
    """What the planes' own counters and the ledger say of each other, once it is over.

    ``strangers``, ``unknown_objects``: without a key of the ledger. ``missing``: confirmed, and not there.
    ``installed`` and ``installed_twice`` count devices and applications. ``most_lost`` is the most that one
    operation was given back of the attempts that it lost; ``runs`` are claims.
    """

    statuses: Counter[str]
    fleet: int
    targeted: int
    failed_devices: int
    installed: int
    installed_twice: int
    effects: int
    unsettled: int
    mutations: int
    strangers: int
    objects: int
    unknown_objects: int
    missing: int
    twice: int
    operations: int
    runs: int
    repeated: int
    most_lost: int
    events: int
    gaps: int
    broken: int


async def prove(world: World, deployments: Sequence[Json]) -> Proof:
    """Count everything that could have gone wrong."""
    effects = [effect for deployment in deployments for effect in await world.effects_of(deployment)]
    history = await admin.verify_history(world.installation.settings, None)  # as `eucora audit verify` does
    return Proof(
        statuses=Counter(deployment["status"] for deployment in deployments),
        targeted=sum(lane["targeted"] for deployment in deployments for lane in deployment["lanes"]),
        events=history.events,
        broken=len(history.broken),
        **await _told_by_planes(world, effects),
        **await _told_by_devices(world),
        **await _told_by_database(world),
    )


async def _told_by_planes(world: World, effects: Sequence[Json]) -> dict[str, int]:
    """The ledger against the requests that planes were sent, and the objects that they hold."""
    keys = {effect["key"] for effect in effects}
    assigned = {each["key"] for each in effects if (each["action"], each["state"]) == ("assign", "CONFIRMED")}
    sent = [each for plane in PLANES for each in (await world.control(plane, "requests"))["mutations"]]
    objects = [(plane, item) for plane in PLANES for item in await world.objects(plane)]
    once = Counter(
        (item["type"], item["effect_key"]) for plane, item in objects if item["type"] in MADE_ONCE[plane]
    )
    return {
        "effects": len(effects),
        "unsettled": sum(effect["state"] != "CONFIRMED" for effect in effects),
        "mutations": len(sent),
        "strangers": sum(each["effect_key"] not in keys for each in sent),
        "objects": len(objects),
        "unknown_objects": sum(item["effect_key"] not in keys for _, item in objects),
        "missing": len(assigned - {item["effect_key"] for _, item in objects}),
        "twice": sum(number > 1 for number in once.values()),
    }


async def _told_by_devices(world: World) -> dict[str, int]:
    """What happened on the devices themselves."""
    fleets = [(await world.control(plane, "fleet"))["rings"] for plane in PLANES]
    installed = Counter[tuple[str, ...]]()
    for plane in PLANES:
        installed.update(
            (plane, device["ring"], device["name"], step["app_id"], step["version"])
            for device in await world.devices(plane)
            for step in device["history"]
            if step["action"] == "install"
        )
    return {
        "fleet": sum(ring["devices"] for rings in fleets for ring in rings.values()),
        "installed": len(installed),
        "installed_twice": sum(number > 1 for number in installed.values()),
    }


TOLD = """
SELECT (SELECT count(*) FROM device_results WHERE state = 'FAILED') AS failed_devices,
    (SELECT count(*) FROM (SELECT FROM events GROUP BY deployment_id
        HAVING min(sequence) <> 1 OR max(sequence) <> count(*)) AS holes) AS gaps,
    count(*) AS operations, sum(fence) AS runs, count(*) FILTER (WHERE fence > 1) AS repeated,
    max(max_attempts) - 4 AS most_lost
FROM operations
"""


async def _told_by_database(world: World) -> dict[str, int]:
    """What no endpoint tells in one answer."""
    async with connected(database_url(world.installation.settings)) as connection:
        row = await connection.fetchrow(TOLD)
    return {name: int(value) for name, value in row.items()}
