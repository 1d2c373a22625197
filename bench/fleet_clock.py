# SPDX-License-Identifier: Apache-2.0
"""Virtual time: what is due, the planes as queues, and what was asked of them.

A plane is a queue that answers so many requests a second; without a limit it shows what would be asked of it.
"""

import heapq
import random
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from math import ceil, inf

from app.connectors.catalogue import MANIFESTS
from app.connectors.contract import Plane
from app.domain.operations import KINDS, OperationKind
from bench.fleet_calibration import COUNT, LOOK, PUSH, UNCHANGED, Costs
from bench.fleet_estate import LATENCY, Estate

HOUR, DAY = 3600.0, 86400.0
BEGAN = datetime(2026, 1, 5, tzinfo=UTC)
SOFT = KINDS[OperationKind.MEASURE_RING].soft_limit.total_seconds()
"""The time of one run; what takes longer takes several."""
WARM = 16 * DAY
"""After so long the deployments are spread over all rings as they would be."""
MEASURE = "measure"


def moment(seconds: float) -> datetime:
    """In virtual time."""
    return BEGAN + timedelta(seconds=seconds)


def capacity(plane: Plane) -> float:
    """Requests a second: the least of the vendor's limits for reads, else what the connections can carry."""
    manifest = MANIFESTS[plane]
    named = [limit.requests / limit.seconds for limit in manifest.rate_limits if "reads" in limit.applies_to]
    return min(named, default=manifest.max_concurrency / LATENCY)


@dataclass(slots=True)
class Sums:
    """Of one kind of work on one plane. ``changed``: devices of which something new was stored."""

    runs: float = 0.0
    works: int = 0
    calls: float = 0.0
    devices: int = 0
    changed: float = 0.0
    seconds: float = 0.0


@dataclass(slots=True)
class Found:
    """What a simulation has seen after its warm-up."""

    estate: Estate
    hours: int
    limited: bool
    sums: dict[tuple[Plane, str], Sums] = field(default_factory=lambda: defaultdict(Sums))
    hourly: dict[Plane, list[float]] = field(default_factory=dict)
    completed: int = 0
    rolled_back: int = 0
    days: list[float] = field(default_factory=list)
    waits: dict[Plane, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))
    in_force: dict[Plane, int] = field(default_factory=dict)
    unread: int = 0
    rows: int = 0
    lanes: int = 0
    running_rows: int = 0

    def calls(self, plane: Plane, work: str | None = None) -> float:
        """Requests an hour."""
        found = (each.calls for (on, kind), each in self.sums.items() if on is plane and work in {None, kind})
        return sum(found) / self.hours

    def runs(self, work: str) -> float:
        """Operations that run, an hour."""
        return sum(each.runs for (_, kind), each in self.sums.items() if kind == work) / self.hours

    def interval(self, plane: Plane) -> float:
        """Seconds between two measurements of a lane, on average."""
        total, number = self.waits[plane]
        return total / number if number else 0.0


class Queue:
    """One plane, first come first served."""

    def __init__(self, rate: float) -> None:
        self._rate, self._free = rate, 0.0

    def would_take(self, now: float, requests: float) -> float:
        """Seconds until so many requests, one after the other, would be answered."""
        return max(max(self._free - now, 0.0) + requests / self._rate, requests * LATENCY)

    def ends(self, now: float, requests: float) -> float:
        """When they are, for they are asked."""
        seconds = self.would_take(now, requests)
        self._free = max(self._free, now) + requests / self._rate
        return now + seconds


class Clock:
    """The clock and what is due."""

    def __init__(
        self, estate: Estate, costs: Mapping[Plane, Costs], *, days: float, limited: bool, warm: float = WARM
    ) -> None:
        self.estate = estate
        self.costs = {plane: with_measure(each) for plane, each in costs.items()}
        self.dice = random.Random(20260105)  # noqa: S311 - the same estate each time
        self.found = Found(estate, round(days * 24), limited)
        self.found.hourly = {plane: [0.0] * self.found.hours for plane in Plane}
        self.queues = {plane: Queue(capacity(plane) if limited else inf) for plane in Plane}
        self._warm, self._end = warm, warm + days * DAY
        self._due: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = 0
        self.running = 0
        """Devices of the lanes that are measured now."""

    def at(self, when: float, act: Callable[[float], None]) -> None:
        """Have something happen."""
        self._number += 1
        heapq.heappush(self._due, (when, self._number, act))

    def run(self) -> Found:
        """To the end."""
        while self._due[0][0] < self._end:
            now, _, act = heapq.heappop(self._due)
            act(now)
        self.found.running_rows = self.running
        return self.found

    def counts(self, now: float) -> bool:
        """Whether the warm-up is over."""
        return now >= self._warm

    def requests(self, plane: Plane, kind: str, devices: int, *, failed: float = 0.0) -> float:
        """What something that reads so many devices asks of a plane."""
        costs = self.costs[plane]
        pages = costs.pages(devices)
        requests = costs.of[kind].requests.at(pages)
        if kind in {PUSH, COUNT}:
            requests += costs.others * costs.pages(max(0, self.estate.on(plane) - devices))
        else:
            requests += costs.per_failed * failed + (costs.per_failing_page * pages if failed else 0)
        return requests

    def ask(
        self, plane: Plane, kind: str, now: float, requests: float, *, devices: int = 0, changed: float = 0
    ) -> float:
        """Ask a plane once, and count it; when it has answered."""
        ends = self.queues[plane].ends(now, requests)
        self.count(plane, kind, now, Done(1, requests, ends - now, devices, changed))
        return ends

    def count(self, plane: Plane, kind: str, now: float, done: "Done") -> None:
        """Count what was done, unless it belongs to the warm-up."""
        if not self.counts(now):
            return
        sums = self.found.sums[plane, kind]
        sums.works += done.works
        # looks follow each other in one run; everything else is an operation of its own
        one = done.seconds / SOFT if kind == LOOK else max(1, ceil(done.seconds / SOFT))
        sums.runs += done.works * one
        sums.calls += done.requests
        sums.devices += done.devices
        sums.changed += done.changed
        sums.seconds += done.works * done.seconds
        hour = min(int((now - self._warm) / HOUR), self.found.hours - 1)
        self.found.hourly[plane][hour] += done.requests


@dataclass(frozen=True, slots=True)
class Done:
    """So many works that are alike; the figures are those of all together, but ``seconds`` of each."""

    works: int
    requests: float
    seconds: float
    devices: int
    changed: float = 0


def with_measure(costs: Costs) -> Costs:
    """What a measurement asks is the same whatever is new."""
    return replace(costs, of={**costs.of, MEASURE: costs.of[UNCHANGED]})
