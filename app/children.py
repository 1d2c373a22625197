# SPDX-License-Identifier: Apache-2.0
"""Child processes: started, asked whether they are ready, restarted when they die, stopped in time."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from app import leash
from app.errors import Unavailable

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 10.0
STEADY = 30.0  # a child that lived this long starts again with the first pause
LONGEST_LOG = 10 * 1024 * 1024
POLL = 0.02
LEFTOVER_PATIENCE = 10.0

Report = Callable[[str], None]


class ChildFailed(Unavailable):
    """A child process could not be started or stopped; the detail has the end of its log."""


@dataclass(frozen=True, slots=True)
class Account:
    """Whom a child runs as, when we are root."""

    uid: int
    gid: int


async def say_yes() -> bool:
    """Ready as soon as it runs."""
    return True


def do_nothing() -> None:
    """Nothing to prepare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to run one child; times in seconds.

    ``prepare`` runs before each start, when no earlier process of this child is alive. ``patience`` is how
    long it may take to stop before it is killed. ``death_signal`` is what the kernel sends when *we* are
    killed (Linux).
    """

    name: str
    command: tuple[str, ...]
    folder: Path
    run: Path
    logs: Path
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    account: Account | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGKILL
    patience: float = 5.0
    startup: float = 60.0
    ready: Callable[[], Awaitable[bool]] = say_yes
    prepare: Callable[[], None] = do_nothing

    @property
    def log(self) -> Path:
        """Where it writes."""
        return self.logs / f"{self.name}.log"

    @property
    def note(self) -> Path:
        """The file that remembers its process, for a start after we were killed."""
        return self.run / f"{self.name}.pid"


class Child:
    """One supervised process. Once started, it is started again, with back-off, whenever it ends."""

    def __init__(self, recipe: Recipe, *, report: Report) -> None:
        self.recipe = recipe
        self._report = report
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int:
        """The process id at this moment; it changes when the child is started again."""
        if self._process is None or self._process.returncode is not None:
            raise ChildFailed(f"{self.recipe.name} is not running")
        return self._process.pid

    async def start(self) -> None:
        """Stop what an earlier run left behind, start, and wait until it is ready.

        Raises:
            ChildFailed: it ended, or was not ready in time.
        """
        for folder in (self.recipe.run, self.recipe.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        await stop_leftover(self.recipe.note, self._report)
        await self._launch()
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.recipe.name}")

    async def stop(self) -> None:
        """Stop it; killed if it takes longer than its patience. Harmless when it does not run."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        await self._end()
        self.recipe.note.unlink(missing_ok=True)

    async def _keep(self) -> None:
        pause = FIRST_PAUSE
        while self._process is not None:
            began = time.monotonic()
            code = await self._process.wait()
            if time.monotonic() - began > STEADY:
                pause = FIRST_PAUSE
            self._report(
                f"{self.recipe.name} {describe(code)}{self._tail()}\nit starts again in {pause:.1f} s"
            )
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
            try:
                await self._launch()
            except ChildFailed as failure:
                self._report(failure.detail)
            except OSError as error:  # a full disk, no more processes: that may pass, too
                self._report(f"{self.recipe.name} cannot be started: {error}")

    async def _launch(self) -> None:
        recipe = self.recipe
        recipe.prepare()
        self._log_start = rotate(recipe.log)
        with recipe.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *leashed(recipe),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=recipe.environment,
                start_new_session=True,  # Ctrl-C is for us: children are stopped in order
            )
        remember(recipe.note, self._process.pid, recipe.stop_signal)
        try:
            await self._wait_until_ready(self._process)
        except ChildFailed:
            await self._end()
            raise

    async def _wait_until_ready(self, process: asyncio.subprocess.Process) -> None:
        deadline = time.monotonic() + self.recipe.startup
        while not await self.recipe.ready():
            if process.returncode is not None:
                raise ChildFailed(f"{self.recipe.name} {describe(process.returncode)}{self._tail()}")
            if time.monotonic() > deadline:
                raise ChildFailed(f"{self.recipe.name} is not ready{self._tail()}")
            await asyncio.sleep(POLL)

    async def _end(self) -> None:
        process = self._process
        if process is None:
            return
        for number, patience in ((self.recipe.stop_signal, self.recipe.patience), (signal.SIGKILL, None)):
            if process.returncode is None:
                process.send_signal(number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await process.wait()
                break

    def _tail(self) -> str:
        """The end of what it logged since this start, if anything."""
        with self.recipe.log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()[-20:]
        return "\n".join([f"; {self.recipe.log} says:", *(f"  {line}" for line in lines)]) if lines else ""


def leashed(recipe: Recipe) -> list[str]:
    """The argument list that runs the recipe's command under :mod:`app.leash`."""
    account = f"{recipe.account.uid}:{recipe.account.gid}" if recipe.account else ""
    prelude = [sys.executable, "-I", "-S", str(Path(leash.__file__).resolve())]
    own = [str(os.getpid()), str(int(recipe.death_signal)), account, str(recipe.folder)]
    return [*prelude, *own, *recipe.command]


def remember(note: Path, pid: int, stop_signal: signal.Signals) -> None:
    """Note a child, so that a later start can end it if we are killed."""
    note.write_text(f"{pid} {int(stop_signal)} {started_at(pid)}\n")


async def stop_leftovers(run: Path, report: Report) -> None:
    """Stop all that an earlier run noted in the folder and could not stop."""
    for note in notes(run):
        await stop_leftover(note, report)


def notes(run: Path) -> list[Path]:
    """What was noted in the folder."""
    return sorted(run.glob("*.pid"))


async def stop_leftover(note: Path, report: Report) -> None:
    """Stop the child that an earlier run noted, if it still is that process."""
    if (leftover := recall(note)) is not None:
        pid, stop_signal = leftover
        report(f"stopping {note.stem}, left by an earlier run (process {pid})")
        await end_process(pid, stop_signal, patience=LEFTOVER_PATIENCE)


def recall(note: Path) -> tuple[int, signal.Signals] | None:
    """The process that was noted and how to stop it, if it still is that process."""
    try:
        pid, number, since = note.read_text().split(maxsplit=2)
    except (FileNotFoundError, ValueError):  # none, or we were killed while we wrote it
        return None
    return (int(pid), signal.Signals(int(number))) if started_at(int(pid)) == since.strip() else None


def describe(code: int) -> str:
    """An exit status in words."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"


def rotate(log: Path) -> int:
    """Set a log aside once it is long. Returns the position at which new lines will be."""
    if not log.exists():
        return 0
    size = log.stat().st_size
    if size < LONGEST_LOG:
        return size
    log.replace(log.with_suffix(".log.1"))
    return 0


async def end_process(pid: int, number: signal.Signals, *, patience: float) -> None:
    """End a process that is no child of ours, and wait until it is gone.

    Raises:
        ChildFailed: it belongs to another account.
    """
    since = started_at(pid)
    try:
        for attempt in (number, signal.SIGKILL):
            os.kill(pid, attempt)
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline:
                if started_at(pid) != since:
                    return
                await asyncio.sleep(POLL)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise ChildFailed(f"process {pid} of an earlier run is another account's: stop it") from error


def started_at(pid: int) -> str | None:
    """When a live process began, in a form that only compares: with the id it names one process.

    ``None``: there is no such process.
    """
    if sys.platform != "linux":
        return _ask_ps(pid, "lstart=")
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def command_line(pid: int) -> str:
    """The command of a live process, or nothing."""
    if sys.platform != "linux":
        return _ask_ps(pid, "command=") or ""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _ask_ps(pid: int, column: str) -> str | None:
    answer = subprocess.run(["ps", "-o", column, "-p", str(pid)], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None
