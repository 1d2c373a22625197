# SPDX-License-Identifier: Apache-2.0
"""One time for all processes: the database's, carried on by a clock that nobody can set."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from app import telemetry

Clock = Callable[[], datetime]
ASK_EVERY, ASK_AGAIN = 30.0, 2.0
FIRST = 2.0
"""Seconds for which a process that starts waits for the first answer."""
ODD = timedelta(seconds=5)
"""How far a process' own clock may be off before somebody should know."""

log = telemetry.logger(__name__)


def system_clock() -> datetime:
    """The present by this machine, aware UTC."""
    return datetime.now(UTC)


def awake() -> float:
    """Seconds of a clock that goes on also while the machine sleeps, where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class SharedClock:
    """The database's time. Until it has told for the first time, that of ``wall``.

    A wall clock that is wrong, or jumps, makes no lane older and no device late.
    """

    def __init__(self, wall: Clock = system_clock) -> None:
        self._wall = wall
        self._told: datetime | None = None
        self._at = 0.0

    def __call__(self) -> datetime:
        """The present, aware UTC."""
        if self._told is None:
            return self._wall()
        return self._told + timedelta(seconds=awake() - self._at)

    def tell(self, told: datetime, *, asked: float) -> None:
        """What the database said to a question of ``asked`` (on ``awake``), if that is news.

        It was true at some moment since then; what agrees with that changes nothing.
        """
        answered = awake()
        middle, doubt = (asked + answered) / 2, timedelta(seconds=(answered - asked) / 2)
        expected = self() - timedelta(seconds=awake() - middle)
        if self._told is None and abs(self._wall() - told) > ODD:
            log.warning("clock_is_off", seconds=round((self._wall() - told).total_seconds()))
        if self._told is None or abs(told - expected) > doubt:
            self._told, self._at = told, middle

    async def keep(
        self,
        ask: Callable[[], Awaitable[datetime]],
        *,
        known: asyncio.Event,
        every: float = ASK_EVERY,
        again: float = ASK_AGAIN,
    ) -> None:
        """Ask until cancelled, ``every`` so many seconds, or ``again`` after that many where nobody answered.

        ``known`` is set once there was an answer.
        """
        while True:
            wait = again
            with suppress(Exception):  # the database comes and goes; the time goes on
                asked = awake()
                self.tell(await ask(), asked=asked)
                known.set()
                wait = every
            await asyncio.sleep(wait)


async def begun(known: asyncio.Event) -> None:
    """Wait a moment for the first answer, and go on without it."""
    with suppress(TimeoutError):
        async with asyncio.timeout(FIRST):
            await known.wait()
