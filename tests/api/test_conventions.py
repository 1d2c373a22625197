# SPDX-License-Identifier: Apache-2.0
"""What holds on every route: who may call, what errors look like, correlation, limits, paths."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import SecretStr

from app.api.dependencies import Service
from app.api.routing import DECLARED
from app.domain import accounts
from app.models import ApiToken, Role
from app.runtime import Runtime
from app.security import PERMISSIONS, Permission
from app.settings import Settings
from tests.api.conftest import (
    BOOTSTRAP,
    bearer,
    client_of,
    intent,
    key,
    pointers,
    problem,
    serving,
    started,
)
from tests.logs import captured_lines
from tests.waiting import eventually
from tests.wire import PLAIN

IDS = (
    *("deployment_id", "operation_id", "approval_id", "freeze_id", "drift_id"),
    *("conversation_id", "task_id"),
)
NO_DEPLOYMENT = "/deployments/0199c0de-0000-7000-8000-00000000dead"


class TestAdmission:
    async def test_without_a_token_nothing_is_told(self, stranger: httpx.AsyncClient) -> None:
        response = await stranger.get("/deployments")

        problem(response, 401, "unauthenticated")
        assert response.headers["www-authenticate"].startswith("Bearer")

    @pytest.mark.parametrize(
        "header",
        ["Bearer", "Bearer nobody-knows-me", "Basic dXNlcjpwdw==", f"Bearer {BOOTSTRAP}x", "Bearer a b"],
    )
    async def test_a_bad_token_is_refused(self, stranger: httpx.AsyncClient, header: str) -> None:
        response = await stranger.get("/deployments", headers={"Authorization": header})

        problem(response, 401, "unauthenticated")

    async def test_who_may_not_call_learns_nothing_about_the_input(self, stranger: httpx.AsyncClient) -> None:
        response = await stranger.post("/deployments", content=b"no json")

        problem(response, 401, "unauthenticated")

    async def test_an_expired_and_a_revoked_token_are_refused(
        self, api_runtime: Runtime, anybody: httpx.AsyncClient
    ) -> None:
        now = api_runtime.clock()
        async with api_runtime.transaction() as session:
            past = now - timedelta(seconds=1)
            _, expired = await accounts.create_token(session, name="old", role=Role.ADMIN, expires_at=past)
            row, revoked = await accounts.create_token(session, name="lost", role=Role.ADMIN)
            row.revoked_at = now

        for token in (expired, revoked):
            problem(await anybody.get("/deployments", headers=bearer(token)), 401, "unauthenticated")

    async def test_a_revoked_token_is_forgotten_within_seconds(
        self, api_runtime: Runtime, anybody: httpx.AsyncClient
    ) -> None:
        async with api_runtime.transaction() as session:
            row, token = await accounts.create_token(session, name="lost", role=Role.ADMIN)
        assert (await anybody.get("/planes", headers=bearer(token))).status_code == 200
        async with api_runtime.transaction() as session:
            (await session.get_one(ApiToken, row.id)).revoked_at = api_runtime.clock()

        async def status() -> int:
            return (await anybody.get("/planes", headers=bearer(token))).status_code

        assert await eventually(status, within=4, until=lambda code: code == 401) == 401

    async def test_only_hashes_of_tokens_are_stored(self, api_runtime: Runtime) -> None:
        async with api_runtime.transaction() as session:
            row, token = await accounts.create_token(session, name="mine", role=Role.VIEWER)

        assert token.startswith("eucora_")
        assert token.encode() not in row.token_hash
        assert len(row.token_hash) == 32

    @pytest.mark.parametrize("role", Role)
    async def test_every_route_asks_for_its_permission(
        self, app: FastAPI, role: Role, token_for: Callable[[Role], Awaitable[str]]
    ) -> None:
        """No role gets past a route's permission that it does not have, and none is stopped that has it."""
        async with client_of(app, await token_for(role)) as client:
            for route in iter_route_contexts(app.routes):
                if not isinstance(route.original_route, APIRoute):
                    continue
                assert route.endpoint is not None
                assert route.path is not None
                needed = DECLARED[route.endpoint].permission
                path = route.path.replace(":uuid", "").format(
                    **dict.fromkeys(IDS, uuid4()),
                    plane="jamf",
                    ring="LAB",
                    service="nobody",
                )
                method = next(iter(route.methods or ()))
                response = await client.request(method, f"http://api.test{path}", headers=key())

                allowed = needed in PERMISSIONS[role]
                refused = f"does not have the permission {needed.value}" in response.text
                assert refused is not allowed, f"{role} {method} {path}: {response.text}"
                assert (response.status_code == 403) or not refused

    async def test_an_override_takes_an_approver_and_the_rest_a_publisher(
        self, app: FastAPI, token_for: Callable[[Role], Awaitable[str]]
    ) -> None:
        override = {"override": {"reason": "known", "expires_at": "2030-01-01T00:00:00Z"}}
        expected = {Role.PUBLISHER: (404, 403), Role.APPROVER: (403, 404), Role.ADMIN: (404, 404)}
        for role, statuses in expected.items():
            async with client_of(app, await token_for(role)) as client:
                plain = await client.post(f"{NO_DEPLOYMENT}/promote")
                overridden = await client.post(f"{NO_DEPLOYMENT}/promote", json=override)

            assert (plain.status_code, overridden.status_code) == statuses, role

    async def test_public_routes_need_no_token(self, stranger: httpx.AsyncClient) -> None:
        for path in ("health/", "health/live", "health/ready"):
            assert (await stranger.get(path)).status_code == 200
        for path in ("/metrics", "/openapi.json", "/docs"):
            assert (await stranger.get(f"http://api.test{path}")).status_code == 200


