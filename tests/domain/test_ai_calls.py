# SPDX-License-Identifier: Apache-2.0
"""How much one caller may have between two midnights, UTC."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.domain import ai_calls, conversations
from app.domain.accounts import BOOTSTRAP, Actor
from app.domain.ai_calls import Allowance
from app.errors import AiLimitReached
from app.models import Role, new_id
from app.runtime import Runtime

MIDNIGHT = datetime(2026, 11, 27, tzinfo=UTC)
INSTANT = timedelta(microseconds=1)
FACTS: dict[str, Any] = {"provider": "openai", "model": "m", "prompt": "p", "input_digest": "0" * 64}
OTHER = Actor(new_id(), "Bob", Role.PACKAGER)


async def spend(runtime: Runtime, now: datetime, tokens: int) -> None:
    async with runtime.transaction() as session:
        told: dict[str, Any] = {"operation_id": new_id(), "actor": BOOTSTRAP.name, "now": now}
        call_id = await ai_calls.begin(session, **told, input_tokens=tokens - 10, **FACTS)
        await ai_calls.end(session, call_id, now=now, output_tokens=10)


async def ask(runtime: Runtime, now: datetime, allowance: Allowance, actor: Actor = BOOTSTRAP) -> None:
    async with runtime.transaction() as session:
        told: dict[str, Any] = {"actor": actor, "correlation_id": new_id(), "allowance": allowance}
        await conversations.begin(session, "why?", **told, now=now)


async def test_tokens_of_yesterday_do_not_count(runtime: Runtime) -> None:
    allowance = Allowance(requests=100, tokens=100)
    await spend(runtime, MIDNIGHT - INSTANT, 500)
    await spend(runtime, MIDNIGHT, 99)
    await ask(runtime, MIDNIGHT, allowance)
    await spend(runtime, MIDNIGHT + INSTANT, 11)

    with pytest.raises(AiLimitReached) as refused:
        await ask(runtime, MIDNIGHT + timedelta(hours=23), allowance)

    assert refused.value.retry_after == 3600
    assert "110 of 100 tokens" in refused.value.detail
    await ask(runtime, MIDNIGHT + timedelta(hours=23), allowance, OTHER)
    await ask(runtime, MIDNIGHT + timedelta(hours=24), allowance)


async def test_questions_of_yesterday_do_not_count(runtime: Runtime) -> None:
    allowance = Allowance(requests=2, tokens=100)
    await ask(runtime, MIDNIGHT - INSTANT, allowance)
    await ask(runtime, MIDNIGHT, allowance)
    await ask(runtime, MIDNIGHT, allowance)

    with pytest.raises(AiLimitReached) as refused:
        await ask(runtime, MIDNIGHT, allowance)

    assert refused.value.retry_after == 24 * 3600
    await ask(runtime, MIDNIGHT, allowance, OTHER)
    await ask(runtime, MIDNIGHT + timedelta(days=1), allowance)
