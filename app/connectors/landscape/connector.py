# SPDX-License-Identifier: Apache-2.0
"""Landscape behind the port: a push is an activity of the ring's computers, found by number and content.

An activity carries no marker of ours, so the newest one is remembered before another is asked for. A version
cannot be asked for either: a push is refused where a computer's archives would give it another.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import BaseModel, Field, PositiveFloat, SecretStr, model_validator

from app.connectors.absent import AbsentParts
from app.connectors.contract import (
    Action,
    App,
    Assignment,
    Call,
    Capability,
    Cost,
    Health,
    InstallState,
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
from app.connectors.landscape import wire
from app.connectors.landscape.api import SERVICE, Api, Login, describe, numbered
from app.connectors.rest import Headers, Json, effect_headers
from app.connectors.services import Services
from app.connectors.settings import ADDRESS, PlaneSettings, not_enough
from app.resilience import TRANSIENT_RETRY
from app.resilience.errors import NotThere, PermanentError, PolicyError

SEARCHED = 200
"""Activities looked through for one that was asked for since the baseline."""
NOTHING = "none"
COMPUTERS = 200
"""Computers named in one query, so that its address stays short."""

MANIFEST = Manifest(
    plane=Plane.LANDSCAPE,
    title="Canonical Landscape",
    package_kinds=frozenset({PackageKind.DEB}),
    target_kinds=frozenset({TargetKind.TAG, TargetKind.GROUP}),
    cannot={
        Capability.CREATE: "packages come from the archives that a computer already uses",
        Capability.UPLOAD: "packages come from the archives that a computer already uses",
        Capability.MARKER: "an activity carries nothing of ours",
        Capability.RETURN: "no call asks for an earlier version of a package",
        Capability.RETRY: "an activity is carried out once",
    },
    max_concurrency=6,
    costs={
        Call.PUBLISH: Cost(1),
        Call.UPLOAD: Cost(0),
        Call.ASSIGN: Cost(4, 100),
        Call.MEMBERS: Cost(1, 1000),
        Call.STATUS: Cost(2, 100),
        Call.FIND_VERSION: Cost(0),
    },
    names_devices=COMPUTERS,
    mends_version=True,
    sources=("Canonical landscape-documentation, docs/reference/api (2026)",),
)


class LandscapeSettings(PlaneSettings):
    """What an operator sets under ``EUCORA_PLANES__LANDSCAPE__…``: an access key, or an account's login.

    ``base_url`` is that of both APIs, ``https://<host>/api``.
    """

    base_url: str = Field(pattern=ADDRESS)
    access_key: str | None = Field(default=None, min_length=1)
    secret_key: SecretStr | None = Field(default=None, min_length=1)
    email: str | None = Field(default=None, min_length=1)
    password: SecretStr | None = Field(default=None, min_length=1)
    account: str | None = None
    poll_interval: PositiveFloat = 2.0

    @model_validator(mode="after")
    def one_credential(self) -> "LandscapeSettings":
        """Both halves of the one or of the other."""
        if not (self.access_key and self.secret_key) and not (self.email and self.password):
            raise not_enough("access_key", "ACCESS_KEY and SECRET_KEY, or EMAIL and PASSWORD")
        return self

    def login(self) -> tuple[str, dict[str, str | SecretStr]]:
        """The path of the login and what is sent there."""
        account = {"account": self.account} if self.account else {}
        if self.access_key and self.secret_key:
            return "/v2/login/access-key", {"access_key": self.access_key, "secret_key": self.secret_key}
        assert self.email is not None  # one_credential
        assert self.password is not None
        return "/v2/login", {"email": self.email, "password": self.password, **account}


class Landscape(AbsentParts):
    """The connector of one account."""

    manifest: ClassVar[Manifest] = MANIFEST
    settings_model: ClassVar[type[BaseModel]] = LandscapeSettings

    def __init__(self, settings: LandscapeSettings, services: Services) -> None:
        self.base_url = settings.base_url
        self._entrance = services.client(
            SERVICE, base_url=settings.base_url, profile=TRANSIENT_RETRY, describe=describe
        )
        self._login = Login(self._entrance, *settings.login())
        self._http = services.client(
            SERVICE,
            base_url=settings.base_url,
            auth=self._login,
            max_concurrency=MANIFEST.max_concurrency,
            describe=describe,
        )
        self._api = Api(self._http)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()
        await self._entrance.aclose()

    async def check(self) -> Health:
        """Read one computer: it takes a login, and the permission that everything else needs."""
        page = await self._api.get("/computers", {"limit": "1"})
        self._api.items_of(page)
        facts = {"base_url": self.base_url, "computers": str(page.get("count"))}
        return Health(detail=f"GET /v2/computers answered by {self._http.base_url.host}", facts=facts)

    async def publish(self, app: App) -> str:
        """``<package>=<version>``, if any computer's archives have the package.

        Raises:
            NotThere: none has.
        """
        package, headers = wire.deb(app), effect_headers(app)
        page = await self._api.get("/packages", {"names": package.name, "limit": "1"}, headers=headers)
        if not self._api.items_of(page):
            raise NotThere(f"Landscape knows no package {package.name}", service=SERVICE, status=404)
        return f"{package.name}={app.version}"

    async def baseline(self, assignment: Assignment) -> str:
        """The number of the newest activity: one that we ask for gets a higher one."""
        newest = await self._newest(effect_headers(assignment))
        return str(max((int(found["id"]) for found in newest), default=0))

    async def _newest(self, headers: Headers) -> list[Json]:
        """The newest activities, whichever way the list is ordered, which is not documented."""
        page = await self._api.get("/activities/parents", {"limit": str(SEARCHED)}, headers=headers)
        found, count = self._api.items_of(page), int(page.get("count") or 0)
        if count > len(found) > 1 and found[0]["id"] < found[-1]["id"]:
            params = {"limit": str(SEARCHED), "offset": str(count - SEARCHED)}
            found = self._api.items_of(await self._api.get("/activities/parents", params, headers=headers))
        return sorted(found, key=lambda activity: int(activity["id"]), reverse=True)

    async def assign(self, assignment: Assignment) -> str:
        """Queue what is missing: an installation where it is not, an upgrade where another version is.

        Raises:
            PolicyError: a computer of the ring would get another version.
        """
        made, needed = await self._made(assignment, Action.ASSIGN), await self._needed(assignment)
        for action in sorted(needed - made.keys()):
            made[action] = await self._queue(assignment, action)
        return _joined(made)

    async def _needed(self, assignment: Assignment) -> set[str]:
        """The actions that the ring's computers need; refuses those that would do something else."""
        app, needed, wrong = assignment.app, set[str](), list[str]()
        async for computers in self._packages(assignment, effect_headers(assignment)):
            for computer in computers:
                if computer.get("current_version") == app.version:
                    continue
                needed.add(wire.UPGRADE if computer.get("current_version") else wire.INSTALL)
                if computer.get("available_version") != app.version:
                    wrong.append(f"computer {computer['id']} would get {computer.get('available_version')}")
        if wrong:
            raise PolicyError(
                f"{len(wrong)} computers would not get {app.version}: {wrong[0]}", service=SERVICE
            )
        return needed

    async def _packages(
        self, assignment: Assignment, headers: Headers | None = None
    ) -> AsyncIterator[Sequence[Json]]:
        """What the ring's computers have of the package, and could have: as many at once as a query names."""
        name = wire.deb(assignment.app).name
        async for members in self._members(wire.where(assignment), rows=COMPUTERS, headers=headers):
            query = " OR ".join(f"id:{computer['id']}" for computer in members)
            page = await self._api.get("/packages", {"query": query, "names": name}, headers=headers)
            yield [
                computer
                for package in self._api.items_of(page)
                if package.get("name") == name
                for computer in package.get("computers") or ()
            ]

    async def _queue(self, assignment: Assignment, action: str) -> str:
        named = numbered("packages", [wire.deb(assignment.app).name])
        params = {"query": wire.where(assignment), **named}
        activity = await self._api.queue(action, params, headers=effect_headers(assignment))
        if not activity.get("id"):
            raise PermanentError("Landscape queued an activity and did not say which", service=SERVICE)
        return str(activity["id"])

    async def remove(self, assignment: Assignment) -> str:
        """Keep back what was not delivered yet, then have the package removed."""
        await self.cancel(assignment)
        made = await self._made(assignment, Action.REMOVE)
        if not made and await self._is_anywhere(assignment):
            made = {wire.REMOVE: await self._queue(assignment, wire.REMOVE)}
        return _joined(made)

    async def _is_anywhere(self, assignment: Assignment) -> bool:
        async for computers in self._packages(assignment, effect_headers(assignment)):
            if any(computer.get("current_version") for computer in computers):
                return True
        return False

    async def unassign(self, assignment: Assignment) -> None:
        """Cancel what no computer has heard of; what was delivered has happened."""
        for action in (Action.ASSIGN, Action.REMOVE):
            await self._cancel(await self._waiting(assignment, action), effect_headers(assignment))

    async def cancel(self, assignment: Assignment) -> None:
        """Cancel what no computer has heard of."""
        await self._cancel(await self._waiting(assignment, Action.ASSIGN), effect_headers(assignment))

    async def _cancel(self, numbers: Iterable[str], headers: Headers) -> None:
        """Cancel the parts of activities that were not delivered; there may be none."""
        for number in numbers:
            query = f"parent-id:{number} status:undelivered"
            refused = await self._api.cancel(query, headers=headers)
            if refused and await self._any(query, headers):
                raise PermanentError(f"activity {number} cannot be cancelled: {refused}", service=SERVICE)

    async def _any(self, query: str, headers: Headers) -> bool:
        async for _ in self._api.activities(query, headers=headers, rows=1):
            return True
        return False

    async def _made(self, assignment: Assignment, action: Action) -> dict[str, str]:
        """By action the numbers of the activities that this turn asked for: those since its baseline."""
        newest, after = await self._newest(effect_headers(assignment)), int(assignment.baseline or 0)
        since = [activity for activity in newest if int(activity["id"]) > after]
        found = dict[str, str]()
        async for kind, number in self._ours(assignment, action, since):
            found.setdefault(kind, number)
        return found

    async def _waiting(self, assignment: Assignment, action: Action) -> list[str]:
        """The numbers of the activities that computers of the ring have yet to hear of, whichever turn's.

        An earlier deployment's too: each would bring what the archives have by then.
        """
        newest = await self._newest(effect_headers(assignment))
        running = [activity for activity in newest if not wire.is_over(activity)]
        return [number async for _, number in self._ours(assignment, action, running)]

    async def _ours(
        self, assignment: Assignment, action: Action, activities: Iterable[Json]
    ) -> AsyncIterator[tuple[str, str]]:
        """Those of the activities that we asked for on this ring: kind and number."""
        headers, app = effect_headers(assignment), assignment.app
        where = wire.where(assignment if action is Action.REMOVE else replace(assignment, devices=None))
        for activity in activities:
            kind, number = wire.kind_of(activity, app, creator=self._login.me), str(activity["id"])
            if kind in wire.KINDS[action] and await self._is_on(number, where, headers):
                yield str(kind), number

    async def _is_on(self, number: str, where: str, headers: Headers) -> bool:
        """Whether an activity is of the computers that a query finds: its first one tells."""
        async for children in self._api.activities(f"parent-id:{number}", headers=headers, rows=1):
            query = f"({where}) id:{children[0]['computer_id']}"
            page = await self._api.get("/computers", {"query": query, "limit": "1"}, headers=headers)
            return bool(self._api.items_of(page))
        return False

    async def members(self, target: Target) -> AsyncIterator[Sequence[Member]]:
        """The computers that the tag, the access group or the query finds."""
        async for page in self._members(wire.query(target), rows=1000):
            yield [wire.member(computer) for computer in page]

    def _members(self, where: str, *, rows: int, headers: Headers | None = None) -> AsyncIterator[list[Json]]:
        params = {"query": where, "limit": str(rows)}
        return self._api.pages("/computers", params, headers=headers)

    async def status(
        self, action: Action, assignment: Assignment, *, after: str | None = None
    ) -> AsyncIterator[ReportPage]:
        """What became of each computer's part; then who had nothing to do: it is there, or gone, already."""
        numbers, (at, _, place) = _split(assignment.made_id), (after or "").partition(" ")
        for number in numbers[numbers.index(at) if at in numbers else 0 :]:
            offset = int(place) if number == at else 0
            async for children in self._api.activities(f"parent-id:{number}", offset=offset):
                offset += len(children)
                after = f"{number} {offset}"
                yield ReportPage([wire.report(child, assignment.app, action) for child in children], after)
        async for computers in self._packages(assignment, effect_headers(assignment)):
            told = (wire.truth(computer, assignment.app, action) for computer in computers)
            yield ReportPage([report for report in told if report is not None], after)

    async def verify(self, action: Action, app: App, assignment: Assignment | None) -> Verified:
        """Ask by reads whether the effect is there."""
        if action in {Action.PUBLISH, Action.UPLOAD}:
            return Verified(holds=True, external_id=await self.publish(app))
        if assignment is None:
            raise ValueError(f"{action} is verified by its assignment")
        if action is Action.UNASSIGN:
            return Verified(holds=not await self._is_undelivered(assignment))
        made = await self._made(assignment, action)
        if action is Action.REMOVE:
            holds = bool(made) or not await self._is_anywhere(assignment)
        else:
            holds = not await self._needed(assignment) - made.keys()
        return Verified(holds=holds, external_id=_joined(made))

    async def _is_undelivered(self, assignment: Assignment) -> bool:
        headers = effect_headers(assignment)
        for action in (Action.ASSIGN, Action.REMOVE):
            for number in await self._waiting(assignment, action):
                if await self._any(f"parent-id:{number} status:undelivered", headers):
                    return True
        return False

    async def observe(self, assignment: Assignment) -> Observed:
        """What computers of the ring have in place of the decided version; what asked for it is over.

        Who has yet to be served, or could not be, still has an earlier one: nobody changed that.
        """
        version = assignment.app.version
        if await self._others(assignment):
            unserved = await self._unserved(assignment)
            # Read again: who was served while the activities were read has the decided version by now.
            others = await self._others(assignment)
            version = next((each for device, each in others.items() if device not in unserved), version)
        return Observed(assigned=True, version=version)

    async def _others(self, assignment: Assignment) -> dict[str, str]:
        """What computers have in place of the decided version."""
        found: dict[str, str] = {}
        async for computers in self._packages(assignment):
            versions = wire.versions(computers)
            found |= {device: each for device, each in versions if each != assignment.app.version}
        return found

    async def _unserved(self, assignment: Assignment) -> set[str]:
        """The computers that have not installed what they were asked to."""
        found: set[str] = set()
        for number in _split(assignment.made_id):
            async for children in self._api.activities(f"parent-id:{number}"):
                told = [wire.report(child, assignment.app, Action.ASSIGN) for child in children]
                found |= {each.device_id for each in told if each.state is not InstallState.INSTALLED}
        return found


def _joined(made: dict[str, str]) -> str:
    """The id of an effect that took one activity or two, or none because nothing was to be done."""
    return ",".join(sorted(made.values(), key=int)) or NOTHING


def _split(made_id: str | None) -> list[str]:
    return [number for number in (made_id or "").split(",") if number.isdecimal()]
