# SPDX-License-Identifier: Apache-2.0
"""Deployments made through the product's own functions, with overrides for what a test is about."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Call, Cost, Manifest, PackageKind, Plane, Target, TargetKind
from app.connectors.packages import PACKAGE, Package
from app.domain import acceptance, deployments, intents
from app.domain.idempotency import RequestKey, StoredAnswer
from app.domain.intents import Intent, KnownTarget, Plan, Surroundings
from app.domain.policies import DEMO, GatePolicy
from app.models import Deployment, Promotion, Ring, new_id

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)

FACTORS: dict[str, float] = {
    "privilege_impact": 0.2,
    "supply_chain_trust": 0.1,
    "sbom_vulnerability": 0.0,
    "exploitability": 0.2,
    "data_access": 0.1,
    "operational_complexity": 0.1,
    "history": 0.1,
}

RISK_62: dict[str, float] = {
    "privilege_impact": 1.0,
    "supply_chain_trust": 0.8,
    "sbom_vulnerability": 0.6,
    "exploitability": 0.7,
    "data_access": 0.5,
    "operational_complexity": 0.3,
    "history": 0.3,
    "blast_radius": 0.3,
}
RISK_90: dict[str, float] = dict.fromkeys(RISK_62, 0.9)

WIN32 = {
    "kind": "win32",
    "uri": "https://packages.example.com/firefox-143.0.1.intunewin",
    "sha256": "ab" * 32,
    "install_command": "setup.exe /S",
    "uninstall_command": "helper.exe /S",
    "detection": {"type": "file", "path": "C:\\Program Files\\Mozilla Firefox", "name": "firefox.exe"},
}


def package(**overrides: Any) -> Package:
    """A win32 package."""
    return PACKAGE.validate_python(WIN32 | overrides)


def manifest(plane: Plane) -> Manifest:
    """A plane that installs win32 packages."""
    return Manifest(
        plane=plane,
        title=plane.value,
        package_kinds=frozenset({PackageKind.WIN32}),
        target_kinds=frozenset({TargetKind.GROUP}),
        cannot={},
        max_concurrency=4,
        sources=(),
        costs=dict.fromkeys(Call, Cost(2, 100)),
    )


def make_intent(**overrides: Any) -> Intent:
    """Firefox 143.0.1 to LAB and CANARY on Intune, at low risk."""
    planes = overrides.pop("planes", (Plane.INTUNE,))
    values: dict[str, Any] = {
        "app_name": "Mozilla Firefox",
        "version": "143.0.1",
        "packages": {plane: package() for plane in planes},
        "target_ring": Ring.CANARY,
        "promotion": Promotion.AUTOMATIC,
        "privileged": False,
        "risk_factors": FACTORS,
        "gates": {},
        "rollback_version": None,
        "criticality": "standard",
        "start_at": None,
    }
    return Intent(**values | overrides)


def surroundings(policy: GatePolicy = DEMO, *planes: Plane, devices: int | None = 10) -> Surroundings:
    """Every ring of the planes (Intune by default) has a group of ``devices``."""
    planes = planes or (Plane.INTUNE,)
    return Surroundings(
        targets={
            (plane, ring): KnownTarget(
                Target(TargetKind.GROUP, f"{plane.value}-{ring.value.lower()}"), devices
            )
            for plane in planes
            for ring in Ring
        },
        policy=policy,
        manifests={plane: manifest(plane) for plane in planes},
        unconfigured={
            plane: f"EUCORA_PLANES__{plane.name}__BASE_URL is not set"
            for plane in Plane
            if plane not in planes
        },
    )


def make_plan(*, policy: GatePolicy = DEMO, **overrides: Any) -> Plan:
    """A plan for ``make_intent(**overrides)``."""
    intent = make_intent(**overrides)
    return intents.plan(intent, surroundings(policy, *intent.packages), correlation_id=new_id())


def request_key(key: str = "", digest: bytes = b"d" * 32) -> RequestKey:
    """A key of its own unless one is given."""
    return RequestKey("tester", key or str(new_id()), digest)


def answer_to(plan: Plan) -> StoredAnswer:
    """What is kept as the answer; its form is the API's business."""
    return StoredAnswer(
        202, {"Location": f"/api/v1/deployments/{plan.id}"}, f'{{"id": "{plan.id}"}}'.encode()
    )


async def accept_plan(connection: asyncpg.Connection, plan: Plan, **given: Any) -> StoredAnswer | None:
    """As ``acceptance.store``; ``given`` as ``acceptance.submission`` takes it."""
    return await acceptance.store(connection, acceptance.submission(plan, **given))


async def accept(session: AsyncSession, plan: Plan, *, now: datetime = NOON) -> UUID:
    """Store the plan in the session's transaction; its id."""
    connection = await session.connection()
    await connection.execute(select(1))  # begins the transaction
    driver = (await connection.get_raw_connection()).driver_connection
    stored = await accept_plan(
        driver, plan, actor="alice", request=request_key(), answer=answer_to(plan), now=now
    )
    assert stored is None
    return plan.id


async def make_deployment(
    session: AsyncSession, *, policy: GatePolicy = DEMO, **overrides: Any
) -> Deployment:
    """A stored deployment with its lanes."""
    return await deployments.get(session, await accept(session, make_plan(policy=policy, **overrides)))
