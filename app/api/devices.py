# SPDX-License-Identifier: Apache-2.0
"""What each device of a deployment has done."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from app.api.dependencies import SessionDep
from app.api.deployments import DeploymentId
from app.api.paging import CursorKey, Page, PageDep, Text
from app.api.routing import V1, Route, requires
from app.api.schema import Message, Shown, as_json
from app.connectors.contract import Plane
from app.domain import deployments, devices
from app.models import DeviceState, Ring
from app.security import Permission

router = APIRouter(
    prefix=V1 + "/deployments/{deployment_id}/devices", tags=["deployments"], route_class=Route
)

Position = Annotated[int, Field(ge=0, le=len(Ring))]
BY_LANE: CursorKey[tuple[int, str, str]] = CursorKey(tuple[Position, Text, Text])


class DeviceRead(Shown):
    """One device of one lane. ``late`` ones joined after the push; ``rollback_state`` is a rollback's."""

    device_id: Annotated[str, Field(max_length=1000)]
    name: Annotated[str, Field(max_length=1000)]
    ring: Ring
    plane: Plane
    state: DeviceState
    detail: Message | None
    error_code: Annotated[str | None, Field(max_length=1000)]
    late: bool
    rollback_state: DeviceState | None
    updated_at: datetime


class DevicePage(Page[DeviceRead]):
    """Some devices, and where to go on."""


@router.get("", response_model=DevicePage, summary="List a deployment's devices")
@requires(Permission.READ)
async def list_devices(
    *,
    deployment_id: DeploymentId,
    session: SessionDep,
    page: PageDep,
    ring: Ring | None = None,
    plane: Plane | None = None,
    state: DeviceState | None = None,
) -> Response:
    """The devices of all lanes, ring by ring; the filters narrow together."""
    await deployments.exists(session, deployment_id)
    after = BY_LANE.decode(page)
    narrow = {"ring": ring, "plane": plane, "state": state}
    rows, following = await devices.page(session, deployment_id, after=after, limit=page.limit, **narrow)
    items = [DeviceRead.model_validate(row) for row in rows]
    return as_json(DevicePage(items=items, next_cursor=BY_LANE.encode(following, page)))
