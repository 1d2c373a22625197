# SPDX-License-Identifier: Apache-2.0
"""A provider made of settings: where it is asked, with which key, and whether it is there."""

import pytest

from app.ai.catalogue import credentials, open_provider
from app.ai.settings import AiSettings
from app.resilience import Breakers
from app.resilience.errors import AuthError, PermanentError
from tests.ai.conftest import KEY, Connect
from tests.ai.dialects import ANTHROPIC, OPENAI, Dialect, Said, pouring, whole
from tests.connectors.contract_check import ABSENT, Exchange
from tests.logs import captured_lines
from tests.resilience.misbehaving import answer, misbehaving

OPENAI_MODEL = {"id": "m-1", "object": "model", "created": 1_790_000_000, "owned_by": "us"}
ANTHROPIC_MODEL = {
    "id": "m-1",
    "type": "model",
    "created_at": "2026-10-21T10:00:00Z",
    "display_name": "M 1",
}
LISTS = {
    "openai": {"object": "list", "data": [OPENAI_MODEL]},
    "anthropic": {"data": [ANTHROPIC_MODEL], "has_more": False, "first_id": "m-1", "last_id": "m-1"},
}
LIST_TARGETS = {"openai": "/models", "anthropic": "/v1/models?limit=1000"}


@pytest.mark.parametrize(
    ("provider", "settings", "headers"),
    [
        ("openai", {}, {"authorization": f"Bearer {KEY}"}),
        ("openai", {"key_header": "api-key"}, {"api-key": KEY}),
        ("openai", {"api_key": None}, {}),
        ("anthropic", {}, {"x-api-key": KEY}),
        ("anthropic", {"key_header": "authorization"}, {"authorization": f"Bearer {KEY}"}),
        ("anthropic", {"api_key": None}, {}),
    ],
)
async def test_the_key_goes_where_the_settings_say(
    provider: str, settings: dict[str, object], headers: dict[str, str]
) -> None:
    async with misbehaving(whole(LISTS[provider])) as server:
        told = {"provider": provider, "model": "m-1", "base_url": f"{server.url}/base/", "api_key": KEY}
        async with open_provider(AiSettings.model_validate(told | settings), Breakers()) as opened:
            await opened.check()
            assert (opened.name, opened.model) == (provider, "m-1")

    sent = server.received[0]
    names = {"authorization", "api-key", "x-api-key"}
    assert sent.target == f"/base{LIST_TARGETS[provider]}"
    assert {name: value for name, value in sent.headers.items() if name in names} == headers


async def test_a_check_tells_whether_the_model_is_listed(connect: Connect, dialect: Dialect) -> None:
    async with misbehaving(whole(LISTS[dialect.name])) as server:
        known = await (await connect(server)).provider.check()
        unknown = await (await connect(server, model="m-2")).provider.check()

    assert known == "127.0.0.1 answered and lists the model m-1"
    assert unknown == "127.0.0.1 answered and does not list the model m-2"
    if not dialect.contract.is_at_hand:
        pytest.skip(ABSENT)
    path, _, query = server.received[0].target.partition("?")
    exchange = Exchange("GET", path, query, b"", 200, str(LISTS[dialect.name]).encode(), staged=True)
    assert dialect.contract.problems(exchange) == []


async def test_a_check_finds_out_that_there_is_nobody_or_the_key_is_wrong(
    connect: Connect, dialect: Dialect
) -> None:
    async with misbehaving(answer(401), whole("<html>")) as server:
        connected = await connect(server)
        with pytest.raises(AuthError):
            await connected.provider.check()
        with pytest.raises(PermanentError):
            await connected.provider.check()


async def test_a_key_does_not_follow_to_another_host(connect: Connect, dialect: Dialect) -> None:
    async with misbehaving() as stranger, misbehaving(answer(302, Location=stranger.url)) as server:
        connected = await connect(server)
        with pytest.raises(PermanentError):
            await connected.provider.check()
        with pytest.raises(PermanentError):
            await connected.ask()

    assert stranger.received == []


async def test_a_key_is_in_no_log_and_no_repr(connect: Connect, dialect: Dialect) -> None:
    with captured_lines() as lines:
        async with misbehaving(answer(500, KEY.encode()), pouring(*dialect.events(Said()))) as server:
            connected = await connect(server)
            await connected.ask()
        logs = lines()

    settings = AiSettings.model_validate({"provider": dialect.name, "model": "m", "api_key": KEY})
    assert logs
    assert KEY not in repr(logs)
    assert KEY not in repr(connected.provider)
    assert KEY not in repr(credentials(settings))


def test_both_formats_have_a_dialect_in_these_tests() -> None:
    assert {OPENAI.name, ANTHROPIC.name} == {"openai", "anthropic"}
