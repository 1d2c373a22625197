# SPDX-License-Identifier: Apache-2.0
"""When a lane may leave its ring: criteria, verdicts and their published truth table. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from math import sqrt
from statistics import NormalDist
from types import MappingProxyType
from typing import Self


class Verdict(StrEnum):
    """What a gate says of a lane."""

    PROMOTE = "promote"
    HOLD = "hold"
    ROLL_BACK = "roll_back"
    INCONCLUSIVE = "inconclusive"


class Measure(StrEnum):
    """What a gate looks at: the names of its criteria."""

    FAILURE_RATE = "failure_rate"
    MIN_REPORTED = "min_reported"
    COVERAGE = "coverage"
    SUCCESS_RATE = "success_rate"
    SUCCESS_BOUND = "success_bound"
    SOAK = "soak"
    ROLLBACK_POSSIBLE = "rollback_possible"


@dataclass(frozen=True, slots=True)
class Gate:
    """What it takes to leave a ring. Rates are fractions of all devices targeted, 0..1.

    ``min_coverage`` of them must have an outcome. With ``confidence`` (0..1) the lower end of what the
    success rate may really be (Wilson, one-sided) must reach ``min_success_rate`` too. What is in ``dry_run``
    is measured and shown, and keeps nothing from passing.
    """

    min_success_rate: float
    max_failure_rate: float
    soak: timedelta
    min_reported: int = 1
    min_coverage: float = 0.0
    confidence: float | None = None
    dry_run: frozenset[Measure] = frozenset()

    def is_looser_than(self, other: Self) -> bool:
        """Whether any number of this gate lets through what ``other`` would not."""
        return (
            self.min_success_rate < other.min_success_rate
            or self.max_failure_rate > other.max_failure_rate
            or self.soak < other.soak
            or self.min_reported < other.min_reported
            or self.min_coverage < other.min_coverage
            or (self.confidence or 0.0) < (other.confidence or 0.0)
            or bool(self.dry_run - other.dry_run)
        )


@dataclass(frozen=True, slots=True)
class Counts:
    """What is known of a lane's targeted devices; ``unreachable`` ones have not succeeded or failed yet.

    ``retrying``: those that failed may still succeed.
    """

    targeted: int
    succeeded: int = 0
    failed: int = 0
    unreachable: int = 0
    retrying: bool = False

    @property
    def reported(self) -> int:
        """Devices that have an outcome."""
        return self.succeeded + self.failed

    @property
    def finished(self) -> bool:
        """Whether no device can change the rates any more."""
        return self.reported >= self.targeted and not self.retrying


@dataclass(frozen=True, slots=True)
class Criterion:
    """One row of a gate report: what was asked, what was measured, whether that is enough."""

    name: Measure
    threshold: float
    measured: float | None
    passed: bool
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, its ``reason`` (a blocker code, or None when it moves by itself) and all its criteria.

    ``detail`` says in words what an inconclusive measurement lacks.
    """

    verdict: Verdict
    reason: str | None
    criteria: tuple[Criterion, ...]
    detail: str | None = None


def judge(counts: Counts, gate: Gate, *, soaked: timedelta, reversible: bool | None = None) -> Judgement:
    """Decide a lane's fate from what was measured. The failure limit is judged before everything else.

    ``soaked`` is how long the lane has soaked on fresh measurements; ``reversible`` None: not asked here.
    """
    criteria = tuple(_criteria(counts, gate, soaked, reversible=reversible))
    unmet = next((each for each in criteria if not (each.passed or each.dry_run)), None)
    if counts.targeted == 0:
        return Judgement(Verdict.INCONCLUSIVE, "empty_target", criteria, "the target is empty")
    if unmet is None:
        return Judgement(Verdict.PROMOTE, None, criteria)
    verdict, reason = UNMET[unmet.name] if counts.finished else OPEN.get(unmet.name, (Verdict.HOLD, None))
    detail = _lack(unmet) if verdict is Verdict.INCONCLUSIVE else None
    return Judgement(verdict, reason, criteria, detail)


