# SPDX-License-Identifier: Apache-2.0
"""What an intent would do, told before it is submitted; nothing is stored and no plane is called."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field
from pydantic_core import to_json
from starlette.responses import Response

from app.api.dependencies import CallDep, Service, ServiceDep, SessionDep
from app.api.intents import DeploymentCreate, surroundings
from app.api.routing import V1, Route, requires
from app.api.schema import DIGEST_FORM, MAX_COUNT, Count, Label, Message, Shown
from app.connectors.contract import Plane
from app.domain import budgets, forecast, freezes, intents
from app.domain.facts import Code, Facts, Who
from app.domain.forecast import Outlook
from app.domain.intents import Plan
from app.models import Ring, WayBack
from app.resilience import BreakerState
from app.security import Permission

router = APIRouter(prefix=V1 + "/deployments", tags=["deployments"], route_class=Route)

Offset = Annotated[float | None, Field(ge=0, le=MAX_COUNT, description="Seconds from the beginning.")]
AWAY = frozenset({BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.ISOLATED})


class ObstacleRead(Shown):
    """What has to be waited for. `until`: seconds from the beginning, for what ends by itself."""

    code: Code
    subject: Label
    until: Offset
    unblocks_when: Message
    who_can_act: Who


class LaneForecast(Shown):
    """One ring on one plane. More failures than `rolls_back_above` take the deployment back everywhere.

    `devices` is null where they were never counted; `plane_calls` are HTTP requests at most, without those
    that carry the package; `earliest_end` is null where nobody can tell.
    """

    plane: Plane
    devices: Count | None
    earliest_start: Offset
    earliest_end: Offset
    effects: Count
    measurements: Count
    plane_calls: Count
    rolls_back_above: Count
    way_back: WayBack | None
    waits: Annotated[list[ObstacleRead], Field(max_length=200)]


class RingForecast(Shown):
    """One ring; `needs` is what only a person can give before it begins."""

    ring: Ring
    earliest_start: Offset
    earliest_end: Offset
    devices_at_risk: Count
    plane_calls: Count
    needs: Annotated[list[ObstacleRead], Field(max_length=200)]
    lanes: Annotated[list[LaneForecast], Field(max_length=len(Plane))]


class ForecastRead(Shown):
    """What the intent would do if every device succeeded and every person acted at once.

    `digest` is over everything else: the same input has the same forecast, byte for byte.
    """

    digest: Annotated[str, Field(pattern=DIGEST_FORM, min_length=64, max_length=64)]
    risk_score: Annotated[int, Field(ge=0, le=100)]
    requires_cab_approval: bool
    gate_policy: Label
    starts_at: datetime | None
    earliest_end: Offset
    plane_calls: Count
    effects: Count
    devices: Count
    peak_devices_at_risk: Count
    irreversible: Annotated[
        list[Plane], Field(max_length=len(Plane), description="Planes that could not take it back.")
    ]
    unknown_until_asked: Annotated[
        list[Plane],
        Field(max_length=len(Plane), description="Planes that are asked in LAB whether they can."),
    ]
    rings: Annotated[list[RingForecast], Field(max_length=len(Ring))]


@router.post("/forecast", response_model=ForecastRead, summary="Tell what a deployment would do")
@requires(Permission.DEPLOYMENT_CREATE)
async def forecast_deployment(
    body: DeploymentCreate, service: ServiceDep, session: SessionDep, call: CallDep
) -> Response:
    """By ring: the earliest end, plane calls, devices at risk, what may stop it, what cannot be undone."""
    around = await surroundings(service)
    plan = intents.plan(body.to_intent(), around, correlation_id=call.correlation_id)
    now, limits = service.runtime.clock(), service.runtime.limits
    facts = Facts(
        now=now,
        freezes=await freezes.ahead(session, now),
        windows=await freezes.windows(session),
        budget=await budgets.budget(session, limits),
    )
    away = await planes_away(service, plan)
    outlook = Outlook(facts, around.targets, around.manifests, away)
    return Response(to_json(forecast.forecast(plan, outlook)), media_type="application/json")


async def planes_away(service: Service, plan: Plan) -> Mapping[Plane, tuple[Code, datetime | None]]:
    """The planes of the plan that callers are kept away from now."""
    asked = {plane.value for plane in plan.intent.packages}
    return {
        Plane(status.service): (Code.PLANE_UNAVAILABLE, status.retry_at or status.expires_at)
        for status in await service.runtime.breakers.statuses()
        if status.service in asked and status.state in AWAY
    }
