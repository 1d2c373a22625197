# SPDX-License-Identifier: Apache-2.0
"""When a lane may leave its ring: policies, criteria and their published truth table. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from app.errors import Invalid
from app.models import Connectivity, Ring


class Verdict(StrEnum):
    """What a gate says of a lane."""

    PROMOTE = "promote"
    HOLD = "hold"
    ROLL_BACK = "roll_back"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Gate:
    """What it takes to leave a ring. Rates are fractions of all devices targeted, 0..1."""

    min_success_rate: float
    max_failure_rate: float
    soak: timedelta
    min_reported: int = 1

    def is_looser_than(self, other: Self) -> bool:
        """Whether any number of this gate lets through what ``other`` would not."""
        return (
            self.min_success_rate < other.min_success_rate
            or self.max_failure_rate > other.max_failure_rate
            or self.soak < other.soak
            or self.min_reported < other.min_reported
        )


@dataclass(frozen=True, slots=True)
class Counts:
    """What is known of a lane's targeted devices; ``unreachable`` ones have not succeeded or failed yet."""

    targeted: int
    succeeded: int = 0
    failed: int = 0
    unreachable: int = 0

    @property
    def reported(self) -> int:
        """Devices that have an outcome."""
        return self.succeeded + self.failed

    @property
    def finished(self) -> bool:
        """Whether no device can change the rates any more."""
        return self.reported >= self.targeted


