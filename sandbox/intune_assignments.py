# SPDX-License-Identifier: Apache-2.0
"""Graph's app assignments: ``assign`` replaces the whole set, as Intune does, and the fleet follows."""

from typing import Annotated, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sandbox.fleet import Intent
from sandbox.graph import (
    Document,
    GraphError,
    GraphModel,
    GraphResponse,
    collection,
    not_found,
    options,
    read,
    select,
)
from sandbox.intune_apps import APPS, Apps
from sandbox.intune_directory import ring_of_group
from sandbox.plan import RINGS, Ring
from sandbox.plane import Plane

ASSIGNMENTS = APPS + "/{app_id}/assignments"
INTENTS: dict[str, Intent] = {"required": "install", "uninstall": "uninstall"}
INTENT_NUMBERS = {"available": 0, "required": 1, "uninstall": 2, "availableWithoutEnrollment": 3}
GROUP = "#microsoft.graph.groupAssignmentTarget"
EXCLUSION = "#microsoft.graph.exclusionGroupAssignmentTarget"
Type = Annotated[str | None, Field(alias="@odata.type")]


class GroupTarget(GraphModel):
    """The members of a group, or all but those."""

    odata_type: Annotated[
        Literal["#microsoft.graph.groupAssignmentTarget", "#microsoft.graph.exclusionGroupAssignmentTarget"],
        Field(alias="@odata.type"),
    ]
    group_id: Annotated[str, Field(min_length=1)]


class EverybodyTarget(GraphModel):
    """All devices, or all users, who in this fleet have one device each."""

    odata_type: Annotated[
        Literal[
            "#microsoft.graph.allDevicesAssignmentTarget", "#microsoft.graph.allLicensedUsersAssignmentTarget"
        ],
        Field(alias="@odata.type"),
    ]


class InstallTimes(GraphModel):
    """When a device may and when it must install."""

    odata_type: Type = None
    use_local_time: bool = False
    start_date_time: str | None = None
    deadline_date_time: str | None = None


class RestartSettings(GraphModel):
    """How long a user may put off a restart."""

    odata_type: Type = None
    grace_period_in_minutes: int = 1440
    countdown_display_before_restart_in_minutes: int = 15
    restart_notification_snooze_duration_in_minutes: int | None = None


class AutoUpdateSettings(GraphModel):
    """Whether superseded apps are updated by themselves."""

    odata_type: Type = None
    auto_update_superseded_apps_state: Literal["notConfigured", "enabled", "unknownFutureValue"] = (
        "notConfigured"
    )


class Win32Settings(GraphModel):
    """Settings of a win32LobApp's assignment."""

    odata_type: Annotated[
        Literal["#microsoft.graph.win32LobAppAssignmentSettings"], Field(alias="@odata.type")
    ]
    notifications: Literal["showAll", "showReboot", "hideAll"] = "showAll"
    restart_settings: RestartSettings | None = None
    install_time_settings: InstallTimes | None = None
    delivery_optimization_priority: Literal["notConfigured", "foreground"] = "notConfigured"
    auto_update_settings: AutoUpdateSettings | None = None


class NewAssignment(GraphModel):
    """One assignment; an ``id`` that was read before may be sent along."""

    odata_type: Type = None
    id: str | None = None
    intent: Literal["available", "required", "uninstall", "availableWithoutEnrollment"]
    target: Annotated[GroupTarget | EverybodyTarget, Field(discriminator="odata_type")]
    settings: Win32Settings | None = None

    @property
    def place(self) -> str:
        """What may be targeted once only: a group, or everybody."""
        return self.target.group_id if isinstance(self.target, GroupTarget) else self.target.odata_type


class AssignAction(GraphModel):
    """The body of ``assign``."""

    mobile_app_assignments: list[NewAssignment]


