# SPDX-License-Identifier: Apache-2.0
"""``eucora up`` as a user runs it: a process that is asked over HTTP, interrupted, and killed."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from app.children import command_line, notes, recall, started_at
from app.data_folder import open_data_folder
from app.supervisor import free_port
from tests.servers import scratch_folder
from tests.waiting import eventually
from tests.wire import PLAIN

ROOT = Path(__file__).resolve().parent.parent
TITLES = {"api": "eucora api", "worker-1": "eucora worker", "sandbox": "eucora sandbox"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A place for data directories."""
    with scratch_folder() as folder:
        yield folder


@dataclass
class Up:
    """A running ``eucora up``; ``said`` is what it printed until it was ready."""

    process: asyncio.subprocess.Process
    path: Path
    port: int
    said: str

    @property
    def url(self) -> str:
        """Of the API."""
        return f"http://127.0.0.1:{self.port}/api/v1"

    @property
    def token(self) -> str:
        """As it was printed."""
        return self.said.partition("admin token")[2].split()[0]

    def pids(self) -> dict[str, int]:
        """The children by name."""
        found = {note.stem: recall(note) for note in notes(self.path / "run")}
        return {name: process[0] for name, process in found.items() if process is not None}

    def answers(self) -> bool:
        """Whether the API is ready."""
        try:
            return httpx.get(f"{self.url}/health/ready", trust_env=False).is_success
        except httpx.TransportError:
            return False

    async def end(self, number: signal.Signals, *, within: float = 15) -> int:
        """Send a signal and wait until it has ended."""
        self.process.send_signal(number)
        async with asyncio.timeout(within):
            return await self.process.wait()


@asynccontextmanager
async def up(path: Path, *options: str, environment: Mapping[str, str] | None = None) -> AsyncIterator[Up]:
    """Run it until it says that it is ready; killed at the end, if the test did not stop it."""
    port = free_port()
    process = await start(path, "--port", str(port), *options, environment=environment)
    said = await read_until(process, "Ctrl-C stops everything.")
    running = Up(process, path, port, said)
    pids = running.pids()
    try:
        yield running
    finally:
        if process.returncode is None:
            await running.end(signal.SIGKILL)
        await eventually(lambda: gone(pids), within=10)


async def start(
    path: Path, *options: str, environment: Mapping[str, str] | None = None
) -> asyncio.subprocess.Process:
    """The command as a child of the test."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app.cli", "up", "--data-dir", str(path), *options),
        cwd=ROOT,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


async def read_until(process: asyncio.subprocess.Process, last: str) -> str:
    """What it prints, up to and including that line."""
    assert process.stdout is not None
    lines: list[str] = []
    async with asyncio.timeout(60):
        while last not in "".join(lines):
            line = await process.stdout.readline()
            assert line, f"it ended early: {''.join(lines)}"
            lines.append(line.decode())
    return "".join(lines)


def gone(pids: Mapping[str, int]) -> bool:
    """Whether none of the processes lives."""
    return all(started_at(pid) is None for pid in pids.values())


def are_titled(pids: Mapping[str, int]) -> bool:
    return all(command_line(pids[name]).startswith(title) for name, title in TITLES.items())


async def test_up_runs_everything_restarts_what_dies_and_leaves_nothing(folder: Path) -> None:
    async with up(folder / "a blank") as running:
        first = running.pids()
        assert sorted(first) == ["api", "postgres", "sandbox", "valkey", "worker-1"]
        await eventually(lambda: are_titled(first), within=10)  # a process names itself once it has begun
        assert running.answers()
        assert permissions(folder / "a blank" / "admin-token") == 0o600

        old = {first[name] for name in TITLES}
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not old & set(running.pids().values()), within=10)
        second = await eventually(running.pids, within=20, until=lambda pids: len(pids) == 5)
        await eventually(running.answers, within=20)

        assert await running.end(signal.SIGINT) == 0
        assert gone(second)
        assert notes(running.path / "run") == []


def permissions(file: Path) -> int:
    """Who may do what with a file."""
    return file.stat().st_mode & 0o777


async def test_a_second_up_resumes_after_a_kill_and_after_an_orderly_end(folder: Path) -> None:
    mine = {"ref": "11111111-2222-3333-4444-555555555555", "kind": "group"}
    async with up(folder / "data") as first:
        before = await targets_of(first)
        await set_target(first, "intune/LAB", mine)
        await first.end(signal.SIGKILL)
    async with up(folder / "data") as second:
        assert second.token == first.token
        after = await targets_of(second)
        assert await second.end(signal.SIGTERM) == 0

    assert sorted(before) == ["CANARY", "DEPARTMENT", "GLOBAL", "LAB", "PILOT"]
    assert all(target["device_count"] for target in before.values())
    assert after["LAB"]["ref"] == mine["ref"]
    assert after["GLOBAL"] == before["GLOBAL"]


async def set_target(running: Up, name: str, target: Mapping[str, str]) -> None:
    """As an operator does it."""
    async with client_of(running) as client:
        (await client.put(f"/targets/{name}", json=target)).raise_for_status()


async def targets_of(running: Up) -> dict[str, dict[str, object]]:
    """Intune's stored targets by ring."""
    async with client_of(running) as client:
        answer = await client.get("/targets")
    items = answer.raise_for_status().json()["items"]
    return {target["ring"]: target for target in items if target["plane"] == "intune"}


def client_of(running: Up) -> httpx.AsyncClient:
    """A client with the printed token."""
    headers = {"Authorization": f"Bearer {running.token}"}
    return httpx.AsyncClient(verify=PLAIN, base_url=running.url, trust_env=False, headers=headers)


async def test_servers_and_planes_that_are_configured_are_used_instead(
    folder: Path, database_url: str, redis_url: str
) -> None:
    environment = {
        "EUCORA_DATABASE_URL": database_url,
        "EUCORA_REDIS_URL": redis_url,
        "EUCORA_BOOTSTRAP_TOKEN": "a-token-that-the-operator-made",
        "EUCORA_PLANES__INTUNE__CLIENT_ID": "somebody",
    }
    async with up(folder / "data", "--workers", "2", environment=environment) as running:
        assert sorted(running.pids()) == ["api", "worker-1", "worker-2"]
        assert running.token == "a-token-that-the-operator-made"
        assert await targets_of(running) == {}
        await running.end(signal.SIGINT)

    assert not (folder / "data" / "admin-token").exists()


async def test_a_port_or_directory_in_use_is_told(folder: Path) -> None:
    with open_data_folder(folder / "held", report=print), socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        held = await start(folder / "held", "--port", str(free_port()))
        taken = await start(folder / "free", "--port", str(port))
        (_, about_held), (_, about_taken) = await asyncio.gather(held.communicate(), taken.communicate())

    assert (held.returncode, taken.returncode) == (1, 1)
    assert f"in use by process {os.getpid()}" in about_held.decode()
    assert f"port {port} is in use" in about_taken.decode()
    assert not (folder / "free" / "postgres").exists()


async def test_an_interrupt_during_the_start_stops_what_has_started(folder: Path) -> None:
    process = await start(folder / "data", "--port", str(free_port()))
    starting = Up(process, folder / "data", 0, "")
    pids = await eventually(
        starting.pids, within=30, until=lambda pids: bool(pids) or process.returncode is not None
    )

    process.send_signal(signal.SIGINT)
    await asyncio.wait_for(process.communicate(), 15)

    assert process.returncode == 0
    assert gone(pids)
    assert notes(folder / "data" / "run") == []
