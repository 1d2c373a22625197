# SPDX-License-Identifier: Apache-2.0
"""``eucora deployments``, ``approvals``, ``blockers`` and ``forecast`` as an operator uses them."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.domain import deployments
from app.models import DeploymentStatus, Role
from app.runtime import Runtime
from tests.api.conftest import BOOTSTRAP, Submit, intent, serving
from tests.factories import RISK_62

PATIENCE = 60.0
NARROW = {"COLUMNS": "80", "TERM": "dumb"}
NOBODY = "0199c0de-0000-7000-8000-00000000dead"
Told = tuple[int, str, str]


@pytest.fixture
async def url(app: FastAPI) -> AsyncIterator[str]:
    """Where the API is served."""
    async with serving(app) as base_url:
        yield base_url.removesuffix("/api/v1")


@asynccontextmanager
async def started(url: str, *arguments: str, token: str = BOOTSTRAP) -> AsyncIterator[Process]:
    """The command at work; ended with the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app.cli", *arguments),
        env={**os.environ, **NARROW, "EUCORA_URL": url, "EUCORA_TOKEN": token},
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def run(url: str, *arguments: str, token: str = BOOTSTRAP, stdin: bytes | None = None) -> Told:
    """The exit code, and what was said on both streams."""
    async with started(url, *arguments, token=token) as process:
        output, errors = await process.communicate(stdin)
    return process.returncode or 0, output.decode(), errors.decode()


async def test_a_deployment_is_listed_shown_and_steered(url: str, submit: Submit) -> None:
    deployment = await submit(app_name="Mozilla [Firefox]")
    id_ = deployment["id"]

    listed = await run(url, "deployments", "list")
    assert listed[0] == 0
    assert id_ in listed[1]
    assert "Mozilla [Firefox] 143.0.1" in " ".join(listed[1].split())
    assert await run(url, "deployments", "pause", id_, "--reason", "the audit") == (
        0,
        "Mozilla [Firefox] 143.0.1 is PENDING, paused\n",
        "",
    )
    shown = await run(url, "deployments", "show", id_)
    assert "PENDING (paused)" in shown[1]
    assert "the audit" in shown[1]
    assert max(len(line) for line in shown[1].splitlines()) <= 80
    held = await run(url, "blockers", id_)
    assert held[1].splitlines()[1].split()[:2] == ["paused", "deployment"]
    assert (await run(url, "deployments", "resume", id_))[0] == 0
    assert (await run(url, "blockers", id_))[1] == "nothing holds it: it moves, or it is over\n"
    assert (await run(url, "deployments", "cancel", id_))[1].endswith("is CANCELLED\n")
    refused = await run(url, "deployments", "rollback", id_)
    assert (refused[0], refused[1]) == (1, "")
    assert "nothing was pushed" in refused[2]


async def test_documents_for_programs(url: str, submit: Submit) -> None:
    id_ = (await submit())["id"]

    listed = json.loads((await run(url, "deployments", "list", "--status", "PENDING", "--json"))[1])
    shown = json.loads((await run(url, "deployments", "show", id_, "--json"))[1])
    paused = json.loads((await run(url, "deployments", "pause", id_, "--json"))[1])
    blockers = json.loads((await run(url, "blockers", id_, "--json"))[1])

    assert [each["id"] for each in listed] == [id_]
    assert (shown["id"], shown["blockers"]) == (id_, [])
    assert paused["paused"] is True
    assert [each["code"] for each in blockers] == ["paused"]


async def test_watching_ends_with_the_deployment_and_tells_how(
    url: str, submit: Submit, api_runtime: Runtime, client: httpx.AsyncClient
) -> None:
    id_ = (await submit())["id"]
    async with started(url, "deployments", "watch", id_) as watching:
        assert watching.stdout is not None
        shown = [await watching.stdout.readline()]
        await client.post(f"/deployments/{id_}/pause", json={"reason": "the audit"})
        async with api_runtime.transaction() as session:
            deployment = await deployments.lock(session, id_)
            now = api_runtime.clock()
            await deployments.move(session, deployment, DeploymentStatus.CANCELLED, now=now)
        output, _ = await watching.communicate()
        shown += output.splitlines()

    assert watching.returncode == 1
    assert b"PENDING" in shown[0]
    assert shown[-1] == b"Mozilla Firefox 143.0.1: CANCELLED"


async def test_a_request_is_listed_shown_and_decided(
    url: str, submit: Submit, token_for: Callable[[Role], Awaitable[str]]
) -> None:
    await submit(risk_factors=RISK_62)
    other = await token_for(Role.APPROVER)
    [request] = json.loads((await run(url, "approvals", "list", "--json"))[1])

    listed = await run(url, "approvals", "list")
    assert request["id"] in listed[1]
    assert "in 1 d 23 h" in listed[1] or "in 2 d" in listed[1]
    assert "risk        62" in (await run(url, "approvals", "show", request["id"]))[1]
    own = await run(url, "approvals", "approve", request["id"], "--reason", "fine")
    assert (own[0], "another person" in own[2]) == (1, True)
    options = ("--reason", "fine", "--exception", "kept off the internet", "--for", "2d")
    approved = await run(url, "approvals", "approve", request["id"], *options, token=other)
    assert approved == (0, "Mozilla Firefox 143.0.1 is APPROVED\n", "")
    assert (await run(url, "approvals", "list"))[1].count("\n") == 1
    assert request["id"] in (await run(url, "approvals", "list", "--all"))[1]
    assert "exception   until 2" in (await run(url, "approvals", "show", request["id"]))[1]


async def test_a_forecast_from_a_file_and_from_standard_input(
    url: str, all_targets: None, tmp_path: Path
) -> None:
    file = tmp_path / "intent.json"
    body: dict[str, Any] = intent(target_ring="GLOBAL", risk_factors=RISK_62)
    file.write_text(json.dumps(body))

    code, shown, _ = await run(url, "forecast", str(file))
    told = json.loads((await run(url, "forecast", "-", "--json", stdin=file.read_bytes()))[1])

    assert code == 0
    assert shown.startswith("risk 62, 50 devices, at most 10 at risk at once,")
    assert "PILOT: awaiting_cab: an approver approves it" in shown
    assert told["devices"] == 50


async def test_a_file_that_is_no_intent_is_the_command_being_wrong(url: str, tmp_path: Path) -> None:
    (tmp_path / "no.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")

    assert (await run(url, "forecast", str(tmp_path / "no.json")))[0] == 2
    assert (await run(url, "forecast", str(tmp_path / "list.json")))[0] == 2
    assert (await run(url, "forecast", str(tmp_path / "absent.json")))[0] == 2
    assert (await run(url, "deployments", "show", "no-uuid"))[0] == 2


async def test_what_the_api_refuses_is_a_sentence(url: str) -> None:
    code, shown, why = await run(url, "deployments", "show", NOBODY)

    assert (code, shown) == (1, "")
    assert why == f"eucora: there is no deployment {NOBODY}\n"


async def test_an_intent_is_submitted_from_a_file(url: str, all_targets: None) -> None:
    code, shown, _ = await run(url, "deployments", "submit", "-", stdin=json.dumps(intent()).encode())

    assert code == 0
    assert shown.endswith("is PENDING\n")
