# SPDX-License-Identifier: Apache-2.0
"""The tenant, its groups, its devices in Entra and in Intune, and the apps found on them."""

from collections.abc import Callable
from functools import cache
from typing import Literal
from uuid import NAMESPACE_URL, uuid5

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sandbox.graph import (
    Document,
    GraphResponse,
    collection,
    equality,
    not_found,
    options,
    select,
)
from sandbox.plan import RINGS, Device, Ring, Software
from sandbox.plane import Plane
from sandbox.witness import instant

TENANT_ID = str(uuid5(NAMESPACE_URL, "eucora-sandbox/tenant"))
CREATED_AT = 1_700_000_000.0
Identity = Literal["object", "entra", "intune"]
MANAGED = "/deviceManagement/managedDevices"
DETECTED = "/deviceManagement/detectedApps"


class Directory:
    """What can be read about the tenant."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    def routes(self) -> list[Route]:
        """The routes of this noun."""
        return [
            Route("/organization", self._organization, methods=["GET"]),
            Route("/groups", self._groups, methods=["GET"]),
            Route("/groups/{group_id}", self._group, methods=["GET"]),
            Route("/groups/{group_id}/members", self._members, methods=["GET"]),
            Route("/groups/{group_id}/transitiveMembers", self._members, methods=["GET"]),
            Route("/devices", self._devices, methods=["GET"]),
            Route("/devices/{object_id}", self._device, methods=["GET"]),
            Route(MANAGED, self._managed_devices, methods=["GET"]),
            Route(MANAGED + "/{managed_id}", self._managed_device, methods=["GET"]),
            Route(MANAGED + "/{managed_id}/syncDevice", self._sync, methods=["POST"]),
            Route(DETECTED, self._detected_apps, methods=["GET"]),
            Route(DETECTED + "/{detected_id}", self._detected_app, methods=["GET"]),
            Route(DETECTED + "/{detected_id}/managedDevices", self._devices_with_app, methods=["GET"]),
        ]

    async def _organization(self, request: Request) -> Response:
        row = {"id": TENANT_ID, "displayName": "Sandbox tenant", "createdDateTime": instant(CREATED_AT)}
        return collection(request, 1, lambda skip, _: [row][skip:], filters=False)

    async def _groups(self, request: Request) -> Response:
        given = options(request, ["$top", "$select", "$skiptoken", "$count", "$filter"])
        rows = filtered(
            [group(self._plane.name, ring) for ring in RINGS], equality(given, ["displayName", "id"])
        )
        return collection(request, len(rows), lambda skip, top: rows[skip : skip + top], most=999)

    async def _group(self, request: Request) -> Response:
        given = options(request, ["$select"])
        return GraphResponse(select(given, group(self._plane.name, self._ring(request))))

    async def _members(self, request: Request) -> Response:
        ring = self._ring(request)
        total = self._plane.fleet.plan.devices(ring)

        def rows(skip: int, top: int) -> list[Document]:
            return [self._entra(device) for device in self._plane.fleet.devices(ring, skip=skip, top=top)]

        return collection(request, total, rows, filters=False, most=999)

    async def _devices(self, request: Request) -> Response:
        given = options(request, ["$top", "$select", "$skiptoken", "$count", "$filter"])
        wanted = equality(given, ["deviceId", "id"])
        return self._page(request, wanted, {"deviceId": "entra", "id": "object"}, self._entra, most=999)

    async def _device(self, request: Request) -> Response:
        given = options(request, ["$select"])
        device = self._by_id("object", request.path_params["object_id"])
        if device is None:
            not_found("device", request.path_params["object_id"])
        return GraphResponse(select(given, self._entra(device)))

    async def _managed_devices(self, request: Request) -> Response:
        given = options(request, ["$top", "$select", "$skiptoken", "$count", "$filter"])
        wanted = equality(given, ["azureADDeviceId", "id"])
        return self._page(
            request, wanted, {"azureADDeviceId": "entra", "id": "intune"}, self._managed, page=1000, most=1000
        )

    async def _managed_device(self, request: Request) -> Response:
        given = options(request, ["$select"])
        return GraphResponse(select(given, self._managed(self._one_managed(request))))

    async def _sync(self, request: Request) -> Response:
        """Accept a nudge: the virtual devices check in soon anyway."""
        self._one_managed(request)
        return Response(status_code=204)

    async def _detected_apps(self, request: Request) -> Response:
        given = options(request, ["$top", "$select", "$skiptoken", "$count", "$filter"])
        found = [detected(software, len(devices)) for software, devices in self._found().items()]
        rows = filtered(found, equality(given, ["displayName"]))
        return collection(request, len(rows), lambda skip, top: rows[skip : skip + top])

    async def _detected_app(self, request: Request) -> Response:
        software, devices = self._one_detected(request)
        return GraphResponse(detected(software, len(devices)))

    async def _devices_with_app(self, request: Request) -> Response:
        _, devices = self._one_detected(request)

        def rows(skip: int, top: int) -> list[Document]:
            return [self._managed(device) for device in devices[skip : skip + top]]

        return collection(request, len(devices), rows, filters=False)

    def _ring(self, request: Request) -> Ring:
        group_id = request.path_params["group_id"]
        ring = ring_of_group(self._plane.name, group_id)
        return ring or not_found("group", group_id)

    def _one_managed(self, request: Request) -> Device:
        managed_id = request.path_params["managed_id"]
        return self._by_id("intune", managed_id) or not_found("managedDevice", managed_id)

    def _one_detected(self, request: Request) -> tuple[Software, list[Device]]:
        wanted = request.path_params["detected_id"]
        for software, devices in self._found().items():
            if detected_id(software) == wanted:
                return software, devices
        return not_found("detectedApp", wanted)

    def _found(self) -> dict[Software, list[Device]]:
        """The devices on which each version of each product is installed now."""
        fleet = self._plane.fleet
        found: dict[Software, list[Device]] = {}
        for ring in RINGS:
            devices = list(fleet.devices(ring))
            for product in fleet.products(ring):
                for device, life in zip(devices, fleet.lives(product, ring, devices), strict=True):
                    if life.installed is not None:
                        found.setdefault(life.installed, []).append(device)
        return found

    def _page(
        self,
        request: Request,
        wanted: tuple[str, str] | None,
        identities: dict[str, Identity],
        show: Callable[[Device], Document],
        *,
        page: int = 100,
        most: int,
    ) -> Response:
        if wanted is None:
            total = sum(self._plane.fleet.plan.devices(ring) for ring in RINGS)
            return collection(
                request,
                total,
                lambda skip, top: [show(device) for device in self._slice(skip, top)],
                page=page,
                most=most,
            )
        device = self._by_id(identities[wanted[0]], wanted[1])
        found = [] if device is None else [show(device)]
        return collection(request, len(found), lambda skip, _: found[skip:], most=most)

    def _slice(self, skip: int, top: int) -> list[Device]:
        """Devices over all rings, as one row."""
        chosen: list[Device] = []
        for ring in RINGS:
            count = self._plane.fleet.plan.devices(ring)
            if skip < count and len(chosen) < top:
                chosen += self._plane.fleet.devices(ring, skip=skip, top=top - len(chosen))
            skip = max(0, skip - count)
        return chosen

    def _by_id(self, identity: Identity, wanted: str) -> Device | None:
        prefix = id_prefix(self._plane.name, identity)
        ring_part, _, index_part = wanted.lower().removeprefix(prefix).partition("-")
        try:
            place, index = int(ring_part, 16) - 0x8000, int(index_part, 16)
        except ValueError:
            return None
        if not 0 <= place < len(RINGS) or not 0 <= index < self._plane.fleet.plan.devices(RINGS[place]):
            return None
        device = Device(RINGS[place], index)
        return device if device_id(self._plane.name, identity, device) == wanted.lower() else None

    def _entra(self, device: Device) -> Document:
        return {
            "@odata.type": "#microsoft.graph.device",
            "id": device_id(self._plane.name, "object", device),
            "deviceId": device_id(self._plane.name, "entra", device),
            "displayName": device.name,
            "accountEnabled": True,
            "isManaged": True,
            "isCompliant": True,
            "operatingSystem": "Windows",
            "operatingSystemVersion": "10.0.26100.4061",
            "trustType": "AzureAd",
            "approximateLastSignInDateTime": self._last_sync(device),
        }

    def _managed(self, device: Device) -> Document:
        return {
            "id": device_id(self._plane.name, "intune", device),
            "azureADDeviceId": device_id(self._plane.name, "entra", device),
            "deviceName": device.name,
            "managedDeviceOwnerType": "company",
            "operatingSystem": "Windows",
            "osVersion": "10.0.26100.4061",
            "complianceState": "compliant",
            "enrolledDateTime": instant(CREATED_AT),
            "lastSyncDateTime": self._last_sync(device),
            "userPrincipalName": user_principal_name(device),
            "model": "Virtual",
            "manufacturer": "Sandbox",
        }

    def _last_sync(self, device: Device) -> str:
        """A few minutes ago; for a device that stays away, shortly before the plan said so."""
        fleet = self._plane.fleet
        seen = fleet.plan.at if fleet.is_offline(device) else self._plane.clock()
        return instant(seen - 60 - device.index % 600)


def filtered(rows: list[Document], wanted: tuple[str, str] | None) -> list[Document]:
    """The rows that a filter lets through."""
    return rows if wanted is None else [row for row in rows if row[wanted[0]] == wanted[1]]


@cache
def group_id(plane: str, ring: Ring) -> str:
    """The group that holds a ring's devices: the same in every process."""
    return str(uuid5(NAMESPACE_URL, f"eucora-sandbox/{plane}/{ring}"))


