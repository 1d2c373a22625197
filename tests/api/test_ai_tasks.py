# SPDX-License-Identifier: Apache-2.0
"""Tasks of the assistant over HTTP: who may ask, who may decide, what is answered, what is refused."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import text

from app.domain import ai_tasks, proposals
from app.models import AiTask, AiTaskKind, Role
from app.runtime import Runtime
from app.settings import Settings
from tests.api.conftest import BOOTSTRAP, Submit, client_of, key, pointers, problem, started
from tests.factories import make_deployment

TokenFor = Callable[[Role], Awaitable[str]]
NOBODY = "0199c0de-0000-7000-8000-00000000dead"
ASKED = {"kind": "triage_failures", "deployment_id": NOBODY}
DECISIONS = ("approve", "reject", "request-revision")
LIMITED = {
    "provider": SecretStr("openai"),
    "model": SecretStr("m"),
    "base_url": SecretStr("http://127.0.0.1:9/v1"),
    "requests_per_day": SecretStr("1"),
}


@dataclass(slots=True)
class People:
    """A caller of each role, and what a worker would have written."""

    runtime: Runtime
    deployment_id: str
    clients: dict[Role, httpx.AsyncClient]

    def __getitem__(self, role: Role) -> httpx.AsyncClient:
        return self.clients[role]

    async def ask(self, role: Role = Role.PACKAGER, **given: Any) -> dict[str, Any]:
        body = ASKED | {"deployment_id": self.deployment_id} | given
        answer = await self[role].post("/ai/tasks", json=body, headers=key())
        assert answer.status_code == 202, answer.text
        task: dict[str, Any] = answer.json()
        return task

    async def propose(self, task: dict[str, Any], *actions: str, said: str = "It failed.") -> dict[str, Any]:
        named = [
            {"action": each, "deployment_id": self.deployment_id, "reason": "3 of 10"} for each in actions
        ]
        async with self.runtime.transaction() as session:
            row = await session.get_one(AiTask, task["id"])
            made = proposals.check(row.kind, row.deployment_id, {"text": said, "actions": named})
            await ai_tasks.begin_proposing(session, row.id, now=self.runtime.clock())
            await ai_tasks.propose(session, row.id, made, model="m", now=self.runtime.clock())
        read: dict[str, Any] = (await self[Role.VIEWER].get(f"/ai/tasks/{task['id']}")).json()
        return read

    async def proposed(self, *actions: str, **given: Any) -> dict[str, Any]:
        return await self.propose(await self.ask(**given), *actions)

    async def decide(self, task: dict[str, Any], what: str, **given: Any) -> httpx.Response:
        """As an approver."""
        return await self[Role.APPROVER].post(f"/ai/tasks/{task['id']}/{what}", **given)


@pytest.fixture
async def people(
    app: FastAPI, api_runtime: Runtime, token_for: TokenFor, submit: Submit
) -> AsyncIterator[People]:
    deployment_id = (await submit())["id"]
    async with AsyncExitStack() as stack:
        clients = {
            role: await stack.enter_async_context(client_of(app, await token_for(role))) for role in Role
        }
        yield People(api_runtime, deployment_id, clients)


class TestAsked:
    async def test_a_task_is_accepted_and_its_proposal_comes_later(self, people: People) -> None:
        body = ASKED | {"deployment_id": people.deployment_id, "instructions": "password: hunter22, be brief"}

        answer = await people[Role.PACKAGER].post("/ai/tasks", json=body, headers=key())

        task = answer.json()
        assert (answer.status_code, answer.headers["etag"]) == (202, '"1"')
        assert answer.headers["location"] == f"/api/v1/ai/tasks/{task['id']}"
        assert (task["status"], task["proposal"], task["decision"]) == ("PENDING", None, None)
        assert (task["author"], task["kind"]) == ("some packager", "triage_failures")
        assert task["instructions"] == "password: [redacted], be brief"
        work = (await people[Role.VIEWER].get(f"/operations/{task['operation_id']}")).json()
        assert (work["kind"], work["subject"]) == ("execute_ai_task", {"type": "ai_task", "id": task["id"]})
        assert work["correlation_id"] == task["correlation_id"] == answer.headers["x-correlation-id"]

    async def test_a_key_is_required_and_a_repeat_is_the_same_task(self, people: People) -> None:
        client, body = people[Role.PACKAGER], ASKED | {"deployment_id": people.deployment_id}
        missing = await client.post("/ai/tasks", json=body)
        assert pointers(missing, "idempotency_key_required") == ["/header/Idempotency-Key"]

        once = key()
        first = await client.post("/ai/tasks", json=body, headers=once)
        again = await client.post("/ai/tasks", json=body, headers=once)
        other = await client.post("/ai/tasks", json=body | {"kind": "summarise_rollout"}, headers=once)

        assert first.content == again.content
        problem(other, 409, "idempotency_key_reused")
        assert len((await client.get("/ai/tasks")).json()["items"]) == 1

    async def test_what_is_wrong_is_named(self, people: People) -> None:
        client = people[Role.PACKAGER]

        async def wrong(**given: Any) -> list[str]:
            body = ASKED | {"deployment_id": people.deployment_id} | given
            return pointers(await client.post("/ai/tasks", json=body, headers=key()))

        assert await wrong(deployment_id=NOBODY) == ["/deployment_id"]
        assert await wrong(deployment_id="Firefox") == ["/deployment_id"]
        assert await wrong(kind="deploy") == ["/kind"]
        assert await wrong(instructions="") == ["/instructions"]
        assert await wrong(instructions="\x00") == ["/instructions"]
        assert await wrong(actions=[]) == ["/actions"]

    @pytest.mark.parametrize("role", [Role.VIEWER, Role.APPROVER])
    async def test_whoever_only_reads_or_decides_cannot_ask(self, people: People, role: Role) -> None:
        problem(await people[role].post("/ai/tasks", json=ASKED, headers=key()), 403, "forbidden")

    async def test_a_stranger_sees_nothing(self, stranger: httpx.AsyncClient) -> None:
        problem(await stranger.get("/ai/tasks"), 401, "unauthenticated")
        problem(await stranger.post(f"/ai/tasks/{NOBODY}/approve"), 401, "unauthenticated")

    async def test_without_a_model_it_says_what_to_set(self, settings: Settings) -> None:
        own = settings.model_copy(update={"bootstrap_token": SecretStr(BOOTSTRAP)})
        async with started(own) as app, client_of(app, BOOTSTRAP) as client:
            refused = await client.post("/ai/tasks", json=ASKED, headers=key())

            assert "EUCORA_AI__PROVIDER" in problem(refused, 409, "ai_not_configured")["detail"]
            assert (await client.get("/ai/tasks")).json()["items"] == []

    async def test_there_is_a_limit_for_each_caller_and_day(self, api_settings: Settings) -> None:
        own = api_settings.model_copy(update={"ai": LIMITED})
        async with started(own) as app, client_of(app, BOOTSTRAP) as client:
            runtime: Runtime = app.state.service.runtime
            async with runtime.transaction() as session:
                deployment = await make_deployment(session)
            body = ASKED | {"deployment_id": str(deployment.id)}
            assert (await client.post("/ai/tasks", json=body, headers=key())).status_code == 202

            refused = await client.post("/ai/tasks", json=body, headers=key())

            assert "midnight UTC" in problem(refused, 429, "ai_limit_reached")["detail"]
            assert 0 < int(refused.headers["retry-after"]) <= 86_400


class TestRead:
    async def test_a_proposal_shows_what_would_be_done_and_under_which_digest(self, people: People) -> None:
        task = await people.proposed("pause", "retry_failed_devices")

        proposal = task["proposal"]
        assert (task["status"], proposal["revision"], proposal["text"]) == (
            *("AWAITING_APPROVAL", 1, "It failed."),
        )
        assert len(proposal["digest"]) == 64
        assert proposal["actions"][0] == {
            "action": "pause",
            "target": {"deployment_id": people.deployment_id},
            "arguments": {"reason": "3 of 10"},
            **dict.fromkeys(("outcome", "detail", "operation_id", "at")),
        }
        read = await people[Role.VIEWER].get(f"/ai/tasks/{task['id']}")
        assert read.headers["etag"] == f'"{task["version"]}"'

    async def test_the_filters_narrow_and_the_pages_follow(self, people: People) -> None:
        waiting = await people.proposed("pause")
        rest = [await people.ask(kind=kind.value) for kind in AiTaskKind]

        async def found(**filters: Any) -> list[str]:
            answer = await people[Role.VIEWER].get("/ai/tasks", params=filters)
            return [item["id"] for item in answer.json()["items"]]

        everything = [each["id"] for each in reversed([waiting, *rest])]
        assert await found() == everything
        assert await found(status="AWAITING_APPROVAL") == [waiting["id"]]
        assert await found(kind="propose_rollback") == [rest[3]["id"]]
        assert await found(deployment_id=NOBODY) == []
        assert await found(deployment_id=people.deployment_id, status="PENDING", kind="triage_failures") == [
            rest[1]["id"]
        ]
        assert pointers(await people[Role.VIEWER].get("/ai/tasks?status=DONE")) == ["/query/status"]
        paged: list[str] = []
        cursor = None
        for _ in range(3):
            params = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
            page = (await people[Role.VIEWER].get("/ai/tasks", params=params)).json()
            paged, cursor = paged + [item["id"] for item in page["items"]], page["next_cursor"]
        assert (paged, cursor) == (everything, None)

    @pytest.mark.parametrize(
        "change",
        [
            """actions = '[{"action": "deploy", "target": {}, "arguments": {}}]'""",
            "actions = '[1]'",
            "text = repeat('x', 30000)",
            "digest = 'none'",
            "revision = 2147483647",
        ],
    )
    async def test_one_that_somebody_altered_keeps_nobody_from_the_others(
        self, people: People, change: str
    ) -> None:
        broken, whole = await people.proposed("pause"), await people.proposed("pause")
        async with people.runtime.autocommit() as connection:
            statement = text(f"UPDATE ai_tasks SET {change} WHERE id = :id")
            await connection.execute(statement, {"id": broken["id"]})

        listed = (await people[Role.VIEWER].get("/ai/tasks")).json()["items"]

        assert [(each["id"], each["proposal"]) for each in listed] == [
            (whole["id"], whole["proposal"]),
            (broken["id"], None),
        ]
        problem(await people.decide(broken, "approve"), 409, "scope_change_required")
        assert (await people.decide(broken, "reject")).json()["status"] == "REJECTED"

    async def test_an_unknown_task_is_unknown(self, asker: httpx.AsyncClient) -> None:
        problem(await asker.get(f"/ai/tasks/{NOBODY}"), 404, "not_found")
        for what in DECISIONS:
            problem(await asker.post(f"/ai/tasks/{NOBODY}/{what}"), 404, "not_found")


class TestDecided:
    async def test_an_approver_says_yes_to_just_this(self, people: People) -> None:
        task = await people.proposed("pause")
        body = {"digest": task["proposal"]["digest"], "reason": "it makes sense"}

        answer = await people.decide(task, "approve", json=body, headers={"If-Match": f'"{task["version"]}"'})

        approved = answer.json()
        assert (answer.status_code, approved["status"]) == (202, "APPROVED")
        assert answer.headers["etag"] == f'"{approved["version"]}"'
        assert (approved["decision"]["decided_by"], approved["decision"]["reason"]) == (
            *("some approver", "it makes sense"),
        )
        assert approved["operation_id"] != task["operation_id"]
        told = (await people[Role.VIEWER].get(f"/deployments/{people.deployment_id}/events")).json()["items"]
        assert (told[-1]["type"], told[-1]["actor"]) == ("ai_task.approved", "some approver")
        again = await people.decide(task, "approve", json=body)
        assert (again.status_code, again.json()) == (202, approved)
        problem(await people.decide(task, "reject"), 409, "illegal_transition")

    async def test_a_decision_with_a_key_is_answered_the_same_again(self, people: People) -> None:
        task, once = await people.proposed("pause"), key()

        first = await people.decide(task, "request-revision", json={"reason": "shorter"}, headers=once)
        await people.propose(task, said="Short.")
        again = await people.decide(task, "request-revision", json={"reason": "shorter"}, headers=once)

        assert first.content == again.content
        read = (await people[Role.VIEWER].get(f"/ai/tasks/{task['id']}")).json()
        assert (read["status"], read["proposal"]["revision"]) == ("AWAITING_APPROVAL", 2)

    async def test_a_reason_is_kept_without_the_secrets_in_it(self, people: People) -> None:
        task = await people.proposed("pause")

        said = await people.decide(task, "approve", json={"reason": "the password is hunter22, go"})

        assert said.json()["decision"]["reason"] == "the password is [redacted], go"

    @pytest.mark.parametrize("what", DECISIONS)
    async def test_only_approvers_decide(self, people: People, what: str) -> None:
        task = await people.proposed("pause")

        for role in (Role.VIEWER, Role.PACKAGER, Role.PUBLISHER):
            problem(await people[role].post(f"/ai/tasks/{task['id']}/{what}"), 403, "forbidden")

    async def test_nobody_approves_their_own_but_may_reject_it(self, people: People) -> None:
        task = await people.proposed("pause", role=Role.ADMIN)
        path = f"/ai/tasks/{task['id']}"

        problem(await people[Role.ADMIN].post(f"{path}/approve"), 403, "own_submission")
        rejected = await people[Role.ADMIN].post(f"{path}/reject", json={"reason": "not any more"})

        assert (rejected.status_code, rejected.json()["status"]) == (202, "REJECTED")
        assert rejected.json()["finished_at"] is not None

    @pytest.mark.parametrize("what", DECISIONS)
    async def test_a_decision_is_about_one_version_and_one_digest(self, people: People, what: str) -> None:
        task = await people.proposed("pause")

        stale = await people.decide(task, what, headers={"If-Match": '"99"'})
        problem(stale, 412, "version_mismatch")
        other = await people.decide(task, what, json={"digest": "0" * 64})
        problem(other, 409, "scope_change_required")
        assert pointers(await people.decide(task, what, json={"digest": "short"})) == ["/digest"]
        assert pointers(await people.decide(task, what, json={"actions": []})) == ["/actions"]

        assert (await people.decide(task, what)).status_code == 202

    async def test_nothing_is_decided_before_there_is_a_proposal(self, people: People) -> None:
        task = await people.ask()

        for what in DECISIONS:
            refused = problem(await people.decide(task, what), 409, "illegal_transition")
            assert "PENDING" in refused["detail"]

    async def test_a_revision_is_another_proposal_with_another_digest(self, people: People) -> None:
        task = await people.proposed("pause")

        wished = await people.decide(task, "request-revision", json={"reason": "rather try again"})
        assert wished.json()["status"] == "REVISION_REQUESTED"
        after = await people.propose(task, "retry_failed_devices")

        old = await people.decide(task, "approve", json={"digest": task["proposal"]["digest"]})
        problem(old, 409, "scope_change_required")
        new = await people.decide(task, "approve", json={"digest": after["proposal"]["digest"]})
        assert new.json()["status"] == "APPROVED"

    async def test_it_is_proposed_five_times_at_most(self, people: People) -> None:
        task = await people.proposed("pause")
        for number in range(4):
            assert (await people.decide(task, "request-revision")).status_code == 202
            await people.propose(task, said=f"Again, {number}.")

        refused = await people.decide(task, "request-revision")

        assert "5 times" in problem(refused, 409, "illegal_transition")["detail"]
        problem(await people.decide(task, "approve"), 409, "scope_change_required")
        newest = (await people[Role.APPROVER].get(f"/ai/tasks/{task['id']}")).headers["ETag"]
        approved = await people.decide(task, "approve", headers={"If-Match": newest})
        assert approved.status_code == 202
