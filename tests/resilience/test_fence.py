# SPDX-License-Identifier: Apache-2.0
"""Work that is no longer ours sends nothing, and costs the client nothing."""

import pytest

from app.resilience import fence
from app.resilience.fence import Fenced
from tests.resilience.conftest import Make
from tests.resilience.misbehaving import answer, misbehaving


async def test_nothing_leaves_once_the_work_is_lost(make: Make) -> None:
    async with misbehaving(answer(200)) as server:
        client = make(server)
        with fence.behind(lambda: False), pytest.raises(Fenced):
            await client.post("/", extensions={"safety": "keyed"})

        assert server.received == []
        assert client._guard.breaker.admit_now() is not None


async def test_it_is_asked_after_the_connection_is_there(make: Make) -> None:
    async with misbehaving(answer(200), answer(200)) as server:
        client = make(server)
        asked: list[int] = []

        def holds() -> bool:
            asked.append(server.connections)
            return True

        with fence.behind(holds):
            await client.get("/")

    assert asked == [1]


async def test_refused_requests_give_their_places_back(make: Make) -> None:
    async with misbehaving(answer(200)) as server:
        client = make(server, max_concurrency=2)
        for _ in range(5):
            with fence.behind(lambda: False), pytest.raises(Fenced):
                await client.get("/")

        assert (await client.get("/")).status_code == 200


async def test_the_outer_fence_is_back_when_the_inner_one_ends() -> None:
    with fence.behind(lambda: False):
        with fence.behind(lambda: True):
            fence.check()
        with pytest.raises(Fenced):
            fence.check()
    fence.check()
