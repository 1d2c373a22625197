# SPDX-License-Identifier: Apache-2.0
"""What was approved is carried out, just that, once, while it holds; only another person's word counts."""

import copy
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.domain import accounts, ai_actions, ai_decisions, ai_tasks, audit, operations, outcomes
from app.domain.ai_decisions import MOST_REVISIONS
from app.domain.operations import Failure
from app.errors import IllegalTransition, OwnSubmission, ScopeChangeRequired, VersionMismatch
from app.models import (
    ActionOutcome,
    AiTask,
    AiTaskKind,
    AiTaskStatus,
    DeploymentStatus,
    Event,
    OperationStatus,
    Role,
)
from tests.domain.proposing import MEANS, Table, at, code_of, table, token
from tests.domain.steps import S, reload
from tests.factories import NOON

TRIAGE = AiTaskKind.TRIAGE_FAILURES
BOTH = ("pause", "retry_failed_devices")
HOUR = timedelta(hours=1)
ALTERED = (AiTaskStatus.FAILED, "proposal_altered")
GONE = (AiTaskStatus.FAILED, "approver_gone")
EXPIRED = (AiTaskStatus.EXPIRED, "proposal_expired")
DIGEST = "0123456789abcdef" * 4


@pytest.fixture
async def desk(session: AsyncSession) -> Table:
    return await table(session)


async def history(desk: Table) -> list[Event]:
    query = select(Event).filter_by(deployment_id=desk.deployment.id).order_by(Event.sequence)
    return list(await desk.session.scalars(query))


async def tells_one_story(desk: Table) -> None:
    assert (await audit.verify(desk.session)).broken == []


