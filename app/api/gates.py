# SPDX-License-Identifier: Apache-2.0
"""Gates: the policies there are, and what was measured of each lane of a deployment."""

from datetime import datetime
from typing import Annotated, Any, Self

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from app.api.dependencies import SessionDep
from app.api.deployments import DeploymentId
from app.api.paging import CursorKey, Page, PageDep, Text
from app.api.routing import V1, Route, requires
from app.api.schema import MAX_COUNT, MAX_VERSION, Label, Message, ResourceVersion, Shown, as_json
from app.connectors.contract import Plane
from app.domain import deployments, gates, policies
from app.domain.gates import Gate, Measure, Verdict
from app.domain.policies import GatePolicy
from app.models import Connectivity, Deployment, Ring, RingDeployment, StoredPolicy
from app.security import Permission

router = APIRouter(prefix=V1, route_class=Route)

BY_NAME: CursorKey[tuple[str, int]] = CursorKey(tuple[Text, Annotated[int, Field(ge=0, le=MAX_VERSION)]])
BY_LANE: CursorKey[int] = CursorKey(Annotated[int, Field(ge=0, le=1000)])
Seconds = Annotated[float, Field(ge=0, le=MAX_COUNT)]
Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(ge=0, le=MAX_COUNT)]


class GateRead(Shown):
    """What it takes to leave a ring: rates are shares of the devices targeted, the soak is in seconds."""

    min_success_rate: Share
    max_failure_rate: Share
    soak: Seconds
    min_reported: Annotated[int, Field(ge=0, le=MAX_COUNT)]
    min_coverage: Share
    confidence: Share | None
    dry_run: Annotated[list[Measure], Field(max_length=len(Measure))]

    @classmethod
    def of(cls, gate: Gate) -> Self:
        """What is shown of a gate."""
        return cls.model_validate(policies.gate_to_json(gate))


class GatePolicyRead(Shown):
    """One version of a policy: its gates, how often lanes are measured, how long devices may be silent."""

    name: Label
    version: ResourceVersion
    gates: Annotated[dict[Ring, GateRead], Field(max_length=len(Ring))]
    measure_first: Seconds
    measure_later: Seconds
    connectivity: Annotated[dict[Connectivity, Seconds], Field(max_length=len(Connectivity))]
    max_rollback_failure_rate: Share
    created_at: datetime

    @classmethod
    def of(cls, row: StoredPolicy) -> Self:
        """What is shown of a stored policy."""
        document = GatePolicy.from_json(row.document).to_json()
        return cls.model_validate({**document, "created_at": row.created_at})


class GatePolicyPage(Page[GatePolicyRead]):
    """Some policies, and where to go on."""


class CriterionRead(Shown):
    """One thing a gate looks at; one in `dry_run` keeps nothing from passing."""

    name: Measure
    threshold: Number
    measured: Number | None
    passed: bool
    dry_run: bool
    measured_at: datetime | None


class OverrideRead(Shown):
    """Who let the lane pass its gate, why, and until when the next ring must have begun."""

    actor: Label
    reason: Message
    expires_at: datetime


class GateReport(Shown):
    """The last measurement of a lane against its gate; `verdict` is null before the first."""

    ring: Ring
    plane: Plane
    verdict: Verdict | None
    reason: Label | None
    detail: Message | None
    signature: Annotated[Message | None, Field(description="Why most of the failed devices failed.")]
    measured_at: datetime | None
    criteria: Annotated[list[CriterionRead], Field(max_length=len(Measure))]
    override: OverrideRead | None

    @classmethod
    def of(cls, deployment: Deployment, lane: RingDeployment) -> Self:
        """What is shown of a lane."""
        report: dict[str, Any] = lane.gate_report or {}
        at = report.get("measured_at")
        rows = report.get("criteria") or _unmeasured(deployment, lane)
        return cls.model_validate(
            {
                "ring": lane.ring,
                "plane": lane.plane,
                **{name: report.get(name) for name in ("verdict", "reason", "detail", "signature")},
                "measured_at": at,
                "criteria": [{"dry_run": False, **row, "measured_at": at} for row in rows],
                "override": lane.override,
            }
        )


def _unmeasured(deployment: Deployment, lane: RingDeployment) -> list[dict[str, Any]]:
    gate = deployments.policy_of(deployment).gates[lane.ring]
    asked = gates.asked(gate, in_lab=lane.position == 0)
    return [
        {
            "name": name,
            "threshold": threshold,
            "measured": None,
            "passed": False,
            "dry_run": name in gate.dry_run,
        }
        for name, threshold in asked
    ]


class GateReportPage(Page[GateReport]):
    """Some lanes' reports, and where to go on."""


@router.get("/gate-policies", response_model=GatePolicyPage, summary="List gate policies", tags=["gates"])
@requires(Permission.READ)
async def list_gate_policies(session: SessionDep, page: PageDep) -> Response:
    """Every version of every policy that was in force, by name and version."""
    rows, following = await policies.page(session, after=BY_NAME.decode(page), limit=page.limit)
    items = [GatePolicyRead.of(row) for row in rows]
    return as_json(GatePolicyPage(items=items, next_cursor=BY_NAME.encode(following, page)))


@router.get(
    "/deployments/{deployment_id}/gates",
    response_model=GateReportPage,
    summary="Read a deployment's gates",
    tags=["deployments"],
)
@requires(Permission.READ)
async def list_deployment_gates(deployment_id: DeploymentId, session: SessionDep, page: PageDep) -> Response:
    """For each lane every criterion with its threshold, what was measured last, and the verdict."""
    deployment = await deployments.get(session, deployment_id)
    begin = BY_LANE.decode(page) or 0
    shown = deployment.lanes[begin : begin + page.limit]
    end = begin + len(shown)
    following = end if end < len(deployment.lanes) else None
    items = [GateReport.of(deployment, lane) for lane in shown]
    return as_json(GateReportPage(items=items, next_cursor=BY_LANE.encode(following, page)))
