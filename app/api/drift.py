# SPDX-License-Identifier: Apache-2.0
"""Where planes have something else than was decided."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from fastapi import APIRouter, Depends, Path
from starlette.responses import Response

from app.api.dependencies import SessionDep
from app.api.paging import CursorKey, Page, PageDep
from app.api.routing import V1, Route, requires
from app.api.schema import Count, Message, Object, ResourceVersion, Shown, as_json, tagged
from app.connectors.contract import Plane
from app.domain import drift
from app.models import Drift, DriftStatus, DriftType, Ring, Severity
from app.security import Permission

router = APIRouter(prefix=V1 + "/drift", tags=["drift"], route_class=Route)

DriftId = Annotated[UUID, Path(description="The difference's id.")]
NEWEST: CursorKey[UUID] = CursorKey(UUID)


class DriftRead(Shown):
    """One difference between what was decided for a lane and what its plane has.

    `SUSPECTED` was seen once, `OPEN` is repaired without a person, `ESCALATED` waits for one. `expected` and
    `observed` are in words of the type.
    """

    id: UUID
    deployment_id: UUID
    ring: Ring
    plane: Plane
    type: DriftType
    severity: Severity
    status: DriftStatus
    detail: Message
    expected: Object
    observed: Object
    first_seen_at: datetime
    last_seen_at: datetime
    resolved_at: datetime | None
    repairs: Count
    next_repair_at: datetime | None
    operation_id: UUID | None
    version: ResourceVersion

    @classmethod
    def of(cls, row: Drift) -> Self:
        """What is shown of a difference; when it is repaired next only while it is."""
        shown = {name: getattr(row, name) for name in cls.model_fields}
        if row.status is not DriftStatus.OPEN:
            shown["next_repair_at"] = None
        return cls.model_validate(shown)


class DriftPage(Page[DriftRead]):
    """Some differences, and where to go on."""


@dataclass(frozen=True, slots=True)
class Filters:
    """What the list is narrowed by."""

    deployment_id: UUID | None = None
    type: DriftType | None = None
    severity: Severity | None = None
    status: DriftStatus | None = None
    plane: Plane | None = None

    def given(self) -> dict[str, Any]:
        """Those that narrow it."""
        named = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in named.items() if value is not None}


@router.get("", response_model=DriftPage, summary="List drift, newest first")
@requires(Permission.READ)
async def list_drift(session: SessionDep, page: PageDep, filters: Annotated[Filters, Depends()]) -> Response:
    """Every difference that was seen, those that are resolved too."""
    rows, following = await drift.page(session, filters.given(), before=NEWEST.decode(page), limit=page.limit)
    items = [DriftRead.of(row) for row in rows]
    return as_json(DriftPage(items=items, next_cursor=NEWEST.encode(following, page)))


@router.get("/{drift_id}", response_model=DriftRead, summary="Read one drift")
@requires(Permission.READ)
async def read_drift(drift_id: DriftId, session: SessionDep) -> Response:
    """What differs, since when, and what is done about it."""
    return tagged(DriftRead.of(await drift.get(session, drift_id)))
