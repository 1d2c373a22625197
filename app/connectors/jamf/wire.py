# SPDX-License-Identifier: Apache-2.0
"""Between the port's values and what Jamf Pro sends and takes; nothing here calls anybody."""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar
from xml.etree import ElementTree as ET

from app.connectors.contract import (
    Action,
    App,
    Assignment,
    DeviceReport,
    InstallState,
    Member,
    Observed,
    UploadProgress,
)
from app.connectors.packages import PkgPackage
from app.connectors.rest import Json, package_of
from app.resilience.errors import PermanentError

T = TypeVar("T")

SERVICE = "jamf"
MARKER = "eucora:"
VERSION = "eucora-version:"
NO_CATEGORY = "-1"
PRIORITY = 10
FREQUENCY = "Once per computer"
INSTALL = "Install"
EVERYBODY = "all_computers"
"""What a scope says of itself that holds every computer."""
READY = "READY"
"""``cloudTransferStatus`` once content is where computers get it; seen in the document's example."""
FAILED, COMPLETED = "Failed", "Completed"
"""Statuses in a computer's policy log; from clients, not documented."""


def pkg(app: App) -> PkgPackage:
    """The package, if it is one that Jamf Pro installs.

    Raises:
        PermanentError: another kind.
    """
    return package_of(app, PkgPackage, refusal="Jamf Pro does not install", service=SERVICE)


def package_name(app: App) -> str:
    """What the package is called: readable, and of this deployment only, for names are unique."""
    return f"{app.name} {app.version} {_tail(app)}"


def file_name(app: App) -> str:
    """The same as a file's name."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", f"{app.name}-{app.version}").strip("-")
    return f"{readable}-{_tail(app)}.pkg"


def _tail(app: App) -> str:
    return app.marker.partition("/")[0][-12:]


def package_body(app: App) -> Json:
    """The record that ``POST packages`` creates."""
    return {
        "packageName": package_name(app),
        "fileName": file_name(app),
        "categoryId": NO_CATEGORY,
        "info": f"{app.name} {app.version}",
        "notes": f"{MARKER}{app.marker}\n{VERSION}{app.version}",
        "priority": PRIORITY,
        "fillUserTemplate": False,
        "rebootRequired": False,
        "osInstall": False,
        "suppressUpdates": False,
        "suppressFromDock": False,
        "suppressEula": False,
        "suppressRegistration": False,
    }


def lines(found: Json) -> list[str]:
    """A package's notes."""
    return (found.get("notes") or "").splitlines()


def has_marker(found: Json, marker: str) -> bool:
    """Whether a package is the one of this deployment."""
    return f"{MARKER}{marker}" in lines(found)


def version_of(found: Json) -> str | None:
    """The version that a package of ours installs."""
    noted = (line.removeprefix(VERSION) for line in lines(found) if line.startswith(VERSION))
    return next(noted, None)


def is_there(found: Json, sha256: str) -> bool:
    """Whether a package's content is in place.

    Raises:
        PermanentError: other content is.
    """
    told = str(found.get("sha256") or "").lower()
    if told and told != sha256.lower():
        raise PermanentError("Jamf Pro has other content under our package's name", service=SERVICE)
    return bool(told) and found.get("cloudTransferStatus", READY) == READY


def equals(field: str, value: str) -> str:
    """An RSQL comparison; a quote inside is escaped by a backslash."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{field}=="{escaped}"'


def among(ids: Sequence[str]) -> str:
    """An RSQL filter for computers by their ids; that ``=in=`` is taken for them is not documented."""
    return f"id=in=({','.join(ids)})"


def chunks(items: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    """The items, so many at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))


def policy_name(key: str) -> str:
    """What the policy of an effect is called; without slashes, as it stands in a path."""
    return f"{MARKER}{key.replace('/', ' ')}"


def install_policy(assignment: Assignment, package_id: str, found: Json | None = None) -> bytes:
    """A policy that installs a package once on each computer, and reports what is there then.

    ``found`` is the one that it replaces; who else is kept out of that one's scope stays out.
    """
    policy = _policy(assignment)
    if found is not None and assignment.target.ref in _excluded(found):
        _exclude(policy, _excluded(found) - {assignment.target.ref})
    packages = ET.SubElement(ET.SubElement(policy, "package_configuration"), "packages")
    package = ET.SubElement(packages, "package")
    _text(package, id=package_id, action=INSTALL)
    return _finished(policy)


def uninstall_policy(assignment: Assignment, script: str) -> bytes:
    """A policy that runs a command once on each computer, and reports what is there then."""
    policy = _policy(assignment)
    _text(ET.SubElement(policy, "files_processes"), run_command=script)
    return _finished(policy)


def disabled_policy() -> bytes:
    """What switches a policy off and leaves the rest of it as it is."""
    policy = ET.Element("policy")
    _text(ET.SubElement(policy, "general"), enabled="false")
    return _written(policy)


def _policy(assignment: Assignment) -> ET.Element:
    """Enabled, on the computers that are named, or on the group."""
    policy = ET.Element("policy")
    general, name = ET.SubElement(policy, "general"), policy_name(assignment.first_key)
    _text(general, name=name, enabled="true", trigger_checkin="true", frequency=FREQUENCY)
    scope = ET.SubElement(policy, "scope")
    _text(scope, all_computers="false")
    computers, groups = ET.SubElement(scope, "computers"), ET.SubElement(scope, "computer_groups")
    for device in assignment.devices or ():
        _text(ET.SubElement(computers, "computer"), id=device.device_id)
    if assignment.devices is None:
        _text(ET.SubElement(groups, "computer_group"), id=assignment.target.ref)
    return policy


