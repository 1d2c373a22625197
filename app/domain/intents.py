# SPDX-License-Identifier: Apache-2.0
"""Deployment intents: what is asked for, what it means here, and the one statement that accepts it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from functools import cached_property
from uuid import UUID

import asyncpg
from pydantic_core import to_json

from app.connectors.contract import Capability, Manifest, Package, Plane, Target, TargetKind
from app.connectors.packages import why_it_stays
from app.domain import approvals, idempotency, risk, rollout
from app.domain.gates import Gate, Measure
from app.domain.idempotency import RequestKey, StoredAnswer
from app.domain.operations import KINDS, OperationKind
from app.domain.policies import GatePolicy
from app.errors import ActiveDeploymentExists, FieldError, Invalid, PlaneNotConfigured, TargetNotSet
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


Row = tuple[object, ...]
ACCEPT = """
WITH kept AS (
    INSERT INTO idempotency_keys (caller, key, digest, status, headers, body, created_at)
    VALUES ($1, $2, $3, $4, $5::jsonb, $6, $7)
    ON CONFLICT DO NOTHING RETURNING 1
), deployment AS (
    INSERT INTO deployments (id, correlation_id, app_name, app_version, planes, target_ring, promotion,
        privileged, criticality, rollback_version, start_at, risk_factors, risk_score, risk_model,
        risk_breakdown, requires_cab_approval, gates, gate_policy, status, event_sequence, operation_id,
        submitted_by, created_at, updated_at)
    SELECT $8, $9, $10, $11, $12::text[], $13::ring, $14::promotion, $15, $16, $17, $18, $19::jsonb, $20, $21,
        $22::jsonb, $23, $24::jsonb, $25, $26::deployment_status, 1, $27, $28, $7, $7
    FROM kept
), planes AS (
    INSERT INTO deployment_planes (deployment_id, plane, app_name, package, way_back)
    SELECT $8, given.plane, $10, given.package, given.way_back
    FROM kept, unnest($12::text[], $29::jsonb[], $46::way_back[]) AS given (plane, package, way_back)
), lanes AS (
    INSERT INTO ring_deployments
        (id, deployment_id, ring, position, plane, target_kind, target_ref, operation_id)
    SELECT lane.id, $8, lane.ring, lane.position, lane.plane, lane.kind, lane.ref, lane.operation_id
    FROM kept, unnest(
        $30::uuid[], $31::ring[], $32::int[], $33::text[], $34::text[], $35::text[], $36::uuid[]
    ) AS lane (id, ring, position, plane, kind, ref, operation_id)
), work AS (
    INSERT INTO operations (id, kind, queue, subject_type, subject_id, deployment_id, run_after, deadline,
        correlation_id, max_attempts)
    SELECT lane.operation_id, $37, $38, 'lane', lane.id::text, $8, GREATEST(now(), $18),
        GREATEST(now(), $18) + $39::interval, $9, $40
    FROM kept, unnest($30::uuid[], $36::uuid[]) AS lane (id, operation_id) WHERE lane.operation_id IS NOT NULL
), event AS (
    INSERT INTO events (deployment_id, sequence, type, actor, at, after, correlation_id)
    SELECT $8, 1, 'deployment.submitted', $28, $7, $41::jsonb, $9 FROM kept
), request AS (
    INSERT INTO approvals (id, deployment_id, digest, submitted_by, created_at, expires_at, irreversible)
    SELECT $42, $8, $43, $28, $7, $7 + $44::interval, $45::text[] FROM kept WHERE $42::uuid IS NOT NULL
)
SELECT count(*) FROM kept
"""
ACTIVE = """
SELECT plane, deployment_id FROM deployment_planes
WHERE active AND lower(app_name) = lower($1) AND plane = ANY ($2::text[])
"""


async def accept(
    connection: asyncpg.Connection,
    plan: Plan,
    *,
    actor: str,
    request: RequestKey,
    answer: StoredAnswer,
    now: datetime,
) -> StoredAnswer | None:
    """Store the intent, its lanes, its operations, its event and the answer to it in one statement.

    ``connection`` is the driver's own and in autocommit. May be repeated: the same request gets the answer
    stored first. Returns None when this call stored it, else that earlier answer.

    Raises:
        ActiveDeploymentExists: the application is being deployed to one of the planes.
        IdempotencyKeyReused: the key came with another body before.
    """
    try:
        stored = await connection.fetchval(
            ACCEPT, *row(plan, actor=actor, request=request, answer=answer, now=now)
        )
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != "uq_deployment_planes_one_active":
            raise
        raise ActiveDeploymentExists(await _who_is_active(connection, plan)) from error
    return None if stored else await idempotency.find_by_driver(connection, request)


async def accept_together(connection: asyncpg.Connection, rows: Sequence[Row]) -> list[bool]:
    """Store several ``row``s in one transaction: all or, if one of them breaks a rule, none.

    ``connection`` is as in ``accept``. Tells for each whether it was stored; it was not if its request was
    stored before.
    """
    return [bool(found[0]) for found in await connection.fetchmany(ACCEPT, rows)]


def row(plan: Plan, *, actor: str, request: RequestKey, answer: StoredAnswer, now: datetime) -> Row:
    """The parameters of ``ACCEPT``."""
    intent, kind = plan.intent, KINDS[OperationKind.DEPLOY_TO_CONNECTOR]
    planes = [plane.value for plane in intent.packages]
    packages = [package.model_dump_json() for package in intent.packages.values()]
    return (
        *(
            request.caller,
            request.key,
            request.digest,
            answer.status,
            _json(answer.headers),
            answer.body,
            now,
        ),
        *(plan.id, plan.correlation_id, intent.app_name, intent.version, planes, intent.target_ring.value),
        *(
            intent.promotion.value,
            intent.privileged,
            intent.criticality,
            intent.rollback_version,
            intent.start_at,
        ),
        *(
            _json(dict(plan.risk_factors)),
            plan.score.value,
            risk.MODEL,
            _json(plan.score.breakdown),
        ),
        *(
            plan.requires_cab_approval,
            plan.policy.text,
            f"{plan.policy.name}/{plan.policy.version}",
        ),
        *(plan.status.value, plan.operation_id, actor, packages),
        [lane.id for lane in plan.lanes],
        [lane.ring.value for lane in plan.lanes],
        [rollout.RINGS.index(lane.ring) for lane in plan.lanes],
        [lane.plane.value for lane in plan.lanes],
        [lane.target.kind.value for lane in plan.lanes],
        [lane.target.ref for lane in plan.lanes],
        [lane.operation_id for lane in plan.lanes],
        *(OperationKind.DEPLOY_TO_CONNECTOR.value, kind.queue, kind.deadline, kind.max_attempts),
        _json(
            {
                "status": plan.status.value,
                "risk_score": plan.score.value,
                "target_ring": intent.target_ring.value,
            }
        ),
        *(plan.request or (None, None)),
        approvals.wait(intent.criticality),
        sorted(plane for plane, way in plan.ways_back.items() if way is WayBack.NONE),
        [way.value if way else None for way in plan.ways_back.values()],
    )


async def _who_is_active(connection: asyncpg.Connection, plan: Plan) -> str:
    planes = [plane.value for plane in plan.intent.packages]
    rows = await connection.fetch(ACTIVE, plan.intent.app_name, planes)
    found = ", ".join(f"{row['plane']} by deployment {row['deployment_id']}" for row in rows)
    return f"{plan.intent.app_name} is being deployed to {found or 'one of these planes'} already"


def _json(value: object) -> str:
    return to_json(value).decode()  # several times as fast as the standard library's, on the accept path
