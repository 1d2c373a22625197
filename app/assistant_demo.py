# SPDX-License-Identifier: Apache-2.0
"""``eucora demo --example ai``: a rollout that is held, a question about it, a proposal, and two people.

The model is the sandbox's scripted one: no key is needed, and its answers are found out all the same.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import typer

from app import admin, assistant_command, demo, examples, supervisor
from app.client import Client, Json, Refused
from app.demo import BAD, BAD_RING, LOOK_EVERY, PATIENCE, Say, Story
from app.settings import Settings

NAME = "ai"
QUESTION = "why is contoso vpn stuck?"
LOOSE = {BAD_RING: {"max_failure_rate": 0.9}}
"""So that the ring is held by its success rate, and not taken back by its failures."""


@dataclass(slots=True)
class Play:
    """What happened; ``findings`` is what should have happened otherwise."""

    deployment: Json = field(default_factory=dict)
    answer: Json = field(default_factory=dict)
    task: Json = field(default_factory=dict)
    refused: str = ""
    findings: list[str] = field(default_factory=list)

    def expect(self, holds: object, otherwise: str) -> None:
        """Note what is not as it should be."""
        if not holds:
            self.findings.append(otherwise)


def run(settings: Settings, *, as_json: bool) -> int:
    """Play it; 0 only if everything went as it should, and the fleet itself says so."""
    own = settings.model_copy(
        update={"data_dir": settings.data_dir / "demo", "gate_policy": "demo", "ai": {}}
    )
    say: Say = (lambda line: typer.echo(line, err=True)) if as_json else typer.echo
    return asyncio.run(perform(own, say, as_json=as_json))


async def perform(settings: Settings, say: Say, *, as_json: bool) -> int:
    """Start an installation, play on it, stop it."""
    started, play = time.monotonic(), Play()
    plan = supervisor.Plan(settings=settings, port=supervisor.free_port())
    with supervisor.until_told_to_stop():
        async with supervisor.running(plan, report=say) as installation:
            say(f"everything runs after {time.monotonic() - started:.1f} s; the API is {installation.url}")
            tokens = [
                await admin.create_token(installation.settings, role=role, name=name, expires_days=1)
                for role, name in (("admin", "Alice"), ("approver", "Bob"))
            ]
            async with (
                Client(installation.url, tokens[0]) as alice,
                Client(installation.url, tokens[1]) as bob,
            ):
                await act(installation, alice, bob, play, say)
        took = time.monotonic() - started
        say("\n".join(conclusion(play, settings, took)))
        if as_json:
            typer.echo(json.dumps(document(play, took), indent=2))
        return 1 if play.findings else 0
    return 130


async def act(
    installation: supervisor.Installation, alice: Client, bob: Client, play: Play, say: Say
) -> None:
    """Alice's rollout is held; she asks why, and has a rollback proposed; Bob approves it."""
    story = await held(installation, alice, say)
    play.deployment = story.deployment
    await ask(alice, play, say)
    await propose(alice, play, say)
    if play.findings:
        return
    await decide(alice, bob, play, say)
    await prove(installation, alice, story, play)


async def held(installation: supervisor.Installation, alice: Client, say: Say) -> Story:
    """A rollout of which some devices of one ring fail, until that ring is held."""
    story = Story(BAD, "ROLLED_BACK")
    story.intent = demo.read(examples.make(BAD, installation.place.path / "examples")) | {"gates": LOOSE}
    await demo.spoil(f"{installation.settings.sandbox_url}/intune/_sandbox", story.intent)
    story.deployment = await demo.submit(alice, story.intent)
    say(f"\nAlice submits {story.intent['app_name']} {story.intent['version']}.")
    deadline = time.monotonic() + PATIENCE
    while not any(lane["status"] == "HELD" for lane in story.deployment["lanes"]):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the rollout was not held: {story.deployment['status']}")
        await asyncio.sleep(LOOK_EVERY)
        story.deployment = await alice.deployment(story.deployment["id"])
    say(f"It is held in {BAD_RING}.")
    return story


