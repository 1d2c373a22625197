# SPDX-License-Identifier: Apache-2.0
"""Gate policies: the gates of all rings with their clocks, as they are written, read and stored."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from sqlalchemy import select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain.gates import Gate, Measure
from app.errors import Invalid
from app.models import Connectivity, Ring, StoredPolicy

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@dataclass(frozen=True)
class GatePolicy:
    """The gates of all rings with their clocks; a deployment keeps the copy it was accepted under.

    A lane is measured every ``measure_first`` in its first hour, then every ``measure_later``. A device that
    has not reported is UNREACHABLE after a quarter of its class's ``connectivity`` deadline, and FAILED at
    the deadline. A rollback stops once more than ``max_rollback_failure_rate`` of a lane's devices refuse it.
    """

    name: str
    version: int
    gates: Mapping[Ring, Gate]
    measure_first: timedelta
    measure_later: timedelta
    connectivity: Mapping[Connectivity, timedelta]
    max_rollback_failure_rate: float = 0.1

    def interval(self, age: timedelta) -> timedelta:
        """How long to wait for the next measurement of a lane whose push was confirmed ``age`` ago."""
        return self.measure_first if age < HOUR else self.measure_later

    def with_gates(self, gates: Mapping[Ring, Gate]) -> Self:
        """The same clocks with a deployment's own numbers for some rings."""
        return replace(self, gates=MappingProxyType({**self.gates, **gates}))

    def to_json(self) -> dict[str, Any]:
        """Durations in seconds; what ``from_json`` takes back."""
        return {
            "name": self.name,
            "version": self.version,
            "gates": {ring.value: gate_to_json(gate) for ring, gate in self.gates.items()},
            "measure_first": self.measure_first.total_seconds(),
            "measure_later": self.measure_later.total_seconds(),
            "connectivity": {kind.value: wait.total_seconds() for kind, wait in self.connectivity.items()},
            "max_rollback_failure_rate": self.max_rollback_failure_rate,
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
            gates=MappingProxyType({ring: gate_from_json(document["gates"][ring.value]) for ring in Ring}),
            measure_first=timedelta(seconds=float(document["measure_first"])),
            measure_later=timedelta(seconds=float(document["measure_later"])),
            connectivity=MappingProxyType(
                {
                    kind: timedelta(seconds=float(document["connectivity"][kind.value]))
                    for kind in Connectivity
                }
            ),
            max_rollback_failure_rate=float(document.get("max_rollback_failure_rate", 0.1)),
        )


def gate_to_json(gate: Gate) -> dict[str, Any]:
    """A gate with its soak in seconds; what ``gate_from_json`` takes back."""
    return {
        "min_success_rate": gate.min_success_rate,
        "max_failure_rate": gate.max_failure_rate,
        "soak": gate.soak.total_seconds(),
        "min_reported": gate.min_reported,
        "min_coverage": gate.min_coverage,
        "confidence": gate.confidence,
        "dry_run": sorted(gate.dry_run),
    }


def gate_from_json(document: Mapping[str, Any]) -> Gate:
    """Read a gate; what a stricter one may ask for is optional.

    Raises:
        KeyError, TypeError, ValueError: it lacks a part, or has one of the wrong kind.
    """
    confidence = document.get("confidence")
    return Gate(
        float(document["min_success_rate"]),
        float(document["max_failure_rate"]),
        timedelta(seconds=float(document["soak"])),
        int(document.get("min_reported", 1)),
        float(document.get("min_coverage", 0.0)),
        None if confidence is None else float(confidence),
        frozenset(Measure(name) for name in document.get("dry_run", ())),
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


async def store(session: AsyncSession, policy: GatePolicy) -> None:
    """Keep the policy in force. May be repeated.

    Raises:
        Invalid: this version is stored with other content: what was decided under it could not be explained.
    """
    values = {"name": policy.name, "version": policy.version, "document": policy.to_json()}
    await session.execute(insert(StoredPolicy).values(**values).on_conflict_do_nothing())
    kept = await session.get_one(StoredPolicy, (policy.name, policy.version))
    if GatePolicy.from_json(kept.document) != policy:
        detail = (
            f"version {policy.version} of {policy.name!r} is stored with other content: raise its version"
        )
        raise Invalid(f"EUCORA_GATE_POLICY: {detail}")


async def page(
    session: AsyncSession, *, after: tuple[str, int] | None, limit: int
) -> tuple[Sequence[StoredPolicy], tuple[str, int] | None]:
    """Up to ``limit`` policies by name and version, and the key to go on after, None at the end."""
    query = select(StoredPolicy).order_by(StoredPolicy.name, StoredPolicy.version).limit(limit + 1)
    if after is not None:
        query = query.where(tuple_(StoredPolicy.name, StoredPolicy.version) > after)
    rows = (await session.scalars(query)).all()
    last = rows[limit - 1] if len(rows) > limit else None
    return rows[:limit], (last.name, last.version) if last else None
