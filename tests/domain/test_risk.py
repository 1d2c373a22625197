# SPDX-License-Identifier: Apache-2.0
"""The risk model 1.0."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain import risk
from app.errors import Invalid

ALL_ZERO = dict.fromkeys(risk.WEIGHTS, 0.0)


def test_the_weights_add_up_to_a_hundred() -> None:
    assert sum(risk.WEIGHTS.values()) == 100


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ({}, 0),
        (dict.fromkeys(risk.WEIGHTS, 1.0), 100),
        ({"privilege_impact": 1.0}, 20),
        ({"history": 0.05}, 1),
        ({"history": 0.04}, 0),
        ({"history": 0.25}, 3),
        ({"privilege_impact": 0.125}, 3),
    ],
    ids=[
        "nothing",
        "everything",
        "one weight",
        "half rounds up",
        "below half rounds down",
        "2.5 is 3",
        "2.50 is 3",
    ],
)
def test_a_score_is_the_weighted_sum_rounded_half_up(factors: dict[str, float], expected: int) -> None:
    assert risk.score(ALL_ZERO | factors).value == expected


def test_the_breakdown_has_every_factors_contribution() -> None:
    breakdown = risk.score(ALL_ZERO | {"data_access": 0.5}).breakdown

    assert {"factor": "data_access", "weight": 10, "value": 0.5, "contribution": 5.0} in breakdown
    assert len(breakdown) == 8


@pytest.mark.parametrize(
    ("factors", "pointer"),
    [
        ({k: v for k, v in ALL_ZERO.items() if k != "history"}, "/risk_factors/history"),
        (ALL_ZERO | {"mood": 0.1}, "/risk_factors/mood"),
        (ALL_ZERO | {"history": 1.01}, "/risk_factors/history"),
        (ALL_ZERO | {"history": -0.01}, "/risk_factors/history"),
        (ALL_ZERO | {"history": float("nan")}, "/risk_factors/history"),
    ],
    ids=["missing", "unknown", "above one", "below zero", "not a number"],
)
def test_a_wrong_factor_is_refused_by_name(factors: dict[str, float], pointer: str) -> None:
    with pytest.raises(Invalid) as caught:
        risk.score(factors)

    assert [error.pointer for error in caught.value.errors] == [pointer]


@given(st.fixed_dictionaries({name: st.floats(0, 1) for name in risk.WEIGHTS}))
def test_every_complete_set_of_factors_has_a_score_from_0_to_100(factors: dict[str, float]) -> None:
    assert 0 <= risk.score(factors).value <= 100


@pytest.mark.parametrize(
    ("devices", "factor"),
    [
        (0, 0.1),
        (9, 0.1),
        (10, 0.3),
        (99, 0.3),
        (100, 0.5),
        (999, 0.5),
        (1000, 0.7),
        (10_000, 0.7),
        (10_001, 1.0),
    ],
)
def test_the_blast_radius_follows_the_target_size(devices: int, factor: float) -> None:
    assert risk.blast_radius(devices) == factor
