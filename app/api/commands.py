# SPDX-License-Identifier: Apache-2.0
"""What operators order of a deployment: promote, pause, resume, cancel, roll back, retry."""

from uuid import UUID

from fastapi import APIRouter
from pydantic import StrictBool
from starlette.responses import Response

from app.api.dependencies import Order, OrderDep, ServiceDep
from app.api.deployments import DeploymentId, DeploymentRead
from app.api.routing import V1, Route, requires
from app.api.schema import Command, Given, Instant, Reason, tagged
from app.domain import commands, promotion, retries, rollback
from app.domain.promotion import Override
from app.models import Deployment
from app.security import Permission

router = APIRouter(prefix=V1 + "/deployments", tags=["deployments"], route_class=Route)


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


class RetryCommand(Command):
    """`reset_budget` gives the deployment its one fresh retry budget; that needs a reason."""

    reset_budget: StrictBool = False


@router.post(
    "/{deployment_id}/promote",
    status_code=202,
    response_model=DeploymentRead,
    summary="Go on to the next ring by hand",
)
@requires(Permission.DEPLOYMENT_PROMOTE)
async def promote_deployment(
    deployment_id: DeploymentId, order: OrderDep, body: PromoteCommand | None = None
) -> Response:
    """Leave the current ring. With an `override` this takes an approver, without one a publisher."""
    override = body.override.to_override() if body and body.override else None
    order.call.require(Permission.GATE_OVERRIDE if override else Permission.DEPLOYMENT_COMMAND)
    deployment, started = await promotion.promote(
        order.session, deployment_id, override=override, **order.by, reason=reason_of(body)
    )
    return await commanded(order, deployment, started)


@router.post(
    "/{deployment_id}/pause", status_code=202, response_model=DeploymentRead, summary="Pause a deployment"
)
@requires(Permission.DEPLOYMENT_COMMAND)
async def pause_deployment(
    deployment_id: DeploymentId, order: OrderDep, body: Command | None = None
) -> Response:
    """From this answer on no new device is touched, by a rollback neither; measuring goes on."""
    deployment = await commands.pause(order.session, deployment_id, **order.by, reason=reason_of(body))
    return await commanded(order, deployment, None)


@router.post(
    "/{deployment_id}/resume", status_code=202, response_model=DeploymentRead, summary="Resume a deployment"
)
@requires(Permission.DEPLOYMENT_COMMAND)
async def resume_deployment(
    deployment_id: DeploymentId, order: OrderDep, body: Command | None = None
) -> Response:
    """Go on; nothing is repeated. Asks the board again where its request ran out undecided."""
    deployment, started = await commands.resume(
        order.session, deployment_id, **order.by, reason=reason_of(body)
    )
    return await commanded(order, deployment, started)


@router.post(
    "/{deployment_id}/cancel", status_code=202, response_model=DeploymentRead, summary="Cancel a deployment"
)
@requires(Permission.DEPLOYMENT_COMMAND)
async def cancel_deployment(
    deployment_id: DeploymentId, order: OrderDep, body: Command | None = None
) -> Response:
    """End it where it is: what is installed stays, what devices have not begun is withdrawn."""
    deployment, started = await commands.cancel(
        order.session, deployment_id, **order.by, reason=reason_of(body)
    )
    return await commanded(order, deployment, started)


@router.post(
    "/{deployment_id}/rollback",
    status_code=202,
    response_model=DeploymentRead,
    summary="Take a deployment back",
)
@requires(Permission.DEPLOYMENT_COMMAND)
async def rollback_deployment(
    deployment_id: DeploymentId, order: OrderDep, body: Command | None = None
) -> Response:
    """Remove the version from every device it may have reached, newest ring first."""
    deployment, started = await rollback.begin(
        order.session, deployment_id, **order.by, reason=reason_of(body)
    )
    return await commanded(order, deployment, started)


@router.post(
    "/{deployment_id}/retry", status_code=202, response_model=DeploymentRead, summary="Retry what failed"
)
@requires(Permission.DEPLOYMENT_COMMAND)
async def retry_deployment(
    *,
    deployment_id: DeploymentId,
    order: OrderDep,
    service: ServiceDep,
    body: RetryCommand | None = None,
) -> Response:
    """Push failed lanes and failed devices again, and nothing else, within the deployment's retry budget."""
    deployment, started = await retries.retry(
        order.session,
        deployment_id,
        manifests=service.manifests,
        limits=service.runtime.limits,
        reset_budget=body.reset_budget if body else False,
        **order.by,
        reason=reason_of(body),
    )
    return await commanded(order, deployment, started)


def reason_of(body: Command | None) -> str | None:
    """Why the command was given, if that was said."""
    return body.reason if body else None


async def commanded(order: Order, deployment: Deployment, started: UUID | None) -> Response:
    """The deployment after a command, with the operation it started, if any."""
    await order.session.refresh(deployment, ["deployment_planes"])
    shown = DeploymentRead.model_validate(deployment)
    return tagged(shown.model_copy(update={"operation_id": started}) if started else shown, 202)
