# SPDX-License-Identifier: Apache-2.0
"""What can grow in an installation, looked at from outside: memory, connections, queues and tables."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import asyncpg
import httpx
import psutil

from app.database import database_url
from app.domain.operations import Queue
from app.redis import open_redis
from app.supervisor import Installation
from tests.databases import connected
from workers.queues import queue_key

MB = 2**20
TABLES = (
    *("deployments", "deployment_planes", "ring_deployments", "device_results", "events"),
    *("operations", "effects", "idempotency_keys", "schedules"),
)
"""Those that are written to all the time."""
CONNECTIONS = """
    SELECT application_name, count(*) FROM pg_stat_activity
    WHERE application_name IN ('eucora api', 'eucora worker') GROUP BY application_name
"""
OPEN = """
    SELECT 'open rollouts', count(*)::float8 FROM deployments WHERE finished_at IS NULL
    UNION ALL SELECT 'open operations ' || status, count(*) FROM operations
        WHERE status IN ('QUEUED', 'WAITING', 'RUNNING') GROUP BY status
    UNION ALL SELECT 'age of the oldest state', coalesce(max(extract(epoch FROM now() - status_since)), 0)
        FROM ring_deployments WHERE status IN ('PUSHING', 'WAITING_PLANE', 'MEASURING', 'ROLLING_BACK')
"""
STORED = """
    SELECT relname, n_dead_tup, n_tup_ins, n_tup_upd, n_tup_hot_upd, autovacuum_count,
        pg_table_size(relid) AS heap, pg_indexes_size(relid) AS indexes
    FROM pg_stat_user_tables WHERE relname = ANY($1)
"""
LAG = re.compile(r"^eucora_loop_lag_seconds_(sum|count) (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Stored:
    """One table: rows that live and that are dead, bytes of rows and of indexes, how it was written to."""

    rows: int
    dead: int
    heap: int
    indexes: int
    inserts: int
    updates: int
    hot: int
    vacuums: int

    @property
    def per_row(self) -> float:
        """Bytes, with the indexes', for each row that is kept."""
        return (self.heap + self.indexes) / max(1, self.rows)


@dataclass(frozen=True, slots=True)
class Sample:
    """What one look found. ``at`` in seconds of a clock that only goes forward."""

    at: float
    figures: Mapping[str, float]
    tables: Mapping[str, Stored]


class Watch:
    """Looks at the processes and servers of one installation.

    Raises:
        SystemExit: a process is not the one that was there at first.
    """

    def __init__(self, product: Installation, names: Sequence[str]) -> None:
        self._product = product
        self._names = names
        self._lag: dict[str, tuple[float, float]] = {}

    async def __aenter__(self) -> Self:
        product, self._stack = self._product, AsyncExitStack()
        self._processes = {name: psutil.Process(pid_of(product, name)) for name in self._names}
        database = connected(database_url(product.settings))
        self._database = await self._stack.enter_async_context(database)
        url = product.settings.redis_url
        assert url is not None
        self._valkey = open_redis(url.get_secret_value())
        self._stack.push_async_callback(self._valkey.aclose)
        self._http = await self._stack.enter_async_context(httpx.AsyncClient(trust_env=False))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def look(self) -> Sample:
        """At everything."""
        at = time.monotonic()
        figures = self._memory() | await self._postgres() | await self._queues() | await self._lags()
        return Sample(at, figures, await self._tables())

    def _memory(self) -> dict[str, float]:
        found = {}
        for name, process in self._processes.items():
            if pid_of(self._product, name) != process.pid or not process.is_running():
                raise SystemExit(f"{name} has ended and was started again: its memory says nothing")
            found[f"RSS of {name}"] = process.memory_info().rss / MB
        return found

    async def _postgres(self) -> dict[str, float]:
        rows = await self._database.fetch(CONNECTIONS)
        open_now = await self._database.fetch(OPEN)
        found = {f"connections to PostgreSQL, {name}": float(count) for name, count in rows}
        states = {f"open operations {each}": 0.0 for each in ("QUEUED", "WAITING", "RUNNING")}
        return found | states | dict(open_now)

    async def _queues(self) -> dict[str, float]:
        told = await self._valkey.info()
        lengths = [await self._valkey.zcard(queue_key(queue.value)) for queue in Queue]
        return {
            "memory of Valkey": told["used_memory"] / MB,
            "keys in Valkey": float(await self._valkey.dbsize()),
            "connections to Valkey": float(told["connected_clients"]),
            "wake-ups in the queues": float(sum(lengths)),
        }

    async def _lags(self) -> dict[str, float]:
        found = {}
        for name in self._names:
            if name.startswith("worker"):
                page = await self._http.get(metrics_of(self._product.place.logs / f"{name}.log"))
                sums = {part: float(value) for part, value in LAG.findall(page.text)}
                found[f"loop lag of {name}"] = self._since(name, sums.get("sum", 0), sums.get("count", 0))
        return found

    def _since(self, name: str, total: float, count: float) -> float:
        """Milliseconds on average since the look before."""
        before = self._lag.get(name, (0.0, 0.0))
        self._lag[name] = (total, count)
        return 1000 * (total - before[0]) / max(1, count - before[1])

    async def _tables(self) -> dict[str, Stored]:
        rows = {row["relname"]: row for row in await self._database.fetch(STORED, TABLES)}
        return {name: stored(row, await self._count(name)) for name, row in rows.items()}

    async def _count(self, table: str) -> int:
        return int(await self._database.fetchval(f"SELECT count(*) FROM {table}"))  # noqa: S608 - our own names


def stored(row: asyncpg.Record, rows: int) -> Stored:
    """As PostgreSQL counts it; rows are counted, its own number is an estimate."""
    return Stored(
        rows=rows,
        dead=row["n_dead_tup"],
        heap=row["heap"],
        indexes=row["indexes"],
        inserts=row["n_tup_ins"],
        updates=row["n_tup_upd"],
        hot=row["n_tup_hot_upd"],
        vacuums=row["autovacuum_count"],
    )


def pid_of(product: Installation, name: str) -> int:
    """Of a child of the installation, as it was noted when it was started last."""
    return int((product.place.run / f"{name}.pid").read_text().split()[0])


def metrics_of(log: Path) -> str:
    """Where a worker serves its metrics, as it has told when it started."""
    lines = (json.loads(line) for line in log.read_text().splitlines() if '"worker_started"' in line)
    return str(next(lines)["metrics"])
