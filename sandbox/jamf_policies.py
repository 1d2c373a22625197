# SPDX-License-Identifier: Apache-2.0
"""Jamf Pro's policies and groups: the Classic API, XML to write, XML or JSON to read."""

import json
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as ET

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from sandbox.fleet import Intent, Life
from sandbox.jamf_packages import Packages, bundle_of
from sandbox.journal import Document
from sandbox.plan import RINGS, Device, Ring
from sandbox.plane import Plane
from sandbox.rest import Refused, effect_of, row_or_404

GROUPS: dict[Ring, int] = {ring: 12 + place for place, ring in enumerate(RINGS)}
STATIC: tuple[Ring, ...] = ("LAB", "CANARY")
"""Rings whose groups are static; the others' are smart."""
COMPUTERS_PER_RING = 1_000_000
TRUE, FALSE = "true", "false"
EMPTY: Document = {"all": False, "groups": [], "computers": [], "excluded": [], "packages": [], "command": ""}
"""What a new policy has where its XML says nothing."""
FORGOTTEN = re.compile(r"pkgutil\s+--forget\s+([\w.-]+)")
"""By this a command removes an application; the sandbox runs nothing."""


def computer_id(device: Device) -> int:
    """The number of a computer, from which its ring can be told."""
    return (RINGS.index(device.ring) + 1) * COMPUTERS_PER_RING + device.index + 1


