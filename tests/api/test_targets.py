# SPDX-License-Identifier: Apache-2.0
"""Ring targets over HTTP."""

import asyncio

import httpx
import pytest

from tests.api.conftest import pointers, problem

PATH = "/targets/intune/CANARY"


async def test_a_target_is_set_read_and_counted(client: httpx.AsyncClient) -> None:
    put = await client.put(PATH, json={"kind": "group", "ref": "group-1"})

    assert put.status_code == 200
    operation = (await client.get(f"/operations/{put.json()['operation_id']}")).json()
    assert (operation["kind"], operation["subject"]) == (
        "count_target",
        {"type": "target", "id": "intune/CANARY"},
    )
    read = await client.get(PATH)
    assert read.headers["etag"] == put.headers["etag"] == '"1"'
    assert read.json() == {
        "plane": "intune",
        "ring": "CANARY",
        "kind": "group",
        "ref": "group-1",
        "device_count": None,
        "counted_at": None,
        "version": 1,
    }


async def test_a_change_raises_the_version_and_a_repeat_does_not(client: httpx.AsyncClient) -> None:
    versions = [
        (await client.put(PATH, json={"kind": "group", "ref": ref})).json()["version"]
        for ref in ("group-1", "group-1", "group-2")
    ]

    assert versions == [1, 1, 2]


async def test_a_change_may_name_the_version_it_was_decided_on(client: httpx.AsyncClient) -> None:
    body = {"kind": "group", "ref": "group-1"}
    problem(await client.put(PATH, json=body, headers={"If-Match": '"1"'}), 412, "version_mismatch")
    problem(await client.get(PATH), 404, "not_found")
    await client.put(PATH, json=body)

    stale = await client.put(PATH, json={"kind": "group", "ref": "other"}, headers={"If-Match": '"7"'})
    current = await client.put(PATH, json={"kind": "group", "ref": "other"}, headers={"If-Match": '"1"'})

    problem(stale, 412, "version_mismatch")
    assert current.json()["version"] == 2


async def test_two_at_once_leave_one_of_the_two(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(
        *(client.put(PATH, json={"kind": "group", "ref": f"group-{number}"}) for number in range(6))
    )

    assert {answer.status_code for answer in answers} == {200}
    assert (await client.get(PATH)).json()["version"] == 6


async def test_they_are_listed_in_order_and_in_pages(client: httpx.AsyncClient) -> None:
    for ring in ("GLOBAL", "LAB", "PILOT"):
        await client.put(f"/targets/intune/{ring}", json={"kind": "group", "ref": ring})
    first = (await client.get("/targets?limit=2")).json()
    second = (await client.get("/targets", params={"limit": "2", "cursor": first["next_cursor"]})).json()

    assert [item["ring"] for item in first["items"] + second["items"]] == ["LAB", "PILOT", "GLOBAL"]
    assert second["next_cursor"] is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"kind": "herd", "ref": "x"}, ["/kind"]),
        ({"kind": "group"}, ["/ref"]),
        ({"kind": "group", "ref": ""}, ["/ref"]),
        ({"kind": "group", "ref": "x" * 1001}, ["/ref"]),
        ({"kind": "group", "ref": "x", "device_count": 7}, ["/device_count"]),
    ],
)
async def test_what_is_no_target_is_refused(
    asker: httpx.AsyncClient, body: dict[str, object], expected: list[str]
) -> None:
    assert pointers(await asker.put(PATH, json=body)) == expected


async def test_a_kind_that_the_plane_does_not_know_is_refused(
    client: httpx.AsyncClient,
) -> None:
    response = await client.put(PATH, json={"kind": "inventory", "ref": "x"})

    wrong = problem(response, 422, "invalid")["errors"]
    assert wrong == [
        {"pointer": "/kind", "detail": "intune knows no target of kind inventory; it knows group"}
    ]
    problem(await client.get(PATH), 404, "not_found")


async def test_a_plane_that_is_not_configured_takes_every_kind(client: httpx.AsyncClient) -> None:
    for kind in ("group", "inventory"):
        assert (await client.put("/targets/jamf/LAB", json={"kind": kind, "ref": "x"})).status_code == 200


async def test_an_unknown_ring_or_plane_has_none(asker: httpx.AsyncClient) -> None:
    for path in ("/targets/intune/MOON", "/targets/tivoli/LAB"):
        problem(await asker.put(path, json={"kind": "group", "ref": "x"}), 404, "not_found")
