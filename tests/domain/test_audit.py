# SPDX-License-Identifier: Apache-2.0
"""The history is only added to, and whoever alters it behind the product's back is found out.

The altering is done as the owner of the tables, with their triggers disabled, in the test's own transaction.
"""

import json
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import InstallState
from app.domain import audit, commands
from app.domain.audit import GENESIS, Report, link_hash
from app.models import Deployment
from tests.domain.steps import S, measure, push
from tests.factories import NOON, make_deployment
from tests.test_constraints import refused

TABLES = ("events", "event_heads", "event_checkpoints")


async def lived(session: AsyncSession, name: str = "Firefox") -> Deployment:
    """A deployment with a history: pushed, promoted out of LAB, paused and resumed."""
    deployment = await make_deployment(session, app_name=name)
    lane = deployment.lanes[0]
    await push(session, lane, "pc-1")
    await measure(session, lane, InstallState.INSTALLED, "pc-1", now=NOON + S)
    await measure(session, lane, InstallState.INSTALLED, now=NOON + 3 * S)
    await commands.pause(session, deployment.id, actor="bob", now=NOON + 4 * S, reason="lunch")
    await commands.resume(session, deployment.id, actor="bob", now=NOON + 5 * S)
    return deployment


async def tamper(session: AsyncSession, *statements: str, **values: object) -> None:
    for table in TABLES:
        await session.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER ALL"))
    for statement in statements:
        await session.execute(text(statement), values)


async def found(session: AsyncSession) -> list[tuple[str, int]]:
    """Who is broken where."""
    await session.flush()
    session.expunge_all()
    return [(broken.subject.id, broken.sequence) for broken in (await audit.verify(session)).broken]


async def hashes(session: AsyncSession, deployment: Deployment) -> list[bytes]:
    query = text("SELECT hash FROM events WHERE deployment_id = :id ORDER BY sequence")
    return list(await session.scalars(query, {"id": deployment.id}))


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("statement", ["UPDATE {} SET hash = hash", "DELETE FROM {}", "TRUNCATE {} CASCADE"])
async def test_history_cannot_be_changed_or_deleted(
    session: AsyncSession, table: str, statement: str
) -> None:
    await lived(session)
    await audit.checkpoint(session, now=NOON)

    name = await refused(session, statement.format(table))

    assert name.endswith("_kept")


async def test_an_event_that_skips_a_number_is_refused(session: AsyncSession) -> None:
    deployment = await make_deployment(session)

    name = await refused(
        session,
        "INSERT INTO events (deployment_id, sequence, type, actor, correlation_id)"
        " VALUES (:id, 3, 'x', 'mallory', :id)",
        id=deployment.id,
    )

    assert name == "ck_events_chain"


async def test_an_untouched_history_verifies(session: AsyncSession) -> None:
    deployment = await lived(session)
    await audit.checkpoint(session, now=NOON)

    report = await audit.verify(session)

    session.expunge_all()
    events = (await session.get_one(Deployment, deployment.id)).event_sequence
    assert report == Report(deployments=1, events=events, checkpoints=1)


async def test_each_hash_covers_all_before_it(session: AsyncSession) -> None:
    deployment = await lived(session)
    query = text("""SELECT jsonb_build_array(deployment_id, sequence, type, actor,
        to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), before, after, correlation_id)::text
        FROM events ORDER BY sequence""")

    expected, previous = [], GENESIS
    for content in await session.scalars(query):
        previous = link_hash(previous, content)
        expected.append(previous)

    assert len(expected) > 5
    assert await hashes(session, deployment) == expected


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("type", "'deployment.cancelled'"),
        ("actor", "'somebody'"),
        ("at", "at + interval '1 microsecond'"),
        ("before", """before || '{"status": "HELD"}'"""),
        ("after", """after || '{"more": 1}'"""),
        ("correlation_id", "gen_random_uuid()"),
    ],
)
async def test_any_changed_column_is_found_at_its_event(
    session: AsyncSession, column: str, value: str
) -> None:
    deployment = await lived(session)

    await tamper(session, f"UPDATE events SET {column} = {value} WHERE sequence = 3")

    assert await found(session) == [(str(deployment.id), 3)]


async def test_a_deleted_event_is_found(session: AsyncSession) -> None:
    deployment = await lived(session)

    await tamper(session, "DELETE FROM events WHERE sequence = 4")

    assert await found(session) == [(str(deployment.id), 4)]


async def test_a_deleted_event_is_found_also_when_the_others_close_the_gap(session: AsyncSession) -> None:
    deployment = await lived(session)

    await tamper(
        session,
        "DELETE FROM events WHERE sequence = 4",
        "UPDATE events SET sequence = sequence - 1 + 1000 WHERE sequence > 4",
        "UPDATE events SET sequence = sequence - 1000 WHERE sequence > 1000",
        "UPDATE deployments SET event_sequence = event_sequence - 1",
    )

    assert await found(session) == [(str(deployment.id), 4)]


