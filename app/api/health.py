# SPDX-License-Identifier: Apache-2.0
"""Whether this process can do its work; its metrics. Planes are never part of it."""

import asyncio
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from app import telemetry
from app.api.dependencies import RuntimeDep
from app.api.routing import V1, Route, requires
from app.api.schema import Message, Shown, as_json
from app.resilience.errors import CallError
from app.runtime import Runtime
from app.security import Permission

router = APIRouter(prefix=V1 + "/health", tags=["health"], route_class=Route)
metrics_router = APIRouter(tags=["health"], route_class=Route)

PATIENCE = 2.0
"""Seconds a server has to answer."""
ASKED = "eucora:health"
"""What is written to learn whether Redis takes anything."""


class HealthStatus(StrEnum):
    """``degraded``: something is down that can be done without for a while."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


class CheckRead(Shown):
    """One thing that was asked; ``detail`` says what is wrong."""

    status: HealthStatus
    detail: Message | None = None


class HealthRead(Shown):
    """The whole, and each part by name."""

    status: HealthStatus
    checks: Annotated[dict[str, CheckRead], Field(max_length=20)]


EXPOSITION: dict[str, Any] = {
    "content": {"text/plain": {"schema": {"type": "string", "maxLength": 10_000_000}}}
}
DOWN: dict[int | str, dict[str, Any]] = {
    503: {"model": HealthRead, "description": "Something it cannot do without is down; the same body."}
}


@router.get("", response_model=HealthRead, responses=DOWN, summary="Check the database and the cache")
@requires(Permission.PUBLIC)
async def read_health(runtime: RuntimeDep) -> Response:
    """Without the cache intents are still accepted and kept: that is `degraded` and 200."""
    database, cache = await asyncio.gather(check_database(runtime), check_cache(runtime))
    return as_health({"database": database, "cache": cache})


@router.get("/live", response_model=HealthRead, summary="Whether the process runs")
@requires(Permission.PUBLIC)
async def read_liveness() -> Response:
    """Asks nobody else: restarting this process mends nothing that is wrong elsewhere."""
    return as_health({})


@router.get("/ready", response_model=HealthRead, responses=DOWN, summary="Whether requests can be served")
@requires(Permission.PUBLIC)
async def read_readiness(runtime: RuntimeDep) -> Response:
    """Whether the database answers."""
    return as_health({"database": await check_database(runtime)})


@metrics_router.get(
    "/metrics", response_class=Response, responses={200: EXPOSITION}, summary="Prometheus metrics"
)
@requires(Permission.PUBLIC)
async def read_metrics() -> Response:
    """The metrics of this process, in Prometheus' text format."""
    return Response(telemetry.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")


def as_health(checks: dict[str, CheckRead]) -> Response:
    """The worst of the checks decides."""
    worst = max(
        (check.status for check in checks.values()),
        key=list(HealthStatus).index,
        default=HealthStatus.HEALTHY,
    )
    down = worst is HealthStatus.UNHEALTHY
    status = HTTPStatus.SERVICE_UNAVAILABLE if down else HTTPStatus.OK
    return as_json(HealthRead(status=worst, checks=checks), status)


async def check_database(runtime: Runtime) -> CheckRead:
    """Whether PostgreSQL answers in time."""
    try:
        async with asyncio.timeout(PATIENCE), runtime.autocommit(guarded=False) as connection:
            await connection.execute(text("SELECT 1"))
    except (SQLAlchemyError, CallError, OSError) as error:
        return CheckRead(status=HealthStatus.UNHEALTHY, detail=describe(error))
    return CheckRead(status=HealthStatus.HEALTHY)


async def check_cache(runtime: Runtime) -> CheckRead:
    """Whether Redis takes a write in time: a full one does not. What is accepted waits in the database."""
    try:
        async with asyncio.timeout(PATIENCE):
            await runtime.redis.set(ASKED, "1", ex=60)
    except (RedisError, OSError) as error:
        return CheckRead(status=HealthStatus.DEGRADED, detail=describe(error))
    return CheckRead(status=HealthStatus.HEALTHY)


def describe(error: Exception) -> str:
    """The kind of failure only: anybody may read this, and messages name hosts and users."""
    return "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
