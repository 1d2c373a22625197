# SPDX-License-Identifier: Apache-2.0
"""Conversations over the API: what is said is taken once, one thing at a time, and not without limit."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import func, select, text

from app.domain import ai_calls, conversations, operations, outcomes
from app.domain.operations import Failure
from app.models import Message, Operation, OperationStatus, Role, new_id
from app.runtime import Runtime
from app.settings import Settings
from tests.api.conftest import BOOTSTRAP, NOBODY_LISTENS, bearer, client_of, key, problem, started

PATH = "/ai/conversations"
MakeToken = Callable[[Role], Awaitable[str]]


async def said(client: httpx.AsyncClient, content: str = "why?", path: str = PATH) -> dict[str, Any]:
    response = await client.post(path, json={"content": content}, headers=key())
    assert response.status_code == 202, response.text
    body: dict[str, Any] = response.json()
    return body


async def answer(runtime: Runtime, conversation: dict[str, Any], content: str = "so") -> None:
    """As a worker would."""
    message_id, now = UUID(conversation["messages"][-1]["id"]), runtime.clock()
    async with runtime.transaction() as session:
        await conversations.begin_turn(session, message_id, now=now)
        await conversations.complete(session, message_id, now=now, content=content, stop_reason="end")


async def stored(runtime: Runtime) -> tuple[int, int]:
    """Messages, and operations."""
    async with runtime.transaction() as session:
        counts = [
            await session.scalar(select(func.count()).select_from(each)) for each in (Message, Operation)
        ]
    return counts[0] or 0, counts[1] or 0


async def test_something_said_is_accepted_and_shown_with_the_answer_to_come(
    client: httpx.AsyncClient,
) -> None:
    response = await client.post(PATH, json={"content": "why is  firefox\nstuck?"}, headers=key())

    body = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/api/v1{PATH}/{body['id']}"
    assert response.headers["etag"] == '"1"'
    assert body["title"] == "why is firefox stuck?"
    assert body["answering"] is True
    question, pending = body["messages"]
    assert (question["sequence"], question["role"], question["status"]) == (1, "user", "COMPLETE")
    assert question["content"] == "why is  firefox\nstuck?"
    assert (pending["sequence"], pending["role"], pending["status"]) == (2, "assistant", "PENDING")
    assert pending["operation_id"] == body["operation_id"]
    operation = (await client.get(f"/operations/{body['operation_id']}")).json()
    assert operation["kind"] == "process_ai_conversation"
    assert operation["subject"] == {"type": "message", "id": pending["id"]}
    assert (await client.get(response.headers["location"].removeprefix("/api/v1"))).json() == body


async def test_a_secret_in_what_is_said_is_not_stored(
    client: httpx.AsyncClient, api_runtime: Runtime
) -> None:
    told = f"password: hunter22 with {BOOTSTRAP} and the password is wrong"

    body = await said(client, told)
    await answer(api_runtime, body)
    await said(client, told, f"{PATH}/{body['id']}/messages")

    shown = (await client.get(f"{PATH}/{body['id']}")).text
    async with api_runtime.transaction() as session:
        tables = ("messages", "conversations", "operations", "idempotency_keys")
        rows = [
            str((await session.execute(text(f"SELECT jsonb_agg(to_jsonb(t)) FROM {each} t"))).scalar())
            for each in tables
        ]
    for place in (shown, *rows):
        assert "hunter22" not in place
        assert BOOTSTRAP not in place
    assert "the password is wrong" in shown


async def test_a_repeat_with_the_same_key_says_nothing_more(
    client: httpx.AsyncClient, api_runtime: Runtime
) -> None:
    mine = key()
    first, *others = await asyncio.gather(
        *(client.post(PATH, json={"content": "why?"}, headers=mine) for _ in range(4))
    )
    await answer(api_runtime, first.json())
    more = key()
    path = f"{PATH}/{first.json()['id']}/messages"
    second, again = [await client.post(path, json={"content": "and?"}, headers=more) for _ in range(2)]

    assert {each.json()["id"] for each in others} == {first.json()["id"]}
    assert again.json() == second.json()
    assert again.headers["etag"] == second.headers["etag"]
    assert await stored(api_runtime) == (4, 2)
    other = await client.post(path, json={"content": "or?"}, headers=more)
    assert other.status_code in {409, 422}
    assert await stored(api_runtime) == (4, 2)


async def test_nothing_is_said_without_a_key(asker: httpx.AsyncClient) -> None:
    nobody = f"{PATH}/0199c0de-0000-7000-8000-00000000dead"

    for path in (PATH, f"{nobody}/messages"):
        response = await asker.post(path, json={"content": "why?"})
        assert response.status_code == 422
        assert "Idempotency-Key" in response.text
    problem(await asker.post(f"{nobody}/messages", json={"content": "x"}, headers=key()), 404, "not_found")
    problem(await asker.get(nobody), 404, "not_found")
    problem(await asker.get(f"{nobody}/events"), 404, "not_found")


@pytest.mark.parametrize("content", ["", "   ", "\u2028", "a\x00b", "x" * 8001, None, 7])
async def test_what_says_nothing_is_refused(asker: httpx.AsyncClient, content: object) -> None:
    response = await asker.post(PATH, json={"content": content}, headers=key())

    assert response.status_code == 422, response.text
    assert "content" in response.text or "NUL" in response.text


async def test_half_a_character_is_refused(asker: httpx.AsyncClient) -> None:
    headers = key() | {"Content-Type": "application/json"}

    response = await asker.post(PATH, content=b'{"content": "a\\ud800b"}', headers=headers)

    assert response.status_code in {400, 422}, response.text


async def test_while_one_message_is_answered_the_next_is_refused(
    client: httpx.AsyncClient, api_runtime: Runtime
) -> None:
    body = await said(client)
    path = f"{PATH}/{body['id']}/messages"

    problem(await client.post(path, json={"content": "and?"}, headers=key()), 409, "conversation_busy")
    await answer(api_runtime, body)
    told = await asyncio.gather(
        *(client.post(path, json={"content": f"and {each}?"}, headers=key()) for each in range(8))
    )

    assert sorted(each.status_code for each in told) == [202] + [409] * 7
    assert {each.json()["code"] for each in told if each.status_code == 409} == {"conversation_busy"}
    assert await stored(api_runtime) == (4, 2)


async def test_whoever_has_seen_another_version_is_refused(
    client: httpx.AsyncClient, api_runtime: Runtime
) -> None:
    body = await said(client)
    await answer(api_runtime, body)
    path = f"{PATH}/{body['id']}/messages"

    stale = await client.post(path, json={"content": "and?"}, headers={**key(), "If-Match": '"1"'})

    problem(stale, 412, "version_mismatch")
    current = (await client.get(f"{PATH}/{body['id']}")).headers["etag"]
    fresh = await client.post(path, json={"content": "and?"}, headers={**key(), "If-Match": current})
    assert fresh.status_code == 202
    assert fresh.headers["etag"] != current


async def test_a_conversation_with_as_many_messages_as_one_may_have_is_over(
    client: httpx.AsyncClient, api_runtime: Runtime
) -> None:
    body = await said(client)
    await answer(api_runtime, body)
    async with api_runtime.transaction() as session:
        await session.execute(text("UPDATE messages SET sequence = sequence + 198"))
        await session.execute(text("UPDATE conversations SET last_sequence = 200"))

    response = await client.post(f"{PATH}/{body['id']}/messages", json={"content": "and?"}, headers=key())

    assert "begin another" in problem(response, 409, "conversation_full")["detail"]


async def test_without_a_language_model_it_tells_what_to_set(api_settings: Settings) -> None:
    async with started(api_settings.model_copy(update={"sandbox_url": None})) as app:
        async with client_of(app, BOOTSTRAP) as client:
            response = await client.post(PATH, json={"content": "why?"}, headers=key())

        detail = problem(response, 409, "ai_not_configured")["detail"]
        assert "EUCORA_AI__PROVIDER" in detail
        assert "EUCORA_AI__API_KEY" in detail
        assert await stored(app.state.service.runtime) == (0, 0)


AI = {"provider": "openai", "model": "m", "base_url": NOBODY_LISTENS, "api_key": "sk-none"}


def limited(settings: Settings, **limits: str) -> Settings:
    return settings.model_copy(
        update={"ai": {name: SecretStr(value) for name, value in (AI | limits).items()}}
    )


async def test_each_caller_may_ask_so_much_in_a_day(api_settings: Settings) -> None:
    async with started(limited(api_settings, requests_per_day="3")) as app:
        async with client_of(app, BOOTSTRAP) as client:
            responses = await asyncio.gather(
                *(client.post(PATH, json={"content": "why?"}, headers=key()) for _ in range(8))
            )

        assert sorted(each.status_code for each in responses) == [202] * 3 + [429] * 5
        for refused in (each for each in responses if each.status_code == 429):
            problem(refused, 429, "ai_limit_reached")
            assert 1 <= int(refused.headers["retry-after"]) <= 86_400
        assert await stored(app.state.service.runtime) == (6, 3)


async def test_each_caller_may_spend_so_many_tokens_in_a_day(
    api_settings: Settings,
) -> None:
    async with started(limited(api_settings, tokens_per_day="100")) as app:
        runtime: Runtime = app.state.service.runtime
        facts: dict[str, Any] = {"provider": "openai", "model": "m", "prompt": "p", "input_digest": "0" * 64}
        async with runtime.transaction() as session:
            await ai_calls.begin(
                session,
                operation_id=new_id(),
                actor="bootstrap",
                now=runtime.clock(),
                input_tokens=100,
                **facts,
            )
        async with client_of(app, BOOTSTRAP) as client:
            refused = await client.post(PATH, json={"content": "why?"}, headers=key())

        problem(refused, 429, "ai_limit_reached")
        assert int(refused.headers["retry-after"]) >= 1
        assert await stored(runtime) == (0, 0)


async def test_what_one_has_spent_is_not_anothers(
    client: httpx.AsyncClient, api_runtime: Runtime, token_for: MakeToken
) -> None:
    tokens, asked = 3_000_000, "INSERT INTO ai_calls (id, operation_id, actor, provider, model, prompt, "
    async with api_runtime.transaction() as session:
        await session.execute(
            text(
                asked + "input_digest, input_tokens) VALUES (:id, :id, 'bootstrap', 'o', 'm', 'p', '0', :n)"
            ),
            {"id": new_id(), "n": tokens},
        )

    problem(await client.post(PATH, json={"content": "why?"}, headers=key()), 429, "ai_limit_reached")
    other = bearer(await token_for(Role.PACKAGER))
    response = await client.post(PATH, json={"content": "why?"}, headers={**key(), **other})

    assert response.status_code == 202


async def test_whoever_may_only_look_does_not_ask(client: httpx.AsyncClient, token_for: MakeToken) -> None:
    body, viewer = await said(client), bearer(await token_for(Role.VIEWER))

    refused = await client.post(PATH, json={"content": "why?"}, headers={**key(), **viewer})

    problem(refused, 403, "forbidden")
    assert (await client.get(f"{PATH}/{body['id']}", headers=viewer)).status_code == 200


async def test_conversations_are_listed_newest_first_and_by_who_began_them(
    client: httpx.AsyncClient, token_for: MakeToken
) -> None:
    ids = [(await said(client, f"question {each}"))["id"] for each in range(3)]
    other = bearer(await token_for(Role.PACKAGER))
    theirs = (await client.post(PATH, json={"content": "mine"}, headers={**key(), **other})).json()

    first = (await client.get(f"{PATH}?limit=2")).json()
    rest = (await client.get(PATH, params={"limit": 2, "cursor": first["next_cursor"]})).json()
    mine = (await client.get(PATH, params={"created_by": "bootstrap"})).json()

    assert [each["id"] for each in first["items"] + rest["items"]] == [theirs["id"], *reversed(ids)]
    assert [each["id"] for each in mine["items"]] == ids[::-1]
    assert "messages" not in first["items"][0]


async def test_an_answer_that_was_cancelled_can_be_had_after_all_until_something_else_is_said(
    client: httpx.AsyncClient, api_runtime: Runtime
) -> None:
    body = await said(client)
    operation = f"/operations/{body['operation_id']}"

    assert (await client.post(f"{operation}/cancel", headers=key())).status_code in {200, 202}
    cut = (await client.get(f"{PATH}/{body['id']}")).json()
    assert cut["answering"] is False
    assert (cut["messages"][-1]["status"], cut["messages"][-1]["error"]["code"]) == (
        "INCOMPLETE",
        "cancelled",
    )
    assert (await client.post(f"{operation}/retry", headers=key())).status_code in {200, 202}
    assert (await client.get(f"{PATH}/{body['id']}")).json()["messages"][-1]["status"] == "PENDING"
    await client.post(f"{operation}/cancel", headers=key())
    await said(client, "and?", f"{PATH}/{body['id']}/messages")
    problem(await client.post(f"{operation}/retry", headers=key()), 409, "illegal_transition")


async def test_whatever_a_model_said_can_be_shown(client: httpx.AsyncClient, api_runtime: Runtime) -> None:
    body = await said(client)
    message_id, now = UUID(body["messages"][-1]["id"]), api_runtime.clock()
    call = {"id": "1", "name": "n" * 64, "arguments": "x" * 100_001}
    step = {"text": "", "calls": [call] * 16, "results": [{"call_id": "1", "content": "", "is_error": True}]}
    ids = [{"id": str(new_id())} for _ in range(1000)]
    async with api_runtime.transaction() as session:
        await conversations.begin_turn(session, message_id, now=now)
        await conversations.keep_step(session, message_id, [step] * 10, draft=1)
        told: dict[str, Any] = {
            "content": "x" * 900_000,
            "citations": ids,
            "unverified": ids,
            "model": "m" * 200,
        }
        await conversations.complete(session, message_id, now=now, **told)

    response = await client.get(f"{PATH}/{body['id']}")

    assert response.status_code == 200
    calls = response.json()["messages"][-1]["tool_calls"]
    assert len(calls) == 160
    assert not any(each["ok"] for each in calls)
    assert {len(each["arguments"]) for each in calls} == {conversations.LONGEST_SHOWN + 1}


async def test_what_is_kept_for_repetitions_does_not_grow_with_the_conversation(
    client: httpx.AsyncClient, api_runtime: Runtime
) -> None:
    body = await said(client, "first")
    for number in range(3):
        await answer(api_runtime, body, f"answer {number}")
        body = await said(client, f"question {number}", f"{PATH}/{body['id']}/messages")

        assert [each["content"] for each in body["messages"]] == [f"question {number}", ""]
        assert body["answering"] is True
        whole = (await client.get(f"{PATH}/{body['id']}")).json()
        assert whole["messages"][-2:] == body["messages"]
        assert len(whole["messages"]) == 4 + 2 * number


async def test_an_answer_broken_off_keeps_what_there_was(
    client: httpx.AsyncClient, api_runtime: Runtime
) -> None:
    body = await said(client)
    message_id, now = UUID(body["messages"][-1]["id"]), api_runtime.clock()
    async with api_runtime.transaction() as session:
        await conversations.begin_turn(session, message_id, now=now)
        await conversations.keep_text(session, message_id, "as far as", draft=1)
        failure = Failure("transient", "deadline", "no more time", "ai_provider")
        operation = await operations.lock(session, UUID(body["operation_id"]))
        await operations.end(
            session, operation, OperationStatus.FAILED, failure=failure, ended=outcomes.operation_ended
        )

    shown = (await client.get(f"{PATH}/{body['id']}")).json()["messages"][-1]

    assert (shown["status"], shown["content"]) == ("INCOMPLETE", "as far as")
    assert (shown["error"]["code"], shown["error"]["service"]) == ("deadline", "ai_provider")
