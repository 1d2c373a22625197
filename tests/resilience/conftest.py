# SPDX-License-Identifier: Apache-2.0
"""Clients that are closed after the test."""

from collections.abc import AsyncIterator, Callable

import pytest

from app.resilience import (
    ResilientClient,
    RetryProfile,
    ServiceBreaker,
    create_resilient_client,
)
from tests.resilience.misbehaving import Misbehaving

QUICK = RetryProfile(attempts=3, shortest=0.01, longest=0.02, attempt_timeout=5.0, total=30.0)
Make = Callable[..., ResilientClient]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    clients: list[ResilientClient] = []

    def build(server: Misbehaving, **options: object) -> ResilientClient:
        defaults: dict[str, object] = {
            "profile": QUICK,
            "breaker": ServiceBreaker("intune"),
            "base_url": server.url,
        }
        client = create_resilient_client("intune", **(defaults | options))  # type: ignore[arg-type]
        clients.append(client)
        return client

    yield build
    for client in clients:
        await client.aclose()
