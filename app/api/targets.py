# SPDX-License-Identifier: Apache-2.0
"""Ring targets: which devices a ring means on a plane."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from app.api.dependencies import CallDep, ExpectedVersion, ServiceDep, SessionDep
from app.api.paging import CursorKey, Page, PageDep, Text
from app.api.routing import V1, Route, requires
from app.api.schema import Count, Given, ResourceVersion, Shown, as_json, tagged
from app.connectors.contract import Plane, Target, TargetKind
from app.connectors.packages import Text as Reference
from app.domain import pushes, targets
from app.models import Ring
from app.security import Permission

router = APIRouter(prefix=V1 + "/targets", tags=["targets"], route_class=Route)

BY_LANE: CursorKey[tuple[str, Ring]] = CursorKey(tuple[Text, Ring])


class TargetPut(Given):
    """The devices of a ring in the plane's own words: ``ref`` is an id or a name there, as ``kind`` says."""

    ref: Reference
    kind: TargetKind


class TargetRead(Shown):
    """A ring's target; ``device_count`` is null until the plane was asked."""

    plane: Plane
    ring: Ring
    ref: Annotated[str, Field(max_length=1000)]
    kind: TargetKind
    device_count: Count | None
    counted_at: datetime | None
    version: ResourceVersion


class TargetSet(TargetRead):
    """The target after it was set; ``operation_id`` counts its devices, if the plane is configured."""

    operation_id: UUID | None = None


class TargetPage(Page[TargetRead]):
    """Some targets, and where to go on."""


@router.get("", response_model=TargetPage, summary="List targets")
@requires(Permission.READ)
async def list_targets(session: SessionDep, page: PageDep) -> Response:
    """Every target that is set, by plane and ring."""
    rows, following = await targets.page(session, after=BY_LANE.decode(page), limit=page.limit)
    items = [TargetRead.model_validate(row) for row in rows]
    return as_json(TargetPage(items=items, next_cursor=BY_LANE.encode(following, page)))


@router.get("/{plane}/{ring}", response_model=TargetRead, summary="Read a target")
@requires(Permission.READ)
async def read_target(plane: Plane, ring: Ring, session: SessionDep) -> Response:
    """Which devices the ring means on the plane."""
    return tagged(TargetRead.model_validate(await targets.get(session, plane, ring)))


@router.put("/{plane}/{ring}", response_model=TargetSet, summary="Set a target")
@requires(Permission.TARGET_WRITE)
async def put_target(
    *,
    plane: Plane,
    ring: Ring,
    body: TargetPut,
    session: SessionDep,
    service: ServiceDep,
    call: CallDep,
    version: ExpectedVersion,
) -> Response:
    """Set or change a target and have its devices counted; setting it to the same counts them again.

    Lanes already planned keep theirs, but a deployment that stopped because this ring was empty goes on.
    """
    target = Target(body.kind, body.ref)
    if plane in service.manifests:
        targets.check_kind(target, service.manifests[plane])
    row = await targets.put(session, plane, ring, target, version=version)
    now, actor = service.runtime.clock(), call.actor.name
    await pushes.retarget(session, plane.value, ring, target, actor=actor, now=now)
    call.after_commit.append(service.targets.clear)
    shown = TargetSet.model_validate(row, from_attributes=True)
    if plane in service.runtime.connectors:
        started = await targets.request_count(session, row, correlation_id=call.correlation_id)
        shown = shown.model_copy(update={"operation_id": started})
    return tagged(shown)
