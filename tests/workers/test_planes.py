# SPDX-License-Identifier: Apache-2.0
"""The jobs that ask about a plane itself, against a real sandbox over a real socket."""

from collections.abc import AsyncIterator, Iterator
from uuid import UUID, uuid4

import httpx
import pytest
from pydantic import SecretStr

from app.connectors.contract import Plane, Target, TargetKind
from app.domain import planes, targets
from app.models import Operation, OperationStatus, Ring
from app.runtime import Runtime, open_runtime
from app.settings import Settings
from sandbox.main import create_app, serving
from tests.wire import PLAIN
from tests.workers.conftest import product_runner, run_once


@pytest.fixture
def sandbox_url() -> Iterator[str]:
    with serving(create_app(scale=0.05)) as url:
        yield url


@pytest.fixture
async def runtime(settings: Settings, sandbox_url: str) -> AsyncIterator[Runtime]:
    """With the planes at the sandbox; only Jamf lacks a setting."""
    planes = {"jamf": {"client_id": SecretStr("me")}}
    own = settings.model_copy(update={"sandbox_url": sandbox_url, "planes": planes})
    async with open_runtime(own, process="test") as runtime:
        yield runtime


async def run(runtime: Runtime, operation_id: UUID) -> Operation:
    """One run of an operation by the product's own job."""
    return await run_once(product_runner(runtime), operation_id)


async def test_a_plane_that_answers_is_checked(runtime: Runtime) -> None:
    async with runtime.transaction() as session:
        asked = await planes.request_check(session, Plane.INTUNE, correlation_id=uuid4())

    done = await run(runtime, asked)

    assert done.status is OperationStatus.SUCCEEDED
    assert done.result is not None
    assert "answered by" in done.result["detail"]


async def test_work_for_a_plane_without_settings_waits_and_says_what_is_missing(runtime: Runtime) -> None:
    async with runtime.transaction() as session:
        asked = await planes.request_check(session, Plane.JAMF, correlation_id=uuid4())

    waiting = await run(runtime, asked)

    assert (waiting.status, waiting.attempt, waiting.deferrals) == (OperationStatus.WAITING, 0, 1)
    assert waiting.error is not None
    assert waiting.error["code"] == "plane_not_configured"


async def test_the_devices_of_a_target_are_counted(runtime: Runtime, sandbox_url: str) -> None:
    async with httpx.AsyncClient(verify=PLAIN, trust_env=False) as http:
        fleet = (await http.get(f"{sandbox_url}/intune/_sandbox/fleet")).json()
    lab = fleet["rings"]["LAB"]
    async with runtime.transaction() as session:
        target = Target(TargetKind.GROUP, lab["ref"])
        row = await targets.put(session, Plane.INTUNE, Ring.LAB, target)
        asked = await targets.request_count(session, row, correlation_id=uuid4())

    done = await run(runtime, asked)

    assert done.result == {"device_count": lab["devices"]}
    async with runtime.transaction() as session:
        assert (await targets.get(session, Plane.INTUNE, Ring.LAB)).device_count == lab["devices"]
