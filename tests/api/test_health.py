# SPDX-License-Identifier: Apache-2.0
"""Health and metrics. A database that is down is in test_conventions."""

import httpx
from pydantic import SecretStr

from app.settings import Settings
from tests.api.conftest import client_of, intent, key, set_targets, started


async def test_all_is_well(stranger: httpx.AsyncClient) -> None:
    body = (await stranger.get("/health/")).json()

    assert body["status"] == "healthy"
    assert body["checks"]["database"]["status"] == body["checks"]["cache"]["status"] == "healthy"
    assert (await stranger.get("/health/ready")).json()["status"] == "healthy"
    assert (await stranger.get("/health/live")).json()["status"] == "healthy"


async def test_without_the_cache_it_is_degraded_and_accepts(
    api_settings: Settings, unused_tcp_port: int
) -> None:
    away = SecretStr(f"redis://127.0.0.1:{unused_tcp_port}/0")
    async with started(api_settings.model_copy(update={"redis_url": away})) as app:
        await set_targets(app.state.service.runtime)
        async with client_of(app, "eucora_bootstrap-for-tests") as client:
            health = await client.get("/health/")
            ready = await client.get("/health/ready")
            accepted = await client.post("/deployments", json=intent(), headers=key())

    assert health.status_code == 200
    assert health.json()["status"] == "degraded"
    assert health.json()["checks"]["database"]["status"] == "healthy"
    assert ready.json()["status"] == "healthy"
    assert accepted.status_code == 202


async def test_metrics_are_prometheus_text(stranger: httpx.AsyncClient) -> None:
    response = await stranger.get("http://api.test/metrics")

    assert response.headers["content-type"].startswith("text/plain")
    assert "# TYPE eucora_" in response.text
