# SPDX-License-Identifier: Apache-2.0
"""What a rollout would do if every device succeeded at once: simulated by the scheduler's own rules. Pure.

Times are seconds from the beginning, so that the same intent has the same forecast at any moment at which
the same freezes, windows and outages lie ahead.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import ROUND_FLOOR, Decimal
from itertools import accumulate
from math import ceil

from pydantic_core import to_json

from app.connectors.contract import Call, Capability, Manifest, Plane
from app.domain import guards, planner, rollout
from app.domain.facts import Blocker, Code, Decision, Facts, Place, Who
from app.domain.gates import Counts, Gate, Verdict, judge
from app.domain.intents import KnownTarget, Plan
from app.domain.planner import Next
from app.domain.policies import HOUR, GatePolicy
from app.models import ApprovalStatus, Deployment, DeploymentStatus, LaneStatus, Ring, RingDeployment, WayBack
from app.models.base import Json

LONGEST = timedelta(days=3660)
"""A wait that would last longer has no end that could be told."""
MOST_WAITS = 100


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the intent would meet: ``facts`` with freezes, windows and budget, and planes that are kept away.

    ``away`` has the blocker's code, and when somebody is let through again, if that is known.
    """

    facts: Facts
    targets: Mapping[tuple[Plane, Ring], KnownTarget]
    manifests: Mapping[Plane, Manifest]
    away: Mapping[Plane, tuple[Code, datetime | None]] = field(default_factory=dict)


@dataclass(slots=True)
class LaneForecast:
    """One ring on one plane; ``devices`` None: never counted; ``ends`` None: nobody can tell.

    ``requests`` are HTTP requests at most, without those that carry the package's content.
    """

    plane: Plane
    devices: int | None
    way_back: WayBack | None
    begins: datetime
    ends: datetime | None = None
    effects: int = 0
    measurements: int = 0
    requests: int = 0
    rolls_back_above: int = 0
    waits: list[Blocker] = field(default_factory=list)


@dataclass(slots=True)
class RingForecast:
    """A ring with its lanes; ``needs``: what only a person can give before it begins."""

    ring: Ring
    begins: datetime
    ends: datetime | None
    needs: list[Blocker]
    lanes: list[LaneForecast]

    @property
    def devices(self) -> int:
        """How many devices are changed in it, and not verified before it ends."""
        return sum(lane.devices or 0 for lane in self.lanes)


def forecast(plan: Plan, outlook: Outlook) -> Json:
    """What the plan would do, with the ``digest`` of everything else that is told.

    Every device is taken to succeed between its push and the first measurement, every person to act at once.
    """
    deployment = as_deployment(plan)
    begins = now = max(outlook.facts.now, plan.intent.start_at or outlook.facts.now)
    rings: list[RingForecast] = []
    for ring in rollout.rings_up_to(plan.intent.target_ring):
        rings.append(_of_ring(deployment, plan, ring, outlook, now))
        now = max([rings[-1].ends or now, now])
    told = _told(plan, rings, begins)
    return {"digest": hashlib.sha256(to_json(told)).hexdigest(), **told}


def as_deployment(plan: Plan) -> Deployment:
    """The plan as the guards would see it, at its beginning; nothing of it is stored."""
    intent = plan.intent
    made = Deployment(
        id=plan.id,
        app_name=intent.app_name,
        target_ring=intent.target_ring,
        promotion=intent.promotion,
        start_at=None,
        risk_factors=dict(plan.risk_factors),
        requires_cab_approval=plan.requires_cab_approval,
        status=DeploymentStatus.DEPLOYING,
        paused=False,
    )
    made.lanes = [
        RingDeployment(
            id=lane.id,
            ring=lane.ring,
            position=rollout.RINGS.index(lane.ring),
            plane=lane.plane.value,
            status=LaneStatus.PENDING,
            reserved=0,
        )
        for lane in plan.lanes
    ]
    return made


def _of_ring(deployment: Deployment, plan: Plan, ring: Ring, outlook: Outlook, now: datetime) -> RingForecast:
    facts = replace(
        outlook.facts, now=now, ways_back={plane.value: way for plane, way in plan.ways_back.items()}
    )
    needs = list(_needs(deployment, ring, facts))
    granted = replace(facts, granted=_yes(facts, plan))
    lanes: list[LaneForecast] = []
    for lane in deployment.lanes:
        if lane.ring is ring:
            taken = sum(other.devices or 0 for other in lanes)
            lanes.append(_of_lane(Place(deployment, lane), plan, outlook, granted, taken))
    ends = [lane.ends for lane in lanes]
    if all(lane.devices == 0 for lane in lanes):
        first = next(lane for lane in deployment.lanes if lane.ring is ring)
        when = "every target of the ring is empty: somebody promotes it with a reason, or sets another"
        needs.append(
            Blocker(Code.EMPTY_TARGET, Place(deployment, first).subject, None, None, when, Who.PUBLISHER)
        )
    known = [end for end in ends if end is not None]
    begins = min(lane.begins for lane in lanes)
    return RingForecast(ring, begins, max(known) if len(known) == len(ends) else None, needs, lanes)


