# SPDX-License-Identifier: Apache-2.0
"""A deployment, its planes, its lanes and what each device answered."""

from datetime import timedelta
from enum import StrEnum
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    Computed,
    Double,
    ForeignKey,
    Index,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.models.base import WRITTEN_OFTEN, Base, Created, Id, Instant, Json, enum_column


class Ring(StrEnum):
    """The rings, in the order in which every deployment walks them."""

    LAB = "LAB"
    CANARY = "CANARY"
    PILOT = "PILOT"
    DEPARTMENT = "DEPARTMENT"
    GLOBAL = "GLOBAL"


class DeploymentStatus(StrEnum):
    """Where a deployment stands. ``paused`` is a flag beside it, not a state."""

    PENDING = "PENDING"
    DEPLOYING = "DEPLOYING"
    AWAITING_CAB = "AWAITING_CAB"
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"
    CANCELLED = "CANCELLED"
    COMPLETED = "COMPLETED"
    ROLLING_BACK = "ROLLING_BACK"
    ROLLED_BACK = "ROLLED_BACK"
    FAILED = "FAILED"


class LaneStatus(StrEnum):
    """Where one ring on one plane stands."""

    PENDING = "PENDING"
    PUSHING = "PUSHING"
    WAITING_PLANE = "WAITING_PLANE"
    MEASURING = "MEASURING"
    PROMOTED = "PROMOTED"
    HELD = "HELD"
    FAILED = "FAILED"
    ROLLING_BACK = "ROLLING_BACK"
    ROLLED_BACK = "ROLLED_BACK"
    CANCELLED = "CANCELLED"
    EMPTY_TARGET = "EMPTY_TARGET"


class DeviceState(StrEnum):
    """What is known of one device of a lane."""

    PENDING = "PENDING"
    IN_PROGRESS = "IN_PROGRESS"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    UNREACHABLE = "UNREACHABLE"
    UNKNOWN = "UNKNOWN"


class Connectivity(StrEnum):
    """How often a device is heard of; decides how long an unreachable one is waited for."""

    ONLINE = "online"
    INTERMITTENT = "intermittent"
    AIR_GAPPED = "air_gapped"


class Promotion(StrEnum):
    """Who moves a deployment from a ring that passed its gate to the next."""

    AUTOMATIC = "automatic"
    MANUAL = "manual"


class WayBack(StrEnum):
    """How a plane can take a deployment back: to the version before, by removing it, or not at all."""

    RETURN = "return"
    REMOVE = "remove"
    NONE = "none"


