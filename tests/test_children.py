# SPDX-License-Identifier: Apache-2.0
"""Child processes that die, hang and refuse to end."""

import asyncio
import functools
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from app import children
from app.children import Child, ChildFailed, Recipe, rotate, started_at
from tests.waiting import eventually


def recipe_of(
    folder: Path,
    script: str,
    *,
    ready: Callable[[], Awaitable[bool]] = children.say_yes,
    patience: float = 5.0,
    startup: float = 10.0,
) -> Recipe:
    """A shell script as a child."""
    return Recipe(
        name="script",
        command=("/bin/sh", "-c", script),
        folder=folder,
        run=folder / "run",
        logs=folder / "logs",
        patience=patience,
        startup=startup,
        ready=ready,
    )


def exists(file: Path) -> Callable[[], Awaitable[bool]]:
    """Whether the child has made a file."""

    return functools.partial(asyncio.to_thread, file.exists)


async def test_a_child_is_started_again_until_it_runs(tmp_path: Path) -> None:
    count, broken = tmp_path / "count", tmp_path / "broken"
    script = (
        f"echo x >> {count}; test -e {broken} && {{ echo no luck; exit 3; }}; touch {tmp_path}/up; sleep 60"
    )
    said: list[str] = []
    child = Child(recipe_of(tmp_path, script, ready=exists(tmp_path / "up")), report=said.append)
    await child.start()
    first = child.pid
    try:
        broken.touch()
        (tmp_path / "up").unlink()
        await children.end_process(first, signal.SIGTERM, patience=5)
        await eventually(lambda: len(count.read_text().split()), within=10, until=lambda starts: starts >= 4)
        broken.unlink()
        await eventually((tmp_path / "up").exists, within=10)

        assert child.pid != first
        assert "script was ended by SIGTERM" in said[0]
        assert "script ended with status 3" in said[1]
        assert "no luck" in said[1]
    finally:
        await child.stop()


async def test_a_child_that_ends_at_its_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    never = exists(tmp_path / "never")
    child = Child(recipe_of(tmp_path, "echo the disk is full; exit 7", ready=never), report=print)

    with pytest.raises(ChildFailed, match=r"(?s)script ended with status 7.*the disk is full"):
        await child.start()
    await child.stop()


async def test_a_child_that_is_never_ready_is_ended(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    never = exists(tmp_path / "never")
    script = f"echo $$ > {pid_file}; exec sleep 60"
    child = Child(recipe_of(tmp_path, script, ready=never, startup=0.5), report=print)

    with pytest.raises(ChildFailed, match="script is not ready"):
        await child.start()

    assert started_at(int(pid_file.read_text())) is None
    await child.stop()


async def test_a_child_that_ignores_its_signal_is_killed(tmp_path: Path) -> None:
    deaf = exists(tmp_path / "deaf")
    script = f"trap '' TERM; touch {tmp_path}/deaf; while :; do sleep 0.1; done"
    child = Child(recipe_of(tmp_path, script, ready=deaf, patience=0.3), report=print)
    await child.start()
    pid = child.pid

    await child.stop()

    assert started_at(pid) is None
    with pytest.raises(ChildFailed, match="is not running"):
        _ = child.pid


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
async def test_a_child_whose_parent_is_gone_already_does_not_start(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, f"touch {tmp_path}/started")
    prelude, (parent, *rest) = children.leashed(recipe)[:4], children.leashed(recipe)[4:]
    process = await asyncio.create_subprocess_exec(*prelude, str(int(parent) + 1), *rest)

    assert await process.wait() == 1
    assert not (tmp_path / "started").exists()


def test_a_long_log_is_set_aside(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_text("short")
    assert rotate(log) == 5

    log.write_bytes(b"x" * children.LONGEST_LOG)

    assert rotate(log) == 0
    assert not log.exists()
    assert (tmp_path / "api.log.1").stat().st_size == children.LONGEST_LOG
