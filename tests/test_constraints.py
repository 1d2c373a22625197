# SPDX-License-Identifier: Apache-2.0
"""What must never be stored is refused by PostgreSQL itself, by a constraint with a name."""

import asyncio
import socket
import time

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from app.connectors.contract import Plane
from app.database import open_engine, ping_when_idle
from app.models import Deployment, new_id
from app.runtime import Runtime
from app.settings import DatabaseSettings
from tests.domain.proposing import table
from tests.factories import RISK_62, make_deployment


async def refused(session: AsyncSession, statement: str, **values: object) -> str:
    """The name of the constraint that refuses the statement."""
    with pytest.raises(IntegrityError) as caught:
        async with session.begin_nested():
            await session.execute(text(statement), values)
    cause = caught.value.orig.__cause__ if caught.value.orig else None
    assert isinstance(cause, asyncpg.IntegrityConstraintViolationError)
    return str(cause.constraint_name)


@pytest.mark.parametrize("score", [-1, 101])
async def test_a_risk_score_is_from_0_to_100(session: AsyncSession, score: int) -> None:
    await make_deployment(session)

    name = await refused(session, "UPDATE deployments SET risk_score = :score", score=score)

    assert name == "ck_deployments_risk_score"


@pytest.mark.parametrize(
    "change",
    [
        "risk_score = 1",
        "risk_model = '2.0'",
        "risk_breakdown = '[]'",
        "risk_factors = '{}'",
        "submitted_by = 'mallory'",
    ],
)
async def test_what_a_deployment_was_judged_by_never_changes(session: AsyncSession, change: str) -> None:
    await make_deployment(session)

    assert await refused(session, f"UPDATE deployments SET {change}") == "ck_deployments_judged"


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("status = 'APPROVED', decided_by = 'alice', reason = 'x', settled_at = now()", "decided_by_another"),
        ("status = 'REJECTED', decided_by = 'ALICE', reason = 'x', settled_at = now()", "decided_by_another"),
        ("status = 'APPROVED', settled_at = now()", "decision"),
        ("decided_by = 'carol', reason = 'x'", "decision"),
        ("status = 'EXPIRED'", "settled"),
        ("exception_expires_at = now()", "exception"),
        ("submitted_by = 'mallory'", "submitted_by"),
    ],
)
async def test_nobody_decides_on_their_own_not_even_by_sql(
    session: AsyncSession, change: str, constraint: str
) -> None:
    await make_deployment(session, risk_factors=RISK_62)

    name = await refused(session, f"UPDATE approvals SET {change}")

    assert name == f"ck_approvals_{constraint}"


async def test_a_request_names_its_deployments_submitter_and_is_the_only_open_one(
    session: AsyncSession,
) -> None:
    deployment = await make_deployment(session, risk_factors=RISK_62)
    insert = "INSERT INTO approvals (id, deployment_id, digest, submitted_by, expires_at) VALUES "
    values = "(:id, :deployment, 'd', :by, now())"
    given = {"id": new_id(), "deployment": deployment.id}

    assert await refused(session, insert + values, by="mallory", **given) == "ck_approvals_submitted_by"
    assert await refused(session, insert + values, by="alice", **given) == "uq_approvals_one_pending"


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("author = 'Bob'", "approved_by_another"),
        ("author = 'bOB'", "approved_by_another"),
        ("decided_by = 'ALICE'", "approved_by_another"),
        ("decided_by = NULL", "approved_by_another"),
        ("decided_by_id = author_id", "approved_by_another"),
        ("decided_by_id = NULL", "approved_by_another"),
        ("approved_digest = NULL", "nothing_without_approval"),
        ("approved_digest = 'another'", "nothing_without_approval"),
        ("digest = 'another'", "nothing_without_approval"),
        ("digest = NULL", "proposal"),
        ("status = 'AWAITING_APPROVAL', digest = NULL", "proposal"),
        ("text = NULL", "proposal"),
        ("actions = NULL", "proposal"),
        ("expires_at = NULL", "proposal"),
        ("actions = '{}'", "actions"),
        ("actions = 'null'", "actions"),
        ("revision = -1", "revision"),
        ("status = 'COMPLETED'", "finished"),
        ("status = 'EXPIRED'", "finished"),
        ("finished_at = now()", "finished"),
    ],
)
async def test_nothing_is_carried_out_that_another_person_has_not_approved(
    session: AsyncSession, change: str, constraint: str
) -> None:
    await (await table(session)).approved("rollback")

    assert await refused(session, f"UPDATE ai_tasks SET {change}") == f"ck_ai_tasks_{constraint}"


