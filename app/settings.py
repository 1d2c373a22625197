# SPDX-License-Identifier: Apache-2.0
"""The one settings tree, the only reader of the environment. Names are ``EUCORA_…``, nested with ``__``."""

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import unquote, unquote_plus

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Part(BaseModel):
    """A branch of the tree: frozen, and strict about names so that a misspelt variable is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DatabaseSettings(Part):
    """Limits of every PostgreSQL connection, in seconds; the server's own errors must win over ours."""

    connect_timeout: PositiveFloat = 10.0
    statement_timeout: PositiveFloat = 30.0
    lock_timeout: PositiveFloat = 5.0
    idle_in_transaction_timeout: PositiveFloat = 60.0
    command_timeout: PositiveFloat = 35.0
    pool_size: PositiveInt = 10
    max_overflow: int = Field(default=10, ge=0)
    pool_timeout: PositiveFloat = 5.0


class WorkerSettings(Part):
    """How a worker process behaves; times in seconds.

    ``completion_wait`` is granted to jobs on SIGTERM, ``grace`` to a job that was cancelled; the waits after
    failures are multiples of ``backoff``. ``overrun``: how long work may outlive its limit before the process
    is ended. ``metrics_port`` 0: a free one, which the log names.
    """

    lease: PositiveFloat = 15.0
    heartbeat: PositiveFloat = 5.0
    poll: PositiveFloat = 0.1
    backoff: PositiveFloat = 1.0
    relay_interval: PositiveFloat = 0.5
    ring_again: PositiveFloat = 10.0
    max_jobs: PositiveInt = 20
    rollback_jobs: PositiveInt = 5
    ai_jobs: PositiveInt = 10
    completion_wait: PositiveFloat = 25.0
    grace: PositiveFloat = 5.0
    overrun: PositiveFloat = 15.0
    metrics_host: str = "127.0.0.1"
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0

    @model_validator(mode="after")
    def heartbeat_within_lease(self) -> Self:
        """Two heartbeats may be lost before a lease ends."""
        if self.heartbeat * 2 > self.lease:
            raise ValueError("heartbeat must be at most half the lease")
        return self


class BreakerSettings(Part):
    """When a service's breaker opens, and for how many seconds; what is not set stays as it is.

    After ``fail_max`` failures in a row, or when of ``minimum_calls`` within ``window`` seconds the share
    ``failure_rate`` failed; in all processes if ``quorum`` of them say so.
    """

    fail_max: PositiveInt | None = None
    reset_timeout: PositiveFloat | None = None
    failure_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    minimum_calls: PositiveInt | None = None
    window: PositiveFloat | None = None
    quorum: PositiveInt | None = None


class LimitSettings(Part):
    """How much may be in motion: devices changed and not verified, over all deployments; not set: any number.

    A deployment may try ``retry_share`` of its devices again, at least ``retry_floor``.
    """

    unverified_devices: PositiveInt | None = None
    retry_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    retry_floor: Annotated[int, Field(ge=0)] = 10


class ReconciliationSettings(Part):
    """How often planes are compared with what was decided; times in seconds.

    ``critical_every``: for applications that are critical. ``apart``: what is seen twice is believed if so
    much lies between. ``repair_after``: until the second repair; the waits after it double.
    """

    every: PositiveFloat = 3600.0
    critical_every: PositiveFloat = 900.0
    apart: PositiveFloat = 60.0
    repair_after: PositiveFloat = 3600.0


class HousekeepingSettings(Part):
    """How often the history gets a checkpoint, and what is too old is deleted, in seconds.

    A deployment that only a person can move, and nobody has for ``abandoned_after`` seconds, is cancelled.
    """

    checkpoint: PositiveFloat = 3600.0
    retention: PositiveFloat = 3600.0
    abandoned_after: PositiveFloat = 30 * 86400.0


