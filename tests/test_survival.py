# SPDX-License-Identifier: Apache-2.0
"""Real workers that are killed in the middle of what they do, again and again."""

from typing import Any

from app.client import Json
from tests.installation import World
from tests.waiting import eventually


async def test_killing_every_worker_again_and_again_loses_nothing_and_does_nothing_twice(
    world: World,
) -> None:
    await world.faults({"path": "*", "latency": 0.15})
    submitted = [
        await world.submit(app_name=f"Survivor {number}", target_ring="CANARY") for number in range(3)
    ]

    for _ in range(3):  # a fourth death in the same work would use up its attempts
        await eventually(world.kill_workers, within=20, every=0.5)
        await moved(world, submitted)
    done = [await world.ended(deployment, within=90) for deployment in submitted]

    assert {deployment["status"] for deployment in done} == {"COMPLETED"}
    for deployment in done:
        await world.one_object_each(deployment)


async def moved(world: World, submitted: list[Json]) -> None:
    """Wait until any deployment is at another place than now, or all have ended."""

    async def places() -> list[Any]:
        now = [await world.client.deployment(deployment["id"]) for deployment in submitted]
        return [(d["status"], [(lane["status"], lane["success_count"]) for lane in d["lanes"]]) for d in now]

    before = await places()
    await eventually(
        places,
        within=40,
        until=lambda now: now != before or all(status == "COMPLETED" for status, _ in now),
        every=0.1,
    )
