# SPDX-License-Identifier: Apache-2.0
"""How many of a service's latest calls failed: what a failure now and then among many successes shows."""

from collections import deque

SLICES = 12


class RateWindow:
    """Counts of the last ``span`` seconds, in a dozen slices: the oldest slice leaves as a whole."""

    __slots__ = ("_ends", "_failed", "_good", "_past", "_width")

    def __init__(self, span: float) -> None:
        self._width = span / SLICES
        self._past: deque[tuple[float, int, int]] = deque()
        self._ends = 0.0
        self._good = self._failed = 0

    def good(self, now: float) -> bool:
        """Count a success; whether it is the first for as long as the window reaches."""
        fresh = now >= self._ends and self._roll(now)
        self._good += 1
        return fresh

    def failed(self, now: float) -> bool:
        """Count a failure; whether it is the first call for as long as the window reaches."""
        fresh = now >= self._ends and self._roll(now)
        self._failed += 1
        return fresh

    def _roll(self, now: float) -> bool:
        """Begin a new slice; whether nothing is left of earlier ones."""
        if self._good or self._failed:
            self._past.append((self._ends, self._good, self._failed))
        self._good = self._failed = 0
        self._ends = now + self._width
        self._forget(now)
        return not self._past

    def _forget(self, now: float) -> None:
        while self._past and self._past[0][0] <= now - self._width * (SLICES - 1):
            self._past.popleft()

    def counts(self, now: float) -> tuple[int, int]:
        """Successes and failures."""
        self._forget(now)
        alive = now < self._ends + self._width * (SLICES - 1)
        good = sum(each[1] for each in self._past) + (self._good if alive else 0)
        failed = sum(each[2] for each in self._past) + (self._failed if alive else 0)
        return good, failed

    def is_idle(self, now: float) -> bool:
        """Whether no call ended within the window."""
        return self.counts(now) == (0, 0)

    def clear(self) -> None:
        """Forget everything."""
        self._past.clear()
        self._good = self._failed = 0
