# SPDX-License-Identifier: Apache-2.0
"""Graph beta's relationships of apps: which app supersedes which."""

from typing import Annotated, Literal
from uuid import uuid4

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sandbox.graph import Document, GraphError, GraphModel, GraphResponse, collection, not_found, read
from sandbox.intune_apps import APPS, Apps
from sandbox.plane import Plane

RELATIONSHIPS = APPS + "/{app_id}/relationships"
MOST = 10
SUPERSEDENCE = "#microsoft.graph.mobileAppSupersedence"


class NewRelationship(GraphModel):
    """An app that takes the place of another."""

    odata_type: Annotated[Literal["#microsoft.graph.mobileAppSupersedence"], Field(alias="@odata.type")]
    target_id: Annotated[str, Field(min_length=1)]
    supersedence_type: Literal["update", "replace"]


class Relationships:
    """The relationships of all apps; each is told from both of its ends."""

    def __init__(self, plane: Plane, apps: Apps) -> None:
        self._apps = apps
        self._table = plane.table("relationships")

    def routes(self) -> list[Route]:
        """The routes of this noun, in beta only."""
        return [
            Route(RELATIONSHIPS, self._list, methods=["GET"]),
            Route(RELATIONSHIPS, self._create, methods=["POST"]),
            Route(RELATIONSHIPS + "/{relationship_id}", self._delete, methods=["DELETE"]),
        ]

    async def _list(self, request: Request) -> Response:
        app_id = self._apps.one(request)["id"]
        found = [
            self._shown(row, app_id) for row in self._table.values() if app_id in {row["app"], row["target"]}
        ]
        return collection(request, len(found), lambda skip, top: found[skip : skip + top], filters=False)

    async def _create(self, request: Request) -> Response:
        app, body = self._apps.one(request), await read(request, NewRelationship)
        own = [row for row in self._table.values() if row["app"] == app["id"]]
        if body.target_id == app["id"] or body.target_id not in self._apps.table:
            raise GraphError(400, f"The app '{body.target_id}' cannot be superseded.")
        if len(own) >= MOST or any(row["target"] == body.target_id for row in own):
            raise GraphError(400, "The relationship exists, or there are too many.")
        row = {
            "id": f"{app['id']}_{uuid4()}",
            "app": app["id"],
            "target": body.target_id,
            "type": body.supersedence_type,
            "effect_key": request.headers.get("x-effect-key"),
        }
        self._table.put(row["id"], row)
        return GraphResponse(self._shown(row, app["id"]), status_code=201)

    async def _delete(self, request: Request) -> Response:
        wanted = request.path_params["relationship_id"]
        if wanted not in self._table:
            not_found("mobileAppRelationship", wanted)
        self._table.drop(wanted)
        return Response(status_code=204)

    def _shown(self, row: Document, app_id: str) -> Document:
        """From an app's own end the target is the child, from the other the parent."""
        child = row["app"] == app_id
        return {
            "@odata.type": SUPERSEDENCE,
            "id": row["id"],
            "targetId": row["target"] if child else row["app"],
            "targetType": "child" if child else "parent",
            "supersedenceType": row["type"],
        }
