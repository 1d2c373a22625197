# SPDX-License-Identifier: Apache-2.0
"""Our values as Graph v1.0 writes them, and its values as ours. Pure.

Source: CSDL of Graph v1.0 (``win32LobApp``, ``mobileAppAssignment``, ``win32LobAppRule`` and their parts). It
has no ``displayVersion``, so the version stands beside the marker in ``notes``, which v1.0 stores.
"""

import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from app.connectors.contract import App, Assignment, DeviceReport, InstallState, Member, Observed
from app.connectors.packages import (
    Detection,
    FileDetection,
    MsiPackage,
    PackageKind,
    ProductCodeDetection,
    RegistryDetection,
    Win32Package,
)
from app.connectors.rest import Json, package_of
from app.resilience.errors import PermanentError

MARKER = "eucora:"
VERSION = "eucora-version:"
PUBLISHER = "Eucora"
APP_TYPE = "#microsoft.graph.win32LobApp"
GROUP_TARGET = "#microsoft.graph.groupAssignmentTarget"
EXCLUSION_TARGET = "#microsoft.graph.exclusionGroupAssignmentTarget"
TARGET_TYPE = re.compile(r"#microsoft\.graph\.(\w+)AssignmentTarget")
"""What a target without a group is called, by its type: ``allDevices``, ``allLicensedUsers``."""
DEVICE = "#microsoft.graph.device"
OLDEST_WINDOWS = "1607"
REQUIRED = "required"
UNINSTALL = "uninstall"
RETURN_CODES = (
    (0, "success"),
    (1707, "success"),
    (3010, "softReboot"),
    (1641, "hardReboot"),
    (1618, "retry"),
)
REPORT_COLUMNS = (
    "DeviceId",
    "DeviceName",
    "AppVersion",
    "AppInstallState",
    "AppInstallStateDetails",
    "InstallState",
    "InstallStateDetail",
    "ErrorCode",
    "HexErrorCode",
)
NO_ERROR = (None, "", "0x0", "0x00000000")
FAILURES = (InstallState.FAILED, InstallState.REMOVE_FAILED)
STATES = {
    "installed": InstallState.INSTALLED,
    "failed": InstallState.FAILED,
    "error": InstallState.FAILED,
    "notinstalled": InstallState.NOT_INSTALLED,
    "uninstalled": InstallState.NOT_INSTALLED,
    "notapplicable": InstallState.NOT_INSTALLED,
    "uninstallfailed": InstallState.REMOVE_FAILED,
    "pendinginstall": InstallState.PENDING,
    "installpending": InstallState.PENDING,
    "pending": InstallState.PENDING,
    "installing": InstallState.INSTALLING,
    "downloading": InstallState.INSTALLING,
}


def escape(value: str) -> str:
    """A text for the inside of an OData string literal."""
    return value.replace("'", "''")


def file_name(uri: str) -> str:
    """The last part of a URI's path."""
    return PurePosixPath(unquote(urlsplit(uri).path)).name or "package"


INSTALLED: tuple[type[Win32Package | MsiPackage], ...] = (Win32Package, MsiPackage)


def windows_package(app: App) -> Win32Package | MsiPackage:
    """The package, if it is one that Intune installs.

    Raises:
        PermanentError: another kind.
    """
    return package_of(app, *INSTALLED, refusal="Intune does not install", service="intune")


def setup_file(package: Win32Package | MsiPackage) -> str:
    """The name of the installer inside the content."""
    return named_setup_file(package) or file_name(package.uri)


def named_setup_file(package: Win32Package | MsiPackage) -> str | None:
    """The installer's name, if the package says it."""
    return package.setup_file if isinstance(package, Win32Package) else None


def app_body(app: App) -> Json:
    """The object that ``POST mobileApps`` creates."""
    package = windows_package(app)
    install, uninstall = _commands(package)
    body: Json = {
        "@odata.type": APP_TYPE,
        "displayName": app.name,
        "description": f"{app.name} {app.version}",
        "publisher": PUBLISHER,
        "notes": f"{MARKER}{app.marker}\n{VERSION}{app.version}",
        "fileName": file_name(package.uri),
        "setupFilePath": setup_file(package),
        "installCommandLine": install,
        "uninstallCommandLine": uninstall,
        "installExperience": {"runAsAccount": "system", "deviceRestartBehavior": "basedOnReturnCode"},
        "rules": [_rule(_detection(package, app.version))],
        "returnCodes": [{"returnCode": code, "type": kind} for code, kind in RETURN_CODES],
        "applicableArchitectures": "x86,x64",
        "minimumSupportedWindowsRelease": OLDEST_WINDOWS,
    }
    if package.kind is PackageKind.MSI:
        body["msiInformation"] = _msi_information(package, app)
    return body