def _needs(deployment: Deployment, ring: Ring, facts: Facts) -> list[Blocker]:
    """What a person has to give before the ring begins."""
    found = []
    position = rollout.RINGS.index(ring)
    before = rollout.RINGS[position - 1]
    if position and planner.after_ring(deployment, before, by_hand=False) is Next.BY_HAND:
        first = next(lane for lane in deployment.lanes if lane.ring is ring)
        found += [blocker] if (blocker := guards.manual_promotion(Place(deployment, first), facts)) else []
    asked = planner.needs_board(deployment, ring, facts)
    return found + ([asked] if asked else [])


def _yes(facts: Facts, plan: Plan) -> Decision:
    """The board's yes to everything, as if it came at once."""
    return Decision(
        ApprovalStatus.APPROVED,
        facts.digest,
        requested_at=facts.now,
        expires_at=facts.now,
        irreversible=frozenset(plane.value for plane in plan.ways_back),
    )


def _of_lane(place: Place, plan: Plan, outlook: Outlook, facts: Facts, taken: int) -> LaneForecast:
    plane = Plane(place.lane.plane)
    known, manifest = outlook.targets[plane, place.lane.ring], outlook.manifests[plane]
    made = LaneForecast(plane, known.device_count, plan.ways_back[plane], facts.now)
    devices, gate = made.devices or 0, plan.policy.gates[place.lane.ring]
    begins = _wait(place, made, outlook, facts, taken)
    _count_push(made, manifest, plan, first=place.lane.position == 0)
    limit = Decimal(repr(gate.max_failure_rate)) * devices
    made.rolls_back_above = int(limit.to_integral_value(ROUND_FLOOR))
    if begins is None:
        return made
    made.begins = begins
    if devices == 0:
        made.ends = begins
        return made
    pushed_at = begins + throttled(manifest, made.requests)
    ended, made.measurements, lacks = measured(plan.policy, gate, devices, pushed_at)
    reading = _requests(manifest, Call.STATUS, devices)
    made.requests += made.measurements * reading
    if lacks is not None:
        when = f"the gate can be met: {lacks}"
        made.waits.append(Blocker(Code.INCONCLUSIVE, place.subject, None, None, when, Who.PUBLISHER))
    made.ends = None if ended is None else ended + throttled(manifest, reading)
    return made


def _wait(place: Place, made: LaneForecast, outlook: Outlook, facts: Facts, taken: int) -> datetime | None:
    """When the lane may be pushed, with what it waits for until then; None if nobody can tell."""
    now, last = facts.now, facts.now + LONGEST
    code, until = outlook.away.get(made.plane, (None, None))
    if code is not None:
        when = f"{made.plane.value} answers again"
        made.waits.append(Blocker(code, place.subject, None, until, when, Who.NOBODY))
        now = max(now, until or now)
    budget = replace(facts.budget, used=facts.budget.used + taken)
    for _ in range(MOST_WAITS):
        needed = {place.lane.id: made.devices or 0}
        blocker = guards.before_touch(place, replace(facts, now=now, budget=budget, needed=needed))
        if blocker is None:
            return now
        made.waits.append(blocker)
        if blocker.code is Code.BUDGET:
            return None if blocker.who_can_act is Who.ADMIN else now
        if blocker.next_check_at is None or blocker.next_check_at > last:
            return None
        now = blocker.next_check_at
    return None


def _count_push(made: LaneForecast, manifest: Manifest, plan: Plan, *, first: bool) -> None:
    """The effects of a push, and the requests it takes at most."""
    calls = [Call.MEMBERS, Call.ASSIGN]
    if first:
        calls += [Call.PUBLISH, Call.UPLOAD]
    if plan.intent.rollback_version is not None and manifest.can(Capability.RETURN):
        calls.append(Call.FIND_VERSION)
    if made.devices == 0:
        calls.remove(Call.ASSIGN)
    made.effects = len({Call.ASSIGN, Call.PUBLISH, Call.UPLOAD}.intersection(calls))
    made.requests = sum(_requests(manifest, call, made.devices or 0) for call in calls)


def _requests(manifest: Manifest, call: Call, devices: int) -> int:
    cost = manifest.costs[call]
    return cost.requests + (ceil(devices / cost.page) if cost.page else 0)


