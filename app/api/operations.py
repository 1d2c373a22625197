# SPDX-License-Identifier: Apache-2.0
"""Durable work: list, read, cancel, retry."""

from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from fastapi import APIRouter, Path, Query
from pydantic import Field
from starlette.responses import Response

from app.api.dependencies import CallDep, ExpectedVersion, SessionDep
from app.api.paging import CursorKey, Newest, Page, PageDep
from app.api.routing import V1, Route, requires
from app.api.schema import Command, Count, Label, Message, Object, ResourceVersion, Shown, as_json, tagged
from app.domain import operations, outcomes
from app.domain.operations import OPEN, OperationKind
from app.models import Operation, OperationStatus
from app.security import Permission

router = APIRouter(prefix=V1 + "/operations", tags=["operations"], route_class=Route)

OperationId = Annotated[UUID, Path(description="The operation's id.")]
NEWEST: CursorKey[tuple[datetime, UUID]] = CursorKey(Newest)


class SubjectRead(Shown):
    """What an operation is about."""

    type: Label
    id: Label


class FailureRead(Shown):
    """Why an operation failed or waits; ``class`` is one of the five public error classes."""

    error_class: Annotated[str, Field(alias="class", max_length=100)]
    code: Label
    message: Message
    service: Label | None = None


class OperationRead(Shown):
    """Work that goes on by itself; `next_attempt_at` is null while it runs and once it has ended."""

    id: UUID
    kind: OperationKind
    subject: SubjectRead
    deployment_id: UUID | None
    correlation_id: UUID
    status: OperationStatus
    cancel_requested: bool
    attempt: Count
    max_attempts: Count
    deferrals: Count
    next_attempt_at: datetime | None
    deadline: datetime | None
    error: FailureRead | None
    result: Object | None
    version: ResourceVersion
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, row: Operation) -> Self:
        """What is shown of a row."""
        derived: dict[str, Any] = {
            "subject": {"type": row.subject_type, "id": row.subject_id},
            "next_attempt_at": row.run_after if row.status in OPEN else None,
        }
        plain = {name: getattr(row, name) for name in cls.model_fields if name not in derived}
        return cls.model_validate(plain | derived)


class OperationPage(Page[OperationRead]):
    """Some operations, and where to go on."""


@router.get("", response_model=OperationPage, summary="List operations, newest first")
@requires(Permission.READ)
async def list_operations(
    *,
    session: SessionDep,
    page: PageDep,
    kind: OperationKind | None = None,
    status: OperationStatus | None = None,
    subject_type: Annotated[str | None, Query(min_length=1, max_length=100)] = None,
    subject_id: Annotated[str | None, Query(min_length=1, max_length=200)] = None,
    deployment_id: UUID | None = None,
) -> Response:
    """All operations; the filters narrow together."""
    found = await operations.find(
        session,
        limit=page.limit + 1,
        before=NEWEST.decode(page),
        kind=kind,
        status=status,
        subject_type=subject_type,
        subject_id=subject_id,
        deployment_id=deployment_id,
    )
    shown, more = found[: page.limit], len(found) > page.limit
    following = NEWEST.encode((shown[-1].created_at, shown[-1].id), page) if more else None
    return as_json(OperationPage(items=[OperationRead.of(row) for row in shown], next_cursor=following))


@router.get("/{operation_id}", response_model=OperationRead, summary="Read an operation")
@requires(Permission.READ)
async def read_operation(operation_id: OperationId, session: SessionDep) -> Response:
    """How far the work is, and what became of it."""
    return tagged(OperationRead.of(await operations.get(session, operation_id)))


@router.post(
    "/{operation_id}/cancel", status_code=202, response_model=OperationRead, summary="Cancel an operation"
)
@requires(Permission.OPERATION_COMMAND)
async def cancel_operation(
    *,
    operation_id: OperationId,
    session: SessionDep,
    call: CallDep,
    version: ExpectedVersion,
    body: Command | None = None,
) -> Response:
    """Stop the work; needs no live worker. One that runs is told within seconds."""
    call.tell("cancel_operation", operation_id, body)
    ended = outcomes.operation_ended
    return tagged(
        OperationRead.of(await operations.cancel(session, operation_id, ended=ended, version=version)), 202
    )


@router.post(
    "/{operation_id}/retry", status_code=202, response_model=OperationRead, summary="Retry an operation"
)
@requires(Permission.OPERATION_COMMAND)
async def retry_operation(
    *,
    operation_id: OperationId,
    session: SessionDep,
    call: CallDep,
    version: ExpectedVersion,
    body: Command | None = None,
) -> Response:
    """Queue work that FAILED or was CANCELLED again, with fresh attempts."""
    call.tell("retry_operation", operation_id, body)
    revived = outcomes.operation_revived
    row = await operations.revive(session, operation_id, revived=revived, version=version)
    return tagged(OperationRead.of(row), 202)