class TestCarriedOut:
    """The actions are a person's orders, in the name of the task, on behalf of whoever approved."""

    async def test_a_rollback_is_begun_and_the_history_tells_for_whom(self, desk: Table) -> None:
        task = await desk.approved("rollback")

        after = await desk.carried_out(task.id)

        assert code_of(after) == (AiTaskStatus.COMPLETED, None)
        deployment = await reload(desk.session, desk.deployment)
        assert deployment.status is DeploymentStatus.ROLLING_BACK
        (row,) = await desk.done(task.id)
        assert (row.outcome, row.detail) == (ActionOutcome.DONE, None)
        assert row.operation_id is not None
        assert (await operations.get(desk.session, row.operation_id)).kind == "execute_rollback"
        told = {each.type: each for each in await history(desk)}
        moved, executed = told["deployment.rolling_back"], told["ai_task.executed"]
        assert (moved.actor, (moved.after or {})["reason"]) == (
            f"ai:{task.id}",
            "2 of 4 (approved by Bob: I agree)",
        )
        assert executed.actor == f"ai:{task.id}"
        assert (executed.after or {})["on_behalf_of"] == "Bob"
        assert told["ai_task.approved"].actor == "Bob"
        await tells_one_story(desk)

    async def test_a_pause_pauses(self, desk: Table) -> None:
        task = await desk.approved("pause")

        await desk.carried_out(task.id)

        deployment = await reload(desk.session, desk.deployment)
        assert (deployment.paused, deployment.paused_by) == (True, f"ai:{task.id}")
        (row,) = await desk.done(task.id)
        assert (row.outcome, row.operation_id) == (ActionOutcome.DONE, None)
        await tells_one_story(desk)

    async def test_two_actions_are_carried_out_in_their_order(self, desk: Table) -> None:
        task = await desk.approved(*BOTH, kind=TRIAGE)

        await desk.carried_out(task.id)

        told = [each.type for each in await history(desk)]
        assert [kind for kind in told if kind in {"deployment.paused", "deployment.retried"}] == [
            *("deployment.paused", "deployment.retried"),
        ]
        assert [row.outcome.value for row in await desk.done(task.id)] == ["done", "done"]
        assert (await reload(desk.session, desk.deployment)).retries_used == 2

    async def test_over_the_budget_nothing_is_tried_again_and_the_task_says_so(self, desk: Table) -> None:
        task = await desk.approved("retry_failed_devices", kind=TRIAGE)
        await desk.sql("UPDATE deployments SET retries_used = 9")
        before = await desk.state(desk.deployment.id)

        after = await desk.carried_out(task.id)

        assert code_of(after) == (AiTaskStatus.FAILED, "action_refused")
        assert await desk.state(desk.deployment.id) == before
        (row,) = await desk.done(task.id)
        assert row.outcome is ActionOutcome.REFUSED
        assert "9 of 10 devices" in (row.detail or "")
        assert [each.type for each in await history(desk)][-2:] == ["ai_task.executed", "ai_task.failed"]
        await tells_one_story(desk)

    async def test_what_is_refused_ends_the_task_and_keeps_what_was_done(self, desk: Table) -> None:
        task = await desk.approved(*BOTH, kind=TRIAGE)
        await desk.sql("UPDATE deployments SET retries_used = 9")

        after = await desk.carried_out(task.id)

        assert code_of(after) == (AiTaskStatus.FAILED, "action_refused")
        assert [row.outcome.value for row in await desk.done(task.id)] == ["done", "refused"]
        assert (await reload(desk.session, desk.deployment)).paused
        await tells_one_story(desk)

    async def test_what_a_person_may_not_the_task_may_not(self, desk: Table) -> None:
        task = await desk.approved("pause")
        await desk.sql("UPDATE deployments SET status = 'COMPLETED'")

        after = await desk.carried_out(task.id)

        assert code_of(after) == (AiTaskStatus.FAILED, "action_refused")
        assert "COMPLETED" in (after.error or {})["message"]

    async def test_a_text_without_actions_is_completed_and_nothing_happens(self, desk: Table) -> None:
        task = await desk.approved(kind=AiTaskKind.SUMMARISE_ROLLOUT)
        before = await desk.state(desk.deployment.id)

        assert (await desk.carried_out(task.id)).status is AiTaskStatus.COMPLETED
        assert await desk.state(desk.deployment.id) == before

    async def test_an_action_is_done_once_however_often_it_is_begun(self, desk: Table) -> None:
        task = await desk.approved(*BOTH, kind=TRIAGE)
        await desk.carried_out(task.id)
        before = await desk.state(desk.deployment.id)

        for _ in range(3):
            assert await ai_actions.begin(desk.session, task.id, MEANS) is None
            assert await ai_actions.carry_out(desk.session, task.id, 0, MEANS) is None
            assert (await desk.carried_out(task.id)).status is AiTaskStatus.COMPLETED

        assert await desk.state(desk.deployment.id) == before
        assert len(await desk.done(task.id)) == 2

    async def test_a_run_that_follows_a_lost_one_does_only_the_rest(self, desk: Table) -> None:
        task = await desk.approved(*BOTH, kind=TRIAGE)
        await ai_actions.begin(desk.session, task.id, MEANS)
        await ai_actions.carry_out(desk.session, task.id, 0, MEANS)

        after = await desk.carried_out(task.id)

        assert after.status is AiTaskStatus.COMPLETED
        told = [each.type for each in await history(desk)]
        assert (told.count("deployment.paused"), told.count("deployment.retried")) == (1, 1)

    async def test_what_the_history_tells_was_done_is_not_done_again_without_its_row(
        self, desk: Table
    ) -> None:
        task = await desk.approved("pause")
        await desk.carried_out(task.id)
        await desk.sql("DELETE FROM ai_actions")
        await desk.sql("UPDATE ai_tasks SET status = 'APPROVED', finished_at = NULL")
        await desk.sql("UPDATE deployments SET paused = false")

        after = await desk.carried_out(task.id)

        assert code_of(after) == ALTERED
        assert not (await reload(desk.session, desk.deployment)).paused
        assert await desk.done(task.id) == []


