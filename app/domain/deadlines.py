# SPDX-License-Identifier: Apache-2.0
"""No state is for ever: how long each may last at most, who moves it on, and to where else it goes. Pure.

A state that waits for work has that work as its owner, and lasts no longer than the work may. A state that
waits for a person ends when nobody has come for a month.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from app.domain import ai_tasks, conversations, drift, effects, operations, rollout
from app.models import (
    AiTaskStatus,
    ApprovalStatus,
    DeploymentStatus,
    DeviceState,
    DriftStatus,
    EffectState,
    LaneStatus,
    MessageStatus,
    OperationStatus,
)

DAY = timedelta(days=1)
AWAY = 7 * DAY
"""How long a plane may be away before a person has to look."""
ORPHANED = timedelta(minutes=10)
"""How long a lane may be without work of its own, after that work has ended."""
UNSETTLED = timedelta(hours=1)
"""How long an effect may stay as its ended operation has left it, before the plane is asked."""
SPARE = DAY
"""What a lane gets beyond its devices' longest deadline and its soak."""
BREAK = timedelta(hours=1)
"""Without a sweep for so long, nothing else was done either: then so long measurements may come first."""
ENFORCED_WITHIN = timedelta(seconds=60)
"""How much later than its limit a state is left, at the latest: the metric counts it in."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How long a state may last. ``since`` and ``after`` are for people; ``successor`` is where it then goes.

    ``otherwise``: another successor, which the owner may find. ``at_last``: what it is when nobody could find
    out. ``instead``: why no sweeper looks at this state: what else ends it.
    """

    state: StrEnum
    owner: str
    since: str
    after: str
    successor: StrEnum
    otherwise: StrEnum | None = None
    at_last: str = ""
    instead: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """One kind of thing that has states. ``moves`` is its table; ``resting`` states wait for nothing."""

    name: str
    moves: Mapping[Any, frozenset[Any]]
    resting: frozenset[Any]
    limits: tuple[Limit, ...]


_D, _L, _O, _E, _V = DeploymentStatus, LaneStatus, OperationStatus, EffectState, DeviceState
_S, _T = MessageStatus, AiTaskStatus
_CONVERSES, _WORKS = "process_ai_conversation", "execute_ai_task"
_CHANGE = "its last change, `start_at`, or the end of a freeze"
_MONTH = "30 days (`EUCORA_HOUSEKEEPING__ABANDONED_AFTER`)"
_WORK = "its operation ended"
_ASKED_BY = "its operation, settle_effect"
_ASKING = "1 hour; then the plane is asked, for 7 days at most"
_NEVER_KNOWN = "UNKNOWN for good (`never_known`) if the plane cannot be asked"
_WITH_IT = (
    "they end with their deployment. One that is over leaves them as they are, for they wait for nothing: one"
    " that FAILED may have any of them, and ROLLING_BACK ones, until it is retried or taken back; one that is"
    " COMPLETED may have EMPTY_TARGET ones. A push that finds its deployment FAILED leaves its lane HELD"
)
_M, _SILENT, _BY_CLASS = "measure_ring", "a quarter of its class's deadline", "24 h, 72 h or 7 d by its class"
_BY_MEASURING = "the measurements of their lane, which is looked at, keep them to this"

DEVICE_MOVES: Mapping[StrEnum, frozenset[StrEnum]] = MappingProxyType(
    {
        state: frozenset(_V) - {state, _V.PENDING} | ({_V.PENDING} if state is _V.FAILED else set())
        for state in _V
    }
)
"""What a report may make of a device; one that failed has yet to begin again when it is asked to retry."""

