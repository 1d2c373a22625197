# SPDX-License-Identifier: Apache-2.0
"""What can be read of a service's breaker: the state that all processes share, and the policy in force."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType

from app.resilience.retry import RetryProfile

SERVICES = (
    "intune",
    "jamf",
    "sccm",
    "landscape",
    "ansible",
    "servicenow",
    "jira",
    "freshservice",
    "splunk",
    "elastic",
    "datadog",
    "entra_id",
    "active_directory",
    "defender",
    "vulnerability_scanner",
    "ai_provider",
    "database",
    "external_api",
)


class UnknownService(ValueError):
    """No such service; the message lists the known ones."""

    def __init__(self, service: str) -> None:
        super().__init__(f"unknown service {service!r}; known are {', '.join(SERVICES)}")
        self.service = service


class BreakerState(StrEnum):
    """``isolated``: an operator keeps everybody away. ``disabled``: an operator lets everybody through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    ISOLATED = "isolated"
    DISABLED = "disabled"


FORCED = frozenset({BreakerState.ISOLATED, BreakerState.DISABLED})
"""What only an operator brings about, and no outcome of a call changes."""


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When a breaker opens, and for how long; times in seconds.

    It opens after ``fail_max`` failures in a row, or when of at least ``minimum_calls`` within ``window`` the
    share ``failure_rate`` failed, and lets one probe through ``reset_timeout`` later. The fleet opens when
    failures come from ``quorum`` processes, or from the only one that uses the service.
    """

    fail_max: int = 5
    reset_timeout: float = 60.0
    failure_rate: float = 0.5
    minimum_calls: int = 20
    window: float = 60.0
    quorum: int = 2

    def __post_init__(self) -> None:
        positive = self.fail_max, self.minimum_calls, self.quorum, self.reset_timeout, self.window
        if min(positive) <= 0 or not 0 < self.failure_rate <= 1:
            raise ValueError(f"a breaker's numbers must be above zero, its failure rate at most 1: {self}")


DEFAULT_POLICY = BreakerPolicy()
DEFAULTS: Mapping[str, BreakerPolicy] = MappingProxyType({"database": BreakerPolicy(reset_timeout=30.0)})


@dataclass(frozen=True, slots=True)
class ClientPolicy:
    """How one client of this process calls: how many at once, how many may queue, and how patiently."""

    profile: RetryProfile
    max_concurrency: int
    max_waiting: int


@dataclass(frozen=True, slots=True)
class StandingOrder:
    """What an operator orders of a service: ISOLATED or DISABLED until ``expires_at``; or CLOSED."""

    service: str
    state: BreakerState
    actor: str
    reason: str | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class BreakerStatus:
    """A service's breaker as all processes see it.

    ``fail_counter``: failures in a row. ``opened_at`` and ``retry_at`` (the next probe) only while it is open
    or half open. ``open_in``: the processes that keep themselves away though the fleet does not.
    ``actor``, ``reason``, ``expires_at``: of an operator's order that is in force. ``throttled_until``: the
    service asked everybody to wait.
    """

    service: str
    state: BreakerState
    policy: BreakerPolicy
    fail_counter: int = 0
    opened_at: datetime | None = None
    retry_at: datetime | None = None
    last_error: str | None = None
    open_in: tuple[str, ...] = ()
    actor: str | None = None
    reason: str | None = None
    expires_at: datetime | None = None
    throttled_until: datetime | None = None
    clients: tuple[ClientPolicy, ...] = field(default=())

    @property
    def fail_max(self) -> int:
        """As in the policy."""
        return self.policy.fail_max

    @property
    def reset_timeout(self) -> float:
        """As in the policy; seconds."""
        return self.policy.reset_timeout
