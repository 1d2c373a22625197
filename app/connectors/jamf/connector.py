# SPDX-License-Identifier: Apache-2.0
"""Jamf Pro behind the port: a package record with its content, and a policy for each effect on a group.

Policies exist in the Classic API only. What a computer has is read from the inventory; what its policy did,
from the computer's own log, and only where the inventory does not tell and the computer has called since.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, Field, PositiveFloat, SecretStr, model_validator

from app.connectors.absent import AbsentParts
from app.connectors.contract import (
    Action,
    App,
    Assignment,
    Call,
    Capability,
    Cost,
    DeviceReport,
    Health,
    Manifest,
    Member,
    Observed,
    PackageKind,
    Plane,
    ReportPage,
    Target,
    TargetKind,
    UploadProgress,
    Verified,
)
from app.connectors.jamf import wire
from app.connectors.jamf.api import Api, UserToken, describe, named
from app.connectors.jamf.upload import Pace, Upload
from app.connectors.jamf.wire import SERVICE
from app.connectors.rest import Headers, Json, effect_headers
from app.connectors.services import Services
from app.connectors.settings import ADDRESS, PlaneSettings, not_enough
from app.connectors.sources import Sources
from app.resilience import TRANSIENT_RETRY, ResilientClient
from app.resilience.auth import Authenticator, ClientCredentials, Grant
from app.resilience.errors import NotThere, PolicyError

LOCKED = 423
"""An object is being changed by somebody else: it will do later."""
COMPUTERS = 100
"""Computers read at once: each brings its list of applications."""
GENERAL = ["GENERAL"]
SOFTWARE = ["GENERAL", "APPLICATIONS", "PACKAGE_RECEIPTS"]

MANIFEST = Manifest(
    plane=Plane.JAMF,
    title="Jamf Pro",
    package_kinds=frozenset({PackageKind.PKG}),
    target_kinds=frozenset({TargetKind.GROUP}),
    cannot={Capability.RETRY: "a policy runs once per computer; no call makes it run again"},
    max_concurrency=5,
    costs={
        Call.PUBLISH: Cost(2),
        Call.UPLOAD: Cost(4),
        Call.ASSIGN: Cost(3),
        Call.MEMBERS: Cost(1, 100),
        Call.STATUS: Cost(1, 100),
        Call.FIND_VERSION: Cost(1),
    },
    names_devices=10_000,
    mends_version=True,
    sources=("Jamf Pro API document 11.30.1 (2026-07)", "Jamf scalability best practices: 5 connections"),
)


class JamfSettings(PlaneSettings):
    """What an operator sets under ``EUCORA_PLANES__JAMF__…``: an API client, or a person's account.

    ``base_url`` is the instance's, without a path. Times in seconds.
    """

    base_url: str = Field(pattern=ADDRESS)
    client_id: str | None = Field(default=None, min_length=1)
    client_secret: SecretStr | None = Field(default=None, min_length=1)
    username: str | None = Field(default=None, min_length=1)
    password: SecretStr | None = Field(default=None, min_length=1)
    poll_interval: PositiveFloat = 2.0
    patience: PositiveFloat = 600.0
    upload_timeout: PositiveFloat = 240.0

    @model_validator(mode="after")
    def one_credential(self) -> "JamfSettings":
        """Both halves of the one or of the other."""
        if not (self.client_id and self.client_secret) and not (self.username and self.password):
            raise not_enough("client_id", "CLIENT_ID and CLIENT_SECRET, or USERNAME and PASSWORD")
        return self

    def authenticator(self, entrance: ResilientClient) -> Authenticator:
        """What proves who we are."""
        if self.client_id and self.client_secret:
            grant = Grant(f"{self.base_url}/api/v1/oauth/token", self.client_id, self.client_secret)
            return ClientCredentials(entrance, SERVICE, grant)
        assert self.username is not None  # one_credential
        assert self.password is not None
        return UserToken(entrance, self.username, self.password)


class Jamf(AbsentParts):
    """The connector of one instance."""

    manifest: ClassVar[Manifest] = MANIFEST
    settings_model: ClassVar[type[BaseModel]] = JamfSettings

    def __init__(self, settings: JamfSettings, services: Services) -> None:
        self.base_url = settings.base_url
        self._settings = settings
        self._entrance = services.client(
            SERVICE, base_url=settings.base_url, profile=TRANSIENT_RETRY, describe=describe
        )
        self._http = services.client(
            SERVICE,
            base_url=settings.base_url,
            auth=settings.authenticator(self._entrance),
            max_concurrency=MANIFEST.max_concurrency,
            describe=describe,
            transient={LOCKED},
        )
        self._api = Api(self._http)
        self._sources = Sources(services.download_client, services.spool, services.files)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()
        await self._entrance.aclose()

    async def check(self) -> Health:
        """Read one package: it takes a privilege that everything else needs."""
        page = await self._api.get("/v1/packages", {"page-size": "1"})
        self._api.items_of(page)
        version = await self._api.get("/v1/jamf-pro-version")
        facts = {"base_url": self.base_url, "version": str(version.get("version"))}
        return Health(detail=f"GET /api/v1/packages answered by {self._http.base_url.host}", facts=facts)

    async def publish(self, app: App) -> str:
        """The id of the package with our marker, created if there is none."""
        wire.pkg(app)
        headers = effect_headers(app)
        found = await self._find_ours(app, headers)
        if found is not None:
            return str(found["id"])
        return await self._api.create("/v1/packages", wire.package_body(app), headers=headers)

    async def _find_ours(self, app: App, headers: Headers) -> Json | None:
        named_so = await self._packages(wire.equals("packageName", wire.package_name(app)), headers)
        ours = [found for found in named_so if wire.has_marker(found, app.marker)]
        return min(ours, key=lambda found: int(found["id"]), default=None)

    async def _packages(self, filters: str, headers: Headers | None = None) -> list[Json]:
        return await self._api.every("/v1/packages", {"filter": filters, "page-size": "100"}, headers=headers)

    def upload(
        self, app: App, external_id: str, checkpoint: Mapping[str, Any] | None
    ) -> AsyncGenerator[UploadProgress, None]:
        """Send the content in one piece, unless it is there; Jamf Pro cannot continue half an upload."""
        del checkpoint
        settings = self._settings
        pace = Pace(settings.poll_interval, settings.patience, settings.upload_timeout)
        return Upload(self._api, self._sources, app, external_id, pace=pace).run()

    async def assign(self, assignment: Assignment) -> str:
        """A policy that installs the package on the group; its id. One that was changed is written again."""
        headers = effect_headers(assignment)
        found = await self._policy(assignment.first_key, headers)
        if found is not None and wire.is_as_decided(found, assignment):
            return wire.policy_id(found)
        policy = wire.install_policy(assignment, assignment.external_id, found)
        return await self._write(found, policy, headers)

    async def remove(self, assignment: Assignment) -> str:
        """Delete what installs; then a policy for the previous version, or one that runs the script.

        Raises:
            PolicyError: there is neither.
        """
        await self._delete(assignment.key_of(Action.ASSIGN), effect_headers(assignment))
        if assignment.previous_id is not None:
            return await self._put(assignment, wire.install_policy(assignment, assignment.previous_id))
        script = wire.pkg(assignment.app).uninstall_script
        if script is None:
            detail = "the package has no uninstall_script, and there is no version to return to"
            raise PolicyError(detail, service=SERVICE)
        return await self._put(assignment, wire.uninstall_policy(assignment, script))

    async def _put(self, assignment: Assignment, policy: bytes) -> str:
        """The id of the effect's policy, created if there is none."""
        headers = effect_headers(assignment)
        found = await self._policy(assignment.first_key, headers)
        return await self._write(None, policy, headers) if found is None else wire.policy_id(found)

    async def _write(self, found: Json | None, policy: bytes, headers: Headers) -> str:
        """Create a policy, or have one do what is written; its id."""
        method, number = ("POST", "0") if found is None else ("PUT", wire.policy_id(found))
        return await self._api.classic_write(method, f"/policies/id/{number}", policy, headers=headers)

    async def _policy(self, key: str, headers: Headers | None = None) -> Json | None:
        found = await self._api.classic(f"/policies/name/{named(wire.policy_name(key))}", headers=headers)
        policy: Json | None = None if found is None else found["policy"]
        return policy

    async def unassign(self, assignment: Assignment) -> None:
        """Delete our policies of this ring; what they installed stays."""
        for action in (Action.ASSIGN, Action.REMOVE):
            await self._delete(assignment.key_of(action), effect_headers(assignment))

    async def _delete(self, key: str, headers: Headers) -> None:
        found = await self._policy(key, headers)
        if found is not None:
            await self._api.classic_delete(f"/policies/id/{wire.policy_id(found)}", headers=headers)

    async def cancel(self, assignment: Assignment) -> None:
        """Switch the policy off: computers that have not begun do not begin."""
        headers = effect_headers(assignment)
        found = await self._policy(assignment.key_of(Action.ASSIGN), headers)
        if found is not None:
            await self._write(found, wire.disabled_policy(), headers)

    async def members(self, target: Target) -> AsyncIterator[Sequence[Member]]:
        """The computers of the group, be it smart or static. Held in memory: their ids."""
        async for computers in self._computers(await self._ids(target), GENERAL):
            yield [wire.member(computer) for computer in computers]

    async def _computers(self, known: list[str], sections: list[str]) -> AsyncIterator[Sequence[Json]]:
        for ids in wire.chunks(known, COMPUTERS):
            params = {"section": sections, "filter": wire.among(ids), "page-size": str(COMPUTERS)}
            async for computers in self._api.pages("/v4/computers-inventory", params):
                yield computers

    async def _ids(self, target: Target) -> list[str]:
        """Only the Classic API tells who is in a static group, and whether a group is one."""
        group = await self._api.classic(f"/computergroups/id/{target.ref}")
        if group is None:
            raise NotThere(f"there is no computer group {target.ref}", service=SERVICE, status=404)
        if not group["computer_group"].get("is_smart"):
            return [str(computer["id"]) for computer in group["computer_group"].get("computers") or ()]
        smart = await self._api.get(f"/v3/computer-groups/smart-group-membership/{target.ref}")
        return [str(number) for number in smart.get("members") or ()]

    def status(
        self, action: Action, assignment: Assignment, *, after: str | None = None
    ) -> AsyncIterator[ReportPage]:
        """What the inventory shows of the version, and where it does not, what the policy's log says."""
        return self._reports(action, assignment, assignment.app.version, after=after)

    async def returned(
        self, assignment: Assignment, *, after: str | None = None
    ) -> AsyncIterator[ReportPage]:
        """The same of the version that comes back."""
        found = await self._api.get(f"/v1/packages/{assignment.previous_id}")
        version = wire.version_of(found)
        if version is not None:
            async for page in self._reports(Action.ASSIGN, assignment, version, after=after):
                yield page

    async def _reports(
        self, action: Action, assignment: Assignment, version: str, *, after: str | None
    ) -> AsyncIterator[ReportPage]:
        named = assignment.devices
        known = await self._ids(assignment.target) if named is None else [one.device_id for one in named]
        left = sorted(int(number) for number in known if int(number) > int(after or 0))
        async for computers in self._computers([str(number) for number in left], SOFTWARE):
            told: list[DeviceReport] = []
            for few in wire.chunks(computers, MANIFEST.max_concurrency):  # more would overrun our own queue
                asked = (self._report(action, assignment, version, computer) for computer in few)
                told += await asyncio.gather(*asked)
            after = max((str(computer["id"]) for computer in computers), key=int, default=after)
            yield ReportPage(told, mark=after)

    async def _report(
        self, action: Action, assignment: Assignment, version: str, computer: Json
    ) -> DeviceReport:
        app = assignment.app
        installed = wire.is_installed(computer, app, version)
        settled = installed == (action is Action.ASSIGN)
        log = None
        if not settled and wire.heard_since(computer, assignment.made_at):
            log = await self._log(str(computer["id"]), str(assignment.made_id))
        observable = wire.present(computer, wire.pkg(app).bundle_id) is not None
        state = wire.state_of(action, log, installed=installed, observable=observable)
        return wire.report(computer, state, log)

    async def _log(self, computer_id: str, policy_id: str) -> str | None:
        """The status of the policy in a computer's history."""
        found = await self._api.classic(f"/computerhistory/id/{computer_id}/subset/PolicyLogs")
        logs = (found or {}).get("computer_history", {}).get("policy_logs") or ()
        told = (str(log.get("status")) for log in logs if str(log.get("policy_id")) == policy_id)
        return next(told, None)

    async def find_version(self, app: App, version: str) -> str | None:
        """The newest package with content that is called so, whoever made it."""
        filters = wire.equals("packageName", f"{app.name} {version}*")
        found = [
            package
            for package in await self._packages(filters)
            if wire.version_of(package) == version or package["packageName"] == f"{app.name} {version}"
        ]
        usable = [package for package in found if package.get("sha256")]
        newest = max(usable, key=lambda package: int(package["id"]), default=None)
        return None if newest is None else str(newest["id"])

    async def verify(self, action: Action, app: App, assignment: Assignment | None) -> Verified:
        """Ask by reads whether the effect is there."""
        if action in {Action.PUBLISH, Action.UPLOAD}:
            found = await self._find_ours(app, effect_headers(app))
            there = found is not None and (
                action is Action.PUBLISH or wire.is_there(found, wire.pkg(app).sha256)
            )
            return Verified(holds=there, external_id=str(found["id"]) if found else None)
        if assignment is None:
            raise ValueError(f"{action} is verified by its assignment")
        headers = effect_headers(assignment)
        installs = await self._policy(assignment.key_of(Action.ASSIGN), headers)
        removes = await self._policy(assignment.key_of(Action.REMOVE), headers)
        if action is Action.UNASSIGN:
            return Verified(holds=installs is None and removes is None)
        if action is Action.ASSIGN:
            return _verified(installs, assignment)
        made = None if removes is None else wire.policy_id(removes)
        return Verified(holds=made is not None and installs is None, external_id=made)

    async def observe(self, assignment: Assignment) -> Observed:
        """The lane's policy, and the package, which may be gone."""
        found = await self._policy(assignment.first_key)
        try:
            await self._api.get(f"/v1/packages/{assignment.external_id}")
        except NotThere:
            return Observed(assigned=False)
        return Observed(assigned=False) if found is None else wire.observed(found, assignment)


def _verified(found: Json | None, assignment: Assignment) -> Verified:
    """Whether a policy is there; a later turn is to have made it what was decided, too."""
    if found is None:
        return Verified(holds=False)
    holds = assignment.is_first_turn or wire.is_as_decided(found, assignment)
    return Verified(holds=holds, external_id=wire.policy_id(found))