class TestProblems:
    async def test_an_unknown_route(self, stranger: httpx.AsyncClient) -> None:
        body = problem(await stranger.get("/no/such/thing"), 404, "not_found")

        assert body["type"] == "urn:eucora:problem:not_found"
        assert body["title"] == "Not Found"
        assert body["instance"] == "/api/v1/no/such/thing"

    async def test_a_method_that_is_not_there(self, asker: httpx.AsyncClient) -> None:
        response = await asker.delete("/deployments")

        problem(response, 405, "method_not_allowed")
        assert response.headers["allow"] == "GET, HEAD, POST"

    @pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b'{"app_name": NaN}', b"[" * 100_000])
    async def test_a_body_that_is_no_json(self, asker: httpx.AsyncClient, content: bytes) -> None:
        headers = {**key(), "Content-Type": "application/json"}
        response = await asker.post("/deployments", content=content, headers=headers)

        if content:
            problem(response, 400, "malformed_request")
        else:
            assert pointers(response) == [""]

    @pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "", "application/xml"])
    async def test_a_body_of_another_kind(self, asker: httpx.AsyncClient, kind: str) -> None:
        headers = {**key(), "Content-Type": kind}
        response = await asker.post("/deployments", content=json.dumps(intent()), headers=headers)

        problem(response, 415, "unsupported_media_type")
        assert response.headers["accept"] == "application/json"

    @pytest.mark.usefixtures("all_targets")
    async def test_parameters_of_the_media_type_do_not_matter(self, client: httpx.AsyncClient) -> None:
        headers = {**key(), "Content-Type": "Application/JSON; charset=utf-8"}
        response = await client.post("/deployments", content=json.dumps(intent()), headers=headers)

        assert response.status_code == 202

    @pytest.mark.parametrize(
        "path", [NO_DEPLOYMENT, "/deployments/no-uuid", "/planes/tivoli", "/targets/jamf/LAB"]
    )
    async def test_what_is_not_there_is_404(self, asker: httpx.AsyncClient, path: str) -> None:
        problem(await asker.get(path), 404, "not_found")

    async def test_unknown_doubled_and_impossible_query_parameters_are_refused(
        self, asker: httpx.AsyncClient
    ) -> None:
        assert pointers(await asker.get("/deployments?colour=red")) == ["/query/colour"]
        assert pointers(await asker.get("/deployments?limit=1&limit=2")) == ["/query/limit"]
        assert pointers(await asker.get("/deployments?app_name=a%00b")) == ["/query/app_name"]
        assert pointers(await asker.get("/health/live?x=1")) == ["/query/x"]

    async def test_what_nobody_foresaw_is_a_500_that_tells_nothing(
        self, app: FastAPI, client: httpx.AsyncClient
    ) -> None:
        app.state.service.targets = None

        with captured_lines() as lines:
            response = await client.post("/deployments", json=intent(), headers=key())

        body = problem(response, 500, "internal")
        assert "NoneType" not in response.text
        told = next(line for line in lines() if line["event"] == "request_failed")
        assert "NoneType" in told["exception"]
        assert told["correlation_id"] == body["correlation_id"]


