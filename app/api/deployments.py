# SPDX-License-Identifier: Apache-2.0
"""Deployments: list, read with lanes. Submitting is ``intents``', ordering ``commands``'."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query
from pydantic import Field
from starlette.responses import Response

from app.api.dependencies import SessionDep
from app.api.paging import CursorKey, Newest, Page, PageDep
from app.api.routing import V1, Route, requires
from app.api.schema import (
    Count,
    Criticality,
    Instant,
    Label,
    Message,
    ResourceVersion,
    Shown,
    as_json,
    tagged,
)
from app.connectors.contract import Plane
from app.domain import deployments
from app.domain.deployments import Filters
from app.models import DeploymentStatus, LaneStatus, Promotion, Ring, WayBack
from app.security import Permission

router = APIRouter(prefix=V1 + "/deployments", tags=["deployments"], route_class=Route)

DeploymentId = Annotated[UUID, Path(description="The deployment's id.")]
NEWEST: CursorKey[tuple[datetime, UUID]] = CursorKey(Newest)


class LaneRead(Shown):
    """One ring on one plane. Counters are of its devices; ``success_rate`` is a share of ``targeted``."""

    ring: Ring
    plane: Plane
    status: LaneStatus
    operation_id: UUID | None
    targeted: Count
    success_count: Count
    failure_count: Count
    unreachable_count: Count
    late_count: Count
    success_rate: Annotated[float | None, Field(ge=0, le=1)]
    external_id: Annotated[str | None, Field(max_length=1000)]
    started_at: datetime | None
    finished_at: datetime | None


class RiskContribution(Shown):
    """What one factor adds to the score."""

    factor: Label
    weight: Annotated[int, Field(ge=0, le=100)]
    value: Annotated[float, Field(ge=0, le=1)]
    contribution: Annotated[float, Field(ge=0, le=100)]


class DeploymentRead(Shown):
    """A deployment with its lanes, ring by ring."""

    id: UUID
    correlation_id: UUID
    app_name: Label
    app_version: Label
    planes: Annotated[list[Plane], Field(max_length=len(Plane))]
    target_ring: Ring
    promotion: Promotion
    privileged: bool
    criticality: Criticality
    rollback_version: Label | None
    start_at: datetime | None
    status: DeploymentStatus
    paused: bool
    pause_reason: Message | None
    risk_score: Annotated[int, Field(ge=0, le=100)]
    risk_model: Label
    risk_breakdown: Annotated[list[RiskContribution], Field(max_length=100)]
    requires_cab_approval: bool
    ways_back: Annotated[
        dict[Plane, WayBack | None],
        Field(max_length=len(Plane), description="How each plane can undo it; null until it was asked."),
    ]
    gate_policy: Label
    version: ResourceVersion
    operation_id: UUID | None
    submitted_by: Label
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    lanes: Annotated[list[LaneRead], Field(max_length=len(Ring) * len(Plane))]


class DeploymentPage(Page[DeploymentRead]):
    """Some deployments, and where to go on."""


@router.get("", response_model=DeploymentPage, summary="List deployments, newest first")
@requires(Permission.READ)
async def list_deployments(
    *,
    session: SessionDep,
    page: PageDep,
    status: DeploymentStatus | None = None,
    app_name: Annotated[str | None, Query(min_length=1, max_length=200)] = None,
    target_ring: Ring | None = None,
    plane: Plane | None = None,
    correlation_id: UUID | None = None,
    created_after: Instant | None = None,
) -> Response:
    """All deployments with their lanes; the filters narrow together."""
    filters = Filters(status, app_name, target_ring, plane, correlation_id, created_after)
    before = NEWEST.decode(page)
    rows, following = await deployments.page(session, filters, before=before, limit=page.limit)
    items = [DeploymentRead.model_validate(row) for row in rows]
    return as_json(DeploymentPage(items=items, next_cursor=NEWEST.encode(following, page)))


@router.get(
    "/{deployment_id:uuid}", response_model=DeploymentRead, summary="Read a deployment with its lanes"
)
@requires(Permission.READ)
async def read_deployment(deployment_id: DeploymentId, session: SessionDep) -> Response:
    """Where the deployment and each of its lanes stand."""
    return tagged(DeploymentRead.model_validate(await deployments.get(session, deployment_id, whole=True)))
