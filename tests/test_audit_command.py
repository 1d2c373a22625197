# SPDX-License-Identifier: Apache-2.0
"""``eucora audit`` as an auditor runs it, over a history that was altered in the database."""

import asyncio
import json
import os
import sys
from pathlib import Path

from sqlalchemy import make_url

from app.runtime import Runtime
from app.settings import Settings
from tests.databases import connected
from tests.factories import NOON, accept, make_plan


async def audit(settings: Settings, *arguments: str) -> tuple[int, str, str]:
    """The command's exit code and what it said."""
    assert settings.database_url is not None
    environment = os.environ | {"EUCORA_DATABASE_URL": settings.database_url.get_secret_value()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app.cli", "audit", *arguments),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def tamper(settings: Settings, statement: str) -> None:
    assert settings.database_url is not None
    async with connected(make_url(settings.database_url.get_secret_value())) as connection:
        await connection.execute(f"ALTER TABLE events DISABLE TRIGGER ALL; {statement}")


async def test_an_auditor_sees_the_first_broken_link_and_the_exit_code_tells(
    runtime: Runtime, settings: Settings, tmp_path: Path
) -> None:
    async with runtime.transaction() as session:
        deployment_id = await accept(session, make_plan(), now=NOON)

    code, out, _ = await audit(settings, "verify")
    assert (code, out) == (0, "1 events of 1 deployments, 0 checkpoints: all as they were recorded\n")
    code, exported, _ = await audit(settings, "export")
    assert [json.loads(line)["number"] for line in exported.splitlines()] == [1]
    kept = tmp_path / "checkpoints.jsonl"
    kept.write_text(exported)
    assert (await audit(settings, "verify", "--against", str(kept)))[0] == 0

    await tamper(settings, "UPDATE events SET actor = 'nobody'")
    code, out, _ = await audit(settings, "verify", "--against", str(kept))
    assert code == 1
    assert out.startswith(f"deployment {deployment_id}: broken at 1: its content, or its place,")
    code, out, _ = await audit(settings, "verify", "--json")
    assert (code, len(json.loads(out)["broken"])) == (1, 1)


async def test_a_file_that_is_no_export_is_refused_in_a_sentence(settings: Settings, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"number": 1}\n')

    code, _, err = await audit(settings, "verify", "--against", str(wrong))

    assert (code, err) == (1, f"eucora: {wrong}, line 1: this is no exported checkpoint\n")
