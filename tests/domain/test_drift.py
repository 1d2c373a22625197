# SPDX-License-Identifier: Apache-2.0
"""Differences from what was decided: believed when seen twice, repaired in bounds, left to a person."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.connectors.contract import Action, DeviceReport, InstallState, Manifest, Observed, Plane
from app.domain import audit, commands, comparison, drift, effects, events, freezes, repairs, rollback
from app.domain.calendars import FreezeSpan
from app.domain.comparison import NOBODY, Look
from app.domain.drift import Pace
from app.errors import IllegalTransition
from app.models import Deployment, Drift, DriftStatus, DriftType, Operation, OperationStatus, Ring
from app.runtime import Runtime
from tests.domain.operation_bench import waits_for_lock
from tests.domain.steps import S, carry_out, event_types, measure, pass_ring, push, reload
from tests.factories import NOON, make_deployment, manifest

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
PACE = Pace(apart=MINUTE, repair=HOUR)
MENDS = replace(manifest(Plane.INTUNE), mends_version=True)
FINE = Observed(assigned=True, version="143.0.1")
GONE = Observed(assigned=False)
OTHER = Observed(assigned=True, version="142.0")
WIDER = Observed(assigned=True, version="143.0.1", others=("intune-canary", "everybody"))


async def installed(session: AsyncSession, **intent: Any) -> Deployment:
    """A deployment that has passed LAB with one device."""
    deployment = await make_deployment(session, **intent)
    await pass_ring(session, deployment, Ring.LAB, NOON)
    return await reload(session, deployment)


async def look(
    session: AsyncSession, deployment: Deployment, observed: Observed, now: datetime, **given: Any
) -> None:
    """What reconciliation writes after one look at the deployment's first lane."""
    lane = deployment.lanes[given.pop("lane", 0)]
    begun = await comparison.begin_look(session, lane.id)
    assert begun is not None
    values: dict[str, Any] = {"manifest": MENDS, "pace": PACE, "tick": now, "now": now} | given
    await drift.record(session, lane.id, comparison.weigh(begun, observed, NOBODY), **values)


async def seen(session: AsyncSession) -> list[tuple[str, str]]:
    rows = await session.scalars(select(Drift).order_by(Drift.id))
    return [(row.type.value, row.status.value) for row in rows]


async def only(session: AsyncSession) -> Drift:
    return (await session.scalars(select(Drift))).one()


async def repair_works(session: AsyncSession) -> list[Operation]:
    return list(await session.scalars(select(Operation).filter_by(kind="repair_lane").order_by(Operation.id)))


async def end_repairs(session: AsyncSession) -> None:
    for work in await repair_works(session):
        work.status, work.lease_until = OperationStatus.SUCCEEDED, None
    await session.flush()


