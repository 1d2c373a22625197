# SPDX-License-Identifier: Apache-2.0
"""How long the work that is being done may take: set once around it, seen by every call out of it."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Self

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


@contextmanager
def within(at: float) -> Iterator[None]:
    """What runs inside ends at ``at`` on ``time.monotonic()``, or at an outer deadline that is earlier."""
    token = _deadline.set(earliest(at))
    try:
        yield
    finally:
        _deadline.reset(token)


def at() -> float | None:
    """The deadline of this work on ``time.monotonic()``; None where nobody set one."""
    return _deadline.get()


def remaining() -> float | None:
    """Seconds that are left, negative past the deadline; None where nobody set one."""
    end = _deadline.get()
    return None if end is None else end - time.monotonic()


def earliest(limit: float) -> float:
    """``limit``, or the deadline of this work if that is earlier."""
    end = _deadline.get()
    return limit if end is None or limit < end else end


class TimeLimit:
    """``asyncio.timeout``, for what is on the path of every call: half as dear, for nothing of it is awaited.

    ``expired``: the time was over, which ends what runs inside with a TimeoutError.
    """

    __slots__ = ("_cancelled_before", "_handle", "_task", "expired")

    def __init__(self, seconds: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelled_before = task.cancelling()
        self._handle = task.get_loop().call_later(seconds, self._expire)
        self.expired = False

    def _expire(self) -> None:
        self.expired = True
        self._task.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.cancel()
        if not self.expired:
            return
        is_ours_alone = self._task.uncancel() <= self._cancelled_before
        if is_ours_alone and isinstance(error, asyncio.CancelledError):
            raise TimeoutError from error
