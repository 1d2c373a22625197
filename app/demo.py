# SPDX-License-Identifier: Apache-2.0
"""``eucora demo``: two rollouts side by side over a sandbox fleet, one of which goes back; or one example."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding

from app import examples, rings_view, supervisor
from app.client import Client, Json, Refused
from app.settings import Settings

GOOD, BAD = "firefox", "contoso-vpn"
BAD_RING, BAD_SHARE = "CANARY", 0.3
FINAL = frozenset({"COMPLETED", "ROLLED_BACK", "FAILED", "REJECTED", "CANCELLED"})
LOOK_EVERY = 0.25
PATIENCE = 150.0
"""Seconds in which both rollouts must end; they take about 35."""

Say = Callable[[str], None]


@dataclass(slots=True)
class Story:
    """One of the two rollouts: what it should come to, and what it came to."""

    name: str
    expected: str
    intent: Json = field(default_factory=dict)
    deployment: Json = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether nothing will move any more."""
        return self.deployment["status"] in FINAL or self.deployment["paused"]

    @property
    def as_expected(self) -> bool:
        """Whether it ended as it should, and the witness saw nothing else."""
        return self.deployment["status"] == self.expected and not self.findings


def run(settings: Settings, *, as_json: bool, example: str | None = None) -> int:
    """Run the demo; 0 only if every rollout came to what it should and touched what it says it did.

    Without an ``example`` one rollout must complete, and the other be taken back.
    """
    own = settings.model_copy(update={"data_dir": settings.data_dir / "demo", "gate_policy": "demo"})
    say: Say = (lambda line: typer.echo(line, err=True)) if as_json else typer.echo
    return asyncio.run(perform(own, stories_of(example), say, as_json=as_json))


def stories_of(example: str | None) -> Sequence[Story]:
    """The two of the demo, or that of one example."""
    if example is not None:
        return (Story(example, "COMPLETED"),)
    return (Story(GOOD, "COMPLETED"), Story(BAD, "ROLLED_BACK"))


async def perform(settings: Settings, stories: Sequence[Story], say: Say, *, as_json: bool) -> int:
    """Start an installation, tell the stories on it, stop it."""
    started = time.monotonic()
    plan = supervisor.Plan(settings=settings, port=supervisor.free_port())
    with supervisor.until_told_to_stop():
        async with supervisor.running(plan, report=say) as installation:
            say(f"everything runs after {time.monotonic() - started:.1f} s; the API is {installation.url}")
            await tell(installation, stories, say, as_json=as_json)
        took = time.monotonic() - started
        say(conclusion(stories, settings, took))
        if as_json:
            typer.echo(json.dumps(document(stories, took), indent=2))
        return 0 if all(story.as_expected for story in stories) else 1
    return 130


async def tell(
    installation: supervisor.Installation, stories: Sequence[Story], say: Say, *, as_json: bool
) -> None:
    """Submit the intents, follow them to the end, and ask the fleets themselves what happened."""
    sandbox = str(installation.settings.sandbox_url)
    async with Client(installation.url, installation.token) as client:
        for story in stories:
            story.intent = read(examples.make(story.name, installation.place.path / "examples"))
            if story.name == BAD:
                await spoil(f"{sandbox}/intune/_sandbox", story.intent)
            story.deployment = await submit(client, story.intent)
        if as_json or not sys.stdout.isatty():
            await follow_in_lines(client, stories, say)
        else:
            await follow_in_bars(client, stories)
        for story in stories:
            for plane in story.deployment["planes"]:
                story.findings += await witness(client, f"{sandbox}/{plane}/_sandbox", story, plane)


def read(intent: Path) -> Json:
    """The intent a file holds."""
    body: Json = json.loads(intent.read_text(encoding="utf-8"))
    return body


async def spoil(sandbox: str, intent: Json) -> None:
    """Have some devices of one ring fail one application."""
    plan = {"apps": {intent["app_name"]: {BAD_RING: {"fail": BAD_SHARE}}}}
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        (await http.put(f"{sandbox}/fleet", json=plan)).raise_for_status()