def throttled(manifest: Manifest, requests: int) -> timedelta:
    """How long the plane's rate limits stretch so many requests, at least."""
    seconds = [(max(0, requests - 1) // limit.requests) * limit.seconds for limit in manifest.rate_limits]
    return timedelta(seconds=max(seconds, default=0.0))


def measured(
    policy: GatePolicy, gate: Gate, devices: int, pushed_at: datetime
) -> tuple[datetime | None, int, str | None]:
    """When a lane of that many devices passes its gate, after how many measurements; or what it lacks.

    Measurements between which nothing but the soak changes are taken in one stride.
    """
    counts, elapsed, since = Counts(devices, succeeded=devices), timedelta(0), pushed_at
    now, number = planner.first_measurement(policy, pushed_at), 1
    while True:
        interval = policy.interval(now - pushed_at)
        elapsed = planner.soaked(elapsed, since=since, now=now, interval=interval)
        judgement = judge(counts, gate, soaked=elapsed)
        if judgement.verdict is Verdict.PROMOTE:
            return now, number, None
        if judgement.reason != Code.SOAK:
            return None, number, judgement.detail or judgement.reason
        strides = _strides(policy, gate.soak - elapsed, now - pushed_at)
        elapsed += (strides - 1) * interval
        since = now + (strides - 1) * interval
        now, number = since + interval, number + strides


def _strides(policy: GatePolicy, left: timedelta, age: timedelta) -> int:
    """How many measurements ahead the soak may be over, at the interval of this age."""
    interval = policy.interval(age)
    wanted = ceil(left / interval)
    if age < HOUR:
        wanted = min(wanted, ceil((HOUR - age) / interval))
    return max(1, wanted)


After = Callable[[datetime | None], float | None]
"""Seconds from the beginning."""


def _told(plan: Plan, rings: list[RingForecast], begins: datetime) -> Json:
    """Everything as JSON, in seconds from the beginning."""

    def after(instant: datetime | None) -> float | None:
        return None if instant is None else round((instant - begins).total_seconds(), 3)

    lanes = [lane for ring in rings for lane in ring.lanes]
    known: list[bool] = list(
        accumulate((ring.ends is not None for ring in rings), lambda so_far, ends: so_far and ends)
    )
    return {
        "risk_score": plan.score.value,
        "requires_cab_approval": plan.requires_cab_approval,
        "gate_policy": f"{plan.policy.name}/{plan.policy.version}",
        "starts_at": plan.intent.start_at,
        "earliest_end": after(rings[-1].ends) if known[-1] else None,
        "plane_calls": sum(lane.requests for lane in lanes),
        "effects": sum(lane.effects for lane in lanes),
        "devices": sum(ring.devices for ring in rings),
        "peak_devices_at_risk": max(ring.devices for ring in rings),
        "irreversible": _planes_with(plan, WayBack.NONE),
        "unknown_until_asked": _planes_with(plan, None),
        "rings": [_ring_told(ring, after, known=ends) for ring, ends in zip(rings, known, strict=True)],
    }


def _planes_with(plan: Plan, way_back: WayBack | None) -> list[str]:
    return sorted(plane.value for plane, way in plan.ways_back.items() if way is way_back)


def _ring_told(ring: RingForecast, after: After, *, known: bool) -> Json:
    """``known``: whether it can be told when this ring and all before it end."""
    return {
        "ring": ring.ring.value,
        "earliest_start": after(ring.begins),
        "earliest_end": after(ring.ends) if known else None,
        "devices_at_risk": ring.devices,
        "plane_calls": sum(lane.requests for lane in ring.lanes),
        "needs": [_blocker_told(blocker, after) for blocker in ring.needs],
        "lanes": [_lane_told(lane, after) for lane in ring.lanes],
    }


def _lane_told(lane: LaneForecast, after: After) -> Json:
    return {
        "plane": lane.plane.value,
        "devices": lane.devices,
        "earliest_start": after(lane.begins),
        "earliest_end": after(lane.ends),
        "effects": lane.effects,
        "measurements": lane.measurements,
        "plane_calls": lane.requests,
        "rolls_back_above": lane.rolls_back_above,
        "way_back": lane.way_back,
        "waits": [_blocker_told(blocker, after) for blocker in lane.waits],
    }


def _blocker_told(blocker: Blocker, after: After) -> Json:
    return {
        "code": blocker.code.value,
        "subject": blocker.subject,
        "until": after(blocker.next_check_at) if blocker.code in UNTIL else None,
        "unblocks_when": blocker.unblocks_when,
        "who_can_act": blocker.who_can_act.value,
    }


UNTIL = frozenset({*guards.TIMES, *guards.AWAY_CODES})
"""What ends by itself."""
