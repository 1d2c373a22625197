# SPDX-License-Identifier: Apache-2.0
"""AWX and Automation Platform behind the port: a push is a job of the operator's template, limited to a ring.

Sources: AWX's serializers and views (ansible/awx, 2024-10-23) for launch, relaunch and summaries; its API
guide for filters and for what ``limit`` means. A launch silently drops what its template does not ask for,
so a template is looked at before each launch, and a job that lost its limit is cancelled at once.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import BaseModel, Field, PositiveFloat, SecretStr, model_validator

from app.connectors.absent import AbsentParts
from app.connectors.ansible import wire
from app.connectors.ansible.wire import SERVICE, playbook
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
    PackageKind,
    Plane,
    ReportPage,
    Target,
    TargetKind,
    Verified,
)
from app.connectors.rest import Headers, Json, Rest, effect_headers
from app.connectors.services import Services
from app.connectors.settings import ADDRESS, PlaneSettings, not_enough
from app.resilience import Safety
from app.resilience.auth import Authenticator, Fixed
from app.resilience.errors import NotReady, NotThere, PermanentError, PolicyError

EVERYBODY = "all"
PAGE = 200
"""The most rows AWX puts on a page (its default for ``MAX_PAGE_SIZE``)."""
LOOK_AGAIN = 5.0
SEARCHED_PAGES = 5
"""A job is looked for among the template's newest 1,000: it was launched minutes ago, if at all."""
OVER = frozenset({"successful", "failed", "error", "canceled"})
NO_HOSTS = frozenset({"error", "canceled"})
TROUBLE = "runner_on_failed,runner_on_unreachable"

MANIFEST = Manifest(
    plane=Plane.ANSIBLE,
    title="Ansible AWX / Automation Platform",
    package_kinds=frozenset({PackageKind.PLAYBOOK}),
    target_kinds=frozenset({TargetKind.GROUP, TargetKind.INVENTORY}),
    cannot={
        Capability.CREATE: "job templates are the operator's; they are found by name",
        Capability.UPLOAD: "content comes from the template's project",
        Capability.RETURN: "the rollback template decides what a host goes back to",
        Capability.OBSERVE: "a job leaves nothing behind that could be read again",
    },
    max_concurrency=8,
    costs={
        Call.PUBLISH: Cost(4),
        Call.UPLOAD: Cost(0),
        Call.ASSIGN: Cost(4),
        Call.MEMBERS: Cost(1, PAGE),
        Call.STATUS: Cost(2, PAGE),
        Call.FIND_VERSION: Cost(0),
    },
    names_devices=1_000,
    sources=(
        "AWX awx/api/serializers.py and awx/api/views (2024-10-23)",
        "AWX 19 API document (2021-11-10)",
    ),
)


class AnsibleSettings(PlaneSettings):
    """What an operator sets under ``EUCORA_PLANES__ANSIBLE__…``: a token, or a user with a password.

    ``base_url`` ends with the API's version: ``…/api/v2``, behind the platform gateway
    ``…/api/controller/v2``. Times in seconds.
    """

    base_url: str = Field(pattern=ADDRESS)
    token: SecretStr | None = Field(default=None, min_length=1)
    username: str | None = Field(default=None, min_length=1)
    password: SecretStr | None = Field(default=None, min_length=1)
    poll_interval: PositiveFloat = 2.0
    patience: PositiveFloat = 60.0

    @model_validator(mode="after")
    def one_credential(self) -> "AnsibleSettings":
        """A token, or both of the others."""
        if self.token is None and (self.username is None or self.password is None):
            raise not_enough("token", "TOKEN, or USERNAME and PASSWORD")
        return self

    def authenticator(self) -> Authenticator:
        """What proves who we are."""
        if self.token is not None:
            return Fixed(SERVICE, "Bearer", self.token)
        assert self.username is not None  # one_credential
        assert self.password is not None
        return Fixed.basic(SERVICE, self.username, self.password)


