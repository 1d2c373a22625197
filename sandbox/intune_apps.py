# SPDX-License-Identifier: Apache-2.0
"""Graph's ``deviceAppManagement/mobileApps``: win32LobApps are created, read, changed and deleted."""

import re
from typing import Annotated, Literal
from uuid import uuid4

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sandbox.graph import (
    Document,
    GraphError,
    GraphModel,
    GraphResponse,
    collection,
    equality,
    not_found,
    options,
    read,
    read_json,
    select,
)
from sandbox.journal import Table
from sandbox.plan import Software
from sandbox.plane import Plane
from sandbox.witness import instant

WIN32 = "#microsoft.graph.win32LobApp"
PUBLISH_SECONDS = 0.4
APPS = "/deviceAppManagement/mobileApps"
NOTED_VERSION = re.compile(r"\bversion[\"']?\s*[:=]\s*[\"']?([^\s\"',;}]+)", re.IGNORECASE)

Type = Annotated[str | None, Field(alias="@odata.type")]
Required = Annotated[str, Field(min_length=1)]
Operator = Literal[
    "notConfigured", "equal", "notEqual", "greaterThan", "greaterThanOrEqual", "lessThan", "lessThanOrEqual"
]
RuleType = Literal["detection", "requirement"]


class InstallExperience(GraphModel):
    """How an installer runs."""

    odata_type: Type = None
    run_as_account: Literal["system", "user"] = "system"
    device_restart_behavior: Literal["basedOnReturnCode", "allow", "suppress", "force"] = "basedOnReturnCode"


class FileRule(GraphModel):
    """Looks for a file."""

    odata_type: Annotated[Literal["#microsoft.graph.win32LobAppFileSystemRule"], Field(alias="@odata.type")]
    rule_type: RuleType
    path: Required
    file_or_folder_name: Required
    check32_bit_on64_system: Annotated[bool, Field(alias="check32BitOn64System")] = False
    operation_type: Literal["notConfigured", "exists", "modifiedDate", "createdDate", "version", "sizeInMB"]
    operator: Operator = "notConfigured"
    comparison_value: str | None = None


class RegistryRule(GraphModel):
    """Looks for a registry key or value."""

    odata_type: Annotated[Literal["#microsoft.graph.win32LobAppRegistryRule"], Field(alias="@odata.type")]
    rule_type: RuleType
    key_path: Required
    value_name: str | None = None
    check32_bit_on64_system: Annotated[bool, Field(alias="check32BitOn64System")] = False
    operation_type: Literal["notConfigured", "exists", "doesNotExist", "string", "integer", "version"]
    operator: Operator = "notConfigured"
    comparison_value: str | None = None


class ProductCodeRule(GraphModel):
    """Asks Windows Installer for a product code."""

    odata_type: Annotated[Literal["#microsoft.graph.win32LobAppProductCodeRule"], Field(alias="@odata.type")]
    rule_type: RuleType
    product_code: Required
    product_version: str | None = None
    product_version_operator: Operator = "notConfigured"


class ScriptRule(GraphModel):
    """Runs a PowerShell script."""

    odata_type: Annotated[
        Literal["#microsoft.graph.win32LobAppPowerShellScriptRule"], Field(alias="@odata.type")
    ]
    rule_type: RuleType
    display_name: str | None = None
    enforce_signature_check: bool = False
    run_as32_bit: Annotated[bool, Field(alias="runAs32Bit")] = False
    run_as_account: Literal["system", "user"] | None = None
    script_content: Required
    operation_type: Literal["notConfigured", "string", "dateTime", "integer", "float", "version", "boolean"]
    operator: Operator = "notConfigured"
    comparison_value: str | None = None


Rule = Annotated[FileRule | RegistryRule | ProductCodeRule | ScriptRule, Field(discriminator="odata_type")]


class ReturnCode(GraphModel):
    """What an installer's exit code means."""

    odata_type: Type = None
    return_code: int
    type: Literal["failed", "success", "softReboot", "hardReboot", "retry"]


class MsiInformation(GraphModel):
    """What Windows Installer says of the package."""

    odata_type: Type = None
    product_code: str | None = None
    product_version: str | None = None
    upgrade_code: str | None = None
    requires_reboot: bool = False
    package_type: Literal["perMachine", "perUser", "dualPurpose"] = "perMachine"
    product_name: str | None = None
    publisher: str | None = None


class MimeContent(GraphModel):
    """An icon."""

    odata_type: Type = None
    type: str | None = None
    value: str | None = None


class Common(GraphModel):
    """What may be left out when an app is created, and changed later."""

    description: str | None = None
    developer: str | None = None
    information_url: str | None = None
    is_featured: bool = False
    large_icon: MimeContent | None = None
    notes: str | None = None
    owner: str | None = None
    privacy_information_url: str | None = None
    allowed_architectures: str | None = None
    applicable_architectures: str = "x64,x86"
    minimum_cpu_speed_in_m_hz: Annotated[int | None, Field(alias="minimumCpuSpeedInMHz")] = None
    minimum_free_disk_space_in_mb: Annotated[int | None, Field(alias="minimumFreeDiskSpaceInMB")] = None
    minimum_memory_in_mb: Annotated[int | None, Field(alias="minimumMemoryInMB")] = None
    minimum_number_of_processors: int | None = None
    minimum_supported_windows_release: str | None = None
    msi_information: MsiInformation | None = None
    return_codes: list[ReturnCode] = Field(default_factory=list)


class NewWin32App(Common):
    """A win32LobApp to create."""

    odata_type: Annotated[Literal["#microsoft.graph.win32LobApp"], Field(alias="@odata.type")]
    display_name: Required
    publisher: Required
    file_name: Required
    setup_file_path: Required
    install_command_line: Required
    uninstall_command_line: Required
    install_experience: InstallExperience
    rules: Annotated[list[Rule], Field(min_length=1)]


