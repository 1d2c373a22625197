# SPDX-License-Identifier: Apache-2.0
"""Which moves and commands are legal: the tables of deployments, lanes and approvals; the rings. Pure."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import groupby
from types import MappingProxyType
from typing import TypeVar

from app.errors import IllegalTransition
from app.models import ApprovalStatus as A
from app.models import DeploymentStatus as D
from app.models import LaneStatus as L
from app.models import Ring, RingDeployment

State = TypeVar("State", bound=StrEnum)
RINGS: tuple[Ring, ...] = tuple(Ring)
CAB_FROM = RINGS.index(Ring.PILOT)
"""The position of the first ring that needs a decision of the CAB, where one is required."""

DEPLOYMENT_MOVES: Mapping[D, frozenset[D]] = MappingProxyType(
    {
        D.PENDING: frozenset({D.DEPLOYING, D.AWAITING_CAB, D.REJECTED, D.CANCELLED, D.FAILED}),
        D.DEPLOYING: frozenset(
            {D.AWAITING_CAB, D.REJECTED, D.COMPLETED, D.ROLLING_BACK, D.CANCELLED, D.FAILED}
        ),
        D.AWAITING_CAB: frozenset({D.APPROVED, D.REJECTED, D.CANCELLED, D.ROLLING_BACK, D.FAILED}),
        D.APPROVED: frozenset({D.DEPLOYING, D.AWAITING_CAB, D.CANCELLED, D.ROLLING_BACK, D.FAILED}),
        D.REJECTED: frozenset({D.ROLLING_BACK}),
        D.CANCELLED: frozenset({D.ROLLING_BACK}),
        D.COMPLETED: frozenset({D.ROLLING_BACK}),
        D.FAILED: frozenset({D.ROLLING_BACK, D.DEPLOYING}),
        D.ROLLING_BACK: frozenset({D.ROLLED_BACK, D.FAILED}),
        D.ROLLED_BACK: frozenset(),
    }
)
FINAL = frozenset({D.REJECTED, D.CANCELLED, D.COMPLETED, D.ROLLED_BACK, D.FAILED})
"""States in which nothing moves by itself, and another deployment of the application may start."""

LANE_MOVES: Mapping[L, frozenset[L]] = MappingProxyType(
    {
        L.PENDING: frozenset({L.PUSHING, L.WAITING_PLANE, L.HELD, L.FAILED, L.CANCELLED}),
        L.PUSHING: frozenset(
            {L.WAITING_PLANE, L.MEASURING, L.EMPTY_TARGET, L.HELD, L.FAILED, L.ROLLING_BACK, L.CANCELLED}
        ),
        L.WAITING_PLANE: frozenset({L.PUSHING, L.MEASURING, L.HELD, L.FAILED, L.ROLLING_BACK, L.CANCELLED}),
        L.MEASURING: frozenset({L.PROMOTED, L.WAITING_PLANE, L.HELD, L.FAILED, L.ROLLING_BACK, L.CANCELLED}),
        L.HELD: frozenset({L.PUSHING, L.MEASURING, L.PROMOTED, L.FAILED, L.ROLLING_BACK, L.CANCELLED}),
        L.EMPTY_TARGET: frozenset({L.PUSHING, L.PROMOTED, L.ROLLING_BACK, L.CANCELLED}),
        L.PROMOTED: frozenset({L.ROLLING_BACK}),
        L.FAILED: frozenset({L.PUSHING, L.ROLLING_BACK}),
        L.CANCELLED: frozenset({L.ROLLING_BACK}),
        L.ROLLING_BACK: frozenset({L.ROLLED_BACK, L.FAILED}),
        L.ROLLED_BACK: frozenset(),
    }
)
UNVERIFIED = frozenset({L.PUSHING, L.WAITING_PLANE, L.MEASURING, L.HELD, L.ROLLING_BACK})
"""Lanes whose devices are changed, or about to be, and have not passed a gate."""
LEFT = frozenset({L.PROMOTED, L.EMPTY_TARGET})
"""Lanes that no longer keep their ring from being left."""

APPROVAL_MOVES: Mapping[A, frozenset[A]] = MappingProxyType(
    {
        A.PENDING: frozenset({A.APPROVED, A.REJECTED, A.EXPIRED, A.WITHDRAWN}),
        A.APPROVED: frozenset(),
        A.REJECTED: frozenset(),
        A.EXPIRED: frozenset(),
        A.WITHDRAWN: frozenset(),
    }
)


class Command(StrEnum):
    """What an operator may order of a deployment."""

    PROMOTE = "promote"
    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    ROLLBACK = "rollback"
    RETRY = "retry"


_ACTIVE = frozenset({D.PENDING, D.DEPLOYING, D.AWAITING_CAB, D.APPROVED})

COMMANDS: Mapping[Command, frozenset[D]] = MappingProxyType(
    {
        Command.PROMOTE: frozenset({D.DEPLOYING, D.APPROVED}),
        Command.PAUSE: _ACTIVE | {D.ROLLING_BACK},
        Command.RESUME: _ACTIVE | {D.ROLLING_BACK},
        Command.CANCEL: _ACTIVE,
        Command.ROLLBACK: frozenset(
            {D.DEPLOYING, D.AWAITING_CAB, D.APPROVED, D.REJECTED, D.CANCELLED, D.COMPLETED, D.FAILED}
        ),
        Command.RETRY: frozenset({D.DEPLOYING, D.FAILED}),
    }
)
"""The states in which a command may change something."""

HOLDS: Mapping[Command, frozenset[D]] = MappingProxyType(
    {
        Command.CANCEL: frozenset({D.CANCELLED}),
        Command.ROLLBACK: frozenset({D.ROLLING_BACK, D.ROLLED_BACK}),
    }
)
"""The states in which what a command orders holds already: it is accepted and changes nothing."""


def holds_already(command: Command, status: D) -> bool:
    """Whether a repeat of the command changes nothing; False where it may change something.

    Raises:
        IllegalTransition: naming the state, where the command is not legal.
    """
    if status in HOLDS.get(command, ()):
        return True
    if status not in COMMANDS[command]:
        raise IllegalTransition(
            f"the deployment is {status.value}: {command.value} is not possible", status=status.value
        )
    return False


def check_approval_move(before: A, after: A) -> None:
    """Refuse a move that is not in the table.

    Raises:
        IllegalTransition: naming the state the request is in.
    """
    check_move("request", APPROVAL_MOVES, before, after)


def check_move(noun: str, moves: Mapping[State, frozenset[State]], before: State, after: State) -> None:
    """Refuse a move that is not in a table, saying what it is about and in which state it is."""
    if after not in moves[before]:
        raise IllegalTransition(
            f"the {noun} is {before.value} and cannot become {after.value}", status=before.value
        )


def check_deployment_move(before: D, after: D) -> None:
    """Refuse a move that is not in the table.

    Raises:
        IllegalTransition: naming the state the deployment is in.
    """
    check_move("deployment", DEPLOYMENT_MOVES, before, after)


def check_lane_move(before: L, after: L) -> None:
    """Refuse a move that is not in the table.

    Raises:
        IllegalTransition: naming the state the lane is in.
    """
    check_move("lane", LANE_MOVES, before, after)


def rings_up_to(target: Ring) -> tuple[Ring, ...]:
    """The rings a deployment walks, in order."""
    return RINGS[: RINGS.index(target) + 1]


def ring_is_left(lanes: Sequence[RingDeployment]) -> bool:
    """Whether a ring with these lanes is behind us: all done, and one proved something or all were passed.

    A ring whose targets are all empty is passed by hand: its lanes stay EMPTY_TARGET, and are finished then.
    """
    proved = any(lane.status is L.PROMOTED for lane in lanes)
    passed = all(lane.finished_at for lane in lanes)
    return all(lane.status in LEFT for lane in lanes) and (proved or passed)


def open_ring(lanes: Sequence[RingDeployment]) -> list[RingDeployment]:
    """The lanes of the first ring that is not behind us, or of the last."""
    by_ring = [list(ring) for _, ring in groupby(lanes, key=lambda lane: lane.position)]
    return next((ring for ring in by_ring if not ring_is_left(ring)), by_ring[-1])
