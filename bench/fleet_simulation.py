# SPDX-License-Identifier: Apache-2.0
"""An estate in virtual time: deployments pass rings by the product's own gates, measured at its intervals.

The measurements of a lane within an hour are taken in one stride: they cost what they cost one by one, and
the gate is judged after the last of them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import ceil

from app.connectors.catalogue import MANIFESTS
from app.connectors.contract import Capability, Plane
from app.domain import planner
from app.domain.gates import Counts, Gate, Verdict, judge
from app.models import Ring
from bench.fleet_calibration import COUNT, LOOK, PUSH, ROLLBACK, Costs
from bench.fleet_clock import BEGAN, DAY, HOUR, MEASURE, WARM, Clock, Done, Found, moment
from bench.fleet_estate import (
    BOARD,
    CRITICAL,
    FORKS,
    GOOD_FAILS,
    LATENCY,
    PLAY,
    Draw,
    Estate,
    drawn,
    heard,
    rings_up_to,
)
from workers.reconciliation import LONGEST

SLICE = 60.0
"""Seconds of looks that are taken in one stride."""


class Deployment:
    """One deployment on its way."""

    def __init__(self, clock: Clock, draw: Draw, began: float) -> None:
        self.clock, self.draw, self.began = clock, draw, began
        self.rings = rings_up_to(draw.reach)
        self.place = 0
        self.back = False
        self._left = 0

    def begin(self, now: float) -> None:
        """Push the ring's lanes; before PILOT the board may have to decide."""
        ring = self.rings[self.place]
        start = now + BOARD if ring is Ring.PILOT and self.draw.board else now
        self._left = len(self.draw.planes)
        for plane in self.draw.planes:
            self.clock.at(start, Lane(self, plane, ring).push)

    def passed(self, now: float) -> None:
        """A lane has left its ring."""
        self._left -= 1
        if self._left:
            return
        self.place += 1
        if self.place < len(self.rings):
            self.begin(now)
        else:
            self.end(now, completed=True)

    def roll_back(self, now: float) -> None:
        """Ring by ring, the newest first."""
        self.back = True
        self.take_back(now)

    def take_back(self, now: float) -> None:
        """The next ring."""
        self._left = len(self.draw.planes)
        for plane in self.draw.planes:
            Lane(self, plane, self.rings[self.place]).take_back(now)

    def taken_back(self, now: float) -> None:
        """A lane has nothing left."""
        self._left -= 1
        if self._left:
            return
        self.place -= 1
        if self.place >= 0:
            self.take_back(now)
        else:
            self.end(now, completed=False)

    def end(self, now: float, *, completed: bool) -> None:
        """Another one takes its place."""
        found = self.clock.found
        if self.clock.counts(now):
            found.completed += completed
            found.rolled_back += not completed
            found.days.append((now - self.began) / DAY)
        submit(self.clock, now)


