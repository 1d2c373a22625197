# SPDX-License-Identifier: Apache-2.0
"""A thread that ends the process when work outlives its limit.

Code that blocks the loop, or is deaf to being stopped, cannot be ended by anything inside the loop. What the
process held is taken over by others, once its leases have run out.
"""

import asyncio
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from app import telemetry

EXIT_CODE = 70
LOOK_EVERY = 0.1
BEAT_EVERY = 0.25
BLOCKED = 1.0
"""Seconds without a sign of the loop after which somebody should know where it hangs."""
LAST_WORDS = 2.0
"""Seconds the last log line may take: the blocked code may hold the log's own lock."""

log = telemetry.logger(__name__)
Clock = Callable[[], float]


@dataclass(slots=True)
class Watched:
    """Something that must have ended by ``ends_at``, on the monotonic clock; ``facts`` go to the log."""

    ends_at: float
    facts: dict[str, str] = field(default_factory=dict)


class Watchdog:
    """Of one process. ``overrun``: seconds that are granted beyond a limit before the process is ended."""

    def __init__(
        self, *, overrun: float, clock: Clock = time.monotonic, end: Callable[[int], None] = os._exit
    ) -> None:
        self._overrun = overrun
        self._clock = clock
        self._end = end
        self._watched: dict[object, Watched] = {}
        self._beaten = clock()
        self._told = False
        self._stopped = threading.Event()
        self._loop_thread = threading.get_ident()

    def watch(self, key: object, ends_at: float, **facts: str) -> None:
        """From now on ``key`` must have ended by ``ends_at``."""
        self._watched[key] = Watched(ends_at, facts)

    def hasten(self, key: object, ends_at: float) -> None:
        """It was told to end; an earlier limit stays."""
        if (watched := self._watched.get(key)) is not None:
            watched.ends_at = min(watched.ends_at, ends_at)

    def release(self, key: object) -> None:
        """It has ended."""
        self._watched.pop(key, None)

    async def beat(self) -> None:
        """Show that the loop runs, until cancelled; to be run in the loop that is watched."""
        while True:
            await asyncio.sleep(BEAT_EVERY)
            now = self._clock()
            telemetry.loop_lag.observe(max(0.0, now - self._beaten - BEAT_EVERY))
            self._beaten, self._told = now, False

    def look(self) -> None:
        """One look at the clock: tell of a blocked loop, end the process for what is overdue."""
        now = self._clock()
        if now - self._beaten > BEAT_EVERY + BLOCKED and not self._told:
            self._told = True
            self._say(log.warning, "loop_blocked", seconds=round(now - self._beaten, 1), stack=self.stack())
        for watched in list(self._watched.values()):
            if now > watched.ends_at + self._overrun:
                over = round(now - watched.ends_at, 1)
                self._say(
                    log.critical, "work_outlives_its_limit", over=over, stack=self.stack(), **watched.facts
                )
                self._end(EXIT_CODE)
                return

    def stack(self) -> str:
        """Where the watched loop's thread is now."""
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - the documented way to see another thread
        return "".join(traceback.format_stack(frame)) if frame is not None else "the thread is gone"

    @staticmethod
    def _say(level: Callable[..., None], event: str, **facts: object) -> None:
        words = threading.Thread(target=lambda: level(event, **facts), daemon=True)
        words.start()
        words.join(LAST_WORDS)

    def __enter__(self) -> Self:
        """Begin to watch, from a thread of its own."""
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """The loop has ended."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(LOOK_EVERY):
            self.look()
