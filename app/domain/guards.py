# SPDX-License-Identifier: Apache-2.0
"""What may keep a lane or a deployment from moving: one guard for each public code, in tables. Pure.

The scheduler asks these functions before it moves anything, and the blockers that the API shows are their
answers: there is no second opinion.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from types import MappingProxyType

from app.domain import rollout
from app.domain.calendars import covering
from app.domain.facts import Blocker, Code, Facts, Place, Who
from app.models import ApprovalStatus, Deployment, LaneStatus, Promotion, RingDeployment, WayBack
from app.models import DeploymentStatus as D
from app.models import LaneStatus as L
from app.models.base import Json

Guard = Callable[[Place, Facts], Blocker | None]
GUARDS: dict[Code, Guard] = {}


def guards(code: Code) -> Callable[[Guard], Guard]:
    """Register the guard of a code; each code has one."""

    def register(guard: Guard) -> Guard:
        GUARDS[code] = guard
        return guard

    return register


DEPLOYMENT = "deployment"


@guards(Code.PAUSED)
def paused(place: Place, _: Facts) -> Blocker | None:
    """Nothing new begins while the flag is set."""
    deployment = place.deployment
    if not deployment.paused:
        return None
    by = f" by {deployment.paused_by}" if deployment.paused_by else ""
    why = f" ({deployment.pause_reason})" if deployment.pause_reason else ""
    when = f"somebody resumes it; paused{by}{why}"
    return Blocker(Code.PAUSED, DEPLOYMENT, deployment.paused_at, None, when, Who.PUBLISHER)


@guards(Code.NOT_BEFORE)
def not_before(place: Place, facts: Facts) -> Blocker | None:
    """The intent named a time."""
    start_at = place.deployment.start_at
    if start_at is None or start_at <= facts.now:
        return None
    when = f"{start_at.isoformat()} has come"
    return Blocker(Code.NOT_BEFORE, DEPLOYMENT, place.deployment.created_at, start_at, when, Who.NOBODY)


@guards(Code.CRITICAL_VULNERABILITY)
def critical_vulnerability(place: Place, facts: Facts) -> Blocker | None:
    """No ring begins with a critical vulnerability that nobody made an exception for."""
    if not place.is_critical or facts.approved is not None:
        return None
    when = "an approver approves it with an exception, or the packager submits a version without it"
    return _by_the_board(Code.CRITICAL_VULNERABILITY, place, facts, when)


@guards(Code.AWAITING_CAB)
def awaiting_cab(place: Place, facts: Facts) -> Blocker | None:
    """PILOT and wider begin after the decision only."""
    if place.is_critical or not place.needs_board or facts.approved is not None:
        return None
    return _by_the_board(Code.AWAITING_CAB, place, facts, "an approver approves it")


@guards(Code.EXCEPTION_EXPIRED)
def exception_expired(place: Place, facts: Facts) -> Blocker | None:
    """An approval is worth as much as its exception."""
    ends = facts.approved.exception_expires_at if facts.approved else None
    if not place.needs_board or ends is None or ends > facts.now:
        return None
    when = "an approver approves it again, with a new exception"
    return Blocker(Code.EXCEPTION_EXPIRED, DEPLOYMENT, ends, None, when, Who.APPROVER)


@guards(Code.IRREVERSIBLE)
def irreversible(place: Place, facts: Facts) -> Blocker | None:
    """From LAB on nothing is left behind that can neither return nor be removed, unless the board said so."""
    known = facts.ways_back.get(place.lane.plane)
    granted = facts.approved.irreversible if facts.approved else frozenset()
    leaves_lab = place.lane.position > 0 or place.lane.status is LaneStatus.MEASURING
    if not leaves_lab or known is not WayBack.NONE or place.lane.plane in granted:
        return None
    when = f"an approver approves it as irreversible on {place.lane.plane}"
    return _by_the_board(Code.IRREVERSIBLE, place, facts, when, subject=place.subject)


def _by_the_board(code: Code, place: Place, facts: Facts, when: str, *, subject: str = DEPLOYMENT) -> Blocker:
    decision = facts.decision
    if decision is not None and decision.status is ApprovalStatus.EXPIRED:
        again = "the request that ran out undecided is made again: resume the deployment"
        return Blocker(code, subject, decision.expires_at, None, again, Who.PUBLISHER)
    pending = decision if decision and decision.status is ApprovalStatus.PENDING else None
    since = pending.requested_at if pending else place.deployment.status_since
    expires = pending.expires_at if pending else None
    return Blocker(code, subject, since, expires, when, Who.APPROVER)


@guards(Code.FREEZE)
def freeze(place: Place, facts: Facts) -> Blocker | None:
    """A freeze covers the ring on the plane now."""
    span = covering(facts.freezes, place.lane.plane, place.lane.ring, facts.now)
    if span is None:
        return None
    when = f"the freeze ends ({span.reason}), or somebody ends it"
    return Blocker(Code.FREEZE, place.subject, span.starts_at, span.ends_at, when, Who.PUBLISHER)


@guards(Code.MAINTENANCE_WINDOW)
def maintenance_window(place: Place, facts: Facts) -> Blocker | None:
    """The ring has hours on the plane, and it is not one of them."""
    calendar = facts.windows.get((place.lane.plane, place.lane.ring))
    if calendar is None or calendar.is_open(facts.now):
        return None
    opens = calendar.opens(facts.now)
    when = f"the window of {place.lane.ring.value} on {place.lane.plane} opens ({calendar.zone})"
    return Blocker(Code.MAINTENANCE_WINDOW, place.subject, None, opens, when, Who.NOBODY)


@guards(Code.BUDGET)
def budget(place: Place, facts: Facts) -> Blocker | None:
    """All deployments together have changed as many devices as may be changed and not verified."""
    limit, used = facts.budget.limit, facts.budget.used
    needed = max(1, facts.needed.get(place.lane.id, 0))
    if limit is None or place.lane.reserved or used + needed <= limit:
        return None
    who, when = Who.NOBODY, f"fewer than {limit - needed + 1} of {limit} devices are changed and not verified"
    if needed > limit:
        who, when = Who.ADMIN, f"the budget of {limit} devices is raised to the {needed} it needs"
    return Blocker(Code.BUDGET, place.subject, place.lane.status_since, None, f"{when}; {used} are", who)


AWAY: Mapping[str, Code] = MappingProxyType(
    {"throttled": Code.THROTTLED, "plane_not_configured": Code.PLANE_NOT_CONFIGURED}
)
"""The codes of errors that are a blocker of their own; any other with which a plane keeps work waiting is
``plane_unavailable``."""
OURS = frozenset({"database"})


def _waiting_on_plane(place: Place, facts: Facts) -> tuple[Code, Json, datetime | None] | None:
    """The error for which the lane, or its operation, waits."""
    lane = place.lane
    work = facts.work.get(lane.operation_id) if lane.operation_id else None
    error = lane.error if lane.status is L.WAITING_PLANE else None
    if work is not None and work.waits and work.error is not None:
        error = work.error
    if error is None or error.get("service") in OURS:
        return None
    return AWAY.get(error["code"], Code.PLANE_UNAVAILABLE), error, work.next_attempt_at if work else None


def _plane_guard(code: Code, when: str, who: Who) -> Guard:
    def guard(place: Place, facts: Facts) -> Blocker | None:
        waiting = _waiting_on_plane(place, facts)
        if waiting is None or waiting[0] is not code:
            return None
        _, error, again = waiting
        since = place.lane.waiting_since or place.lane.status_since
        told = when.format(service=error.get("service") or place.lane.plane, message=error["message"])
        return Blocker(code, place.subject, since, again, told, who)

    return guards(code)(guard)


_plane_guard(Code.PLANE_UNAVAILABLE, "{service} answers again; last it was: {message}", Who.NOBODY)
_plane_guard(Code.THROTTLED, "{service} takes calls again; it asked for patience", Who.NOBODY)
_plane_guard(Code.PLANE_NOT_CONFIGURED, "the plane is configured: {message}", Who.ADMIN)


@guards(Code.SOAK)
def soak(place: Place, facts: Facts) -> Blocker | None:
    """The gate is passed but for its time."""
    if place.lane.status is not L.MEASURING or _gate_reason(place) != Code.SOAK:
        return None
    ends = facts.soak_ends.get(place.lane.id)
    when = "the ring has soaked for as long as its gate asks"
    return Blocker(Code.SOAK, place.subject, place.lane.pushed_at, ends, when, Who.APPROVER)


def _gate_reason(place: Place) -> str | None:
    return (place.lane.gate_report or {}).get("reason")


@guards(Code.GATE_NOT_MET)
def gate_not_met(place: Place, facts: Facts) -> Blocker | None:
    """Every device has an outcome, and too few succeeded; or an override that let the ring pass ran out."""
    lane = place.lane
    if lane.status is L.HELD and lane.held_for == Code.GATE_NOT_MET:
        signature = (lane.gate_report or {}).get("signature")
        told = f" ({signature})" if signature else ""
        when = f"the failed devices are tried again, or an approver overrides the gate{told}"
        return Blocker(Code.GATE_NOT_MET, place.subject, lane.status_since, None, when, Who.PUBLISHER)
    return _override_ran_out(place, facts)


def _override_ran_out(place: Place, facts: Facts) -> Blocker | None:
    """The ring before was passed by an override that ended before this ring began."""
    for before in place.deployment.lanes:
        if before.position != place.lane.position - 1 or before.override is None or place.lane.started_at:
            continue
        ended = datetime.fromisoformat(before.override["expires_at"])
        if ended <= facts.now:
            subject = f"{before.ring.value}/{before.plane}"
            when = "an approver overrides the gate again: the override ended before the next ring began"
            return Blocker(Code.GATE_NOT_MET, subject, ended, None, when, Who.APPROVER)
    return None


@guards(Code.INCONCLUSIVE)
def inconclusive(place: Place, _: Facts) -> Blocker | None:
    """Every device has an outcome, and that proves too little."""
    lane = place.lane
    if lane.status is not L.HELD or lane.held_for != Code.INCONCLUSIVE:
        return None
    why = (lane.gate_report or {}).get("detail") or "too few devices reported"
    when = f"devices are tried again, or an approver overrides the gate: {why}"
    return Blocker(Code.INCONCLUSIVE, place.subject, lane.status_since, None, when, Who.PUBLISHER)


@guards(Code.PUSH_FAILED)
def push_failed(place: Place, _: Facts) -> Blocker | None:
    """The push, or the measuring, ended without success."""
    lane = place.lane
    if lane.status is not L.FAILED and not (lane.status is L.HELD and lane.held_for == Code.PUSH_FAILED):
        return None
    why = (lane.error or {}).get("message") or "its operation was cancelled"
    when = f"the deployment is retried: {why}"
    return Blocker(Code.PUSH_FAILED, place.subject, lane.status_since, None, when, Who.PUBLISHER)


@guards(Code.EMPTY_TARGET)
def empty_target(place: Place, _: Facts) -> Blocker | None:
    """No plane has a device in this ring."""
    lanes = [lane for lane in place.deployment.lanes if lane.position == place.lane.position]
    if any(lane.status is not L.EMPTY_TARGET for lane in lanes):
        return None
    when = "another target is set, devices join it and it is resumed, or it is promoted with a reason"
    return Blocker(Code.EMPTY_TARGET, place.subject, place.lane.status_since, None, when, Who.PUBLISHER)


@guards(Code.MANUAL_PROMOTION)
def manual_promotion(place: Place, _: Facts) -> Blocker | None:
    """Of the first lane of a ring nobody has started yet."""
    deployment = place.deployment
    waits = deployment.promotion is Promotion.MANUAL and deployment.status is D.DEPLOYING
    if not waits or place.lane.position == 0 or place.lane.operation_id is not None:
        return None
    when = f"somebody promotes it to {place.lane.ring.value}"
    return Blocker(Code.MANUAL_PROMOTION, DEPLOYMENT, deployment.updated_at, None, when, Who.PUBLISHER)


BOARD = (Code.CRITICAL_VULNERABILITY, Code.AWAITING_CAB, Code.EXCEPTION_EXPIRED, Code.IRREVERSIBLE)
"""What only a decision of the board removes."""
TIMES = (Code.NOT_BEFORE, Code.FREEZE, Code.MAINTENANCE_WINDOW)
TOUCH = (Code.PAUSED, *BOARD, Code.GATE_NOT_MET, *TIMES, Code.BUDGET)
"""What is asked before a device is touched for the first time."""
AWAY_CODES = (Code.PLANE_UNAVAILABLE, Code.THROTTLED, Code.PLANE_NOT_CONFIGURED)

LANE_GUARDS: Mapping[tuple[L, L], tuple[Code, ...]] = MappingProxyType(
    {
        (L.PENDING, L.PUSHING): (Code.MANUAL_PROMOTION, *TOUCH, *AWAY_CODES),
        (L.PUSHING, L.MEASURING): (*TOUCH, *AWAY_CODES),
        (L.WAITING_PLANE, L.PUSHING): (*TOUCH, *AWAY_CODES),
        (L.WAITING_PLANE, L.MEASURING): AWAY_CODES,
        (L.MEASURING, L.PROMOTED): (Code.SOAK, Code.IRREVERSIBLE, *AWAY_CODES),
        (L.HELD, L.PROMOTED): (Code.GATE_NOT_MET, Code.INCONCLUSIVE, Code.PUSH_FAILED),
        (L.HELD, L.PUSHING): (Code.PUSH_FAILED,),
        (L.FAILED, L.PUSHING): (Code.PUSH_FAILED,),
        (L.EMPTY_TARGET, L.PUSHING): (Code.EMPTY_TARGET,),
        (L.ROLLING_BACK, L.ROLLED_BACK): (Code.PAUSED, *AWAY_CODES),
    }
)
"""The guards of a lane's moves, in the order in which they are asked."""