class Lane:
    """One ring on one plane."""

    def __init__(self, deployment: Deployment, plane: Plane, ring: Ring) -> None:
        self.deployment, self.plane, self.ring = deployment, plane, ring
        self.clock = deployment.clock
        estate = self.clock.estate
        self.policy = estate.policy
        self.devices = estate.ring(plane, ring)
        # Intune's report has the devices of every ring that the application is assigned to
        self.read = estate.up_to(plane, ring) if plane is Plane.INTUNE else self.devices
        self.gate: Gate = self.policy.gates[ring]
        self.soaked = timedelta(0)
        self.pushed = 0.0
        self.known = 0
        self.judged: tuple[int, int, bool] | None = None

    def push(self, now: float) -> None:
        """Publish, read the target, assign."""
        self.clock.running += self.devices
        requests = self.clock.requests(self.plane, PUSH, self.devices)
        self.pushed = self.clock.ask(
            self.plane, PUSH, now, requests, devices=self.devices, changed=self.devices
        )
        first = planner.first_measurement(self.policy, moment(self.pushed))
        self.clock.at((first - BEGAN).total_seconds(), self.measure)

    def measure(self, now: float) -> None:
        """Read, store and judge, again and again for an hour."""
        if self.deployment.back:
            self.clock.running -= self.devices
            return
        age = now - self.pushed
        interval = self.policy.interval(timedelta(seconds=age))
        known = self.outcomes(age)
        stride = self.stride(now, MEASURE, known, interval)
        # Of each measurement.
        gain = planner.soaked(timedelta(0), since=moment(0), now=moment(stride.apart), interval=interval)
        number = stride.number
        if self.soaked < self.gate.soak:
            number = min(number, ceil((self.gate.soak - self.soaked) / gain))
        ends = now + number * stride.apart
        counts = self.outcomes(ends - self.pushed)
        changed = abs(counts.reported - self.known)
        self.known = counts.reported
        self.soaked += number * gain
        self.take(stride, now, number, MEASURE, changed)
        match self.verdict(counts):
            case Verdict.PROMOTE:
                self.clock.running -= self.devices
                self.clock.at(ends, self.deployment.passed)
            case Verdict.ROLL_BACK:
                self.clock.running -= self.devices
                self.deployment.back = True
                self.clock.at(ends, self.deployment.roll_back)
            case _:
                self.clock.at(ends, self.measure)

    def stride(self, now: float, kind: str, counts: Counts, interval: timedelta) -> "Stride":
        """How often the lane is measured in an hour, and what each time costs, as busy as the plane is."""
        quiet = self.plane is Plane.ANSIBLE and not counts.reported  # the job runs
        read = 0 if quiet else self.read
        requests = 1.0 if quiet else self.clock.requests(self.plane, kind, read, failed=counts.failed)
        seconds = self.clock.queues[self.plane].would_take(now, requests)
        apart = interval.total_seconds() + seconds
        return Stride(max(1, int(HOUR / apart)), requests, read, seconds, apart)

    def take(self, stride: "Stride", now: float, number: int, kind: str, changed: float) -> None:
        """So many measurements, one behind the other."""
        requests = number * stride.requests
        self.clock.queues[self.plane].ends(now, requests)
        done = Done(number, requests, stride.seconds, number * stride.read, changed)
        self.clock.count(self.plane, kind, now, done)
        if kind == MEASURE and self.clock.counts(now):
            wait = self.clock.found.waits[self.plane]
            wait[0] += number * stride.apart
            wait[1] += number

    def verdict(self, counts: Counts) -> Verdict:
        """The gate's; the same question is not asked twice."""
        asked = counts.succeeded, counts.failed, self.soaked >= self.gate.soak
        if asked == self.judged:
            return Verdict.HOLD
        self.judged = asked
        reversible = True if self.ring is Ring.LAB else None
        return judge(counts, self.gate, soaked=self.soaked, reversible=reversible).verdict

    def outcomes(self, age: float) -> Counts:
        """What is known of the devices so long after the push."""
        failing = self.deployment.draw.failing
        if self.plane is Plane.ANSIBLE:
            told = 1.0 if age >= ceil(self.devices / FORKS) * PLAY else 0.0
            failed = round(self.devices * failing * told)
            return Counts(self.devices, round(self.devices * told) - failed, failed)
        seen = heard(self.policy, age)
        failed = round(self.devices * (failing * seen.told + seen.overdue))
        succeeded = min(round(self.devices * (1 - failing) * seen.told), self.devices - failed)
        silent = min(round(self.devices * seen.silent), self.devices - failed - succeeded)
        return Counts(self.devices, succeeded, failed, silent)

    def take_back(self, now: float) -> None:
        """Ask for the removal; who has it is waited for, seven days at most."""
        fixed = self.clock.costs[self.plane].of[ROLLBACK].requests.fixed
        self.pushed = self.clock.ask(
            self.plane, ROLLBACK, now, fixed, devices=self.devices, changed=self.devices
        )
        self.clock.at(self.pushed, self.watch)

    def watch(self, now: float) -> None:
        """Read how far the removal is, again and again for an hour."""
        interval = self.policy.interval(timedelta(seconds=now - self.pushed))
        stride = self.stride(now, MEASURE, Counts(self.devices, self.devices), interval)
        self.take(stride, now, stride.number, ROLLBACK, 0)
        ends = now + stride.number * stride.apart
        longest = max(self.policy.connectivity.values()).total_seconds()
        left = self.devices * (1 - heard(self.policy, ends - self.pushed).told)
        over = left < 0.5 or ends - self.pushed >= longest or self.plane is Plane.ANSIBLE
        self.clock.at(ends, self.deployment.taken_back if over else self.watch)


@dataclass(frozen=True, slots=True)
class Stride:
    """So many measurements of one lane: what each asks, how long it takes, how far apart they begin."""

    number: int
    requests: float
    read: int
    seconds: float
    apart: float