async def test_two_events_that_changed_places_are_found_at_the_first(session: AsyncSession) -> None:
    deployment = await lived(session)

    await tamper(
        session,
        "UPDATE events SET sequence = 1000 WHERE sequence = 3",
        "UPDATE events SET sequence = 3 WHERE sequence = 5",
        "UPDATE events SET sequence = 5 WHERE sequence = 1000",
    )

    assert await found(session) == [(str(deployment.id), 3)]


async def test_events_that_were_cut_off_are_found(session: AsyncSession) -> None:
    deployment = await lived(session)
    last = deployment.event_sequence

    await tamper(session, "DELETE FROM events WHERE sequence > :kept", kept=last - 2)

    assert await found(session) == [(str(deployment.id), last - 1)]


async def test_a_deployment_without_its_row_is_found(session: AsyncSession) -> None:
    deployment = await lived(session)

    await tamper(
        session,
        "ALTER TABLE deployments DISABLE TRIGGER ALL",
        "DELETE FROM deployments WHERE id = :id",
        id=deployment.id,
    )

    assert await found(session) == [(str(deployment.id), 1)]


async def test_of_two_deployments_only_the_altered_one_is_named(session: AsyncSession) -> None:
    await lived(session, "Firefox")
    altered = await lived(session, "Thunderbird")

    await tamper(
        session, "UPDATE events SET actor = 'x' WHERE sequence = 2 AND deployment_id = :id", id=altered.id
    )

    assert await found(session) == [(str(altered.id), 2)]


async def test_a_state_that_no_event_tells_of_is_found(session: AsyncSession) -> None:
    deployment = await lived(session)

    await tamper(session, "UPDATE ring_deployments SET status = 'PROMOTED' WHERE position = 1")

    report = await audit.verify(session)
    assert [broken.subject.id for broken in report.broken] == [str(deployment.id)]
    assert "lane CANARY on intune is PROMOTED, the events tell PENDING" in report.broken[0].reason


async def rewrite(session: AsyncSession, deployment_id: UUID, *, since: int) -> None:
    """What a forger with time does: alter an event and make every later hash fit."""
    await tamper(
        session,
        "CREATE TEMPORARY TABLE forged ON COMMIT DROP AS SELECT * FROM events",
        "UPDATE forged SET actor = 'nobody' WHERE sequence = :since",
        "DELETE FROM events",
        "ALTER TABLE events ENABLE TRIGGER events_chain",
        "INSERT INTO events SELECT * FROM forged WHERE deployment_id = :id ORDER BY sequence",
        since=since,
        id=deployment_id,
    )


async def test_a_rewritten_chain_is_sound_in_itself_and_found_by_a_checkpoint(session: AsyncSession) -> None:
    deployment = await lived(session)
    head = deployment.event_sequence
    await audit.checkpoint(session, now=NOON)

    await rewrite(session, deployment.id, since=3)

    assert await found(session) == [(str(deployment.id), head)]


async def test_checkpoints_that_were_rewritten_too_are_found_by_the_export(session: AsyncSession) -> None:
    deployment = await lived(session)
    await audit.checkpoint(session, now=NOON)
    kept = [json.loads(json.dumps(document)) async for document in audit.export(session)]
    await rewrite(session, deployment.id, since=3)
    await tamper(session, "DELETE FROM event_heads", "DELETE FROM event_checkpoints")
    await audit.checkpoint(session, now=NOON)

    assert await found(session) == []
    report = await audit.verify(session, replay(kept))

    assert report.exported == 1
    assert {(broken.subject.type, broken.sequence) for broken in report.broken} == {
        ("checkpoint", 1),
        ("deployment", deployment.event_sequence),
    }


async def replay(documents: list[dict[str, Any]]) -> AsyncIterator[Mapping[str, Any]]:
    for document in documents:
        yield document


async def test_a_checkpoint_that_is_gone_or_changed_is_found(session: AsyncSession) -> None:
    await lived(session, "Firefox")
    await audit.checkpoint(session, now=NOON)
    await lived(session, "Thunderbird")
    await audit.checkpoint(session, now=NOON + timedelta(hours=1))

    await tamper(session, "UPDATE event_heads SET sequence = 2 WHERE checkpoint = 1")

    report = await audit.verify(session)
    assert ("checkpoint", "1") in {(broken.subject.type, broken.subject.id) for broken in report.broken}


async def test_a_checkpoint_covers_what_is_new_and_nothing_again(session: AsyncSession) -> None:
    first = await lived(session, "Firefox")
    await audit.checkpoint(session, now=NOON)
    second = await lived(session, "Thunderbird")
    await audit.checkpoint(session, now=NOON + timedelta(hours=1))

    assert await audit.checkpoint(session, now=NOON + timedelta(hours=2)) is None
    told = [document async for document in audit.export(session)]
    assert [[head[0] for head in document["heads"]] for document in told] == [
        [str(first.id)],
        [str(second.id)],
    ]
    assert [document["number"] async for document in audit.export(session, after=1)] == [2]
