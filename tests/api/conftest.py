# SPDX-License-Identifier: Apache-2.0
"""The API on a database of the test's own: in process for most tests, on a socket where the wire matters."""

import asyncio
import copy
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from app.api.dependencies import Service
from app.api.examples import DEPLOYMENT_CREATE
from app.connectors.contract import Plane, Target, TargetKind
from app.domain import accounts, targets
from app.main import Server, create_app
from app.models import Ring, Role
from app.redis import open_redis
from app.runtime import Runtime
from app.settings import Settings
from tests.databases import Template
from tests.servers import Servers
from tests.waiting import eventually
from tests.wire import PLAIN

BOOTSTRAP = "eucora_bootstrap-for-tests"
NOBODY_LISTENS = "http://127.0.0.1:9"
"""Configures the planes without one being there: the API never calls them."""
HALF = {"jamf": {"client_id": SecretStr("me")}, "ansible": {"username": SecretStr("me")}}
"""Planes whose settings do not do, so that they are not configured."""

Submit = Callable[..., Awaitable[dict[str, Any]]]


OWN_DATABASE, STANDING_DATABASE = 9, 8
"""Redis' databases for tests that order breakers about, and for the application that outlives each test: what
processes on one database know of the breakers they tell each other, however often it is emptied."""


async def own_redis(settings: Settings, database: int = OWN_DATABASE) -> Settings:
    """The settings with an emptied database of Redis that no other application of these tests uses."""
    assert settings.redis_url is not None
    url = urlsplit(settings.redis_url.get_secret_value())
    own = (
        url._replace(query=f"db={database}") if url.scheme == "unix" else url._replace(path=f"/{database}")
    ).geturl()
    async with open_redis(own) as redis:
        await redis.flushdb()
    return settings.model_copy(update={"redis_url": SecretStr(own)})


@pytest.fixture
def api_settings(settings: Settings) -> Settings:
    """With a bootstrap token, and planes configured, of which two lack a setting."""
    own = {"bootstrap_token": SecretStr(BOOTSTRAP), "sandbox_url": NOBODY_LISTENS, "planes": HALF}
    return settings.model_copy(update=own)


@pytest.fixture
async def app(api_settings: Settings) -> AsyncIterator[FastAPI]:
    """The application, started."""
    async with started(api_settings) as app:
        yield app


@asynccontextmanager
async def started(settings: Settings) -> AsyncIterator[FastAPI]:
    """An application within its lifespan."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
def service(app: FastAPI) -> Service:
    """What the application's handlers work with."""
    found: Service = app.state.service
    return found


@pytest.fixture
def api_runtime(service: Service) -> Runtime:
    """The application's own runtime."""
    return service.runtime


@pytest.fixture(scope="session")
async def standing_app(template: Template, servers: Servers) -> AsyncIterator[FastAPI]:
    """One application for all tests that change nothing; with targets."""
    async with template.cloned() as url:
        settings = Settings(
            database_url=SecretStr(url),
            redis_url=SecretStr(servers.redis_url),
            gate_policy="demo",
            bootstrap_token=SecretStr(BOOTSTRAP),
            sandbox_url=NOBODY_LISTENS,
            planes=HALF,
        )
        async with started(await own_redis(settings, STANDING_DATABASE)) as app:
            await set_targets(app.state.service.runtime)
            yield app


@pytest.fixture
async def asker(standing_app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """May do everything, for requests that are refused or only read."""
    async with client_of(standing_app, BOOTSTRAP) as client:
        yield client


@pytest.fixture
async def stranger(standing_app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Has no token, for requests that are refused or only read."""
    async with client_of(standing_app) as client:
        yield client


@pytest.fixture
async def anybody(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a token."""
    async with client_of(app) as client:
        yield client


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client that may do everything."""
    async with client_of(app, BOOTSTRAP) as client:
        yield client


def client_of(app: FastAPI, token: str | None = None) -> httpx.AsyncClient:
    """A client that speaks to the application in process."""
    headers = {} if token is None else bearer(token)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(
        verify=PLAIN, transport=transport, base_url="http://api.test/api/v1", headers=headers
    )


def bearer(token: str) -> dict[str, str]:
    """The header that presents a token."""
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def token_for(api_runtime: Runtime) -> Callable[[Role], Awaitable[str]]:
    """Makes a stored token of a role."""

    async def make(role: Role) -> str:
        async with api_runtime.transaction() as session:
            _, text = await accounts.create_token(session, name=f"some {role.value}", role=role)
        return text

    return make


@pytest.fixture
async def all_targets(api_runtime: Runtime) -> None:
    """A group with ten counted devices for every ring of Intune."""
    await set_targets(api_runtime)


async def set_targets(runtime: Runtime) -> None:
    """A group with ten counted devices for every ring of Intune."""
    async with runtime.transaction() as session:
        for ring in Ring:
            target = Target(TargetKind.GROUP, f"group-{ring.value.lower()}")
            await targets.put(session, Plane.INTUNE, ring, target)
            await targets.counted(session, Plane.INTUNE, ring, target, devices=10, now=runtime.clock())


def intent(**changes: Any) -> dict[str, Any]:
    """The documented example with some fields changed; a field set to ``...`` is left out."""
    body = {**copy.deepcopy(DEPLOYMENT_CREATE), **changes}
    return {name: value for name, value in body.items() if value is not ...}


def key(text: str | None = None) -> dict[str, str]:
    """An idempotency key, a new one unless given."""
    return {"Idempotency-Key": text or str(uuid4())}


@pytest.fixture
def submit(client: httpx.AsyncClient, all_targets: None) -> Submit:
    """Submits an intent that is accepted; the answer's body."""

    async def send(**changes: Any) -> dict[str, Any]:
        response = await client.post("/deployments", json=intent(**changes), headers=key())
        assert response.status_code == 202, response.text
        answer: dict[str, Any] = response.json()
        return answer

    return send


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[str]:
    """The application behind a real socket; its base URL."""
    server = Server(app, port=0, lifespan="off", timeout_graceful_shutdown=2)
    serve = asyncio.create_task(server._serve())  # without its signal handlers: the test run has its own
    await eventually(lambda: server.started, within=10)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/api/v1"
    finally:
        server.should_exit = True
        await serve


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The body of an answer that must be this problem."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert body["code"] == code
    assert body["correlation_id"] == response.headers["x-correlation-id"]
    return body


def pointers(response: httpx.Response, code: str = "invalid") -> list[str]:
    """Where an invalid input is wrong."""
    return [wrong["pointer"] for wrong in problem(response, 422, code)["errors"]]
