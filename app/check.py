# SPDX-License-Identifier: Apache-2.0
"""``eucora check``: whether settings, servers and planes are as they must be, and how to mend them."""

import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from app import admin
from app.ai.catalogue import open_provider
from app.ai.settings import WHAT_TO_SET
from app.connectors.catalogue import open_planes
from app.connectors.contract import Connector, Plane
from app.connectors.services import Services
from app.database import database_url
from app.domain.policies import load_policy
from app.embedded import with_running_servers
from app.errors import Invalid, Unavailable
from app.redis import open_redis
from app.resilience import Breakers
from app.resilience.errors import CallError
from app.runtime import ai_settings_of
from app.settings import Settings, unknown_variables

POSTGRES_MINIMUM = 14
REDIS_MINIMUM = 6
TOKEN_MINIMUM = 20


class Level(StrEnum):
    """How bad it is; only FAIL keeps the service from working."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; ``remedy`` is what to do about it."""

    level: Level
    subject: str
    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.level:<4} {self.subject}: {self.detail}"
        return f"{line}\n       → {self.remedy}" if self.remedy else line


Findings = AsyncIterator[Finding]


async def check(settings: Settings) -> Findings:
    """Look at everything; what depends on a server is looked at only if the server answers."""
    for finding in check_settings(settings):
        yield finding
    settings = with_running_servers(settings)
    for part in (check_database, check_redis, check_planes, check_model):
        async for finding in part(settings):
            yield finding


def check_settings(settings: Settings) -> list[Finding]:
    """Misspelt variables, the gate policy, the token and the package folders."""
    findings = [
        Finding(Level.FAIL, "settings", f"unknown variable {name}", "correct or remove it")
        for name in unknown_variables()
    ]
    try:
        policy = load_policy(settings.gate_policy)
        findings.append(Finding(Level.OK, "gate policy", policy.name))
    except Invalid as error:
        findings.append(Finding(Level.FAIL, "gate policy", error.detail, "use standard, demo or a JSON file"))
    token = settings.bootstrap_token
    if token is not None and len(token.get_secret_value()) < TOKEN_MINIMUM:
        remedy = f"set EUCORA_BOOTSTRAP_TOKEN to at least {TOKEN_MINIMUM} random characters"
        findings.append(Finding(Level.WARN, "bootstrap token", "is short enough to be guessed", remedy))
    findings += [
        Finding(Level.WARN, "package roots", f"{root} is no folder", "correct EUCORA_PACKAGE_ROOTS")
        for root in settings.package_roots or ()
        if not root.is_dir()
    ]
    return findings or [Finding(Level.OK, "settings", "nothing unknown")]


async def check_database(settings: Settings) -> Findings:
    """PostgreSQL answers, is new enough, and has all migrations."""
    if settings.database_url is None:
        yield Finding(Level.OK, "database", "EUCORA_DATABASE_URL is not set: `eucora up` starts PostgreSQL")
        return
    try:
        async with admin.connection_to(database_url(settings)) as connection:
            major = int((connection.dialect.server_version_info or (0,))[0])
            pending = await connection.run_sync(admin.pending_revisions)
    except Invalid as error:
        yield Finding(Level.FAIL, "database", error.detail, "correct EUCORA_DATABASE_URL")
        return
    except Unavailable as error:
        remedy = "is it running, and is EUCORA_DATABASE_URL right (host, port, user, password, database)?"
        yield Finding(Level.FAIL, "database", error.detail, remedy)
        return
    if major < POSTGRES_MINIMUM:
        yield Finding(Level.FAIL, "database", f"PostgreSQL {major}", f"use {POSTGRES_MINIMUM} or newer")
    else:
        yield Finding(Level.OK, "database", f"PostgreSQL {major} answers")
    if pending:
        yield Finding(Level.FAIL, "migrations", f"missing: {', '.join(pending)}", "run `eucora migrate`")
    else:
        yield Finding(Level.OK, "migrations", "complete")


