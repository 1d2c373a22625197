# SPDX-License-Identifier: Apache-2.0
"""What idle processes hold, and what a large upload and a large fleet add to a worker.

Of a real installation: its processes are looked at from outside. RSS counts what is shared with others too,
the unique set only what would be free again if the process ended; the goals are for RSS, the harder of both.
"""

import asyncio
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from app import examples
from app.client import Client, Json
from app.supervisor import Installation
from bench.installation import installed
from bench.report import Comparison, Goal, Report
from bench.rounds import Size
from bench.watching import MB, pid_of
from tests.waiting import eventually

GB = 2**30
SAMPLE_EVERY = 0.05
PATIENCE = 1800.0
WORKER, API = "this product's worker", "this product's API"
INTERPRETER, LIBRARIES = "Python alone", "Python with the libraries"
IMPORTS = "import aiohttp, arq, asyncpg, fastapi, httpx, redis, sqlalchemy.ext.asyncio, uvicorn, uvloop"
UPLOAD_GB = "EUCORA_BENCH_UPLOAD_GB"
EXAMPLE = "firefox"


async def measure(size: Size) -> Report:
    """One part after the other, each by a new worker: none pays with what another has warmed up."""
    report = Report("memory")
    async with installed(workers=1, gate_policy="demo") as product:
        for part in (measure_idle, measure_upload, measure_fleet):
            await part(size, product, report)
            if not size.small:
                await renew_worker(product)
    return report


async def measure_idle(size: Size, product: Installation, report: Report) -> None:
    """After some seconds without anything to do, and again after some rollouts."""
    pause, count = size.of(10, 0), size.of(40, 2)
    with sleeping("") as interpreter, sleeping(IMPORTS) as libraries:
        processes = {
            INTERPRETER: interpreter,
            LIBRARIES: libraries,
            API: process_of(product, "api"),
            WORKER: process_of(product, "worker-1"),
        }
        await asyncio.sleep(pause)
        report.comparisons += await held(processes, f"idle for {pause} s", size)
        await roll_out(product, [named(intent_of(product), f"App {number}") for number in range(count)])
        await asyncio.sleep(pause)
        report.comparisons += await held(processes, f"idle again after {count} rollouts", size)
    rss = report.comparisons[0].figures
    for name, process in (("worker", WORKER), ("API process", API)):
        found = statistics.median(rss[process])
        report.goals.append(Goal(f"RSS of one idle {name}", found, 120, 90, "MB", at_most=True))


async def held(processes: dict[str, psutil.Process], when: str, size: Size) -> list[Comparison]:
    """RSS and unique set of each, looked at once a round."""
    rss: dict[str, list[float]] = {name: [] for name in processes}
    unique: dict[str, list[float]] = {name: [] for name in processes}
    for _ in range(size.rounds):
        for name, process in processes.items():
            found = process.memory_full_info()
            rss[name].append(found.rss / MB)
            unique[name].append(found.uss / MB)
        await asyncio.sleep(0.2)
    return [
        Comparison(f"RSS, {when}", "MB", rss, LIBRARIES),
        Comparison(f"unique set, {when}", "MB", unique, LIBRARIES),
    ]


async def measure_upload(size: Size, product: Installation, report: Report) -> None:
    """What a worker holds more than before while it encrypts and sends one large package."""
    length = 8 * MB if size.small else int(float(os.environ.get(UPLOAD_GB, "2")) * GB)
    package = product.place.path / "large.exe"
    require_room(package.parent, length)
    intent = named(intent_of(product), "Large")
    intent["package"] |= {"uri": package.as_uri(), "sha256": sparse(package, length)}
    await warm_up(product, "Small")
    added = await peak_of_worker(product, [intent], size)
    what = f"{length / GB:.3g} GB are uploaded"
    report.goals.append(Goal(f"added to a worker while {what}", added.most, 50, 20, "MB", at_most=True))
    report.comparisons.append(added.comparison(f"RSS of a worker while {what}"))
    report.notes.append(
        f"The upload took {added.seconds:.0f} s: hashed, encrypted into the spool, sent to the sandbox, and "
        f"checked there. {UPLOAD_GB} sets another size."
    )