class TestDecided:
    """Another person says yes, to what is there, in time."""

    @pytest.mark.parametrize("name", ["Alice", "ALICE", "alice"])
    async def test_nobody_approves_their_own_whatever_their_token_is_called(
        self, desk: Table, name: str
    ) -> None:
        task = await desk.proposed("rollback")
        same = await token(desk.session, name, Role.ADMIN)

        with pytest.raises(OwnSubmission):
            await ai_decisions.approve(desk.session, task.id, desk.decision(actor=same))
        await ai_decisions.reject(desk.session, task.id, desk.decision(actor=same))

        assert (await desk.seen(task.id)).status is AiTaskStatus.REJECTED

    async def test_a_second_approval_changes_nothing(self, desk: Table) -> None:
        task = await desk.proposed("rollback")
        first = await ai_decisions.approve(desk.session, task.id, desk.decision())
        version = first[0].version

        again = await ai_decisions.approve(desk.session, task.id, desk.decision())
        await desk.carried_out(task.id)
        late = await ai_decisions.approve(desk.session, task.id, desk.decision(digest=task.digest))

        assert first[1] == again[1] == late[1]
        assert again[0].version == version + 2  # carried out meanwhile: begun, and completed
        assert [each.type for each in await history(desk)].count("ai_task.approved") == 1

    async def test_a_repeat_for_another_digest_is_no_repeat(self, desk: Table) -> None:
        task = await desk.approved("rollback")

        with pytest.raises(IllegalTransition):
            await ai_decisions.approve(desk.session, task.id, desk.decision(digest=DIGEST))

    async def test_what_was_decided_is_not_decided_otherwise(self, desk: Table) -> None:
        task = await desk.approved("rollback")
        carol = await token(desk.session, "Carol", Role.APPROVER)

        for decide in (ai_decisions.approve, ai_decisions.reject, ai_decisions.request_revision):
            with pytest.raises(IllegalTransition):
                await decide(desk.session, task.id, desk.decision(actor=carol))

    async def test_a_decision_on_another_version_or_digest_is_refused(self, desk: Table) -> None:
        task = await desk.proposed("rollback")

        for decide in (ai_decisions.approve, ai_decisions.reject, ai_decisions.request_revision):
            with pytest.raises(VersionMismatch):
                await decide(desk.session, task.id, desk.decision(version=task.version + 1))
            with pytest.raises(ScopeChangeRequired):
                await decide(desk.session, task.id, desk.decision(digest=DIGEST))

        assert (await desk.seen(task.id)).status is AiTaskStatus.AWAITING_APPROVAL

    async def test_a_revision_has_another_digest_and_the_old_one_is_not_approved(self, desk: Table) -> None:
        task = await desk.proposed("rollback")
        first = task.digest
        await ai_decisions.request_revision(desk.session, task.id, desk.decision(reason="rather pause"))
        await desk.proposed("pause", task=task)

        with pytest.raises(ScopeChangeRequired):
            await ai_decisions.approve(desk.session, task.id, desk.decision(digest=first))
        after, _ = await ai_decisions.approve(desk.session, task.id, desk.decision(digest=task.digest))

        assert (after.revision, after.revision_note) == (2, "rather pause")
        assert first != after.digest == after.approved_digest

    async def test_of_several_proposals_an_approval_says_which_is_meant(self, desk: Table) -> None:
        task = await desk.proposed("rollback")
        await ai_decisions.request_revision(desk.session, task.id, desk.decision())
        await desk.proposed("pause", task=task)

        with pytest.raises(ScopeChangeRequired, match="2 times"):
            await ai_decisions.approve(desk.session, task.id, desk.decision())
        after, _ = await ai_decisions.approve(desk.session, task.id, desk.decision(version=task.version))

        assert after.status is AiTaskStatus.APPROVED

    async def test_there_are_so_many_revisions_and_no_more(self, desk: Table) -> None:
        task = await desk.proposed("pause")
        for _ in range(MOST_REVISIONS - 1):
            await ai_decisions.request_revision(desk.session, task.id, desk.decision())
            await desk.proposed("pause", task=task)

        with pytest.raises(IllegalTransition, match="5 times"):
            await ai_decisions.request_revision(desk.session, task.id, desk.decision())

        await ai_decisions.approve(desk.session, task.id, desk.decision(digest=task.digest))

    async def test_nothing_is_approved_after_its_time(self, desk: Table) -> None:
        task = await desk.proposed("rollback")
        assert task.expires_at == NOON + 5 * S + timedelta(hours=4)

        with pytest.raises(IllegalTransition, match="expired"):
            await ai_decisions.approve(desk.session, task.id, desk.decision(now=task.expires_at))

    async def test_what_does_not_hold_any_more_when_it_is_begun_is_not_done(self, desk: Table) -> None:
        task = await desk.approved("rollback")
        before = await desk.state(desk.deployment.id)
        assert task.expires_at is not None

        after = await desk.carried_out(task.id, at(task.expires_at))

        assert code_of(after) == EXPIRED
        assert await desk.state(desk.deployment.id) == before
        assert [each.type for each in await history(desk)][-1] == "ai_task.expired"

    async def test_what_does_not_hold_any_more_after_its_first_action_goes_no_further(
        self, desk: Table
    ) -> None:
        task = await desk.approved(*BOTH, kind=TRIAGE)
        await ai_actions.begin(desk.session, task.id, MEANS)
        await ai_actions.carry_out(desk.session, task.id, 0, MEANS)
        assert task.expires_at is not None

        assert await ai_actions.carry_out(desk.session, task.id, 1, at(task.expires_at)) is None

        assert code_of(await desk.seen(task.id)) == EXPIRED
        assert len(await desk.done(task.id)) == 1

    @pytest.mark.parametrize(
        "change",
        [
            "revoked_at = now()",
            "expires_at = timestamptz '2026-01-01'",
            "role = 'viewer'",
            "role = 'packager'",
            "role = 'publisher'",
            "name = 'Mallory'",
        ],
    )
    async def test_whoever_may_not_approve_any_more_has_approved_nothing(
        self, desk: Table, change: str
    ) -> None:
        task = await desk.approved("rollback")
        before = await desk.state(desk.deployment.id)
        await desk.sql(f"UPDATE api_tokens SET {change} WHERE id = :id", id=desk.approver.id)

        after = await desk.carried_out(task.id)

        assert code_of(after) == GONE
        assert await desk.state(desk.deployment.id) == before
        assert await desk.done(task.id) == []

    async def test_whoever_is_gone_after_the_first_action_has_no_second_one_done(self, desk: Table) -> None:
        task = await desk.approved(*BOTH, kind=TRIAGE)
        await ai_actions.begin(desk.session, task.id, MEANS)
        await ai_actions.carry_out(desk.session, task.id, 0, MEANS)
        await desk.sql("UPDATE api_tokens SET revoked_at = now() WHERE id = :id", id=desk.approver.id)

        assert await ai_actions.carry_out(desk.session, task.id, 1, MEANS) is None

        assert code_of(await desk.seen(task.id)) == GONE
        assert len(await desk.done(task.id)) == 1

    @pytest.mark.parametrize(
        "change",
        [
            "text = 'Nothing to see'",
            "expires_at = expires_at + interval '1 hour'",
            "revision = 9",
            """actions = '[]'""",
        ],
    )
    async def test_what_was_altered_before_it_was_approved_can_only_be_rejected(
        self, desk: Table, change: str
    ) -> None:
        task = await desk.proposed("rollback")
        await desk.sql(f"UPDATE ai_tasks SET {change}")

        with pytest.raises(ScopeChangeRequired):
            await ai_decisions.approve(desk.session, task.id, desk.decision())
        await ai_decisions.reject(desk.session, task.id, desk.decision())

    @pytest.mark.parametrize("kind", [AiTaskKind.SUMMARISE_ROLLOUT, TRIAGE])
    async def test_what_the_rules_do_not_have_is_not_approved_however_it_was_signed(
        self, desk: Table, kind: AiTaskKind
    ) -> None:
        task = await desk.proposed("rollback")
        await desk.sql("UPDATE ai_tasks SET kind = CAST(:kind AS ai_task_kind)", kind=kind.value)
        digest = ai_tasks.digest_now(await desk.seen(task.id))
        await desk.sql("UPDATE ai_tasks SET digest = :digest", digest=digest)

        with pytest.raises(ScopeChangeRequired):
            await ai_decisions.approve(desk.session, task.id, desk.decision(digest=digest))

    async def test_an_action_on_another_deployment_is_not_approved_however_it_was_signed(
        self, desk: Table
    ) -> None:
        task = await desk.proposed("rollback")
        other = await table(desk.session, app_name="Another")
        actions = copy.deepcopy(task.actions or [])
        actions[0]["target"]["deployment_id"] = str(other.deployment.id)
        task.actions = actions
        task.digest = ai_tasks.digest_now(task)
        await desk.session.flush()

        with pytest.raises(ScopeChangeRequired):
            await ai_decisions.approve(desk.session, task.id, desk.decision(digest=task.digest))


