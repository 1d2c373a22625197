# SPDX-License-Identifier: Apache-2.0
"""Deciding and steering over HTTP: who may, what is answered, what is refused."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, ClassVar

import httpx
import pytest
from fastapi import FastAPI

from app.models import Role
from tests.api.conftest import Submit, client_of, intent, key, pointers, problem
from tests.factories import RISK_62, RISK_90

TokenFor = Callable[[Role], Awaitable[str]]
NOBODY = "0199c0de-0000-7000-8000-00000000dead"


@pytest.fixture
async def approver(app: FastAPI, token_for: TokenFor) -> Any:
    """Another person, who may decide."""
    async with client_of(app, await token_for(Role.APPROVER)) as client:
        yield client


async def request_of(client: httpx.AsyncClient, deployment: dict[str, Any]) -> dict[str, Any]:
    answer = await client.get("/approvals", params={"deployment_id": deployment["id"]})
    item: dict[str, Any] = answer.json()["items"][0]
    return item


class TestApprovals:
    async def test_the_queue_shows_what_is_to_be_decided(
        self, client: httpx.AsyncClient, submit: Submit
    ) -> None:
        deployment = await submit(risk_factors=RISK_62)
        await submit(app_name="Harmless")

        queue = (await client.get("/approvals?status=PENDING")).json()["items"]

        assert [item["deployment_id"] for item in queue] == [deployment["id"]]
        [request] = queue
        assert (request["risk_score"], request["submitted_by"]) == (62, "bootstrap")
        assert len(request["digest"]) == 64
        read = await client.get(f"/approvals/{request['id']}")
        assert read.json() == request
        assert read.headers["etag"] == '"1"'

    async def test_its_submitter_cannot_decide_and_another_can(
        self, client: httpx.AsyncClient, approver: httpx.AsyncClient, submit: Submit
    ) -> None:
        request = await request_of(client, await submit(risk_factors=RISK_62))
        path, body = f"/approvals/{request['id']}/approve", {"reason": "it went well", "conditions": "by day"}

        problem(await client.post(path, json=body), 403, "own_submission")
        approved = await approver.post(path, json=body, headers={"If-Match": '"1"'})

        assert approved.status_code == 202
        assert (approved.json()["status"], approved.json()["decided_by"]) == ("APPROVED", "some approver")
        assert approved.json()["conditions"] == "by day"
        again = await approver.post(path, json=body)
        assert (again.status_code, again.json()["version"]) == (202, approved.json()["version"])
        other = await approver.post(f"/approvals/{request['id']}/reject", json=body)
        assert "APPROVED" in problem(other, 409, "illegal_transition")["detail"]

    async def test_a_decision_needs_a_reason_and_just_this_content(
        self, client: httpx.AsyncClient, approver: httpx.AsyncClient, submit: Submit
    ) -> None:
        request = await request_of(client, await submit(risk_factors=RISK_62))
        path = f"/approvals/{request['id']}/approve"

        assert pointers(await approver.post(path, json={})) == ["/reason"]
        stale = await approver.post(path, json={"reason": "fine", "digest": "0" * 64})
        problem(stale, 409, "scope_change_required")
        wrong = await approver.post(path, json={"reason": "fine"}, headers={"If-Match": '"9"'})
        problem(wrong, 412, "version_mismatch")

    async def test_an_exception_is_asked_for_and_shown(
        self, client: httpx.AsyncClient, approver: httpx.AsyncClient, submit: Submit
    ) -> None:
        request = await request_of(client, await submit(risk_factors=RISK_90))
        path = f"/approvals/{request['id']}/approve"

        assert pointers(await approver.post(path, json={"reason": "we bear it"})) == ["/exception"]
        given = {"compensating_controls": "kept off the internet"}
        approved = await approver.post(path, json={"reason": "we bear it", "exception": given})

        exception = approved.json()["exception"]
        assert exception["compensating_controls"] == "kept off the internet"
        left = datetime.fromisoformat(exception["expires_at"]) - datetime.fromisoformat(
            approved.json()["decided_at"]
        )
        assert left == timedelta(days=30)

    async def test_a_rejection_ends_the_deployment(
        self, client: httpx.AsyncClient, approver: httpx.AsyncClient, submit: Submit
    ) -> None:
        deployment = await submit(risk_factors=RISK_62)
        request = await request_of(client, deployment)

        await approver.post(f"/approvals/{request['id']}/reject", json={"reason": "the vendor withdrew it"})

        after = (await client.get(f"/deployments/{deployment['id']}")).json()
        assert (after["status"], {lane["status"] for lane in after["lanes"]}) == ("REJECTED", {"CANCELLED"})

    async def test_nobody_else_may_decide(self, app: FastAPI, token_for: TokenFor) -> None:
        for role in (Role.VIEWER, Role.PACKAGER, Role.PUBLISHER):
            async with client_of(app, await token_for(role)) as client:
                path = f"/approvals/{NOBODY}/approve"
                problem(await client.post(path, json={"reason": "x"}), 403, "forbidden")

    async def test_an_unknown_request_is_unknown(self, asker: httpx.AsyncClient) -> None:
        problem(await asker.get(f"/approvals/{NOBODY}"), 404, "not_found")


class TestCommands:
    async def test_pause_resume_and_cancel_are_answered_with_the_deployment(
        self, client: httpx.AsyncClient, submit: Submit
    ) -> None:
        path = f"/deployments/{(await submit())['id']}"

        paused = await client.post(f"{path}/pause", json={"reason": "the audit"})
        assert (paused.status_code, paused.json()["paused"]) == (202, True)
        assert paused.json()["pause_reason"] == "the audit"
        again = await client.post(f"{path}/pause")
        assert again.headers["etag"] == paused.headers["etag"]
        resumed = await client.post(f"{path}/resume")
        assert (resumed.json()["paused"], resumed.json()["pause_reason"]) == (False, None)
        cancelled = await client.post(f"{path}/cancel", json={"reason": "not wanted"})
        assert cancelled.json()["status"] == "CANCELLED"
        assert (await client.post(f"{path}/cancel")).status_code == 202
        refused = problem(await client.post(f"{path}/pause"), 409, "illegal_transition")
        assert "CANCELLED" in refused["detail"]

    async def test_a_command_on_an_old_version_is_refused(
        self, client: httpx.AsyncClient, submit: Submit
    ) -> None:
        path = f"/deployments/{(await submit())['id']}"

        for command in ("pause", "resume", "cancel", "retry", "promote", "rollback"):
            stale = await client.post(f"{path}/{command}", headers={"If-Match": '"42"'})
            problem(stale, 412, "version_mismatch")

    async def test_there_is_nothing_to_retry_before_anything_failed(
        self, client: httpx.AsyncClient, submit: Submit
    ) -> None:
        path = f"/deployments/{(await submit())['id']}/retry"

        refused = await client.post(path, json={"reason": "again", "reset_budget": False})

        assert "PENDING" in problem(refused, 409, "illegal_transition")["detail"]


class TestBlockersAndGates:
    async def test_why_it_does_not_move_is_a_list(self, client: httpx.AsyncClient, submit: Submit) -> None:
        path = f"/deployments/{(await submit())['id']}"
        assert (await client.get(f"{path}/blockers")).json() == {"items": [], "next_cursor": None}

        await client.post(f"{path}/pause", json={"reason": "the audit"})

        [blocker] = (await client.get(f"{path}/blockers")).json()["items"]
        assert blocker.keys() == {
            *("code", "subject", "since", "next_check_at", "unblocks_when", "who_can_act"),
        }
        assert (blocker["code"], blocker["subject"], blocker["who_can_act"]) == (
            "paused",
            "deployment",
            "publisher",
        )

    async def test_every_criterion_is_told_before_anything_was_measured(
        self, client: httpx.AsyncClient, submit: Submit
    ) -> None:
        deployment = await submit(target_ring="CANARY")

        lab, canary = (await client.get(f"/deployments/{deployment['id']}/gates")).json()["items"]

        assert (lab["ring"], lab["plane"], lab["verdict"]) == ("LAB", "intune", None)
        named = [criterion["name"] for criterion in lab["criteria"]]
        assert named == [
            *("failure_rate", "min_reported", "coverage", "success_rate", "soak", "rollback_possible"),
        ]
        assert "rollback_possible" not in [criterion["name"] for criterion in canary["criteria"]]
        assert {criterion["measured"] for criterion in lab["criteria"]} == {None}
        assert [c["threshold"] for c in canary["criteria"] if c["name"] == "success_rate"] == [0.98]

    async def test_lists_of_a_deployment_are_paged(self, client: httpx.AsyncClient, submit: Submit) -> None:
        path = f"/deployments/{(await submit(target_ring='GLOBAL'))['id']}/gates"

        first = (await client.get(path, params={"limit": 3})).json()
        rest = (await client.get(path, params={"limit": 3, "cursor": first["next_cursor"]})).json()

        assert [item["ring"] for item in first["items"] + rest["items"]] == [
            *("LAB", "CANARY", "PILOT", "DEPARTMENT", "GLOBAL"),
        ]
        assert rest["next_cursor"] is None

    async def test_failures_are_a_list(self, client: httpx.AsyncClient, submit: Submit) -> None:
        path = f"/deployments/{(await submit())['id']}/failures"

        assert (await client.get(path)).json() == {"items": [], "next_cursor": None}

    async def test_the_policy_in_force_is_stored(self, client: httpx.AsyncClient) -> None:
        policies = (await client.get("/gate-policies")).json()["items"]

        assert [(policy["name"], policy["version"]) for policy in policies] == [("demo", 1)]
        assert policies[0]["gates"]["PILOT"]["min_success_rate"] == 0.97

    async def test_own_numbers_reach_the_gate_and_looser_ones_ask_the_board(
        self, client: httpx.AsyncClient, submit: Submit
    ) -> None:
        strict = {"CANARY": {"min_coverage": 0.5, "confidence": 0.9, "min_reported": 3}}
        first = await submit(app_name="Strict", gates=strict, target_ring="CANARY")
        loose = {"CANARY": {"dry_run": ["success_rate"]}}
        second = await submit(app_name="Loose", gates=loose, target_ring="CANARY")

        assert (first["requires_cab_approval"], second["requires_cab_approval"]) == (False, True)
        gates = (await client.get(f"/deployments/{first['id']}/gates")).json()["items"]
        told = {criterion["name"]: criterion["threshold"] for criterion in gates[1]["criteria"]}
        assert (told["coverage"], told["success_bound"], told["min_reported"]) == (0.5, 0.98, 3)
        gates = (await client.get(f"/deployments/{second['id']}/gates")).json()["items"]
        assert [c["name"] for c in gates[1]["criteria"] if c["dry_run"]] == ["success_rate"]


class TestFreezes:
    async def test_one_is_made_listed_and_ended(self, client: httpx.AsyncClient, submit: Submit) -> None:
        body = {
            "starts_at": "2020-01-01T00:00:00Z",
            "ends_at": "2020-12-31T00:00:00Z",
            "rings": ["PILOT", "LAB"],
            "reason": "the books are closed",
        }

        made = await client.post("/freezes", json=body)

        assert made.status_code == 201
        assert made.headers["location"] == f"/api/v1/freezes/{made.json()['id']}"
        assert (made.json()["rings"], made.json()["planes"]) == (["LAB", "PILOT"], [])
        assert (await client.get("/freezes")).json()["items"] == [made.json()]
        assert (await client.get(f"/freezes/{made.json()['id']}")).json() == made.json()
        gone = await client.delete(f"/freezes/{made.json()['id']}")
        assert (gone.status_code, gone.content) == (204, b"")
        problem(await client.delete(f"/freezes/{made.json()['id']}"), 404, "not_found")
        assert await submit()

    @pytest.mark.parametrize(
        "ends_at", ["2019-01-01T00:00:00Z", "2020-01-01T00:00:00Z", "2022-01-01T00:00:00Z"]
    )
    async def test_one_ends_after_it_begins_and_within_a_year(
        self, asker: httpx.AsyncClient, ends_at: str
    ) -> None:
        body = {"starts_at": "2020-01-01T00:00:00Z", "ends_at": ends_at, "reason": "x"}

        assert pointers(await asker.post("/freezes", json=body)) == ["/ends_at"]

    async def test_only_publishers_freeze(self, app: FastAPI, token_for: TokenFor) -> None:
        async with client_of(app, await token_for(Role.APPROVER)) as client:
            problem(await client.delete(f"/freezes/{NOBODY}"), 403, "forbidden")


class TestWindows:
    PATH = "/maintenance-windows/intune/PILOT"
    BODY: ClassVar[dict[str, Any]] = {
        "timezone": "Europe/Berlin",
        "spans": [{"days": ["monday", "friday"], "start": "22:00", "end": "04:00"}],
    }

    async def test_one_is_set_read_changed_and_removed(self, client: httpx.AsyncClient) -> None:
        problem(await client.get(self.PATH), 404, "not_found")

        put = await client.put(self.PATH, json=self.BODY)

        assert (put.status_code, put.headers["etag"]) == (200, '"1"')
        assert put.json()["spans"] == self.BODY["spans"]
        assert put.json()["is_open"] is (put.json()["opens_at"] is None)
        assert (await client.put(self.PATH, json=self.BODY)).json()["version"] == 1
        changed = await client.put(self.PATH, json=self.BODY | {"timezone": "UTC"})
        assert changed.json()["version"] == 2
        assert [item["ring"] for item in (await client.get("/maintenance-windows")).json()["items"]] == [
            "PILOT"
        ]
        problem(await client.delete(self.PATH, headers={"If-Match": '"1"'}), 412, "version_mismatch")
        assert (await client.delete(self.PATH)).status_code == 204

    async def test_a_time_zone_is_named_and_hours_are_hours(self, asker: httpx.AsyncClient) -> None:
        nowhere = await asker.put(self.PATH, json=self.BODY | {"timezone": "Berlin time"})
        assert pointers(nowhere) == ["/timezone"]
        late = self.BODY | {"spans": [{"days": ["monday"], "start": "24:00", "end": "04:00"}]}
        assert pointers(await asker.put(self.PATH, json=late)) == ["/spans/0/start"]


class TestForecast:
    @pytest.mark.usefixtures("all_targets")
    async def test_it_is_the_same_for_the_same_input_and_stores_nothing(
        self, client: httpx.AsyncClient
    ) -> None:
        first = await client.post("/deployments/forecast", json=intent(target_ring="GLOBAL"))
        second = await client.post("/deployments/forecast", json=intent(target_ring="GLOBAL"))

        assert first.status_code == 200
        assert first.content == second.content
        assert first.json()["peak_devices_at_risk"] == 10
        assert [ring["ring"] for ring in first.json()["rings"]][-1] == "GLOBAL"
        assert (await client.get("/deployments")).json()["items"] == []

    async def test_it_refuses_what_a_submission_would(self, asker: httpx.AsyncClient) -> None:
        unset = intent(planes=["jamf"])

        refused = await asker.post("/deployments/forecast", json=unset)

        assert refused.status_code == 422
        assert refused.json() | {"instance": "", "correlation_id": ""} == (
            await asker.post("/deployments", json=unset, headers=key())
        ).json() | {"instance": "", "correlation_id": ""}

    async def test_it_takes_a_packager(self, app: FastAPI, token_for: TokenFor) -> None:
        async with client_of(app, await token_for(Role.APPROVER)) as client:
            problem(await client.post("/deployments/forecast", json=intent()), 403, "forbidden")