def observed(policy: Json, given: Assignment) -> Observed:
    """What a policy of ours makes of what was decided.

    A package that somebody put into it is told by its name, as it need not be a version of ours.
    """
    scope, packages, ref = policy.get("scope") or {}, _packages(policy), given.target.ref
    held = _groups(scope) | ({EVERYBODY} if scope.get("all_computers") else set())
    reached = bool(held & {ref, EVERYBODY}) and ref not in _excluded(policy)
    strange = [
        str(each.get("name") or each["id"]) for each in packages if str(each["id"]) != given.external_id
    ]
    return Observed(
        assigned=_runs(policy) and bool(packages) and reached,
        version=next(iter(strange), given.app.version),
        others=tuple(sorted(held - {ref})),
    )


def is_as_decided(policy: Json, given: Assignment) -> bool:
    """Whether a policy of ours, that installs on the target, needs no mending."""
    return observed(policy, given) == Observed(assigned=True, version=given.app.version)


def policy_id(policy: Json) -> str:
    """A policy's number."""
    return str(policy["general"]["id"])


def _runs(policy: Json) -> bool:
    general = policy["general"]
    return bool(general.get("enabled") and general.get("trigger_checkin", True))


def _groups(scope: Json) -> set[str]:
    return {str(group["id"]) for group in scope.get("computer_groups") or ()}


def _excluded(policy: Json) -> set[str]:
    return _groups((policy.get("scope") or {}).get("exclusions") or {})


def _exclude(policy: ET.Element, refs: Iterable[str]) -> None:
    scope = policy.find("scope")
    assert scope is not None  # every policy of ours has one
    groups = ET.SubElement(ET.SubElement(scope, "exclusions"), "computer_groups")
    for ref in sorted(refs):
        _text(ET.SubElement(groups, "computer_group"), id=ref)


def _packages(policy: Json) -> list[Json]:
    """What a policy installs; it may also cache packages, or remove them."""
    packages = (policy.get("package_configuration") or {}).get("packages") or ()
    return [package for package in packages if package.get("action") == INSTALL]


def _finished(policy: ET.Element) -> bytes:
    _text(ET.SubElement(policy, "maintenance"), recon="true")
    return _written(policy)


def _written(policy: ET.Element) -> bytes:
    document: bytes = ET.tostring(policy, encoding="UTF-8", xml_declaration=True)
    return document


def _text(parent: ET.Element, **members: str) -> None:
    for name, value in members.items():
        ET.SubElement(parent, name).text = value


def instant(value: Any) -> datetime | None:
    """A time as the inventory tells it."""
    return datetime.fromisoformat(value) if value else None


def member(computer: Json) -> Member:
    """A computer as a member of a group."""
    general = computer.get("general") or {}
    name = str(general.get("name") or computer["id"])
    return Member(str(computer["id"]), name, instant(general.get("lastContact")))


def present(computer: Json, bundle_id: str) -> str | None:
    """The version of an application that a computer has."""
    for application in computer.get("applications") or ():
        if application.get("bundleId") == bundle_id:
            return str(application.get("cfBundleShortVersionString") or application.get("version"))
    return None


def has_receipt(computer: Json, file: str) -> bool:
    """Whether a computer says that the policy's package was installed."""
    return file in ((computer.get("packageReceipts") or {}).get("installedByJamfPro") or ())


def is_installed(computer: Json, app: App, version: str) -> bool:
    """Whether a computer has that version: by the application, or by a receipt where there is none."""
    found = present(computer, pkg(app).bundle_id)
    if found is not None:
        return found == version
    return version == app.version and has_receipt(computer, file_name(app))


def heard_since(computer: Json, at: datetime | None) -> bool:
    """Whether a computer has called since then, so that its log may tell something new."""
    general = computer.get("general") or {}
    last = instant(general.get("lastCheckIn")) or instant(general.get("lastContact"))
    return at is None or (last is not None and last >= at)


def report(computer: Json, state: InstallState, log: str | None) -> DeviceReport:
    """One computer, in the state that was made out."""
    general = computer.get("general") or {}
    failed = state in {InstallState.FAILED, InstallState.REMOVE_FAILED}
    return DeviceReport(
        device_id=str(computer["id"]),
        name=str(general.get("name") or computer["id"]),
        state=state,
        detail=f"the policy's log says {log}" if failed else None,
    )


def state_of(action: Action, log: str | None, *, installed: bool, observable: bool) -> InstallState:
    """What inventory and policy log say together; ``observable``: the inventory can show a removal."""
    if action is Action.ASSIGN:
        if installed:
            return InstallState.INSTALLED
        return {FAILED: InstallState.FAILED, COMPLETED: InstallState.INSTALLING}.get(
            str(log), InstallState.PENDING
        )
    if not installed or (not observable and log == COMPLETED):
        return InstallState.NOT_INSTALLED
    return InstallState.REMOVE_FAILED if log == FAILED else InstallState.INSTALLED


def progress(*, sent: int, total: int, done: bool = False) -> UploadProgress:
    """How far the upload is; it cannot be continued, so there is nothing to remember."""
    return UploadProgress({}, sent, total, done)
