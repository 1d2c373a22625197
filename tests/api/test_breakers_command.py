# SPDX-License-Identifier: Apache-2.0
"""``eucora breakers``: what an operator sees and orders from a terminal."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from fastapi import FastAPI

from app.settings import Settings
from tests.api.conftest import BOOTSTRAP, own_redis, serving
from tests.waiting import eventually

Run = Callable[..., Awaitable[tuple[int, str]]]
WITH_CTRL_C = """
import signal
from app.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
main()
"""
WIDE = {"COLUMNS": "160", "TERM": "dumb"}


@pytest.fixture
async def api_settings(api_settings: Settings) -> Settings:
    """On a Redis that nobody else looks at."""
    return await own_redis(api_settings)


@pytest.fixture
async def url(app: FastAPI) -> AsyncIterator[str]:
    """Where the API is served."""
    async with serving(app) as base_url:
        yield base_url.removesuffix("/api/v1")


async def start(url: str, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app.cli", "breakers", *arguments),
        env={**os.environ, **WIDE, "EUCORA_URL": url, "EUCORA_TOKEN": BOOTSTRAP},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def run(url: str, *arguments: str) -> tuple[int, str]:
    process = await start(url, *arguments)
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def test_the_table_begins_with_what_somebody_should_look_at(url: str) -> None:
    isolated = await run(url, "isolate", "jira", "--reason", "moved [to cloud]", "--for", "2h")
    code, shown = await run(url, "--once")

    assert isolated[0] == 0
    assert isolated[1].startswith("jira is isolated until 2")
    lines = shown.splitlines()
    assert code == 0
    assert lines[1].split()[:3] == ["jira", "isolated", "0/5"]
    assert "in 1 h 59 min" in lines[1] or "in 2 h 0 min" in lines[1]
    assert "by bootstrap: moved [to cloud]" in lines[1]
    assert len(lines) == 19


async def test_orders_are_given_and_ended(url: str) -> None:
    assert await run(url, "disable", "jira") == (0, "jira is disabled\n")
    assert await run(url, "enable", "jira") == (0, "jira is closed\n")
    assert await run(url, "reset", "jira", "--reason", "to be sure") == (0, "jira is closed\n")


async def test_a_document_for_programs(url: str) -> None:
    code, text = await run(url, "--json")

    assert code == 0
    assert {breaker["state"] for breaker in json.loads(text)} == {"closed"}


async def test_what_is_refused_is_a_sentence(url: str) -> None:
    unknown = await run(url, "isolate", "nobody")
    nobody = await run("http://127.0.0.1:9", "--once")
    malformed = await run(url, "isolate", "jira", "--for", "soon")

    assert (unknown[0], nobody[0], malformed[0]) == (1, 1, 2)
    assert "there is no service 'nobody'" in unknown[1]
    assert "http://127.0.0.1:9 does not answer" in nobody[1]
    assert "30m" in malformed[1]
    assert "Traceback" not in unknown[1] + nobody[1] + malformed[1]


async def test_it_is_shown_live_on_a_terminal_until_it_is_interrupted(
    url: str, client: httpx.AsyncClient
) -> None:
    screen, terminal = os.openpty()
    os.set_blocking(screen, False)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WITH_CTRL_C, "breakers"),
        env={**os.environ, "COLUMNS": "160", "TERM": "xterm", "EUCORA_URL": url, "EUCORA_TOKEN": BOOTSTRAP},
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    seen = bytearray()

    def shown(text: bytes) -> bool:
        with contextlib.suppress(OSError):  # nothing yet, or nothing more
            seen.extend(os.read(screen, 65536))
        return text in seen

    try:
        await eventually(lambda: shown(b"external_api"), within=30)
        await client.post("/breakers/jira/isolate")
        await eventually(lambda: shown(b"isolated"), within=30)
        process.send_signal(signal.SIGINT)
        # what nobody reads would keep it from ending
        await eventually(lambda: shown(b"\0") or process.returncode is not None, within=30)
    finally:
        if process.returncode is None:
            process.kill()
        os.close(screen)

    assert b"Traceback" not in seen


async def test_where_there_is_no_terminal_it_is_shown_once(url: str) -> None:
    code, shown = await run(url)

    assert code == 0
    assert len(shown.splitlines()) == 19
