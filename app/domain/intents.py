# SPDX-License-Identifier: Apache-2.0
"""Deployment intents: what is asked for, and what it means here."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from functools import cached_property
from uuid import UUID

from app.connectors.contract import Capability, Manifest, Package, Plane, Target, TargetKind
from app.connectors.packages import why_it_stays
from app.domain import approvals, risk, rollout
from app.domain.gates import Gate, Measure
from app.domain.policies import GatePolicy
from app.errors import FieldError, Invalid, PlaneNotConfigured, TargetNotSet
from app.models import DeploymentStatus, Promotion, Ring, WayBack, new_id


@dataclass(frozen=True, slots=True)
class GateNumbers:
    """A deployment's own numbers for one ring; None keeps the policy's."""

    min_success_rate: float | None = None
    max_failure_rate: float | None = None
    soak: timedelta | None = None
    min_reported: int | None = None
    min_coverage: float | None = None
    confidence: float | None = None
    dry_run: frozenset[Measure] | None = None

    def over(self, gate: Gate) -> Gate:
        """``gate`` with these numbers in place of its own."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(gate, **{name: value for name, value in own.items() if value is not None})


@dataclass(frozen=True, slots=True)
class Intent:
    """What a client asks for, checked for form only. ``packages`` has one for each plane, in that order."""

    app_name: str
    version: str
    packages: Mapping[Plane, Package]
    target_ring: Ring
    promotion: Promotion
    privileged: bool
    risk_factors: Mapping[str, float]
    gates: Mapping[Ring, GateNumbers]
    rollback_version: str | None
    criticality: str
    start_at: datetime | None
    package_is_shared: bool = True

    def package_pointer(self, plane: Plane) -> str:
        """Where in the request the plane's package stands."""
        return "/package" if self.package_is_shared else f"/packages/{plane.value}"


@dataclass(frozen=True, slots=True)
class KnownTarget:
    """A ring's target on a plane with the devices last counted there; None if it was never counted."""

    target: Target
    device_count: int | None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an intent is judged against: what is known before it arrives, at most 2 s old."""

    targets: Mapping[tuple[Plane, Ring], KnownTarget]
    policy: GatePolicy
    manifests: Mapping[Plane, Manifest]
    unconfigured: Mapping[Plane, str]


@dataclass(frozen=True, slots=True)
class PlannedLane:
    """A lane to be stored, with the id of the operation that pushes it if it is in the first ring."""

    id: UUID
    ring: Ring
    plane: Plane
    target: Target
    operation_id: UUID | None


@dataclass(frozen=True)
class Plan:
    """An intent with everything decided that can be decided before it is stored.

    ``ways_back``: None where a plane has to be asked.
    """

    id: UUID
    correlation_id: UUID
    intent: Intent
    score: risk.Score
    risk_factors: Mapping[str, float]
    policy: GatePolicy
    requires_cab_approval: bool
    status: DeploymentStatus
    lanes: tuple[PlannedLane, ...]
    ways_back: Mapping[Plane, WayBack | None]

    @property
    def operation_id(self) -> UUID | None:
        """The first lane's operation; None while a CAB decision is needed before anything starts."""
        return self.lanes[0].operation_id

    @cached_property
    def request(self) -> tuple[UUID, str] | None:
        """The request to the board, if one is needed: its id, and the digest of what it is about."""
        if not self.requires_cab_approval:
            return None
        packages = {
            plane.value: json.loads(package.model_dump_json())
            for plane, package in self.intent.packages.items()
        }
        asked = self.intent
        return new_id(), approvals.digest_of(asked.app_name, asked.version, packages, asked.target_ring)