class TestCorrelation:
    @pytest.mark.usefixtures("all_targets")
    async def test_an_id_is_taken_and_stored(self, client: httpx.AsyncClient) -> None:
        mine = str(uuid4())
        response = await client.post(
            "/deployments", json=intent(), headers={**key(), "X-Correlation-ID": mine}
        )

        assert response.headers["x-correlation-id"] == mine
        assert response.json()["correlation_id"] == mine

    @pytest.mark.parametrize("sent", [None, "order-66", "\xe4", "x" * 5000])
    async def test_an_id_is_made_if_need_be(self, stranger: httpx.AsyncClient, sent: str | None) -> None:
        headers = {} if sent is None else {b"X-Correlation-ID": sent.encode("latin-1")}
        response = await stranger.get("/health/live", headers=headers)

        assert UUID(response.headers["x-correlation-id"]).version == 7

    async def test_each_request_leaves_a_line_with_its_ids(self, asker: httpx.AsyncClient) -> None:
        trace = "0af7651916cd43dd8448eb211c80319c"
        headers = {"X-Correlation-ID": str(uuid4()), "traceparent": f"00-{trace}-b7ad6b7169203331-01"}

        with captured_lines() as lines:
            await asker.get("/planes", headers=headers)

        line = next(line for line in lines() if line["event"] == "request")
        assert line["correlation_id"] == headers["X-Correlation-ID"]
        assert line["trace_id"] == trace
        assert (line["method"], line["path"], line["status"]) == ("GET", "/api/v1/planes", 200)
        assert line["actor"] == "bootstrap"


class TestLimits:
    BODY = b'{"reason": "' + b"x" * 2 * 1024 * 1024 + b'"}'

    @pytest.fixture
    async def base_url(self, app: FastAPI) -> AsyncIterator[str]:
        async with serving(app) as base_url:
            yield base_url

    async def test_a_body_of_two_mebibytes_is_refused(self, base_url: str) -> None:
        async with httpx.AsyncClient(verify=PLAIN, headers=bearer(BOOTSTRAP)) as client:
            headers = {**key(), "Content-Type": "application/json"}
            response = await client.post(f"{base_url}/deployments", content=self.BODY, headers=headers)

        problem(response, 413, "body_too_large")

    async def test_so_is_one_that_does_not_say_how_long_it_is(self, base_url: str) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            for begin in range(0, len(self.BODY), 65536):
                yield self.BODY[begin : begin + 65536]

        async with httpx.AsyncClient(verify=PLAIN, headers=bearer(BOOTSTRAP)) as client:
            headers = {**key(), "Content-Type": "application/json"}
            response = await client.post(f"{base_url}/deployments", content=chunks(), headers=headers)

        problem(response, 413, "body_too_large")

    async def test_even_where_nobody_would_read_it(self, stranger: httpx.AsyncClient) -> None:
        problem(await stranger.post("/no/such/thing", content=self.BODY), 413, "body_too_large")


class TestPaths:
    @pytest.mark.usefixtures("all_targets")
    async def test_a_trailing_slash_is_served_in_place(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("/targets/")).json() == (await client.get("/targets")).json()
        assert (await client.post("/deployments/", json=intent(), headers=key())).status_code == 202
        assert (await client.get("/health")).status_code == 200

    async def test_answers_are_not_kept_or_sniffed_by_anybody(self, stranger: httpx.AsyncClient) -> None:
        for path in ("/health/live", "/no/such/thing"):
            headers = (await stranger.get(path)).headers
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["x-frame-options"] == "DENY"


class TestPages:
    async def test_pages_hold_every_item_once_while_others_are_added(
        self, client: httpx.AsyncClient, submit: Callable[..., Awaitable[dict[str, str]]]
    ) -> None:
        before = [(await submit(app_name=f"App {number}"))["id"] for number in range(5)]
        seen: list[str] = []
        cursor: str | None = None
        for page in range(3):
            parameters = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
            answer = (await client.get("/deployments", params=parameters)).json()
            seen += [item["id"] for item in answer["items"]]
            cursor = answer["next_cursor"]
            await submit(app_name=f"Later {page}")

        assert seen == before[::-1]
        assert cursor is None

    @pytest.mark.parametrize("path", ["/deployments", "/operations", "/targets", "/planes"])
    @pytest.mark.parametrize(
        "cursor", ["x", "W10", "bnVsbA", "%00", "é", "WyJcdTAwMDAiLCAiTEFCIl0", "A" * 1000]
    )
    async def test_a_cursor_that_nobody_wrote_is_refused(
        self, asker: httpx.AsyncClient, path: str, cursor: str
    ) -> None:
        assert pointers(await asker.get(path, params={"cursor": cursor})) == ["/query/cursor"]

    async def test_a_cursor_goes_on_in_its_own_list_with_its_own_filters_only(
        self, client: httpx.AsyncClient, submit: Callable[..., Awaitable[dict[str, str]]]
    ) -> None:
        for number in range(2):
            await submit(app_name=f"App {number}")

        async def cursor_of(path: str, **filters: str) -> str:
            answer = await client.get(path, params={"limit": "1", **filters})
            return str(answer.json()["next_cursor"])

        async def status(path: str, cursor: str, **filters: str) -> int:
            response = await client.get(path, params={**filters, "cursor": cursor})
            if response.status_code != 200:
                assert pointers(response) == ["/query/cursor"]
            return response.status_code

        everything, filtered = (
            await cursor_of("/deployments"),
            await cursor_of("/deployments", plane="intune"),
        )
        assert await status("/deployments", everything) == 200
        assert await status("/deployments", filtered, plane="intune", limit="7") == 200
        assert await status("/operations", everything) == 422
        assert await status("/deployments", await cursor_of("/operations")) == 422
        assert await status("/deployments", everything, plane="intune") == 422
        assert await status("/deployments", filtered) == 422
        assert await status("/deployments", filtered, plane="jamf") == 422
        assert await status("/planes", await cursor_of("/targets")) == 422
        assert await status("/deployments/", everything) == 200

    @pytest.mark.parametrize("limit", ["0", "201", "-1", "many", ""])
    async def test_a_limit_outside_its_bounds_is_refused(self, asker: httpx.AsyncClient, limit: str) -> None:
        assert pointers(await asker.get("/operations", params={"limit": limit})) == ["/query/limit"]