class Assignments:
    """Who shall have, or not have, which app."""

    def __init__(self, plane: Plane, apps: Apps) -> None:
        self._plane = plane
        self._apps = apps
        self._table = plane.table("assignments")

    def routes(self) -> list[Route]:
        """The routes of this noun."""
        return [
            Route(APPS + "/{app_id}/assign", self._assign, methods=["POST"]),
            Route(ASSIGNMENTS, self._list, methods=["GET"]),
            Route(ASSIGNMENTS, self._create, methods=["POST"]),
            Route(ASSIGNMENTS + "/{assignment_id}", self._read, methods=["GET"]),
            Route(ASSIGNMENTS + "/{assignment_id}", self._delete, methods=["DELETE"]),
        ]

    async def _assign(self, request: Request) -> Response:
        """Replace the whole set; of two assignments for one target the later is ignored."""
        app = self._apps.one(request)
        wanted: dict[str, NewAssignment] = {}
        for assignment in (await read(request, AssignAction)).mobile_app_assignments:
            wanted.setdefault(assignment.place, assignment)
        for assignment in wanted.values():
            self._require_assignable(app, assignment)
        kept = {assignment_id(assignment) for assignment in wanted.values()}
        for old in self._of(app):
            if old["id"] not in kept:
                self._table.drop(key_of(old))
        for assignment in wanted.values():
            self._put(request, app, assignment)
        self._direct(app)
        return Response(status_code=204)

    async def _list(self, request: Request) -> Response:
        found = self._of(self._apps.one(request))
        return collection(
            request,
            len(found),
            lambda skip, top: [shown(row) for row in found[skip : skip + top]],
            filters=False,
        )

    async def _create(self, request: Request) -> Response:
        app = self._apps.one(request)
        body = await read(request, NewAssignment)
        self._require_assignable(app, body)
        if any(place_of(row) == body.place for row in self._of(app)):
            raise GraphError(409, f"An assignment for the target '{body.place}' already exists.")
        row = self._put(request, app, body)
        self._direct(app)
        return GraphResponse(shown(row), status_code=201)

    async def _read(self, request: Request) -> Response:
        given = options(request, ["$select"])
        return GraphResponse(select(given, shown(self._one(request))))

    async def _delete(self, request: Request) -> Response:
        app = self._apps.one(request)
        self._table.drop(key_of(self._one(request)))
        self._direct(app)
        return Response(status_code=204)

    def _one(self, request: Request) -> Document:
        app = self._apps.one(request)
        wanted = request.path_params["assignment_id"]
        return self._table.get(f"{app['id']}/{wanted}") or not_found("mobileAppAssignment", wanted)

    def _of(self, app: Document) -> list[Document]:
        return [row for row in self._table.values() if row["app_id"] == app["id"]]

    def _require_assignable(self, app: Document, assignment: NewAssignment) -> None:
        if self._apps.publishing_state(app) != "published":
            raise GraphError(400, f"App '{app['id']}' has no published content and cannot be assigned.")
        target = assignment.target
        if isinstance(target, GroupTarget) and ring_of_group(self._plane.name, target.group_id) is None:
            raise GraphError(400, f"The group '{target.group_id}' does not exist.")

    def _put(self, request: Request, app: Document, body: NewAssignment) -> Document:
        """Store an assignment; one that was there keeps the effect that made it."""
        key = f"{app['id']}/{assignment_id(body)}"
        old = self._table.get(key)
        row = {
            "id": assignment_id(body),
            "app_id": app["id"],
            "effect_key": old["effect_key"] if old else request.headers.get("x-effect-key"),
            "body": body.model_dump(by_alias=True, exclude={"id", "odata_type"}),
        }
        return self._table.put(key, row)

    def _direct(self, app: Document) -> None:
        """Tell the fleet; where all devices and a group disagree, required wins over uninstall."""
        bodies = [row["body"] for row in self._of(app)]
        excluded = {ring for body in bodies if is_exclusion(body) for ring in self._rings(body)}
        intents: dict[Ring, Intent] = {}
        for body in bodies:
            intent = INTENTS.get(body["intent"])
            if intent is None or is_exclusion(body):
                continue
            for ring in self._rings(body):
                if ring not in excluded and intents.get(ring) != "install":
                    intents[ring] = intent
        self._plane.fleet.direct(self._apps.software(app), intents)

    def _rings(self, body: Document) -> tuple[Ring, ...]:
        group_id = body["target"].get("groupId")
        if group_id is None:
            return RINGS
        ring = ring_of_group(self._plane.name, group_id)
        return () if ring is None else (ring,)


def assignment_id(assignment: NewAssignment) -> str:
    """Intune's ids are made of the target and the intent, so that the same assignment keeps its id."""
    kind = {EXCLUSION: "_exclude"}.get(assignment.target.odata_type, "")
    place = assignment.place.removeprefix("#microsoft.graph.")
    return f"{place}_{INTENT_NUMBERS[assignment.intent]}_0{kind}"


def key_of(row: Document) -> str:
    """The key of a stored assignment."""
    return f"{row['app_id']}/{row['id']}"


def place_of(row: Document) -> str:
    """The place that a stored assignment takes."""
    target = row["body"]["target"]
    return str(target.get("groupId") or target["@odata.type"])


def is_exclusion(body: Document) -> bool:
    """Whether an assignment keeps its group out."""
    return bool(body["target"]["@odata.type"] == EXCLUSION)


def shown(row: Document) -> Document:
    """An assignment as Graph answers it."""
    return {"@odata.type": "#microsoft.graph.mobileAppAssignment", "id": row["id"], **row["body"]}
