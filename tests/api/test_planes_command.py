# SPDX-License-Identifier: Apache-2.0
"""``eucora planes``: what an operator sees of the device managers from a terminal."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI

from tests.api.conftest import BOOTSTRAP, serving


@pytest.fixture
async def url(standing_app: FastAPI) -> AsyncIterator[str]:
    """Where the API is served."""
    async with serving(standing_app) as base_url:
        yield base_url.removesuffix("/api/v1")


async def planes(url: str, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app.cli", "planes", *arguments),
        env={**os.environ, "COLUMNS": "100", "TERM": "dumb", "EUCORA_URL": url, "EUCORA_TOKEN": BOOTSTRAP},
        stdout=asyncio.subprocess.PIPE,
    )
    told, _ = await process.communicate()
    assert process.returncode == 0
    return told.decode()


async def test_the_table_names_what_is_missing_and_what_a_plane_cannot_do(url: str) -> None:
    lines = (await planes(url)).splitlines()

    told = " ".join(" ".join(lines).split())
    assert all(len(line) <= 100 for line in lines)
    assert "EUCORA_PLANES__JAMF__BASE_URL is not set" in told
    assert "cannot return: no call asks for an earlier version of a package" in told
    for plane in ("intune", "jamf", "sccm", "landscape", "ansible"):
        assert any(line.startswith(plane) for line in lines)


async def test_a_program_gets_the_same_as_json(url: str) -> None:
    found = {plane["plane"]: plane for plane in json.loads(await planes(url, "--json"))}

    assert found["sccm"]["package_kinds"] == ["application"]
    assert "create" in {limit["capability"] for limit in found["sccm"]["limitations"]}
    assert found["intune"]["rate_limits"][0] == {
        "requests": 100,
        "seconds": 20.0,
        "applies_to": "writes to applications by one client of a tenant",
    }
