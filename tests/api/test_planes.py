# SPDX-License-Identifier: Apache-2.0
"""Planes over HTTP: what is known without calling one."""

import httpx

from app.connectors.contract import Plane
from tests.api.conftest import NOBODY_LISTENS, pointers


async def test_every_plane_is_listed_configured_or_not(asker: httpx.AsyncClient) -> None:
    items = {item["plane"]: item for item in (await asker.get("/planes")).json()["items"]}

    assert items.keys() == set(Plane)
    assert items["intune"]["configured"]
    assert items["intune"]["missing"] is None
    assert "win32" in items["intune"]["package_kinds"]
    assert not items["ansible"]["configured"]
    assert items["ansible"]["missing"]


async def test_a_plane_shows_the_address_in_use(asker: httpx.AsyncClient) -> None:
    plane = (await asker.get("/planes/intune")).json()

    assert plane["base_url"].startswith(NOBODY_LISTENS)


async def test_a_check_is_an_operation(client: httpx.AsyncClient) -> None:
    response = await client.post("/planes/intune/check", json={"reason": "after maintenance"})

    assert response.status_code == 202
    operation = (await client.get(f"/operations/{response.json()['operation_id']}")).json()
    assert operation["kind"] == "check_plane"
    assert operation["subject"] == {"type": "plane", "id": "intune"}
    assert operation["correlation_id"] == response.headers["x-correlation-id"]


async def test_a_plane_that_is_not_configured_cannot_be_checked(asker: httpx.AsyncClient) -> None:
    response = await asker.post("/planes/jamf/check")

    assert pointers(response, "plane_not_configured") == ["/path/plane"]


async def test_pages_of_planes(asker: httpx.AsyncClient) -> None:
    first = (await asker.get("/planes?limit=3")).json()
    second = (await asker.get("/planes", params={"cursor": first["next_cursor"]})).json()

    assert [item["plane"] for item in first["items"] + second["items"]] == list(Plane)
    assert second["next_cursor"] is None
