# SPDX-License-Identifier: Apache-2.0
"""Submitting a deployment: what a client gives, and the accept path."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field, StrictBool
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from app.api.dependencies import Call, Service
from app.api.deployments import DeploymentRead
from app.api.routing import V1, DirectRoute, replay, requires
from app.api.schema import MAX_COUNT, Criticality, Given, Instant, Name, Rate, Version
from app.connectors.contract import Package, Plane
from app.domain import intents, risk, rollout
from app.domain.gates import Measure
from app.domain.idempotency import StoredAnswer
from app.domain.intents import GateNumbers, Intent, Plan, Surroundings
from app.errors import FieldError, IdempotencyKeyRequired, Invalid
from app.models import LaneStatus, Promotion, Ring
from app.security import Permission

router = APIRouter(prefix=V1 + "/deployments", tags=["deployments"], route_class=DirectRoute)


class RiskFactors(Given):
    """Each 0 (harmless) to 1; ``blast_radius`` is computed from the targets unless it is given."""

    privilege_impact: Rate
    supply_chain_trust: Rate
    sbom_vulnerability: Rate
    exploitability: Rate
    data_access: Rate
    operational_complexity: Rate
    history: Rate
    blast_radius: Rate | None = None


class GateGiven(Given):
    """Own numbers for leaving one ring; what is absent is the policy's. Looser ones need the CAB."""

    min_success_rate: Rate | None = None
    max_failure_rate: Rate | None = None
    soak: Annotated[int | None, Field(ge=0, le=31_536_000, strict=True, description="Seconds.")] = None
    min_reported: Annotated[int | None, Field(ge=1, le=MAX_COUNT, strict=True)] = None
    min_coverage: Annotated[
        Rate | None, Field(description="The share of devices that must have an outcome.")
    ] = None
    confidence: Annotated[
        float | None,
        Field(
            ge=0.5,
            le=0.9999,
            strict=True,
            allow_inf_nan=False,
            description="At this confidence the success rate's lower bound (Wilson) must reach the minimum.",
        ),
    ] = None
    dry_run: Annotated[
        list[Measure] | None,
        Field(max_length=len(Measure), description="Measured and shown, keeps nothing from passing."),
    ] = None

    def to_numbers(self) -> GateNumbers:
        """The same in the domain's units."""
        soak = None if self.soak is None else timedelta(seconds=self.soak)
        return GateNumbers(
            self.min_success_rate,
            self.max_failure_rate,
            soak,
            self.min_reported,
            self.min_coverage,
            self.confidence,
            None if self.dry_run is None else frozenset(self.dry_run),
        )


class DeploymentCreate(Given):
    """An intent: one version of one application, to be rolled out up to a ring on some planes."""

    app_name: Name
    version: Version
    package: Annotated[Package | None, Field(description="Serves all planes; or use `packages`.")] = None
    packages: Annotated[
        dict[Plane, Package] | None,
        Field(min_length=1, max_length=len(Plane), description="One for each plane."),
    ] = None
    planes: Annotated[
        list[Plane], Field(min_length=1, max_length=len(Plane), json_schema_extra={"uniqueItems": True})
    ]
    target_ring: Ring
    promotion: Promotion = Promotion.AUTOMATIC
    privileged: StrictBool = False
    risk_factors: RiskFactors
    gates: Annotated[dict[Ring, GateGiven] | None, Field(max_length=len(Ring))] = None
    rollback_version: Version | None = None
    criticality: Criticality = Criticality.STANDARD
    start_at: Annotated[Instant | None, Field(description="Not before.")] = None

    def to_intent(self) -> Intent:
        """The same in the domain's words.

        Raises:
            Invalid: a plane is there twice, or has no package or two.
        """
        factors = {name: value for name, value in self.risk_factors if value is not None}
        gates = {ring: gate.to_numbers() for ring, gate in (self.gates or {}).items()}
        return Intent(
            app_name=self.app_name,
            version=self.version,
            packages=self.plane_packages(),
            target_ring=self.target_ring,
            promotion=self.promotion,
            privileged=self.privileged,
            risk_factors=factors,
            gates=gates,
            rollback_version=self.rollback_version,
            criticality=self.criticality.value,
            start_at=self.start_at,
            package_is_shared=self.packages is None,
        )

    def plane_packages(self) -> Mapping[Plane, Package]:
        """The package of each plane, in the order of ``planes``.

        Raises:
            Invalid: a plane is there twice, or has no package or two.
        """
        if wrong := [*self._wrong_planes(), *self._wrong_packages()]:
            raise Invalid("planes and packages do not match", *wrong)
        if self.packages is not None:
            return {plane: self.packages[plane] for plane in self.planes}
        assert self.package is not None  # one of the two is there
        return dict.fromkeys(self.planes, self.package)

    def _wrong_planes(self) -> list[FieldError]:
        return [
            FieldError(f"/planes/{index}", f"{plane.value} is there twice")
            for index, plane in enumerate(self.planes)
            if plane in self.planes[:index]
        ]

    def _wrong_packages(self) -> list[FieldError]:
        if (self.package is None) is (self.packages is None):
            return [FieldError("/package", "exactly one of package and packages must be given")]
        given = self.planes if self.packages is None else list(self.packages)
        missing = [plane for plane in self.planes if plane not in given]
        surplus = [plane for plane in given if plane not in self.planes]
        return [
            *(
                FieldError(f"/packages/{plane.value}", "a package for this plane is required")
                for plane in missing
            ),
            *(FieldError(f"/packages/{plane.value}", "this plane is not in planes") for plane in surplus),
        ]