class Reconciler:
    """The looks at all lanes in force on a plane, one after the other, from tick to tick.

    Where planes have no limit all looks of a tick are counted at once.
    """

    def __init__(self, clock: Clock, plane: Plane, lanes: list[tuple[Ring, Ring]], every: float) -> None:
        self._clock, self._plane, self._every = clock, plane, every
        kinds = {lane: self._cost(*lane) for lane in set(lanes)}
        self._costs = [kinds[lane] for lane in lanes]
        self._whole = self._done(self._costs, LATENCY * sum(asked for _, asked in self._costs))
        self._place, self._tick = 0, 0.0

    def begin(self) -> None:
        """With the first tick."""
        self._clock.at(0.0, self._look if self._clock.found.limited else self._all)

    def _cost(self, ring: Ring, reach: Ring) -> tuple[int, float]:
        """Devices that are read, and requests."""
        estate, costs = self._clock.estate, self._clock.costs[self._plane]
        own = estate.ring(self._plane, ring)
        read = estate.up_to(self._plane, reach) if self._plane is Plane.INTUNE else own
        return read, costs.of[LOOK].requests.at(costs.pages(read)) + costs.per_failed * GOOD_FAILS * own

    def _done(self, looks: Sequence[tuple[int, float]], seconds: float) -> Done:
        """Looks that take so long together."""
        devices, requests = sum(read for read, _ in looks), sum(asked for _, asked in looks)
        return Done(len(looks), requests, seconds / len(looks), devices)

    def _all(self, now: float) -> None:
        self._clock.count(self._plane, LOOK, now, self._whole)
        self._clock.at(now + self._every, self._all)

    def _look(self, now: float) -> None:
        """At lanes for a minute's worth, at least one; then on, or at the next tick."""
        first, requests = self._place, 0.0
        while requests * LATENCY < SLICE and self._place < len(self._costs):
            requests += self._costs[self._place][1]
            self._place += 1
        looks = self._costs[first : self._place]
        ends = self._clock.queues[self._plane].ends(now, requests)
        self._clock.count(self._plane, LOOK, now, self._done(looks, ends - now))
        if len(looks) == 1 and ends - now > LONGEST.total_seconds() and self._clock.counts(now):
            self._clock.found.unread += 1
        if self._place == len(self._costs):
            self._place, self._tick = 0, max(self._tick + self._every, ends)
        self._clock.at(max(ends, self._tick), self._look)


def simulate(
    estate: Estate, costs: Mapping[Plane, Costs], *, days: float, limited: bool, warm: float = WARM
) -> Found:
    """One estate, as if planes had no limits or held to them."""
    clock = Clock(estate, costs, days=days, limited=limited, warm=warm)
    for number in range(estate.running):
        clock.at(number * warm / estate.running, lambda now: submit(clock, now))
    reconcile(clock)
    clock.at(0.0, lambda now: count_targets(clock, now))
    return clock.run()


def submit(clock: Clock, now: float) -> None:
    """One more deployment."""
    Deployment(clock, drawn(clock.dice), now).begin(now)


def count_targets(clock: Clock, now: float) -> None:
    """Every target is counted once a day; the product does so when somebody asks."""
    for plane in clock.costs:
        for ring in Ring:
            devices = clock.estate.ring(plane, ring)
            requests = clock.requests(plane, COUNT, devices)
            clock.ask(plane, COUNT, now, requests, devices=devices)
    clock.at(now + DAY, lambda later: count_targets(clock, later))


def reconcile(clock: Clock) -> None:
    """Every application's current version is in force on its planes, in all rings it has reached."""
    lanes: dict[Plane, list[tuple[Ring, Ring]]] = defaultdict(list)
    critical: dict[Plane, list[tuple[Ring, Ring]]] = defaultdict(list)
    for number in range(clock.estate.applications):
        draw = drawn(clock.dice)
        for plane in draw.planes:
            rings = [(ring, draw.reach) for ring in rings_up_to(draw.reach)]
            lanes[plane] += rings
            if number < clock.estate.applications * CRITICAL:
                critical[plane] += rings
            clock.found.rows += sum(clock.estate.ring(plane, ring) for ring, _ in rings)
            clock.found.lanes += len(rings)
    settings = clock.estate.reconciliation
    for known, every in ((lanes, settings.every), (critical, settings.critical_every)):
        for plane, those in known.items():
            if MANIFESTS[plane].can(Capability.OBSERVE):
                clock.dice.shuffle(those)
                Reconciler(clock, plane, those, every).begin()
    clock.found.in_force.update({plane: len(those) for plane, those in lanes.items()})