class TestWeighing:
    """What differs, from what was decided and what was seen."""

    async def begun(self, session: AsyncSession) -> Look:
        deployment = await installed(session)
        found = await comparison.begin_look(session, deployment.lanes[0].id)
        assert found is not None
        return found

    async def test_what_is_as_decided_is_no_finding(self, session: AsyncSession) -> None:
        begun = await self.begun(session)

        assert comparison.weigh(begun, FINE, NOBODY) == []
        assert comparison.weigh(begun, Observed(assigned=True), NOBODY) == []

    @pytest.mark.parametrize(
        ("observed", "kind"),
        [
            (GONE, DriftType.MISSING_ASSIGNMENT),
            (OTHER, DriftType.VERSION_MISMATCH),
            (WIDER, DriftType.SCOPE_MISMATCH),
        ],
    )
    async def test_each_difference_has_its_type(
        self, session: AsyncSession, observed: Observed, kind: DriftType
    ) -> None:
        (finding,) = comparison.weigh(await self.begun(session), observed, NOBODY)

        assert finding.type is kind

    async def test_a_version_that_no_text_can_hold_is_kept_without_what_is_odd(
        self, session: AsyncSession
    ) -> None:
        deployment = await installed(session)
        odd = Observed(assigned=True, version="142\x00.0 \ud83d")

        for minutes in (5, 10):
            await look(session, deployment, odd, NOON + minutes * MINUTE)

        found = await only(session)
        await session.refresh(found)
        assert found.detail == "devices would get 142.0 \ufffd in place of 143.0.1"
        assert found.observed == {"version": "142.0 \ufffd"}

    async def test_a_scope_names_only_what_nobody_decided(self, session: AsyncSession) -> None:
        (finding,) = comparison.weigh(await self.begun(session), WIDER, NOBODY)

        assert finding.observed == {"others": ["everybody"]}

    async def test_devices_that_lost_it_count_once_fewer_have_it_than_the_gate_asked(
        self, session: AsyncSession
    ) -> None:
        begun = replace(await self.begun(session), targeted=100, had_it=98, min_success_rate=0.95)
        lost = [(f"id-{number}", f"pc-{number}") for number in range(4)]

        assert comparison.weigh(begun, FINE, NOBODY.and_these(lost[:3])) == []
        (finding,) = comparison.weigh(begun, FINE, NOBODY.and_these(lost[:3]).and_these(lost[3:]))
        assert (finding.type, finding.observed["devices"]) == (DriftType.COMPLIANCE_DRIFT, 94)
        assert finding.observed["examples"] == ["pc-0", "pc-1", "pc-2", "pc-3"]

    async def test_only_devices_that_had_it_can_lose_it(self, session: AsyncSession) -> None:
        deployment = await make_deployment(session)
        lane = deployment.lanes[0]
        await push(session, lane, "pc-1", "pc-2", "pc-3")
        await measure(session, lane, InstallState.INSTALLED, "pc-1", "pc-2", now=NOON + S)
        reports = [
            DeviceReport(name, name, state)
            for name, state in (
                ("pc-1", InstallState.NOT_INSTALLED),
                ("pc-2", InstallState.INSTALLED),
                ("pc-3", InstallState.NOT_INSTALLED),
                ("unknown", InstallState.NOT_INSTALLED),
            )
        ]

        assert await comparison.have_lost(session, lane.id, reports) == [("pc-1", "pc-1")]


class TestBelief:
    """One empty read is no drift."""

    async def test_what_is_seen_once_is_a_suspicion_and_no_event(self, session: AsyncSession) -> None:
        deployment = await installed(session)
        before = await event_types(session, deployment)

        await look(session, deployment, GONE, NOON + HOUR)

        assert await seen(session) == [("missing_assignment", "SUSPECTED")]
        assert await event_types(session, deployment) == before

    async def test_a_suspicion_that_does_not_last_is_forgotten_in_silence(
        self, session: AsyncSession
    ) -> None:
        deployment = await installed(session)
        before = await event_types(session, deployment)

        await look(session, deployment, GONE, NOON + HOUR)
        await look(session, deployment, FINE, NOON + 2 * HOUR)

        assert await seen(session) == [("missing_assignment", "RESOLVED")]
        assert await event_types(session, deployment) == before

    async def test_two_looks_at_one_moment_are_one(self, session: AsyncSession) -> None:
        deployment = await installed(session)

        await look(session, deployment, GONE, NOON + HOUR)
        await look(session, deployment, GONE, NOON + HOUR + S)

        assert await seen(session) == [("missing_assignment", "SUSPECTED")]

    async def test_what_is_seen_twice_is_believed_and_told(self, session: AsyncSession) -> None:
        deployment = await installed(session)

        await look(session, deployment, GONE, NOON + HOUR)
        await look(session, deployment, GONE, NOON + 2 * HOUR)

        assert await seen(session) == [("missing_assignment", "OPEN")]
        assert (await event_types(session, deployment))[-2:] == ["drift.found", "drift.repair_ordered"]

    async def test_types_are_believed_each_on_its_own(self, session: AsyncSession) -> None:
        deployment = await installed(session)

        await look(session, deployment, GONE, NOON + HOUR)
        await look(session, deployment, WIDER, NOON + 2 * HOUR)

        assert await seen(session) == [
            ("missing_assignment", "RESOLVED"),
            ("scope_mismatch", "SUSPECTED"),
        ]


