# SPDX-License-Identifier: Apache-2.0
"""A virtual fleet: rings of devices that check in over time and install, fail or stay away by a seeded plan.

Nothing runs: what a device has is worked out, whenever somebody asks, from the orders and plans written down
so far and the time that has passed. A check-in happens some seconds after each change that concerns a device.
"""

import hashlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Literal, Self
from zlib import crc32

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sandbox.journal import Document, Table

Ring = Literal["LAB", "CANARY", "PILOT", "DEPARTMENT", "GLOBAL"]
RINGS: tuple[Ring, ...] = ("LAB", "CANARY", "PILOT", "DEPARTMENT", "GLOBAL")
DEFAULT_DEVICES: dict[Ring, int] = {"LAB": 10, "CANARY": 80, "PILOT": 160, "DEPARTMENT": 350, "GLOBAL": 600}
Fraction = Annotated[float, Field(ge=0, le=1)]
Clock = Callable[[], float]


class Fate(StrEnum):
    """What the plan has in store for one device and one application."""

    WELL = "well"
    FAIL = "fail"
    OFFLINE = "offline"


class Odds(BaseModel):
    """Which share of a ring's devices fails to install, never checks in, or fails to uninstall."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fail: Fraction = 0.0
    offline: Fraction = 0.0
    remove_fail: Fraction = 0.0

    @model_validator(mode="after")
    def at_most_all(self) -> Self:
        """A device has one fate."""
        if self.fail + self.offline > 1 + 1e-9:
            raise ValueError("fail and offline together are more than all devices")
        return self


class RingPlan(Odds):
    """One ring. ``devices`` left out keeps their number; ``delay`` is the range of seconds until a check-in.

    What ``GET`` answers may be put back: ``kind`` and ``ref`` are accepted and not looked at.
    """

    devices: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    delay: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] = (0.5, 3.0)
    kind: str | None = Field(default=None, exclude=True)
    ref: str | None = Field(default=None, exclude=True)

    @model_validator(mode="after")
    def delay_in_order(self) -> Self:
        """The shortest delay comes first."""
        if self.delay[0] > self.delay[1]:
            raise ValueError("delay is [shortest, longest]")
        return self


class FleetDocument(BaseModel):
    """A plan. What is left out at the top level stays as it is; ``apps`` overrules rings by product."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    rings: dict[Ring, RingPlan] = Field(default_factory=dict)
    apps: dict[str, dict[Ring, Odds]] | None = None


@dataclass(frozen=True)
class Plan:
    """The plan in force since ``at``."""

    at: float
    seed: int
    rings: Mapping[Ring, RingPlan]
    apps: Mapping[str, Mapping[Ring, Odds]]

    def devices(self, ring: Ring) -> int:
        """How many devices the ring has."""
        return self.rings[ring].devices or 0

    def odds(self, ring: Ring, software: "Software") -> Odds:
        """The odds for one application in one ring."""
        return self.apps.get(software.product, {}).get(ring, self.rings[ring])


@dataclass(frozen=True)
class Software:
    """One version of a product. A device has at most one version of a product at a time."""

    app_id: str
    product: str
    version: str


@dataclass(frozen=True)
class Device:
    """One device of a ring, by its place in it."""

    ring: Ring
    index: int

    @property
    def name(self) -> str:
        """The computer's name, at most 15 characters as Windows wants it."""
        return f"{self.ring[:4]}-{self.index + 1:06d}"


Intent = Literal["install", "uninstall"]


@dataclass(frozen=True)
class Order:
    """That a ring shall install or uninstall an application, from ``start`` on until it is withdrawn."""

    id: str
    software: Software
    ring: Ring
    intent: Intent
    start: float
    end: float | None = None

    def holds(self, at: float) -> bool:
        """Whether the order was in force then."""
        return self.start <= at and (self.end is None or at < self.end)


@dataclass(frozen=True)
class Step:
    """Something that happened on a device."""

    app_id: str
    action: Literal["install", "uninstall", "fail"]
    at: float


@dataclass
class Life:
    """What became of one product on one device. ``seen`` has, by order, when the device last heard of it."""

    installed: Software | None = None
    steps: list[Step] = field(default_factory=list)
    seen: dict[str, float] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    stuck: set[str] = field(default_factory=set)
    proven: set[str] = field(default_factory=set)

    def install(self, software: Software, at: float, *, fails: bool) -> None:
        """Try to install. What this device once installed, it can install again; a failure is told once."""
        if not fails or software.app_id in self.proven:
            self.installed = software
            self.proven.add(software.app_id)
            self.failed.discard(software.app_id)
            self.steps.append(Step(software.app_id, "install", at))
        elif software.app_id not in self.failed:
            self.failed.add(software.app_id)
            self.steps.append(Step(software.app_id, "fail", at))

    def uninstall(self, software: Software, at: float, *, fails: bool) -> None:
        """Try to uninstall what is there."""
        if not fails:
            self.installed = None
            self.stuck.discard(software.app_id)
            self.steps.append(Step(software.app_id, "uninstall", at))
        elif software.app_id not in self.stuck:
            self.stuck.add(software.app_id)
            self.steps.append(Step(software.app_id, "fail", at))


