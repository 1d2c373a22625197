# SPDX-License-Identifier: Apache-2.0
"""HEAD: what GET would answer, without the body."""

import httpx
import pytest
from fastapi import FastAPI

from tests.api.conftest import BOOTSTRAP, Submit, bearer, problem, serving
from tests.logs import captured_lines
from tests.wire import PLAIN

CHANGING = {"x-correlation-id", "date"}


@pytest.mark.parametrize(
    "path",
    [
        "/health/",
        "/health/live",
        "/health/ready",
        "/planes",
        "/planes/intune",
        "/targets/intune/LAB",
        "/deployments",
        "/targets/intune/MOON",
        "http://api.test/openapi.json",
        "http://api.test/docs",
    ],
)
async def test_it_has_the_status_and_headers_of_get(asker: httpx.AsyncClient, path: str) -> None:
    head, get = await asker.head(path), await asker.get(path)

    assert head.content == b""
    assert get.content
    assert head.status_code == get.status_code
    assert stable(head) == stable(get)
    assert int(head.headers["content-length"]) == len(get.content)


def stable(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name not in CHANGING}


async def test_metrics_tell_their_length_too(stranger: httpx.AsyncClient) -> None:
    response = await stranger.head("http://api.test/metrics")

    assert (response.status_code, response.content) == (200, b"")
    assert int(response.headers["content-length"]) > 0


async def test_it_needs_the_same_token(stranger: httpx.AsyncClient) -> None:
    response = await stranger.head("/deployments")

    assert (response.status_code, response.content) == (401, b"")


async def test_a_connection_serves_it_and_then_others(app: FastAPI) -> None:
    async with (
        serving(app) as base_url,
        httpx.AsyncClient(verify=PLAIN, base_url=base_url, headers=bearer(BOOTSTRAP)) as client,
    ):
        answers = [await client.request(method, "/planes") for method in ("HEAD", "GET", "HEAD", "GET")]

    lengths = [len(answer.content) for answer in answers]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert lengths == [0, lengths[1], 0, lengths[1]]
    assert {int(answer.headers["content-length"]) for answer in answers} == {lengths[1]}


async def test_an_event_stream_is_not_opened_for_it(client: httpx.AsyncClient, submit: Submit) -> None:
    deployment = await submit()

    response = await client.head(
        f"/deployments/{deployment['id']}/events", headers={"Accept": "text/event-stream"}
    )

    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"].startswith("text/event-stream")


async def test_what_has_no_get_has_no_head(asker: httpx.AsyncClient) -> None:
    response = await asker.head("/deployments/0199c0de-0000-7000-8000-00000000dead/promote")

    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    problem(
        await asker.get("/deployments/0199c0de-0000-7000-8000-00000000dead/promote"),
        405,
        "method_not_allowed",
    )


async def test_the_log_tells_what_was_asked(stranger: httpx.AsyncClient) -> None:
    with captured_lines() as lines:
        await stranger.head("/health/live")

    line = next(line for line in lines() if line["event"] == "request")
    assert (line["method"], line["status"]) == ("HEAD", 200)
