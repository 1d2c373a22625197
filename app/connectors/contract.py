# SPDX-License-Identifier: Apache-2.0
"""The port every device manager implements: plain values in, plain values out, no database, web or queue."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Protocol
from uuid import UUID

from app.connectors.packages import Package, PackageKind

__all__ = [
    "Action",
    "App",
    "Assignment",
    "Call",
    "Capability",
    "Connector",
    "Cost",
    "DeviceReport",
    "Health",
    "InstallState",
    "Manifest",
    "Member",
    "Observed",
    "Package",
    "PackageKind",
    "Plane",
    "RateLimit",
    "Target",
    "TargetKind",
    "UploadProgress",
    "Verified",
]


class Plane(StrEnum):
    """The device managers this product knows by name."""

    INTUNE = "intune"
    JAMF = "jamf"
    SCCM = "sccm"
    LANDSCAPE = "landscape"
    ANSIBLE = "ansible"


class Action(StrEnum):
    """The changes that may be asked of a plane: the actions of the effects ledger."""

    PUBLISH = "publish"
    UPLOAD = "upload"
    ASSIGN = "assign"
    UNASSIGN = "unassign"
    REMOVE = "remove"


class TargetKind(StrEnum):
    """What a ring is called on a plane: a group (Intune, Jamf), a collection, a tag or an inventory."""

    GROUP = "group"
    COLLECTION = "collection"
    TAG = "tag"
    INVENTORY = "inventory"


class Capability(StrEnum):
    """What one device manager can do and another cannot; its manifest has each, or says why not.

    ``CREATE``: makes the application's object, where others take one that the operator has prepared.
    ``UPLOAD``: takes the content from us. ``MARKER``: its objects carry our marker, by which one is found
    again after a lost answer. ``REMOVE``: uninstalls. ``RETURN``: brings an earlier version back.
    ``CANCEL``: keeps back what devices have not begun. ``RETRY``: tries the failed devices again when asked.
    ``OBSERVE``: tells long afterwards what is assigned to whom, so that drift can be seen.
    """

    CREATE = "create"
    UPLOAD = "upload"
    MARKER = "marker"
    REMOVE = "remove"
    RETURN = "return"
    CANCEL = "cancel"
    RETRY = "retry"
    OBSERVE = "observe"


class InstallState(StrEnum):
    """What a plane says of one device and one application version.

    ``NOT_INSTALLED`` is an answer (it is not there), ``PENDING`` is the lack of one. ``UNAPPROVED`` waits
    for a person at the plane, ``UNDELIVERED`` for the device to call.
    """

    PENDING = "pending"
    UNAPPROVED = "unapproved"
    UNDELIVERED = "undelivered"
    INSTALLING = "installing"
    INSTALLED = "installed"
    FAILED = "failed"
    NOT_INSTALLED = "not_installed"
    REMOVE_FAILED = "remove_failed"
    UNREACHABLE = "unreachable"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most so many ``requests`` within so many ``seconds``; ``applies_to`` says which, and whose."""

    requests: int
    seconds: float
    applies_to: str


class Call(StrEnum):
    """The parts of the port of which it is known how many requests they take."""

    PUBLISH = "publish"
    UPLOAD = "upload"
    ASSIGN = "assign"
    MEMBERS = "members"
    STATUS = "status"
    FIND_VERSION = "find_version"


@dataclass(frozen=True, slots=True)
class Cost:
    """At most so many ``requests``, and one more for each ``page`` of devices begun; 0: not by devices.

    Without retries, without getting a token, and without the content that an upload carries.
    """

    requests: int
    page: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a plane can do, known without calling it. ``cannot`` has every other capability, and why.

    ``retries_itself``: a device that failed tries again without being asked, at times of the plane's own.
    ``names_devices``: a removal may name so many; of more, or with 0, it reaches whoever the target holds.
    ``mends_version``: ``assign`` sent again brings the decided version back where another one took its place.
    """

    plane: Plane
    title: str
    package_kinds: frozenset[PackageKind]
    target_kinds: frozenset[TargetKind]
    cannot: Mapping[Capability, str]
    max_concurrency: int
    sources: tuple[str, ...]
    costs: Mapping[Call, Cost]
    rate_limits: tuple[RateLimit, ...] = ()
    retries_itself: bool = False
    names_devices: int = 0
    mends_version: bool = False

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it can do."""
        return frozenset(Capability) - self.cannot.keys()

    def can(self, capability: Capability) -> bool:
        """Whether it can do that."""
        return capability not in self.cannot


@dataclass(frozen=True, slots=True)
class Target:
    """The devices of one ring, in the plane's own words."""

    kind: TargetKind
    ref: str


@dataclass(frozen=True, slots=True)
class App:
    """What is published. ``key`` is the effect's, sent as ``X-Effect-Key`` on every request made for it.

    ``marker`` is stable for the deployment on this plane (``<deployment>/<plane>``); the connector keeps it
    inside the vendor's object, so that the object is found again before a second one is made.
    """

    key: str
    marker: str
    name: str
    version: str
    package: Package
    correlation_id: UUID


