# SPDX-License-Identifier: Apache-2.0
"""Reading and commanding deployments, with their effects and devices."""

import asyncio
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import update

from app.connectors.contract import Action, Member
from app.domain import deployments, devices, effects
from app.models import Deployment, DeploymentStatus, LaneStatus, Operation
from app.runtime import Runtime
from tests.api.conftest import Submit, key, pointers, problem
from tests.logs import captured_lines
from tests.wire import PLAIN


async def begin(runtime: Runtime, submitted: dict[str, Any], *, devices_found: int = 0) -> None:
    """What the first push does: the lane of LAB is on its devices, one effect is confirmed."""
    async with runtime.transaction() as session:
        deployment = await deployments.lock(session, UUID(submitted["id"]))
        now = runtime.clock()
        lane = deployment.lanes[0]
        lane.started_at = now
        await deployments.move(session, deployment, DeploymentStatus.DEPLOYING, now=now)
        await deployments.move_lane(session, deployment, lane, LaneStatus.PUSHING, now=now)
        planned = await effects.plan(session, lane, Action.ASSIGN, UUID(submitted["operation_id"]))
        await effects.sent(session, planned.id, operation_id=UUID(submitted["operation_id"]), now=now)
        await effects.confirmed(session, planned.id, external_id="assignment-1", now=now)
        members = [Member(f"device-{number:03}", f"PC {number}") for number in range(devices_found)]
        await devices.store_members(session, lane.id, members, now=now)


class TestReading:
    async def test_filters_narrow_together(
        self, client: httpx.AsyncClient, submit: Submit, api_runtime: Runtime
    ) -> None:
        first = await submit(app_name="One", target_ring="LAB")
        second = await submit(app_name="Two", target_ring="CANARY")
        await begin(api_runtime, second)

        async def found(**filters: str) -> list[str]:
            answer = (await client.get("/deployments", params=filters)).json()
            return [item["app_name"] for item in answer["items"]]

        assert await found() == ["Two", "One"]
        assert await found(status="DEPLOYING") == ["Two"]
        assert await found(app_name="One") == ["One"]
        assert await found(target_ring="CANARY", app_name="One") == []
        assert await found(plane="intune", target_ring="LAB") == ["One"]
        assert await found(plane="jamf") == []
        assert await found(correlation_id=first["correlation_id"]) == ["One"]
        assert await found(created_after=first["created_at"]) == ["Two"]
        assert pointers(await client.get("/deployments?status=HAPPY")) == ["/query/status"]
        assert pointers(await client.get("/deployments?created_after=yesterday")) == ["/query/created_after"]

    async def test_the_tag_is_the_version(
        self, client: httpx.AsyncClient, submit: Submit, api_runtime: Runtime
    ) -> None:
        submitted = await submit()
        await begin(api_runtime, submitted)

        read = await client.get(f"/deployments/{submitted['id']}")

        assert read.json()["version"] > 1
        assert read.headers["etag"] == f'"{read.json()["version"]}"'
        assert read.json()["status"] == "DEPLOYING"
        assert read.json()["created_at"].endswith("Z")

    async def test_effects_are_the_ledger(
        self, client: httpx.AsyncClient, submit: Submit, api_runtime: Runtime
    ) -> None:
        submitted = await submit()
        await begin(api_runtime, submitted)

        answer = (await client.get(f"/deployments/{submitted['id']}/effects")).json()

        (effect,) = answer["items"]
        assert effect["key"] == f"{submitted['id']}/intune/LAB/assign"
        assert (effect["ring"], effect["plane"], effect["action"]) == ("LAB", "intune", "assign")
        assert (effect["state"], effect["external_id"]) == ("CONFIRMED", "assignment-1")
        assert effect["operation_id"] == submitted["operation_id"]

    async def test_devices_come_in_pages_and_by_state(
        self, client: httpx.AsyncClient, submit: Submit, api_runtime: Runtime
    ) -> None:
        submitted = await submit()
        await begin(api_runtime, submitted, devices_found=5)
        path, seen, cursor = f"/deployments/{submitted['id']}/devices", [], None
        while True:
            parameters = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
            answer = (await client.get(path, params=parameters)).json()
            seen += [item["device_id"] for item in answer["items"]]
            if (cursor := answer["next_cursor"]) is None:
                break

        assert seen == [f"device-{number:03}" for number in range(5)]
        for query, expected in (
            ("state=PENDING", 5),
            ("state=FAILED", 0),
            ("ring=LAB", 5),
            ("ring=CANARY", 0),
        ):
            assert len((await client.get(f"{path}?{query}")).json()["items"]) == expected
        assert pointers(await client.get(f"{path}?ring=MOON")) == ["/query/ring"]

    @pytest.mark.parametrize("part", ["", "/effects", "/devices", "/events"])
    async def test_of_what_is_not_there_nothing_is(self, asker: httpx.AsyncClient, part: str) -> None:
        problem(await asker.get(f"/deployments/0199c0de-0000-7000-8000-00000000dead{part}"), 404, "not_found")


