# SPDX-License-Identifier: Apache-2.0
"""A virtual fleet: rings of devices that check in over time and install, fail or stay away by a seeded plan.

Nothing runs: what a device has is worked out, whenever somebody asks, from the orders and plans written down
so far and the time that has passed. A check-in happens some seconds after each change that concerns a device.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Literal
from zlib import crc32

from sandbox.journal import Document, Table
from sandbox.plan import (
    RINGS,
    Device,
    Fate,
    FleetDocument,
    Plan,
    Ring,
    Software,
    cannot_remove,
    default_plan,
    dump_plan,
    fate_of,
    load_plan,
    merged,
)

Clock = Callable[[], float]


Intent = Literal["install", "uninstall"]


@dataclass(frozen=True)
class Order:
    """That a ring shall install or uninstall an application, from ``start`` on until it is withdrawn.

    ``only``: of the ring's devices those with these numbers; None: all.
    """

    id: str
    software: Software
    ring: Ring
    intent: Intent
    start: float
    end: float | None = None
    only: tuple[int, ...] | None = None

    @cached_property
    def _named(self) -> frozenset[int] | None:
        return None if self.only is None else frozenset(self.only)

    def concerns(self, device: Device) -> bool:
        """Whether it is for this device of its ring."""
        return self._named is None or device.index in self._named

    def holds(self, at: float) -> bool:
        """Whether the order was in force then."""
        return self.start <= at and (self.end is None or at < self.end)


@dataclass(frozen=True)
class Step:
    """Something that happened on a device."""

    app_id: str
    action: Literal["install", "uninstall", "fail"]
    at: float
    version: str = ""


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
            self.steps.append(Step(software.app_id, "install", at, software.version))
        elif software.app_id not in self.failed:
            self.failed.add(software.app_id)
            self.steps.append(Step(software.app_id, "fail", at, software.version))

    def uninstall(self, software: Software, at: float, *, fails: bool) -> None:
        """Try to uninstall what is there."""
        if not fails:
            self.installed = None
            self.stuck.discard(software.app_id)
            self.steps.append(Step(software.app_id, "uninstall", at, software.version))
        elif software.app_id not in self.stuck:
            self.stuck.add(software.app_id)
            self.steps.append(Step(software.app_id, "fail", at, software.version))


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

    def concerned(self, ring: Ring, only: Mapping[str, Sequence[int]]) -> Iterator[Device]:
        """The devices of a ring that an order is for: all, unless ``only`` has their numbers."""
        named = set(only[ring]) if ring in only else None
        return (device for device in self.devices(ring) if named is None or device.index in named)

    def direct(
        self,
        software: Software,
        intents: Mapping[Ring, Intent],
        only: Mapping[Ring, tuple[int, ...] | None] = MappingProxyType({}),
    ) -> None:
        """Make these the standing orders for an application; one that stands already is left alone."""
        now = self._clock()
        for ring, order in list(self._standing[software.app_id].items()):
            if intents.get(ring) != order.intent or only.get(ring) != order.only:
                self._withdraw(order, now)
        for ring, intent in intents.items():
            if ring not in self._standing[software.app_id]:
                key = f"{len(self._orders_table):08d}"
                self._store(Order(key, software, ring, intent, start=now, only=only.get(ring)))

    def begin(
        self,
        software: Software,
        ring: Ring,
        intent: Intent,
        *,
        start: float,
        seconds: float,
        only: tuple[int, ...] | None = None,
    ) -> Order:
        """An order that is over after some seconds, as a job is; standing orders are not touched."""
        key = f"{len(self._orders_table):08d}"
        order = Order(key, software, ring, intent, start=start, end=start + seconds, only=only)
        self._store(order)
        return order

    def stop(self, order_id: str) -> None:
        """End an order now, if it still holds; devices that have not begun do not begin."""
        now, order = self._clock(), load_order(self._orders_table[order_id])
        if order.end is None or order.end > now:
            self._withdraw(order, now)

    def longest_delay(self, ring: Ring) -> float:
        """Seconds after which every device of a ring that is not away has checked in."""
        return self.plan.rings[ring].delay[1] * self._scale

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

    def lives(
        self, product: str, ring: Ring, devices: Sequence[Device], *, until: float | None = None
    ) -> Iterator[Life]:
        """What became of a product on devices of one ring, up to some moment, now by default."""
        now = self._clock() if until is None else min(until, self._clock())
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
        self._standing[order.software.app_id].pop(order.ring, None)
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
        if not (order.holds(at) and order.concerns(device)) or fate_of(plan, odds, device) is Fate.OFFLINE:
            continue
        life.seen[order.id] = at
        if order.intent == "install":
            wanted = order if wanted is None or order.start >= wanted.start else wanted
        elif life.installed and life.installed.app_id == order.software.app_id:
            life.uninstall(order.software, at, fails=cannot_remove(plan, odds, device))
    if wanted and (life.installed is None or life.installed.app_id != wanted.software.app_id):
        odds = plan.odds(device.ring, wanted.software)
        life.install(wanted.software, at, fails=fate_of(plan, odds, device) is Fate.FAIL)


def load_order(document: Document) -> Order:
    """An order from JSON."""
    only = document.get("only")
    known = {"software": Software(**document["software"]), "only": None if only is None else tuple(only)}
    return Order(**{**document, **known})