def _commands(package: Win32Package | MsiPackage) -> tuple[str, str]:
    if isinstance(package, Win32Package):
        return package.install_command, package.uninstall_command
    install = package.install_command or f'msiexec /i "{setup_file(package)}" /qn /norestart'
    return install, package.uninstall_command or f'msiexec /x "{package.product_code}" /qn /norestart'


def _detection(package: Win32Package | MsiPackage, version: str) -> Detection:
    if isinstance(package, Win32Package):
        return package.detection
    del version  # Windows Installer's own version need not be the deployment's
    return ProductCodeDetection(type="product_code", product_code=package.product_code)


def _rule(detection: Detection) -> Json:
    if isinstance(detection, FileDetection):
        return _file_rule(detection)
    if isinstance(detection, RegistryDetection):
        return _registry_rule(detection)
    return {
        "@odata.type": "#microsoft.graph.win32LobAppProductCodeRule",
        "ruleType": "detection",
        "productCode": detection.product_code,
        "productVersionOperator": "greaterThanOrEqual" if detection.version else "notConfigured",
        "productVersion": detection.version,
    }


def _file_rule(detection: FileDetection) -> Json:
    return {
        "@odata.type": "#microsoft.graph.win32LobAppFileSystemRule",
        "ruleType": "detection",
        "path": detection.path,
        "fileOrFolderName": detection.name,
        "check32BitOn64System": False,
        "operationType": "version" if detection.version else "exists",
        "operator": "greaterThanOrEqual" if detection.version else "notConfigured",
        "comparisonValue": detection.version,
    }


def _registry_rule(detection: RegistryDetection) -> Json:
    compares = detection.value is not None
    return {
        "@odata.type": "#microsoft.graph.win32LobAppRegistryRule",
        "ruleType": "detection",
        "keyPath": detection.key,
        "valueName": detection.value_name,
        "check32BitOn64System": False,
        "operationType": "string" if compares else "exists",
        "operator": "equal" if compares else "notConfigured",
        "comparisonValue": detection.value,
    }


def _msi_information(package: MsiPackage, app: App) -> Json:
    return {
        "packageType": "perMachine",
        "productCode": package.product_code,
        "productName": app.name,
        "productVersion": app.version,
        "publisher": PUBLISHER,
        "requiresReboot": False,
        "upgradeCode": None,
    }


def has_marker(found: Json, marker: str) -> bool:
    """Whether an app is the one of this deployment."""
    return f"{MARKER}{marker}" in (found.get("notes") or "").splitlines()


def is_ours(found: Json) -> bool:
    """Whether an app was made by this product, whichever deployment's it is."""
    return any(line.startswith(MARKER) for line in (found.get("notes") or "").splitlines())


def has_version(found: Json, version: str) -> bool:
    """Whether an app is of that version: ours by its notes, others by what Graph knows of them."""
    return version in _versions(found)


def version_of(found: Json) -> str | None:
    """The version that an app tells of: what Graph knows goes before what we noted."""
    return next((version for version in _versions(found) if version), None)


def _versions(found: Json) -> list[str | None]:
    named = [found.get("displayVersion"), (found.get("msiInformation") or {}).get("productVersion")]
    noted = [
        line.removeprefix(VERSION)
        for line in (found.get("notes") or "").splitlines()
        if line.startswith(VERSION)
    ]
    return [*named, *noted]


def is_usable(found: Json) -> bool:
    """Whether devices can install it: content committed and published."""
    return bool(found.get("committedContentVersion")) and found.get("publishingState") == "published"


def oldest_first(found: Json) -> tuple[str, str]:
    """A stable order of apps, by creation."""
    return found.get("createdDateTime") or "", found.get("id") or ""


