# SPDX-License-Identifier: Apache-2.0
"""Field types that requests and answers share, with the bounds that the document shows."""

import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Protocol

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError
from starlette.responses import Response

RFC_3339 = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE
)
MAX_COUNT = 2_000_000_000
MAX_VERSION = 2_147_483_647


def _is_instant(value: Any) -> Any:
    if isinstance(value, str) and RFC_3339.fullmatch(value):
        return value
    raise PydanticCustomError(
        "instant", "must be an instant with its offset, as 2027-01-31T08:00:00Z (RFC 3339)"
    )


def _as_utc(at: datetime) -> datetime:
    try:
        return at.astimezone(UTC)
    except OverflowError:  # an offset at the very ends of the calendar
        return at.replace(tzinfo=UTC)


Instant = Annotated[
    datetime,
    BeforeValidator(_is_instant),
    AfterValidator(_as_utc),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2027-01-31T08:00:00Z"]}),
]
"""An instant given by a client: RFC 3339 with an offset, UTC from here on."""

# No control characters, and no blanks around: two names that look the same are the same.
NAME_FORM = r"^[^\x00-\x20\x7f]([^\x00-\x1f\x7f]*[^\x00-\x20\x7f])?$"
REASON_FORM = r"^[^\x00]+$"
CONTENT_FORM = r"^[^\x00]*[^\x00\s][^\x00]*$"
DIGEST_FORM = r"^[0-9a-f]{64}$"
HOUR_FORM = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=NAME_FORM)]
Version = Annotated[str, Field(min_length=1, max_length=100, pattern=NAME_FORM)]
Reason = Annotated[str, Field(min_length=1, max_length=2000, pattern=REASON_FORM)]
Rate = Annotated[float, Field(ge=0, le=1, strict=True, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT, strict=True)]
ResourceVersion = Annotated[int, Field(ge=1, le=MAX_VERSION)]
"""Rises with status, flags or plan; also the ``ETag``."""
Digest = Annotated[str, Field(min_length=64, max_length=64, pattern=DIGEST_FORM)]
Label = Annotated[str, Field(max_length=200)]
Message = Annotated[str, Field(max_length=4000)]
Object = Annotated[dict[str, Any], Field(max_length=1000)]


class Criticality(StrEnum):
    """How closely an application is watched after its rollout."""

    STANDARD = "standard"
    CRITICAL = "critical"


class Given(BaseModel):
    """Part of a request: an unknown field is an error, not a typo that is ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Shown(BaseModel):
    """Part of an answer, read from a row."""

    model_config = ConfigDict(from_attributes=True, frozen=True)


class Command(Given):
    """What every command takes."""

    reason: Reason | None = None


class Versioned(Protocol):
    """An answer about a resource that has a version."""

    @property
    def version(self) -> int:
        """Rises with status, flags or plan."""
        ...

    def model_dump_json(self, *, by_alias: bool) -> str:
        """The answer's body."""
        ...


def tagged(resource: Versioned, status: int = 200, *, location: str | None = None) -> Response:
    """The resource as JSON with its version as ``ETag``."""
    headers = {"ETag": f'"{resource.version}"'}
    if location is not None:
        headers["Location"] = location
    return Response(resource.model_dump_json(by_alias=True), status, headers, "application/json")


def as_json(shown: BaseModel, status: int = 200) -> Response:
    """An answer without a version of its own: a page, a list."""
    return Response(shown.model_dump_json(by_alias=True), status, media_type="application/json")
