# SPDX-License-Identifier: Apache-2.0
"""A sandbox of each test's own, behind one real socket for all."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox.main import create_app, serving
from tests.sandbox.contract import FOLDER, Contract
from tests.sandbox.tenant import Clock, Tenant


@dataclass
class Stage:
    """Serves whichever sandbox is on, for starting a server takes longer than most tests."""

    app: ASGIApp | None = None
    url: str = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await follow_lifespan(receive, send)
        elif self.app is not None:
            await self.app(scope, receive, send)


async def follow_lifespan(receive: Receive, send: Send) -> None:
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    stage = Stage()
    with serving(stage) as stage.url:
        yield stage


@pytest.fixture(scope="session")
def graph_contract() -> Contract | None:
    """Graph v1.0, where the contracts are at hand."""
    path = FOLDER / "microsoft-graph.openapi.json"
    return Contract(path, below="/intune/v1.0") if path.exists() else None


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def tenant(stage: Stage, clock: Clock, graph_contract: Contract | None) -> AsyncIterator[Tenant]:
    app = create_app(clock=clock)
    async with app.router.lifespan_context(app):
        stage.app = app
        tenant = Tenant(stage.url, clock, graph_contract)
        yield tenant
        tenant.close()
