# SPDX-License-Identifier: Apache-2.0
"""Which moves are legal: the transition tables of deployments and lanes, and the order of rings. Pure."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from app.errors import IllegalTransition
from app.models import DeploymentStatus as D
from app.models import LaneStatus as L
from app.models import Ring

RINGS: tuple[Ring, ...] = tuple(Ring)
CAB_FROM = RINGS.index(Ring.PILOT)
"""The position of the first ring that needs a decision of the CAB, where one is required."""

DEPLOYMENT_MOVES: Mapping[D, frozenset[D]] = MappingProxyType(
    {
        D.PENDING: frozenset({D.DEPLOYING, D.AWAITING_CAB, D.CANCELLED, D.FAILED}),
        D.DEPLOYING: frozenset({D.AWAITING_CAB, D.COMPLETED, D.ROLLING_BACK, D.CANCELLED, D.FAILED}),
        D.AWAITING_CAB: frozenset({D.APPROVED, D.REJECTED, D.CANCELLED, D.ROLLING_BACK}),
        D.APPROVED: frozenset({D.DEPLOYING, D.CANCELLED, D.ROLLING_BACK, D.FAILED}),
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
LEFT = frozenset({L.PROMOTED, L.EMPTY_TARGET})
"""Lanes that no longer keep their ring from being left."""


def check_deployment_move(before: D, after: D) -> None:
    """Refuse a move that is not in the table.

    Raises:
        IllegalTransition: naming the state the deployment is in.
    """
    if after not in DEPLOYMENT_MOVES[before]:
        raise IllegalTransition(
            f"the deployment is {before.value} and cannot become {after.value}", status=before.value
        )


def check_lane_move(before: L, after: L) -> None:
    """Refuse a move that is not in the table.

    Raises:
        IllegalTransition: naming the state the lane is in.
    """
    if after not in LANE_MOVES[before]:
        raise IllegalTransition(
            f"the lane is {before.value} and cannot become {after.value}", status=before.value
        )


def rings_up_to(target: Ring) -> tuple[Ring, ...]:
    """The rings a deployment walks, in order."""
    return RINGS[: RINGS.index(target) + 1]


def ring_is_left(statuses: Iterable[L]) -> bool:
    """Whether a ring with lanes in these states may be left: all are done, at least one proved something."""
    known = list(statuses)
    return all(status in LEFT for status in known) and L.PROMOTED in known