async def submit(client: Client, body: Json) -> Json:
    """Submit an intent; one that an interrupted demo left under way is finished first."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return await client.post("/deployments", body)
        except Refused as refused:
            if refused.problem_code != "active_deployment_exists" or time.monotonic() > deadline:
                raise
        await asyncio.sleep(LOOK_EVERY)


async def follow(client: Client, stories: Sequence[Story]) -> AsyncIterator[Sequence[Story]]:
    """Read the deployments again and again until all are over, or the patience is."""
    deadline = time.monotonic() + PATIENCE
    while True:
        for story in stories:
            story.deployment = await client.deployment(story.deployment["id"])
        yield stories
        if all(story.over for story in stories) or time.monotonic() > deadline:
            return
        await asyncio.sleep(LOOK_EVERY)


async def follow_in_lines(client: Client, stories: Sequence[Story], say: Say) -> None:
    """Say each change of state."""
    seen: dict[str, Json] = {}
    async for now in follow(client, stories):
        for story in now:
            for line in rings_view.lines(seen.get(story.name), story.deployment):
                say(line)
            seen[story.name] = story.deployment


async def follow_in_bars(client: Client, stories: Sequence[Story]) -> None:
    """Draw the deployments until they are over."""
    with Live(console=Console(), auto_refresh=False) as live:
        async for now in follow(client, stories):
            pictures = [Padding(rings_view.drawn(story.deployment), (1, 0, 0, 0)) for story in now]
            live.update(Group(*pictures), refresh=True)


async def witness(client: Client, sandbox: str, story: Story, plane: str) -> list[str]:
    """What a plane's own record says against the ledger; nothing if they agree.

    Every device that ever handled the application is in the ledger, every device the ledger calls done
    handled it, and after a rollback none has it.
    """
    ledger = await client.every(f"/deployments/{story.deployment['id']}/devices", plane=plane)
    fleet = await handled(sandbox, product_of(story.intent, plane), story.intent["version"])
    known = {device["device_id"] for device in ledger}
    done = {device["device_id"] for device in ledger if device["state"] in {"SUCCEEDED", "FAILED"}}
    touched = {device["device_id"] for device in fleet}
    findings = [f"{device} was touched and is not in the ledger" for device in sorted(touched - known)]
    findings += [f"{device} is in the ledger and was never touched" for device in sorted(done - touched)]
    if story.expected == "ROLLED_BACK":
        findings += [f"{device['name']} still has it" for device in fleet if device["installed"]]
    return findings


def product_of(intent: Json, plane: str) -> str:
    """What the plane's fleet calls the application: a Debian package goes by its own name."""
    package = intent["packages"][plane] if "packages" in intent else intent["package"]
    return str(package["name"] if package["kind"] == "deb" else intent["app_name"])


async def handled(sandbox: str, product: str, version: str) -> list[Json]:
    """The devices of the fleet that ever did something with that version of the application."""
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        answer = await http.get(f"{sandbox}/devices", params={"product": product, "version": version})
    devices: list[Json] = answer.raise_for_status().json()["items"]
    for device in devices:
        device["installed"] = [has for has in device["installed"] if has["version"] == version]
    return devices


def conclusion(stories: Sequence[Story], settings: Settings, took: float) -> str:
    """What happened, and where to look next."""
    told = [line for story in stories for line in told_of(story)]
    return "\n".join(
        [
            "",
            *told,
            f"This took {took:.0f} s. Data and logs are in {settings.data_dir}.",
            "Next: `eucora up` keeps such an installation running, with its API described",
            "at /docs; `eucora --help` lists the commands; examples/ has what to submit.",
        ]
    )


def told_of(story: Story) -> list[str]:
    """One rollout in sentences."""
    deployment = story.deployment
    touched = sum(lane["targeted"] for lane in deployment["lanes"])
    sentence = f"{deployment['app_name']} {deployment['app_version']} is {deployment['status']}"
    if story.as_expected and story.expected == "ROLLED_BACK":
        sentence += f": {BAD_RING} failed its gate, and all {touched} devices it was sent to are as they were"
    elif story.as_expected:
        where = f" on {', '.join(deployment['planes'])}" if len(deployment["planes"]) > 1 else ""
        rings = len({lane["ring"] for lane in deployment["lanes"]})
        sentence += f": {touched} devices in {rings} rings{where} have it"
    else:
        sentence += f" and should be {story.expected}"
    return [sentence + ".", *(f"  but {finding}" for finding in story.findings[:10])]


def document(stories: Sequence[Story], took: float) -> dict[str, Any]:
    """The same for programs."""
    return {
        "succeeded": all(story.as_expected for story in stories),
        "seconds": round(took, 1),
        "deployments": [asdict(story) | {"as_expected": story.as_expected} for story in stories],
    }
