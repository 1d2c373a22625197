# SPDX-License-Identifier: Apache-2.0
"""Graph's install reports: a byte stream that holds JSON, one row per device that has the app assigned."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sandbox.fleet import Life, Order
from sandbox.graph import GraphError, GraphModel, read
from sandbox.intune_directory import device_id, user_principal_name
from sandbox.plan import Device
from sandbox.plane import Plane
from sandbox.witness import instant

REPORTS = "/deviceManagement/reports"
APPLICATION = re.compile(r"^\(?\s*ApplicationId\s+eq\s+'([^']*)'\s*\)?$")
LARGEST_PAGE = 1000
NOT_DETECTED = 0x87D1041C


class State(Enum):
    """Graph's resultantAppState: number and text."""

    INSTALLED = (1, "Installed")
    FAILED = (2, "Failed")
    NOT_INSTALLED = (3, "Not installed")
    UNINSTALL_FAILED = (4, "Uninstall failed")
    PENDING_INSTALL = (5, "Pending install")
    UNKNOWN = (99, "Unknown")


@dataclass(frozen=True)
class Row:
    """One device's row before its columns are chosen."""

    plane: str
    device: Device
    order: Order
    state: State
    changed_at: float

    @property
    def error(self) -> int:
        """The error code; 0 for none."""
        return NOT_DETECTED if self.state in {State.FAILED, State.UNINSTALL_FAILED} else 0

    @property
    def detail(self) -> str:
        """What the portal says of an error."""
        told = {
            State.FAILED: "The application was not detected after installation completed successfully",
            State.UNINSTALL_FAILED: "The application was still detected after uninstallation",
        }
        return told.get(self.state, "")


COLUMNS: dict[str, tuple[str, Callable[[Row], object]]] = {
    "DeviceName": ("String", lambda row: row.device.name),
    "UserPrincipalName": ("String", lambda row: user_principal_name(row.device)),
    "UserName": ("String", lambda row: f"User of {row.device.name}"),
    "UserId": ("String", lambda row: device_id(row.plane, "object", row.device)),
    "Platform": ("String", lambda _: "Windows"),
    "AppVersion": ("String", lambda row: row.order.software.version),
    "DeviceId": ("String", lambda row: device_id(row.plane, "intune", row.device)),
    "ApplicationId": ("String", lambda row: row.order.software.app_id),
    "InstallState": ("Int32", lambda row: row.state.value[0]),
    "InstallStateDetail": ("Int32", lambda _: 0),
    "AppInstallState": ("Int32", lambda row: row.state.value[0]),
    "AppInstallStateDetails": ("Int32", lambda _: 0),
    "ErrorCode": ("Int32", lambda row: row.error - 2**32 if row.error else 0),
    "HexErrorCode": ("String", lambda row: f"0x{row.error:08X}" if row.error else "0x0"),
    "LastModifiedDateTime": ("DateTime", lambda row: instant(row.changed_at)),
    "AssignmentFilterIdsExist": ("Boolean", lambda _: False),
}
TEXT_COLUMNS: dict[str, Callable[[Row], object]] = {
    "AppInstallState": lambda row: row.state.value[1],
    "AppInstallStateDetails": lambda row: row.detail,
}


class ReportQuery(GraphModel):
    """What a report is asked for."""

    name: str | None = None
    filter: str
    select: list[str] = Field(default_factory=list)
    skip: Annotated[int, Field(ge=0)] = 0
    top: Annotated[int, Field(ge=0)] = 50
    order_by: list[str] = Field(default_factory=list)
    group_by: list[str] = Field(default_factory=list)
    search: str | None = None
    session_id: str | None = None


