# SPDX-License-Identifier: Apache-2.0
"""What bounds the accept path: an empty POST, and one statement with nothing around it.

``python -m bench.limits PORT DATABASE_URL``.
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import asyncpg
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.responses import Response

CONNECTIONS = 8

STORE = """
WITH kept AS (
    INSERT INTO limit_keys (key, answer) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING 1
), intent AS (
    INSERT INTO limit_intents (id, name, version, score) SELECT $3, $4, $5, 12.5 FROM kept
), lane AS (
    INSERT INTO limit_lanes (id, intent_id, ring) SELECT $6, $3, 'LAB' FROM kept
), work AS (
    INSERT INTO limit_work (id, lane_id) SELECT $7, $6 FROM kept
), event AS (
    INSERT INTO limit_events (intent_id, sequence, type) SELECT $3, 1, 'submitted' FROM kept
)
SELECT count(*) FROM kept
"""
TABLES = """
CREATE TABLE limit_keys (key text PRIMARY KEY, answer bytea NOT NULL);
CREATE TABLE limit_intents (id uuid PRIMARY KEY, name text, version text, score float,
    at timestamptz DEFAULT now());
CREATE TABLE limit_lanes (id uuid PRIMARY KEY, intent_id uuid REFERENCES limit_intents, ring text);
CREATE TABLE limit_work (id uuid PRIMARY KEY, lane_id uuid REFERENCES limit_lanes,
    status text DEFAULT 'QUEUED');
CREATE TABLE limit_events (intent_id uuid REFERENCES limit_intents, sequence int, type text,
    PRIMARY KEY (intent_id, sequence));
"""


class Given(BaseModel):
    """What both take."""

    app_name: str
    version: str
    planes: list[str]


class Told(BaseModel):
    """What both answer."""

    id: UUID
    status: str


def create_app(database_url: str) -> FastAPI:
    """Both endpoints."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with asyncpg.create_pool(database_url, min_size=CONNECTIONS, max_size=CONNECTIONS) as pool:
            app.state.pool = pool
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/empty", status_code=202)
    async def empty(body: Given) -> Told:
        return Told(id=uuid4(), status=body.version)

    @app.post("/statement", status_code=202)
    async def statement(body: Given) -> Response:
        ids = [uuid4() for _ in range(3)]
        answer = Told(id=ids[0], status="PENDING").model_dump_json().encode()
        given = (body.app_name, answer, ids[0], body.app_name, body.version, ids[1], ids[2])
        async with app.state.pool.acquire() as connection:
            if not await connection.fetchval(STORE, *given):
                raise RuntimeError("a key was used twice")
        return Response(answer, 202, media_type="application/json")

    return app


if __name__ == "__main__":
    uvicorn.run(
        create_app(sys.argv[2]),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="warning",
        access_log=False,
    )
