# SPDX-License-Identifier: Apache-2.0
"""Stored lanes in the connectors' words: the application that is published and the target it goes to."""

from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import App, Assignment, Target, TargetKind
from app.connectors.packages import PACKAGE
from app.domain.effects import Planned
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


def assignment_of(
    lane: RingDeployment, app: App, made: Planned, external_id: str, *, key: str | None = None
) -> Assignment:
    """What was put on the lane's target, under its own key or that of what is to be done with it."""
    return Assignment(
        key or made.key,
        app,
        external_id,
        target_of(lane),
        made_id=made.external_id,
        made_at=made.settled_at,
        baseline=made.baseline,
    )


def target_of(lane: RingDeployment) -> Target:
    """The lane's target in the plane's words."""
    return Target(TargetKind(lane.target_kind), lane.target_ref)
