# SPDX-License-Identifier: Apache-2.0
"""Why a deployment does not move, and why its devices failed."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, TypeVar

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from app.api.dependencies import RuntimeDep, SessionDep
from app.api.deployments import DeploymentId
from app.api.paging import CursorKey, Page, PageDep, PageRequest
from app.api.routing import V1, Route, requires
from app.api.schema import MAX_COUNT, Count, Label, Message, Shown, as_json
from app.connectors.contract import Plane
from app.domain import blockers, deployments, signatures
from app.domain.facts import Code, Who
from app.models import Ring
from app.security import Permission

router = APIRouter(prefix=V1 + "/deployments/{deployment_id}", tags=["deployments"], route_class=Route)

IN_ORDER: CursorKey[int] = CursorKey(Annotated[int, Field(ge=0, le=MAX_COUNT)])
Item = TypeVar("Item")


class BlockerRead(Shown):
    """One reason. `subject` is `deployment` or `<ring>/<plane>`; `who_can_act` a role, or `nobody`.

    `next_check_at` is when it is looked at again by itself; null: not before somebody acts.
    """

    code: Code
    subject: Label
    since: datetime | None
    next_check_at: datetime | None
    unblocks_when: Message
    who_can_act: Who


class BlockerPage(Page[BlockerRead]):
    """Some blockers, and where to go on."""


class FailureCause(Shown):
    """Devices that failed for the same reason: so many `of` all that failed, on these lanes."""

    cause: Message
    devices: Count
    of: Count
    lanes: Annotated[list[Label], Field(max_length=len(Ring) * len(Plane))]


class FailurePage(Page[FailureCause]):
    """Some causes, and where to go on."""


def part(found: Sequence[Item], page: PageRequest) -> tuple[Sequence[Item], str | None]:
    """What of a short list is on this page, and the cursor of the next."""
    begin = IN_ORDER.decode(page) or 0
    end = begin + page.limit
    return found[begin:end], IN_ORDER.encode(end if end < len(found) else None, page)


@router.get("/blockers", response_model=BlockerPage, summary="Read why a deployment does not move")
@requires(Permission.READ)
async def list_blockers(
    deployment_id: DeploymentId, session: SessionDep, runtime: RuntimeDep, page: PageDep
) -> Response:
    """Empty exactly when it moves or is over: the answers of the very functions that hold it."""
    now, limits = runtime.clock(), runtime.limits
    found = await blockers.of_deployment(session, deployment_id, now=now, limits=limits)
    shown, cursor = part(found, page)
    return as_json(
        BlockerPage(items=[BlockerRead.model_validate(each) for each in shown], next_cursor=cursor)
    )


@router.get("/failures", response_model=FailurePage, summary="Read why a deployment's devices failed")
@requires(Permission.READ)
async def list_failures(deployment_id: DeploymentId, session: SessionDep, page: PageDep) -> Response:
    """The failed devices by cause, the commonest first; names, ids, paths and times make no difference."""
    await deployments.exists(session, deployment_id)
    shown, cursor = part(await signatures.of_failures(session, deployment_id), page)
    return as_json(
        FailurePage(items=[FailureCause.model_validate(each) for each in shown], next_cursor=cursor)
    )