async def test_what_became_of_an_action_stands_there_once(session: AsyncSession) -> None:
    desk = await table(session)
    task = await desk.approved("pause")
    await desk.carried_out(task.id)
    insert = (
        "INSERT INTO ai_actions (task_id, position, outcome, at) VALUES (:task, :position, 'done', now())"
    )

    assert await refused(session, insert, task=task.id, position=0) == "pk_ai_actions"
    assert await refused(session, insert, task=task.id, position=-1) == "ck_ai_actions_position"
    assert await refused(session, insert, task=new_id(), position=0) == "fk_ai_actions_task_id"


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("success_count = -1", "ck_ring_deployments_success_count"),
        ("failure_count = -1", "ck_ring_deployments_failure_count"),
        ("unreachable_count = -1", "ck_ring_deployments_unreachable_count"),
        ("targeted = -1", "ck_ring_deployments_targeted"),
        ("targeted = 5, success_count = 6", "ck_ring_deployments_counts"),
        (
            "targeted = 5, success_count = 3, failure_count = 2, unreachable_count = 1",
            "ck_ring_deployments_counts",
        ),
        ("position = 5", "ck_ring_deployments_position"),
    ],
)
async def test_a_lanes_counters_stay_within_what_it_targets(
    session: AsyncSession, change: str, constraint: str
) -> None:
    await make_deployment(session)

    name = await refused(session, f"UPDATE ring_deployments SET {change}")

    # Several of them break more than one constraint; PostgreSQL names the first in alphabetical order.
    assert name in {constraint, "ck_ring_deployments_counts", "ck_ring_deployments_success_rate"}


async def test_the_success_rate_follows_from_the_counts_and_cannot_be_written(session: AsyncSession) -> None:
    await make_deployment(session)
    await session.execute(text("UPDATE ring_deployments SET targeted = 8, success_count = 6"))

    assert set(await session.scalars(text("SELECT success_rate FROM ring_deployments"))) == {0.75}
    with pytest.raises(DBAPIError, match="can only be updated to DEFAULT"):
        await session.execute(text("UPDATE ring_deployments SET success_rate = 2"))


async def test_nothing_targeted_has_no_success_rate(session: AsyncSession) -> None:
    await make_deployment(session)

    assert set(await session.scalars(text("SELECT success_rate FROM ring_deployments"))) == {None}


async def test_a_success_rate_is_from_0_to_1_even_without_the_other_constraints(
    session: AsyncSession,
) -> None:
    await make_deployment(session)
    await session.execute(text("ALTER TABLE ring_deployments DROP CONSTRAINT ck_ring_deployments_counts"))

    name = await refused(session, "UPDATE ring_deployments SET targeted = 5, success_count = 6")

    assert name == "ck_ring_deployments_success_rate"


async def test_a_deployment_has_one_lane_for_each_ring_and_plane(session: AsyncSession) -> None:
    await make_deployment(session)

    name = await refused(
        session,
        "INSERT INTO ring_deployments (id, deployment_id, ring, position, plane, target_kind, target_ref)"
        " SELECT :id, deployment_id, ring, position, plane, target_kind, target_ref"
        " FROM ring_deployments LIMIT 1",
        id=new_id(),
    )

    assert name == "uq_ring_deployments_deployment_id_ring_plane"


async def test_an_application_has_one_active_deployment_on_a_plane(session: AsyncSession) -> None:
    await make_deployment(session)
    other = await make_deployment(session, app_name="Something else")

    name = await refused(
        session,
        "UPDATE deployment_planes SET app_name = 'mozilla FIREFOX' WHERE deployment_id = :other",
        other=other.id,
    )

    assert name == "uq_deployment_planes_one_active"


async def test_another_plane_is_free(session: AsyncSession) -> None:
    await make_deployment(session)

    assert isinstance(await make_deployment(session, planes=(Plane.JAMF,)), Deployment)


async def test_an_effects_key_is_there_once(session: AsyncSession) -> None:
    deployment = await make_deployment(session)
    insert = (
        "INSERT INTO effects (id, key, deployment_id, operation_id, plane, action)"
        " VALUES (:id, 'k', :deployment, :operation, 'intune', 'publish')"
    )
    values = {"deployment": deployment.id, "operation": deployment.operation_id}
    await session.execute(text(insert), {"id": new_id(), **values})

    assert await refused(session, insert, id=new_id(), **values) == "uq_effects_key"


