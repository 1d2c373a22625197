# SPDX-License-Identifier: Apache-2.0
"""The reference page works where nothing but this installation can be reached."""

import re

import httpx
import pytest


async def test_the_page_and_everything_it_loads_come_from_here(client: httpx.AsyncClient) -> None:
    root = str(client.base_url).removesuffix("/").removesuffix("/api/v1")

    page = await client.get(f"{root}/docs", headers={"Authorization": ""})
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    answers = [await client.get(f"{root}{address}") for address in loaded]

    assert page.status_code == 200
    assert [address for address in loaded if not address.startswith("/docs-assets/")] == []
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert "/openapi.json" in page.text


@pytest.mark.parametrize("path", ["/docs-assets/nothing.js", "/docs-assets/%2e%2e/__init__.py"])
async def test_only_the_assets_are_served(client: httpx.AsyncClient, path: str) -> None:
    root = str(client.base_url).removesuffix("/").removesuffix("/api/v1")

    assert (await client.get(f"{root}{path}")).status_code == 404
