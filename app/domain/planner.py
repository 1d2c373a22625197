# SPDX-License-Identifier: Apache-2.0
"""What comes next and when: the rules by which the scheduler moves and the forecast tells. Pure."""

from datetime import datetime, timedelta
from enum import Enum

from app.domain import guards
from app.domain.facts import Blocker, Facts, Place
from app.domain.policies import GatePolicy
from app.models import Deployment, Promotion, Ring

FRESH = 2
"""So many intervals after a measurement its lane's soak stands still: it is not fresh any more."""


class Next(Enum):
    """What follows a ring that has been left."""

    COMPLETE = "complete"
    BY_HAND = "by hand"
    BEGIN = "begin"


def after_ring(deployment: Deployment, ring: Ring, *, by_hand: bool) -> Next:
    """What follows a ring whose lanes have all passed; ``by_hand``: somebody promotes it now."""
    if ring is deployment.target_ring:
        return Next.COMPLETE
    if deployment.promotion is Promotion.MANUAL and not by_hand:
        return Next.BY_HAND
    return Next.BEGIN


def needs_board(deployment: Deployment, ring: Ring, facts: Facts) -> Blocker | None:
    """Why a ring may not begin before the board has decided, if so."""
    lanes = [lane for lane in deployment.lanes if lane.ring is ring]
    found = (guards.board(Place(deployment, lane), facts) for lane in lanes)
    return next((blocker for blocker in found if blocker is not None), None)


def first_measurement(policy: GatePolicy, pushed_at: datetime) -> datetime:
    """When a lane is measured first."""
    return pushed_at + policy.measure_first


def next_measurement(policy: GatePolicy, *, age: timedelta, now: datetime) -> datetime:
    """When a lane whose push was confirmed ``age`` ago is measured again."""
    return now + policy.interval(age)


def soaked(elapsed: timedelta, *, since: datetime, now: datetime, interval: timedelta) -> timedelta:
    """The soak so far, with the time since the measurement before this one; older ones are not fresh."""
    return elapsed + max(timedelta(0), min(now - since, FRESH * interval))