@dataclass(frozen=True, slots=True)
class Criterion:
    """One row of a gate report: what was asked, what was measured, whether that is enough."""

    name: str
    threshold: float
    measured: float | None
    passed: bool


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, its ``reason`` (a blocker code, or None when it moves by itself) and all its criteria."""

    verdict: Verdict
    reason: str | None
    criteria: tuple[Criterion, ...]


def judge(counts: Counts, gate: Gate, *, soaked: timedelta) -> Judgement:
    """Decide a lane's fate from what was measured. The failure limit is judged before everything else.

    ``soaked`` is how long the lane has soaked on fresh measurements.
    """
    verdict, reason = _verdict(counts, gate, soaked)
    return Judgement(verdict, reason, _criteria(counts, gate, soaked))


def _verdict(counts: Counts, gate: Gate, soaked: timedelta) -> tuple[Verdict, str | None]:
    if counts.targeted == 0:
        return Verdict.INCONCLUSIVE, "empty_target"
    if counts.failed > _share(gate.max_failure_rate, counts.targeted):
        return Verdict.ROLL_BACK, None
    if counts.reported < gate.min_reported:
        return (Verdict.INCONCLUSIVE, "inconclusive") if counts.finished else (Verdict.HOLD, None)
    if counts.succeeded < _share(gate.min_success_rate, counts.targeted):
        return Verdict.HOLD, "gate_not_met" if counts.finished else None
    if soaked < gate.soak:
        return Verdict.HOLD, "soak"
    return Verdict.PROMOTE, None


def _criteria(counts: Counts, gate: Gate, soaked: timedelta) -> tuple[Criterion, ...]:
    some = counts.targeted > 0
    success = counts.succeeded / counts.targeted if some else None
    failure = counts.failed / counts.targeted if some else None
    return (
        Criterion(
            "failure_rate",
            gate.max_failure_rate,
            failure,
            passed=some and counts.failed <= _share(gate.max_failure_rate, counts.targeted),
        ),
        Criterion(
            "success_rate",
            gate.min_success_rate,
            success,
            passed=some and counts.succeeded >= _share(gate.min_success_rate, counts.targeted),
        ),
        Criterion(
            "min_reported", gate.min_reported, counts.reported, passed=counts.reported >= gate.min_reported
        ),
        Criterion("soak", gate.soak.total_seconds(), soaked.total_seconds(), passed=soaked >= gate.soak),
    )


def _share(rate: float, targeted: int) -> Decimal:
    """``rate`` of ``targeted`` in decimal, as it was written: 0.29 of 100 is 29, not a little less."""
    return Decimal(repr(rate)) * targeted


HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@dataclass(frozen=True)
class GatePolicy:
    """The gates of all rings with their clocks; a deployment keeps the copy it was accepted under.

    A lane is measured every ``measure_first`` in its first hour, then every ``measure_later``. A device that
    has not reported is UNREACHABLE after a quarter of its class's ``connectivity`` deadline, and FAILED at
    the deadline.
    """

    name: str
    version: int
    gates: Mapping[Ring, Gate]
    measure_first: timedelta
    measure_later: timedelta
    connectivity: Mapping[Connectivity, timedelta]

    def interval(self, age: timedelta) -> timedelta:
        """How long to wait for the next measurement of a lane whose push was confirmed ``age`` ago."""
        return self.measure_first if age < HOUR else self.measure_later

    def with_gates(self, gates: Mapping[Ring, Gate]) -> Self:
        """The same clocks with a deployment's own numbers for some rings."""
        merged = MappingProxyType({**self.gates, **gates})
        return type(self)(
            self.name, self.version, merged, self.measure_first, self.measure_later, self.connectivity
        )

    def to_json(self) -> dict[str, Any]:
        """Durations in seconds; what ``from_json`` takes back."""
        return {
            "name": self.name,
            "version": self.version,
            "gates": {
                ring.value: {
                    "min_success_rate": gate.min_success_rate,
                    "max_failure_rate": gate.max_failure_rate,
                    "soak": gate.soak.total_seconds(),
                    "min_reported": gate.min_reported,
                }
                for ring, gate in self.gates.items()
            },
            "measure_first": self.measure_first.total_seconds(),
            "measure_later": self.measure_later.total_seconds(),
            "connectivity": {kind.value: wait.total_seconds() for kind, wait in self.connectivity.items()},
        }

    @cached_property
    def text(self) -> str:
        """``to_json`` as JSON, made once: most deployments keep the same policy."""
        return json.dumps(self.to_json())

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` wrote, or a policy file of the same shape.

        Raises:
            KeyError, TypeError, ValueError: the document lacks a part or has one of the wrong kind.
        """
        return cls(
            name=str(document["name"]),
            version=int(document["version"]),
            gates=MappingProxyType(
                {
                    ring: Gate(
                        float(gate["min_success_rate"]),
                        float(gate["max_failure_rate"]),
                        timedelta(seconds=float(gate["soak"])),
                        int(gate.get("min_reported", 1)),
                    )
                    for ring in Ring
                    for gate in [document["gates"][ring.value]]
                }
            ),
            measure_first=timedelta(seconds=float(document["measure_first"])),
            measure_later=timedelta(seconds=float(document["measure_later"])),
            connectivity=MappingProxyType(
                {
                    kind: timedelta(seconds=float(document["connectivity"][kind.value]))
                    for kind in Connectivity
                }
            ),
        )


def _gates(*soaks: timedelta) -> Mapping[Ring, Gate]:
    rates = ((0.95, 0.05), (0.98, 0.02), (0.97, 0.03), (0.99, 0.01), (0.99, 0.01))
    return MappingProxyType(
        {ring: Gate(*rate, soak) for ring, rate, soak in zip(Ring, rates, soaks, strict=True)}
    )


STANDARD = GatePolicy(
    name="standard",
    version=1,
    gates=_gates(DAY, 2 * DAY, 3 * DAY, 7 * DAY, timedelta(0)),
    measure_first=timedelta(seconds=60),
    measure_later=timedelta(minutes=5),
    connectivity=MappingProxyType(
        {Connectivity.ONLINE: DAY, Connectivity.INTERMITTENT: 3 * DAY, Connectivity.AIR_GAPPED: 7 * DAY}
    ),
)
DEMO = GatePolicy(
    name="demo",
    version=1,
    gates=_gates(*[timedelta(seconds=2)] * 4, timedelta(0)),
    measure_first=timedelta(seconds=1),
    measure_later=timedelta(seconds=1),
    connectivity=MappingProxyType(dict.fromkeys(Connectivity, timedelta(seconds=20))),
)


def load_policy(setting: str) -> GatePolicy:
    """The policy that ``EUCORA_GATE_POLICY`` names: ``standard``, ``demo`` or a JSON file.

    Raises:
        Invalid: the file cannot be read or is no policy.
    """
    for policy in (STANDARD, DEMO):
        if setting == policy.name:
            return policy
    try:
        return GatePolicy.from_json(json.loads(Path(setting).read_text(encoding="utf-8")))
    except OSError as error:
        sentence = f"EUCORA_GATE_POLICY: {setting!r} is neither standard, demo nor a file that can be read"
        raise Invalid(sentence) from error
    except (KeyError, TypeError, ValueError) as error:
        raise Invalid(f"EUCORA_GATE_POLICY: the file {setting!r} is no gate policy: {error}") from error
