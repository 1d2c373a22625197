# SPDX-License-Identifier: Apache-2.0
"""What comes together goes together; who waits, waits for a free lane and for nothing else."""

import asyncio
from collections.abc import Mapping

from app.coalescing import Coalescer

LANES, MOST = 2, 3


class Sender:
    """Keeps what it is given, and holds it until told to go on; it will not deal with negative ones."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []
        self.goes_on = asyncio.Event()
        self.fails = False

    async def send(self, items: Mapping[str, int]) -> set[str]:
        self.sent.append(list(items.values()))
        await self.goes_on.wait()
        if self.fails:
            raise ConnectionError
        return {key for key, item in items.items() if item >= 0}


def coalescer(sender: Sender) -> Coalescer[str, int]:
    return Coalescer(sender.send, lanes=LANES, most=MOST)


def begin(together: Coalescer[str, int], *items: int) -> list[asyncio.Task[bool]]:
    return [asyncio.create_task(together.dealt_with(str(item), item)) for item in items]


async def settle() -> None:
    """Everybody who can go on has gone on."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_comes_in_one_moment_leaves_at_once_and_together() -> None:
    sender = Sender()
    together = coalescer(sender)

    callers = begin(together, 1, -2)
    await settle()

    assert sender.sent == [[1, -2]]
    sender.goes_on.set()
    assert await asyncio.gather(*callers) == [True, False]


async def test_what_comes_while_all_lanes_are_busy_shares_the_next() -> None:
    sender = Sender()
    together = coalescer(sender)
    callers = list[asyncio.Task[bool]]()

    for item in (1, 2, 3, 4):
        callers += begin(together, item)
        await settle()

    assert sender.sent == [[1], [2]]
    sender.goes_on.set()
    assert await asyncio.gather(*callers) == [True] * 4
    assert sender.sent == [[1], [2], [3, 4]]


async def test_no_batch_is_larger_than_it_may_be() -> None:
    sender = Sender()
    together = coalescer(sender)
    sender.goes_on.set()

    assert await asyncio.gather(*begin(together, *range(8))) == [True] * 8

    assert sender.sent == [[0, 1, 2], [3, 4, 5], [6, 7]]


async def test_the_second_of_one_key_waits_for_the_first_and_is_told() -> None:
    sender = Sender()
    together = coalescer(sender)

    callers = begin(together, 1, 1)
    await settle()

    assert not any(caller.done() for caller in callers)
    sender.goes_on.set()
    assert await asyncio.gather(*callers) == [True, False]
    assert sender.sent == [[1]]


async def test_a_failure_reaches_those_who_were_aboard_and_nobody_else() -> None:
    sender = Sender()
    together = coalescer(sender)
    sender.fails = True
    sender.goes_on.set()

    failed = await asyncio.gather(*begin(together, 1, 2), return_exceptions=True)
    sender.fails = False

    assert [type(each) for each in failed] == [ConnectionError] * 2
    assert await together.dealt_with("1", 1)


async def test_a_caller_who_goes_away_does_not_take_the_others_along() -> None:
    sender = Sender()
    leaver, other = begin(coalescer(sender), 1, 2)
    await settle()

    leaver.cancel()
    await settle()
    sender.goes_on.set()

    assert await other
    assert leaver.cancelled()
    assert sender.sent == [[1, 2]]
