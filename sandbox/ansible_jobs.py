# SPDX-License-Identifier: Apache-2.0
"""AWX's jobs: launched from templates, which drop what they do not ask for; hosts do as the fleet does."""

import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.ansible_pages import page, stamp
from sandbox.fleet import Life
from sandbox.journal import Document, Table
from sandbox.plan import RINGS, Device, Ring, Software
from sandbox.plane import Plane
from sandbox.rest import Body, Refused, effect_of, read, row_or_404

PENDING_SECONDS = 0.2
EVENTS_SECONDS = 0.3
"""From a job's end until its last event is counted."""
EVERYBODY = "all"
OVER = ("successful", "failed", "canceled", "error")


class Launch(Body):
    """What may be said at a launch; what the template does not ask for is dropped."""

    extra_vars: dict[str, Any] | str | None = None
    limit: str | None = None
    inventory: int | None = None
    job_type: str | None = None


class Relaunch(Body):
    """On which hosts of the job."""

    hosts: Literal["all", "failed"] = "all"


class Jobs:
    """The jobs, and what became of their hosts."""

    def __init__(
        self,
        plane: Plane,
        templates: Table,
        *,
        host_id: Callable[[Device], int],
    ) -> None:
        self._plane = plane
        self._templates = templates
        self._table = plane.table("jobs")
        self._host_id = host_id
        self._ended: dict[int, str] = {}
        self._outcomes_of: dict[int, list[tuple[Device, str]]] = {}

    def routes(self) -> list[Route]:
        """The routes of this noun."""
        return [
            Route("/job_templates/{id:int}/launch/", self._asked, methods=["GET"]),
            Route("/job_templates/{id:int}/launch/", self._launch, methods=["POST"]),
            Route("/jobs/", self._list, methods=["GET"]),
            Route("/jobs/{id:int}/", self._read, methods=["GET"]),
            Route("/jobs/{id:int}/cancel/", self._cancel, methods=["POST"]),
            Route("/jobs/{id:int}/relaunch/", self._relaunch, methods=["POST"]),
            Route("/jobs/{id:int}/job_host_summaries/", self._summaries, methods=["GET"]),
            Route("/jobs/{id:int}/job_events/", self._events, methods=["GET"]),
        ]

    async def _asked(self, request: Request) -> Response:
        template = row_or_404(self._templates, request)
        asks = {name: value for name, value in template.items() if name.startswith("ask_")}
        needs = {name: template[name] for name in ("variables_needed_to_start", "passwords_needed_to_start")}
        told = {
            **asks,
            **needs,
            "can_start_without_user_input": not any(asks.values()),
            "survey_enabled": template["survey_enabled"],
            "credential_needed_to_start": False,
            "inventory_needed_to_start": False,
            "job_template_data": {"id": template["id"], "name": template["name"], "description": ""},
            "defaults": {
                "limit": template["limit"],
                "extra_vars": "---",
                "inventory": {"id": template["inventory"], "name": "Fleet"},
            },
        }
        return JSONResponse(told)

    async def _launch(self, request: Request) -> Response:
        template, body = row_or_404(self._templates, request), await read(request, Launch)
        if template["passwords_needed_to_start"]:
            needed = template["passwords_needed_to_start"]
            raise Refused(400, "passwords", body={"passwords_needed_to_start": needed})
        given = body.model_dump(exclude_none=True)
        ignored = {name: value for name, value in given.items() if not takes(template, name, value)}
        taken = {name: value for name, value in given.items() if name not in ignored}
        variables = taken.get("extra_vars", {})
        missing = sorted(set(template["variables_needed_to_start"]) - set(variables))
        if missing:
            told = [f"'{name}' value missing" for name in missing]
            raise Refused(400, "variables", body={"variables_needed_to_start": told})
        job = self._start(request, template, str(taken.get("limit", template["limit"])), variables, None)
        return JSONResponse({**self._shown(job), "job": job["id"], "ignored_fields": ignored}, 201)

    def _start(
        self,
        request: Request,
        template: Document,
        limit: str,
        variables: dict[str, Any],
        parent: Document | None,
    ) -> Document:
        """Run it on the hosts that the limit names; the fleet's devices check in while it runs."""
        fleet, now = self._plane.fleet, self._plane.clock()
        named = self._limited(limit)
        only = {ring: some for ring, some in named.items() if some is not None} if parent is None else {}
        rings = list(named) if parent is None else parent["rings"]
        product = str(variables.get("eucora_app_name", ""))
        version = str(variables.get("eucora_app_version", ""))
        removes = template["playbook"].startswith("rollback")
        software = Software(f"{product}@{version}", product, version)
        pending = PENDING_SECONDS * self._plane.scale
        runs = pending + max((fleet.longest_delay(ring) for ring in rings), default=0.0)
        intent: Literal["install", "uninstall"] = "uninstall" if removes else "install"
        orders = {
            ring: fleet.begin(software, ring, intent, start=now, seconds=runs + 0.001, only=only.get(ring)).id
            for ring in rings
        }
        number = len(self._table) + 1
        row = {
            "id": number,
            "template": template["id"],
            "name": template["name"],
            "limit": limit,
            "extra_vars": variables,
            "created": now,
            "begins": now + pending,
            "ends": now + runs,
            "canceled": None,
            "rings": rings,
            "only": {ring: list(some) for ring, some in only.items()},
            "orders": orders,
            "product": product,
            "app_id": software.app_id,
            "removes": removes,
            "parent": None if parent is None else parent["id"],
            "effect_key": effect_of(request),
        }
        return self._table.put(str(number), row)

    def _limited(self, limit: str) -> dict[Ring, tuple[int, ...] | None]:
        """The rings that a limit names, whole (None) or by the numbers of their hosts."""
        if limit in {"", EVERYBODY, *RINGS}:
            return {ring: None for ring in RINGS if limit in {"", EVERYBODY, ring}}
        names, found = set(limit.split(":")), dict[Ring, tuple[int, ...] | None]()
        for ring in RINGS:
            hosts = [each.index for each in self._plane.fleet.devices(ring) if each.name.lower() in names]
            if hosts:
                found[ring] = tuple(hosts)
        return found

    async def _list(self, request: Request) -> Response:
        wanted = request.query_params.get("job_template")
        rows = [row for row in self._table.values() if wanted in {None, str(row["template"])}]
        if request.query_params.get("order_by") == "-id":
            rows.reverse()

        def some(skip: int, top: int) -> list[Document]:
            """A list leaves out what only the job itself tells."""
            left_out = {"event_processing_finished", "host_status_counts"}
            jobs = (self._shown(row) for row in rows[skip : skip + top])
            return [{name: job[name] for name in job.keys() - left_out} for job in jobs]

        return page(request, len(rows), some, filters=["job_template"])

    async def _read(self, request: Request) -> Response:
        return JSONResponse(self._shown(row_or_404(self._table, request)))

    async def _cancel(self, request: Request) -> Response:
        row = row_or_404(self._table, request)
        if self._status(row) in OVER:
            raise Refused(405, 'Method "POST" not allowed.')
        for order in row["orders"].values():
            self._plane.fleet.stop(order)
        now = self._plane.clock()
        self._table.put(str(row["id"]), row | {"canceled": now, "ends": now})
        return Response(status_code=202)

    async def _relaunch(self, request: Request) -> Response:
        row, body = row_or_404(self._table, request), await read(request, Relaunch)
        if self._status(row) not in OVER:
            words = f"Job is {self._status(row)}; relaunch on failed hosts is only possible once it is over."
            raise Refused(400, words, body={"hosts": [words]})
        again = self._templates[str(row["template"])]
        parent = row if body.hosts == "failed" else None
        if parent is not None and not any(self._troubled(parent)):
            raise Refused(400, "no hosts", body={"hosts": ["No failed hosts found."]})
        job = self._start(request, again, row["limit"], row["extra_vars"], parent)
        if parent is not None:
            names = ",".join(device.name.lower() for device in self._troubled(parent))
            job = self._table.put(str(job["id"]), job | {"limit": names})
        return JSONResponse({**self._shown(job), "job": job["id"]}, 201)

    async def _summaries(self, request: Request) -> Response:
        row = row_or_404(self._table, request)
        rows = self._counted(row)
        return page(
            request,
            len(rows),
            lambda skip, top: [self._summary(row, *found) for found in rows[skip : skip + top]],
        )

    async def _events(self, request: Request) -> Response:
        row, given = row_or_404(self._table, request), request.query_params
        hosts = {int(host) for host in given.get("host__in", "").split(",") if host}
        kinds = given.get("event__in", "runner_on_ok,runner_on_failed,runner_on_unreachable").split(",")
        found = [
            (device, ended)
            for device, ended in self._counted(row)
            if EVENTS[ended][0] in kinds and (not hosts or self._host_id(device) in hosts)
        ]
        return page(
            request,
            len(found),
            lambda skip, top: [self._event(row, *each) for each in found[skip : skip + top]],
            filters=["event__in", "host__in"],
        )

    def _counted(self, row: Document) -> list[tuple[Device, str]]:
        """The outcomes once the last event is counted; nothing changes them any more."""
        if not self._is_counted(row):
            return []
        if row["id"] not in self._outcomes_of:
            self._outcomes_of[row["id"]] = list(self._outcomes(row))
        return self._outcomes_of[row["id"]]

    def _outcomes(self, row: Document) -> Iterator[tuple[Device, str]]:
        """Each host of a job and how it ended: ``ok``, ``failures`` or ``dark``; nothing after a cancel."""
        if row["canceled"] is not None:
            return
        fleet = self._plane.fleet
        only = None if row["parent"] is None else set(self._troubled(self._table[str(row["parent"])]))
        for ring in row["rings"]:
            named = fleet.concerned(ring, row.get("only", {}))
            devices = [device for device in named if only is None or device in only]
            lives = fleet.lives(row["product"], ring, devices, until=row["ends"])
            for device, life in zip(devices, lives, strict=True):
                yield device, outcome(life, row["orders"][ring], row["app_id"], removes=row["removes"])

    def _troubled(self, row: Document) -> Iterator[Device]:
        return (device for device, ended in self._outcomes(row) if ended != "ok")

    def _is_counted(self, row: Document) -> bool:
        ends: float = row["ends"]
        return self._plane.clock() >= ends + EVENTS_SECONDS * self._plane.scale

    def _status(self, row: Document) -> str:
        now = self._plane.clock()
        if row["canceled"] is not None:
            return "canceled"
        if now < row["ends"]:
            return "pending" if now < row["begins"] else "running"
        if row["id"] not in self._ended:  # which nothing changes any more
            self._ended[row["id"]] = "failed" if any(self._troubled(row)) else "successful"
        return self._ended[row["id"]]

    def _shown(self, row: Document) -> Document:
        status = self._status(row)
        over = status in OVER
        return {
            "id": row["id"],
            "type": "job",
            "url": f"/api/v2/jobs/{row['id']}/",
            "name": row["name"],
            "job_template": row["template"],
            "unified_job_template": row["template"],
            "inventory": 1,
            "launch_type": "manual" if row["parent"] is None else "relaunch",
            "job_type": "run",
            "status": status,
            "failed": status in {"failed", "canceled", "error"},
            "limit": row["limit"],
            "extra_vars": json.dumps(row["extra_vars"]),
            "created": stamp(row["created"]),
            "started": stamp(row["begins"]) if status != "pending" else None,
            "finished": stamp(row["ends"]) if over else None,
            "canceled_on": None if row["canceled"] is None else stamp(row["canceled"]),
            "job_explanation": "",
            "event_processing_finished": self._is_counted(row),
        }

    def _summary(self, row: Document, device: Device, ended: str) -> Document:
        counts = dict.fromkeys(("ok", "changed", "dark", "failures", "skipped", "rescued", "ignored"), 0)
        if ended == "ok":
            counts |= {"ok": 3, "changed": 1}
        else:
            counts |= {ended: 1}
        host = self._host_id(device)
        return {
            "id": row["id"] * 10_000_000 + host,
            "type": "job_host_summary",
            "job": row["id"],
            "host": host,
            "host_name": device.name.lower(),
            "processed": 1,
            "failed": ended != "ok",
            **counts,
        }

    def _event(self, row: Document, device: Device, ended: str) -> Document:
        kind, words = EVENTS[ended]
        return {
            "id": row["id"] * 10_000_000 + self._host_id(device),
            "type": "job_event",
            "job": row["id"],
            "event": kind,
            "failed": ended != "ok",
            "host": self._host_id(device),
            "host_name": device.name.lower(),
            "task": "Uninstall the package" if row["removes"] else "Install the package",
            "event_data": {"res": {"msg": words}} if words else {},
            "stdout": "",
        }


EVENTS = {
    "ok": ("runner_on_ok", ""),
    "failures": ("runner_on_failed", "non-zero return code"),
    "dark": ("runner_on_unreachable", "Failed to connect to the host via ssh: Connection timed out"),
}


def takes(template: Document, name: str, value: Any) -> bool:
    """Whether a template takes a prompt; one that equals its own value is no prompt."""
    asks = {"extra_vars": "ask_variables_on_launch", "limit": "ask_limit_on_launch"}
    own = template.get(name)
    return bool(template.get(asks.get(name, f"ask_{name}_on_launch"))) or value == own


def outcome(life: Life, order: str, app_id: str, *, removes: bool) -> str:
    """How a host's part of a job ended."""
    if order not in life.seen:
        return "dark"
    if removes:
        return "failures" if app_id in life.stuck else "ok"
    return "ok" if life.installed is not None and life.installed.app_id == app_id else "failures"
