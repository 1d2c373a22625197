# SPDX-License-Identifier: Apache-2.0
"""Lists: an opaque cursor that holds the key of the last item seen, and the envelope of a page."""

import base64
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

from fastapi import Depends, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, TypeAdapter
from starlette.requests import Request

from app.errors import FieldError, Invalid

MAX_LIMIT = 200
MAX_CURSOR = 1000
LISTING = 12
"""Digits of a digest that tell lists apart; a cursor is no secret and grants nothing."""

Item = TypeVar("Item")
Key = TypeVar("Key")

Cursor = Annotated[
    str | None,
    Query(
        max_length=MAX_CURSOR,
        description="`next_cursor` of the page before, asked for with the same filters; opaque.",
        examples=["WyIx…"],
    ),
]
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="At most so many items.")]


class Page(BaseModel, Generic[Item]):
    """Some items in a stable order, and where to go on: ``next_cursor`` is null on the last page."""

    model_config = ConfigDict(frozen=True)

    items: Annotated[list[Item], Field(max_length=MAX_LIMIT)]
    next_cursor: Annotated[str | None, Field(max_length=MAX_CURSOR)] = None


@dataclass(frozen=True, slots=True)
class PageRequest:
    """What a client asks of a list; ``listing`` stands for the list and its filters."""

    limit: int
    cursor: str | None
    listing: str


async def page_request(request: Request, limit: Limit = 50, cursor: Cursor = None) -> PageRequest:
    """``limit`` and ``cursor``, the same for every list."""
    return PageRequest(limit, cursor, _listing(request))


def _listing(request: Request) -> str:
    given = request.query_params.multi_items()
    filters = sorted(item for item in given if item[0] not in {"limit", "cursor"})
    return hashlib.sha256(f"{request.url.path}\n{filters}".encode()).hexdigest()[:LISTING]


PageDep = Annotated[PageRequest, Depends(page_request)]


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
LAST_MICROSECOND = (datetime(2200, 1, 1, tzinfo=UTC) - EPOCH) // MICROSECOND


def _from_microseconds(value: Any) -> datetime:
    if type(value) is not int or not 0 <= value <= LAST_MICROSECOND:
        raise ValueError("no instant of ours")
    return EPOCH + value * MICROSECOND


def _to_microseconds(at: datetime) -> int:
    return (at - EPOCH) // MICROSECOND


Moment = Annotated[datetime, BeforeValidator(_from_microseconds), PlainSerializer(_to_microseconds)]
Text = Annotated[str, Field(max_length=600, pattern=r"^[^\x00]*$")]
Newest = tuple[Moment, UUID]
"""The key of lists with the newest item first: when it was created, and its id."""


class CursorKey(Generic[Key]):
    """How the key of one list goes into a cursor and back; ``kind`` is the type of the key."""

    def __init__(self, kind: Any) -> None:
        self._adapter: TypeAdapter[tuple[str, Key]] = TypeAdapter(tuple[str, kind])

    def encode(self, key: Key | None, page: PageRequest) -> str | None:
        """The cursor for the page after ``key``, which ends ``page``; None where there is none."""
        if key is None:
            return None
        return base64.urlsafe_b64encode(self._adapter.dump_json((page.listing, key))).decode().rstrip("=")

    def decode(self, page: PageRequest) -> Key | None:
        """The key in the cursor of ``page``; None for the first page.

        Raises:
            Invalid: nobody wrote this cursor for this list with these filters.
        """
        if page.cursor is None:
            return None
        try:
            padded = page.cursor + "=" * (-len(page.cursor) % 4)  # one too many is refused, too
            text = base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True)
            listing, key = self._adapter.validate_json(text)
        except ValueError as error:  # also what base64, the encoding and Pydantic raise
            raise Invalid(NO_CURSOR.detail, NO_CURSOR) from error
        if listing != page.listing:
            raise Invalid(NO_CURSOR.detail, NO_CURSOR)
        return key


NO_CURSOR = FieldError("/query/cursor", "this is no cursor of this list with these filters")