def plan(intent: Intent, around: Surroundings, *, correlation_id: UUID) -> Plan:
    """Decide risk, approval and lanes. Pure but for the new ids.

    Raises:
        PlaneNotConfigured, TargetNotSet, Invalid: with a pointer for each thing that is wrong.
    """
    check_planes(intent, around)
    targets = lane_targets(intent, around)
    factors = dict(intent.risk_factors)
    factors.setdefault(
        "blast_radius", risk.blast_radius(sum(known.device_count or 0 for known in targets.values()))
    )
    score = risk.score(factors)
    own = {ring: numbers.over(around.policy.gates[ring]) for ring, numbers in intent.gates.items()}
    looser = any(gate.is_looser_than(around.policy.gates[ring]) for ring, gate in own.items())
    critical = factors["sbom_vulnerability"] >= risk.CRITICAL
    ways_back = {plane: way_back(intent, around.manifests[plane]) for plane in intent.packages}
    stuck = WayBack.NONE in ways_back.values()
    asked = score.value > risk.CAB_ABOVE or intent.privileged or looser or critical or stuck
    return Plan(
        id=new_id(),
        correlation_id=correlation_id,
        intent=intent,
        score=score,
        risk_factors=factors,
        policy=around.policy.with_gates(own) if own else around.policy,
        requires_cab_approval=asked,
        ways_back=ways_back,
        status=DeploymentStatus.AWAITING_CAB if critical else DeploymentStatus.PENDING,
        lanes=tuple(planned_lanes(targets, starts=not critical)),
    )


def way_back(intent: Intent, manifest: Manifest) -> WayBack | None:
    """What is certain already of the plane's way back; None where it has to be asked."""
    if why_it_stays(intent.packages[manifest.plane]) is None:
        return WayBack.REMOVE
    returns = intent.rollback_version is not None and manifest.can(Capability.RETURN)
    return None if returns else WayBack.NONE


def check_planes(intent: Intent, around: Surroundings) -> None:
    """Each plane must be configured and able to install the kind of package it gets."""
    missing = [
        FieldError(
            f"/planes/{index}",
            around.unconfigured.get(plane, f"{plane.value} has no connector in this release"),
        )
        for index, plane in enumerate(intent.packages)
        if plane not in around.manifests
    ]
    if missing:
        raise PlaneNotConfigured("a plane is not configured", *missing)
    unfit = [
        FieldError(f"{intent.package_pointer(plane)}/kind", _unfit(around.manifests[plane], package))
        for plane, package in intent.packages.items()
        if package.kind not in around.manifests[plane].package_kinds
    ]
    if unfit:
        raise Invalid("a plane cannot install this kind of package", *unfit)


def _unfit(manifest: Manifest, package: Package) -> str:
    kinds = ", ".join(sorted(manifest.package_kinds))
    return f"{manifest.plane.value} cannot install {package.kind.value}; it installs {kinds}"


def lane_targets(intent: Intent, around: Surroundings) -> dict[tuple[Plane, Ring], KnownTarget]:
    """The target of every lane, ring by ring.

    Raises:
        TargetNotSet: with a pointer to each plane that lacks one, or has one of a kind it does not know.
    """
    wanted = [(plane, ring) for ring in rollout.rings_up_to(intent.target_ring) for plane in intent.packages]
    planes = list(intent.packages)
    missing = [
        FieldError(f"/planes/{planes.index(plane)}", reason)
        for plane, ring in wanted
        if (reason := _no_target(plane, ring, around)) is not None
    ]
    if missing:
        raise TargetNotSet("a lane has no target", *missing)
    return {lane: around.targets[lane] for lane in wanted}


def _no_target(plane: Plane, ring: Ring, around: Surroundings) -> str | None:
    known, manifest = around.targets.get((plane, ring)), around.manifests[plane]
    if known is None:
        return f"{plane.value} has no target for {ring.value}: set it first"
    if known.target.kind not in manifest.target_kinds:
        return f"the target for {ring.value} must be set again: {unknown_kind(manifest, known.target.kind)}"
    return None


def unknown_kind(manifest: Manifest, kind: TargetKind) -> str:
    """What to say of a target that the plane cannot resolve."""
    kinds = ", ".join(sorted(manifest.target_kinds))
    return f"{manifest.plane.value} knows no target of kind {kind.value}; it knows {kinds}"


def planned_lanes(
    targets: Mapping[tuple[Plane, Ring], KnownTarget], *, starts: bool
) -> Iterable[PlannedLane]:
    """One lane per target; those of the first ring get an operation if the deployment ``starts`` at once."""
    for (plane, ring), known in targets.items():
        first = starts and ring is rollout.RINGS[0]
        yield PlannedLane(new_id(), ring, plane, known.target, new_id() if first else None)
