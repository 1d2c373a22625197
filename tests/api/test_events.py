# SPDX-License-Identifier: Apache-2.0
"""The history of a deployment: as a list, and live over a socket."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import event, update
from sqlalchemy.engine import Connection

from app.domain import deployments, rollout
from app.main import Server
from app.models import DeploymentStatus, Operation, OperationStatus
from app.runtime import Runtime
from tests.api.conftest import BOOTSTRAP, Submit, bearer, problem, serving
from tests.waiting import eventually
from tests.wire import PLAIN

STREAM = {"Accept": "text/event-stream"}


async def move(runtime: Runtime, deployment_id: str, *statuses: DeploymentStatus) -> None:
    for status in statuses:
        async with runtime.transaction() as session:
            deployment = await deployments.lock(session, UUID(deployment_id))
            await deployments.move(session, deployment, status, now=runtime.clock())
            if status in rollout.FINAL:  # then nothing is at work for it any more
                done = update(Operation).values(status=OperationStatus.SUCCEEDED)
                await session.execute(done.where(Operation.deployment_id == deployment.id))


class TestList:
    async def test_events_come_in_order_and_in_pages(
        self, client: httpx.AsyncClient, submit: Submit, api_runtime: Runtime
    ) -> None:
        submitted = await submit()
        await move(api_runtime, submitted["id"], DeploymentStatus.DEPLOYING, DeploymentStatus.COMPLETED)
        path = f"/deployments/{submitted['id']}/events"

        first = (await client.get(f"{path}?limit=2")).json()
        rest = (await client.get(path, params={"cursor": first["next_cursor"]})).json()
        later = (await client.get(f"{path}?after=2")).json()

        told = first["items"] + rest["items"]
        assert [item["sequence"] for item in told] == [1, 2, 3]
        assert [item["type"] for item in told] == [
            "deployment.submitted",
            "deployment.deploying",
            "deployment.completed",
        ]
        assert told[0]["actor"] == "bootstrap"
        assert told[1]["before"] == {"status": "PENDING"}
        assert {item["correlation_id"] for item in told} == {submitted["correlation_id"]}
        assert rest["next_cursor"] is None
        assert later["items"] == rest["items"]

    @pytest.mark.parametrize(
        "accept", ["*/*", "application/json", "application/json, text/event-stream;q=0.5", ""]
    )
    async def test_json_is_what_one_gets_unless_one_prefers_a_stream(
        self, client: httpx.AsyncClient, submit: Submit, accept: str
    ) -> None:
        submitted = await submit()
        response = await client.get(f"/deployments/{submitted['id']}/events", headers={"Accept": accept})

        assert response.headers["content-type"] == "application/json"


class TestStream:
    @pytest.fixture
    async def base_url(self, app: FastAPI) -> AsyncIterator[str]:
        async with serving(app) as base_url:
            yield base_url

    async def test_it_tells_what_happens_and_ends_with_the_final_event(
        self, base_url: str, submit: Submit, api_runtime: Runtime
    ) -> None:
        submitted = await submit()
        async with streaming(base_url, submitted["id"]) as (response, messages):
            first = await anext(messages)
            await move(api_runtime, submitted["id"], DeploymentStatus.DEPLOYING)
            second = await anext(messages)
            await move(api_runtime, submitted["id"], DeploymentStatus.COMPLETED)
            rest = [message async for message in messages]

        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-correlation-id"]
        assert [identity for identity, _ in (first, second, *rest)] == [1, 2, 3]
        assert second[1]["after"] == {"status": "DEPLOYING"}
        assert rest[-1][1]["type"] == "deployment.completed"

    async def test_what_it_tells_is_what_the_list_tells(
        self, base_url: str, client: httpx.AsyncClient, submit: Submit, api_runtime: Runtime
    ) -> None:
        submitted = await submit()
        await move(api_runtime, submitted["id"], DeploymentStatus.DEPLOYING, DeploymentStatus.FAILED)

        async with streaming(base_url, submitted["id"]) as (_, messages):
            streamed = [told async for _, told in messages]

        listed = (await client.get(f"/deployments/{submitted['id']}/events")).json()
        assert streamed == listed["items"]

    async def test_it_goes_on_where_it_was_cut(
        self, base_url: str, submit: Submit, api_runtime: Runtime
    ) -> None:
        submitted = await submit()
        await move(api_runtime, submitted["id"], DeploymentStatus.DEPLOYING, DeploymentStatus.COMPLETED)

        for last, expected in (("1", [2, 3]), ("3", []), ("99", [])):
            async with streaming(base_url, submitted["id"], {"Last-Event-ID": last}) as (_, messages):
                assert [identity async for identity, _ in messages] == expected

    async def test_many_streams_cost_what_one_does(
        self, base_url: str, submit: Submit, api_runtime: Runtime
    ) -> None:
        submitted = await submit()
        reads: list[str] = []

        def seen(_: Connection, __: Any, statement: str, *___: Any) -> None:
            if "FROM events" in statement:
                reads.append(statement)

        async def follow() -> list[int]:
            async with streaming(base_url, submitted["id"]) as (_, messages):
                ready.append(await anext(messages))
                return [identity async for identity, _ in messages]

        ready: list[Any] = []
        followers = [asyncio.create_task(follow()) for _ in range(20)]
        await eventually(lambda: len(ready) == 20, within=10)
        event.listen(api_runtime.engine.sync_engine, "before_cursor_execute", seen)
        await move(api_runtime, submitted["id"], DeploymentStatus.DEPLOYING, DeploymentStatus.COMPLETED)
        told = await asyncio.gather(*followers)

        assert told == [[2, 3]] * 20
        assert len(reads) < 10

    async def test_a_stream_of_nothing_is_404(self, base_url: str) -> None:
        async with httpx.AsyncClient(verify=PLAIN, headers=bearer(BOOTSTRAP)) as client:
            path = f"{base_url}/deployments/0199c0de-0000-7000-8000-00000000dead/events"
            problem(await client.get(path, headers=STREAM), 404, "not_found")

    async def test_an_open_stream_does_not_keep_the_process_from_stopping(
        self, app: FastAPI, submit: Submit
    ) -> None:
        submitted = await submit()
        server = Server(app, port=0, lifespan="off", timeout_graceful_shutdown=30)
        serve = asyncio.create_task(server._serve())
        await eventually(lambda: server.started, within=10)
        port = server.servers[0].sockets[0].getsockname()[1]

        async with streaming(f"http://127.0.0.1:{port}/api/v1", submitted["id"]) as (_, messages):
            await anext(messages)
            server.should_exit = True
            assert [message async for message in messages] == []
        async with asyncio.timeout(20):
            await serve


@asynccontextmanager
async def streaming(
    base_url: str, deployment_id: str, headers: dict[str, str] | None = None
) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[tuple[int, dict[str, Any]]]]]:
    """An open stream: the response, and its messages as (id, data); one that does not end fails the test."""
    async with (
        asyncio.timeout(60),
        httpx.AsyncClient(verify=PLAIN, headers={**bearer(BOOTSTRAP), **STREAM}, timeout=20) as client,
        client.stream("GET", f"{base_url}/deployments/{deployment_id}/events", headers=headers) as response,
    ):
        assert response.status_code == 200
        yield response, messages_of(response)


async def messages_of(response: httpx.Response) -> AsyncIterator[tuple[int, dict[str, Any]]]:
    identity = 0
    async for line in response.aiter_lines():
        if line.startswith("id: "):
            identity = int(line.removeprefix("id: "))
        elif line.startswith("data: "):
            yield identity, json.loads(line.removeprefix("data: "))
