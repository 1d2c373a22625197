# SPDX-License-Identifier: Apache-2.0
"""Breakers over HTTP: the record that all processes share, and the orders of operators."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from app.models import Role
from app.redis import open_hasty_redis
from app.resilience import SERVICES, Breakers, BreakerState
from app.resilience.errors import Verdict
from app.settings import Settings
from tests.api.conftest import (
    BOOTSTRAP,
    Submit,
    bearer,
    client_of,
    key,
    own_redis,
    pointers,
    problem,
    started,
)
from tests.waiting import eventually

SOON = 1.0
"""Seconds within which an order is known everywhere; other tests hold that it takes a quarter of one."""


@pytest.fixture
async def api_settings(api_settings: Settings) -> Settings:
    """On a Redis that nobody else looks at."""
    return await own_redis(api_settings)


@pytest.fixture
async def others(api_settings: Settings, app: FastAPI) -> AsyncIterator[Breakers]:
    """Those of another process of the same installation."""
    assert api_settings.redis_url is not None
    breakers = Breakers()
    url = api_settings.redis_url.get_secret_value()
    async with open_hasty_redis(url) as redis, breakers.shared(redis, process="worker:elsewhere"):
        yield breakers


async def fail(breakers: Breakers, service: str, times: int) -> None:
    for _ in range(times):
        (await breakers.get(service).admit()).settle(Verdict.FAILURE, "transient (503)")


async def read(client: httpx.AsyncClient, service: str) -> dict[str, Any]:
    body: dict[str, Any] = (await client.get(f"/breakers/{service}")).json()
    return body


async def test_every_service_is_listed_with_its_policy(client: httpx.AsyncClient) -> None:
    items = {item["service"]: item for item in (await client.get("/breakers")).json()["items"]}

    assert list(items) == list(SERVICES)
    assert {item["state"] for item in items.values()} == {"closed"}
    assert (items["intune"]["fail_max"], items["intune"]["reset_timeout"]) == (5, 60.0)
    assert items["database"]["reset_timeout"] == 30.0
    policy = items["intune"]["policy"]
    assert (policy["failure_rate"], policy["minimum_calls"], policy["quorum"]) == (0.5, 20, 2)
    graph = policy["clients"][0]
    assert (graph["attempts"], graph["attempt_timeout"], graph["total_timeout"]) == (3, 30.0, 110.0)


async def test_pages_of_breakers(client: httpx.AsyncClient) -> None:
    first = (await client.get("/breakers?limit=10")).json()
    second = (await client.get("/breakers", params={"cursor": first["next_cursor"]})).json()

    assert [item["service"] for item in first["items"] + second["items"]] == list(SERVICES)
    assert second["next_cursor"] is None


async def test_what_is_shown_is_what_other_processes_saw(client: httpx.AsyncClient, others: Breakers) -> None:
    await fail(others, "jamf", 5)

    opened = await eventually(
        lambda: read(client, "jamf"), until=lambda now: now["state"] == "open", within=5
    )

    assert opened["fail_counter"] == 5
    assert opened["last_error"] == "transient (503)"
    assert opened["opened_at"] < opened["retry_at"]
    assert opened["open_in"] == []


async def test_an_unknown_service_is_not_found_and_the_known_ones_are_named(
    client: httpx.AsyncClient,
) -> None:
    for method, path in [
        ("GET", "/breakers/nobody"),
        ("GET", "/breakers/nobody/events"),
        ("POST", "/breakers/nobody/reset"),
        ("POST", "/breakers/nobody/isolate"),
    ]:
        body = problem(await client.request(method, path), 404, "not_found")
        assert "vulnerability_scanner" in body["detail"]


async def test_a_reset_closes_it_in_every_process_and_is_written_down(
    client: httpx.AsyncClient, others: Breakers
) -> None:
    await fail(others, "jamf", 5)
    assert others.get("jamf").admit_now() is None
    await eventually(lambda: read(client, "jamf"), until=lambda now: now["state"] == "open", within=5)

    response = await client.post("/breakers/jamf/reset", json={"reason": "the vendor says it is well"})

    assert response.status_code == 202
    assert response.json()["state"] == "closed"
    await eventually(lambda: others.get("jamf").admit_now(), within=SOON)
    (event,) = (await client.get("/breakers/jamf/events")).json()["items"]
    assert (event["type"], event["actor"]) == ("breaker.reset", "bootstrap")
    assert (event["before"]["state"], event["after"]["reason"]) == ("open", "the vendor says it is well")
    assert event["correlation_id"] == response.headers["x-correlation-id"]


async def test_a_reset_reaches_a_process_that_has_told_nobody_yet_that_it_keeps_away(
    client: httpx.AsyncClient, others: Breakers
) -> None:
    jamf = others.get("jamf")
    jamf.open()
    assert jamf.admit_now() is None
    assert (await read(client, "jamf"))["state"] == "closed"

    await client.post("/breakers/jamf/reset")

    await eventually(jamf.admit_now, within=SOON)


async def test_an_isolated_service_is_left_alone_by_every_process_until_it_is_enabled(
    client: httpx.AsyncClient, others: Breakers
) -> None:
    isolated = await client.post("/breakers/sccm/isolate", json={"reason": "maintenance"})
    await eventually(lambda: others.get("sccm").admit_now() is None, within=SOON)
    again = await client.post("/breakers/sccm/isolate", json={"reason": "maintenance"})
    enabled = await client.post("/breakers/sccm/enable")
    await eventually(lambda: others.get("sccm").admit_now(), within=SOON)
    nothing = await client.post("/breakers/sccm/enable")

    shown = isolated.json()
    assert (shown["state"], shown["actor"], shown["reason"]) == ("isolated", "bootstrap", "maintenance")
    assert {response.status_code for response in (isolated, again, enabled, nothing)} == {202}
    assert enabled.json()["state"] == nothing.json()["state"] == "closed"
    events = (await client.get("/breakers/sccm/events")).json()["items"]
    assert [event["type"] for event in events] == ["breaker.enabled", "breaker.isolated"]


async def test_an_order_ends_by_itself(client: httpx.AsyncClient, others: Breakers) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=1)

    response = await client.post("/breakers/sccm/isolate", json={"expires_at": soon.isoformat()})
    kept_away = await eventually(lambda: others.get("sccm").admit_now() is None, within=SOON)

    assert kept_away
    assert response.json()["expires_at"] is not None
    await eventually(lambda: read(client, "sccm"), until=lambda now: now["state"] == "closed", within=5)
    await eventually(lambda: others.get("sccm").admit_now(), within=5)


async def test_another_end_or_reason_is_another_order(client: httpx.AsyncClient) -> None:
    ends = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    for body in ({"expires_at": ends}, {"expires_at": ends}, {"expires_at": ends, "reason": "longer"}, {}):
        assert (await client.post("/breakers/sccm/disable", json=body)).status_code == 202

    events = (await client.get("/breakers/sccm/events")).json()["items"]
    assert len(events) == 3
    assert (await read(client, "sccm"))["state"] == "disabled"


@pytest.mark.parametrize("days", [-1, 400])
async def test_an_order_that_is_over_or_endless_is_refused(client: httpx.AsyncClient, days: int) -> None:
    ends = (datetime.now(UTC) + timedelta(days=days)).isoformat()

    response = await client.post("/breakers/sccm/isolate", json={"expires_at": ends})

    assert pointers(response) == ["/expires_at"]


async def test_the_database_cannot_be_isolated(client: httpx.AsyncClient) -> None:
    problem(await client.post("/breakers/database/isolate"), 409, "cannot_isolate")


async def test_a_disabled_breaker_lets_everybody_through_whatever_fails(
    client: httpx.AsyncClient, others: Breakers
) -> None:
    await client.post("/breakers/jamf/disable")
    jamf = others.get("jamf")
    await eventually(lambda: jamf.effective is BreakerState.DISABLED, within=SOON)

    await fail(others, "jamf", 20)

    assert jamf.admit_now() is not None


async def test_the_history_of_a_deployment_says_why_it_waits(
    client: httpx.AsyncClient, submit: Submit
) -> None:
    submitted = await submit()

    await client.post("/breakers/intune/isolate", json={"reason": "the tenant moves"})

    events = (await client.get(f"/deployments/{submitted['id']}/events")).json()["items"]
    (told,) = [event for event in events if event["type"] == "breaker.isolated"]
    assert (told["actor"], told["after"]["reason"]) == ("bootstrap", "the tenant moves")
    assert told["correlation_id"] == submitted["correlation_id"]


async def test_only_an_admin_gives_orders(app: FastAPI, token_for: Callable[[Role], Awaitable[str]]) -> None:
    for role in Role:
        async with client_of(app) as caller:
            headers = bearer(await token_for(role))
            assert (await caller.get("/breakers/jira", headers=headers)).status_code == 200
            answer = await caller.post("/breakers/jira/isolate", headers=headers)
        assert answer.status_code == (202 if role is Role.ADMIN else 403), role


async def test_an_order_may_be_repeated_under_its_key(client: httpx.AsyncClient) -> None:
    headers = key()
    first = await client.post("/breakers/jira/isolate", headers=headers)
    second = await client.post("/breakers/jira/isolate", headers=headers)

    assert second.headers["idempotency-replayed"] == "true"
    assert second.json() == first.json()


async def test_without_redis_nothing_is_pretended_and_nothing_written(
    api_settings: Settings, unused_tcp_port: int
) -> None:
    away = SecretStr(f"redis://127.0.0.1:{unused_tcp_port}/0")
    settings = api_settings.model_copy(update={"redis_url": away})
    async with started(settings) as app, client_of(app, BOOTSTRAP) as client:
        for response in (
            await client.get("/breakers"),
            await client.get("/breakers/intune"),
            await client.post("/breakers/intune/isolate"),
        ):
            problem(response, 503, "unavailable")
            assert int(response.headers["retry-after"]) >= 1
        assert (await client.get("/breakers/intune/events")).json()["items"] == []