def next_move(lane: RingDeployment) -> tuple[L, L] | None:
    """The move a lane is waiting for; None where it waits for none."""
    pushed = lane.pushed_at is not None
    following = {
        L.PENDING: L.PUSHING,
        L.PUSHING: L.MEASURING,
        L.WAITING_PLANE: L.MEASURING if pushed else L.PUSHING,
        L.MEASURING: L.PROMOTED,
        L.HELD: L.PROMOTED if pushed else L.PUSHING,
        L.FAILED: L.PUSHING,
        L.EMPTY_TARGET: L.PUSHING,
        L.ROLLING_BACK: L.ROLLED_BACK,
    }.get(lane.status)
    return None if following is None else (lane.status, following)


def holding(place: Place, codes: tuple[Code, ...], facts: Facts) -> Iterator[Blocker]:
    """What of ``codes`` keeps the lane from moving, in their order."""
    for code in codes:
        blocker = GUARDS[code](place, facts)
        if blocker is not None:
            yield blocker


def before_touch(place: Place, facts: Facts) -> Blocker | None:
    """The first thing that keeps the lane's devices from being touched; None: it may be pushed.

    A lane that is HELD at its gate is asked about because its failed devices are to be tried again.
    """
    held = place.lane.status is L.HELD
    codes = tuple(code for code in TOUCH if not (held and code is Code.GATE_NOT_MET))
    return next(holding(place, codes, facts), None)


