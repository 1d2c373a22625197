# SPDX-License-Identifier: Apache-2.0
"""Waiting for a condition instead of for a time."""

import asyncio
import inspect
import math
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")


@overload
async def eventually(
    condition: Callable[[], Awaitable[T]],
    *,
    within: float,
    until: Callable[[T], bool] = ...,
    every: float = ...,
) -> T: ...


@overload
async def eventually(
    condition: Callable[[], T], *, within: float, until: Callable[[T], bool] = ..., every: float = ...
) -> T: ...


async def eventually(
    condition: Callable[[], Awaitable[T] | T],
    *,
    within: float,
    until: Callable[[T], bool] = bool,
    every: float = 0.02,
) -> T:
    """Ask ``condition`` until its answer satisfies ``until`` (by default: is true), and return that answer.

    Raises:
        AssertionError: it did not within ``within`` seconds; the message has the last answer.
    """
    deadline = time.monotonic() + within
    while True:
        answer = condition()
        value: T = await answer if inspect.isawaitable(answer) else answer
        if until(value):
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"still {value!r} after {within} s")
        await asyncio.sleep(every)


async def quickest(measure: Callable[[], Awaitable[float]], *, below: float, tries: int = 8) -> float:
    """The first of some figures that is below this, or the least of them.

    A machine that is busy elsewhere delays whom it likes, but not each time.
    """
    least = math.inf
    for _ in range(tries):
        least = min(least, await measure())
        if least < below:
            break
    return least