@dataclass(frozen=True)
class Moment:
    """A change after which the devices of a ring check in."""

    at: float
    key: str
    plan: Plan


class Fleet:
    """The devices of one plane, what was ordered of them, and what became of it."""

    def __init__(self, *, plans: Table, orders: Table, clock: Clock, scale: float) -> None:
        self._plans_table = plans
        self._orders_table = orders
        self._clock = clock
        self._scale = scale
        self._plans = [default_plan(), *(load_plan(document) for document in plans.values())]
        self._orders: dict[tuple[str, Ring], list[Order]] = defaultdict(list)
        self._standing: dict[str, dict[Ring, Order]] = defaultdict(dict)
        for document in orders.values():
            self._remember(load_order(document))

    @property
    def plan(self) -> Plan:
        """The plan in force now."""
        return self._plans[-1]

    def replan(self, document: FleetDocument) -> None:
        """Change the plan; orders stay, and each device checks in once more."""
        plan = merged(self.plan, document, at=self._clock())
        self._plans_table.put(f"{len(self._plans):06d}", dump_plan(plan))
        self._plans.append(plan)

    def devices(self, ring: Ring, *, skip: int = 0, top: int | None = None) -> Iterator[Device]:
        """The devices of a ring in their fixed order."""
        last = self.plan.devices(ring) if top is None else min(self.plan.devices(ring), skip + top)
        return (Device(ring, index) for index in range(skip, last))

    def direct(self, software: Software, intents: Mapping[Ring, Intent]) -> None:
        """Make these the standing orders for an application; one that stands already is left alone."""
        now = self._clock()
        for ring, order in list(self._standing[software.app_id].items()):
            if intents.get(ring) != order.intent:
                self._withdraw(order, now)
        for ring, intent in intents.items():
            if ring not in self._standing[software.app_id]:
                key = f"{len(self._orders_table):08d}"
                self._store(Order(key, software, ring, intent, start=now))

    def standing(self, app_id: str) -> dict[Ring, Order]:
        """The orders in force for an application, in the order of the rings."""
        orders = self._standing.get(app_id, {})
        return {ring: orders[ring] for ring in RINGS if ring in orders}

    def products(self, ring: Ring) -> Sequence[str]:
        """The products that were ever ordered for a ring."""
        return [product for product, where in self._orders if where == ring]

    def is_offline(self, device: Device) -> bool:
        """Whether the ring's plan keeps this device away."""
        plan = self.plan
        return fate_of(plan, plan.rings[device.ring], device) is Fate.OFFLINE

    def lives(self, product: str, ring: Ring, devices: Sequence[Device]) -> Iterator[Life]:
        """What became of a product on devices of one ring, up to now."""
        now = self._clock()
        orders = self._orders.get((product, ring), [])
        moments = [moment for moment in self._moments(orders) if moment.at <= now]
        instants = [plan.at for plan in self._plans]
        for device in devices:
            life = Life()
            for at in sorted(moment.at + self._delay(moment, device) for moment in moments):
                if at <= now:
                    check_in(life, device, self._plans[bisect_right(instants, at) - 1], orders, at)
            yield life

    def _delay(self, moment: Moment, device: Device) -> float:
        shortest, longest = moment.plan.rings[device.ring].delay
        share = crc32(f"{moment.plan.seed}/{moment.key}/{device.ring}/{device.index}".encode()) / 2**32
        return (shortest + (longest - shortest) * share) * self._scale

    def _moments(self, orders: Sequence[Order]) -> Iterator[Moment]:
        if not orders:
            return
        for order in orders:
            yield Moment(order.start, f"{order.id}/start", self._plan_at(order.start))
            if order.end is not None:
                yield Moment(order.end, f"{order.id}/end", self._plan_at(order.end))
        first = min(order.start for order in orders)
        yield from (Moment(plan.at, f"plan/{plan.at}", plan) for plan in self._plans if plan.at > first)

    def _plan_at(self, at: float) -> Plan:
        return self._plans[max(0, bisect_right([plan.at for plan in self._plans], at) - 1)]

    def _withdraw(self, order: Order, now: float) -> None:
        siblings = self._orders[order.software.product, order.ring]
        siblings.remove(order)
        del self._standing[order.software.app_id][order.ring]
        self._store(replace(order, end=now))

    def _store(self, order: Order) -> None:
        self._orders_table.put(order.id, asdict(order))
        self._remember(order)

    def _remember(self, order: Order) -> None:
        self._orders[order.software.product, order.ring].append(order)
        if order.end is None:
            self._standing[order.software.app_id][order.ring] = order


