# SPDX-License-Identifier: Apache-2.0
"""The one statement that accepts intents: each with its lanes, its work, its event and the answer to it.

It takes any number at once, column by column. Eight in one statement cost the database little more than half
of what they cost one by one (docs/performance).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg
from pydantic_core import to_json

from app.domain import approvals, idempotency, risk, rollout
from app.domain.idempotency import RequestKey, StoredAnswer
from app.domain.intents import Plan
from app.domain.operations import KINDS, OperationKind
from app.errors import ActiveDeploymentExists
from app.models import WayBack

Row = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Submission:
    """One intent as the statement takes it: rows for the deployment, its planes and its lanes."""

    plan: Plan
    request: RequestKey
    deployment: Row
    planes: Sequence[Row]
    lanes: Sequence[Row]


DEPLOYMENT = (
    *("caller text", "key text", "digest bytea", "answer_status int", "answer_headers jsonb"),
    *("answer_body bytea", "at timestamptz", "id uuid", "correlation_id uuid", "app_name text"),
    *("app_version text", "planes text", "target_ring ring", "promotion promotion", "privileged bool"),
    *("criticality text", "rollback_version text", "start_at timestamptz", "risk_factors jsonb"),
    *("risk_score int", "risk_model text", "risk_breakdown jsonb", "requires_cab_approval bool"),
    *("gates jsonb", "gate_policy text", "status deployment_status", "operation_id uuid"),
    *("submitted_by text", "told jsonb", "request_id uuid", "request_digest text", "request_wait interval"),
    *("irreversible text",),
)
PLANE = ("deployment_id uuid", "plane text", "package jsonb", "way_back way_back")
LANE = (
    *("deployment_id uuid", "id uuid", "ring ring", "position int", "plane text", "target_kind text"),
    *("target_ref text", "operation_id uuid"),
)
PUSH = KINDS[OperationKind.DEPLOY_TO_CONNECTOR]
PUSH_WITHIN = PUSH.deadline.total_seconds() if PUSH.deadline else "infinity"


def table(name: str, columns: Sequence[str], first: int) -> str:
    """An expression for rows that come as one array per column, from parameter ``first`` on."""
    arrays = ", ".join(f"${first + n}::{column.split()[1]}[]" for n, column in enumerate(columns))
    names = ", ".join(f'"{column.split()[0]}"' for column in columns)
    return f"unnest({arrays}) AS {name} ({names})"


ACCEPT = f"""
WITH given AS (
    SELECT * FROM {table("given", DEPLOYMENT, 1)}
), kept AS (
    INSERT INTO idempotency_keys (caller, key, digest, status, headers, body, created_at)
    SELECT caller, key, digest, answer_status, answer_headers, answer_body, at FROM given
    ON CONFLICT DO NOTHING RETURNING caller, key
), fresh AS (
    SELECT given.* FROM given JOIN kept USING (caller, key)
), deployment AS (
    INSERT INTO deployments (id, correlation_id, app_name, app_version, planes, target_ring, promotion,
        privileged, criticality, rollback_version, start_at, risk_factors, risk_score, risk_model,
        risk_breakdown, requires_cab_approval, gates, gate_policy, status, event_sequence, operation_id,
        submitted_by, created_at, updated_at)
    SELECT id, correlation_id, app_name, app_version, planes::text[], target_ring, promotion,
        privileged, criticality, rollback_version, start_at, risk_factors, risk_score, risk_model,
        risk_breakdown, requires_cab_approval, gates, gate_policy, status, 1, operation_id,
        submitted_by, at, at
    FROM fresh
), plane AS (
    INSERT INTO deployment_planes (deployment_id, plane, app_name, package, way_back)
    SELECT fresh.id, plane.plane, fresh.app_name, plane.package, plane.way_back
    FROM fresh JOIN {table("plane", PLANE, 1 + len(DEPLOYMENT))} ON plane.deployment_id = fresh.id
), lane AS (
    SELECT lane.*, fresh.correlation_id, GREATEST(now(), fresh.start_at) AS start_at
    FROM fresh JOIN {table("lane", LANE, 1 + len(DEPLOYMENT) + len(PLANE))} ON lane.deployment_id = fresh.id
), lanes AS (
    INSERT INTO ring_deployments
        (id, deployment_id, ring, position, plane, target_kind, target_ref, operation_id)
    SELECT id, deployment_id, ring, position, plane, target_kind, target_ref, operation_id FROM lane
), work AS (
    INSERT INTO operations (id, kind, queue, subject_type, subject_id, deployment_id, run_after, deadline,
        correlation_id, max_attempts)
    SELECT operation_id, '{OperationKind.DEPLOY_TO_CONNECTOR.value}', '{PUSH.queue.value}', 'lane', id::text,
        deployment_id, start_at, start_at + interval '{PUSH_WITHIN} seconds', correlation_id,
        {PUSH.max_attempts}
    FROM lane WHERE operation_id IS NOT NULL
), event AS (
    INSERT INTO events (deployment_id, sequence, type, actor, at, after, correlation_id)
    SELECT id, 1, 'deployment.submitted', submitted_by, at, told, correlation_id FROM fresh
), request AS (
    INSERT INTO approvals (id, deployment_id, digest, submitted_by, created_at, expires_at, irreversible)
    SELECT request_id, id, request_digest, submitted_by, at, at + request_wait, irreversible::text[]
    FROM fresh WHERE request_id IS NOT NULL
)
SELECT id FROM fresh
"""  # noqa: S608 - made of the constants above
ACTIVE = """
SELECT plane, deployment_id FROM deployment_planes
WHERE active AND lower(app_name) = lower($1) AND plane = ANY ($2::text[])
"""


async def store(connection: asyncpg.Connection, submission: Submission) -> StoredAnswer | None:
    """Store one. May be repeated: the same request gets the answer stored first.

    ``connection`` is the driver's own and in autocommit. Returns None when this call stored it, else that
    earlier answer.

    Raises:
        ActiveDeploymentExists: the application is being deployed to one of the planes.
        IdempotencyKeyReused: the key came with another body before.
    """
    try:
        stored = await store_together(connection, [submission])
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != "uq_deployment_planes_one_active":
            raise
        raise ActiveDeploymentExists(await _who_is_active(connection, submission.plan)) from error
    return None if stored else await idempotency.find_by_driver(connection, submission.request)


async def store_together(connection: asyncpg.Connection, submissions: Sequence[Submission]) -> set[UUID]:
    """Store several, all or, if one of them breaks a rule, none; no two may have the same request key.

    ``connection`` is as in ``store``. The ids of those stored: the others' requests were stored before.
    """
    columns = (
        *_columns([each.deployment for each in submissions], len(DEPLOYMENT)),
        *_columns([row for each in submissions for row in each.planes], len(PLANE)),
        *_columns([row for each in submissions for row in each.lanes], len(LANE)),
    )
    return {row[0] for row in await connection.fetch(ACCEPT, *columns)}


def _columns(rows: Sequence[Row], width: int) -> Iterable[Sequence[object]]:
    return zip(*rows, strict=True) if rows else ((),) * width


def submission(
    plan: Plan, *, actor: str, request: RequestKey, answer: StoredAnswer, now: datetime
) -> Submission:
    """The plan with what is stored beside it, as rows."""
    planes = [
        (
            plan.id,
            plane.value,
            package.model_dump_json(),
            way.value if (way := plan.ways_back[plane]) else None,
        )
        for plane, package in plan.intent.packages.items()
    ]
    return Submission(
        plan=plan,
        request=request,
        deployment=(
            *(request.caller, request.key, request.digest),
            *(answer.status, _json(answer.headers), answer.body, now),
            *_intent_columns(plan),
            *_decision_columns(plan),
            *(actor, _told(plan), *(plan.request or (None, None)), approvals.wait(plan.intent.criticality)),
            _array(sorted(plane for plane, way in plan.ways_back.items() if way is WayBack.NONE)),
        ),
        planes=planes,
        lanes=[
            (
                *(plan.id, lane.id, lane.ring.value, rollout.RINGS.index(lane.ring), lane.plane.value),
                *(lane.target.kind.value, lane.target.ref, lane.operation_id),
            )
            for lane in plan.lanes
        ],
    )


def _intent_columns(plan: Plan) -> Row:
    intent = plan.intent
    return (
        *(plan.id, plan.correlation_id, intent.app_name, intent.version, _array(intent.packages)),
        *(intent.target_ring.value, intent.promotion.value, intent.privileged, intent.criticality),
        *(intent.rollback_version, intent.start_at),
    )


def _decision_columns(plan: Plan) -> Row:
    return (
        *(_json(dict(plan.risk_factors)), plan.score.value, risk.MODEL, _json(plan.score.breakdown)),
        *(plan.requires_cab_approval, plan.policy.text, f"{plan.policy.name}/{plan.policy.version}"),
        *(plan.status.value, plan.operation_id),
    )


def _told(plan: Plan) -> str:
    told = {
        "status": plan.status.value,
        "risk_score": plan.score.value,
        "target_ring": plan.intent.target_ring.value,
    }
    return _json(told)


def _array(planes: Iterable[str]) -> str:
    """An array of planes' names as PostgreSQL writes it: arrays of arrays could not differ in length."""
    return "{" + ",".join(planes) + "}"


async def _who_is_active(connection: asyncpg.Connection, plan: Plan) -> str:
    planes = [plane.value for plane in plan.intent.packages]
    rows = await connection.fetch(ACTIVE, plan.intent.app_name, planes)
    found = ", ".join(f"{row['plane']} by deployment {row['deployment_id']}" for row in rows)
    return f"{plan.intent.app_name} is being deployed to {found or 'one of these planes'} already"


def _json(value: object) -> str:
    return to_json(value).decode()  # several times as fast as the standard library's, on the accept path
