# SPDX-License-Identifier: Apache-2.0
"""Several people press every button at once while workers die: every answer is legal, one story is told."""

import asyncio
import contextlib
import random
import time
from collections import Counter

import pytest

from app import admin
from app.client import Client, Json, Refused
from tests.installation import World
from tests.waiting import eventually

ORDERS = ("pause", "resume", "promote", "retry", "pause", "resume", "promote", "rollback", "cancel")
LIKELY = ORDERS[:7] * 6 + ORDERS
"""What ends a deployment is pressed more rarely."""
SECONDS = 5.0
ENDED = {"COMPLETED", "ROLLED_BACK", "FAILED", "CANCELLED", "REJECTED"}


async def press(client: Client, deployments: list[Json], dice: random.Random, until: float) -> Counter[str]:
    """One person at the buttons; what the answers were."""
    answers: Counter[str] = Counter()
    while time.monotonic() < until:
        path = f"/deployments/{dice.choice(deployments)['id']}/{dice.choice(LIKELY)}"
        try:
            await client.post(path, {"reason": "just because"})
            answers["202"] += 1
        except Refused as refusal:
            answers[f"{refusal.status} {refusal.problem_code}"] += 1
    return answers


@pytest.mark.long
async def test_everybody_presses_every_button_while_workers_die(world: World) -> None:
    await world.faults({"path": "*", "latency": 0.05})
    submitted = [
        await world.submit(app_name=f"Contested {number}", target_ring="GLOBAL") for number in range(4)
    ]
    until = time.monotonic() + SECONDS

    people = [press(world.client, submitted, random.Random(seed), until) for seed in range(5)]
    pressed = asyncio.gather(*people)
    while time.monotonic() < until:
        await asyncio.sleep(1.5)
        world.kill_workers()
    answers = sum(await pressed, Counter[str]())

    assert answers["202"] > 20
    assert {answer.split()[0] for answer in answers} <= {"202", "409", "422"}, answers
    for deployment in submitted:
        await settled(world, deployment)
    report = await admin.verify_history(world.installation.settings, None)
    assert report.broken == []


async def settled(world: World, deployment: Json) -> None:
    """Whatever was pressed: it can be brought to an end, and the planes hold what the ledger says."""
    now = await world.client.deployment(deployment["id"])
    if now["status"] not in ENDED - {"FAILED"}:
        order = "cancel" if now["status"] == "PENDING" else "rollback"
        await world.client.post(f"/deployments/{deployment['id']}/{order}", {"reason": "enough"})
    ended = await eventually(
        lambda: carried_on(world, deployment),
        until=lambda found: found["status"] in ENDED,
        within=60,
        every=0.2,
    )
    keys = {effect["key"] for effect in await world.effects_of(ended)}
    changes = (await world.requests())["mutations"]
    assert {each["effect_key"] for each in changes if each["effect_key"].startswith(ended["id"])} <= keys
    told = await world.client.every(f"/deployments/{ended['id']}/events")
    assert [event["sequence"] for event in told] == list(range(1, len(told) + 1))


async def carried_on(world: World, deployment: Json) -> Json:
    """The deployment; where somebody had paused what takes it back, it goes on, if it is not over by now."""
    path = f"/deployments/{deployment['id']}"
    now = await world.client.deployment(deployment["id"])
    if now["paused"] and now["status"] not in ENDED:
        with contextlib.suppress(Refused):
            await world.client.post(f"{path}/resume")
    return now
