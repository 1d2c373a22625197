# SPDX-License-Identifier: Apache-2.0
"""The command line as a user types it, and what ``eucora check`` finds."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from app import check, security
from app.check import Finding, Level
from app.database import database_url as as_engine_url
from app.domain import accounts
from app.models import ApiToken, Role
from app.redis import open_redis
from app.settings import Settings
from app.supervisor import free_port
from sandbox.main import create_app
from tests.databases import Template, execute
from tests.sandbox.stage import Stage
from tests.servers import Servers

ROOT = Path(__file__).resolve().parent.parent


async def eucora(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run a command: its exit code, its output and its errors."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app.cli", *arguments),
        cwd=ROOT,
        env=os.environ | {"NO_COLOR": "1", "COLUMNS": "100"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def test_help_names_every_command_and_the_exit_codes() -> None:
    code, output, _ = await eucora("--help")

    assert code == 0
    for command in (
        "up",
        "demo",
        "api",
        "worker",
        "sandbox",
        "migrate",
        "token",
        "planes",
        "check",
        "openapi",
        "test",
    ):
        assert f" {command} " in output
    assert "Exit codes: 0" in output


async def test_an_example_that_is_not_there_is_answered_with_those_that_are() -> None:
    code, _, errors = await eucora("demo", "--example", "nothing")

    assert code == 2
    assert "no example nothing; there are ai, ansible-example-agent, contoso-vpn, firefox" in errors


async def test_a_setting_that_cannot_be_read_is_named_and_its_value_is_not_shown() -> None:
    code, _, errors = await eucora("check", EUCORA_WORKER__LEASE="hunter2", EUCORA_LOG_LEVEL="loud")

    assert code == 2
    assert "EUCORA_WORKER__LEASE" in errors
    assert "EUCORA_LOG_LEVEL" in errors
    assert "hunter2" not in errors
    assert "Traceback" not in errors


async def test_a_command_that_needs_a_database_says_which_setting_is_missing(tmp_path: Path) -> None:
    code, _, errors = await eucora("migrate", "--data-dir", str(tmp_path))

    assert (code, errors) == (1, "eucora: EUCORA_DATABASE_URL is not set\n")


async def test_a_command_whose_database_is_away_says_so() -> None:
    code, _, errors = await eucora("migrate", EUCORA_DATABASE_URL=f"postgresql://127.0.0.1:{free_port()}/x")

    assert code == 1
    assert errors.startswith("eucora: the database does not answer: ")


async def test_the_openapi_document_is_printed_sorted() -> None:
    code, output, errors = await eucora("openapi")

    document = json.loads(output)
    assert code == 0, errors
    assert output == json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    assert "/api/v1/deployments" in document["paths"]


async def test_a_token_is_made_used_listed_and_revoked(database_url: str) -> None:
    environment = {"EUCORA_DATABASE_URL": database_url}

    code, text, _ = await eucora(
        *("token", "create", "--role", "packager", "--name", "ci", "--expires-days", "7"), **environment
    )
    token = await stored_token(database_url)
    _, listed, _ = await eucora("token", "list", **environment)
    before = await bearer_of(database_url, text.strip())
    revoked, *_ = await eucora("token", "revoke", str(token.id), **environment)
    after = await bearer_of(database_url, text.strip())

    assert (code, revoked) == (0, 0)
    assert token.token_hash == security.hash_token(text.strip())
    assert token.expires_at is not None
    assert 6 <= (token.expires_at - datetime.now(UTC)).days < 7
    assert str(token.id) in listed
    assert text.strip() not in listed
    assert before is not None
    assert (before.name, before.role) == ("ci", Role.PACKAGER)
    assert after is None


async def test_revoking_a_token_that_does_not_exist_fails(database_url: str) -> None:
    nobody = "00000000-0000-0000-0000-000000000000"

    code, _, errors = await eucora("token", "revoke", nobody, EUCORA_DATABASE_URL=database_url)

    assert code == 1
    assert f"there is no token {nobody}" in errors


def engine_of(url: str) -> AsyncEngine:
    """An engine without a pool."""
    return create_async_engine(as_engine_url(Settings(database_url=SecretStr(url))), poolclass=NullPool)


async def stored_token(url: str) -> ApiToken:
    """The only one."""
    engine = engine_of(url)
    async with engine.connect() as connection:
        row = (await connection.execute(select(ApiToken.__table__))).one()
    await engine.dispose()
    return ApiToken(**row._mapping)


async def bearer_of(url: str, text: str) -> accounts.Actor | None:
    """Whom the API would take its bearer for."""
    engine = engine_of(url)
    async with engine.connect() as connection:
        actor = await accounts.authenticate(connection, security.hash_token(text), datetime.now(UTC))
    await engine.dispose()
    return actor


async def findings_of(settings: Settings) -> dict[str, Finding]:
    """What the check finds, by subject; the last of a subject."""
    return {finding.subject: finding async for finding in check.check(settings)}


async def test_the_check_of_a_sound_installation_fails_nothing(settings: Settings) -> None:
    findings = await findings_of(settings)

    assert [finding for finding in findings.values() if finding.level is Level.FAIL] == []
    assert findings["database"].detail.startswith("PostgreSQL ")
    assert findings["migrations"].detail == "complete"
    assert findings["redis"].detail.endswith("answers")
    assert findings["intune"].level is Level.WARN
    assert "EUCORA_PLANES__INTUNE__" in findings["intune"].detail
    assert findings["assistant"].level is Level.WARN
    assert "EUCORA_AI__PROVIDER" in findings["assistant"].detail


async def test_the_check_names_the_migrations_that_are_missing(
    settings: Settings, template: Template
) -> None:
    name = f"{template.name}_empty"
    await execute(template.server, f'CREATE DATABASE "{name}"')
    try:
        url = template.server.set(database=name).render_as_string(hide_password=False)
        findings = await findings_of(settings.model_copy(update={"database_url": SecretStr(url)}))
    finally:
        await execute(template.server, f'DROP DATABASE "{name}" WITH (FORCE)')

    assert findings["migrations"].level is Level.FAIL
    assert findings["migrations"].remedy == "run `eucora migrate`"


async def test_the_check_tells_servers_that_do_not_answer(settings: Settings) -> None:
    nobody = free_port()
    away = {
        "database_url": SecretStr(f"postgresql://eucora:secret@127.0.0.1:{nobody}/eucora"),
        "redis_url": SecretStr(f"redis://:secret@127.0.0.1:{nobody}/0"),
    }

    findings = await findings_of(settings.model_copy(update=away))

    assert {name for name, finding in findings.items() if finding.level is Level.FAIL} == {
        "database",
        "redis",
    }
    assert "secret" not in str(findings["database"]) + str(findings["redis"])
    assert "is it running" in findings["redis"].remedy


async def test_the_check_refuses_a_redis_that_forgets_work(settings: Settings, servers: Servers) -> None:
    url = SecretStr(servers.redis_url)
    client = open_redis(url.get_secret_value())
    before = await client.config_get("maxmemory-policy")
    try:
        await client.config_set("maxmemory-policy", "allkeys-lru")
        findings = await findings_of(settings)
    finally:
        await client.config_set("maxmemory-policy", before["maxmemory-policy"])
        await client.aclose()

    assert findings["redis maxmemory-policy"].level is Level.FAIL


@pytest.mark.parametrize(
    ("change", "subject", "level"),
    [
        ({"gate_policy": "nonsense"}, "gate policy", Level.FAIL),
        ({"bootstrap_token": SecretStr("short")}, "bootstrap token", Level.WARN),
        ({"package_roots": (Path("/no/such/folder"),)}, "package roots", Level.WARN),
        ({"planes": {"intunes": {"client_id": SecretStr("x")}}}, "planes", Level.FAIL),
        ({"planes": {"intune": {"client_id": SecretStr("x")}}}, "intune", Level.FAIL),
        ({"ai": {"provider": SecretStr("openai")}}, "assistant", Level.FAIL),
        ({"ai": {"model": SecretStr("m"), "provdier": SecretStr("openai")}}, "assistant", Level.FAIL),
        ({"database_url": SecretStr("mysql://localhost/x")}, "database", Level.FAIL),
        ({"redis_url": SecretStr("http://localhost")}, "redis", Level.FAIL),
    ],
    ids=[
        *("gate policy", "token", "roots", "unknown plane", "incomplete plane", "no model", "misspelt"),
        *("database URL", "redis URL"),
    ],
)
async def test_the_check_finds_settings_that_cannot_work(
    settings: Settings, change: Mapping[str, object], subject: str, level: Level
) -> None:
    findings = await findings_of(settings.model_copy(update=dict(change)))

    assert findings[subject].level is level
    assert findings[subject].remedy


async def test_the_check_tells_a_plane_that_does_not_answer(settings: Settings) -> None:
    sandbox = f"http://127.0.0.1:{free_port()}"

    findings = await findings_of(settings.model_copy(update={"sandbox_url": sandbox}))

    assert findings["intune"].level is findings["assistant"].level is Level.FAIL
    assert sandbox in findings["intune"].remedy
    assert sandbox in findings["assistant"].remedy


async def test_the_check_asks_the_language_model(settings: Settings, stage: Stage) -> None:
    async with stage.showing(create_app()):
        findings = await findings_of(settings.model_copy(update={"sandbox_url": stage.url}))

    assert findings["assistant"].level is Level.OK
    assert "sandbox-scripted" in findings["assistant"].detail


async def test_a_misspelt_variable_fails_the_check_and_the_right_one_is_proposed(tmp_path: Path) -> None:
    code, output, _ = await eucora("check", "--data-dir", str(tmp_path), EUCORA_DATABSE_URL="x")

    assert code == 1
    assert "FAIL settings: unknown variable EUCORA_DATABSE_URL (do you mean EUCORA_DATABASE_URL?)" in output