class TestRepair:
    """Automatic for two types, in LAB and CANARY, not for privileged tooling, three times at most."""

    async def test_a_lost_assignment_is_assigned_again_as_an_effect_of_its_own(
        self, session: AsyncSession
    ) -> None:
        deployment = await installed(session)
        await look(session, deployment, GONE, NOON + HOUR)
        await look(session, deployment, GONE, NOON + 2 * HOUR)
        (work,) = await repair_works(session)
        found = await only(session)

        repair = await repairs.begin(session, found.id, work.id)
        assert repair is not None
        assert await repairs.permit(session, found.id, now=NOON + 2 * HOUR) is None
        await carry_out(session, repair.step, work.id, external_id="assignment-2", now=NOON + 2 * HOUR)
        await repairs.confirm(session, repair, now=NOON + 2 * HOUR)

        assert repair.step.key == f"{deployment.id}/intune/LAB/assign/2"
        assert repair.assignment.target.ref == "intune-lab"
        assert (await event_types(session, deployment))[-1] == "drift.repaired"
        newest = await effects.find_newest(session, deployment.lanes[0], Action.ASSIGN)
        assert newest.external_id == "assignment-2"

    async def test_it_is_resolved_by_the_next_look(self, session: AsyncSession) -> None:
        deployment = await installed(session)
        for hour in (1, 2):
            await look(session, deployment, GONE, NOON + hour * HOUR)
        await end_repairs(session)

        await look(session, deployment, FINE, NOON + 3 * HOUR)

        assert await seen(session) == [("missing_assignment", "RESOLVED")]
        assert (await event_types(session, deployment))[-1] == "drift.resolved"
        assert (await audit.verify(session)).broken == []

    async def test_three_repairs_an_hour_then_two_then_four_apart_then_a_person(
        self, session: AsyncSession
    ) -> None:
        deployment = await installed(session)
        ordered: list[float] = []
        for quarter in range(60):
            before = len(await repair_works(session))
            now = NOON + HOUR + quarter * HOUR / 4
            await look(session, deployment, GONE, now)
            if len(await repair_works(session)) > before:
                ordered.append((now - NOON - HOUR) / HOUR)
                await end_repairs(session)
            if (await only(session)).status is DriftStatus.ESCALATED:
                break

        escalated = (await only(session)).status_since
        assert ordered == [0.25, 1.25, 3.25]
        assert escalated == NOON + HOUR + 7.25 * HOUR
        assert (await event_types(session, deployment))[-1] == "drift.escalated"

    async def mended(self, session: AsyncSession, deployment: Deployment, since: datetime) -> None:
        """It is gone, is believed, is repaired, and is there again, within three hours."""
        for hours, observed in enumerate((GONE, GONE, FINE)):
            await look(session, deployment, observed, since + hours * HOUR)
            await end_repairs(session)

    async def test_who_undoes_every_repair_is_answered_three_times_a_day(self, session: AsyncSession) -> None:
        deployment = await installed(session)
        for hours in (1, 5, 9, 13):
            await self.mended(session, deployment, NOON + hours * HOUR)

        rows = (await session.scalars(select(Drift).order_by(Drift.id))).all()
        assert len(await repair_works(session)) == 3
        assert [row.repairs for row in rows] == [1, 2, 3, 3]
        told = await events.page(session, deployment.id, after=0, limit=200)
        escalated = [event for event in told if event.type == "drift.escalated"]
        assert [(event.after or {})["drift_id"] for event in escalated] == [str(rows[-1].id)]

    async def test_what_comes_back_after_a_day_is_another_difference(self, session: AsyncSession) -> None:
        deployment = await installed(session)
        await self.mended(session, deployment, NOON + HOUR)
        resolved = NOON + 3 * HOUR
        await look(session, deployment, GONE, resolved + 20 * HOUR)
        await look(session, deployment, FINE, resolved + 21 * HOUR)

        await self.mended(session, deployment, resolved + drift.REMEMBERED + S)

        rows = (await session.scalars(select(Drift).order_by(Drift.id))).all()
        assert [row.repairs for row in rows] == [1, 0, 1]

    async def test_no_second_repair_while_the_first_goes_on(self, session: AsyncSession) -> None:
        deployment = await installed(session)
        for hour in range(1, 9):
            await look(session, deployment, GONE, NOON + hour * HOUR)

        assert len(await repair_works(session)) == 1

    @pytest.mark.parametrize(
        ("intent", "observed", "reason"),
        [
            ({}, WIDER, "scope_mismatch is never repaired"),
            ({"privileged": True}, GONE, "privileged tooling is never repaired"),
        ],
    )
    async def test_the_rest_is_a_persons_business(
        self, session: AsyncSession, intent: dict[str, Any], observed: Observed, reason: str
    ) -> None:
        deployment = await installed(session, **intent)

        await look(session, deployment, observed, NOON + HOUR)
        await look(session, deployment, observed, NOON + 2 * HOUR)

        assert (await only(session)).status is DriftStatus.ESCALATED
        assert await repair_works(session) == []
        told = await events.page(session, deployment.id, after=0, limit=200)
        assert told[-1].type == "drift.escalated"
        assert reason in (told[-1].after or {})["reason"]

    @pytest.mark.parametrize(("able", "status"), [(MENDS, "OPEN"), (manifest(Plane.INTUNE), "ESCALATED")])
    async def test_a_version_is_mended_where_the_plane_can(
        self, session: AsyncSession, able: Manifest, status: str
    ) -> None:
        deployment = await installed(session)

        await look(session, deployment, OTHER, NOON + HOUR, manifest=able)
        await look(session, deployment, OTHER, NOON + 2 * HOUR, manifest=able)

        assert await seen(session) == [("version_mismatch", status)]

    async def test_nothing_is_repaired_beyond_canary(self, session: AsyncSession) -> None:
        deployment = await make_deployment(session, target_ring=Ring.PILOT)
        for number, ring in enumerate((Ring.LAB, Ring.CANARY, Ring.PILOT)):
            await pass_ring(session, deployment, ring, NOON + 10 * number * S)
        deployment = await reload(session, deployment)

        for hour in (1, 2):
            await look(session, deployment, GONE, NOON + hour * HOUR, lane=2)

        assert await seen(session) == [("missing_assignment", "ESCALATED")]

    async def test_a_pause_and_a_freeze_hold_a_repair_back(self, session: AsyncSession) -> None:
        deployment = await installed(session)
        for hour in (1, 2):
            await look(session, deployment, GONE, NOON + hour * HOUR)
        found, now = await only(session), NOON + 2 * HOUR

        await commands.pause(session, deployment.id, actor="bob", now=now)
        paused = await repairs.permit(session, found.id, now=now)
        await commands.resume(session, deployment.id, actor="bob", now=now)
        span = FreezeSpan(now, now + HOUR, frozenset(), frozenset(), "holidays")
        await freezes.create(session, span, actor="bob", now=now)
        frozen = await repairs.permit(session, found.id, now=now)

        assert paused is not None
        assert paused.code == "paused"
        assert frozen is not None
        assert (frozen.code, frozen.delay) == ("freeze", HOUR)

    async def test_a_repair_that_is_not_wanted_any_more_sends_nothing(self, session: AsyncSession) -> None:
        deployment = await installed(session)
        for hour in (1, 2):
            await look(session, deployment, GONE, NOON + hour * HOUR)
        (work,) = await repair_works(session)
        found = await only(session)

        await rollback.begin(session, deployment.id, actor="bob", now=NOON + 2 * HOUR)

        assert await repairs.begin(session, found.id, work.id) is None
        with pytest.raises(IllegalTransition):
            await repairs.permit(session, found.id, now=NOON + 2 * HOUR)