def board(place: Place, facts: Facts) -> Blocker | None:
    """The first thing about the lane that only a decision of the board removes."""
    return next(holding(place, BOARD, facts), None)


def blockers(deployment: Deployment, facts: Facts) -> list[Blocker]:
    """Why the deployment does not move: empty exactly when it moves or is over."""
    if deployment.status in rollout.FINAL:
        return []
    found = [] if (pause := paused(Place(deployment, deployment.lanes[0]), facts)) is None else [pause]
    for lane in _looked_at(deployment):
        found += _of_lane(deployment, lane, facts)
    return list(dict.fromkeys(found))  # what concerns the whole deployment is found at each of its lanes


def _of_lane(deployment: Deployment, lane: RingDeployment, facts: Facts) -> Iterator[Blocker]:
    move = next_move(lane)
    if move is not None:
        yield from holding(Place(deployment, lane), LANE_GUARDS[move], facts)


def _looked_at(deployment: Deployment) -> list[RingDeployment]:
    """The lanes that are to move next: those of the ring that is open, or of the ring after a closed one."""
    if deployment.status is D.ROLLING_BACK:
        waiting = [lane for lane in deployment.lanes if lane.status is L.ROLLING_BACK]
        newest = max((lane.position for lane in waiting), default=0)
        return [lane for lane in waiting if lane.position == newest]
    return rollout.open_ring(deployment.lanes)
