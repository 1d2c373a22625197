# SPDX-License-Identifier: Apache-2.0
"""Operations over HTTP; what they do is tested in the domain."""

from uuid import UUID

import httpx
from sqlalchemy import update

from app.domain.operations import Failure
from app.models import Operation, OperationStatus
from app.runtime import Runtime
from tests.api.conftest import Submit, pointers, problem


async def test_an_operation_tells_what_it_is_about(client: httpx.AsyncClient, submit: Submit) -> None:
    submitted = await submit()

    response = await client.get(f"/operations/{submitted['operation_id']}")

    operation = response.json()
    assert response.headers["etag"] == '"1"'
    assert operation["kind"] == "deploy_to_connector"
    assert operation["subject"]["type"] == "lane"
    assert operation["deployment_id"] == submitted["id"]
    assert operation["correlation_id"] == submitted["correlation_id"]
    assert (operation["status"], operation["attempt"], operation["max_attempts"]) == ("QUEUED", 0, 4)
    assert operation["next_attempt_at"] is not None
    assert operation["error"] is None


async def test_the_filters_narrow(client: httpx.AsyncClient, submit: Submit) -> None:
    first, second = await submit(app_name="One"), await submit(app_name="Two")

    async def found(**filters: str) -> list[str]:
        answer = (await client.get("/operations", params=filters)).json()
        return [item["id"] for item in answer["items"]]

    assert await found() == [second["operation_id"], first["operation_id"]]
    assert await found(deployment_id=first["id"]) == [first["operation_id"]]
    assert await found(kind="check_plane") == []
    assert await found(status="QUEUED", kind="deploy_to_connector", limit="1") == [second["operation_id"]]
    assert await found(subject_type="plane") == []
    assert pointers(await client.get("/operations?kind=dig")) == ["/query/kind"]


async def test_why_it_failed_is_told_by_class_and_code(
    client: httpx.AsyncClient, submit: Submit, api_runtime: Runtime
) -> None:
    submitted = await submit()
    failure = Failure("permanent", "not_found", "404 from /groups", "intune")
    async with api_runtime.transaction() as session:
        await session.execute(
            update(Operation).values(status=OperationStatus.FAILED, error=failure.to_json())
        )

    read = (await client.get(f"/operations/{submitted['operation_id']}")).json()
    listed = (await client.get("/operations", params={"status": "FAILED"})).json()["items"][0]

    assert read["error"] == {
        "class": "permanent",
        "code": "not_found",
        "message": "404 from /groups",
        "service": "intune",
    }
    assert read["next_attempt_at"] is None
    assert listed == read


async def test_it_is_cancelled_and_retried_with_no_worker_alive(
    client: httpx.AsyncClient, submit: Submit, api_runtime: Runtime
) -> None:
    path = f"/operations/{(await submit())['operation_id']}"

    cancelled = await client.post(f"{path}/cancel", json={"reason": "wrong version"})
    again = await client.post(f"{path}/cancel")
    retried = await client.post(f"{path}/retry", headers={"If-Match": cancelled.headers["etag"]})
    stale = await client.post(f"{path}/cancel", headers={"If-Match": cancelled.headers["etag"]})
    too_much = await client.post(f"{path}/retry")

    assert (cancelled.status_code, cancelled.json()["status"]) == (202, "CANCELLED")
    assert again.json() == cancelled.json()
    assert (retried.status_code, retried.json()["status"]) == (202, "QUEUED")
    problem(stale, 412, "version_mismatch")
    assert "QUEUED" in problem(too_much, 409, "illegal_transition")["detail"]
    async with api_runtime.sessions() as session:
        row = await session.get_one(Operation, UUID(path.rpartition("/")[2]))
    assert row.status is OperationStatus.QUEUED


async def test_an_unknown_one_is_404(asker: httpx.AsyncClient) -> None:
    for method, part in (("GET", ""), ("POST", "/cancel"), ("POST", "/retry")):
        response = await asker.request(method, f"/operations/0199c0de-0000-7000-8000-00000000dead{part}")
        problem(response, 404, "not_found")