class Settings(BaseSettings):
    """Everything that may be set from outside. A plane without settings is not configured, and says so."""

    model_config = SettingsConfigDict(
        env_prefix="EUCORA_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
    )

    database_url: SecretStr | None = None
    redis_url: SecretStr | None = None
    bootstrap_token: SecretStr | None = None
    data_dir: Path = Path(".eucora")
    gate_policy: str = "standard"
    package_roots: Annotated[tuple[Path, ...] | None, NoDecode] = None
    planes: dict[str, dict[str, SecretStr]] = Field(default_factory=dict)
    ai: dict[str, SecretStr] = Field(default_factory=dict)
    sandbox_url: str | None = None
    breakers: dict[str, BreakerSettings] = Field(default_factory=dict)
    database: DatabaseSettings = DatabaseSettings()
    worker: WorkerSettings = WorkerSettings()
    limits: LimitSettings = LimitSettings()
    reconciliation: ReconciliationSettings = ReconciliationSettings()
    housekeeping: HousekeepingSettings = HousekeepingSettings()
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="before")
    @classmethod
    def split_roots(cls, values: dict[str, object]) -> dict[str, object]:
        """``EUCORA_PACKAGE_ROOTS`` is a list of folders, separated like ``PATH``."""
        roots = values.get("package_roots")
        if isinstance(roots, str):
            values["package_roots"] = tuple(Path(root) for root in roots.split(os.pathsep) if root)
        return values


SECRET_NAMES = re.compile(r"(?:secret|password|token|_key)$", re.IGNORECASE)
PASSWORDS = re.compile(r"://[^:/?#]*:([^/?#]*)@"), re.compile(r"://[^:/]*:([^@]*)@")
"""Where an address has one: as Redis is told up to the last ``@``, and as PostgreSQL is up to the first."""
PARAMETERS = re.compile(r"[?&]([^=&]+)=([^&]*)")
SHORTEST_SECRET = 6
"""Characters: what is shorter stands in other words by chance."""


def secrets_of(settings: Settings) -> frozenset[str]:
    """What must never be told to anybody: tokens, keys, and passwords, those in addresses too."""
    given = [settings.bootstrap_token, settings.ai.get("api_key")]
    for plane in settings.planes.values():
        given += [value for name, value in plane.items() if SECRET_NAMES.search(name)]
    found = {value.get_secret_value() for value in given if value is not None}
    for url in (settings.database_url, settings.redis_url):
        found |= _passwords(url.get_secret_value()) if url is not None else set()
    return frozenset(secret for secret in found if len(secret) >= SHORTEST_SECRET)


def _passwords(url: str) -> set[str]:
    """Those in an address, before its host and among its parameters, as they stand there and as they are."""
    before = {found[1] for pattern in PASSWORDS if (found := pattern.search(url))}
    among = {value for name, value in PARAMETERS.findall(url) if SECRET_NAMES.search(name)}
    return {*before, *map(unquote, before), *among, *map(unquote_plus, among)}


def what_is_wrong(error: ValidationError) -> str:
    """A line, and one per variable; values are not repeated, they may be secrets."""
    lines = [f"EUCORA_{'__'.join(map(str, each['loc'])).upper()}: {each['msg']}" for each in error.errors()]
    return "\n".join(["the settings are wrong:", *lines])


OF_THE_COMMAND_LINE = ["EUCORA_URL", "EUCORA_TOKEN"]
"""What the commands that call the API are told by; no part of an installation."""


def unknown_variables() -> list[str]:
    """The variables that look like ours and mean nothing, each with the name that may be meant."""
    known = [f"EUCORA_{name.upper()}" for name in Settings.model_fields] + OF_THE_COMMAND_LINE
    given = [
        name for name in os.environ if name.startswith("EUCORA_") and not name.startswith("EUCORA_TEST_")
    ]
    return [suggest(name, known) for name in given if name.partition("__")[0] not in known]


def suggest(name: str, known: list[str]) -> str:
    """The name, and the known one it resembles."""
    first, dots, rest = name.partition("__")
    close = difflib.get_close_matches(first, known, n=1)
    return f"{name} (do you mean {close[0]}{dots}{rest}?)" if close else name