async def test_an_operation_has_a_lease_exactly_while_it_runs(session: AsyncSession) -> None:
    await make_deployment(session)

    assert (
        await refused(session, "UPDATE operations SET status = 'RUNNING'")
        == "ck_operations_lease_while_running"
    )


async def test_an_unknown_state_is_refused(session: AsyncSession) -> None:
    await make_deployment(session)

    with pytest.raises(DBAPIError, match="invalid input value for enum"):
        await session.execute(text("UPDATE deployments SET status = 'DONE'"))


async def test_a_statement_that_takes_too_long_is_ended_by_the_server(runtime: Runtime) -> None:
    limits = DatabaseSettings(statement_timeout=0.2)
    engine = open_engine(runtime.engine.url, limits, process="test")
    try:
        async with engine.connect() as connection:
            with pytest.raises(DBAPIError) as caught:
                await connection.execute(text("SELECT pg_sleep(20)"))
            await connection.rollback()
            assert await connection.scalar(text("SELECT 1")) == 1
    finally:
        await engine.dispose()
    assert isinstance(caught.value.orig.__cause__ if caught.value.orig else None, asyncpg.QueryCanceledError)


async def test_a_lock_is_not_waited_for_for_ever(runtime: Runtime) -> None:
    engine = open_engine(runtime.engine.url, DatabaseSettings(lock_timeout=0.2), process="test")
    try:
        async with engine.connect() as first, engine.connect() as second:
            await first.execute(text("LOCK TABLE deployments IN ACCESS EXCLUSIVE MODE"))
            with pytest.raises(DBAPIError, match="lock timeout"):
                await second.execute(text("SELECT * FROM deployments"))
    finally:
        await engine.dispose()


async def test_a_transaction_left_open_is_ended_by_the_server(runtime: Runtime) -> None:
    limits = DatabaseSettings(idle_in_transaction_timeout=0.2)
    engine = open_engine(runtime.engine.url, limits, process="test")
    watcher = open_engine(runtime.engine.url, DatabaseSettings(), process="watcher")
    try:
        async with watcher.connect() as eyes, engine.connect() as idle:
            pid = await idle.scalar(text("SELECT pg_backend_pid()"))
            alive = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
            deadline = time.monotonic() + 10
            while await eyes.scalar(alive, {"pid": pid}):
                await eyes.rollback()
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            await idle.invalidate()
    finally:
        await engine.dispose()
        await watcher.dispose()


async def test_a_server_that_does_not_answer_is_given_up(runtime: Runtime) -> None:
    """A socket that listens and never accepts stands in for a server that hangs."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = runtime.engine.url.set(host="127.0.0.1", port=silent.getsockname()[1], query={})
        engine = open_engine(url, DatabaseSettings(connect_timeout=0.3), process="test")
        with pytest.raises(TimeoutError):
            async with engine.connect():
                pass
        await engine.dispose()


async def test_a_connection_that_died_in_the_pool_is_replaced_unseen(runtime: Runtime) -> None:
    await replaces_a_dead_connection(runtime, runtime.engine)


async def test_a_connection_that_died_while_it_was_idle_is_replaced_unseen(runtime: Runtime) -> None:
    engine = create_async_engine(runtime.engine.url, isolation_level="AUTOCOMMIT")
    ping_when_idle(engine, idle=0)
    try:
        await replaces_a_dead_connection(runtime, engine)
    finally:
        await engine.dispose()


async def replaces_a_dead_connection(runtime: Runtime, engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        pid = await connection.scalar(text("SELECT pg_backend_pid()"))
    watcher = open_engine(runtime.engine.url, DatabaseSettings(), process="watcher")
    async with watcher.connect() as eyes:
        await eyes.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
    await watcher.dispose()

    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT pg_backend_pid()")) != pid


async def test_every_connection_carries_its_limits_and_the_processs_name(runtime: Runtime) -> None:
    query = text(
        "SELECT current_setting('statement_timeout'), current_setting('lock_timeout'),"
        " current_setting('idle_in_transaction_session_timeout'), current_setting('application_name')"
    )
    for engine in (runtime.engine, runtime.accept_engine):
        async with engine.connect() as connection:
            row = (await connection.execute(query)).one()
        assert tuple(row) == ("30s", "5s", "1min", "eucora test")