@dataclass(frozen=True, slots=True)
class Assignment:
    """One application put on or taken off one target.

    ``key`` is the effect's, unique to one ring and one direction; ``external_id`` is what ``publish``
    returned. ``previous_id`` is the version a removal returns to. ``made_id`` is what ``assign`` or
    ``remove`` returned, at ``made_at``, once they did; ``baseline`` what ``baseline`` did before.
    ``devices`` narrows a removal to those it names; None: whoever the target holds.
    """

    key: str
    app: App
    external_id: str
    target: Target
    previous_id: str | None = None
    made_id: str | None = None
    made_at: datetime | None = None
    baseline: str | None = None
    devices: tuple["Member", ...] | None = None

    @property
    def correlation_id(self) -> UUID:
        """The intent's."""
        return self.app.correlation_id

    @property
    def first_key(self) -> str:
        """The key without its turn. What any turn makes is called by it, so that every turn finds it."""
        return "/".join(self.key.split("/")[:4])

    @property
    def is_first_turn(self) -> bool:
        """Whether nothing was made by this effect before; a later turn mends what was lost or changed."""
        return self.key == self.first_key

    def key_of(self, action: Action) -> str:
        """The first key of another effect on the same target: what that effect made is called by it."""
        return "/".join([*self.key.split("/")[:3], action.value])


@dataclass(frozen=True, slots=True)
class UploadProgress:
    """How far an upload has come. ``checkpoint`` is JSON ``upload`` resumes from anywhere; never a secret."""

    checkpoint: Mapping[str, Any]
    sent_bytes: int
    total_bytes: int
    done: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """A device that a target holds now; ``last_seen`` is when the plane last heard of it, aware UTC."""

    device_id: str
    name: str
    last_seen: datetime | None = None


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """What the plane says of one device: the vendor's own ``error_code``, the ``version`` there if known."""

    device_id: str
    name: str
    state: InstallState
    detail: str | None = None
    error_code: str | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class ReportPage:
    """Some of what devices report. ``mark``: how far the reading has come, in the connector's own words."""

    reports: Sequence[DeviceReport]
    mark: str | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """The answer to a real call: ``detail`` tells what was asked and who answered."""

    detail: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verified:
    """What the plane has, asked after a lost answer: whether the effect ``holds``, and the object's id."""

    holds: bool
    external_id: str | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """What a plane has now of what ``assign`` made, perhaps long ago.

    ``assigned``: it is there and still asks for the installation on the assignment's own target. ``version``
    is what devices would get by it; None where the plane does not tell. ``others``: the refs, in the plane's
    words, of further targets to which the same application of ours is assigned for installation.
    """

    assigned: bool
    version: str | None = None
    others: tuple[str, ...] = ()


class Connector(Protocol):
    """One device manager. Every method may be repeated; every error is one of ``app.resilience.errors``.

    Sequences that may be long come in pages (async iterators of sequences), so that memory stays constant.
    A method whose capability the manifest has not is never called.
    """

    manifest: ClassVar[Manifest]
    base_url: str

    async def check(self) -> Health:
        """Prove by a harmless call that the plane answers and accepts the credentials."""
        ...

    async def publish(self, app: App) -> str:
        """Find the application by its marker or create it; the vendor's id. A repeat finds it.

        Without ``CREATE``: find what the operator prepared, and refuse what could not be deployed.
        """
        ...

    def upload(
        self, app: App, external_id: str, checkpoint: Mapping[str, Any] | None
    ) -> AsyncGenerator[UploadProgress, None]:
        """Send the package's content, continuing from ``checkpoint``; progress at least every few seconds.

        The caller may stop between two values and go on later, elsewhere. The last value is ``done``.
        A plane without content yields one value that is done.
        """
        ...

    async def baseline(self, assignment: Assignment) -> str | None:
        """What to remember before ``assign`` or ``remove`` is sent, to find it again without ``MARKER``."""
        ...

    async def assign(self, assignment: Assignment) -> str:
        """Require the application on the target, beside whatever else is assigned; the assignment's id."""
        ...

    async def remove(self, assignment: Assignment) -> str:
        """Uninstall from a target; the uninstall assignment's id. What ``assign`` made there gives way.

        ``previous_id``, if given, is required there then, unless somebody offers it there already.
        """
        ...

    async def unassign(self, assignment: Assignment) -> None:
        """Take back what ``assign`` or ``remove`` put on the target, and nothing else."""
        ...

    async def cancel(self, assignment: Assignment) -> None:
        """Keep devices that have not begun from beginning; what runs or is done stays as it is."""
        ...

    async def retry(self, assignment: Assignment) -> str:
        """Have the devices that failed try once more; the id that takes the place of ``made_id``."""
        ...

    def members(self, target: Target) -> AsyncIterator[Sequence[Member]]:
        """The devices the target holds now, in pages."""
        ...

    def status(
        self, action: Action, assignment: Assignment, *, after: str | None = None
    ) -> AsyncIterator[ReportPage]:
        """What devices report of an assignment made by ``ASSIGN`` or ``REMOVE``, in pages.

        ``after`` is the mark of a page that a reading not long ago had come to: what was read by then may be
        left out. Devices that have come or gone since may be missed until the next reading.
        A device that ``REMOVE`` has reached says ``NOT_INSTALLED`` or ``REMOVE_FAILED``.

        Raises:
            NotReady: the plane tells nothing of any device before it is done with ``REMOVE``, and it is not.
        """
        ...

    def returned(self, assignment: Assignment, *, after: str | None = None) -> AsyncIterator[ReportPage]:
        """What devices report of ``previous_id`` after ``remove``, in pages; ``after`` as in ``status``."""
        ...

    async def find_version(self, app: App, version: str) -> str | None:
        """The id of a usable published application of that version, ours or not; without ``RETURN`` None."""
        ...

    async def verify(self, action: Action, app: App, assignment: Assignment | None) -> Verified:
        """Ask what the plane has of an effect whose answer was lost. Reads only.

        ``app`` locates publish and upload, ``assignment`` the other three.
        """
        ...

    async def observe(self, assignment: Assignment) -> Observed:
        """What is there now of an assignment that was confirmed. Reads only; what is gone is no error."""
        ...