UNMET: Mapping[Measure, tuple[Verdict, str | None]] = MappingProxyType(
    {
        Measure.FAILURE_RATE: (Verdict.ROLL_BACK, None),
        Measure.MIN_REPORTED: (Verdict.INCONCLUSIVE, "inconclusive"),
        Measure.COVERAGE: (Verdict.INCONCLUSIVE, "inconclusive"),
        Measure.SUCCESS_RATE: (Verdict.HOLD, "gate_not_met"),
        Measure.SUCCESS_BOUND: (Verdict.INCONCLUSIVE, "inconclusive"),
        Measure.SOAK: (Verdict.HOLD, "soak"),
        Measure.ROLLBACK_POSSIBLE: (Verdict.HOLD, "irreversible"),
    }
)
"""What the first criterion that is not met means once every device has an outcome."""
OPEN: Mapping[Measure, tuple[Verdict, str | None]] = MappingProxyType(
    {each: UNMET[each] for each in (Measure.FAILURE_RATE, Measure.SOAK, Measure.ROLLBACK_POSSIBLE)}
)
"""What it means while devices are still to report; anything else is waited for."""


def _lack(unmet: Criterion) -> str:
    measured = 0.0 if unmet.measured is None else unmet.measured
    return f"{unmet.name.value} is {measured:g}, not {unmet.threshold:g}"


def _criteria(
    counts: Counts, gate: Gate, soaked: timedelta, *, reversible: bool | None
) -> Iterator[Criterion]:
    """In the order in which they are judged."""
    some, targeted = counts.targeted > 0, max(counts.targeted, 1)
    shown = {Measure.FAILURE_RATE: counts.failed, Measure.SUCCESS_RATE: counts.succeeded}
    rates = {name: number / targeted if some else None for name, number in shown.items()}
    succeeds = some and counts.succeeded >= _share(gate.min_success_rate, counts.targeted)
    fails = not some or counts.failed > _share(gate.max_failure_rate, counts.targeted)
    coverage = counts.reported / targeted if some else None
    covers = some and counts.reported >= _share(gate.min_coverage, counts.targeted)

    def row(name: Measure, threshold: float, measured: float | None, is_met: object) -> Criterion:
        return Criterion(name, threshold, measured, bool(is_met), name in gate.dry_run)

    yield row(Measure.FAILURE_RATE, gate.max_failure_rate, rates[Measure.FAILURE_RATE], not fails)
    enough = counts.reported >= gate.min_reported
    yield row(Measure.MIN_REPORTED, gate.min_reported, counts.reported, enough)
    yield row(Measure.COVERAGE, gate.min_coverage, coverage, covers)
    yield row(Measure.SUCCESS_RATE, gate.min_success_rate, rates[Measure.SUCCESS_RATE], succeeds)
    if gate.confidence is not None:
        bound = wilson_lower_bound(counts.succeeded, counts.targeted, gate.confidence) if some else None
        sure = bound is not None and bound >= gate.min_success_rate
        yield row(Measure.SUCCESS_BOUND, gate.min_success_rate, bound, sure)
    soaks = soaked >= gate.soak
    yield row(Measure.SOAK, gate.soak.total_seconds(), soaked.total_seconds(), soaks)
    if reversible is not None:
        yield row(Measure.ROLLBACK_POSSIBLE, 1.0, float(reversible), reversible)


def asked(gate: Gate, *, in_lab: bool) -> list[tuple[Measure, float]]:
    """What the gate looks at, with the thresholds."""
    rows = _criteria(Counts(0), gate, timedelta(0), reversible=False if in_lab else None)
    return [(row.name, row.threshold) for row in rows]


def wilson_lower_bound(succeeded: int, sample: int, confidence: float) -> float:
    """The lower end of the one-sided Wilson score interval of a rate, 0..1, at ``confidence`` (0..1)."""
    z = NormalDist().inv_cdf(confidence)
    rate, spread = succeeded / sample, z * z / sample
    margin = z * sqrt(rate * (1 - rate) / sample + spread / (4 * sample))
    return max(0.0, (rate + spread / 2 - margin) / (1 + spread))


def _share(rate: float, targeted: int) -> Decimal:
    """``rate`` of ``targeted`` in decimal, as it was written: 0.29 of 100 is 29, not a little less."""
    return Decimal(repr(rate)) * targeted