async def measure_fleet(size: Size, product: Installation, report: Report) -> None:
    """What a worker holds more than before while it reads a group's devices and what they report."""
    count = size.of(1_000_000, 2000)
    await warm_up(product, "Few")
    fleet = {"rings": {"LAB": {"devices": count, "delay": [0, 0]}}}
    async with httpx.AsyncClient(trust_env=False, timeout=60) as planes:
        sandbox = f"{product.settings.sandbox_url}/intune/_sandbox/fleet"
        (await planes.put(sandbox, json=fleet)).raise_for_status()
    added = await peak_of_worker(product, [named(intent_of(product), "Everywhere")], size)
    (lane,) = added.ended[0]["lanes"]
    if lane["success_count"] != count:
        raise SystemExit(f"{lane['success_count']} of {count} devices were read: nothing was measured")
    what = f"{count:,} devices are read"
    report.goals.append(Goal(f"added to a worker while {what}", added.most, 50, 20, "MB", at_most=True))
    report.comparisons.append(added.comparison(f"RSS of a worker while {what}"))
    report.notes.append(
        f"{count:,} members of a group and as many rows of an install report took {added.seconds:.0f} s; the "
        "lane counts every one of them."
    )


class Watched:
    """What a worker held before and at most, in MB, and the deployments that it carried out meanwhile."""

    def __init__(self, before: float) -> None:
        self.before = before
        self.peak = before
        self.seconds = 0.0
        self.ended: list[Json] = []

    @property
    def most(self) -> float:
        """How much more it held."""
        return self.peak - self.before

    def comparison(self, title: str) -> Comparison:
        """For tables and pictures."""
        figures = {"before": [self.before], f"{WORKER}, at most": [self.peak]}
        return Comparison(title, "MB", figures, "before")


async def warm_up(product: Installation, name: str) -> None:
    """One small rollout: modules, connections and statements are there before anything counts."""
    await roll_out(product, [named(intent_of(product), name)])


async def peak_of_worker(product: Installation, intents: list[Json], size: Size) -> Watched:
    """Look at the worker all the time while it carries these out."""
    worker = process_of(product, "worker-1")
    await asyncio.sleep(size.of(10, 0))
    watched, began = Watched(worker.memory_info().rss / MB), time.monotonic()
    work = asyncio.create_task(roll_out(product, intents))
    while not work.done():
        watched.peak = max(watched.peak, worker.memory_info().rss / MB)
        await asyncio.wait([work], timeout=SAMPLE_EVERY)
    watched.ended, watched.seconds = await work, time.monotonic() - began
    return watched


async def roll_out(product: Installation, intents: list[Json]) -> list[Json]:
    """Submit all, and wait until all have completed.

    Raises:
        SystemExit: one did not.
    """
    async with Client(product.url, product.token) as client:
        ids = [(await client.post("/deployments", intent))["id"] for intent in intents]
        ended = [await end_of(client, each) for each in ids]
    if {each["status"] for each in ended} != {"COMPLETED"}:
        raise SystemExit(f"not every rollout has completed: {ended}")
    return ended


async def end_of(client: Client, deployment_id: str) -> Json:
    """The deployment once it has ended, or cannot go on by itself."""

    def has_ended(found: Json) -> bool:
        return found["paused"] or found["status"] in {"COMPLETED", "FAILED", "REJECTED", "CANCELLED"}

    return await eventually(
        lambda: client.deployment(deployment_id), until=has_ended, within=PATIENCE, every=0.2
    )


def intent_of(product: Installation) -> Json:
    """One ring of one application."""
    made = examples.make(EXAMPLE, product.place.path / "examples")
    intent: dict[str, Any] = json.loads(made.read_text())
    return intent | {"target_ring": "LAB"}


def named(intent: Json, name: str) -> Json:
    """The same of another application."""
    return intent | {"app_name": name}


def sparse(path: Path, length: int) -> str:
    """Make a file of that many zeros, which takes no room; its SHA-256."""
    with path.open("wb") as file:
        file.truncate(length)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_room(folder: Path, length: int) -> None:
    """The spool and the sandbox each hold the package once, encrypted."""
    free = shutil.disk_usage(folder).free
    if free < 3 * length:
        raise SystemExit(f"{free / GB:.0f} GB are free; uploading {length / GB:.3g} GB takes twice as much")


def process_of(product: Installation, name: str) -> psutil.Process:
    """A child of the installation."""
    return psutil.Process(pid_of(product, name))


async def renew_worker(product: Installation) -> None:
    """End the worker; whoever keeps it running starts another."""
    before = process_of(product, "worker-1")
    before.terminate()
    await eventually(lambda: pid_of(product, "worker-1"), until=lambda pid: pid != before.pid, within=120)


@contextmanager
def sleeping(program: str) -> Iterator[psutil.Process]:
    """A Python that has run this, and waits."""
    waiting = f"{program}\nprint(flush=True)\ninput()"
    command = [sys.executable, "-c", waiting]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield psutil.Process(process.pid)
        finally:
            process.kill()