class TestDatabaseDown:
    async def test_it_is_a_503_to_try_again(self, api_settings: Settings, unused_tcp_port: int) -> None:
        url = SecretStr(f"postgresql://nobody@127.0.0.1:{unused_tcp_port}/nothing")
        async with (
            started(api_settings.model_copy(update={"database_url": url})) as app,
            client_of(app, BOOTSTRAP) as client,
        ):
            read = await client.get("/deployments")
            submitted = await client.post("/deployments", json=intent(), headers=key())
            health = await client.get("/health/")
            live = await client.get("/health/live")

        for response in (read, submitted):
            problem(response, 503, "unavailable")
            assert int(response.headers["retry-after"]) >= 1
        assert health.status_code == 503
        assert health.json()["checks"]["database"]["status"] == "unhealthy"
        assert live.status_code == 200

    async def test_after_five_failures_it_is_left_alone_and_the_answer_says_for_how_long(
        self, api_settings: Settings, unused_tcp_port: int
    ) -> None:
        url = SecretStr(f"postgresql://nobody@127.0.0.1:{unused_tcp_port}/nothing")
        async with (
            started(api_settings.model_copy(update={"database_url": url})) as app,
            client_of(app, BOOTSTRAP) as client,
        ):
            answers = [await client.get("/deployments") for _ in range(7)]
            submitted = await client.post("/deployments", json=intent(), headers=key())

        for response in (*answers, submitted):
            problem(response, 503, "unavailable")
        for response in (answers[-1], submitted):
            assert 25 <= int(response.headers["retry-after"]) <= 30


async def test_what_a_process_wrote_itself_it_knows_at_once(
    client: httpx.AsyncClient, service: Service
) -> None:
    """The targets an intent is judged against are kept for 2 s; a change made here must not wait for that."""
    refused = await client.post("/deployments", json=intent(target_ring="LAB"), headers=key())
    assert pointers(refused, "target_not_set") == ["/planes/0"]

    await client.put("/targets/intune/LAB", json={"kind": "group", "ref": "group-lab"})

    accepted = await client.post("/deployments", json=intent(target_ring="LAB"), headers=key())
    assert accepted.status_code == 202


def test_the_table_of_roles_is_the_published_one() -> None:
    new = {role: PERMISSIONS[role] - PERMISSIONS[Role.VIEWER] for role in Role}

    assert PERMISSIONS[Role.VIEWER] == {Permission.PUBLIC, Permission.READ}
    assert new[Role.PACKAGER] == {Permission.DEPLOYMENT_CREATE, Permission.AI_ASK}
    assert new[Role.PUBLISHER] > new[Role.PACKAGER]
    assert Permission.GATE_OVERRIDE not in new[Role.PUBLISHER]
    assert Permission.APPROVAL_DECIDE not in new[Role.PUBLISHER]
    assert Permission.AI_DECIDE not in new[Role.PUBLISHER]
    assert new[Role.APPROVER] == {
        Permission.DEPLOYMENT_PROMOTE,
        Permission.GATE_OVERRIDE,
        Permission.APPROVAL_DECIDE,
        Permission.AI_DECIDE,
    }
    assert PERMISSIONS[Role.ADMIN] == set(Permission)