def check_in(life: Life, device: Device, plan: Plan, orders: Sequence[Order], at: float) -> None:
    """One check-in: uninstall what shall go, then install what was ordered last if it is not there."""
    if device.index >= plan.devices(device.ring):
        return  # not enrolled then
    wanted: Order | None = None
    for order in orders:
        odds = plan.odds(device.ring, order.software)
        if not order.holds(at) or fate_of(plan, odds, device) is Fate.OFFLINE:
            continue
        life.seen[order.id] = at
        if order.intent == "install":
            wanted = order if wanted is None or order.start >= wanted.start else wanted
        elif life.installed and life.installed.app_id == order.software.app_id:
            life.uninstall(order.software, at, fails=cannot_remove(plan, odds, device))
    if wanted and (life.installed is None or life.installed.app_id != wanted.software.app_id):
        odds = plan.odds(device.ring, wanted.software)
        life.install(wanted.software, at, fails=fate_of(plan, odds, device) is Fate.FAIL)


def fate_of(plan: Plan, odds: Odds, device: Device) -> Fate:
    """A device's fate: the seed ranks the devices; the first fail, the next stay away, exactly by count."""
    if not (odds.fail or odds.offline):
        return Fate.WELL
    count = plan.devices(device.ring)
    rank = ranks(plan.seed, device.ring, count)[device.index]
    failing = share(odds.fail, count)
    if rank < failing:
        return Fate.FAIL
    return Fate.OFFLINE if rank < min(count, failing + share(odds.offline, count)) else Fate.WELL


def cannot_remove(plan: Plan, odds: Odds, device: Device) -> bool:
    """Whether an uninstall fails: counted from the far end of the ranking, where devices do install."""
    if not odds.remove_fail:
        return False
    count = plan.devices(device.ring)
    rank = ranks(plan.seed, device.ring, count)[device.index]
    return rank >= count - share(odds.remove_fail, count)


def share(fraction: float, count: int) -> int:
    """That fraction of a count, rounded half up."""
    return int(fraction * count + 0.5 + 1e-9)


@lru_cache(maxsize=64)
def ranks(seed: int, ring: Ring, count: int) -> Sequence[int]:
    """Each device's place in the seeded order of its ring; index by the device's index."""
    places = [0] * count
    for rank, index in enumerate(sorted(range(count), key=lambda index: lot(seed, ring, index))):
        places[index] = rank
    return places


def lot(seed: int, ring: Ring, index: int) -> bytes:
    """What a device drew."""
    return hashlib.blake2b(f"{seed}/{ring}/{index}".encode(), digest_size=8).digest()


def default_plan() -> Plan:
    """Every device checks in and succeeds within a few seconds."""
    return Plan(0.0, 7, {ring: RingPlan(devices=count) for ring, count in DEFAULT_DEVICES.items()}, {})


def merged(plan: Plan, document: FleetDocument, *, at: float) -> Plan:
    """The plan after a document was put."""
    rings = dict(plan.rings)
    for ring, ring_plan in document.rings.items():
        devices = plan.devices(ring) if ring_plan.devices is None else ring_plan.devices
        rings[ring] = ring_plan.model_copy(update={"devices": devices})
    seed = plan.seed if document.seed is None else document.seed
    return Plan(at, seed, rings, plan.apps if document.apps is None else document.apps)


def dump_plan(plan: Plan) -> Document:
    """A plan as JSON."""
    rings = {ring: ring_plan.model_dump(mode="json") for ring, ring_plan in plan.rings.items()}
    apps = {name: {ring: odds.model_dump() for ring, odds in own.items()} for name, own in plan.apps.items()}
    return {"at": plan.at, "seed": plan.seed, "rings": rings, "apps": apps}


def load_plan(document: Document) -> Plan:
    """A plan from JSON."""
    known = FleetDocument.model_validate({key: document[key] for key in ("seed", "rings", "apps")})
    return Plan(document["at"], document["seed"], known.rings, known.apps or {})


def load_order(document: Document) -> Order:
    """An order from JSON."""
    return Order(**{**document, "software": Software(**document["software"])})
