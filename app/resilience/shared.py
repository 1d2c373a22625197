# SPDX-License-Identifier: Apache-2.0
"""What the processes of an installation tell each other about a service."""

from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn, Protocol

from app.resilience.errors import FleetUnreachable, Verdict
from app.resilience.status import BreakerState


@dataclass(frozen=True, slots=True)
class Shared:
    """What all processes know of a service. Instants are on this process's monotonic clock, 0: none.

    ``epoch`` rises with each change of state, ``revision`` with each change of anything: of two records the
    greater pair is the newer. ``sequence`` numbers the failures, ``failures`` counts those in a row.
    ``actor``, ``reason`` and ``expires_at`` are of an operator's order.
    """

    state: BreakerState = BreakerState.CLOSED
    epoch: int = 0
    revision: int = 0
    sequence: int = 0
    failures: int = 0
    reopens_at: float = 0.0
    lease_ends_at: float = 0.0
    expires_at: float = 0.0
    opened_at: datetime | None = None
    error: str | None = None
    actor: str | None = None
    reason: str | None = None


NEW = Shared()


class Fleet(Protocol):
    """The other processes. Nothing but ``ask`` waits for an answer, and that not for long."""

    def used(self, service: str) -> None:
        """The service is called again, after some time in which it was not."""

    def failed(self, service: str, number: int, *, tripped: bool) -> None:
        """A failure of our own, by its number; ``tripped``: we keep ourselves away since."""

    def succeeded(self, service: str, *, seen: int, own: int) -> None:
        """A call succeeded that began after the fleet's failure ``seen`` and our own failure ``own``."""

    def probed(self, service: str, token: str, outcome: Verdict, why: str | None) -> None:
        """How the fleet's probe ended."""

    def throttled(self, service: str, seconds: float) -> None:
        """The service asked everybody to pause."""

    async def ask(self, service: str, lease: float) -> str | None:
        """The token of the fleet's one probe for ``lease`` seconds; None: somebody else is it.

        Raises:
            FleetUnreachable: Redis is silent, this process decides alone.
        """


class Alone:
    """A process without a fleet decides alone, and tells nobody."""

    def used(self, service: str) -> None:
        """Nothing."""

    def failed(self, service: str, number: int, *, tripped: bool) -> None:
        """Nothing."""

    def succeeded(self, service: str, *, seen: int, own: int) -> None:
        """Nothing."""

    def probed(self, service: str, token: str, outcome: Verdict, why: str | None) -> None:
        """Nothing."""

    def throttled(self, service: str, seconds: float) -> None:
        """Nothing."""

    async def ask(self, service: str, lease: float) -> NoReturn:  # noqa: ARG002 - the protocol's
        """Nobody is there to be asked."""
        raise FleetUnreachable("there is no fleet", service=service)
