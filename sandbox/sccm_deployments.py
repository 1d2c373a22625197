# SPDX-License-Identifier: Apache-2.0
"""Configuration Manager's deployments of applications, and each machine's line of their status."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal
from uuid import NAMESPACE_URL, uuid5

from pydantic import BaseModel, ConfigDict, Field

from sandbox.fleet import Intent, Life, Order
from sandbox.journal import Document
from sandbox.odata import Condition, equal, least
from sandbox.plan import RINGS, Device, Ring, Software
from sandbox.plane import Plane
from sandbox.rest import Body, Refused

FIRST_DEPLOYMENT = 16_777_301
FIRST_APPLICATION = 16_780_331
FIRST_MACHINE = 16_777_220
MACHINES_PER_RING = 1_000_000
SITE = "XYZ"
COLLECTIONS: dict[Ring, str] = {ring: f"{SITE}{12 + place:05X}" for place, ring in enumerate(RINGS)}
SUCCESS, RUNNING, UNKNOWN, ERROR = 1, 2, 4, 5
FAILED_TO_DOWNLOAD = 0x87D00324


class Application(BaseModel):
    """One that the operator packaged: of ``targeted`` points so many have it, and so many ``failed`` to.

    ``revises``: the version under which it was packaged first, if this is a revision of the same application.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1)]
    product: Annotated[str, Field(min_length=1)]
    version: Annotated[str, Field(min_length=1)]
    targeted: int = 2
    points: int = 2
    failed: int = 0
    expired: bool = False
    revises: str | None = None