class Deployment(Base):
    """One version of one application, to be rolled out up to ``target_ring``.

    A trigger keeps what risk it was given, and who submitted it, as they were. ``retries_used`` counts the
    devices that were tried again; ``retries_reset``: its one fresh budget was given.
    """

    __tablename__ = "deployments"
    __table_args__ = (
        CheckConstraint("risk_score BETWEEN 0 AND 100", name="risk_score"),
        CheckConstraint("version >= 1", name="version"),
        CheckConstraint("event_sequence >= 0", name="event_sequence"),
        CheckConstraint("cardinality(planes) >= 1", name="planes"),
        CheckConstraint("retries_used >= 0", name="retries_used"),
        Index("ix_deployments_created", text("created_at DESC"), text("id DESC")),
        Index("ix_deployments_status_created", "status", text("created_at DESC"), text("id DESC")),
        Index("ix_deployments_app_created", "app_name", text("created_at DESC"), text("id DESC")),
        Index("ix_deployments_app", text("lower(app_name)"), "id"),
        Index("ix_deployments_correlation", "correlation_id"),
        WRITTEN_OFTEN,
    )

    id: Mapped[Id]
    correlation_id: Mapped[UUID]
    app_name: Mapped[str]
    app_version: Mapped[str]
    planes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    target_ring: Mapped[Ring] = mapped_column(enum_column(Ring, "ring"))
    promotion: Mapped[Promotion] = mapped_column(enum_column(Promotion, "promotion"))
    privileged: Mapped[bool]
    criticality: Mapped[str]
    rollback_version: Mapped[str | None]
    start_at: Mapped[Instant | None]
    risk_factors: Mapped[Json]
    risk_score: Mapped[int]
    risk_model: Mapped[str]
    risk_breakdown: Mapped[list[Json]]
    requires_cab_approval: Mapped[bool]
    gates: Mapped[Json]
    gate_policy: Mapped[str]
    status: Mapped[DeploymentStatus] = mapped_column(
        enum_column(DeploymentStatus, "deployment_status"), server_default=DeploymentStatus.PENDING.value
    )
    status_since: Mapped[Created]
    paused: Mapped[bool] = mapped_column(server_default=text("false"))
    paused_by: Mapped[str | None]
    paused_at: Mapped[Instant | None]
    pause_reason: Mapped[str | None]
    retries_used: Mapped[int] = mapped_column(server_default=text("0"))
    retries_reset: Mapped[bool] = mapped_column(server_default=text("false"))
    version: Mapped[int] = mapped_column(server_default=text("1"))
    event_sequence: Mapped[int] = mapped_column(server_default=text("0"))
    operation_id: Mapped[UUID | None]
    submitted_by: Mapped[str]
    created_at: Mapped[Created]
    updated_at: Mapped[Created]
    finished_at: Mapped[Instant | None]

    deployment_planes: Mapped[list["DeploymentPlane"]] = relationship(
        lazy="raise", order_by="DeploymentPlane.plane"
    )
    lanes: Mapped[list["RingDeployment"]] = relationship(
        lazy="raise", order_by="(RingDeployment.position, RingDeployment.plane)"
    )

    @property
    def ways_back(self) -> dict[str, WayBack | None]:
        """How each plane can undo it, None where that is not known yet."""
        return {plane.plane: plane.way_back for plane in self.deployment_planes}


class DeploymentPlane(Base):
    """What one plane gets in a deployment; ``active`` keeps a second deployment of the application away.

    ``way_back`` is null until the plane was asked, before the first device is touched.
    """

    __tablename__ = "deployment_planes"
    __table_args__ = (
        Index(
            "uq_deployment_planes_one_active",
            text("lower(app_name)"),
            "plane",
            unique=True,
            postgresql_where=text("active"),
        ),
    )

    deployment_id: Mapped[UUID] = mapped_column(
        ForeignKey("deployments.id", ondelete="CASCADE"), primary_key=True
    )
    plane: Mapped[str] = mapped_column(primary_key=True)
    app_name: Mapped[str]
    package: Mapped[Json]
    external_id: Mapped[str | None]
    active: Mapped[bool] = mapped_column(server_default=text("true"))
    way_back: Mapped[WayBack | None] = mapped_column(enum_column(WayBack, "way_back"))