class Ansible(AbsentParts):
    """The connector of one controller."""

    manifest: ClassVar[Manifest] = MANIFEST
    settings_model: ClassVar[type[BaseModel]] = AnsibleSettings

    def __init__(self, settings: AnsibleSettings, services: Services) -> None:
        self.base_url = settings.base_url
        self._settings = settings
        self._http = services.client(
            SERVICE,
            base_url=settings.base_url,
            auth=settings.authenticator(),
            max_concurrency=MANIFEST.max_concurrency,
            describe=wire.describe,
        )
        self._awx = Rest(self._http, "AWX", items="results", link="next")

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def check(self) -> Health:
        """Ask who we are: the controller's own ping would answer anybody."""
        me = self._awx.items_of(await self._awx.get("/me/"))
        if not me:
            raise PermanentError("AWX does not say who we are", service=SERVICE)
        facts = {"base_url": self.base_url, "user": str(me[0].get("username"))}
        return Health(detail=f"GET /me/ answered by {self._http.base_url.host}", facts=facts)

    async def publish(self, app: App) -> str:
        """The id of the template, which must be one that does as it is told; its rollback's, too.

        Raises:
            PolicyError: a template would not be limited, or would miss something.
            NotThere: there is no such template.
        """
        package, headers = playbook(app), effect_headers(app)
        if package.rollback_job_template is not None:
            await self._usable(package.rollback_job_template, app, headers)
        return await self._usable(package.job_template, app, headers)

    async def _usable(self, name: str, app: App, headers: Headers) -> str:
        template_id = await self._template(name, headers)
        await self._preflight(template_id, app, None, headers)
        return template_id

    async def _template(self, name: str, headers: Headers) -> str:
        found = await self._awx.every("/job_templates/", params={"name": name}, headers=headers)
        if not found:
            raise NotThere(f"AWX has no job template named {name}", service=SERVICE, status=404)
        if len(found) > 1:
            raise PolicyError(f"AWX has {len(found)} job templates named {name}", service=SERVICE)
        if found[0].get("job_slice_count", 1) > 1:
            raise PolicyError(f"the job template {name} cuts its jobs into slices", service=SERVICE)
        return str(found[0]["id"])

    async def _preflight(
        self, template_id: str, app: App, scope: Mapping[str, Any] | None, headers: Headers
    ) -> Json:
        """What a launch would ask for; refuses one that would drop what we say or wait for a person."""
        asked = await self._awx.get(f"/job_templates/{template_id}/launch/", headers=headers)
        wrong = list(wire.complaints(asked, playbook(app), scope))
        if wrong:
            raise PolicyError(f"job template {template_id}: {'; '.join(wrong)}", service=SERVICE)
        return asked

    async def assign(self, assignment: Assignment) -> str:
        """Launch the template on the ring; the job's id."""
        return await self._launch(assignment, assignment.external_id, assignment.key)

    async def remove(self, assignment: Assignment) -> str:
        """Stop the job that installs, then launch the rollback template on the same hosts.

        Raises:
            PolicyError: the package names no rollback template.
            NotReady: the job that installs takes its time to stop.
        """
        await self._stop(assignment, Action.ASSIGN, patience=self._settings.patience)
        return await self._launch(assignment, await self._rollback(assignment), assignment.key)

    async def _rollback(self, assignment: Assignment) -> str:
        name = playbook(assignment.app).rollback_job_template
        if name is None:
            raise PolicyError("the package names no rollback_job_template", service=SERVICE)
        return await self._template(name, effect_headers(assignment))

    async def _launch(self, assignment: Assignment, template_id: str, key: str) -> str:
        headers = effect_headers(assignment)
        scope = await self._scope(assignment, headers)
        found = await self._job(template_id, key, scope, headers)
        if found is not None:
            return str(found["id"])
        await self._preflight(template_id, assignment.app, scope, headers)
        body = {**scope, "extra_vars": wire.variables(assignment.app, key)}
        launched = await self._awx.post(f"/job_templates/{template_id}/launch/", body, headers=headers)
        if not launched.get("id"):
            raise self._awx.lost("a job")
        await self._require_obeyed(launched, scope, headers)
        return str(launched["id"])

    async def _require_obeyed(self, job: Json, scope: Mapping[str, Any], headers: Headers) -> None:
        """Cancel a job that runs on something else than it was told."""
        ignored = sorted({"limit", "extra_vars", "inventory"} & set(job.get("ignored_fields") or {}))
        if ignored or job.get("limit") != scope["limit"]:
            await self._cancel(job, headers)
            what = " and ".join(ignored) or "limit"
            raise PolicyError(f"AWX ignored our {what}; job {job['id']} was cancelled", service=SERVICE)

    async def _scope(self, assignment: Assignment, headers: Headers) -> Mapping[str, Any]:
        """``limit`` and ``inventory`` of a target, or of the hosts that are named."""
        target, hosts = assignment.target, [_plain(host.name) for host in assignment.devices or ()]
        if target.kind is TargetKind.INVENTORY:
            return {"limit": ":".join(hosts) or EVERYBODY, "inventory": int(target.ref)}
        group = await self._awx.get(f"/groups/{target.ref}/", headers=headers)
        return {
            "limit": ":".join(hosts) or _plain(str(group.get("name", ""))),
            "inventory": group["inventory"],
        }

    async def _job(
        self, template_id: str, key: str, scope: Mapping[str, Any], headers: Headers
    ) -> Json | None:
        """The newest job with our marker and limit. AWX filters by no variable, so they are read here."""
        params = {"job_template": template_id, "order_by": "-id", "page_size": str(PAGE)}
        searched = 0
        async for page in self._awx.pages("/jobs/", params=params, headers=headers):
            for job in page:
                again = job.get("launch_type") == "relaunch"
                if wire.marker_of(job) == key and (again or job.get("limit") == scope["limit"]):
                    return job
            searched += 1
            if searched == SEARCHED_PAGES:
                return None
        return None

    async def unassign(self, assignment: Assignment) -> None:
        """Cancel what still runs; a job that is over leaves nothing behind."""
        await self._stop(assignment, Action.ASSIGN)
        if playbook(assignment.app).rollback_job_template is not None:
            await self._stop(assignment, Action.REMOVE)

    async def cancel(self, assignment: Assignment) -> None:
        """Cancel the job that installs, if it still runs."""
        await self._stop(assignment, Action.ASSIGN)

    async def _stop(self, assignment: Assignment, action: Action, *, patience: float = 0.0) -> None:
        job = await self._made_by(assignment, action)
        waited = 0.0
        while job is not None and job["status"] not in OVER:
            if waited == 0.0:
                await self._cancel(job, effect_headers(assignment))
            if waited >= patience:
                break
            await asyncio.sleep(self._settings.poll_interval)
            waited += self._settings.poll_interval
            job = await self._awx.get(f"/jobs/{job['id']}/", headers=effect_headers(assignment))
        if patience and job is not None and job["status"] not in OVER:
            detail = f"job {job['id']} is still being cancelled"
            raise NotReady(detail, service=SERVICE, retry_after=LOOK_AGAIN)

    async def _made_by(self, assignment: Assignment, action: Action) -> Json | None:
        """The job of one of the ring's effects."""
        headers = effect_headers(assignment)
        template = assignment.external_id if action is Action.ASSIGN else await self._rollback(assignment)
        asked = assignment if action is Action.REMOVE else replace(assignment, devices=None)
        scope = await self._scope(asked, headers)
        return await self._job(template, assignment.key_of(action), scope, headers)

    async def _cancel(self, job: Json, headers: Headers) -> None:
        """405 says that there is nothing to cancel any more."""
        path = f"/jobs/{job['id']}/cancel/"
        await self._awx.send("POST", path, headers=headers, safety=Safety.IDEMPOTENT, accept={405})

    async def retry(self, assignment: Assignment) -> str:
        """Relaunch on the hosts that failed or were not reached; only once the job is over."""
        headers, made_id = effect_headers(assignment), assignment.made_id
        newest = await self._made_by(assignment, Action.ASSIGN)
        if newest is not None and newest["id"] > int(str(made_id)):
            return str(newest["id"])
        body = {"hosts": "failed"}
        again = await self._awx.post(f"/jobs/{made_id}/relaunch/", body, headers=headers)
        if not again.get("id"):
            raise self._awx.lost("a job")
        return str(again["id"])

    async def members(self, target: Target) -> AsyncIterator[Sequence[Member]]:
        """The hosts that a job on the target would run on: of groups below it too, without disabled ones."""
        within = "inventories/{}/hosts" if target.kind is TargetKind.INVENTORY else "groups/{}/all_hosts"
        params = {"enabled": "true", "order_by": "id", "page_size": str(PAGE)}
        async for page in self._awx.pages(f"/{within.format(target.ref)}/", params=params):
            yield [Member(str(host["id"]), str(host["name"])) for host in page]

    async def status(
        self, action: Action, assignment: Assignment, *, after: str | None = None
    ) -> AsyncIterator[ReportPage]:
        """What the job did to each host, once its last event is counted; nothing before.

        Raises:
            NotReady: the job that takes back is not over.
            PermanentError: the job broke off by itself, before it had a word for any host.
        """
        job = await self._awx.get(f"/jobs/{assignment.made_id}/")
        if job["status"] not in OVER or not job.get("event_processing_finished", True):
            if action is Action.REMOVE:
                raise NotReady(f"job {job['id']} is not over", service=SERVICE, retry_after=LOOK_AGAIN)
            return
        told = after is not None
        params = {"order_by": "id", "page_size": str(PAGE)}
        path = f"/jobs/{job['id']}/job_host_summaries/"
        async for page, following in self._awx.linked_pages(path, params=params, link=after):
            after = following or after
            told = told or bool(page)
            reasons = await self._reasons(job["id"], page)
            reports = [wire.report(row, reasons.get(row.get("host")), action) for row in page]
            yield ReportPage(reports, mark=after)
        if not told and job["status"] in NO_HOSTS:
            words = (
                f"job {job['id']} ended as {job['status']}: {job.get('job_explanation') or 'no reason given'}"
            )
            raise PermanentError(words, service=SERVICE)

    async def _reasons(self, job_id: int, page: Sequence[Json]) -> dict[int | None, str]:
        """What the last event of each host in trouble says."""
        hosts = [
            str(row["host"]) for row in page if row.get("host") and (row.get("failed") or row.get("dark"))
        ]
        if not hosts:
            return {}
        params = {"event__in": TROUBLE, "host__in": ",".join(hosts), "order_by": "id", "page_size": str(PAGE)}
        events = self._awx.pages(f"/jobs/{job_id}/job_events/", params=params)
        return {event.get("host"): wire.reason(event) async for found in events for event in found}

    async def verify(self, action: Action, app: App, assignment: Assignment | None) -> Verified:
        """Ask by reads whether the effect is there."""
        if action in {Action.PUBLISH, Action.UPLOAD}:
            template_id = await self._template(playbook(app).job_template, effect_headers(app))
            return Verified(holds=True, external_id=template_id)
        if assignment is None:
            raise ValueError(f"{action} is verified by its assignment")
        if action is Action.UNASSIGN:
            jobs = [await self._made_by(assignment, Action.ASSIGN)]
            if playbook(app).rollback_job_template is not None:
                jobs.append(await self._made_by(assignment, Action.REMOVE))
            return Verified(holds=all(job is None or job["status"] in OVER for job in jobs))
        job = await self._made_by(assignment, action)
        return Verified(holds=job is not None, external_id=str(job["id"]) if job else None)


def _plain(name: str) -> str:
    """The name of a group or a host as a limit.

    Raises:
        PolicyError: it would mean something else there.
    """
    if not name or wire.PATTERN_SIGNS.search(name):
        raise PolicyError(f"the name {name!r} means something else in a limit", service=SERVICE)
    return name