class TestCommands:
    async def test_a_rollback_begins_once(
        self, client: httpx.AsyncClient, submit: Submit, api_runtime: Runtime
    ) -> None:
        submitted = await submit()
        await begin(api_runtime, submitted)
        path = f"/deployments/{submitted['id']}/rollback"

        begun = await client.post(path, json={"reason": "it crashes"})
        again = await client.post(path)

        assert begun.status_code == again.status_code == 202
        assert begun.json()["status"] == again.json()["status"] == "ROLLING_BACK"
        assert begun.json()["operation_id"] == again.json()["operation_id"]
        assert begun.headers["etag"] == again.headers["etag"]
        operation = (await client.get(f"/operations/{begun.json()['operation_id']}")).json()
        assert operation["kind"] == "execute_rollback"

    async def test_what_the_state_does_not_allow_is_a_409_that_names_it(
        self, client: httpx.AsyncClient, submit: Submit
    ) -> None:
        submitted = await submit()
        for command in ("promote", "rollback"):
            response = await client.post(f"/deployments/{submitted['id']}/{command}")

            assert "PENDING" in problem(response, 409, "illegal_transition")["detail"]

    async def test_a_command_may_name_the_version_it_was_decided_on(
        self, client: httpx.AsyncClient, submit: Submit, api_runtime: Runtime
    ) -> None:
        submitted = await submit()
        await begin(api_runtime, submitted)
        path = f"/deployments/{submitted['id']}"
        tag = (await client.get(path)).headers["etag"]

        for stale in ('"1"', 'W/"1"', "1", '"no number"'):
            response = await client.post(f"{path}/rollback", headers={"If-Match": stale})
            problem(response, 412, "version_mismatch")
        several = await client.post(f"{path}/rollback", headers={"If-Match": '"1", "2"'})
        assert pointers(several) == ["/header/If-Match"]
        assert (await client.post(f"{path}/rollback", headers={"If-Match": tag})).status_code == 202
        assert (await client.post(f"{path}/rollback", headers={"If-Match": "*"})).status_code == 202

    async def test_a_repeat_with_a_key_gets_the_first_answer(
        self, client: httpx.AsyncClient, submit: Submit, api_runtime: Runtime
    ) -> None:
        submitted = await submit()
        await begin(api_runtime, submitted)
        path, headers = f"/deployments/{submitted['id']}/rollback", key()

        first = await client.post(path, headers=headers)
        async with api_runtime.transaction() as session:
            await session.execute(update(Deployment).values(status=DeploymentStatus.ROLLED_BACK))
        again = await client.post(path, headers=headers)
        other = await client.post(path, json={"reason": "another body"}, headers=headers)

        assert again.content == first.content
        assert again.headers["idempotency-replayed"] == "true"
        assert again.headers["etag"] == first.headers["etag"]
        problem(other, 409, "idempotency_key_reused")

    async def test_of_two_at_once_with_one_key_one_acts(
        self, client: httpx.AsyncClient, submit: Submit, api_runtime: Runtime
    ) -> None:
        """A retry is legal once only: the second would be refused if it did not wait for the first."""
        submitted = await submit()
        path, headers = f"/operations/{submitted['operation_id']}", key()
        await client.post(f"{path}/cancel")

        answers = await asyncio.gather(*(client.post(f"{path}/retry", headers=headers) for _ in range(6)))

        assert {answer.status_code for answer in answers} == {202}
        assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
        async with api_runtime.sessions() as session:
            operation = await session.get_one(Operation, UUID(submitted["operation_id"]))
        assert operation.version == answers[0].json()["version"]

    async def test_an_override_must_be_whole(self, client: httpx.AsyncClient, submit: Submit) -> None:
        submitted = await submit()
        body = {"override": {"reason": ""}}

        response = await client.post(f"/deployments/{submitted['id']}/promote", json=body)

        assert pointers(response) == ["/override/reason", "/override/expires_at"]


class TestCommit:
    async def test_the_change_is_committed_before_the_answer_leaves(
        self, client: httpx.AsyncClient, submit: Submit, api_runtime: Runtime
    ) -> None:
        """An answer that left before the commit would tell of a change that other readers do not see yet.

        So: read with a connection of our own at the instant the answer is handed to the server.
        """
        submitted = await submit()
        await begin(api_runtime, submitted)
        seen: list[str] = []
        app = client._transport.app  # type: ignore[attr-defined]

        async def watching(scope: Any, receive: Any, send: Any) -> None:
            async def send_and_look(message: Any) -> None:
                if message["type"] == "http.response.start":
                    async with api_runtime.sessions() as session:
                        row = await session.get_one(Deployment, UUID(submitted["id"]))
                        seen.append(row.status.value)
                await send(message)

            await app(scope, receive, send_and_look)

        transport = httpx.ASGITransport(watching)
        async with httpx.AsyncClient(
            verify=PLAIN, transport=transport, base_url=client.base_url, headers=client.headers
        ) as other:
            response = await other.post(f"/deployments/{submitted['id']}/rollback")

        assert response.status_code == 202
        assert seen == ["ROLLING_BACK"]

    async def test_a_commit_that_fails_is_not_answered_with_success(
        self, client: httpx.AsyncClient, submit: Submit, api_runtime: Runtime
    ) -> None:
        submitted = await submit()
        await begin(api_runtime, submitted)
        async with api_runtime.transaction() as session:
            connection = await session.connection()
            await connection.exec_driver_sql(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN RAISE EXCEPTION 'not today'; END $$"
            )
            await connection.exec_driver_sql(
                "CREATE CONSTRAINT TRIGGER at_commit AFTER UPDATE ON deployments"
                " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()"
            )

        with captured_lines() as lines:
            response = await client.post(f"/deployments/{submitted['id']}/rollback")

        problem(response, 500, "internal")
        assert any("not today" in line.get("exception", "") for line in lines())
        assert (await client.get(f"/deployments/{submitted['id']}")).json()["status"] == "DEPLOYING"
