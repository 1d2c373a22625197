# SPDX-License-Identifier: Apache-2.0
"""What is counted of the calls out, per service; no label ever holds an id."""

from enum import StrEnum

from prometheus_client import Counter, Gauge

from app.resilience.tally import Tallies, Tally
from app.telemetry import registry

tallies = Tallies()
registry.register(tallies)
retries = Counter(
    "eucora_call_retries_total", "Attempts after the first.", ("service", "reason"), registry=registry
)
rejections = Counter(
    "eucora_call_rejections_total",
    "Calls not begun (circuit_open, throttled, local_saturation, deadline) and retries (retry_budget).",
    ("service", "reason"),
    registry=registry,
)
throttles = Counter(
    "eucora_call_throttles_total", "Pauses that services asked for.", ("service",), registry=registry
)
transitions = Counter(
    "eucora_breaker_transitions_total",
    "Changes of a breaker's state as this process sees it.",
    ("service", "state"),
    registry=registry,
)
states = Gauge(
    "eucora_breaker_state",
    "1 for the state of a breaker as this process sees it, 0 for the others.",
    ("service", "state"),
    registry=registry,
)
stale_results = Counter(
    "eucora_breaker_stale_results_total",
    "Outcomes that came after the breaker had changed its state, and were not counted.",
    ("service",),
    registry=registry,
)
slow_statements = Counter(
    "eucora_database_slow_total", "Statements that ran into a time limit of the database.", registry=registry
)
fleet_failures = Counter(
    "eucora_fleet_failures_total", "Exchanges with Redis about breakers that failed.", registry=registry
)
fleet_dropped = Counter(
    "eucora_fleet_dropped_total",
    "Reports about breakers that were not sent, because too many waited or Redis was away.",
    registry=registry,
)


def tally(service: str) -> Tally:
    """One service's attempts: looked up once, it is on the path of every call."""
    return tallies.of(service)


def retried(service: str, reason: str) -> None:
    """An attempt is repeated because of an error of that code."""
    retries.labels(service, reason).inc()


def rejected(service: str, reason: str) -> None:
    """A call or a retry was not begun."""
    rejections.labels(service, reason).inc()


def throttled(service: str) -> None:
    """The service asked for a pause."""
    throttles.labels(service).inc()


def moved(service: str, state: StrEnum) -> None:
    """A breaker changed its state."""
    transitions.labels(service, state.value).inc()
    shows(service, state)


def shows(service: str, state: StrEnum) -> None:
    """The state of a breaker as this process sees it, among all that a breaker may have."""
    for each in type(state):
        states.labels(service, each.value).set(each is state)