class Applications(BaseModel):
    """All that the operator packaged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    items: list[Application]


DEFAULT_APPLICATIONS = Applications(
    items=[
        Application(name="Example Editor 4.2.0", product="Example Editor", version="4.2.0"),
        Application(name="Example Editor 4.2.1", product="Example Editor", version="4.2.1"),
    ]
)


class Switch(Body):
    """Whether a deployment is in force."""

    enabled: bool


class NewDeployment(Body):
    """The members of ``SMS_ApplicationAssignment`` that a client sets."""

    ApplicationName: str
    AssignmentName: str
    AssignmentAction: Literal[2]
    AssignmentType: Literal[2]
    AssignedCIs: Annotated[list[int], Field(min_length=1, max_length=1)]
    CollectionName: str
    TargetCollectionID: str
    DesiredConfigType: Literal[1, 2]
    OfferTypeID: Literal[0, 2]
    OfferFlags: int = 0
    Priority: Literal[0, 1, 2] = 1
    StartTime: str
    EnforcementDeadline: str | None = None
    UseGMTTimes: bool = True
    SuppressReboot: int = 0
    OverrideServiceWindows: bool = False
    RebootOutsideOfServiceWindows: bool = False
    NotifyUser: bool = False
    UserUIExperience: bool = True
    WoLEnabled: bool = False
    LogComplianceToWinEvent: bool = False
    SourceSite: str


def model_name(application: Application) -> str:
    """What names an application whatever its revision."""
    first = application.revises or application.version
    unique = uuid5(NAMESPACE_URL, f"eucora-sandbox/{application.name}/{first}")
    return f"ScopeId_4F0C1B3E-0000-4000-8000-000000000001/Application_{unique}"


def machine_id(device: Device) -> int:
    """The number of a machine, from which its ring can be told."""
    return FIRST_MACHINE + RINGS.index(device.ring) * MACHINES_PER_RING + device.index


class Deployments:
    """Applications, and what is deployed of them to which collection."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._table = plane.table("deployments")
        self._settings = plane.table("applications")

    @property
    def applications(self) -> list[Application]:
        """What the operator packaged."""
        stored = self._settings.get("applications")
        known = DEFAULT_APPLICATIONS if stored is None else Applications.model_validate(stored)
        return known.items

    def package(self, applications: Applications) -> None:
        """Have other applications; what is deployed stays deployed."""
        self._settings.put("applications", applications.model_dump())

    def application_rows(self) -> Iterator[Document]:
        """``SMS_Application``; its XML is left out of lists, as lazy properties are."""
        for place, application in enumerate(self.applications):
            yield {
                "__LAZYPROPERTIES": ["SDMPackageXML"],
                "CI_ID": FIRST_APPLICATION + place,
                "CI_UniqueID": f"{model_name(application)}/{2 if application.revises else 1}",
                "ModelName": model_name(application),
                "LocalizedDisplayName": application.name,
                "LocalizedDescription": "",
                "Manufacturer": "Example Ltd",
                "SoftwareVersion": application.version,
                "IsLatest": True,
                "IsDeployed": any(row["model"] == model_name(application) for row in self._table.values()),
                "IsExpired": application.expired,
                "NumberOfDeploymentTypes": 1,
            }

    def content_rows(self) -> Iterator[Document]:
        """``SMS_ObjectContentExtraInfo``: where content was to go, and went."""
        for application in self.applications:
            waiting = application.targeted - application.points - application.failed
            yield {
                "ObjectID": model_name(application),
                "PackageID": f"{SITE}000{len(application.name):02X}",
                "SoftwareName": application.name,
                "Targeted": application.targeted,
                "NumberSuccess": application.points,
                "NumberErrors": application.failed,
                "NumberInProgress": waiting,
                "NumberUnknown": 0,
            }

    def create(self, body: NewDeployment, effect_key: str | None) -> Document:
        """Deploy; a second one of the same name is as welcome as the first."""
        place = body.AssignedCIs[0] - FIRST_APPLICATION
        if not 0 <= place < len(self.applications):
            raise Refused(400, f"CI {body.AssignedCIs[0]} does not exist.")
        if body.TargetCollectionID not in COLLECTIONS.values():
            raise Refused(400, f"Collection {body.TargetCollectionID} does not exist.")
        if body.OfferTypeID == 0 and body.EnforcementDeadline is None:
            raise Refused(400, "A required deployment needs an EnforcementDeadline.")
        application = self.applications[place]
        number = FIRST_DEPLOYMENT + int(self._settings.get("next", {"number": 0})["number"])
        self._settings.put("next", {"number": number - FIRST_DEPLOYMENT + 1})
        row = {
            "id": number,
            "model": model_name(application),
            "product": application.product,
            "version": application.version,
            "effect_key": effect_key,
            "body": body.model_dump(exclude_none=True),
        }
        self._table.put(str(number), row)
        self._direct(row)
        return row

    def delete(self, number: str) -> None:
        """Withdraw."""
        row = self._table.get(number)
        if row is None:
            raise Refused(404, "No HTTP resource was found that matches the request URI")
        self._table.drop(number)
        self._direct(row)

    def switch(self, number: str, *, enabled: bool) -> bool:
        """Switch a deployment on or off; False if there is none."""
        row = self._table.get(number)
        if row is None:
            return False
        self._direct(self._table.put(number, row | {"enabled": enabled}))
        return True

    def _direct(self, row: Document) -> None:
        """Tell the fleet all that stands of an application; what is required wins over what uninstalls."""
        intents: dict[Ring, Intent] = {}
        for other in self._table.values():
            ring = ring_of(other["body"]["TargetCollectionID"])
            if (
                other["model"] != row["model"]
                or not other.get("enabled", True)
                or other["body"]["OfferTypeID"] == 2
                or intents.get(ring) == "install"
            ):
                continue
            intents[ring] = "install" if other["body"]["DesiredConfigType"] == 1 else "uninstall"
        software = Software(row["model"], row["product"], row["version"])
        self._plane.fleet.direct(software, intents)

    def shown(self, row: Document) -> Document:
        """``SMS_ApplicationAssignment``."""
        enabled = row.get("enabled", True)
        told = {"AssignmentID": row["id"], "AssignmentUniqueID": unique_id(row), "Enabled": enabled}
        return {"__LAZYPROPERTIES": [], **told, **row["body"]}

    def rows(self) -> Iterator[Document]:
        """Every deployment."""
        return (self.shown(row) for row in self._table.values())

    def details(self, wanted: list[Condition], *, errors: bool) -> Iterator[Document]:
        """``SMS_AppDeploymentAssetDetails``, or its errors, of the deployment that the filter names."""
        row = self._table.get(str(equal(wanted, "AssignmentID")))
        if row is None:
            return
        ring = ring_of(row["body"]["TargetCollectionID"])
        order = self._plane.fleet.standing(row["model"]).get(ring)
        first = FIRST_MACHINE + RINGS.index(ring) * MACHINES_PER_RING
        devices = list(self._plane.fleet.devices(ring, skip=max(0, least(wanted, "MachineID") - first)))
        for device, life in zip(devices, self._plane.fleet.lives(row["product"], ring, devices), strict=True):
            status = status_of(row, order, life)
            if not errors:
                yield self._detail(row, device, status)
            elif status == ERROR:
                yield {**self._detail(row, device, status), "ErrorCode": FAILED_TO_DOWNLOAD}

    def _detail(self, row: Document, device: Device, status: int) -> Document:
        body = row["body"]
        return {
            "AppCI": body["AssignedCIs"][0],
            "AppName": body["ApplicationName"],
            "AppStatusType": status,
            "AssignmentID": row["id"],
            "AssignmentUniqueID": unique_id(row),
            "ComplianceState": 1 if status == SUCCESS else 2,
            "InstalledState": 2 if status == SUCCESS else 1,
            "Revision": 1,
            "CollectionID": body["TargetCollectionID"],
            "CollectionName": body["CollectionName"],
            "DeploymentIntent": body["DesiredConfigType"],
            "EnforcementState": status * 1000,
            "MachineID": machine_id(device),
            "MachineName": device.name,
            "StatusType": status,
            "Technology": "Script",
            "UserName": "",
        }


def unique_id(row: Document) -> str:
    """A deployment's other name."""
    unique = uuid5(NAMESPACE_URL, f"eucora-sandbox/deployment/{row['id']}")
    return f"{{{str(unique).upper()}}}"


def status_of(row: Document, order: Order | None, life: Life) -> int:
    """``AppStatusType`` of one machine: of this deployment, so nothing before the machine has heard of it."""
    has = life.installed is not None and life.installed.app_id == row["model"]
    heard = order is not None and order.id in life.seen
    if row["body"]["DesiredConfigType"] == 1:
        if has:
            return SUCCESS
        return (ERROR if row["model"] in life.failed else RUNNING) if heard else UNKNOWN
    if not heard:
        return UNKNOWN
    return (ERROR if row["model"] in life.stuck else RUNNING) if has else SUCCESS


def ring_of(collection: Any) -> Ring:
    """The ring whose machines a collection holds."""
    ring = next((ring for ring, known in COLLECTIONS.items() if known == collection), None)
    if ring is None:
        raise Refused(404, f"Collection {collection} does not exist.")
    return ring
