# SPDX-License-Identifier: Apache-2.0
"""What every connector is handed beside its settings."""

import ssl
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx

from app.connectors.sources import PACKAGE_SOURCE, FileRules
from app.resilience import (
    DEFAULT_RETRY,
    BreakerPolicy,
    Breakers,
    ResilientClient,
    RetryProfile,
    ServiceBreaker,
    create_resilient_client,
)
from app.resilience.auth import Authenticator
from app.resilience.http import text_of


@dataclass(frozen=True, slots=True)
class Services:
    """One per process. ``spool`` is a folder of its own on a disk with room for twice the largest package."""

    spool: Path
    files: FileRules = field(default_factory=FileRules)
    breakers: Breakers = field(default_factory=Breakers)
    profile: RetryProfile = DEFAULT_RETRY
    certificates: ssl.SSLContext | None = None
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def client(
        self,
        service: str,
        *,
        base_url: str = "",
        auth: Authenticator | httpx.Auth | None = None,
        max_concurrency: int = 10,
        profile: RetryProfile | None = None,
        describe: Callable[[httpx.Response], str] = text_of,
        transient: Collection[int] = (),
    ) -> ResilientClient:
        """A guarded client; clients of one service share its breaker."""
        return create_resilient_client(
            service,
            base_url=base_url,
            auth=auth,
            max_concurrency=max_concurrency,
            profile=profile or self.profile,
            breakers=self.breakers,
            verify=self.certificates,
            describe=describe,
            transient=transient,
        )

    def download_client(self) -> ResilientClient:
        """A client for one download, to be closed after it.

        Packages lie on hosts that have nothing to do with each other, so neither the service's breaker nor a
        queue is shared: a dead host costs its own downloads their attempts, and nobody has to wait for it.
        """
        never = BreakerPolicy(fail_max=sys.maxsize, minimum_calls=sys.maxsize)
        return create_resilient_client(
            PACKAGE_SOURCE,
            max_concurrency=1,
            profile=self.profile,
            breaker=ServiceBreaker(PACKAGE_SOURCE, never),
            verify=self.certificates,
            describe=_reason,
        )


def _reason(answer: httpx.Response) -> str:
    """The status' name: a file server's error page may repeat the address, with its secrets."""
    return answer.reason_phrase