def assignment_body(group: str, intent: str) -> Json:
    """One assignment to one group."""
    return {
        "@odata.type": "#microsoft.graph.mobileAppAssignment",
        "intent": intent,
        "target": {"@odata.type": GROUP_TARGET, "groupId": group},
        "settings": {
            "@odata.type": "#microsoft.graph.win32LobAppAssignmentSettings",
            "notifications": "showReboot",
            "restartSettings": None,
            "installTimeSettings": None,
            "deliveryOptimizationPriority": "notConfigured",
        },
    }


def is_on_group(assignment: Json, group: str) -> bool:
    """Whether an assignment includes that group; exclusions are another type."""
    target = assignment.get("target") or {}
    return (
        target.get("@odata.type") == GROUP_TARGET and str(target.get("groupId", "")).lower() == group.lower()
    )


def observed(app: Json, assignments: Iterable[Json], given: Assignment) -> Observed:
    """What an application and its assignments make of what was decided; only what is required installs."""
    required = [found for found in assignments if found.get("intent") == REQUIRED and not _excludes(found)]
    others = {_ref(found["target"]) for found in required if not is_on_group(found, given.target.ref)}
    assigned = any(is_on_group(found, given.target.ref) for found in required)
    return Observed(assigned, version_of(app), tuple(sorted(others)))


def _excludes(assignment: Json) -> bool:
    return bool(assignment["target"].get("@odata.type") == EXCLUSION_TARGET)


def _ref(target: Json) -> str:
    """What a target is called: a group's id, or who is meant where it is no group."""
    kind = str(target.get("@odata.type"))
    named = TARGET_TYPE.fullmatch(kind)
    return str(target.get("groupId") or (named[1] if named else kind))


def member(device: Json) -> Member:
    """A managed device as a member of a target."""
    return Member(
        device_id=device["id"], name=device.get("deviceName") or device["id"], last_seen=_instant(device)
    )


def _instant(device: Json) -> datetime | None:
    value = device.get("lastSyncDateTime")
    return datetime.fromisoformat(value) if value and not value.startswith("0001-") else None


def report_body(app_id: str, *, skip: int, top: int, session: str) -> Json:
    """The request for one page of the per-device report; ``session`` is the one that the first page began."""
    body = {
        "filter": f"(ApplicationId eq '{escape(app_id)}')",
        "select": list(REPORT_COLUMNS),
        "skip": skip,
        "top": top,
    }
    return body | ({"sessionId": session} if session else {})


def report_rows(report: Json) -> list[DeviceReport]:
    """The rows of a report page.

    Raises:
        PermanentError: it has no columns or rows as a report has.
    """
    try:
        columns = [column["Column"] for column in report["Schema"]]
        return [_device_report(dict(zip(columns, row, strict=True))) for row in report["Values"]]
    except (KeyError, TypeError, ValueError) as error:
        raise PermanentError("the device report is not in the form of a report", service="intune") from error


def _device_report(row: Json) -> DeviceReport:
    state = _state(row)
    words = _words(row, "AppInstallStateDetails", "InstallStateDetail")
    return DeviceReport(
        device_id=str(row["DeviceId"]),
        name=str(row.get("DeviceName") or row["DeviceId"]),
        state=state,
        detail=words or (_state_words(row) if state in FAILURES else None),
        error_code=_error_code(row),
        version=row.get("AppVersion") or None,
    )


def _state(row: Json) -> InstallState:
    """By the words: what the numbers of ``AppInstallState`` mean is not documented."""
    return STATES.get("".join((_state_words(row) or "").lower().split()), InstallState.UNKNOWN)


def _state_words(row: Json) -> str | None:
    return _words(row, "AppInstallState", "InstallState")


def _words(row: Json, *columns: str) -> str | None:
    """The first text for people. A column may hold a number, also as text; the words are in its twin then."""
    twins = (row.get(name) for column in columns for name in (f"{column}_loc", column))
    texts = (value for value in twins if isinstance(value, str) and value.strip())
    return next((text for text in texts if not text.strip().lstrip("-").isdecimal()), None)


def _error_code(row: Json) -> str | None:
    """As Windows writes it, in eight hexadecimal digits; from the signed number where the text is missing."""
    code, number = row.get("HexErrorCode"), row.get("ErrorCode")
    if code not in NO_ERROR:
        return str(code)
    return f"0x{number & 0xFFFFFFFF:08X}" if isinstance(number, int) and number else None