class TestWork:
    """The operation of a half ends, is stopped, is taken up again."""

    async def test_a_proposal_that_failed_is_made_anew_when_its_work_is_revived(self, desk: Table) -> None:
        task = await desk.asked()
        await ai_tasks.begin_proposing(desk.session, task.id, now=NOON + 4 * S)
        await ai_tasks.keep_step(desk.session, task.id, [{"text": "old", "calls": [], "results": []}])
        await self.end(desk, task, OperationStatus.FAILED)
        assert code_of(await desk.seen(task.id)) == (AiTaskStatus.FAILED, "circuit_open")

        assert task.operation_id is not None
        await operations.revive(desk.session, task.operation_id, revived=outcomes.operation_revived)
        wanted = await ai_tasks.begin_proposing(desk.session, task.id, now=NOON + 5 * S)

        assert wanted is not None
        assert wanted.steps == ()
        await desk.proposed("pause", task=task)
        assert code_of(await desk.seen(task.id)) == (AiTaskStatus.AWAITING_APPROVAL, None)

    async def test_carrying_out_is_not_revived(self, desk: Table) -> None:
        task = await desk.approved("rollback")
        await ai_actions.begin(desk.session, task.id, MEANS)
        await self.end(desk, task, OperationStatus.FAILED)
        assert [each.type for each in await history(desk)][-1] == "ai_task.failed"

        assert task.operation_id is not None
        with pytest.raises(IllegalTransition, match="ask for a new task"):
            await operations.revive(desk.session, task.operation_id, revived=outcomes.operation_revived)

    async def test_old_work_is_not_revived_for_a_task_that_went_on(self, desk: Table) -> None:
        task = await desk.proposed("pause")
        old = task.operation_id
        await ai_decisions.request_revision(desk.session, task.id, desk.decision())
        await desk.sql("UPDATE operations SET status = 'FAILED' WHERE id = :id", id=old)

        assert old is not None
        with pytest.raises(IllegalTransition):
            await operations.revive(desk.session, old, revived=outcomes.operation_revived)

    async def test_work_that_is_cancelled_says_so_whatever_it_waited_for(self, desk: Table) -> None:
        task = await desk.asked()
        await desk.sql(
            "UPDATE operations SET error = :error WHERE id = :id".replace(":error", "CAST(:error AS jsonb)"),
            error='{"class": "transient", "code": "circuit_open", "message": "away", "service": null}',
            id=task.operation_id,
        )

        await self.end(desk, task, OperationStatus.CANCELLED)

        assert code_of(await desk.seen(task.id)) == (AiTaskStatus.FAILED, "cancelled")

    async def test_a_proposal_that_waits_for_a_person_outlives_its_work(self, desk: Table) -> None:
        task = await desk.proposed("pause")

        await self.end(desk, task, OperationStatus.CANCELLED)

        assert (await desk.seen(task.id)).status is AiTaskStatus.AWAITING_APPROVAL

    async def end(self, desk: Table, task: AiTask, status: OperationStatus) -> None:
        assert task.operation_id is not None
        work = await operations.lock(desk.session, task.operation_id)
        away = Failure("transient", "circuit_open", "the provider is away", "ai_provider")
        failure = away if status is OperationStatus.FAILED else None
        await operations.end(desk.session, work, status, failure=failure, ended=outcomes.operation_ended)


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30)
WHEN = st.integers(-(10**8), 10**8).map(lambda seconds: NOON + seconds * S)
REASON = {"reason": "2 of 4"}
PARTS: dict[str, Any] = {
    "action": st.sampled_from(["rollback", "retry_failed_devices", "deploy", "promote", "PAUSE"]),
    "target": st.sampled_from(["another", "other spelling", "more", "none"]),
    "arguments": st.builds(lambda reason: {"reason": reason}, TEXTS)
    | st.dictionaries(TEXTS, st.integers() | TEXTS, max_size=2)
    | st.just(REASON | {"force": True}),
    "also": st.none() | TEXTS,
}
COLUMNS: dict[str, Any] = {
    "text": TEXTS,
    "reason": st.none() | TEXTS,
    "expires_at": WHEN,
    "revision": st.integers(-2, 2**31 - 1),
    "kind": st.sampled_from([kind.value for kind in AiTaskKind]),
    "deployment_id": st.just("another"),
    "author": st.sampled_from(["Carol", "Bob", "bob", "alice", ""]),
    "digest": st.just(DIGEST) | TEXTS,
    "approved_digest": st.just(DIGEST) | st.none(),
    "decided_by": st.sampled_from(["Carol", "Alice", "ALICE", "bob", "bootstrap", None]),
    "decided_by_id": st.sampled_from(["Carol", "Dave", "Alice", "bootstrap", "nobody", None]),
}
ONE_COLUMN = st.one_of([st.tuples(st.just(name), values) for name, values in COLUMNS.items()])
ONE_PART = st.one_of([st.tuples(st.just(name), values) for name, values in PARTS.items()])
LISTS = st.sampled_from(["reversed", "shorter", "empty", "doubled", "longer", "null", "object"])
ANY_FIELD = st.one_of(
    ONE_COLUMN,
    st.tuples(st.just("actions"), st.tuples(st.integers(0, 1), ONE_PART) | LISTS),
)
MOMENTS = ("before it is begun", "before the first action", "before the second")


