# SPDX-License-Identifier: Apache-2.0
"""The assistant as people use it, over real processes: asked from a terminal, and decided about by two."""

import asyncio
import json
import os
import sys
from dataclasses import dataclass

import pytest

from app import admin
from app.client import Client, Json
from tests.installation import World
from tests.waiting import eventually

LOOSE = {"CANARY": {"max_failure_rate": 0.9}}
NARROW = {"COLUMNS": "80", "TERM": "dumb"}


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody at a terminal."""

    world: World
    token: str

    async def types(self, *arguments: str) -> tuple[int, str, str]:
        """The exit code, and what was said on both streams."""
        given = {"EUCORA_URL": self.world.installation.url, "EUCORA_TOKEN": self.token}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app.cli", *arguments),
            env={**os.environ, **NARROW, **given},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
        return process.returncode or 0, output.decode(), errors.decode()


async def person(world: World, name: str, role: str) -> Person:
    settings = world.installation.settings
    return Person(world, await admin.create_token(settings, role=role, name=name, expires_days=1))


async def held(world: World, **overrides: str) -> Json:
    """A deployment whose CANARY is held, for a third of its devices fail."""
    name = overrides["app_name"]
    await world.fleet(apps={name: {"CANARY": {"fail": 0.3}}})
    submitted = await world.submit(gates=LOOSE, **overrides)
    return await eventually(
        lambda: world.client.deployment(submitted["id"]),
        within=40,
        until=lambda now: any(lane["status"] == "HELD" for lane in now["lanes"]),
        every=0.1,
    )


async def test_a_rollout_that_is_held_is_explained_and_taken_back_by_two_people(world: World) -> None:
    alice, bob = await person(world, "Alice", "admin"), await person(world, "Bob", "approver")
    deployment = await held(world, app_name="Held Editor")

    code, answer, looked = await alice.types("ask", "why is held editor stuck?")

    assert code == 0, looked
    assert "gate_not_met" in answer
    assert deployment["id"] in answer
    assert "· find_deployments" in looked
    assert "--conversation" in looked

    made = json.loads((await alice.types("ai", "task", "propose_rollback", deployment["id"], "--json"))[1])
    assert made["status"] == "AWAITING_APPROVAL"
    assert made["id"] in (await bob.types("ai", "list"))[1]
    shown = (await bob.types("ai", "show", made["id"]))[1]
    assert f"rollback {deployment['id']}" in shown.replace("\n", " ")
    assert made["proposal"]["digest"] in shown

    refused = await alice.types("ai", "approve", made["id"])
    assert refused[0] == 1
    assert "nobody approves" in refused[2]
    wrong = await bob.types("ai", "approve", made["id"], "--digest", "0" * 64)
    assert wrong[0] == 1
    assert (await bob.types("ai", "approve", made["id"], "--digest", made["proposal"]["digest"]))[0] == 0

    ended = await world.ended(deployment, into={"ROLLED_BACK"})
    events = await world.client.every(f"/deployments/{ended['id']}/events")
    begun = [event["actor"] for event in events if event["type"] == "deployment.rolling_back"]
    assert begun == [f"ai:{made['id']}"]
    done = json.loads((await bob.types("ai", "show", made["id"], "--json"))[1])
    assert done["status"] == "COMPLETED"
    assert [action["outcome"] for action in done["proposal"]["actions"]] == ["done"]


async def test_a_conversation_goes_on_and_is_there_for_programs(world: World) -> None:
    alice = await person(world, "Alice", "packager")

    first = json.loads((await alice.types("ask", "[[say one]]", "--json"))[1])
    async with Client(world.installation.url, alice.token) as client:
        (conversation,) = (await client.get("/ai/conversations", limit=1))["items"]
    second = await alice.types("ask", "[[say two]]", "--conversation", conversation["id"])

    assert (first["status"], first["content"]) == ("COMPLETE", "one")
    assert second[1].strip() == "two"
    async with Client(world.installation.url, alice.token) as client:
        read = await client.get(f"/ai/conversations/{conversation['id']}")
    assert [message["content"] for message in read["messages"]] == [
        "[[say one]]",
        "one",
        "[[say two]]",
        "two",
    ]


async def test_an_answer_that_breaks_off_fails_the_command_and_shows_what_there_is(world: World) -> None:
    alice = await person(world, "Alice", "packager")
    await world.control("openai", "faults", {"items": [{"status": 401, "path": "*/chat/completions"}]})
    try:
        code, output, errors = await alice.types("ask", "[[words 5]]")
    finally:
        await world.control("openai", "faults", {"items": []})

    assert (code, output.strip()) == (1, "")
    assert "the answer has no end" in errors
    assert "refused the credentials" in errors


@pytest.mark.parametrize(
    "command", [("ask", "hello"), ("ai", "list"), ("ai", "task", "triage_failures", "x")]
)
async def test_what_is_wrong_is_a_sentence(world: World, command: tuple[str, ...]) -> None:
    code, _, errors = await Person(world, "nobody").types(*command)

    assert code in {1, 2}
    assert "Traceback" not in errors
    assert errors.strip()
