# SPDX-License-Identifier: Apache-2.0
"""How long the work that is being done may take: set once around it, seen by every call out of it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

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
