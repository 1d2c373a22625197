# SPDX-License-Identifier: Apache-2.0
"""The API process: lifespan, middleware, routers, problems, document."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware

from app.api import deployments, devices, effects, events, health, intents, operations, planes, targets
from app.api.dependencies import Service
from app.api.middleware import Edge
from app.api.openapi import DESCRIPTION, TAGS, document
from app.api.problems import HANDLERS
from app.runtime import open_runtime
from app.settings import Settings

VERSION = "0.1.0"
PREFIX = "/api/v1"
ROUTERS = (
    intents.router,
    deployments.router,
    effects.router,
    devices.router,
    events.router,
    operations.router,
    targets.router,
    planes.router,
    health.router,
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
        async with open_runtime(settings, process="api") as runtime:
            app.state.service = service = Service(runtime)
            try:
                yield
            finally:
                await service.streams.close()

    app = ControlPlane(
        title="Eucora Control Plane",
        version=VERSION,
        description=DESCRIPTION,
        openapi_tags=TAGS,
        lifespan=lifespan,
        middleware=[Middleware(Edge)],
        exception_handlers={**HANDLERS},
        redirect_slashes=False,
        redoc_url=None,
    )
    for router in ROUTERS:
        app.include_router(router, prefix=PREFIX)
    app.include_router(health.metrics_router)
    return app


def openapi_document() -> dict[str, Any]:
    """The OpenAPI document; needs no servers and no settings."""
    return create_app(Settings.model_construct()).openapi()
