# SPDX-License-Identifier: Apache-2.0
"""The ledger of a deployment: what was asked of which plane, and what became of it."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from app.api.dependencies import SessionDep
from app.api.deployments import DeploymentId
from app.api.operations import FailureRead
from app.api.paging import CursorKey, Page, PageDep
from app.api.routing import V1, Route, requires
from app.api.schema import Shown, as_json
from app.connectors.contract import Action, Plane
from app.domain import deployments, effects
from app.models import EffectState, Ring
from app.security import Permission

router = APIRouter(
    prefix=V1 + "/deployments/{deployment_id}/effects", tags=["deployments"], route_class=Route
)

PLANNED: CursorKey[UUID] = CursorKey(UUID)


class EffectRead(Shown):
    """One change asked of a plane; ``ring`` is null for what is done once for all rings."""

    id: UUID
    key: Annotated[str, Field(max_length=200)]
    operation_id: UUID
    ring: Ring | None
    plane: Plane
    action: Action
    state: EffectState
    external_id: Annotated[str | None, Field(max_length=1000)]
    planned_at: datetime
    sent_at: datetime | None
    settled_at: datetime | None
    error: FailureRead | None


class EffectPage(Page[EffectRead]):
    """Some effects, and where to go on."""


@router.get("", response_model=EffectPage, summary="List a deployment's effects")
@requires(Permission.READ)
async def list_effects(deployment_id: DeploymentId, session: SessionDep, page: PageDep) -> Response:
    """Every change asked of a plane, in the order in which it was written down."""
    await deployments.exists(session, deployment_id)
    after = PLANNED.decode(page)
    rows, following = await effects.page(session, deployment_id, after=after, limit=page.limit)
    items = [EffectRead.model_validate(row) for row in rows]
    return as_json(EffectPage(items=items, next_cursor=PLANNED.encode(following, page)))
