# SPDX-License-Identifier: Apache-2.0
"""Intune behind the port: applications found by a marker in their notes, assignments merged one by one.

Source for every path and member: the CSDL of Graph v1.0. That ``/assign`` replaces the whole set, and that a
second assignment of a target is ignored, are users' reports.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any, ClassVar

from pydantic import BaseModel, Field, PositiveFloat, SecretStr

from app.connectors.absent import AbsentParts
from app.connectors.contract import (
    Action,
    App,
    Assignment,
    Call,
    Capability,
    Cost,
    Health,
    Manifest,
    Member,
    Observed,
    PackageKind,
    Plane,
    RateLimit,
    ReportPage,
    Target,
    TargetKind,
    UploadProgress,
    Verified,
)
from app.connectors.intune import wire
from app.connectors.intune.graph import SERVICE, describe, effect_headers, graph
from app.connectors.intune.ids import Ids
from app.connectors.intune.supersedence import Supersedence
from app.connectors.rest import Headers, Json
from app.connectors.services import Services
from app.connectors.settings import ADDRESS, PlaneSettings
from app.connectors.sources import Sources
from app.resilience import TRANSIENT_RETRY, ResilientClient, Safety
from app.resilience.auth import ClientCredentials, Grant
from app.resilience.errors import ConflictError, NotThere, PermanentError

MOBILE_APPS = "/deviceAppManagement/mobileApps"
MANAGED_DEVICES = "/deviceManagement/managedDevices"
REPORT = "/deviceManagement/reports/retrieveDeviceAppInstallationStatusReport"
BLOCK_TIMEOUT = 120.0
OURS = (wire.REQUIRED, wire.UNINSTALL)

MANIFEST = Manifest(
    plane=Plane.INTUNE,
    title="Microsoft Intune",
    package_kinds=frozenset({PackageKind.WIN32, PackageKind.MSI}),
    target_kinds=frozenset({TargetKind.GROUP}),
    cannot={Capability.RETRY: "a device tries again by itself, at times of its own"},
    retries_itself=True,
    max_concurrency=8,
    costs={
        Call.PUBLISH: Cost(4),
        Call.UPLOAD: Cost(10),
        Call.ASSIGN: Cost(4),
        Call.MEMBERS: Cost(2, 999),
        Call.STATUS: Cost(1, 999),
        Call.FIND_VERSION: Cost(1),
    },
    sources=(
        "Microsoft Graph v1.0 CSDL (cleanMetadata.xml, 2026-08-20)",
        "Graph throttling guidance, 2025-01",
    ),
    rate_limits=(
        RateLimit(100, 20.0, "writes to applications by one client of a tenant"),
        RateLimit(200, 20.0, "writes to applications of a tenant"),
        RateLimit(1000, 20.0, "reads of applications by one client of a tenant"),
        RateLimit(2000, 20.0, "reads of applications of a tenant"),
    ),
)


class IntuneSettings(PlaneSettings):
    """What an operator sets under ``EUCORA_PLANES__INTUNE__…``. Sizes in bytes, times in seconds.

    ``supersede``: whether a version of ours takes the place of our earlier one, by a call of Graph's beta.
    """

    base_url: str = Field(default="https://graph.microsoft.com/v1.0", pattern=ADDRESS)
    token_url: str = Field(pattern=ADDRESS)
    client_id: str = Field(min_length=1)
    client_secret: SecretStr = Field(min_length=1)
    scope: str = "https://graph.microsoft.com/.default"
    block_bytes: int = Field(default=4 * 2**20, ge=1024, le=100 * 2**20)
    poll_interval: PositiveFloat = 2.0
    patience: PositiveFloat = 600.0
    page_rows: int = Field(default=999, ge=1, le=999)
    supersede: bool = True

    @property
    def beta_url(self) -> str:
        """Graph's beta, beside the version in use."""
        return f"{self.base_url.rstrip('/').rpartition('/')[0]}/beta"


