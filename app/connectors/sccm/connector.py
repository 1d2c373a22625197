# SPDX-License-Identifier: Apache-2.0
"""Configuration Manager behind the port: the operator's application, deployed to a collection by name.

Sources: Microsoft's pages on the administration service and on the classes of the SMS provider. Whether
DELETE is served is documented nowhere (the pages name GET and POST); ``_withdraw`` is where it matters.
"""

from collections.abc import AsyncIterator, Sequence
from typing import ClassVar, Literal

import httpx
from pydantic import BaseModel, Field, SecretStr

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
    ReportPage,
    Target,
    TargetKind,
    Verified,
)
from app.connectors.rest import Headers, Json, Rest, effect_headers
from app.connectors.sccm import wire
from app.connectors.sccm.wire import SERVICE
from app.connectors.services import Services
from app.connectors.settings import ADDRESS, PlaneSettings
from app.resilience.auth import Authenticator, Fixed
from app.resilience.errors import NotReady, NotThere, PermanentError, PolicyError
from app.resilience.windows import WindowsAuth

APPLICATIONS, DEPLOYMENTS = "SMS_Application", "SMS_ApplicationAssignment"
MEMBERS, DETAILS = "SMS_FullCollectionMembership", "SMS_AppDeploymentAssetDetails"
ERRORS, CONTENT = "SMS_AppDeploymentErrorAssetDetails", "SMS_ObjectContentExtraInfo"
LOOK_AGAIN = 60.0
"""Seconds until a distribution that is under way is looked at again."""
FIRST = -1
"""Less than the number of any machine."""

MANIFEST = Manifest(
    plane=Plane.SCCM,
    title="Microsoft Configuration Manager",
    package_kinds=frozenset({PackageKind.APPLICATION}),
    target_kinds=frozenset({TargetKind.COLLECTION}),
    cannot={
        Capability.CREATE: "applications are packaged by the operator and found by name and version",
        Capability.UPLOAD: "content is distributed by the operator, to the distribution points",
        Capability.RETRY: "a client tries again by a schedule of its own",
    },
    retries_itself=True,
    max_concurrency=4,
    costs={
        Call.PUBLISH: Cost(2),
        Call.UPLOAD: Cost(0),
        Call.ASSIGN: Cost(5),
        Call.MEMBERS: Cost(1, 1000),
        Call.STATUS: Cost(1, 1000),
        Call.FIND_VERSION: Cost(1),
    },
    sources=(
        "Microsoft memdocs, configmgr/develop/adminservice",
        "Microsoft memdocs, configmgr/develop/reference/apps",
    ),
)


class SccmSettings(PlaneSettings):
    """What an operator sets under ``EUCORA_PLANES__SCCM__…``. ``base_url`` ends with ``/AdminService``.

    ``auth``: Negotiate is Kerberos where it is set up, and NTLM else. ``purpose``: whether a deployment is
    required, or offered to the user.
    """

    base_url: str = Field(pattern=ADDRESS)
    username: str = Field(min_length=1)
    password: SecretStr = Field(min_length=1)
    auth: Literal["negotiate", "ntlm", "basic"] = "negotiate"
    purpose: Literal["required", "available"] = "required"
    page_rows: int = Field(default=1000, ge=1, le=10_000)

    def authenticator(self) -> Authenticator | httpx.Auth:
        """What proves who we are."""
        if self.auth == "basic":
            return Fixed.basic(SERVICE, self.username, self.password)
        return WindowsAuth(SERVICE, self.username, self.password, self.auth)


