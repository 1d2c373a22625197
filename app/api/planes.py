# SPDX-License-Identifier: Apache-2.0
"""Planes: which there are, what each can do, and whether it answers."""

from typing import Annotated, Self
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from app.api.dependencies import CallDep, RuntimeDep, SessionDep
from app.api.paging import CursorKey, Page, PageDep
from app.api.routing import V1, Route, requires
from app.api.schema import Command, Count, Label, Message, Shown, as_json
from app.connectors.catalogue import MANIFESTS
from app.connectors.contract import Capability, PackageKind, Plane, TargetKind
from app.domain import planes
from app.errors import FieldError, PlaneNotConfigured
from app.runtime import Runtime
from app.security import Permission

router = APIRouter(prefix=V1 + "/planes", tags=["planes"], route_class=Route)

IN_ORDER: CursorKey[Plane] = CursorKey(Plane)
NO_CONNECTOR = "it has no connector in this release"


class LimitationRead(Shown):
    """What the plane cannot do, and why."""

    capability: Capability
    reason: Message


class RateLimitRead(Shown):
    """How much the plane takes: so many requests within so many seconds, of which kind and whose."""

    requests: Annotated[int, Field(ge=1, le=1_000_000)]
    seconds: Annotated[float, Field(ge=1, le=86_400)]
    applies_to: Label


class PlaneRead(Shown):
    """One device manager. ``missing`` names the setting that keeps it from being configured.

    Each capability is in ``capabilities`` or, with the reason, in ``limitations``.
    """

    plane: Plane
    title: Label | None
    configured: bool
    missing: Message | None
    base_url: Annotated[str | None, Field(max_length=2000)]
    package_kinds: Annotated[list[PackageKind], Field(max_length=len(PackageKind))]
    target_kinds: Annotated[list[TargetKind], Field(max_length=len(TargetKind))]
    capabilities: Annotated[list[Capability], Field(max_length=len(Capability))]
    limitations: Annotated[list[LimitationRead], Field(max_length=len(Capability))]
    rate_limits: Annotated[list[RateLimitRead], Field(max_length=100)]
    max_concurrency: Annotated[int | None, Field(ge=1, le=10_000)]
    names_devices: Annotated[
        Count,
        Field(description="A removal may name so many devices; of more it reaches whoever the target holds."),
    ]
    sources: Annotated[list[Message], Field(max_length=100)]

    @classmethod
    def of(cls, plane: Plane, runtime: Runtime) -> Self:
        """What this process knows of a plane, without calling it."""
        manifest, connector = MANIFESTS.get(plane), runtime.connectors.get(plane)
        cannot = sorted(manifest.cannot.items()) if manifest else []
        return cls(
            plane=plane,
            title=manifest.title if manifest else None,
            configured=connector is not None,
            missing=None if connector else runtime.unconfigured.get(plane, NO_CONNECTOR),
            base_url=connector.base_url if connector else None,
            package_kinds=sorted(manifest.package_kinds) if manifest else [],
            target_kinds=sorted(manifest.target_kinds) if manifest else [],
            capabilities=sorted(manifest.capabilities) if manifest else [],
            names_devices=manifest.names_devices if manifest else 0,
            limitations=[LimitationRead(capability=what, reason=why) for what, why in cannot],
            rate_limits=[RateLimitRead.model_validate(limit) for limit in manifest.rate_limits]
            if manifest
            else [],
            max_concurrency=manifest.max_concurrency if manifest else None,
            sources=list(manifest.sources) if manifest else [],
        )


class PlaneCheck(PlaneRead):
    """The plane, and the operation whose outcome says whether it answers."""

    operation_id: UUID


class PlanePage(Page[PlaneRead]):
    """Some planes, and where to go on."""


@router.get("", response_model=PlanePage, summary="List planes")
@requires(Permission.READ)
async def list_planes(runtime: RuntimeDep, page: PageDep) -> Response:
    """Every plane this product knows by name, configured or not."""
    known, after = list(Plane), IN_ORDER.decode(page)
    rest = known[known.index(after) + 1 :] if after else known
    shown = rest[: page.limit]
    following = shown[-1] if len(rest) > page.limit else None
    items = [PlaneRead.of(plane, runtime) for plane in shown]
    return as_json(PlanePage(items=items, next_cursor=IN_ORDER.encode(following, page)))


@router.get("/{plane}", response_model=PlaneRead, summary="Read a plane")
@requires(Permission.READ)
async def read_plane(plane: Plane, runtime: RuntimeDep) -> Response:
    """What is configured and what it can do; makes no call."""
    return as_json(PlaneRead.of(plane, runtime))


@router.post("/{plane}/check", status_code=202, response_model=PlaneCheck, summary="Check a plane")
@requires(Permission.PLANE_CHECK)
async def check_plane(
    plane: Plane, session: SessionDep, runtime: RuntimeDep, call: CallDep, body: Command | None = None
) -> Response:
    """Have a worker make a real, harmless call; the operation's result says what came of it."""
    shown = PlaneRead.of(plane, runtime)
    if shown.missing is not None:
        detail = f"{plane.value} is not configured"
        raise PlaneNotConfigured(detail, FieldError("/path/plane", shown.missing))
    call.tell("check_plane", plane.value, body)
    started = await planes.request_check(session, plane, correlation_id=call.correlation_id)
    return as_json(PlaneCheck(**shown.model_dump(), operation_id=started), 202)