class TestAltered:
    """Approving A and executing B is impossible: whoever alters what is stored has it refused."""

    @settings(
        max_examples=45,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        print_blob=True,
    )
    @given(change=ANY_FIELD, moment=st.sampled_from(MOMENTS), signed=st.booleans())
    @example(change=("deployment_id", "another"), moment=MOMENTS[0], signed=True)
    @example(change=("actions", (1, ("target", "another"))), moment=MOMENTS[1], signed=True)
    @example(change=("actions", "shorter"), moment=MOMENTS[0], signed=True)
    @example(change=("expires_at", NOON + HOUR), moment=MOMENTS[2], signed=True)
    @example(change=("author", "Carol"), moment=MOMENTS[0], signed=True)
    @example(change=("reason", "They made me"), moment=MOMENTS[0], signed=False)
    async def test_no_field_can_be_another_than_what_was_approved(
        self, session: AsyncSession, *, change: tuple[str, Any], moment: str, signed: bool
    ) -> None:
        savepoint = await session.begin_nested()
        try:
            desk = await table(session)
            another = (await table(session, app_name="Another")).deployment.id
            task = await desk.approved(*BOTH, kind=TRIAGE)
            await self.until(desk, task.id, moment)
            states = [await desk.state(each) for each in (desk.deployment.id, another)]
            done = len(await desk.done(task.id))

            altered = await self.alter(desk, task.id, change, another, signed=signed)

            event(f"{change[0]}: {altered}")
            if altered == "altered":
                after = await desk.carried_out(task.id)
                assert code_of(after) in {ALTERED, GONE, EXPIRED}
                assert len(await desk.done(task.id)) == done
                assert [await desk.state(each) for each in (desk.deployment.id, another)] == states
        finally:
            await savepoint.rollback()
            session.expunge_all()

    async def until(self, desk: Table, task_id: UUID, moment: str) -> None:
        if moment != MOMENTS[0]:
            await ai_actions.begin(desk.session, task_id, MEANS)
        if moment == MOMENTS[2]:
            await ai_actions.carry_out(desk.session, task_id, 0, MEANS)

    async def alter(
        self, desk: Table, task_id: UUID, change: tuple[str, Any], another: UUID, *, signed: bool
    ) -> str:
        """``altered``, ``as it was``, or ``refused`` by the database itself."""
        session, (column, value) = desk.session, change
        task = await desk.seen(task_id)
        before = getattr(task, column)
        if column == "actions":
            value = other_actions(copy.deepcopy(before), value, another)
        elif column == "deployment_id":
            value = another
        elif column == "decided_by_id":
            value = await self.token_id(desk, value)
        elif column == "kind":
            value = AiTaskKind(value)
        try:
            async with session.begin_nested():
                session.expunge_all()
                await session.execute(update(AiTask).values({column: value}))
                after = getattr(await desk.seen(task_id), column)
                if signed:
                    await desk.sign(task_id)
        except IntegrityError:
            return "refused"
        return "as it was" if after == before else "altered"

    async def token_id(self, desk: Table, name: str | None) -> UUID | None:
        if name == "Carol":
            return (await token(desk.session, "Carol", Role.APPROVER)).id
        if name == "Dave":
            return (await token(desk.session, "Dave", Role.VIEWER)).id
        known = {
            "Alice": desk.author.id,
            "bootstrap": accounts.BOOTSTRAP.id,
            "nobody": UUID(int=7),
            None: None,
        }
        return known[name]

    async def test_somebody_elses_approval_cannot_be_written_in(self, desk: Table) -> None:
        task = await desk.proposed("rollback")
        before = await desk.state(desk.deployment.id)
        await desk.sql(
            "UPDATE ai_tasks SET status = 'APPROVED', approved_digest = digest, decided_by = 'Bob',"
            " decided_by_id = :bob, decided_at = now()",
            bob=desk.approver.id,
        )

        after = await desk.carried_out(task.id)

        assert code_of(after) == ALTERED
        assert await desk.state(desk.deployment.id) == before

    async def test_another_approver_of_the_same_name_has_not_approved_it(self, desk: Table) -> None:
        task = await desk.approved("rollback")
        namesake = await token(desk.session, "Bob", Role.APPROVER)
        await desk.sql("UPDATE ai_tasks SET decided_by_id = :other", other=namesake.id)

        assert code_of(await desk.carried_out(task.id)) == ALTERED
        assert await desk.done(task.id) == []

    async def test_what_was_rejected_cannot_be_approved_by_hand(self, desk: Table) -> None:
        task = await desk.proposed("rollback")
        await ai_decisions.reject(desk.session, task.id, desk.decision())
        await desk.sql(
            "UPDATE ai_tasks SET status = 'APPROVED', approved_digest = digest, finished_at = NULL"
        )

        assert code_of(await desk.carried_out(task.id)) == ALTERED
        assert await desk.done(task.id) == []

    async def test_another_tasks_approval_is_none_of_this(self, desk: Table) -> None:
        await desk.approved("pause")
        task = await desk.proposed("rollback")
        await desk.sql(
            "UPDATE ai_tasks SET status = 'APPROVED', approved_digest = digest, decided_by = 'Bob',"
            " decided_by_id = :bob, reason = 'I agree' WHERE id = :id",
            bob=desk.approver.id,
            id=task.id,
        )

        assert code_of(await desk.carried_out(task.id)) == ALTERED

    async def test_the_approval_in_the_history_cannot_be_altered(self, desk: Table) -> None:
        await desk.approved("rollback")

        for statement in ("UPDATE events SET after = '{}'", "DELETE FROM events"):
            with pytest.raises(DBAPIError, match="only ever added"):
                async with desk.session.begin_nested():
                    await desk.session.execute(text(statement))


def other_actions(actions: list[Any], change: Any, another: UUID) -> Any:
    """The two actions, altered in one place."""
    if isinstance(change, str):
        longer = [*actions, actions[0] | {"action": "rollback"}]
        lists = {"reversed": actions[::-1], "shorter": actions[:1], "empty": [], "longer": longer}
        return (lists | {"doubled": actions * 2, "null": None, "object": {}})[change]
    place, (part, value) = change
    if part == "target":
        own = actions[place]["target"]["deployment_id"]
        targets = {
            "another": {"deployment_id": str(another)},
            "other spelling": {"deployment_id": own.upper()},
            "more": {"deployment_id": own, "ring": "LAB"},
            "none": {},
        }
        value = targets[value]
    actions[place][part] = value
    return actions