def ring_of_group(plane: str, wanted: str) -> Ring | None:
    """The ring of a group; None for a group that does not exist."""
    return next((ring for ring in RINGS if group_id(plane, ring) == wanted.lower()), None)


def group(plane: str, ring: Ring) -> Document:
    """A group as Graph answers it."""
    return {
        "@odata.type": "#microsoft.graph.group",
        "id": group_id(plane, ring),
        "displayName": f"Ring {ring}",
        "description": f"Virtual devices of ring {ring}",
        "createdDateTime": instant(CREATED_AT),
        "groupTypes": [],
        "mailEnabled": False,
        "mailNickname": f"ring-{ring.lower()}",
        "securityEnabled": True,
    }


@cache
def id_prefix(plane: str, identity: Identity) -> str:
    """The start of the ids of one kind; the rest names ring and place, so that an id can be read back."""
    start = str(uuid5(NAMESPACE_URL, f"eucora-sandbox/{plane}/{identity}"))
    return f"{start[:14]}8{start[15:18]}-"


def device_id(plane: str, identity: Identity, device: Device) -> str:
    """A device's id of one of the three kinds: Entra object, Entra device, Intune managed device."""
    return f"{id_prefix(plane, identity)}{0x8000 + RINGS.index(device.ring):04x}-{device.index:012x}"


def user_principal_name(device: Device) -> str:
    """The user of a device."""
    return f"user-{device.name.lower()}@sandbox.example"


def detected_id(software: Software) -> str:
    """The id of what was found."""
    return str(uuid5(NAMESPACE_URL, f"eucora-sandbox/detected/{software.product}/{software.version}"))


def detected(software: Software, count: int) -> Document:
    """A found app as Graph answers it."""
    return {
        "id": detected_id(software),
        "displayName": software.product,
        "version": software.version,
        "deviceCount": count,
        "platform": "windows",
        "publisher": None,
        "sizeInByte": 0,
    }