class TestInForce:
    """Which lanes are looked at."""

    async def lanes(self, session: AsyncSession, **given: Any) -> int:
        values: dict[str, Any] = {"since": NOON + HOUR, "critical": False, "limit": 100} | given
        return len(await comparison.to_look_at(session, Plane.INTUNE, **values))

    async def test_a_pushed_lane_is_looked_at_once_for_each_tick(self, session: AsyncSession) -> None:
        deployment = await installed(session)
        assert await self.lanes(session) == 1

        await look(session, deployment, FINE, NOON + HOUR)

        assert await self.lanes(session) == 0
        assert await self.lanes(session, since=NOON + 2 * HOUR) == 1

    async def test_a_clock_behind_the_ticks_does_not_look_again_and_again(
        self, session: AsyncSession
    ) -> None:
        deployment = await installed(session)

        await look(session, deployment, FINE, NOON + 59 * MINUTE, tick=NOON + HOUR)

        assert await self.lanes(session) == 0

    async def test_what_was_taken_back_is_not_looked_at_and_its_drift_is_over(
        self, session: AsyncSession
    ) -> None:
        deployment = await installed(session)
        for hour in (1, 2):
            await look(session, deployment, GONE, NOON + hour * HOUR)
        await rollback.begin(session, deployment.id, actor="bob", now=NOON + 2 * HOUR)

        assert await self.lanes(session, since=NOON + 5 * HOUR) == 0
        assert await drift.close_moot(session, Plane.INTUNE, now=NOON + 3 * HOUR) == 1
        assert await seen(session) == [("missing_assignment", "RESOLVED")]

    async def test_two_that_find_it_over_at_once_tell_it_once(self, runtime: Runtime) -> None:
        async with runtime.transaction() as session:
            deployment = await installed(session)
            for hour in (1, 2):
                await look(session, deployment, GONE, NOON + hour * HOUR)
            await rollback.begin(session, deployment.id, actor="bob", now=NOON + 2 * HOUR)

        async def close() -> int:
            async with runtime.transaction() as session:
                return await drift.close_moot(session, Plane.INTUNE, now=NOON + 3 * HOUR)

        async with runtime.transaction() as session:
            first = await drift.close_moot(session, Plane.INTUNE, now=NOON + 3 * HOUR)
            second = asyncio.create_task(close())
            await waits_for_lock(runtime)

        assert (first, await second) == (1, 0)
        async with runtime.transaction() as session:
            assert (await event_types(session, deployment)).count("drift.resolved") == 1

    async def test_a_newer_version_that_was_begun_there_takes_its_place(self, session: AsyncSession) -> None:
        old = await installed(session, target_ring=Ring.LAB)
        assert await self.lanes(session) == 1

        new = await make_deployment(session, version="144.0", app_name=old.app_name.upper())
        assert await self.lanes(session) == 1
        await push(session, new.lanes[0], "pc-1", now=NOON + HOUR)

        found = await comparison.to_look_at(session, Plane.INTUNE, since=NOON + HOUR, critical=False, limit=9)
        assert found == [new.lanes[0].id]

    async def test_critical_applications_are_looked_at_more_often(self, session: AsyncSession) -> None:
        await installed(session, app_name="Editor")
        assert await self.lanes(session, critical=True) == 0

        await installed(session, app_name="Agent", criticality="critical")

        assert await self.lanes(session, critical=True) == 1
        assert await self.lanes(session) == 2


def test_every_type_has_a_severity() -> None:
    assert drift.SEVERITIES.keys() == set(DriftType)


async def test_a_drift_moves_by_its_table_only(session: AsyncSession) -> None:
    deployment = await installed(session)
    await look(session, deployment, GONE, NOON + HOUR)
    found = await only(session)
    await drift.resolve(session, deployment, found, now=NOON + HOUR, why="gone")

    with pytest.raises(IllegalTransition):
        drift.move(found, DriftStatus.OPEN, NOON + HOUR)