class Sccm(AbsentParts):
    """The connector of one site."""

    manifest: ClassVar[Manifest] = MANIFEST
    settings_model: ClassVar[type[BaseModel]] = SccmSettings

    def __init__(self, settings: SccmSettings, services: Services) -> None:
        self.base_url = settings.base_url
        self._settings = settings
        self._clock = services.clock
        self._http = services.client(
            SERVICE,
            base_url=settings.base_url,
            auth=settings.authenticator(),
            max_concurrency=MANIFEST.max_concurrency,
            describe=wire.describe,
        )
        self._service = Rest(self._http, "the AdminService", items="value", link="@odata.nextLink")

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def check(self) -> Health:
        """Read the site: it takes an account that is an administrative user."""
        site = await self._site()
        facts = {
            "base_url": self.base_url,
            "site": str(site["SiteCode"]),
            "version": str(site.get("Version")),
        }
        return Health(detail=f"GET SMS_Site answered by {self._http.base_url.host}", facts=facts)

    async def _site(self, headers: Headers | None = None) -> Json:
        sites = await self._every("SMS_Site", "", headers)
        if not sites or not sites[0].get("SiteCode"):
            raise PermanentError("the AdminService tells of no site", service=SERVICE)
        return sites[0]

    async def _every(self, of_class: str, filters: str, headers: Headers | None = None) -> list[Json]:
        params = {"$filter": filters} if filters else {}
        return await self._service.every(f"/wmi/{of_class}", params=params, headers=headers)

    async def _ascending(
        self, of_class: str, key: str, filters: str, *, last: int = FIRST
    ) -> AsyncIterator[list[Json]]:
        """Rows by a rising number, each page from the last row on.

        Neither ``$skip`` nor a link to the next page is documented; a service that ignores ``$top`` gives all
        at once, and then nothing.
        """
        rows = self._settings.page_rows
        while True:
            params = {"$filter": f"{filters} and {key} gt {last}", "$orderby": key, "$top": str(rows)}
            page = self._service.items_of(await self._service.get(f"/wmi/{of_class}", params=params))
            if not page:
                return
            yield page
            if len(page) < rows:
                return
            last = max(int(row[key]) for row in page)

    async def publish(self, app: App) -> str:
        """The model name of the operator's application, whose content must be where clients get it.

        Raises:
            NotThere, PolicyError: there is none of that name, or not of that version, or not to be had.
            NotReady: its content is being distributed.
        """
        headers = effect_headers(app)
        application = await self._named(wire.package(app).name, app.version, headers)
        await self._require_content(application, headers)
        return str(application["ModelName"])

    async def _named(self, name: str, version: str, headers: Headers) -> Json:
        filters = wire.where(LocalizedDisplayName=name, IsLatest=True)
        found = await self._every(APPLICATIONS, filters, headers)
        fits = [row for row in found if row.get("SoftwareVersion") == version and not row.get("IsExpired")]
        if not found:
            raise NotThere(f"there is no application named {name}", service=SERVICE, status=404)
        if len(fits) != 1:
            versions = ", ".join(sorted(str(row.get("SoftwareVersion")) for row in found))
            raise PolicyError(
                f"not one application {name} of version {version}, but {len(fits)} (there are: {versions})",
                service=SERVICE,
            )
        return fits[0]

    async def _require_content(self, application: Json, headers: Headers) -> None:
        rows = await self._every(CONTENT, wire.where(ObjectID=application["ModelName"]), headers)
        targeted, good, bad = wire.distribution(rows)
        name = application["LocalizedDisplayName"]
        if bad or not targeted:
            why = f"failed on {bad} distribution points" if bad else "is on no distribution point"
            raise PolicyError(f"the content of {name} {why}", service=SERVICE)
        if good < targeted:
            detail = f"the content of {name} is on {good} of {targeted} distribution points"
            raise NotReady(detail, service=SERVICE, retry_after=LOOK_AGAIN)

    async def assign(self, assignment: Assignment) -> str:
        """Deploy the application to the collection; the deployment's number."""
        return await self._deploy(assignment, assignment.external_id, wire.INSTALL, assignment.first_key)

    async def remove(self, assignment: Assignment) -> str:
        """Withdraw what installs, deploy the uninstallation, then see that the previous version is there."""
        await self._withdraw(assignment.key_of(Action.ASSIGN), effect_headers(assignment))
        key = assignment.first_key
        made = await self._deploy(assignment, assignment.external_id, wire.UNINSTALL, key)
        if assignment.previous_id is not None and not await self._offered(assignment):
            await self._deploy(assignment, assignment.previous_id, wire.INSTALL, f"{key}/return")
        return made

    async def _deploy(self, assignment: Assignment, model_name: str, config: int, key: str) -> str:
        """The deployment under that key; names are not unique at the service, so it is looked for first.

        One that does something else there by now gives way: it can be withdrawn, but not changed.
        """
        headers = effect_headers(assignment)
        found = wire.on(assignment.target, await self._deployments(key, headers))
        fits = [row for row in found if wire.does(row, config)]
        if fits:
            return str(fits[0]["AssignmentID"])
        await self._take_away(found, headers)
        application = await self._by_model(model_name, headers)
        collection = await self._collection(assignment.target, headers)
        available = self._settings.purpose == "available" and config == wire.INSTALL
        body = wire.assignment_body(
            application,
            collection,
            name=wire.MARKER + key,
            config=config,
            offer=wire.AVAILABLE if available else wire.REQUIRED,
            site=str((await self._site(headers))["SiteCode"]),
            now=self._clock(),
        )
        made = await self._service.post(f"/wmi/{DEPLOYMENTS}", body, headers=headers)
        if not made.get("AssignmentID"):
            raise self._service.lost("a deployment")
        return str(made["AssignmentID"])

    async def _deployments(self, key: str, headers: Headers | None = None) -> list[Json]:
        """Those under that key, the oldest first."""
        found = await self._every(DEPLOYMENTS, wire.where(AssignmentName=wire.MARKER + key), headers)
        return sorted(found, key=lambda row: int(row["AssignmentID"]))

    async def _by_model(self, model_name: str, headers: Headers | None = None) -> Json:
        found = await self._every(APPLICATIONS, wire.where(ModelName=model_name, IsLatest=True), headers)
        if not found:
            raise NotThere(f"the application {model_name} is gone", service=SERVICE, status=404)
        return found[0]

    async def _collection(self, target: Target, headers: Headers) -> Json:
        found = await self._every("SMS_Collection", wire.where(CollectionID=target.ref), headers)
        if not found:
            raise NotThere(f"there is no collection {target.ref}", service=SERVICE, status=404)
        if found[0].get("CollectionType") != wire.DEVICES:
            raise PolicyError(f"the collection {target.ref} is not one of devices", service=SERVICE)
        return found[0]

    async def _offered(self, assignment: Assignment) -> list[Json]:
        """The deployments that install the previous version on the collection, whoever made them."""
        headers = effect_headers(assignment)
        previous = await self._by_model(str(assignment.previous_id), headers)
        filters = wire.where(
            ApplicationName=previous["LocalizedDisplayName"], TargetCollectionID=assignment.target.ref
        )
        found = await self._every(DEPLOYMENTS, filters, headers)
        return [row for row in found if row.get("DesiredConfigType") == wire.INSTALL]

    async def unassign(self, assignment: Assignment) -> None:
        """Withdraw our deployments of the application on this ring, and nobody else's."""
        for action in (Action.ASSIGN, Action.REMOVE):
            await self._withdraw(assignment.key_of(action), effect_headers(assignment))

    async def cancel(self, assignment: Assignment) -> None:
        """Withdraw what installs: clients hear of it with their next policy."""
        await self._withdraw(assignment.key_of(Action.ASSIGN), effect_headers(assignment))

    async def _withdraw(self, key: str, headers: Headers) -> None:
        await self._take_away(await self._deployments(key, headers), headers)

    async def _take_away(self, deployments: Sequence[Json], headers: Headers) -> None:
        for found in deployments:
            await self._service.delete(f"/wmi/{DEPLOYMENTS}({found['AssignmentID']})", headers=headers)

    async def members(self, target: Target) -> AsyncIterator[Sequence[Member]]:
        """The machines of the collection."""
        async for page in self._ascending(MEMBERS, "ResourceID", wire.where(CollectionID=target.ref)):
            yield [wire.member(row) for row in page]

    def status(
        self, action: Action, assignment: Assignment, *, after: str | None = None
    ) -> AsyncIterator[ReportPage]:
        """Each machine's line of the deployment's status."""
        return self._details(int(str(assignment.made_id)), action, last=int(after or FIRST))

    async def _details(self, number: int, action: Action, *, last: int = FIRST) -> AsyncIterator[ReportPage]:
        of_this = wire.where(AssignmentID=number)
        async for page in self._ascending(DETAILS, "MachineID", of_this, last=last):
            codes = await self._codes(of_this, page)
            reports = [wire.report(row, codes.get(row["MachineID"]), action) for row in page]
            yield ReportPage(reports, mark=str(max(int(row["MachineID"]) for row in page)))

    async def _codes(self, of_this: str, page: Sequence[Json]) -> dict[int, int]:
        """The error codes of the page's machines that have one."""
        failed = [int(row["MachineID"]) for row in page if row.get("AppStatusType") == 5]
        if not failed:
            return {}
        among = f"{of_this} and MachineID ge {min(failed)} and MachineID le {max(failed)}"
        return {row["MachineID"]: int(row["ErrorCode"]) for row in await self._every(ERRORS, among)}

    async def returned(
        self, assignment: Assignment, *, after: str | None = None
    ) -> AsyncIterator[ReportPage]:
        """The same of the deployments by which the previous version comes back, in the order of numbers."""
        for number in sorted(int(found["AssignmentID"]) for found in await self._offered(assignment)):
            if number > int(after or FIRST):
                async for page in self._details(number, Action.ASSIGN):
                    yield ReportPage(page.reports, after)
                after = str(number)

    async def find_version(self, app: App, version: str) -> str | None:
        """The model name of the same application in that version, by its name with or without a version."""
        ours = wire.package(app).name
        names = {app.name, ours, ours.replace(app.version, version), f"{app.name} {version}"}
        found = await self._every(APPLICATIONS, wire.where(SoftwareVersion=version, IsLatest=True))
        fits = [row for row in found if row["LocalizedDisplayName"] in names and not row.get("IsExpired")]
        return str(fits[0]["ModelName"]) if len(fits) == 1 else None

    async def verify(self, action: Action, app: App, assignment: Assignment | None) -> Verified:
        """Ask by reads whether the effect is there."""
        if action in {Action.PUBLISH, Action.UPLOAD}:
            return Verified(holds=True, external_id=await self.publish(app))
        if assignment is None:
            raise ValueError(f"{action} is verified by its assignment")
        headers = effect_headers(assignment)
        installs = await self._deployments(assignment.key_of(Action.ASSIGN), headers)
        removes = await self._deployments(assignment.key_of(Action.REMOVE), headers)
        if action is Action.UNASSIGN:
            return Verified(holds=not installs and not removes)
        if action is Action.ASSIGN and not assignment.is_first_turn:
            installs = [row for row in wire.on(assignment.target, installs) if wire.does(row, wire.INSTALL)]
        made = installs if action is Action.ASSIGN else removes
        back = action is Action.ASSIGN or assignment.previous_id is None or await self._offered(assignment)
        undone = action is Action.ASSIGN or not installs
        number = str(made[0]["AssignmentID"]) if made else None
        return Verified(holds=bool(made and back and undone), external_id=number)

    async def observe(self, assignment: Assignment) -> Observed:
        """The application, which may be gone, and what we deploy of it to any collection."""
        ours = wire.begins("AssignmentName", f"{wire.MARKER}{assignment.app.marker}/")
        try:
            application = await self._by_model(assignment.external_id)
        except NotThere:
            return Observed(assigned=False)
        return wire.observed(application, await self._every(DEPLOYMENTS, ours), assignment)
