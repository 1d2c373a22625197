# SPDX-License-Identifier: Apache-2.0
"""Reading a JSON body strictly: what is ambiguous or cannot be stored is refused here."""

import json
import math
from collections.abc import Iterator
from http import HTTPStatus
from itertools import islice
from typing import Any, NoReturn

from starlette.exceptions import HTTPException
from starlette.requests import Request

from app.api.problems import MAX_ERRORS, join_pointer
from app.errors import FieldError, Invalid

MAX_BODY = 1024 * 1024
MAX_DEPTH = 32

Path = tuple[str | int, ...]


class StrictRequest(Request):
    """A request whose body was read and parsed before the framework looks at it."""

    content: Any = None

    async def json(self) -> Any:
        """The parsed body; ``read_json`` has made sure of it."""
        return self.content


class Doubled(dict[str, Any]):
    """An object that names the field ``name`` twice."""

    name: str


async def read_json(request: StrictRequest) -> bytes:
    """Read and parse the body into ``request.content``; the raw bytes.

    Raises:
        HTTPException: 415 for another media type, 400 for what is no JSON in UTF-8.
        Invalid: a field that is there twice, text that PostgreSQL cannot store, or too deep a nesting.
    """
    raw = await request.body()
    if raw:
        _check_media_type(request)
        request.content = parse(raw)
    return raw


def _check_media_type(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        detail = "a body must be application/json"
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail, {"Accept": "application/json"})


def parse(raw: bytes) -> Any:
    """The value of a JSON text, if it is one in UTF-8 without doubtful parts."""
    doubled: list[Doubled] = []

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        return found if len(found) == len(pairs) else _doubled(pairs, doubled)

    try:
        value = json.loads(raw.decode(), object_pairs_hook=build, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {reason}") from error
    if doubled or _needs_a_walk(raw):
        _check_values(value)
    return value


def _doubled(pairs: list[tuple[str, Any]], known: list[Doubled]) -> Doubled:
    found = Doubled(pairs)
    names = [name for name, _ in pairs]
    found.name = next(name for name in names if names.count(name) > 1)
    known.append(found)
    return found


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _needs_a_walk(raw: bytes) -> bool:
    """Whether the body could hold such a value: escapes are the only way to write one of those texts."""
    escapes = b"\\u0000" in raw or b"\\ud" in raw.lower()
    return escapes or b"extra_vars" in raw or raw.count(b"[") + raw.count(b"{") > MAX_DEPTH


def _check_values(value: Any) -> None:
    wrong = [FieldError(join_pointer(path), rule) for path, rule in islice(_breaches(value, ()), MAX_ERRORS)]
    if wrong:
        raise Invalid("the body holds what is ambiguous or cannot be stored", *wrong)


def _breaches(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """Each breach with the steps that lead to it."""
    if isinstance(value, Doubled):
        yield (*path, value.name), "this field is there twice"
    if isinstance(value, (dict, list)) and len(path) >= MAX_DEPTH:
        yield path, f"must not be nested deeper than {MAX_DEPTH} levels"
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from (((*path, name), rule) for rule in _text_breaches(name))
            yield from _breaches(inner, (*path, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _breaches(inner, (*path, index))
    else:
        yield from ((path, rule) for rule in _scalar_breaches(value))


def _scalar_breaches(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from _text_breaches(value)
    if isinstance(value, float) and not math.isfinite(value):
        yield "is too large a number"


def _text_breaches(text: str) -> Iterator[str]:
    if "\x00" in text:
        yield "must not contain NUL"
    if any("\ud800" <= character <= "\udfff" for character in text):
        yield "must not contain half of a surrogate pair"
