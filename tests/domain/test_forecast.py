# SPDX-License-Identifier: Apache-2.0
"""The forecast: told by the scheduler's own rules, and the same for the same input."""

from dataclasses import replace
from datetime import datetime, time, timedelta
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.connectors.contract import Plane, RateLimit
from app.domain import forecast, intents, planner
from app.domain.calendars import Calendar, FreezeSpan, Span, Weekday
from app.domain.facts import Budget, Code, Facts
from app.domain.forecast import Outlook
from app.domain.gates import Counts, Gate, judge
from app.domain.intents import Surroundings
from app.domain.policies import DEMO, STANDARD, GatePolicy
from app.models import Promotion, Ring, new_id
from app.models.base import Json
from tests.factories import FACTORS, NOON, RISK_62, make_intent, manifest, surroundings

DAY, HOUR = timedelta(days=1), timedelta(hours=1)


def tell(
    *,
    policy: GatePolicy = STANDARD,
    devices: int | None = 100,
    around: Surroundings | None = None,
    away: dict[Plane, tuple[Code, datetime | None]] | None = None,
    now: datetime = NOON,
    facts: dict[str, Any] | None = None,
    **intent: Any,
) -> Json:
    """The forecast of an intent on rings of so many devices."""
    asked = make_intent(**{"target_ring": Ring.GLOBAL} | intent)
    around = around or surroundings(policy, *asked.packages, devices=devices)
    plan = intents.plan(asked, around, correlation_id=new_id())
    outlook = Outlook(Facts(now=now, **(facts or {})), around.targets, around.manifests, away or {})
    return forecast.forecast(plan, outlook)


def ends(told: Json) -> list[float | None]:
    return [ring["earliest_end"] for ring in told["rings"]]


def test_rings_follow_each_other_after_their_soaks() -> None:
    told = tell()

    soaks = [DAY, 2 * DAY, 3 * DAY, 7 * DAY]
    begun = timedelta(0)
    for ring, soak in zip(told["rings"], soaks, strict=False):
        assert ring["earliest_start"] == begun.total_seconds()
        begun += soak
        assert begun.total_seconds() <= ring["earliest_end"] <= (begun + timedelta(minutes=5)).total_seconds()
        begun = timedelta(seconds=ring["earliest_end"])
    assert told["earliest_end"] == told["rings"][-1]["earliest_end"] == begun.total_seconds() + 60


def test_the_same_input_has_the_same_bytes_at_any_moment() -> None:
    first, second = tell(), tell(now=NOON + 17 * HOUR)

    assert first == second
    assert len(first["digest"]) == 64
    assert tell(devices=101)["digest"] != first["digest"]


def test_it_counts_effects_calls_and_devices() -> None:
    told = tell(planes=(Plane.INTUNE, Plane.JAMF), target_ring=Ring.CANARY, policy=DEMO, devices=150)

    lab, canary = told["rings"]
    assert [lane["effects"] for lane in lab["lanes"] + canary["lanes"]] == [3, 3, 1, 1]
    assert (told["devices"], told["peak_devices_at_risk"]) == (600, 300)
    assert [lane["measurements"] for lane in lab["lanes"]] == [2, 2]
    # Each call of the factory's planes takes 2 requests and one more for each 100 devices.
    assert lab["lanes"][0]["plane_calls"] == 4 * 4 + 2 * 4
    assert canary["lanes"][0]["plane_calls"] == 2 * 4 + 2 * 4
    assert told["plane_calls"] == 2 * (24 + 16)
    assert [lane["rolls_back_above"] for lane in lab["lanes"]] == [7, 7]


def test_a_target_that_was_never_counted_is_not_taken_for_empty() -> None:
    told = tell(devices=None, target_ring=Ring.LAB, policy=DEMO)

    assert told["rings"][0]["lanes"][0]["devices"] is None


def test_an_empty_ring_needs_a_person() -> None:
    told = tell(devices=0, target_ring=Ring.LAB, policy=DEMO)

    assert [need["code"] for need in told["rings"][0]["needs"]] == ["empty_target"]


def test_the_board_is_named_where_it_is_needed() -> None:
    told = tell(risk_factors=RISK_62)

    assert (told["risk_score"], told["requires_cab_approval"]) == (62, True)
    assert {ring["ring"]: [need["code"] for need in ring["needs"]] for ring in told["rings"]} == {
        "LAB": [],
        "CANARY": [],
        "PILOT": ["awaiting_cab"],
        "DEPARTMENT": ["awaiting_cab"],
        "GLOBAL": ["awaiting_cab"],
    }


def test_a_critical_vulnerability_is_named_before_the_first_ring() -> None:
    told = tell(risk_factors=FACTORS | {"sbom_vulnerability": 1.0}, target_ring=Ring.LAB)

    assert [need["code"] for need in told["rings"][0]["needs"]] == ["critical_vulnerability"]


def test_manual_promotion_is_named_from_the_second_ring_on() -> None:
    told = tell(promotion=Promotion.MANUAL, target_ring=Ring.PILOT)

    needed = [[need["code"] for need in ring["needs"]] for ring in told["rings"]]
    assert needed == [[], ["manual_promotion"], ["manual_promotion"]]


