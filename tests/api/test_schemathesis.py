# SPDX-License-Identifier: Apache-2.0
"""The whole document against the running API: every answer is one that the document promises."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.main import openapi_document
from app.settings import Settings
from tests.api.conftest import BOOTSTRAP, own_redis, serving, set_targets, started

CONFIG = Path(__file__).with_name("schemathesis.toml")
PATIENCE = 600.0


@pytest.fixture
async def origin(api_settings: Settings) -> AsyncIterator[str]:
    """The API on a socket, with targets."""
    async with started(await own_redis(api_settings)) as app, serving(app) as base_url:
        await set_targets(app.state.service.runtime)
        yield base_url.removesuffix("/api/v1")


@pytest.mark.timeout(PATIENCE + 60)
async def test_generated_requests_find_nothing_that_the_document_does_not_say(
    origin: str, tmp_path: Path
) -> None:
    operations = sum(len(path) for path in openapi_document()["paths"].values())
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run"]
    options = ["--header", f"Authorization: Bearer {BOOTSTRAP}", "--no-color"]
    process = await asyncio.create_subprocess_exec(
        *(*command, f"{origin}/openapi.json", "--url", origin, *options),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert process.returncode == 0, output.decode()
    assert f"Tested: {operations}".encode() in output, output.decode()
