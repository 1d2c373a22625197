# SPDX-License-Identifier: Apache-2.0
"""The truth table of the gates, as a table and as properties."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain import policies
from app.domain.gates import OPEN, UNMET, Counts, Gate, Measure, Verdict, judge, wilson_lower_bound
from app.domain.policies import DEMO, STANDARD, GatePolicy, load_policy
from app.errors import Invalid
from app.models import Connectivity, Ring

GATE = Gate(min_success_rate=0.98, max_failure_rate=0.02, soak=timedelta(hours=48))
SOAKED, FRESH = timedelta(hours=48), timedelta(0)


DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "gates.md"


def truth_table() -> list[dict[str, str]]:
    """The rows of the published table."""
    lines = DOCUMENT.read_text(encoding="utf-8").split("## The truth table")[1].split("##")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def gate_of(row: dict[str, str]) -> Gate:
    own: dict[str, Any] = dict(pair.split("=") for pair in row["gate"].split())
    dry_run = frozenset({Measure(own.pop("dry_run"))}) if "dry_run" in own else frozenset()
    own = {name: int(value) if name == "min_reported" else float(value) for name, value in own.items()}
    return replace(GATE, dry_run=dry_run, **own)


@pytest.mark.parametrize("row", truth_table(), ids=lambda row: row["because"])
def test_a_gate_decides_by_the_published_table(row: dict[str, str]) -> None:
    counts = Counts(int(row["targeted"]), int(row["succeeded"]), int(row["failed"]), int(row["unreachable"]))
    reversible = {"-": None, "yes": True, "no": False}[row["way back"]]

    judgement = judge(
        counts,
        gate_of(row),
        soaked=SOAKED if row["soaked"] == "yes" else FRESH,
        reversible=reversible,
    )

    assert (judgement.verdict.value, judgement.reason or "") == (row["verdict"], row["reason"])


def test_the_published_table_shows_each_verdict_and_each_reason() -> None:
    table = truth_table()

    assert {row["verdict"] for row in table} == {verdict.value for verdict in Verdict}
    reasons = {reason for _, reason in [*UNMET.values(), *OPEN.values()]} - {None}
    assert {row["reason"] for row in table} - {""} == reasons | {"empty_target"}


def test_a_ring_that_finished_below_its_success_threshold_needs_a_person() -> None:
    gate = Gate(min_success_rate=0.99, max_failure_rate=0.05, soak=timedelta(0))

    judgement = judge(Counts(100, 98, 2), gate, soaked=SOAKED)

    assert (judgement.verdict, judgement.reason) == (Verdict.HOLD, "gate_not_met")


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        (Counts(40, 29), Verdict.HOLD),
        (Counts(20, 20), Verdict.INCONCLUSIVE),
        (Counts(40, 40), Verdict.PROMOTE),
    ],
    ids=["too few so far", "too few for ever", "enough"],
)
def test_no_verdict_comes_before_the_minimum_sample(counts: Counts, verdict: Verdict) -> None:
    gate = Gate(0.5, 0.5, timedelta(0), min_reported=30)

    assert judge(counts, gate, soaked=SOAKED).verdict is verdict


def test_rates_are_compared_as_they_are_written() -> None:
    gate = Gate(min_success_rate=0.5, max_failure_rate=0.29, soak=timedelta(0))

    assert judge(Counts(100, 71, 29), gate, soaked=SOAKED).verdict is Verdict.PROMOTE


def test_every_criterion_shows_threshold_and_measured_value() -> None:
    judgement = judge(Counts(200, 190, 5), GATE, soaked=FRESH)

    assert {c.name: (c.threshold, c.measured, c.passed) for c in judgement.criteria} == {
        "failure_rate": (0.02, 0.025, False),
        "min_reported": (1, 195, True),
        "coverage": (0.0, 0.975, True),
        "success_rate": (0.98, 0.95, False),
        "soak": (172800.0, 0.0, False),
    }


@pytest.mark.parametrize(
    ("succeeded", "sample", "confidence", "bound"),
    [(10, 10, 0.95, 0.787), (200, 200, 0.95, 0.9867), (0, 10, 0.95, 0.0), (81, 263, 0.975, 0.2553)],
)
def test_the_lower_bound_is_wilsons(succeeded: int, sample: int, confidence: float, bound: float) -> None:
    """The last is the example of Newcombe, Statistics in Medicine 17 (1998), 857, for 95 % two-sided."""
    assert wilson_lower_bound(succeeded, sample, confidence) == pytest.approx(bound, abs=0.0005)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_the_bound_is_never_above_the_rate_and_falls_with_confidence(
    sample: tuple[int, int], confidence: float
) -> None:
    bound = wilson_lower_bound(*sample, confidence)

    assert 0 <= bound <= sample[0] / sample[1] + 1e-12
    assert wilson_lower_bound(*sample, min(0.9999, confidence + 0.0005)) <= bound + 1e-12


@st.composite
def lanes(draw: st.DrawFn) -> Counts:
    targeted = draw(st.integers(0, 2000))
    succeeded = draw(st.integers(0, targeted))
    failed = draw(st.integers(0, targeted - succeeded))
    return Counts(targeted, succeeded, failed, draw(st.integers(0, targeted - succeeded - failed)))


@st.composite
def gates(draw: st.DrawFn) -> Gate:
    rate = st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)
    soak = st.integers(0, 100).map(lambda seconds: timedelta(seconds=seconds))
    return Gate(draw(rate), draw(rate), draw(soak), draw(st.integers(1, 50)))


ORDER = {Verdict.ROLL_BACK: 0, Verdict.INCONCLUSIVE: 1, Verdict.HOLD: 1, Verdict.PROMOTE: 2}


@given(lanes(), gates(), st.integers(0, 200))
def test_one_more_failure_never_makes_a_verdict_better(counts: Counts, gate: Gate, soaked: int) -> None:
    if counts.succeeded == 0:
        return
    worse = Counts(counts.targeted, counts.succeeded - 1, counts.failed + 1, counts.unreachable)

    before = judge(counts, gate, soaked=timedelta(seconds=soaked)).verdict
    after = judge(worse, gate, soaked=timedelta(seconds=soaked)).verdict

    assert ORDER[after] <= ORDER[before]


@given(lanes(), gates(), st.integers(0, 200))
def test_nothing_is_promoted_below_a_threshold_or_beyond_the_failure_limit(
    counts: Counts, gate: Gate, soaked: int
) -> None:
    verdict = judge(counts, gate, soaked=timedelta(seconds=soaked)).verdict

    if verdict is Verdict.PROMOTE:
        assert counts.targeted > 0
        assert counts.succeeded / counts.targeted >= gate.min_success_rate - 1e-12
        assert counts.failed / counts.targeted <= gate.max_failure_rate + 1e-12
        assert counts.reported >= gate.min_reported
        assert timedelta(seconds=soaked) >= gate.soak


@given(lanes(), gates(), st.integers(0, 200))
def test_a_finished_lane_never_waits_without_a_reason(counts: Counts, gate: Gate, soaked: int) -> None:
    judgement = judge(counts, gate, soaked=timedelta(seconds=soaked))

    if counts.finished and judgement.verdict in {Verdict.HOLD, Verdict.INCONCLUSIVE}:
        assert judgement.reason is not None


def test_the_standard_policy_has_the_published_numbers() -> None:
    table = {
        ring.value: (gate.min_success_rate, gate.max_failure_rate, gate.soak.total_seconds() / 3600)
        for ring, gate in STANDARD.gates.items()
    }

    assert table == {
        "LAB": (0.95, 0.05, 24),
        "CANARY": (0.98, 0.02, 48),
        "PILOT": (0.97, 0.03, 72),
        "DEPARTMENT": (0.99, 0.01, 168),
        "GLOBAL": (0.99, 0.01, 0),
    }
    assert {kind.value: wait.total_seconds() / 3600 for kind, wait in STANDARD.connectivity.items()} == {
        "online": 24,
        "intermittent": 72,
        "air_gapped": 168,
    }


def test_the_demo_policy_keeps_the_rates_and_shortens_the_clocks() -> None:
    assert {ring: (g.min_success_rate, g.max_failure_rate) for ring, g in DEMO.gates.items()} == {
        ring: (g.min_success_rate, g.max_failure_rate) for ring, g in STANDARD.gates.items()
    }
    assert DEMO.gates[Ring.LAB].soak == timedelta(seconds=2)
    assert DEMO.connectivity[Connectivity.AIR_GAPPED] == timedelta(seconds=20)


def test_a_policy_survives_being_stored() -> None:
    assert GatePolicy.from_json(json.loads(json.dumps(STANDARD.to_json()))) == STANDARD


def test_a_policy_may_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(DEMO.to_json() | {"name": "mine"}))

    assert load_policy(str(path)).name == "mine"


@pytest.mark.parametrize("text", ["", "{}", '{"name": 1, "version": "x"}', "[]"])
def test_a_file_that_is_no_policy_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy.json"
    path.write_text(text)

    with pytest.raises(Invalid, match=r"policy\.json"):
        load_policy(str(path))


def test_a_gate_is_looser_when_any_number_is() -> None:
    assert Gate(0.97, 0.02, SOAKED).is_looser_than(GATE)
    assert Gate(0.98, 0.03, SOAKED).is_looser_than(GATE)
    assert Gate(0.99, 0.01, timedelta(hours=1)).is_looser_than(GATE)
    assert not Gate(0.99, 0.01, timedelta(hours=50), 5).is_looser_than(GATE)


async def test_a_policy_is_stored_once_and_never_with_other_content(session: AsyncSession) -> None:
    policy = replace(STANDARD, name="ours", version=3)
    await policies.store(session, policy)
    await policies.store(session, policy)

    with pytest.raises(Invalid, match="raise its version"):
        await policies.store(session, replace(policy, measure_first=timedelta(seconds=1)))

    await policies.store(session, replace(policy, version=4, measure_first=timedelta(seconds=1)))
    rows, following = await policies.page(session, after=("ours", 3), limit=1)
    assert ([(row.name, row.version) for row in rows], following) == ([("ours", 4)], None)


def test_a_policy_of_an_older_release_is_read_with_todays_defaults() -> None:
    document = STANDARD.to_json()
    del document["max_rollback_failure_rate"]
    for gate in document["gates"].values():
        for name in ("min_coverage", "confidence", "dry_run"):
            del gate[name]

    assert GatePolicy.from_json(document) == STANDARD
