# SPDX-License-Identifier: Apache-2.0
"""Bytes per row of each table, its indexes included, and how many rows a deployment leaves, of real rows."""

from collections.abc import Mapping
from dataclasses import dataclass

import asyncpg

from app.supervisor import Installation
from bench import accept
from bench.load import send

TABLES = (
    "deployments",
    "deployment_planes",
    "ring_deployments",
    "operations",
    "effects",
    "events",
    "idempotency_keys",
    "device_results",
)
ONE = "SELECT pg_total_relation_size('{table}')::float8 / greatest(count(*), 1) FROM {table}"
ALL_COLUMNS = "SELECT column_name FROM information_schema.columns WHERE table_name = 'effects'"
ENDED = "SELECT id FROM deployments WHERE status = 'COMPLETED'"
PER_DEPLOYMENT = """
    SELECT (SELECT count(*) FROM {table} WHERE deployment_id IN ({ended}))::float8
        / greatest((SELECT count(*) FROM deployments WHERE status = 'COMPLETED'), 1)
"""
GROWN = """
    SELECT coalesce(avg(pg_column_size(lane.*)) FILTER (WHERE gate_report IS NOT NULL), 0)
        - coalesce(avg(pg_column_size(lane.*)) FILTER (WHERE gate_report IS NULL), 0)
    FROM ring_deployments AS lane
"""


@dataclass(frozen=True, slots=True)
class Rows:
    """``each``: bytes by table; ``packed``: those of a device's row after its table was rewritten.

    ``left``: rows that a deployment of one lane has left, by table.
    """

    each: Mapping[str, float]
    packed: float
    left: Mapping[str, float]

    def of_deployment(self, lanes: float, planes: float) -> float:
        """Bytes that stay of a deployment with so many lanes, without its devices and its operations."""
        fixed = self.each["deployments"] + planes * self.each["deployment_planes"]
        in_lane = sum(self.left[table] * self.each[table] for table in ("events", "effects"))
        return fixed + lanes * (self.each["ring_deployments"] + in_lane)


async def weigh(installation: Installation, database: asyncpg.Connection, submissions: int) -> Rows:
    """With so many more deployments, so that pages that are half empty count little."""
    left = {
        table: float(await database.fetchval(PER_DEPLOYMENT.format(table=table, ended=ENDED)))
        for table in ("events", "effects", "operations")
    }
    body = accept.intent(installation.place.path)
    (await send(accept.submissions(installation, body, submissions))).require(202)
    await multiply_effects(database, submissions)
    each = {table: float(await database.fetchval(ONE.format(table=table))) for table in TABLES}
    each["ring_deployments"] += max(0.0, float(await database.fetchval(GROWN)))
    await database.execute("VACUUM FULL device_results")
    packed = float(await database.fetchval(ONE.format(table="device_results")))
    return Rows(each, packed, left)


async def multiply_effects(database: asyncpg.Connection, number: int) -> None:
    """The ledger's rows as they are, under other keys: so many at least."""
    columns = [row["column_name"] for row in await database.fetch(ALL_COLUMNS)]
    new = {"id": "gen_random_uuid()", "key": "key || '/' || copy"}
    chosen = ", ".join(new.get(column, column) for column in columns)
    copies = number // max(1, int(await database.fetchval("SELECT count(*) FROM effects"))) + 1
    await database.execute(
        f"INSERT INTO effects ({', '.join(columns)})"  # noqa: S608 - our own names
        f" SELECT {chosen} FROM effects, generate_series(1, {copies}) AS copy"
    )
