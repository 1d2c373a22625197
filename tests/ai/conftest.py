# SPDX-License-Identifier: Apache-2.0
"""Providers of real sockets, closed after the test."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest

from app.ai.catalogue import open_provider
from app.ai.contract import SERVICE, Ask, Provider, Reply
from app.ai.settings import AiSettings
from app.resilience import Breakers, ServiceBreaker
from tests.ai.dialects import ANTHROPIC, ASK, OPENAI, Dialect
from tests.resilience.misbehaving import Misbehaving

FIRST, IDLE = 10.0, 0.25
KEY = "sk-4711-very-secret"


class Connected:
    """A provider, and its breaker."""

    def __init__(self, provider: Provider, breaker: ServiceBreaker) -> None:
        self.provider = provider
        self.breaker = breaker

    async def ask(self, ask: Ask = ASK) -> Reply:
        """The whole answer, whose pieces must be its text."""
        *pieces, reply = await self.pieces(ask)
        assert isinstance(reply, Reply)
        assert "".join(map(str, pieces)) == reply.text
        assert all(pieces)
        return reply

    async def pieces(self, ask: Ask = ASK) -> list[str | Reply]:
        async with aclosing(self.provider.answer(ask)) as answer:
            return [piece async for piece in answer]


Connect = Callable[..., Any]


@pytest.fixture(params=[OPENAI, ANTHROPIC], ids=["openai", "anthropic"])
def dialect(request: pytest.FixtureRequest) -> Dialect:
    """Both wire formats, one after the other."""
    found: Dialect = request.param
    return found


@pytest.fixture
async def connect(dialect: Dialect) -> AsyncIterator[Connect]:
    """A provider of the dialect, at a server."""
    async with AsyncExitStack() as stack:

        async def connecting(server: Misbehaving, **settings: Any) -> Connected:
            usual = {"model": "m-1", "base_url": server.url, "api_key": KEY}
            limits = {"first_timeout": FIRST, "idle_timeout": IDLE}
            told = AiSettings.model_validate({"provider": dialect.name} | usual | limits | settings)
            breakers = Breakers()
            provider = await stack.enter_async_context(open_provider(told, breakers))
            return Connected(provider, breakers.get(SERVICE))

        yield connecting
