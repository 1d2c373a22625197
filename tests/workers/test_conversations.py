# SPDX-License-Identifier: Apache-2.0
"""Answers: found out, cited, written as they come, and ended within their time whatever the provider does."""

from collections.abc import AsyncIterator

import pytest

from app.models import MessageStatus
from app.settings import Settings
from tests.sandbox.stage import Stage
from tests.workers.assisted import Assisted, opened, stuck


@pytest.fixture(params=["openai", "anthropic"])
async def assisted(
    settings: Settings, stage: Stage, request: pytest.FixtureRequest
) -> AsyncIterator[Assisted]:
    """Each in both wire formats."""
    async with opened(settings, stage, provider=request.param) as made:
        yield made


async def test_a_question_is_answered_from_the_control_planes_own_data(assisted: Assisted) -> None:
    deployment_id = await stuck(assisted.runtime)

    answer = await assisted.answered("why is firefox stuck?")

    assert answer.status is MessageStatus.COMPLETE, answer.error
    assert "gate_not_met" in answer.content
    assert "0x87d1041c" in answer.content.lower()
    assert answer.citations == [{"id": str(deployment_id)}]
    assert answer.unverified == []
    asked = [call["name"] for step in answer.steps for call in step["calls"]]
    assert asked[0] == "find_deployments"
    assert {"read_blockers", "read_gates", "read_failures"} <= set(asked)


async def test_each_question_to_the_model_is_written_down(assisted: Assisted) -> None:
    await stuck(assisted.runtime)

    await assisted.answered("why is firefox stuck?")

    calls = await assisted.calls()
    assert len(calls) == len(await assisted.asked()) == 3
    for call in calls:
        assert call.ended_at is not None
        assert call.actor == "Alice"
        assert call.prompt == "conversation.v1"
        assert len(call.input_digest) == len(call.output_digest or "") == 64
        assert call.input_tokens > 0
        assert call.output_tokens > 0
    assert len({call.input_digest for call in calls}) == 3
