# SPDX-License-Identifier: Apache-2.0
"""Deployments: submit, list, read with lanes, promote, roll back."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query
from pydantic import Field
from starlette.responses import Response

from app.api.dependencies import CallDep, ExpectedVersion, RuntimeDep, SessionDep
from app.api.paging import CursorKey, Newest, Page, PageDep
from app.api.routing import Route, requires
from app.api.schema import (
    Command,
    Count,
    Criticality,
    Given,
    Instant,
    Label,
    Reason,
    ResourceVersion,
    Shown,
    as_json,
    tagged,
)
from app.connectors.contract import Plane
from app.domain import deployments, promotion, rollback
from app.domain.deployments import Filters
from app.domain.promotion import Override
from app.models import Deployment, DeploymentStatus, LaneStatus, Promotion, Ring
from app.security import Permission

router = APIRouter(prefix="/deployments", tags=["deployments"], route_class=Route)

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
    risk_score: Annotated[int, Field(ge=0, le=100)]
    risk_model: Label
    risk_breakdown: Annotated[list[RiskContribution], Field(max_length=100)]
    requires_cab_approval: bool
    gate_policy: Label
    version: ResourceVersion
    operation_id: UUID | None
    submitted_by: Label
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    lanes: Annotated[list[LaneRead], Field(max_length=len(Ring) * len(Plane))]


class OverrideGiven(Given):
    """Why a gate that was not passed is passed over, and until when that holds."""

    reason: Reason
    expires_at: Instant

    def to_override(self) -> Override:
        """The same in the domain's words."""
        return Override(self.reason, self.expires_at)


class PromoteCommand(Command):
    """Held lanes need an override, an empty ring a reason."""

    override: OverrideGiven | None = None


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


@router.get("/{deployment_id}", response_model=DeploymentRead, summary="Read a deployment with its lanes")
@requires(Permission.READ)
async def read_deployment(deployment_id: DeploymentId, session: SessionDep) -> Response:
    """Where the deployment and each of its lanes stand."""
    return tagged(DeploymentRead.model_validate(await deployments.get(session, deployment_id)))


@router.post(
    "/{deployment_id}/promote",
    status_code=202,
    response_model=DeploymentRead,
    summary="Go on to the next ring by hand",
)
@requires(Permission.DEPLOYMENT_PROMOTE)
async def promote_deployment(
    *,
    deployment_id: DeploymentId,
    session: SessionDep,
    runtime: RuntimeDep,
    call: CallDep,
    version: ExpectedVersion,
    body: PromoteCommand | None = None,
) -> Response:
    """Leave the current ring. With an `override` this takes an approver, without one a publisher."""
    given = body or PromoteCommand()
    override = given.override.to_override() if given.override else None
    call.require(Permission.GATE_OVERRIDE if override else Permission.DEPLOYMENT_COMMAND)
    deployment, started = await promotion.promote(
        session,
        deployment_id,
        actor=call.actor.name,
        now=runtime.clock(),
        reason=given.reason,
        override=override,
        version=version,
    )
    return commanded(deployment, started)


@router.post(
    "/{deployment_id}/rollback",
    status_code=202,
    response_model=DeploymentRead,
    summary="Take a deployment back",
)
@requires(Permission.DEPLOYMENT_COMMAND)
async def rollback_deployment(
    *,
    deployment_id: DeploymentId,
    session: SessionDep,
    runtime: RuntimeDep,
    call: CallDep,
    version: ExpectedVersion,
    body: Command | None = None,
) -> Response:
    """Remove the version from every device it may have reached, newest ring first."""
    deployment, started = await rollback.begin(
        session,
        deployment_id,
        actor=call.actor.name,
        now=runtime.clock(),
        reason=body.reason if body else None,
        version=version,
    )
    return commanded(deployment, started)


def commanded(deployment: Deployment, started: UUID | None) -> Response:
    """The deployment after a command, with the operation it started, if any."""
    shown = DeploymentRead.model_validate(deployment)
    return tagged(shown.model_copy(update={"operation_id": started}) if started else shown, 202)
