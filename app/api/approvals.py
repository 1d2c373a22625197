# SPDX-License-Identifier: Apache-2.0
"""The queue of the change advisory board, and its decisions."""

from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from fastapi import APIRouter, Path
from pydantic import Field
from starlette.responses import Response

from app.api.dependencies import OrderDep, SessionDep
from app.api.paging import CursorKey, Newest, Page, PageDep
from app.api.routing import V1, Route, requires
from app.api.schema import (
    Digest,
    Given,
    Instant,
    Label,
    Message,
    Reason,
    ResourceVersion,
    Shown,
    as_json,
    tagged,
)
from app.connectors.contract import Plane
from app.domain import approvals, board
from app.domain.board import ExceptionGiven, Verdict
from app.models import Approval, ApprovalStatus, Ring
from app.security import Permission

router = APIRouter(prefix=V1 + "/approvals", tags=["approvals"], route_class=Route)

ApprovalId = Annotated[UUID, Path(description="The request's id.")]
NEWEST: CursorKey[tuple[datetime, UUID]] = CursorKey(Newest)
OF_DEPLOYMENT = (
    *("correlation_id", "app_name", "app_version", "planes", "target_ring"),
    *("risk_score", "privileged"),
)


class ExceptionRead(Shown):
    """A risk that is borne until ``expires_at``, and what makes up for it."""

    expires_at: datetime
    compensating_controls: Message


class ApprovalRead(Shown):
    """A request to the board: what is to be decided, until when, and what was decided.

    `digest` is that of application, version, packages, planes and target ring: the decision is bound to it.
    """

    id: UUID
    deployment_id: UUID
    correlation_id: UUID
    app_name: Label
    app_version: Label
    planes: Annotated[list[Plane], Field(max_length=len(Plane))]
    target_ring: Ring
    risk_score: Annotated[int, Field(ge=0, le=100)]
    privileged: bool
    irreversible: Annotated[
        list[Plane],
        Field(max_length=len(Plane), description="Planes that have no way back."),
    ]
    status: ApprovalStatus
    digest: Digest
    submitted_by: Label
    created_at: datetime
    expires_at: datetime
    decided_by: Label | None
    decided_at: datetime | None
    reason: Message | None
    conditions: Message | None
    exception: ExceptionRead | None
    version: ResourceVersion
    operation_id: Annotated[UUID | None, Field(description="The work that this call has started.")] = None

    @classmethod
    def of(cls, row: Approval, started: UUID | None = None) -> Self:
        """What is shown of a request, read with its deployment."""
        derived: dict[str, Any] = {
            "decided_at": row.settled_at if row.decided_by else None,
            "exception": _exception_of(row),
            "operation_id": started,
        }
        derived |= {name: getattr(row.deployment, name) for name in OF_DEPLOYMENT}
        plain = {name: getattr(row, name) for name in cls.model_fields if name not in derived}
        return cls.model_validate(plain | derived)


def _exception_of(row: Approval) -> dict[str, Any] | None:
    if row.exception_expires_at is None:
        return None
    return {
        "expires_at": row.exception_expires_at,
        "compensating_controls": row.compensating_controls,
    }


class ApprovalPage(Page[ApprovalRead]):
    """Some requests, and where to go on."""


class ExceptionGrant(Given):
    """Needed above a score of 75 and for a critical vulnerability; lasts 1 to 90 days, 30 unless said."""

    compensating_controls: Reason
    expires_at: Instant | None = None


class Rejection(Given):
    """A decision is final and says why. With a `digest` it is refused (409) for any other content."""

    reason: Reason
    conditions: Reason | None = None
    digest: Digest | None = None

    def to_verdict(self) -> Verdict:
        """The same in the domain's words."""
        return Verdict(self.reason, self.conditions, digest=self.digest)


class Decision(Rejection):
    """A yes, with conditions if there are any, and with an exception where the risk asks for one."""

    exception: ExceptionGrant | None = None

    def to_verdict(self) -> Verdict:
        """The same in the domain's words."""
        given = self.exception
        exception = ExceptionGiven(given.compensating_controls, given.expires_at) if given else None
        return Verdict(self.reason, self.conditions, exception, self.digest)


@router.get("", response_model=ApprovalPage, summary="List requests to the board, newest first")
@requires(Permission.READ)
async def list_approvals(
    *,
    session: SessionDep,
    page: PageDep,
    status: ApprovalStatus | None = None,
    deployment_id: UUID | None = None,
) -> Response:
    """All requests; `status=PENDING` is the queue."""
    rows, following = await approvals.page(
        session, status=status, deployment_id=deployment_id, before=NEWEST.decode(page), limit=page.limit
    )
    items = [ApprovalRead.of(row) for row in rows]
    return as_json(ApprovalPage(items=items, next_cursor=NEWEST.encode(following, page)))


@router.get("/{approval_id}", response_model=ApprovalRead, summary="Read a request to the board")
@requires(Permission.READ)
async def read_approval(approval_id: ApprovalId, session: SessionDep) -> Response:
    """What is asked, until when, and what was decided."""
    return tagged(ApprovalRead.of(await approvals.get(session, approval_id)))


@router.post(
    "/{approval_id}/approve", status_code=202, response_model=ApprovalRead, summary="Approve a deployment"
)
@requires(Permission.APPROVAL_DECIDE)
async def approve_approval(approval_id: ApprovalId, body: Decision, order: OrderDep) -> Response:
    """Say yes: what waited for it goes on by itself. Nobody decides on what they submitted."""
    row, started = await board.approve(order.session, approval_id, body.to_verdict(), **order.by)
    return tagged(ApprovalRead.of(row, started), 202)


@router.post(
    "/{approval_id}/reject", status_code=202, response_model=ApprovalRead, summary="Reject a deployment"
)
@requires(Permission.APPROVAL_DECIDE)
async def reject_approval(approval_id: ApprovalId, body: Rejection, order: OrderDep) -> Response:
    """Say no: the deployment ends; what is installed stays, what devices have not begun is withdrawn."""
    row, started = await board.reject(order.session, approval_id, body.to_verdict(), **order.by)
    return tagged(ApprovalRead.of(row, started), 202)
