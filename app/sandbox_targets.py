# SPDX-License-Identifier: Apache-2.0
"""Targets for the sandbox planes, so that a first rollout needs no preparation."""

from datetime import UTC, datetime
from typing import Any

import httpx
from sqlalchemy import URL
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from app.connectors.catalogue import MANIFESTS
from app.connectors.contract import Plane
from app.models import Ring, RingTarget


async def store_sandbox_targets(url: URL, sandbox_url: str) -> None:
    """Point every ring of every sandbox plane at its group of the virtual fleet, where no target is set."""
    rows = [row for plane in MANIFESTS for row in await sandbox_targets(plane, sandbox_url)]
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            await connection.execute(insert(RingTarget).on_conflict_do_nothing(), rows)
    finally:
        await engine.dispose()


async def sandbox_targets(plane: Plane, sandbox_url: str) -> list[dict[str, Any]]:
    """The rows that the sandbox's own list of groups makes."""
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        answer = await client.get(f"{sandbox_url}/{plane}/_sandbox/fleet")
    now = datetime.now(UTC)
    return [
        {
            "plane": plane.value,
            "ring": Ring(name),
            "kind": ring["kind"],
            "ref": ring["ref"],
            "device_count": ring["devices"],
            "counted_at": now,
        }
        for name, ring in answer.raise_for_status().json()["rings"].items()
    ]