class Policies:
    """The policies of the instance."""

    def __init__(self, plane: Plane, packages: Packages) -> None:
        self._plane = plane
        self._packages = packages
        self._table = plane.table("policies")
        self._numbers = plane.table("numbers")

    def routes(self) -> list[Route]:
        """The routes of policies, groups and histories."""
        return [
            Route("/policies", self._list, methods=["GET"]),
            Route("/policies/name/{name:path}", self._by_name, methods=["GET"]),
            Route("/policies/id/{id:int}", self._by_id, methods=["GET"]),
            Route("/policies/id/{id:int}", self._create, methods=["POST"]),
            Route("/policies/id/{id:int}", self._change, methods=["PUT"]),
            Route("/policies/id/{id:int}", self._delete, methods=["DELETE"]),
            Route("/computergroups/id/{id:int}", self._group, methods=["GET"]),
            Route("/computerhistory/id/{id:int}/subset/PolicyLogs", self._logs, methods=["GET"]),
        ]

    async def _list(self, request: Request) -> Response:
        rows = [{"id": row["id"], "name": row["general"]["name"]} for row in self._table.values()]
        return answer(request, "policies", rows, "policy")

    async def _by_name(self, request: Request) -> Response:
        name = request.path_params["name"]
        found = [row for row in self._rows() if row["general"]["name"] == name]
        if not found:
            raise Refused(404, "Not Found")
        return answer(request, "policy", self._shown(found[0]))

    async def _by_id(self, request: Request) -> Response:
        return answer(request, "policy", self._shown(self._one(request)))

    def _shown(self, row: Document) -> Document:
        """A policy as it is read; of a package that is gone nothing is left in it."""
        known = [(each, self._packages.get(str(each["id"]))) for each in row["packages"]]
        packages = [
            each | {"name": found["body"]["packageName"]} for each, found in known if found is not None
        ]
        return shown(row, packages)

    def _one(self, request: Request) -> Document:
        return EMPTY | row_or_404(self._table, request, "Not Found")

    def _rows(self) -> Iterator[Document]:
        """All policies; one from an older journal may lack parts."""
        return (EMPTY | row for row in self._table.values())

    async def _create(self, request: Request) -> Response:
        written = await self._written(request)
        if any(row["general"]["name"] == written["general"].get("name") for row in self._table.values()):
            raise Refused(409, "Error: Duplicate name")
        number = int(self._numbers.get("policy", {"next": 3})["next"])
        self._numbers.put("policy", {"next": number + 1})
        row = {"id": number, "effect_key": effect_of(request), **EMPTY, **written}
        self._table.put(str(number), row)
        self._direct()
        return xml("policy", {"id": number}, 201)

    async def _change(self, request: Request) -> Response:
        """What is given replaces what was there, a list that is given empty too; the rest stays.

        The fleet does what a policy now says; that a real one does not run again where it ran is left out.
        """
        row, written = self._one(request), await self._written(request, partly=True)
        general = row["general"] | written.pop("general")
        self._table.put(str(row["id"]), row | written | {"general": general})
        self._direct()
        return xml("policy", {"id": row["id"]}, 201)

    async def _delete(self, request: Request) -> Response:
        row = self._one(request)
        self._table.drop(str(row["id"]))
        self._direct()
        return xml("policy", {"id": row["id"]}, 200)

    async def _written(self, request: Request, *, partly: bool = False) -> Document:
        if "xml" not in request.headers.get("content-type", ""):
            raise Refused(415, "Unsupported Media Type")
        try:
            root = ET.fromstring(await request.body())  # noqa: S314 - what a test or the product wrote
        except ET.ParseError as error:
            raise Refused(400, "Error: the XML cannot be read") from error
        general = {child.tag: child.text for child in root.find("general") or ()}
        if not partly and not general.get("name"):
            raise Refused(409, "Error: Name is required")
        written = given(root)
        packages = written.get("packages", ())
        if any(self._packages.get(str(package["id"])) is None for package in packages):
            raise Refused(409, "Error: Problem with package")
        return {"general": general, **written}

    def _direct(self) -> None:
        """Tell the fleet what stands, for each package that any policy ever named."""
        for package in self._packages.rows():
            intents: dict[Ring, Intent] = {}
            only: dict[Ring, tuple[int, ...] | None] = {}
            for row in self._active():
                intent = self._intent(row, package)
                for ring in RINGS:
                    if intent and self._is_on(row, ring) and intents.get(ring) != "install":
                        intents[ring], only[ring] = intent, self._named(row, ring)
            self._plane.fleet.direct(self._packages.software(package), intents, only)

    def _is_on(self, row: Document, ring: Ring) -> bool:
        held = row["all"] or GROUPS[ring] in row["groups"] or self._named(row, ring) is not None
        return held and GROUPS[ring] not in row["excluded"]

    def _named(self, row: Document, ring: Ring) -> tuple[int, ...] | None:
        """The numbers of the ring's computers that a policy names, if it names any and not the group."""
        devices = [device_of(number, self._plane) for number in row["computers"]]
        found = tuple(device.index for device in devices if device is not None and device.ring == ring)
        return None if row["all"] or GROUPS[ring] in row["groups"] or not found else found

    def _active(self) -> Iterator[Document]:
        return (row for row in self._rows() if row["general"].get("enabled", TRUE) == TRUE)

    def _intent(self, row: Document, package: Document) -> Intent | None:
        """What a policy does to a package's application."""
        named = {each["id"] for each in row["packages"] if each["action"] == "Install"}
        if str(package["id"]) in named:
            return "install"
        forgotten = FORGOTTEN.findall(row["command"])
        return "uninstall" if bundle_of(self._packages.software(package).product) in forgotten else None

    async def _group(self, request: Request) -> Response:
        ring = ring_of_group(request.path_params["id"])
        static = ring in STATIC
        devices = self._plane.fleet.devices(ring) if static else iter(())
        computers = [{"id": computer_id(device), "name": device.name} for device in devices]
        told = {"id": GROUPS[ring], "name": ring, "is_smart": not static, "computers": computers}
        return answer(request, "computer_group", told)

    async def _logs(self, request: Request) -> Response:
        device = device_of(request.path_params["id"], self._plane)
        if device is None:
            raise Refused(404, "Not Found")
        logs = [
            {"policy_id": row["id"], "policy_name": row["general"]["name"], "status": status}
            for row in self._rows()
            if self._is_on(row, device.ring) and (status := self._ended(row, device)) is not None
        ]
        return answer(request, "computer_history", {"policy_logs": logs})

    def _ended(self, row: Document, device: Device) -> str | None:
        """How a policy ended on a computer; None before."""
        for package in self._packages.rows():
            intent = self._intent(row, package)
            order = self._plane.fleet.standing(str(package["id"])).get(device.ring)
            if intent is None or order is None or order.intent != intent:
                continue
            software = self._packages.software(package)
            [life] = self._plane.fleet.lives(software.product, device.ring, [device])
            if order.id in life.seen:
                return "Failed" if has_failed(life, software.app_id, intent) else "Completed"
        return None