async def ask(alice: Client, play: Play, say: Say) -> None:
    """The question, with the answer as it comes."""
    say(f"\nAlice asks: {QUESTION}\n")
    made = await alice.post("/ai/conversations", {"content": QUESTION})
    play.answer = await assistant_command.listen(alice, made, assistant_command.print_event)
    say("")
    content, id_ = play.answer["content"], play.deployment["id"]
    play.expect(play.answer["status"] == "COMPLETE", f"the answer is {play.answer['status']}")
    play.expect({"id": id_} in play.answer["citations"], "the answer does not cite the deployment")
    play.expect("gate_not_met" in content and BAD_RING in content, "the answer does not say what holds it")


async def propose(alice: Client, play: Play, say: Say) -> None:
    """What the assistant would do about it."""
    body = {"kind": "propose_rollback", "deployment_id": play.deployment["id"]}
    play.task = await assistant_command.settled(alice, await alice.post("/ai/tasks", body))
    proposal = play.task["proposal"] or {"text": "", "actions": [], "digest": ""}
    actions = [action["action"] for action in proposal["actions"]]
    play.expect(play.task["status"] == "AWAITING_APPROVAL", f"the task is {play.task['status']}")
    play.expect(actions == ["rollback"], f"it proposes {actions}")
    say(f"\nAlice has a rollback proposed:\n\n{proposal['text']}\n")
    say(f"Its one action: {', '.join(actions)}. Its digest: {proposal['digest'][:16]}…")


async def decide(alice: Client, bob: Client, play: Play, say: Say) -> None:
    """The author may not approve; another person may, and just this proposal."""
    path = f"/ai/tasks/{play.task['id']}/approve"
    decision = {"reason": "the help desk confirms it", "digest": play.task["proposal"]["digest"]}
    try:
        await alice.post(path, decision)
    except Refused as refused:
        play.refused = refused.problem_code
        say(f"\nAlice approves it: refused, {refused.problem_code}: {refused.detail}.")
    play.expect(play.refused == "own_submission", "the author could approve")
    await bob.post(path, decision)
    say("Bob approves it.")
    play.task = await assistant_command.settled(bob, await bob.get(f"/ai/tasks/{play.task['id']}"))
    play.expect(play.task["status"] == "COMPLETED", f"the task is {play.task['status']}")


async def prove(installation: supervisor.Installation, alice: Client, story: Story, play: Play) -> None:
    """It was done once, as whom it should, and no device has the version any more."""
    async for now in demo.follow(alice, [story]):
        if now[0].deployment["status"] in demo.FINAL:
            break
    play.deployment = story.deployment
    events = await alice.every(f"/deployments/{story.deployment['id']}/events")
    actor = f"ai:{play.task['id']}"
    begun = [each["actor"] for each in events if each["type"] == "deployment.rolling_back"]
    done = [each["after"]["on_behalf_of"] for each in events if each["type"] == "ai_task.executed"]
    play.expect(begun == [actor], f"the rollback was begun by {begun}")
    play.expect(done == ["Bob"], f"it was carried out on behalf of {done}")
    play.expect(story.deployment["status"] == "ROLLED_BACK", f"it is {story.deployment['status']}")
    sandbox = f"{installation.settings.sandbox_url}/intune/_sandbox"
    play.findings += await demo.witness(alice, sandbox, story, "intune")


def conclusion(play: Play, settings: Settings, took: float) -> Sequence[str]:
    """What happened, and where to look next."""
    name = f"{play.deployment['app_name']} {play.deployment['app_version']}"
    told = [
        f"{name} is {play.deployment['status']}: proposed by the assistant, decided by a person, done once."
    ]
    if play.findings:
        told = [f"{name} is {play.deployment['status']}, but:", *(f"  {each}" for each in play.findings[:10])]
    return [
        "",
        *told,
        f"This took {took:.0f} s. Data and logs are in {settings.data_dir}.",
        "Next: `eucora up`, then `eucora ask`; docs/assistant.md tells how a real model is set up.",
    ]


def document(play: Play, took: float) -> dict[str, Any]:
    """The same for programs."""
    return {
        "succeeded": not play.findings,
        "seconds": round(took, 1),
        "deployment": play.deployment,
        "answer": play.answer,
        "refused": play.refused,
        "task": play.task,
        "findings": play.findings,
    }