MACHINES: tuple[Machine, ...] = (
    Machine(
        "deployment",
        rollout.DEPLOYMENT_MOVES,
        rollout.FINAL,
        (
            Limit(_D.PENDING, "scheduler, publisher", _CHANGE, _MONTH, _D.CANCELLED),
            Limit(_D.DEPLOYING, "its lanes, publisher", _CHANGE, _MONTH, _D.CANCELLED),
            Limit(_D.AWAITING_CAB, "approver", _CHANGE, _MONTH, _D.CANCELLED),
            Limit(_D.APPROVED, "scheduler, publisher", _CHANGE, _MONTH, _D.CANCELLED),
            Limit(_D.ROLLING_BACK, "its lanes, publisher", "its last change", _MONTH, _D.FAILED),
        ),
    ),
    Machine(
        "lane",
        rollout.LANE_MOVES,
        frozenset({_L.PROMOTED, _L.FAILED, _L.CANCELLED, _L.ROLLED_BACK}),
        (
            Limit(_L.PENDING, "its deployment", "", "as its deployment", _L.CANCELLED, instead=_WITH_IT),
            Limit(_L.PUSHING, "deploy_to_connector", _WORK, "10 minutes", _L.HELD),
            Limit(_L.WAITING_PLANE, "its operation", "the plane went away", "7 days", _L.HELD),
            Limit(
                _L.MEASURING,
                "measure_ring",
                "it was pushed, or taken up again when it was late, without the time its plane was away",
                "longest device deadline + soak + 1 day, or 1 day more than its soak still took when it was"
                " last measured; not in the hour after a break of all workers",
                _L.HELD,
            ),
            Limit(_L.HELD, "publisher, approver", "", "as its deployment", _L.CANCELLED, instead=_WITH_IT),
            Limit(_L.EMPTY_TARGET, "publisher", "", "as its deployment", _L.CANCELLED, instead=_WITH_IT),
            Limit(_L.ROLLING_BACK, "execute_rollback", "", "as its deployment", _L.FAILED),
        ),
    ),
    Machine(
        "request",
        rollout.APPROVAL_MOVES,
        frozenset(ApprovalStatus) - {ApprovalStatus.PENDING},
        (
            Limit(
                ApprovalStatus.PENDING,
                "approver",
                "it was made",
                "48 hours, urgent 24",
                ApprovalStatus.EXPIRED,
            ),
        ),
    ),
    Machine(
        "operation",
        operations.MOVES,
        frozenset(operations.ENDED),
        (
            Limit(_O.QUEUED, "relay, worker", "it was enqueued", "its deadline, else its lane's", _O.FAILED),
            Limit(
                _O.RUNNING, "worker", "its lease was renewed", "the lease, 15 seconds", _O.QUEUED, _O.FAILED
            ),
            Limit(_O.WAITING, "relay, worker", "it was enqueued", "its deadline, else its lane's", _O.FAILED),
        ),
    ),
    Machine(
        "effect",
        effects.MOVES,
        frozenset({_E.CONFIRMED, _E.REJECTED}),
        (
            Limit(_E.PLANNED, "its operation", "its deployment ended", "1 hour", _E.REJECTED),
            Limit(_E.SENT, _ASKED_BY, _WORK, _ASKING, _E.CONFIRMED, _E.REJECTED, _NEVER_KNOWN),
            Limit(_E.UNKNOWN, _ASKED_BY, _WORK, _ASKING, _E.CONFIRMED, _E.REJECTED, _NEVER_KNOWN),
        ),
    ),
    Machine(
        "device",
        DEVICE_MOVES,
        frozenset({_V.SUCCEEDED, _V.FAILED}),
        (
            Limit(_V.PENDING, _M, "the push", _SILENT, _V.UNREACHABLE, instead=_BY_MEASURING),
            Limit(_V.IN_PROGRESS, _M, "the push", _BY_CLASS, _V.FAILED, instead=_BY_MEASURING),
            Limit(_V.UNREACHABLE, _M, "the push", _BY_CLASS, _V.FAILED, instead=_BY_MEASURING),
            Limit(_V.UNKNOWN, _M, "the push", _BY_CLASS, _V.FAILED, instead=_BY_MEASURING),
        ),
    ),
    Machine(
        "drift",
        drift.MOVES,
        frozenset({DriftStatus.RESOLVED}),
        (
            Limit(DriftStatus.SUSPECTED, "reconcile", "it was seen", "7 days", DriftStatus.RESOLVED),
            Limit(
                DriftStatus.OPEN, "reconcile, repair_lane", "it was believed", "7 days", DriftStatus.ESCALATED
            ),
            Limit(DriftStatus.ESCALATED, "publisher", "it was escalated", "30 days", DriftStatus.RESOLVED),
        ),
    ),
    Machine(
        "message",
        conversations.MOVES,
        frozenset({_S.COMPLETE, _S.INCOMPLETE}),
        (
            Limit(_S.PENDING, _CONVERSES, _WORK, "10 minutes", _S.INCOMPLETE),
            Limit(_S.ANSWERING, _CONVERSES, _WORK, "10 minutes", _S.COMPLETE, _S.INCOMPLETE),
        ),
    ),
    Machine(
        "ai_task",
        ai_tasks.MOVES,
        ai_tasks.FINISHED,
        (
            Limit(_T.PENDING, _WORKS, _WORK, "10 minutes", _T.FAILED),
            Limit(_T.RUNNING, _WORKS, _WORK, "10 minutes", _T.FAILED),
            Limit(
                _T.AWAITING_APPROVAL,
                "approver",
                "it was proposed",
                "4 h, 12 h or 7 d by its kind",
                _T.EXPIRED,
            ),
            Limit(_T.REVISION_REQUESTED, _WORKS, _WORK, "10 minutes", _T.FAILED),
            Limit(_T.APPROVED, _WORKS, _WORK, "10 minutes", _T.FAILED, _T.EXPIRED),
            Limit(_T.EXECUTING, _WORKS, _WORK, "10 minutes", _T.FAILED, _T.EXPIRED),
        ),
    ),
)