async def check_redis(settings: Settings) -> Findings:
    """Redis answers, is new enough, evicts nothing and writes to disk."""
    if settings.redis_url is None:
        yield Finding(Level.OK, "redis", "EUCORA_REDIS_URL is not set: `eucora up` starts Valkey")
        return
    try:
        client = open_redis(settings.redis_url.get_secret_value())
    except Invalid as error:
        yield Finding(Level.FAIL, "redis", error.detail, "correct EUCORA_REDIS_URL")
        return
    try:
        version = str((await client.info("server"))["redis_version"])
        async for finding in check_redis_settings(client, version):
            yield finding
    except (OSError, RedisError) as error:
        remedy = "is it running, and is EUCORA_REDIS_URL right (host, port, user, password)?"
        yield Finding(Level.FAIL, "redis", f"does not answer: {admin.reason(error)}", remedy)
    finally:
        await client.aclose()


async def check_redis_settings(client: Redis, version: str) -> Findings:
    """The version and the two settings that decide whether wake-ups survive."""
    if int(version.partition(".")[0]) < REDIS_MINIMUM:
        yield Finding(Level.FAIL, "redis", f"version {version}", f"use {REDIS_MINIMUM} or newer")
    else:
        yield Finding(Level.OK, "redis", f"version {version} answers")
    try:
        policy = (await client.config_get("maxmemory-policy")).get("maxmemory-policy", "")
        appendonly = (await client.config_get("appendonly")).get("appendonly", "")
    except ResponseError as error:
        yield Finding(Level.WARN, "redis settings", f"cannot be read: {error}", "ask whoever runs it")
        return
    if policy != "noeviction":
        remedy = "set maxmemory-policy noeviction: it would drop work that waits"
        yield Finding(Level.FAIL, "redis maxmemory-policy", policy, remedy)
    if appendonly != "yes":
        remedy = "set appendonly yes; nothing is lost without, but work waits longer after a crash"
        yield Finding(Level.WARN, "redis appendonly", appendonly, remedy)


async def check_planes(settings: Settings) -> Findings:
    """Each plane answers and accepts the credentials."""
    for name in settings.planes.keys() - set(Plane):
        yield Finding(Level.FAIL, "planes", f"there is no plane {name}", f"known: {', '.join(Plane)}")
    with tempfile.TemporaryDirectory() as spool:
        async with open_planes(settings.planes, settings.sandbox_url, Services(spool=Path(spool))) as planes:
            for plane, missing in planes.unconfigured.items():
                level = Level.FAIL if plane in settings.planes else Level.WARN
                yield Finding(level, plane, f"not configured: {missing}", "set it, or do without the plane")
            for plane, connector in planes.connectors.items():
                yield await check_plane(plane, connector)


async def check_plane(plane: Plane, connector: Connector) -> Finding:
    """Ask one plane."""
    try:
        health = await connector.check()
    except CallError as error:
        remedy = f"are the EUCORA_PLANES__{plane.upper()}__… settings right, and is {connector.base_url} up?"
        return Finding(Level.FAIL, plane, f"{error.error_class}: {admin.reason(error)}", remedy)
    return Finding(Level.OK, plane, health.detail)


async def check_model(settings: Settings) -> Findings:
    """The language model answers, accepts the key, and is the one that is meant."""
    remedy = "set it, or do without the assistant"
    try:
        given = ai_settings_of(settings)
    except Invalid as error:
        yield Finding(Level.FAIL, "assistant", error.detail, "correct it")
        return
    if given is None:
        yield Finding(Level.WARN, "assistant", f"not configured: {WHAT_TO_SET}", remedy)
        return
    async with open_provider(given, Breakers()) as provider:
        try:
            yield Finding(Level.OK, "assistant", await provider.check())
        except CallError as error:
            remedy = f"are the EUCORA_AI__… settings right, and is {given.url} up?"
            yield Finding(Level.FAIL, "assistant", f"{error.error_class}: {admin.reason(error)}", remedy)