@router.post("", status_code=202, response_model=DeploymentRead, summary="Submit a deployment")
@requires(Permission.DEPLOYMENT_CREATE, key_required=True)
async def create_deployment(body: DeploymentCreate, request: Request) -> Response:
    """Record an intent. Its first ring starts at once; follow `/deployments/{id}` or its events."""
    # Taken from the request: resolving a dependency costs the framework more than any part of the decision.
    service, call = request.app.state.service, request.scope["call"]
    around = await surroundings(service)
    plan = intents.plan(body.to_intent(), around, correlation_id=call.correlation_id)
    return await accept(service, call, plan)


async def surroundings(service: Service) -> Surroundings:
    """What intents are judged against here."""
    runtime = service.runtime
    known = await service.targets.get(None) or {}
    return Surroundings(known, runtime.policy, service.manifests, runtime.unconfigured)


async def accept(service: Service, call: Call, plan: Plan) -> Response:
    """Store plan and answer in one statement and wake the relays; a repeat gets the answer stored first."""
    if call.key is None:
        raise IdempotencyKeyRequired("this call must carry an Idempotency-Key")
    now = service.runtime.clock()
    answer = accepted(plan, call.actor.name, now)
    earlier = await service.submissions.accept(
        plan, actor=call.actor.name, request=call.key, answer=answer, now=now
    )
    if earlier is not None:
        return replay(earlier)
    service.runtime.doorbell.ring()
    return Response(answer.body, answer.status, answer.headers, "application/json")


def accepted(plan: Plan, submitted_by: str, now: datetime) -> StoredAnswer:
    """The answer to a submission: what `DeploymentRead` shows of the rows that are about to be written.

    Enumerations go in as their values: the encoder takes 2 µs to find that out about each.
    """
    intent = plan.intent
    body: dict[str, Any] = {
        "id": plan.id,
        "correlation_id": plan.correlation_id,
        "app_name": intent.app_name,
        "app_version": intent.version,
        "planes": [plane.value for plane in intent.packages],
        "target_ring": intent.target_ring.value,
        "promotion": intent.promotion.value,
        "privileged": intent.privileged,
        "criticality": intent.criticality,
        "rollback_version": intent.rollback_version,
        "start_at": intent.start_at,
        "status": plan.status.value,
        "paused": False,
        "pause_reason": None,
        "risk_score": plan.score.value,
        "risk_model": risk.MODEL,
        "risk_breakdown": plan.score.breakdown,
        "requires_cab_approval": plan.requires_cab_approval,
        "ways_back": {plane.value: way for plane, way in sorted(plan.ways_back.items())},
        "gate_policy": f"{plan.policy.name}/{plan.policy.version}",
        "version": 1,
        "operation_id": plan.operation_id,
        "submitted_by": submitted_by,
        "created_at": now,
        "updated_at": now,
        "finished_at": None,
        "lanes": [
            {
                "ring": lane.ring.value,
                "plane": lane.plane.value,
                "operation_id": lane.operation_id,
                **UNTOUCHED_LANE,
            }
            for lane in sorted(plan.lanes, key=lambda lane: (rollout.RINGS.index(lane.ring), lane.plane))
        ],
    }
    headers = {"Location": f"{V1}/deployments/{plan.id}", "ETag": '"1"'}
    return StoredAnswer(202, headers, to_json(body))


UNTOUCHED_LANE: Mapping[str, Any] = {
    "status": LaneStatus.PENDING.value,
    "targeted": 0,
    "success_count": 0,
    "failure_count": 0,
    "unreachable_count": 0,
    "late_count": 0,
    "success_rate": None,
    "external_id": None,
    "started_at": None,
    "finished_at": None,
}
