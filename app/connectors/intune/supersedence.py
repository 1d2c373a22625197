# SPDX-License-Identifier: Apache-2.0
"""That one of our applications takes the place of an earlier one, so that Intune does not want both.

Relationships are in Graph's beta only (``mobileAppSupersedence``). They are made and taken back one by one;
an earlier application that is somebody else's is never superseded.
"""

from dataclasses import dataclass

from app.connectors.rest import Headers, Json, Rest

SUPERSEDENCE = "#microsoft.graph.mobileAppSupersedence"
UPDATE = "update"
"""The earlier version is not uninstalled first; its installer is replaced by the newer one's."""
CHILD = "child"
"""The direction in which the target is what is superseded."""


@dataclass(frozen=True, slots=True)
class Supersedence:
    """``beta`` is the address of Graph's beta, on the host of v1.0."""

    graph: Rest
    beta: str

    async def begin(self, app_id: str, earlier_id: str, headers: Headers) -> None:
        """Have an application supersede an earlier one; a repeat finds that it does."""
        found = await self._of(app_id, headers)
        if not any(each.get("targetId") == earlier_id for each in found):
            body = {"@odata.type": SUPERSEDENCE, "targetId": earlier_id, "supersedenceType": UPDATE}
            await self.graph.post(self._path(app_id), body, headers=headers)

    async def end(self, app_id: str, headers: Headers) -> None:
        """Let an application supersede nothing any more, before what it superseded comes back."""
        for each in await self._of(app_id, headers):
            await self.graph.delete(f"{self._path(app_id)}/{each['id']}", headers=headers)

    async def _of(self, app_id: str, headers: Headers) -> list[Json]:
        """What the application supersedes; what supersedes it, or what it needs, is not meant."""
        every = await self.graph.every(self._path(app_id), headers=headers)
        return [each for each in every if is_superseded(each)]

    def _path(self, app_id: str) -> str:
        return f"{self.beta}/deviceAppManagement/mobileApps/{app_id}/relationships"


def is_superseded(relationship: Json) -> bool:
    """Whether a relationship's target is what is superseded."""
    return relationship.get("@odata.type") == SUPERSEDENCE and relationship.get("targetType") in {None, CHILD}
