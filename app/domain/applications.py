# SPDX-License-Identifier: Apache-2.0
"""Stored lanes in the connectors' words: the application that is published and the target it goes to."""

from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Action, App, Assignment, Target, TargetKind
from app.connectors.packages import PACKAGE
from app.domain import effects
from app.models import Deployment, DeploymentPlane, RingDeployment


async def plane_of(session: AsyncSession, lane: RingDeployment) -> DeploymentPlane:
    """What the lane's plane gets in this deployment."""
    return await session.get_one(DeploymentPlane, (lane.deployment_id, lane.plane))


def application(deployment: Deployment, plane: DeploymentPlane) -> App:
    """The application as the connector publishes it; the key is filled in for each effect."""
    return App(
        key="",
        marker=f"{deployment.id}/{plane.plane}",
        name=deployment.app_name,
        version=deployment.app_version,
        package=PACKAGE.validate_python(plane.package),
        correlation_id=deployment.correlation_id,
    )


async def made_on(
    session: AsyncSession, deployment: Deployment, lane: RingDeployment, *, key: str | None = None
) -> Assignment:
    """What was put on the lane's target, under its own key or that of what is to be done with it."""
    made = await effects.find_newest(session, lane, Action.ASSIGN)
    return Assignment(
        key or made.key,
        application(deployment, await plane_of(session, lane)),
        lane.external_id or await effects.published_id(session, lane),
        target_of(lane),
        made_id=made.external_id,
        made_at=made.settled_at,
        baseline=made.baseline,
    )


def target_of(lane: RingDeployment) -> Target:
    """The lane's target in the plane's words."""
    return Target(TargetKind(lane.target_kind), lane.target_ref)
