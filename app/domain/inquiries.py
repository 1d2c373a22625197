# SPDX-License-Identifier: Apache-2.0
"""What the assistant is shown of the control plane, as far as whoever it answers may see it. Reads only."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

from pydantic_core import to_jsonable_python
from sqlalchemy import String, cast, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app import security
from app.ai.tools import Arguments, FindDeployments, OneDeployment
from app.domain import blockers, deployments, events, signatures
from app.domain.accounts import Actor
from app.domain.budgets import Limits
from app.models import Deployment, RingDeployment
from app.models.base import Json
from app.security import Permission

NEWEST_SEARCHED = 10_000
MOST_CAUSES, MOST_EVENTS = 20, 40
LANE = (
    *("ring", "plane", "status", "held_for", "targeted", "success_count", "failure_count"),
    *("unreachable_count", "success_rate", "error"),
)
DEPLOYMENT = (
    *("id", "app_name", "app_version", "status", "paused", "pause_reason", "risk_score", "promotion"),
    *("requires_cab_approval", "target_ring", "planes", "submitted_by", "rollback_version"),
    *("criticality", "created_at", "finished_at"),
)
FOUND = ("id", "app_name", "app_version", "status", "paused", "target_ring", "planes", "created_at")
GATE = ("verdict", "reason", "detail", "signature", "measured_at", "criteria")


@dataclass(frozen=True, slots=True)
class Sight:
    """What answers need beside the database."""

    now: datetime
    limits: Limits


Answer = Callable[[AsyncSession, Any, Sight], Awaitable[Json]]


def may_look(actor: Actor | None) -> bool:
    """Whether whoever is answered may see what these show; None: their token is not valid any more."""
    return actor is not None and security.allows(actor.role, Permission.READ)


async def find_deployments(session: AsyncSession, asked: FindDeployments, sight: Sight) -> Json:
    """The newest that fit; words of the text may stand anywhere in name and version."""
    del sight
    newest = select(Deployment.id).order_by(*deployments.RECENT).limit(NEWEST_SEARCHED)
    query = select(Deployment).where(Deployment.id.in_(newest)).order_by(*deployments.RECENT)
    named = func.lower(Deployment.app_name + " " + Deployment.app_version)
    for word in (asked.text or "").lower().split():
        query = query.where(named.contains(word, autoescape=True))
    if asked.status is not None:
        query = query.where(cast(Deployment.status, String) == asked.status)
    found = (await session.scalars(query.limit(asked.limit))).all()
    return {"deployments": [_shown(each, FOUND) for each in found]}


async def read_deployment(session: AsyncSession, asked: OneDeployment, sight: Sight) -> Json:
    """Its state, risk and lanes."""
    del sight
    deployment = await deployments.get(session, asked.deployment_id)
    lanes = [_shown(lane, LANE) for lane in deployment.lanes]
    return _shown(deployment, DEPLOYMENT) | {"lanes": lanes}


async def read_gates(session: AsyncSession, asked: OneDeployment, sight: Sight) -> Json:
    """What was measured last, of each lane that was."""
    del sight
    deployment = await deployments.get(session, asked.deployment_id)
    return {"lanes": [_gate(lane) for lane in deployment.lanes if lane.gate_report]}


def _gate(lane: RingDeployment) -> Json:
    report: Mapping[str, Any] = lane.gate_report or {}
    where = {"ring": lane.ring.value, "plane": lane.plane}
    return where | {name: report.get(name) for name in GATE}


async def read_blockers(session: AsyncSession, asked: OneDeployment, sight: Sight) -> Json:
    """The same that ``GET …/blockers`` shows."""
    found = await blockers.of_deployment(session, asked.deployment_id, now=sight.now, limits=sight.limits)
    return {"blockers": [to_jsonable_python(asdict(blocker)) for blocker in found]}


async def read_failures(session: AsyncSession, asked: OneDeployment, sight: Sight) -> Json:
    """The causes of failures, the commonest first."""
    del sight
    await deployments.exists(session, asked.deployment_id)
    causes = await signatures.of_failures(session, asked.deployment_id)
    shown = [asdict(cause) for cause in causes[:MOST_CAUSES]]
    return {"failures": to_jsonable_python(shown), "more": max(0, len(causes) - MOST_CAUSES)}


async def read_events(session: AsyncSession, asked: OneDeployment, sight: Sight) -> Json:
    """The newest of its history, in order."""
    del sight
    deployment = await deployments.get(session, asked.deployment_id)
    after = max(0, deployment.event_sequence - MOST_EVENTS)
    found = await events.page(session, deployment.id, after=after, limit=MOST_EVENTS)
    return {"events": [_shown(each, ("sequence", "type", "actor", "at", "after")) for each in found]}


def _shown(row: object, names: Sequence[str]) -> Json:
    shown: Json = to_jsonable_python({name: getattr(row, name) for name in names})
    return shown


ANSWERS: Mapping[str, Answer] = MappingProxyType(
    {
        "find_deployments": find_deployments,
        "read_deployment": read_deployment,
        "read_gates": read_gates,
        "read_blockers": read_blockers,
        "read_failures": read_failures,
        "read_events": read_events,
    }
)
"""By the tools' names. Breakers and planes are not in the database: workers know them."""


async def answer(session: AsyncSession, name: str, asked: Arguments, sight: Sight) -> Json:
    """What a tool shows.

    Raises:
        NotFound: there is no such thing.
    """
    return await ANSWERS[name](session, asked, sight)
