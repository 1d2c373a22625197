# SPDX-License-Identifier: Apache-2.0
"""Between the port's values and what Landscape sends and takes; nothing here calls anybody."""

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from app.connectors.contract import (
    Action,
    App,
    Assignment,
    DeviceReport,
    InstallState,
    Member,
    Target,
    TargetKind,
)
from app.connectors.packages import DebPackage
from app.connectors.rest import Json, package_of
from app.resilience.errors import PolicyError

SERVICE = "landscape"
INSTALL, UPGRADE, REMOVE = "InstallPackages", "UpgradePackages", "RemovePackages"
KINDS = {Action.ASSIGN: (INSTALL, UPGRADE), Action.REMOVE: (REMOVE,)}
VERBS = {"install": INSTALL, "upgrade": UPGRADE, "remove": REMOVE}
"""The first word of an activity's summary."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""What a tag or an access group may be called, so that it is one word of a query."""
STATES = {
    "undelivered": InstallState.UNDELIVERED,
    "scheduled": InstallState.UNDELIVERED,
    "unapproved": InstallState.UNAPPROVED,
    "delivered": InstallState.INSTALLING,
    "succeeded": InstallState.INSTALLED,
    "failed": InstallState.FAILED,
    "canceled": InstallState.PENDING,
}
WAITING = {
    InstallState.UNDELIVERED: "waits for the computer to ask",
    InstallState.UNAPPROVED: "waits for approval in Landscape",
    InstallState.PENDING: "the activity was cancelled",
}
REMOVED = {
    InstallState.INSTALLED: InstallState.NOT_INSTALLED,
    InstallState.FAILED: InstallState.REMOVE_FAILED,
}
"""What the same outcome means when the activity removes."""


def deb(app: App) -> DebPackage:
    """The package, if it is one that Landscape installs.

    Raises:
        PermanentError: another kind.
    """
    return package_of(app, DebPackage, refusal="Landscape does not install", service=SERVICE)


def query(target: Target) -> str:
    """A target in Landscape's search language; a reference with a colon is in that language already.

    Raises:
        PolicyError: the name would be read as something else.
    """
    if ":" in target.ref and target.kind is TargetKind.TAG:
        return target.ref
    if not NAME.fullmatch(target.ref):
        raise PolicyError(f"{target.ref!r} is no name of a {target.kind.value}", service=SERVICE)
    return f"{'tag' if target.kind is TargetKind.TAG else 'access-group'}:{target.ref}"


def where(assignment: Assignment) -> str:
    """The computers of an assignment: those that are named, or the target's."""
    named = assignment.devices
    if named is None:
        return query(assignment.target)
    return " OR ".join(f"id:{device.device_id}" for device in named)


def none(value: Any) -> Any:
    """The older API writes "None" for null, sometimes."""
    return None if value == "None" else value


def member(computer: Json) -> Member:
    """A computer as a member of a target."""
    pinged = none(computer.get("last_ping_time"))
    return Member(
        device_id=str(computer["id"]),
        name=str(computer.get("title") or computer.get("hostname") or computer["id"]),
        last_seen=datetime.fromisoformat(pinged) if pinged else None,
    )


def kind_of(activity: Json, app: App, *, creator: str | None) -> str | None:
    """The action that made an activity, if it is one of ours for this package; by its summary's words.

    The wording ("Install packages x") is that of the documentation's examples.
    """
    verb, *words = str(activity.get("summary") or "").replace(",", " ").split() or [""]
    asked_by = (none(activity.get("creator")) or {}).get("email")
    if asked_by != creator or deb(app).name not in words:
        return None
    return VERBS.get(verb.lower())


def is_over(activity: Json) -> bool:
    """Whether no computer of an activity has anything left to do."""
    counts = activity.get("children_statuses") or {}
    ended = int(counts.get("good") or 0) + int(counts.get("bad") or 0)
    return 0 < int(activity.get("children_count") or 0) <= ended


def report(child: Json, app: App, action: Action) -> DeviceReport:
    """One computer's part of an activity."""
    told = STATES.get(str(none(child.get("activity_status"))), InstallState.UNKNOWN)
    installed = version_of(child, app)
    text, code = none(child.get("result_text")), none(child.get("result_code"))
    if action is Action.ASSIGN and told is InstallState.INSTALLED and installed not in {None, app.version}:
        told, text = InstallState.FAILED, f"got version {installed}"
    state = REMOVED.get(told, told) if action is Action.REMOVE else told
    failed = told is InstallState.FAILED
    return DeviceReport(
        device_id=str(child["computer_id"]),
        name=str(child["computer_id"]),
        state=state,
        detail=(text or "failed") if failed else WAITING.get(told),
        error_code=str(code) if failed and code is not None else None,
        version=installed,
    )


def version_of(child: Json, app: App) -> str | None:
    """The version of our package that a computer says it changed to."""
    changes = none(child.get("changes")) or ()
    name = deb(app).name
    return next((str(change["version"]) for change in changes if change.get("package") == name), None)


def versions(computers: Iterable[Json]) -> Iterator[tuple[str, str]]:
    """The computers that have the package, each with its version."""
    for computer in computers:
        current = none(computer.get("current_version"))
        if current is not None:
            yield str(computer["id"]), str(current)


def truth(computer: Json, app: App, action: Action) -> DeviceReport | None:
    """What a computer has of the package, where that settles it: our version, or after a removal none."""
    current, number = none(computer.get("current_version")), str(computer["id"])
    if action is Action.REMOVE and current is None:
        return DeviceReport(number, number, InstallState.NOT_INSTALLED)
    if action is Action.ASSIGN and current == app.version:
        return DeviceReport(number, number, InstallState.INSTALLED, version=current)
    return None
