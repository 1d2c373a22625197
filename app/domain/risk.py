# SPDX-License-Identifier: Apache-2.0
"""The risk score, model 1.0: weighted factors, rounded half up, with every contribution. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from typing import Any

from app.errors import FieldError, Invalid

MODEL = "1.0"
WEIGHTS: Mapping[str, int] = {
    "privilege_impact": 20,
    "supply_chain_trust": 15,
    "sbom_vulnerability": 15,
    "exploitability": 10,
    "data_access": 10,
    "blast_radius": 10,
    "operational_complexity": 10,
    "history": 10,
}
CAB_ABOVE = 50
"""Scores above this need a decision of the change advisory board."""

ZERO, ONE = Decimal(0), Decimal(1)
CRITICAL = 1.0
"""``sbom_vulnerability`` at this value is a critical vulnerability without an exception."""


@dataclass(frozen=True, slots=True)
class Score:
    """``value`` is 0..100; ``breakdown`` is ``{factor, weight, value, contribution}``s in model order."""

    value: int
    breakdown: tuple[dict[str, Any], ...]


def score(factors: Mapping[str, float]) -> Score:
    """Weigh all eight factors.

    Raises:
        Invalid: a factor is missing, unknown or outside 0..1; each with its pointer below ``/risk_factors``.
    """
    if errors := _errors(factors):
        raise Invalid("the risk factors are not complete", *errors)
    weighed = [(name, weight, factors[name]) for name, weight in WEIGHTS.items()]
    contributions = [contribution(weight, value) for _, weight, value in weighed]
    breakdown = tuple(
        {"factor": name, "weight": weight, "value": float(value), "contribution": float(share)}
        for (name, weight, value), share in zip(weighed, contributions, strict=True)
    )
    return Score(int(sum(contributions, ZERO).quantize(ONE, ROUND_HALF_UP)), breakdown)


@lru_cache(maxsize=10_000)
def contribution(weight: int, value: float) -> Decimal:
    """The share of a factor in the score, exact in decimal. Kept: few values are in use."""
    return weight * Decimal(repr(abs(float(value))))  # -0.0 counts as 0


def _errors(factors: Mapping[str, float]) -> list[FieldError]:
    if factors.keys() == WEIGHTS.keys() and all(0 <= value <= 1 for value in factors.values()):
        return []
    missing = [
        FieldError(f"/risk_factors/{name}", "this factor is required")
        for name in WEIGHTS
        if name not in factors
    ]
    unknown = [
        FieldError(f"/risk_factors/{name}", "no such factor") for name in factors if name not in WEIGHTS
    ]
    outside = [
        FieldError(f"/risk_factors/{name}", "must be between 0 and 1")
        for name, value in factors.items()
        if name in WEIGHTS and not 0 <= value <= 1
    ]
    return missing + unknown + outside


def blast_radius(devices: int) -> float:
    """The blast-radius factor of a target of that many devices."""
    steps = ((10, 0.1), (100, 0.3), (1_000, 0.5), (10_001, 0.7))
    return next((factor for below, factor in steps if devices < below), 1.0)
