# SPDX-License-Identifier: Apache-2.0
"""Small ways of driving a connector of any plane."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from app.connectors.catalogue import OpenConnector
from app.connectors.contract import Action, App, Assignment, DeviceReport, InstallState, ReportPage
from tests.connectors.conftest import Sandbox, assignment


def quick_fleet(sandbox: Sandbox, ring: str = "CANARY", *, devices: int = 40, **odds: float) -> None:
    """Give a ring so many devices, which call soon."""
    plan = {"devices": devices, "delay": [0.0, 1.0], **odds}
    sandbox.control("PUT", "fleet", {"rings": {ring: plan}})


async def ready(connector: OpenConnector, app: App, sandbox: Sandbox, ring: str = "CANARY") -> Assignment:
    """Published with its content, and about to be assigned."""
    external_id = await connector.publish(app)
    async for progress in connector.upload(app, external_id, None):
        finished = progress.done
    assert finished
    given = assignment(app, external_id, sandbox.group(ring))
    return replace(given, baseline=await connector.baseline(given))


async def done(connector: OpenConnector, given: Assignment, action: Action) -> Assignment:
    """The assignment after a change under that change's key."""
    given = replace(given, key=given.key_of(action))
    if action is Action.UNASSIGN:
        await connector.unassign(given)
        return given
    given = replace(given, baseline=await connector.baseline(given))
    made_id = await (connector.assign if action is Action.ASSIGN else connector.remove)(given)
    return replace(given, made_id=made_id)


async def another_turn(connector: OpenConnector, made: Assignment) -> Assignment:
    """The assignment once more, as another effect: what it made."""
    given = replace(made, key=f"{made.first_key}/2", made_id=None, made_at=None)
    given = replace(given, baseline=await connector.baseline(given))
    return replace(given, made_id=await connector.assign(given))


async def reported(pages: AsyncIterator[ReportPage]) -> AsyncIterator[Sequence[DeviceReport]]:
    """What a reading tells, page by page."""
    async for page in pages:
        yield page.reports


async def reports(
    connector: OpenConnector, given: Assignment, action: Action = Action.ASSIGN
) -> dict[str, DeviceReport]:
    """The last word on each device."""
    return {
        report.device_id: report async for page in connector.status(action, given) for report in page.reports
    }


async def states(
    connector: OpenConnector, given: Assignment, action: Action = Action.ASSIGN
) -> dict[InstallState, int]:
    """How many devices are in which state."""
    told = [report.state for report in (await reports(connector, given, action)).values()]
    return {state: told.count(state) for state in set(told)}