def has_failed(life: Life, app_id: str, intent: Intent) -> bool:
    """Whether the last try did not do what it should."""
    return app_id in (life.failed if intent == "install" else life.stuck)


def ring_of_group(number: int) -> Ring:
    """The ring whose computers a group holds."""
    ring = next((ring for ring, known in GROUPS.items() if known == number), None)
    if ring is None:
        raise Refused(404, "Not Found")
    return ring


def device_of(number: int, plane: Plane) -> Device | None:
    """The computer with a number, if there is one."""
    place, index = number // COMPUTERS_PER_RING - 1, number % COMPUTERS_PER_RING - 1
    if not (0 <= place < len(RINGS) and 0 <= index < plane.fleet.plan.devices(RINGS[place])):
        return None
    return Device(RINGS[place], index)


def given(root: ET.Element) -> Document:
    """Those parts of a policy that its XML has, even if empty; of the others it says nothing."""
    parts: dict[str, tuple[str, Any]] = {
        "all": ("scope/all_computers", root.findtext("scope/all_computers") == TRUE),
        "groups": ("scope/computer_groups", numbers(root, "scope/computer_groups/computer_group")),
        "computers": ("scope/computers", numbers(root, "scope/computers/computer")),
        "excluded": ("scope/exclusions", numbers(root, "scope/exclusions/computer_groups/computer_group")),
        "packages": ("package_configuration/packages", packages_of(root)),
        "command": ("files_processes", root.findtext("files_processes/run_command") or ""),
    }
    return {name: value for name, (place, value) in parts.items() if root.find(place) is not None}


def numbers(root: ET.Element, place: str) -> list[int]:
    """The ids of the elements there."""
    return [int(found.text or 0) for found in root.iterfind(f"{place}/id")]


def packages_of(root: ET.Element) -> list[Document]:
    """The packages of a policy, and what is done with each."""
    return [
        {"id": found.findtext("id"), "action": found.findtext("action")}
        for found in root.iterfind("package_configuration/packages/package")
    ]


def shown(row: Document, packages: list[Document]) -> Document:
    """A policy as it is read."""
    flags = {name: text == TRUE for name, text in row["general"].items() if text in {TRUE, FALSE}}
    return {
        "general": {"id": row["id"], **row["general"], **flags},
        "scope": {
            "all_computers": row["all"],
            "computers": [{"id": number} for number in row["computers"]],
            "computer_groups": [{"id": number} for number in row["groups"]],
            "exclusions": {"computer_groups": [{"id": number} for number in row["excluded"]]},
        },
        "package_configuration": {"packages": packages},
        "files_processes": {"run_command": row["command"]},
    }


def answer(request: Request, name: str, value: Any, member: str = "") -> Response:
    """JSON for who accepts it, XML for everybody else."""
    if "json" in request.headers.get("accept", ""):
        return Response(json.dumps({name: value}), media_type="application/json")
    return xml(name, {"size": len(value), member: value} if member else value, 200)


def xml(name: str, value: Any, status: int) -> Response:
    """A value as the Classic API writes it."""
    root = ET.Element(name)
    _fill(root, value)
    return Response(
        ET.tostring(root, encoding="UTF-8", xml_declaration=True), status, media_type="application/xml"
    )


def _fill(element: ET.Element, value: Any) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            for each in inner if isinstance(inner, list) else [inner]:
                _fill(ET.SubElement(element, name), each)
    elif isinstance(value, bool):
        element.text = "true" if value else "false"
    else:
        element.text = "" if value is None else str(value)


def html(status: int, words: str) -> Response:
    """The Classic API's errors are pages."""
    return HTMLResponse(f"<html><body>{words}</body></html>", status)
