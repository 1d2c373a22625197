# SPDX-License-Identifier: Apache-2.0
"""Between the port's values and what the AdminService sends and takes; nothing here calls anybody.

Source for classes, members and values: Microsoft's reference of the SMS provider's classes. What is from
clients only, or from nowhere, is named so where it stands.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

import httpx

from app.connectors.contract import (
    Action,
    App,
    Assignment,
    DeviceReport,
    InstallState,
    Member,
    Observed,
    Target,
)
from app.connectors.packages import ApplicationPackage
from app.connectors.rest import Json, package_of

SERVICE = "sccm"
MARKER = "eucora:"
REQUIRED, AVAILABLE = 0, 2
"""``OfferTypeID``."""
INSTALL, UNINSTALL = 1, 2
"""``DesiredConfigType``; 1 is seen in clients, 2 is documented nowhere we found."""
APPLY, APPLICATION = 2, 2
"""``AssignmentAction`` and ``AssignmentType``."""
DEVICES = 2
"""``CollectionType``."""
GRACE = timedelta(minutes=5)
"""From the start of a deployment to its deadline, so that a client has its policy by then."""
STATES = {
    1: InstallState.INSTALLED,
    2: InstallState.INSTALLING,
    3: InstallState.NOT_INSTALLED,
    4: InstallState.PENDING,
    5: InstallState.FAILED,
}
"""``AppStatusType``: success, in progress, requirements not met, unknown, error."""
REMOVED = {
    InstallState.INSTALLED: InstallState.NOT_INSTALLED,
    InstallState.FAILED: InstallState.REMOVE_FAILED,
}
"""What the same outcome means of a deployment that uninstalls."""


def package(app: App) -> ApplicationPackage:
    """The package, if it is one that Configuration Manager has.

    Raises:
        PermanentError: another kind.
    """
    refusal = "Configuration Manager does not deploy"
    return package_of(app, ApplicationPackage, refusal=refusal, service=SERVICE)


def literal(value: str) -> str:
    """A text as an OData literal."""
    return "'" + value.replace("'", "''") + "'"


def where(**equal: str | int) -> str:
    """A filter by equality."""
    return " and ".join(f"{name} eq {_value(value)}" for name, value in equal.items())


def begins(name: str, value: str) -> str:
    """A filter by how a text begins."""
    return f"startswith({name},{literal(value)}) eq true"


def _value(value: str | int) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return literal(value) if isinstance(value, str) else str(value)


def assignment_body(
    application: Json, collection: Json, *, name: str, config: int, offer: int, site: str, now: datetime
) -> Json:
    """The deployment that is posted. That dates may be in ISO form is not documented."""
    body = {
        "ApplicationName": application["LocalizedDisplayName"],
        "AssignmentName": name,
        "AssignmentAction": APPLY,
        "AssignmentType": APPLICATION,
        "AssignedCIs": [application["CI_ID"]],
        "CollectionName": collection["Name"],
        "TargetCollectionID": collection["CollectionID"],
        "DesiredConfigType": config,
        "OfferTypeID": offer,
        "OfferFlags": 0,
        "Priority": 1,
        "StartTime": _instant(now),
        "UseGMTTimes": True,
        "SuppressReboot": 3,
        "OverrideServiceWindows": False,
        "RebootOutsideOfServiceWindows": False,
        "NotifyUser": False,
        "UserUIExperience": True,
        "WoLEnabled": False,
        "LogComplianceToWinEvent": False,
        "SourceSite": site,
    }
    return body if offer == AVAILABLE else {**body, "EnforcementDeadline": _instant(now + GRACE)}


def on(target: Target, deployments: Iterable[Json]) -> list[Json]:
    """Those to a target's collection."""
    return [row for row in deployments if row.get("TargetCollectionID") == target.ref]


def does(deployment: Json, config: int) -> bool:
    """Whether a deployment asks for that, and is not switched off."""
    return deployment.get("Enabled") is not False and deployment.get("DesiredConfigType") == config


def observed(application: Json, deployments: Iterable[Json], given: Assignment) -> Observed:
    """What our deployments of the application, on all rings, make of what was decided."""
    installs = [
        (row["AssignmentName"], row["TargetCollectionID"])
        for row in deployments
        if does(row, INSTALL) and row["AssignmentName"].split("/")[3:] == [Action.ASSIGN]
    ]
    assigned = (MARKER + given.first_key, given.target.ref) in installs
    others = {collection for _, collection in installs} - {given.target.ref}
    return Observed(assigned, application.get("SoftwareVersion"), tuple(sorted(others)))


def _instant(at: datetime) -> str:
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")


def distribution(rows: Iterable[Json]) -> tuple[int, int, int]:
    """How many distribution points should have the content, have it, and could not get it."""
    found = list(rows)
    return (
        sum(int(row.get("Targeted") or 0) for row in found),
        sum(int(row.get("NumberSuccess") or 0) for row in found),
        sum(int(row.get("NumberErrors") or 0) for row in found),
    )


def member(row: Json) -> Member:
    """A machine of a collection."""
    return Member(str(row["ResourceID"]), str(row.get("Name") or row["ResourceID"]))


def report(row: Json, code: int | None, action: Action) -> DeviceReport:
    """One machine's line of a deployment's status."""
    told = STATES.get(int(row["AppStatusType"]), InstallState.UNKNOWN)
    failed = told is InstallState.FAILED
    return DeviceReport(
        device_id=str(row["MachineID"]),
        name=str(row.get("MachineName") or row["MachineID"]),
        state=REMOVED.get(told, told) if action is Action.REMOVE else told,
        detail=f"enforcement state {row.get('EnforcementState')}" if failed else None,
        error_code=f"0x{code & 0xFFFFFFFF:08X}" if failed and code else None,
    )


def describe(answer: httpx.Response) -> str:
    """The message of an OData error; the text where it is none."""
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text
