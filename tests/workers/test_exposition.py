# SPDX-License-Identifier: Apache-2.0
"""The metrics of worker processes."""

import json
import socket

import httpx
from redis.asyncio import Redis

from app.settings import WorkerSettings
from tests.waiting import eventually
from tests.wire import PLAIN
from tests.workers.conftest import Bench, Workers
from workers.exposition import exposition


async def test_a_worker_serves_its_metrics_and_tells_where(
    bench: Bench, workers: Workers, redis_url: str
) -> None:
    await workers.start()
    operation_id = await bench.enqueue("kept_away")
    await eventually(lambda: bench.count("runs", operation_id), within=5)
    async with Redis.from_url(redis_url) as redis:
        (key,) = await redis.keys("eucora:worker:*")
        url = json.loads(await redis.get(key))["metrics"]

    async def deferred() -> bool:
        async with httpx.AsyncClient(verify=PLAIN, trust_env=False) as http:
            text = (await http.get(url)).text
        return 'deferrals_total{kind="check_plane",reason="circuit_open",service="intune"}' in text

    await eventually(deferred, within=5)


def test_a_port_that_is_taken_is_replaced_by_a_free_one() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]

        with exposition(WorkerSettings(metrics_port=taken)) as url:
            text = httpx.get(url, trust_env=False).text

    assert f":{taken}/" not in url
    assert "eucora_breaker_state" in text