def test_a_freeze_is_waited_for_and_named() -> None:
    freeze = FreezeSpan(NOON, NOON + 3 * DAY, frozenset({Ring.CANARY}), frozenset(), "the books are closed")

    told = tell(target_ring=Ring.CANARY, policy=DEMO, facts={"freezes": (freeze,)})

    canary = told["rings"][1]
    assert canary["earliest_start"] == (3 * DAY).total_seconds()
    [wait] = canary["lanes"][0]["waits"]
    assert (wait["code"], wait["until"]) == ("freeze", (3 * DAY).total_seconds())


def test_windows_are_kept_and_a_freeze_over_a_window_waits_for_the_next_one() -> None:
    nights = Calendar("UTC", (Span(tuple(Weekday), time(22), time(23)),))
    freeze = FreezeSpan(NOON, NOON + 11 * HOUR, frozenset(), frozenset(), "tonight not")

    told = tell(
        target_ring=Ring.LAB,
        policy=DEMO,
        facts={"windows": {("intune", Ring.LAB): nights}, "freezes": (freeze,)},
    )

    lane = told["rings"][0]["lanes"][0]
    assert lane["earliest_start"] == (34 * HOUR).total_seconds()
    assert [wait["code"] for wait in lane["waits"]] == ["freeze", "maintenance_window"]


def test_an_open_breaker_is_waited_for_where_its_end_is_known() -> None:
    until = NOON + timedelta(minutes=5)

    told = tell(target_ring=Ring.LAB, policy=DEMO, away={Plane.INTUNE: (Code.PLANE_UNAVAILABLE, until)})

    lane = told["rings"][0]["lanes"][0]
    assert lane["earliest_start"] == 300
    assert [wait["code"] for wait in lane["waits"]] == ["plane_unavailable"]


@pytest.mark.parametrize(("limit", "used", "end"), [(50, 0, False), (150, 100, True), (1000, 0, True)])
def test_a_budget_too_small_for_a_ring_has_no_end(limit: int, used: int, *, end: bool) -> None:
    told = tell(target_ring=Ring.LAB, policy=DEMO, facts={"budget": Budget(limit, used)})

    assert (told["earliest_end"] is not None) is end
    codes = [wait["code"] for wait in told["rings"][0]["lanes"][0]["waits"]]
    assert codes == ([] if limit == 1000 else ["budget"])


def test_a_gate_that_so_few_devices_can_never_pass_has_no_end() -> None:
    told = tell(
        target_ring=Ring.LAB,
        policy=DEMO,
        devices=10,
        gates={Ring.LAB: intents.GateNumbers(confidence=0.95)},
    )

    assert told["earliest_end"] is None
    assert [wait["code"] for wait in told["rings"][0]["lanes"][0]["waits"]] == ["inconclusive"]


def test_rate_limits_stretch_it() -> None:
    slow = replace(manifest(Plane.INTUNE), rate_limits=(RateLimit(10, 60.0, "reads"),))
    around = replace(surroundings(DEMO, devices=5000), manifests={Plane.INTUNE: slow})

    told = tell(target_ring=Ring.LAB, around=around)

    fast = tell(target_ring=Ring.LAB, policy=DEMO, devices=5000)
    assert told["earliest_end"] >= fast["earliest_end"] + 60


def test_a_start_in_the_future_is_told_and_is_the_beginning() -> None:
    told = tell(start_at=NOON + DAY, target_ring=Ring.LAB, policy=DEMO)

    assert told["starts_at"] == NOON + DAY
    assert told["rings"][0]["earliest_start"] == 0


def step_by_step(policy: GatePolicy, gate: Gate, devices: int) -> tuple[datetime, int]:
    """What the scheduler would do, one measurement after the other."""
    elapsed, since, now, number = timedelta(0), NOON, planner.first_measurement(policy, NOON), 1
    while True:
        interval = policy.interval(now - NOON)
        elapsed = planner.soaked(elapsed, since=since, now=now, interval=interval)
        if judge(Counts(devices, devices), gate, soaked=elapsed).verdict == "promote":
            return now, number
        since, now, number = now, now + interval, number + 1


@settings(max_examples=200)
@given(
    st.integers(1, 3600).map(lambda seconds: timedelta(seconds=seconds)),
    st.integers(60, 3600).map(lambda seconds: timedelta(seconds=seconds)),
    st.integers(0, 200_000).map(lambda seconds: timedelta(seconds=seconds)),
)
def test_strides_end_where_single_steps_would(first: timedelta, later: timedelta, soak: timedelta) -> None:
    policy = replace(STANDARD, measure_first=first, measure_later=later)
    gate = Gate(0.9, 0.1, soak)

    ended, number, lacks = forecast.measured(policy, gate, 10, NOON)

    assert lacks is None
    assert (ended, number) == step_by_step(policy, gate, 10)


def test_a_year_of_soak_is_told_at_once() -> None:
    gates = MappingProxyType({ring: Gate(0.9, 0.1, 365 * DAY) for ring in Ring})

    told = tell(policy=replace(STANDARD, gates=gates))

    assert ends(told)[-1] is not None
