# SPDX-License-Identifier: Apache-2.0
"""What guards look at, and what they answer: plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from app.domain import risk, rollout
from app.domain.calendars import Calendar, FreezeSpan
from app.models import ApprovalStatus, Deployment, Ring, RingDeployment, WayBack
from app.models.base import Json


class Code(StrEnum):
    """Why something does not move."""

    AWAITING_CAB = "awaiting_cab"
    SOAK = "soak"
    GATE_NOT_MET = "gate_not_met"
    INCONCLUSIVE = "inconclusive"
    PAUSED = "paused"
    MANUAL_PROMOTION = "manual_promotion"
    EMPTY_TARGET = "empty_target"
    PLANE_UNAVAILABLE = "plane_unavailable"
    THROTTLED = "throttled"
    PLANE_NOT_CONFIGURED = "plane_not_configured"
    PUSH_FAILED = "push_failed"
    FREEZE = "freeze"
    MAINTENANCE_WINDOW = "maintenance_window"
    BUDGET = "budget"
    IRREVERSIBLE = "irreversible"
    CRITICAL_VULNERABILITY = "critical_vulnerability"
    EXCEPTION_EXPIRED = "exception_expired"
    NOT_BEFORE = "not_before"


class Who(StrEnum):
    """Who can remove a blocker, by role; ``nobody``: time does."""

    NOBODY = "nobody"
    PUBLISHER = "publisher"
    APPROVER = "approver"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Blocker:
    """Why something does not move. ``subject`` is ``deployment``, or ``<ring>/<plane>`` for a lane.

    ``next_check_at``: when it is looked at again by itself; None: only when somebody acts.
    """

    code: Code
    subject: str
    since: datetime | None
    next_check_at: datetime | None
    unblocks_when: str
    who_can_act: Who


@dataclass(frozen=True, slots=True)
class Decision:
    """A request to the board as guards look at it: what was decided, if anything, and about what."""

    status: ApprovalStatus
    digest: str
    requested_at: datetime
    expires_at: datetime
    exception_expires_at: datetime | None = None
    irreversible: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Budget:
    """How many devices all deployments together may have changed and not verified; ``limit`` None: any."""

    limit: int | None = None
    used: int = 0


@dataclass(frozen=True, slots=True)
class Work:
    """What is known of a lane's operation: ``error`` as in ``operations.error``, only while it waits."""

    waits: bool
    next_attempt_at: datetime | None = None
    error: Json | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything a guard may look at beside the deployment and the lane themselves.

    ``digest`` is that of what would be pushed now. ``decision`` is the newest request, ``granted`` the
    newest yes, which may be an older one. ``needed``: devices of a lane's target, if they were read.
    ``soak_ends``: when a lane has soaked enough, if its measurements stay fresh.
    """

    now: datetime
    digest: str = ""
    decision: Decision | None = None
    granted: Decision | None = None
    freezes: tuple[FreezeSpan, ...] = ()
    windows: Mapping[tuple[str, Ring], Calendar] = field(default_factory=dict)
    ways_back: Mapping[str, WayBack | None] = field(default_factory=dict)
    budget: Budget = Budget()
    needed: Mapping[UUID, int] = field(default_factory=dict)
    work: Mapping[UUID, Work] = field(default_factory=dict)
    soak_ends: Mapping[UUID, datetime] = field(default_factory=dict)

    @property
    def approved(self) -> Decision | None:
        """The board's yes to just this content, if it gave one; its exception may be over."""
        return self.granted if self.granted is not None and self.granted.digest == self.digest else None


@dataclass(frozen=True, slots=True)
class Place:
    """Where it is asked: a lane of a deployment, which has all its lanes."""

    deployment: Deployment
    lane: RingDeployment

    @property
    def subject(self) -> str:
        """The lane, as blockers name it."""
        return f"{self.lane.ring.value}/{self.lane.plane}"

    @property
    def needs_board(self) -> bool:
        """Whether the lane may be pushed only after a decision."""
        asked = self.deployment.requires_cab_approval
        return self.is_critical or (asked and self.lane.position >= rollout.CAB_FROM)

    @property
    def is_critical(self) -> bool:
        """Whether nothing at all may be pushed without an exception."""
        return bool(self.deployment.risk_factors["sbom_vulnerability"] >= risk.CRITICAL)
