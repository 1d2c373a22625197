# SPDX-License-Identifier: Apache-2.0
"""Submitting: what is refused and where, what is stored with it, and what a repeat gets."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from sqlalchemy import event, func, select
from sqlalchemy.engine.interfaces import DBAPIConnection

from app.api.deployments import DeploymentRead
from app.api.examples import DEPLOYMENT_CREATE
from app.models import Deployment, Event, IdempotencyKey, Operation, RingDeployment
from app.runtime import Runtime
from tests.api.conftest import Submit, intent, key, pointers, problem

PACKAGE: dict[str, Any] = DEPLOYMENT_CREATE["package"]
FACTORS: dict[str, Any] = DEPLOYMENT_CREATE["risk_factors"]
PKG = {
    "kind": "pkg",
    "uri": "https://packages.example.com/firefox.pkg",
    "sha256": PACKAGE["sha256"],
    "bundle_id": "org.mozilla.firefox",
}


def package(**changes: Any) -> dict[str, Any]:
    return {**PACKAGE, **changes}


def factors(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**FACTORS, **changes}.items() if value is not ...}


@pytest.mark.usefixtures("all_targets")
class TestAccepted:
    async def test_the_answer_is_what_is_stored(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/deployments", json=intent(), headers=key())

        assert response.status_code == 202
        submitted = response.json()
        assert response.headers["location"] == f"/api/v1/deployments/{submitted['id']}"
        assert response.headers["etag"] == '"1"'
        read = await client.get(response.headers["location"].removeprefix("/api/v1"))
        assert read.json() == submitted
        assert read.headers["etag"] == '"1"'
        assert [lane["ring"] for lane in submitted["lanes"]] == ["LAB", "CANARY", "PILOT"]
        assert submitted["operation_id"] == submitted["lanes"][0]["operation_id"]
        DeploymentRead.model_validate_json(response.content)

    async def test_intent_lanes_operation_event_and_key_are_there(
        self, client: httpx.AsyncClient, api_runtime: Runtime
    ) -> None:
        await client.post("/deployments", json=intent(), headers=key())

        async with api_runtime.sessions() as session:
            counts = {
                model.__name__: await session.scalar(select(func.count()).select_from(model))
                for model in (Deployment, RingDeployment, Operation, Event, IdempotencyKey)
            }
        assert counts == {
            "Deployment": 1,
            "RingDeployment": 3,
            "Operation": 1,
            "Event": 1,
            "IdempotencyKey": 1,
        }

    async def test_it_is_one_statement_beside_authentication(
        self, client: httpx.AsyncClient, api_runtime: Runtime
    ) -> None:
        """Token and targets were read a moment ago; what remains is the statement that stores everything."""
        await client.post("/deployments", json=intent(app_name="The first"), headers=key())
        statements: list[str] = []

        def checked_out(connection: DBAPIConnection, *_: Any) -> None:
            connection.driver_connection.add_query_logger(lambda sent: statements.append(sent.query))

        for engine in (api_runtime.engine, api_runtime.accept_engine):
            event.listen(engine.sync_engine, "checkout", checked_out)
        response = await client.post("/deployments", json=intent(app_name="The second"), headers=key())

        await asyncio.sleep(0)  # the driver tells its loggers in the next round of the loop
        assert response.status_code == 202
        assert len(statements) == 1, statements
        assert "INSERT INTO idempotency_keys" in statements[0]

    async def test_redis_is_not_needed(self, client: httpx.AsyncClient, api_runtime: Runtime) -> None:
        await api_runtime.redis.aclose()
        await api_runtime.redis.connection_pool.disconnect()
        api_runtime.redis.connection_pool.connection_kwargs |= {"port": 9, "path": "/nowhere"}

        response = await client.post("/deployments", json=intent(), headers=key())

        assert response.status_code == 202

    async def test_packages_may_differ_from_plane_to_plane(self, client: httpx.AsyncClient) -> None:
        body = intent(package=..., packages={"intune": PACKAGE})
        response = await client.post("/deployments", json=body, headers=key())

        assert response.status_code == 202

    async def test_own_gates_durations_and_instants_are_taken(self, client: httpx.AsyncClient) -> None:
        gates = {"CANARY": {"min_success_rate": 0.99, "max_failure_rate": 0.01, "soak": 172800}}
        body = intent(gates=gates, start_at="2030-01-01T01:00:00+01:00")
        response = await client.post("/deployments", json=body, headers=key())

        assert response.status_code == 202
        assert response.json()["start_at"] == "2030-01-01T00:00:00Z"

    @pytest.mark.parametrize("at", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
    async def test_the_ends_of_the_calendar_are_instants_too(
        self, client: httpx.AsyncClient, at: str
    ) -> None:
        response = await client.post("/deployments", json=intent(start_at=at), headers=key())

        assert response.status_code == 202


REFUSED: dict[str, tuple[Any, str, str]] = {
    "unknown ring": (intent(target_ring="MOON"), "/target_ring", "invalid"),
    "unknown plane": (intent(planes=["tivoli"]), "/planes/0", "invalid"),
    "plane without a connector": (intent(planes=["jamf"], package=PKG), "/planes/0", "plane_not_configured"),
    "kind the plane cannot install": (intent(package=PKG), "/package/kind", "invalid"),
    "kind nobody knows": (intent(package={"kind": "rpm"}), "/package/kind", "invalid"),
    "kind nobody knows among packages": (
        intent(package=..., packages={"intune": {"kind": "rpm"}}),
        "/packages/intune/kind",
        "invalid",
    ),
    "no kind": (intent(package={}), "/package/kind", "invalid"),
    "kind that is no text": (intent(package={"kind": []}), "/package/kind", "invalid"),
    "package that is no object": (intent(package="win32"), "/package", "invalid"),
    "detection nobody knows": (
        intent(package=package(detection={"type": "magic"})),
        "/package/detection/type",
        "invalid",
    ),
    "field of another kind": (intent(package=package(bundle_id="x")), "/package/bundle_id", "invalid"),
    "unknown field": (intent(colour="red"), "/colour", "invalid"),
    "unknown field inside": (intent(risk_factors=factors(mood=0.5)), "/risk_factors/mood", "invalid"),
    "missing risk factor": (intent(risk_factors=factors(history=...)), "/risk_factors/history", "invalid"),
    "factor above 1": (intent(risk_factors=factors(history=1.01)), "/risk_factors/history", "invalid"),
    "factor below 0": (intent(risk_factors=factors(history=-0.1)), "/risk_factors/history", "invalid"),
    "factor in words": (intent(risk_factors=factors(history="0.1")), "/risk_factors/history", "invalid"),
    "factor yes": (intent(risk_factors=factors(history=True)), "/risk_factors/history", "invalid"),
    "hash of another kind": (intent(package=package(sha256="d41d8cd98f")), "/package/sha256", "invalid"),
    "hash not hexadecimal": (intent(package=package(sha256="g" * 64)), "/package/sha256", "invalid"),
    "address of another kind": (intent(package=package(uri="ftp://x/y")), "/package/uri", "invalid"),
    "long version": (intent(version="1" * 10_000), "/version", "invalid"),
    "empty version": (intent(version=""), "/version", "invalid"),
    "name with NUL": (intent(app_name="Fire\x00fox"), "/app_name", "invalid"),
    "NUL in a name of a field": (intent(**{"a\x00b": 1}), "/a\x00b", "invalid"),
    "half a surrogate pair": (intent(app_name="Fire\ud800fox"), "/app_name", "invalid"),
    "name with blanks around": (intent(app_name=" Firefox"), "/app_name", "invalid"),
    "privileged in words": (intent(privileged="yes"), "/privileged", "invalid"),
    "no planes": (intent(planes=[]), "/planes", "invalid"),
    "plane twice": (intent(planes=["intune", "intune"]), "/planes/1", "invalid"),
    "no package": (intent(package=...), "/package", "invalid"),
    "package and packages": (intent(packages={"intune": PACKAGE}), "/package", "invalid"),
    "packages without one": (
        intent(package=..., packages={"jamf": PKG}, planes=["intune", "jamf"]),
        "/packages/intune",
        "invalid",
    ),
    "packages with one too many": (
        intent(package=..., packages={"intune": PACKAGE, "jamf": PKG}),
        "/packages/jamf",
        "invalid",
    ),
    "wrong package among packages": (
        intent(package=..., packages={"intune": package(sha256="x" * 64)}),
        "/packages/intune/sha256",
        "invalid",
    ),
    "gate outside 0..1": (
        intent(gates={"LAB": {"min_success_rate": 98}}),
        "/gates/LAB/min_success_rate",
        "invalid",
    ),
    "gate of an unknown ring": (intent(gates={"MOON": {}}), "/gates/MOON", "invalid"),
    "soak in words": (intent(gates={"LAB": {"soak": "2 days"}}), "/gates/LAB/soak", "invalid"),
    "instant without an offset": (intent(start_at="2030-01-01T00:00:00"), "/start_at", "invalid"),
    "instant as a number": (intent(start_at=1_900_000_000), "/start_at", "invalid"),
    "a list": ([], "", "invalid"),
    "nothing": (None, "", "invalid"),
}


class TestRefused:
    @pytest.mark.parametrize("case", REFUSED)
    async def test_the_answer_names_the_field_and_the_rule(self, asker: httpx.AsyncClient, case: str) -> None:
        body, pointer, code = REFUSED[case]
        headers = {**key(), "Content-Type": "application/json"}
        response = await asker.post("/deployments", content=json.dumps(body), headers=headers)

        wrong = problem(response, 422, code)["errors"]
        assert [each["pointer"] for each in wrong] == [pointer]
        assert wrong[0]["detail"]
        assert len(response.content) < 3000

    async def test_everything_that_is_wrong_is_told_at_once(self, asker: httpx.AsyncClient) -> None:
        body = intent(version="", target_ring="MOON", risk_factors=factors(history=2, exploitability=...))
        response = await asker.post("/deployments", json=body, headers=key())

        assert pointers(response) == [
            "/version",
            "/target_ring",
            "/risk_factors/exploitability",
            "/risk_factors/history",
        ]

    async def test_a_field_that_is_there_twice(self, asker: httpx.AsyncClient) -> None:
        text = json.dumps(intent()).replace('"history"', '"data_access"')
        headers = {**key(), "Content-Type": "application/json"}
        response = await asker.post("/deployments", content=text, headers=headers)

        assert pointers(response) == ["/risk_factors/data_access"]

    async def test_values_that_cannot_be_stored_where_anything_may_stand(
        self, asker: httpx.AsyncClient
    ) -> None:
        deep: Any = 1
        for _ in range(40):
            deep = [deep]
        variables = {"a": "\x00", "b": [1e400], "c": deep}
        body = intent(package={"kind": "playbook", "job_template": "x", "extra_vars": variables})
        text = json.dumps(body).replace("Infinity", "1e400")
        headers = {**key(), "Content-Type": "application/json"}
        response = await asker.post("/deployments", content=text, headers=headers)

        inside = "/package/extra_vars"
        assert pointers(response) == [f"{inside}/a", f"{inside}/b/0", f"{inside}/c" + "/0" * 29]

    async def test_an_application_that_is_being_deployed(
        self, client: httpx.AsyncClient, submit: Submit
    ) -> None:
        active = await submit()

        response = await client.post("/deployments", json=intent(app_name="MOZILLA FIREFOX"), headers=key())

        body = problem(response, 409, "active_deployment_exists")
        assert active["id"] in body["detail"]
        assert "intune" in body["detail"]


async def test_a_lane_without_a_target_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/deployments", json=intent(target_ring="LAB"), headers=key())

    assert pointers(response, "target_not_set") == ["/planes/0"]


class TestKeys:
    async def test_a_key_is_required(self, asker: httpx.AsyncClient) -> None:
        response = await asker.post("/deployments", json=intent())

        assert pointers(response, "idempotency_key_required") == ["/header/Idempotency-Key"]

    @pytest.mark.parametrize("text", ["x" * 256, "a b", "sch\xf6n", ""])
    async def test_a_malformed_key_is_refused(self, asker: httpx.AsyncClient, text: str) -> None:
        headers = {b"Idempotency-Key": text.encode("latin-1")}
        response = await asker.post("/deployments", json=intent(), headers=headers)

        assert pointers(response) == ["/header/Idempotency-Key"]


@pytest.mark.usefixtures("all_targets")
class TestRepeats:
    async def test_the_same_request_gets_the_same_answer(self, client: httpx.AsyncClient) -> None:
        headers = key()
        first = await client.post("/deployments", json=intent(), headers=headers)
        again = await client.post("/deployments", json=intent(), headers=headers)

        assert again.status_code == 202
        assert again.content == first.content
        assert again.headers["idempotency-replayed"] == "true"
        assert "idempotency-replayed" not in first.headers
        assert {name: again.headers[name] for name in ("location", "etag")} == {
            name: first.headers[name] for name in ("location", "etag")
        }
        assert again.headers["x-correlation-id"] != first.headers["x-correlation-id"]

    async def test_another_body_under_the_key_is_refused(self, client: httpx.AsyncClient) -> None:
        headers = key()
        await client.post("/deployments", json=intent(), headers=headers)
        response = await client.post("/deployments", json=intent(version="144.0"), headers=headers)

        problem(response, 409, "idempotency_key_reused")

    async def test_a_refusal_is_not_kept(self, client: httpx.AsyncClient) -> None:
        headers = key()
        refused = await client.post("/deployments", json=intent(version=""), headers=headers)
        accepted = await client.post("/deployments", json=intent(), headers=headers)

        assert (refused.status_code, accepted.status_code) == (422, 202)

    async def test_of_many_at_once_one_is_stored(
        self, client: httpx.AsyncClient, api_runtime: Runtime
    ) -> None:
        headers = key()
        answers = await asyncio.gather(
            *(client.post("/deployments", json=intent(), headers=headers) for _ in range(12))
        )

        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.content for answer in answers}) == 1
        assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
        async with api_runtime.sessions() as session:
            assert await session.scalar(select(func.count()).select_from(Deployment)) == 1

    async def test_of_many_keys_for_one_application_one_is_accepted(self, client: httpx.AsyncClient) -> None:
        answers = await asyncio.gather(
            *(client.post("/deployments", json=intent(), headers=key()) for _ in range(8))
        )

        assert sorted(answer.status_code for answer in answers) == [202] + [409] * 7