class ChangedWin32App(Common):
    """Properties of a win32LobApp to change."""

    odata_type: Annotated[Literal["#microsoft.graph.win32LobApp"], Field(alias="@odata.type")]
    display_name: Required | None = None
    publisher: Required | None = None
    file_name: Required | None = None
    setup_file_path: Required | None = None
    install_command_line: Required | None = None
    uninstall_command_line: Required | None = None
    install_experience: InstallExperience | None = None
    rules: Annotated[list[Rule], Field(min_length=1)] | None = None
    committed_content_version: Required | None = None


class Apps:
    """The tenant's applications."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self.table: Table = plane.table("apps")

    def routes(self) -> list[Route]:
        """The routes of this noun."""
        return [
            Route(APPS, self._list, methods=["GET"]),
            Route(APPS, self._create, methods=["POST"]),
            Route(APPS + "/{app_id}", self._read, methods=["GET"]),
            Route(APPS + "/{app_id}", self._change, methods=["PATCH"]),
            Route(APPS + "/{app_id}", self._delete, methods=["DELETE"]),
        ]

    def one(self, request: Request) -> Document:
        """The app that the request's path names."""
        app_id: str = request.path_params["app_id"]
        return self.table.get(app_id) or not_found("mobileApp", app_id)

    def publishing_state(self, app: Document) -> str:
        """Where publishing stands: it takes a moment after content was committed."""
        if app["published_at"] is None:
            return "notPublished"
        return "processing" if self._plane.clock() < app["published_at"] else "published"

    def software(self, app: Document) -> Software:
        """What the fleet knows of an app."""
        return Software(app["id"], app["body"]["displayName"], version_of(app["body"]))

    def shown(self, app: Document) -> Document:
        """An app as Graph answers it."""
        return {
            "@odata.type": WIN32,
            "id": app["id"],
            "createdDateTime": instant(app["created_at"]),
            "lastModifiedDateTime": instant(app["changed_at"]),
            "publishingState": self.publishing_state(app),
            "committedContentVersion": app["content_version"],
            "size": app["size"],
            **app["body"],
        }

    async def _list(self, request: Request) -> Response:
        given = options(request, ["$top", "$select", "$skiptoken", "$count", "$filter"])
        found = list(self.table.values())
        if (wanted := equality(given, ["displayName", "id", "publisher"])) is not None:
            name, value = wanted
            found = [app for app in found if str({**app["body"], "id": app["id"]}[name]) == value]
        return collection(
            request, len(found), lambda skip, top: [self.shown(app) for app in found[skip : skip + top]]
        )

    async def _create(self, request: Request) -> Response:
        kind = (await read_json(request)).get("@odata.type")
        if kind != WIN32:
            raise GraphError(400, f"Cannot create an app of type '{kind}': this sandbox knows {WIN32}.")
        body = await read(request, NewWin32App)
        require_detection(body.rules)
        app_id, now = str(uuid4()), self._plane.clock()
        app = {
            "id": app_id,
            "created_at": now,
            "changed_at": now,
            "published_at": None,
            "content_version": None,
            "size": 0,
            "effect_key": request.headers.get("x-effect-key"),
            "body": body.model_dump(by_alias=True, exclude={"odata_type"}),
        }
        return GraphResponse(self.shown(self.table.put(app_id, app)), status_code=201)

    async def _read(self, request: Request) -> Response:
        given = options(request, ["$select"])
        return GraphResponse(select(given, self.shown(self.one(request))))

    async def _change(self, request: Request) -> Response:
        app = self.one(request)
        body = await read(request, ChangedWin32App)
        if body.rules is not None:
            require_detection(body.rules)
        changed = body.model_fields_set - {"odata_type", "committed_content_version"}
        changes = body.model_dump(by_alias=True, include=changed)
        now = self._plane.clock()
        app = {**app, "body": {**app["body"], **changes}, "changed_at": now}
        if body.committed_content_version is not None:
            app = self._publish(app, body.committed_content_version, now)
        return GraphResponse(self.shown(self.table.put(app["id"], app)))

    def _publish(self, app: Document, version: str, now: float) -> Document:
        files = [file for file in self._plane.table("files").values() if file["app_id"] == app["id"]]
        files = [file for file in files if file["version"] == version]
        if not files or any(file["verdict"] != "" for file in files):
            raise GraphError(400, f"Content version '{version}' does not exist or has no committed content.")
        if app["content_version"] == version:
            return app
        ready = now + PUBLISH_SECONDS * self._plane.scale
        size = sum(file["size"] for file in files)
        return {**app, "content_version": version, "published_at": ready, "size": size}

    async def _delete(self, request: Request) -> Response:
        app = self.one(request)
        self._plane.fleet.direct(self.software(app), {})
        assignments = self._plane.table("assignments")
        for key in [key for key, assignment in assignments.items() if assignment["app_id"] == app["id"]]:
            assignments.drop(key)
        self.table.drop(app["id"])
        return Response(status_code=204)


def require_detection(rules: list[Rule]) -> None:
    """Refuse an app that no device could ever find."""
    if not any(rule.rule_type == "detection" for rule in rules):
        raise GraphError(400, "rules: at least one rule must be of ruleType detection.")


def version_of(body: Document) -> str:
    """An app's version, for which v1.0 has no property: Windows Installer's, else what the notes say."""
    msi = (body.get("msiInformation") or {}).get("productVersion")
    noted = NOTED_VERSION.search(body.get("notes") or "")
    return str(msi or (noted and noted[1]) or "")
