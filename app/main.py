# SPDX-License-Identifier: Apache-2.0
"""The API process: lifespan, middleware, routers, problems, document."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from socket import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.middleware import Middleware

from app import telemetry
from app.api import (
    ai_tasks,
    approvals,
    blockers,
    breakers,
    commands,
    conversations,
    deployments,
    devices,
    drift,
    effects,
    events,
    forecast,
    freezes,
    gates,
    health,
    intents,
    operations,
    planes,
    targets,
)
from app.api.dependencies import Service
from app.api.middleware import Edge
from app.api.openapi import DESCRIPTION, TAGS, document
from app.api.problems import HANDLERS
from app.api.reference import add_reference
from app.clock import SharedClock, begun
from app.runtime import check_settings, collect_less, database_time, keep_policy, open_runtime, restore_orders
from app.settings import Settings

VERSION = "0.1.0"
STARTING = 2.0
"""Seconds for which a database that does not answer may keep the API from being there."""
ROUTERS = (
    intents.router,
    forecast.router,
    deployments.router,
    commands.router,
    blockers.router,
    gates.router,
    effects.router,
    devices.router,
    events.router,
    operations.router,
    approvals.router,
    freezes.router,
    drift.router,
    targets.router,
    planes.router,
    breakers.router,
    conversations.router,
    ai_tasks.router,
    health.router,
    health.metrics_router,
)


class ControlPlane(FastAPI):
    """The application, with a document that tells the whole contract."""

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            self.openapi_schema = document(super().openapi())
        return self.openapi_schema


def create_app(settings: Settings | None = None) -> FastAPI:
    """The API of this installation; nothing is opened before its lifespan begins."""
    settings = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        clock, known = SharedClock(), asyncio.Event()
        async with open_runtime(settings, process="api", clock=clock) as runtime:
            app.state.service = service = Service(runtime)
            timing = asyncio.create_task(clock.keep(partial(database_time, runtime), known=known))
            restoring = asyncio.create_task(restore_orders(runtime))
            keeping = asyncio.create_task(keep_policy(runtime))
            await asyncio.gather(asyncio.wait({keeping}, timeout=STARTING), begun(known))
            if keeping.done():
                keeping.result()  # a policy that must not be in force ends the process
            try:
                yield
            finally:
                for task in (timing, restoring, keeping):
                    task.cancel()
                await service.close_streams()

    app = ControlPlane(
        title="Eucora Control Plane",
        version=VERSION,
        description=DESCRIPTION,
        openapi_tags=TAGS,
        lifespan=lifespan,
        middleware=[Middleware(Edge)],
        exception_handlers={**HANDLERS},
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    for router in ROUTERS:
        # As they are: include_router would build each route again when it is first asked for, and keep both.
        app.router.routes.extend(router.routes)
    add_reference(app)
    return app


class Server(uvicorn.Server):
    """Ends the open event streams when told to stop: they would keep it waiting for as long as it may."""

    def __init__(self, app: FastAPI, **options: Any) -> None:
        self._app = app
        super().__init__(
            uvicorn.Config(
                app,
                loop="uvloop",
                http="httptools",
                log_config=None,
                access_log=False,
                server_header=False,
                **options,
            )
        )

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Open the application and listen."""
        await super().startup(sockets)
        collect_less()

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Stop listening, finish what is open, close."""
        self._app.state.service.end_streams()
        await super().shutdown(sockets)


def serve(settings: Settings, *, host: str, port: int, grace: int) -> None:
    """Run the API until a signal ends it; open requests get ``grace`` seconds then.

    Raises:
        Invalid: a setting is missing or wrong.
    """
    check_settings(settings)
    telemetry.setup(process="api", level=settings.log_level)
    Server(create_app(settings), host=host, port=port, timeout_graceful_shutdown=grace).run()


def openapi_document() -> dict[str, Any]:
    """The OpenAPI document; needs no servers and no settings."""
    return create_app(Settings.model_construct()).openapi()


def openapi_text() -> str:
    """The document as it is kept in ``docs/openapi.json``."""
    return json.dumps(openapi_document(), indent=2, sort_keys=True, ensure_ascii=False)
