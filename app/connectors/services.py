# SPDX-License-Identifier: Apache-2.0
"""What every connector is handed beside its settings."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from app.connectors.sources import FileRules
from app.resilience import DEFAULT_RETRY, Breakers, ResilientClient, RetryProfile, create_resilient_client
from app.resilience.auth import Authenticator
from app.resilience.http import text_of


def no_correlation_id() -> str | None:
    """Outside of any operation or request."""
    return None


@dataclass(frozen=True, slots=True)
class Services:
    """One per process. ``spool`` is a folder of its own on a disk with room for twice the largest package."""

    spool: Path
    files: FileRules = field(default_factory=FileRules)
    breakers: Breakers = field(default_factory=Breakers)
    correlation_id: Callable[[], str | None] = no_correlation_id
    profile: RetryProfile = DEFAULT_RETRY
    certificates: ssl.SSLContext | None = None

    def client(
        self,
        service: str,
        *,
        base_url: str = "",
        auth: Authenticator | None = None,
        max_concurrency: int = 10,
        profile: RetryProfile | None = None,
        describe: Callable[[httpx.Response], str] = text_of,
    ) -> ResilientClient:
        """A guarded client; clients of one service share its breaker."""
        return create_resilient_client(
            service,
            base_url=base_url,
            auth=auth,
            max_concurrency=max_concurrency,
            profile=profile or self.profile,
            breaker=self.breakers.get(service),
            correlation_id=self.correlation_id,
            verify=self.certificates,
            describe=describe,
        )
