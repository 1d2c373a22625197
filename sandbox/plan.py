# SPDX-License-Identifier: Apache-2.0
"""What is in store for the virtual devices: rings, odds, delays, and each device's fate by a seed."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sandbox.journal import Document

Ring = Literal["LAB", "CANARY", "PILOT", "DEPARTMENT", "GLOBAL"]
RINGS: tuple[Ring, ...] = ("LAB", "CANARY", "PILOT", "DEPARTMENT", "GLOBAL")
DEFAULT_DEVICES: dict[Ring, int] = {"LAB": 10, "CANARY": 80, "PILOT": 160, "DEPARTMENT": 350, "GLOBAL": 600}
Fraction = Annotated[float, Field(ge=0, le=1)]


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
    """A plan. What is left out at the top level stays as it is.

    ``apps`` overrules rings, by product ("Example Editor") or by one version of it ("Example Editor 4.2.1").
    """

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
        """The odds for one application in one ring: of its version, else of the product, else of the ring."""
        product = self.apps.get(software.product, {}).get(ring, self.rings[ring])
        return self.apps.get(f"{software.product} {software.version}", {}).get(ring, product)


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