class RingDeployment(Base):
    """A lane: one ring of a deployment on one plane, the unit pushed, measured, gated and rolled back.

    The counters are kept by the statements that store device results; they count targeted devices only.
    ``reserved``: devices that count against the blast-radius budget, from the moment they may be touched.
    ``held_for`` is the blocker's code of a HELD lane. ``override``: who let it pass its gate, why, how long.
    ``retry_until``: so long failed devices may still succeed, because they try again. ``looked_at``: when
    the plane was last asked whether it still has what was decided.
    """

    __tablename__ = "ring_deployments"
    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012 - success_rate is read back with each update
    __table_args__ = (
        UniqueConstraint("deployment_id", "ring", "plane"),
        CheckConstraint("targeted >= 0", name="targeted"),
        CheckConstraint("success_count >= 0", name="success_count"),
        CheckConstraint("failure_count >= 0", name="failure_count"),
        CheckConstraint("unreachable_count >= 0", name="unreachable_count"),
        CheckConstraint("late_count >= 0", name="late_count"),
        CheckConstraint("success_count + failure_count + unreachable_count <= targeted", name="counts"),
        CheckConstraint("success_rate BETWEEN 0 AND 1", name="success_rate"),
        CheckConstraint("position BETWEEN 0 AND 4", name="position"),
        CheckConstraint("reserved >= 0", name="reserved"),
        Index("ix_ring_deployments_deployment_position", "deployment_id", "position", "plane"),
        Index("ix_ring_deployments_plane_status", "plane", "status"),
        Index(
            "ix_ring_deployments_moving",
            "status",
            postgresql_where=text("status IN ('PUSHING', 'WAITING_PLANE', 'MEASURING', 'ROLLING_BACK')"),
        ),
        Index("ix_ring_deployments_reserved", "status", postgresql_where=text("reserved > 0")),
        WRITTEN_OFTEN,
    )

    id: Mapped[Id]
    deployment_id: Mapped[UUID] = mapped_column(ForeignKey("deployments.id", ondelete="CASCADE"))
    ring: Mapped[Ring] = mapped_column(enum_column(Ring, "ring"))
    position: Mapped[int]
    plane: Mapped[str]
    status: Mapped[LaneStatus] = mapped_column(
        enum_column(LaneStatus, "lane_status"), server_default=LaneStatus.PENDING.value
    )
    status_since: Mapped[Created]
    held_for: Mapped[str | None]
    operation_id: Mapped[UUID | None]
    target_kind: Mapped[str]
    target_ref: Mapped[str]
    targeted: Mapped[int] = mapped_column(server_default=text("0"))
    success_count: Mapped[int] = mapped_column(server_default=text("0"))
    failure_count: Mapped[int] = mapped_column(server_default=text("0"))
    unreachable_count: Mapped[int] = mapped_column(server_default=text("0"))
    late_count: Mapped[int] = mapped_column(server_default=text("0"))
    reserved: Mapped[int] = mapped_column(server_default=text("0"))
    success_rate: Mapped[float | None] = mapped_column(
        Double, Computed("success_count::double precision / NULLIF(targeted, 0)", persisted=True)
    )
    external_id: Mapped[str | None]
    verdict: Mapped[str | None]
    gate_report: Mapped[Json | None]
    override: Mapped[Json | None]
    retry_until: Mapped[Instant | None]
    error: Mapped[Json | None]
    soak_elapsed: Mapped[timedelta] = mapped_column(server_default=text("'0'"))
    waited: Mapped[timedelta] = mapped_column(server_default=text("'0'"))
    waiting_since: Mapped[Instant | None]
    started_at: Mapped[Instant | None]
    pushed_at: Mapped[Instant | None]
    measured_at: Mapped[Instant | None]
    looked_at: Mapped[Instant | None]
    finished_at: Mapped[Instant | None]


class DeviceResult(Base):
    """What one device of a lane has done. ``late`` devices joined after the push and change no rate.

    ``rollback_state`` is null until the lane is rolled back; then it says how far this device is.
    """

    __tablename__ = "device_results"
    __table_args__ = (Index("ix_device_results_lane_state", "lane_id", "state", "device_id"), WRITTEN_OFTEN)

    lane_id: Mapped[UUID] = mapped_column(
        ForeignKey("ring_deployments.id", ondelete="CASCADE"), primary_key=True
    )
    device_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    state: Mapped[DeviceState] = mapped_column(
        enum_column(DeviceState, "device_state"), server_default=DeviceState.PENDING.value
    )
    detail: Mapped[str | None]
    error_code: Mapped[str | None]
    connectivity: Mapped[Connectivity] = mapped_column(enum_column(Connectivity, "connectivity"))
    late: Mapped[bool] = mapped_column(server_default=text("false"))
    rollback_state: Mapped[DeviceState | None] = mapped_column(enum_column(DeviceState, "device_state"))
    updated_at: Mapped[Created]


class RingTarget(Base):
    """Which devices a ring means on a plane; ``device_count`` is null until the plane was asked."""

    __tablename__ = "ring_targets"
    __table_args__ = (CheckConstraint("device_count >= 0", name="device_count"),)

    plane: Mapped[str] = mapped_column(primary_key=True)
    ring: Mapped[Ring] = mapped_column(enum_column(Ring, "ring"), primary_key=True)
    kind: Mapped[str]
    ref: Mapped[str]
    device_count: Mapped[int | None]
    counted_at: Mapped[Instant | None]
    version: Mapped[int] = mapped_column(server_default=text("1"))
