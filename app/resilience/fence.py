# SPDX-License-Identifier: Apache-2.0
"""Whether the work that is being done is still ours: set around it, asked right before each request leaves.

A process may stand still between any two lines, and wake up when somebody else does its work.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_holds: ContextVar[Callable[[], bool] | None] = ContextVar("holds", default=None)


class Fenced(Exception):
    """The work is no longer ours: nothing was sent, and nothing of it may be written."""


@contextmanager
def behind(holds: Callable[[], bool]) -> Iterator[None]:
    """What runs inside sends only while ``holds`` says so."""
    token = _holds.set(holds)
    try:
        yield
    finally:
        _holds.reset(token)


def check() -> None:
    """Let pass only who holds its work; whoever works without a fence passes.

    Raises:
        Fenced: it does not.
    """
    holds = _holds.get()
    if holds is not None and not holds():
        raise Fenced("the work is no longer ours")