class Intune(AbsentParts):
    """The connector of one tenant."""

    manifest: ClassVar[Manifest] = MANIFEST
    settings_model: ClassVar[type[BaseModel]] = IntuneSettings

    def __init__(self, settings: IntuneSettings, services: Services) -> None:
        self.base_url = settings.base_url
        self._settings = settings
        self._login = services.client("entra_id", profile=TRANSIENT_RETRY)
        grant = Grant(settings.token_url, settings.client_id, settings.client_secret, settings.scope)
        token = ClientCredentials(self._login, SERVICE, grant)
        self._http = services.client(
            SERVICE,
            base_url=settings.base_url,
            auth=token,
            max_concurrency=MANIFEST.max_concurrency,
            describe=describe,
        )
        blocks = replace(services.profile, attempt_timeout=BLOCK_TIMEOUT, total=2 * BLOCK_TIMEOUT)
        self._storage = services.client(SERVICE, max_concurrency=MANIFEST.max_concurrency, profile=blocks)
        self._graph = graph(self._http)
        self._supersedence = Supersedence(self._graph, settings.beta_url)
        self._sources = Sources(services.download_client, services.spool, services.files)

    async def aclose(self) -> None:
        """Close every connection."""
        for client in self._clients():
            await client.aclose()

    def _clients(self) -> Sequence[ResilientClient]:
        return self._http, self._storage, self._login

    async def check(self) -> Health:
        """Read one application: it takes the permission that everything else needs.

        Raises:
            AuthError, PolicyError: the credentials, or what they are granted, do not do.
        """
        page = await self._graph.get(MOBILE_APPS, params={"$top": "1", "$select": "id"})
        if not isinstance(page.get("value"), list):
            raise PermanentError("what answers is not Microsoft Graph", service=SERVICE)
        return Health(
            detail=f"GET {MOBILE_APPS} answered by {self._http.base_url.host}",
            facts={"base_url": self.base_url},
        )

    async def publish(self, app: App) -> str:
        """The id of the application with our marker, created if there is none.

        Raises:
            AmbiguousError: the answer to the creation was lost; ``verify`` tells whether it was made.
        """
        headers = effect_headers(app)
        found = await self._find_ours(app, headers)
        if found is not None:
            return str(found["id"])
        created = await self._graph.post(MOBILE_APPS, wire.app_body(app), headers=headers)
        if not created.get("id"):
            raise self._graph.lost("an application")
        return str(created["id"])

    async def _find_ours(self, app: App, headers: Headers) -> Json | None:
        """By name at the server, by marker here: whether Graph filters on ``notes`` is not documented."""
        ours = [found for found in await self._named(app.name, headers) if wire.has_marker(found, app.marker)]
        return min(ours, key=wire.oldest_first, default=None)

    async def _named(self, name: str, headers: Headers | None = None) -> list[Json]:
        params = {"$filter": f"displayName eq '{wire.escape(name)}'"}
        return await self._graph.every(MOBILE_APPS, params=params, headers=headers)

    def upload(
        self, app: App, external_id: str, checkpoint: Mapping[str, Any] | None
    ) -> AsyncGenerator[UploadProgress, None]:
        """Spool, encrypt, send in blocks, commit and publish; nothing where content is committed already."""
        # With cryptography, which idle workers do without.
        from app.connectors.intune.upload import Pace, Upload

        pace = Pace(self._settings.block_bytes, self._settings.poll_interval, self._settings.patience)
        secret = self._settings.client_secret.get_secret_value()
        upload = Upload(
            self._graph, self._storage, self._sources, pace, app=app, app_id=external_id, secret=secret
        )
        return upload.run(checkpoint)

    async def assign(self, assignment: Assignment) -> str:
        """Require the application for the group, in place of our version before.

        Assignments of other groups are not touched.
        """
        earlier = await self._earlier(assignment) if self._settings.supersede else None
        if earlier is not None:
            headers = effect_headers(assignment)
            await self._supersedence.begin(assignment.external_id, earlier, headers)
        return await self._put_assignment(assignment, wire.REQUIRED)

    async def _earlier(self, assignment: Assignment) -> str | None:
        """The newest usable application of ours under the same name that was there before this one."""
        headers = effect_headers(assignment)
        named = sorted(await self._named(assignment.app.name, headers), key=wire.oldest_first)
        before = takewhile(lambda found: found["id"] != assignment.external_id, named)
        ours = [found for found in before if wire.is_ours(found) and wire.is_usable(found)]
        return str(ours[-1]["id"]) if ours else None

    async def remove(self, assignment: Assignment) -> str:
        """Uninstall from the group, then see to it that the previous application is to be had there."""
        if self._settings.supersede:
            headers = effect_headers(assignment)
            await self._supersedence.end(assignment.external_id, headers)
        made = await self._put_assignment(assignment, wire.UNINSTALL)
        if assignment.previous_id is not None:
            await self._bring_back(assignment, assignment.previous_id)
        return made

    async def unassign(self, assignment: Assignment) -> None:
        """Delete the group's required or uninstall assignment of this application."""
        headers = effect_headers(assignment)
        on_group = await self._on_group(assignment.external_id, assignment.target, headers)
        ours = [found for found in on_group if found.get("intent") in OURS]
        await self._take_away(assignment.external_id, ours, headers)

    async def cancel(self, assignment: Assignment) -> None:
        """Withdraw the assignment: no call stops an installation, but who has not begun does not begin."""
        await self.unassign(assignment)

    async def _put_assignment(self, assignment: Assignment, intent: str) -> str:
        """The one assignment of our application to the group.

        Another intent gives way, also one that somebody else put there: of two assignments for one target
        Intune ignores the later, so beside theirs ours would change no device. The application was made for
        the deployment, and who wants it offered otherwise can use a group that is no ring.
        """
        app_id, headers = assignment.external_id, effect_headers(assignment)
        existing = await self._on_group(app_id, assignment.target, headers)
        for found in existing:
            if found.get("intent") == intent:
                return str(found["id"])
        await self._take_away(app_id, existing, headers)
        return await self._create_assignment(app_id, assignment.target, intent, headers)

    async def _bring_back(self, assignment: Assignment, previous_id: str) -> None:
        """Require the previous application, which may be somebody else's, unless it is offered already.

        Only an uninstall assignment is replaced, as it would fight the return. Any other of the group is
        its owner's decision and stays: whoever made the application available there keeps it so, and a
        second assignment would be ignored.
        """
        headers = effect_headers(assignment)
        existing = await self._on_group(previous_id, assignment.target, headers)
        fighting = [found for found in existing if found.get("intent") == wire.UNINSTALL]
        await self._take_away(previous_id, fighting, headers)
        if len(fighting) == len(existing):
            await self._create_assignment(previous_id, assignment.target, wire.REQUIRED, headers)

    async def _take_away(self, app_id: str, assignments: Sequence[Json], headers: Headers) -> None:
        for found in assignments:
            await self._graph.delete(f"{_assignments(app_id)}/{found['id']}", headers=headers)

    async def _create_assignment(self, app_id: str, target: Target, intent: str, headers: Headers) -> str:
        body = wire.assignment_body(target.ref, intent)
        try:
            made = await self._graph.post(_assignments(app_id), body, headers=headers)
        except (ConflictError, PermanentError):  # perhaps it is there already: Graph says 400 or 409 then
            again = await self._with_intent(app_id, target, intent, headers)
            if again is None:
                raise
            return again
        if not made.get("id"):
            raise self._graph.lost("an assignment")
        return str(made["id"])

    async def _on_group(self, app_id: str, target: Target, headers: Headers | None = None) -> list[Json]:
        every = await self._graph.every(_assignments(app_id), headers=headers)
        return [found for found in every if wire.is_on_group(found, target.ref)]

    async def _with_intent(self, app_id: str, target: Target, intent: str, headers: Headers) -> str | None:
        on_group = await self._on_group(app_id, target, headers)
        return next((str(found["id"]) for found in on_group if found.get("intent") == intent), None)

    async def members(self, target: Target) -> AsyncIterator[Sequence[Member]]:
        """The group's devices that Intune manages; nested groups are followed by Entra.

        Held in memory: 8 bytes per device of the group, and one page of managed devices.
        """
        wanted = await self._entra_devices(target)
        fields = "id,deviceName,azureADDeviceId,lastSyncDateTime"
        params = {"$select": fields, "$top": str(self._settings.page_rows)}
        async for page in self._graph.pages(MANAGED_DEVICES, params=params):
            found = [wire.member(device) for device in page if _entra_id(device) in wanted]
            if found:
                yield found

    async def _entra_devices(self, target: Target) -> Ids:
        path = f"/groups/{target.ref}/transitiveMembers"
        pages = self._graph.pages(
            path, params={"$select": "id,deviceId", "$top": str(self._settings.page_rows)}
        )
        ids = Ids()
        async for page in pages:
            for found in page:
                if found.get("@odata.type") == wire.DEVICE and found.get("deviceId"):
                    ids.add(str(found["deviceId"]).lower())
        return ids

    def status(
        self, action: Action, assignment: Assignment, *, after: str | None = None
    ) -> AsyncIterator[ReportPage]:
        """The per-device report of the application; it has every ring's devices, and tells removals too."""
        del action
        return self._report(assignment.external_id, skip=int(after or 0))

    def returned(self, assignment: Assignment, *, after: str | None = None) -> AsyncIterator[ReportPage]:
        """The same of the version that comes back."""
        return self._report(str(assignment.previous_id), skip=int(after or 0))

    async def _report(self, external_id: str, *, skip: int) -> AsyncIterator[ReportPage]:
        """Page by page, by a POST that only reads; a reading that goes on has a session of its own."""
        total, session = skip + 1, ""
        while skip < total:
            body = wire.report_body(external_id, skip=skip, top=self._settings.page_rows, session=session)
            report = await self._graph.post(REPORT, body, safety=Safety.IDEMPOTENT)
            rows = wire.report_rows(report)
            if not rows:
                return
            skip, total = skip + len(rows), int(report.get("TotalRowCount", 0))
            yield ReportPage(rows, mark=str(skip))
            session = report.get("SessionId") or ""

    async def find_version(self, app: App, version: str) -> str | None:
        """The newest published application of that name and version, whoever made it."""
        fits = [
            found
            for found in await self._named(app.name)
            if wire.is_usable(found) and wire.has_version(found, version)
        ]
        newest = max(fits, key=wire.oldest_first, default=None)
        return None if newest is None else str(newest["id"])

    async def verify(self, action: Action, app: App, assignment: Assignment | None) -> Verified:
        """Ask by reads whether the effect is there."""
        if action in {Action.PUBLISH, Action.UPLOAD}:
            found = await self._find_ours(app, effect_headers(app))
            holds = found is not None and (
                action is Action.PUBLISH or await self._is_usable(str(found["id"]))
            )
            return Verified(holds=holds, external_id=str(found["id"]) if found else None)
        if assignment is None:
            raise ValueError(f"{action} is verified by its assignment")
        try:
            return await self._verify_assignment(action, assignment)
        except NotThere:  # the application is gone, and its assignments with it
            return Verified(holds=action is Action.UNASSIGN)

    async def observe(self, assignment: Assignment) -> Observed:
        """The application, which may be gone, and all of its assignments."""
        app_id = assignment.external_id
        try:
            app = await self._graph.get(f"{MOBILE_APPS}/{app_id}")
            return wire.observed(app, await self._graph.every(_assignments(app_id)), assignment)
        except NotThere:
            return Observed(assigned=False)

    async def _is_usable(self, app_id: str) -> bool:
        return wire.is_usable(await self._graph.get(f"{MOBILE_APPS}/{app_id}"))

    async def _verify_assignment(self, action: Action, assignment: Assignment) -> Verified:
        headers = effect_headers(assignment)
        on_group = await self._on_group(assignment.external_id, assignment.target, headers)
        if action is Action.UNASSIGN:
            return Verified(holds=not any(found.get("intent") in OURS for found in on_group))
        intent = wire.REQUIRED if action is Action.ASSIGN else wire.UNINSTALL
        made = next((str(found["id"]) for found in on_group if found.get("intent") == intent), None)
        holds = made is not None
        if holds and action is Action.REMOVE and assignment.previous_id is not None:
            holds = await self._is_back(assignment.target, assignment.previous_id, headers)
        return Verified(holds=holds, external_id=made)

    async def _is_back(self, target: Target, previous_id: str, headers: Headers) -> bool:
        """Whether ``_bring_back`` would change nothing."""
        intents = [found.get("intent") for found in await self._on_group(previous_id, target, headers)]
        return bool(intents) and wire.UNINSTALL not in intents


def _assignments(app_id: str) -> str:
    return f"{MOBILE_APPS}/{app_id}/assignments"


def _entra_id(device: Json) -> str:
    return str(device.get("azureADDeviceId") or "").lower()