class Reports:
    """Reports over the fleet; only the devices of the page that is asked for are looked at."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    def routes(self) -> list[Route]:
        """The report of v1.0."""
        return [
            Route(f"{REPORTS}/retrieveDeviceAppInstallationStatusReport", self._by_device, methods=["POST"])
        ]

    def beta_routes(self) -> list[Route]:
        """The older reports of beta."""
        return [
            Route(f"{REPORTS}/getDeviceInstallStatusReport", self._by_device, methods=["POST"]),
            Route(f"{REPORTS}/getAppStatusOverviewReport", self._overview, methods=["POST"]),
        ]

    async def _by_device(self, request: Request) -> Response:
        query = await read(request, ReportQuery)
        columns = chosen_columns(query)
        if query.order_by not in ([], ["DeviceId"], ["DeviceId asc"]) or query.group_by or query.search:
            raise GraphError(400, "orderBy other than DeviceId, groupBy and search are not supported here.")
        app_id = application_of(query.filter)
        total = sum(self._plane.fleet.plan.devices(ring) for ring in self._plane.fleet.standing(app_id))
        rows = self._rows(app_id, query.skip, min(query.top, LARGEST_PAGE))
        values = [[cell(row) for _, _, cell in columns] for row in rows]
        return report(total, [(name, kind) for name, kind, _ in columns], values)

    async def _overview(self, request: Request) -> Response:
        query = await read(request, ReportQuery)
        app_id = application_of(query.filter)
        states = [row.state for row in self._rows(app_id, 0, 10_000_000)]
        named = {
            "InstalledDeviceCount": State.INSTALLED,
            "FailedDeviceCount": State.FAILED,
            "NotInstalledDeviceCount": State.NOT_INSTALLED,
            "PendingInstallDeviceCount": State.PENDING_INSTALL,
        }
        counts: list[object] = [states.count(state) for state in named.values()]
        schema = [("ApplicationId", "String"), *((name, "Int32") for name in named)]
        return report(1, schema, [[app_id, *counts]])

    def _rows(self, app_id: str, skip: int, top: int) -> list[Row]:
        """Rows in the order of rings and devices, which is that of DeviceId too."""
        fleet, rows = self._plane.fleet, list[Row]()
        for ring, order in fleet.standing(app_id).items():
            devices = list(fleet.devices(ring, skip=skip, top=top - len(rows)))
            lives = fleet.lives(order.software.product, ring, devices)
            rows += [self._row(device, order, life) for device, life in zip(devices, lives, strict=True)]
            skip = max(0, skip - fleet.plan.devices(ring))
        return rows

    def _row(self, device: Device, order: Order, life: Life) -> Row:
        steps = [step.at for step in life.steps if step.app_id == order.software.app_id]
        changed_at = max([order.start, *steps])
        return Row(self._plane.name, device, order, state_of(order, life), changed_at)


def state_of(order: Order, life: Life) -> State:
    """What the portal says of one device; a device that has not checked in since is pending or unknown."""
    app_id = order.software.app_id
    present = life.installed is not None and life.installed.app_id == app_id
    if present:
        stuck = order.intent == "uninstall" and app_id in life.stuck
        return State.UNINSTALL_FAILED if stuck else State.INSTALLED
    if order.id not in life.seen:
        if order.intent == "install":
            return State.PENDING_INSTALL
        return State.FAILED if app_id in life.failed else State.UNKNOWN
    failed = order.intent == "install" and app_id in life.failed
    return State.FAILED if failed else State.NOT_INSTALLED


def application_of(expression: str) -> str:
    """The id in ``(ApplicationId eq '<id>')``."""
    match = APPLICATION.match(expression.strip())
    if match is None:
        raise GraphError(400, f"Invalid filter: {expression}")
    return match[1]


def chosen_columns(query: ReportQuery) -> list[tuple[str, str, Callable[[Row], object]]]:
    """Name, type and content of the columns; a state brings its text, which cannot be chosen by itself."""
    columns: list[tuple[str, str, Callable[[Row], object]]] = []
    for name in query.select or COLUMNS:
        if name not in COLUMNS:
            raise GraphError(400, f"Unknown column '{name}'. Texts (…_loc) come with their number's column.")
        columns.append((name, *COLUMNS[name]))
        if name in TEXT_COLUMNS:
            columns.append((f"{name}_loc", "String", TEXT_COLUMNS[name]))
    return columns


def report(total: int, schema: list[tuple[str, str]], values: list[list[object]]) -> Response:
    """The envelope, as a byte stream."""
    body = {
        "TotalRowCount": total,
        "Schema": [{"Column": name, "PropertyType": kind} for name, kind in schema],
        "Values": values,
        "SessionId": "",
    }
    return Response(json.dumps(body), media_type="application/octet-stream")
