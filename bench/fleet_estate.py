# SPDX-License-Identifier: Apache-2.0
"""The estates that are simulated, and all that nobody could measure here: assumptions.

What is the product's own (gates, intervals, deadlines, limits) is imported where it is used.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from math import exp
from types import MappingProxyType

from app.connectors.contract import Plane
from app.domain.policies import STANDARD, GatePolicy
from app.domain.risk import CAB_ABOVE, WEIGHTS, score
from app.models import Connectivity, Ring
from app.settings import ReconciliationSettings

PLANES: Mapping[Plane, float] = MappingProxyType(
    {
        Plane.INTUNE: 0.60,
        Plane.JAMF: 0.10,
        Plane.SCCM: 0.20,
        Plane.LANDSCAPE: 0.06,
        Plane.ANSIBLE: 0.04,
    }
)
"""Shares of the devices; applications are spread over the planes alike."""
RINGS: Mapping[Ring, float] = MappingProxyType(
    {Ring.LAB: 0.0005, Ring.CANARY: 0.01, Ring.PILOT: 0.05, Ring.DEPARTMENT: 0.20, Ring.GLOBAL: 0.7395}
)
"""Shares of a plane's devices. A ring is the same devices for every application: targets are set by plane."""
LEAST = 10
"""Devices of a ring at least."""
REACH: Mapping[Ring, float] = MappingProxyType({Ring.PILOT: 0.5, Ring.DEPARTMENT: 0.3, Ring.GLOBAL: 0.2})
"""How far deployments go: most software is for some, and little for everybody."""
ON_TWO_PLANES = 0.15
CRITICAL = 0.05
"""Of the applications, compared with their planes more often."""
BAD, GOOD_FAILS = 0.06, 0.002
"""So many versions are bad: they fail on 1 to 8 % of the devices. Others on so many on average, 0.7 % at
most."""
CLASSES: Mapping[Connectivity, float] = MappingProxyType(
    {Connectivity.ONLINE: 0.85, Connectivity.INTERMITTENT: 0.12, Connectivity.AIR_GAPPED: 0.03}
)
"""Which of the devices are heard of within a day, within a week, more rarely."""
MEANS_IN_A_DEADLINE = 6.0
"""A device is heard of, and has installed, after an exponential time whose mean is this part of its class's
deadline: 4 h, 12 h, 28 h. So 0.25 % are silent at their deadline, and count as failed."""
LATENCY = 0.3
"""Seconds that a plane takes for one answer."""
BOARD = 24 * 3600.0
"""Seconds until the board has decided."""
FORKS, PLAY = 100, 60.0
"""So many hosts at once in a job of AWX, so many seconds each: nothing is told before all are done."""


@dataclass(frozen=True, slots=True)
class Estate:
    """One organisation: ``running`` deployments at any time; the next begins when one ends."""

    name: str
    devices: int
    applications: int
    running: int
    policy: GatePolicy = STANDARD
    reconciliation: ReconciliationSettings = field(default_factory=ReconciliationSettings)

    def on(self, plane: Plane) -> int:
        """Devices of a plane."""
        return round(self.devices * PLANES[plane])

    def ring(self, plane: Plane, ring: Ring) -> int:
        """Devices of a ring."""
        return max(LEAST, round(self.on(plane) * RINGS[ring]))

    def up_to(self, plane: Plane, ring: Ring) -> int:
        """Devices of a ring and all before it."""
        return sum(self.ring(plane, each) for each in rings_up_to(ring))


SMALL = Estate("10 k devices", 10_000, 200, 20)
MEDIUM = Estate("100 k devices", 100_000, 1_000, 100)
LARGE = Estate("1 M devices", 1_000_000, 5_000, 500)


def rings_up_to(ring: Ring) -> list[Ring]:
    """In order."""
    return list(Ring)[: list(Ring).index(ring) + 1]


def calmed(estate: Estate) -> Estate:
    """With what can be set: measured every hour, compared with its planes every week, critical ones daily."""
    policy = replace(
        STANDARD, name="calm", measure_first=timedelta(minutes=10), measure_later=timedelta(hours=1)
    )
    every = ReconciliationSettings(every=7 * 86400.0, critical_every=86400.0)
    return replace(estate, name=f"{estate.name}, set calmer", policy=policy, reconciliation=every)


@dataclass(frozen=True, slots=True)
class Draw:
    """What chance decided of one application or deployment."""

    planes: tuple[Plane, ...]
    reach: Ring
    failing: float
    board: bool


def drawn(dice: random.Random) -> Draw:
    """One more."""
    number = 2 if dice.random() < ON_TWO_PLANES else 1
    planes: list[Plane] = []
    while len(planes) < number:
        plane = dice.choices(list(PLANES), list(PLANES.values()))[0]
        if plane not in planes:
            planes.append(plane)
    reach = dice.choices(list(REACH), list(REACH.values()))[0]
    bad = dice.random() < BAD
    failing = dice.uniform(0.01, 0.08) if bad else min(0.007, dice.expovariate(1 / GOOD_FAILS))
    factors = {name: round(min(0.99, dice.random()), 2) for name in WEIGHTS}
    return Draw(tuple(planes), reach, failing, score(factors).value > CAB_ABOVE)


@dataclass(frozen=True, slots=True)
class Heard:
    """Shares of a lane's devices: they told something, are silent, are past their deadline."""

    told: float
    silent: float
    overdue: float


def heard(policy: GatePolicy, seconds: float) -> Heard:
    """So long after the push."""
    told = silent = overdue = 0.0
    for kind, share in CLASSES.items():
        deadline = policy.connectivity[kind].total_seconds()
        rest = exp(-MEANS_IN_A_DEADLINE * seconds / deadline)
        told += share * (1 - rest)
        if seconds >= deadline:
            overdue += share * rest
        elif seconds >= deadline / 4:
            silent += share * rest
    return Heard(told, silent, overdue)
