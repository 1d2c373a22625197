# SPDX-License-Identifier: Apache-2.0
"""Connectors of any plane to the test's sandbox, and small ways of driving them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.connectors.catalogue import OpenConnector, build, sandbox_settings
from app.connectors.contract import Action, App, Assignment, DeviceReport, InstallState
from app.connectors.services import Services
from app.connectors.sources import FileRules
from app.resilience import RetryProfile
from tests.connectors.conftest import Sandbox, assignment

PATIENT = RetryProfile(attempts=3, shortest=0.01, longest=0.02, attempt_timeout=5.0, total=20.0)

Connect = Callable[..., Any]


def connector_of(sandbox: Sandbox, folder: Path, files: Path, **settings: str) -> OpenConnector:
    """A connector to the sandbox's plane; a setting given as "" is left out."""
    services = Services(spool=folder, files=FileRules(allowed_roots=(files,)), profile=PATIENT)
    told = {**sandbox_settings(sandbox.plane, sandbox.url), **settings}
    quick = {name: "0.02" if name == "poll_interval" else value for name, value in told.items() if value}
    return build(sandbox.plane, quick, services)


async def ready(connector: OpenConnector, app: App, sandbox: Sandbox, ring: str = "CANARY") -> Assignment:
    """Published, and about to be assigned."""
    external_id = await connector.publish(app)
    async for _ in connector.upload(app, external_id, None):
        pass
    given = assignment(app, external_id, sandbox.group(ring))
    return replace(given, baseline=await connector.baseline(given))


async def done(connector: OpenConnector, given: Assignment, action: Action) -> Assignment:
    """The assignment after a change under that change's key."""
    given = replace(given, key=given.key_of(action))
    given = replace(given, baseline=await connector.baseline(given))
    made_id = await (connector.assign if action is Action.ASSIGN else connector.remove)(given)
    return replace(given, made_id=made_id)


async def reports(
    connector: OpenConnector, given: Assignment, action: Action = Action.ASSIGN
) -> dict[str, DeviceReport]:
    """The last word on each device."""
    return {report.device_id: report async for page in connector.status(action, given) for report in page}


async def states(
    connector: OpenConnector, given: Assignment, action: Action = Action.ASSIGN
) -> dict[InstallState, int]:
    """How many devices are in which state."""
    told = [report.state for report in (await reports(connector, given, action)).values()]
    return {state: told.count(state) for state in set(told)}
