# SPDX-License-Identifier: Apache-2.0
"""What providers say when they do not answer, and what that means."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

import httpx
from pydantic_core import from_json

from app.ai import allowance
from app.resilience.classify import Meaning, status_class
from app.resilience.errors import CallError, PermanentError, ServerError, TransientError

TOO_MANY = HTTPStatus.TOO_MANY_REQUESTS
MAY_PASS = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, TOO_MANY}
"""What the vendors' own clients repeat beside 5xx (anthropic SDK 0.121.0; openai SDK alike)."""


class PromptRefused(PermanentError):
    """The provider will not let this question through to the model; ``words`` say why."""


@dataclass(frozen=True, slots=True)
class Told:
    """An error in a provider's words: its message, the names it has for it, and a status if it names one."""

    message: str = ""
    names: tuple[str, ...] = ()
    status: int | None = None


def read_error(error: object) -> Told:
    """The error object of either format, whatever is in it; some servers send a text in its place."""
    if isinstance(error, str):
        return Told(error)
    if not isinstance(error, dict):
        return Told()
    details, code, message = error.get("details"), error.get("code"), error.get("message")
    reason = details.get("error_code") if isinstance(details, dict) else None
    return Told(
        message if isinstance(message, str) else "",
        tuple(name for name in (reason, code, error.get("type")) if isinstance(name, str)),
        code if isinstance(code, int) and code in range(400, 600) else None,
    )


def told_by(answer: httpx.Response) -> Told:
    """The error that a refusal holds; an empty one where it is something else."""
    try:
        body = from_json(answer.content)
    except ValueError:
        return Told()
    return read_error(body.get("error")) if isinstance(body, dict) else Told()


def describe(answer: httpx.Response) -> str:
    """The vendor's words: the message, or the body where there is none."""
    return told_by(answer).message or answer.text


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What the names of errors mean in one wire format; ``money``: that there is none left.

    ``unwilling``: that the question was refused for what is in it.
    """

    kinds: Mapping[str, type[CallError]]
    money: frozenset[str]
    unwilling: frozenset[str] = field(default_factory=frozenset)

    def kind(self, told: Told) -> type[CallError]:
        """The class of an error that comes in place of the rest of an answer."""
        if self.money.intersection(told.names):
            return PermanentError
        known = (self.kinds[name] for name in told.names if name in self.kinds)
        by_status = status_class(told.status) if told.status else ServerError
        return next(known, by_status)

    def meaning(self, answer: httpx.Response) -> Meaning:
        """What a refusal means beyond its status."""
        wait = allowance.pause(answer.headers) if answer.status_code == TOO_MANY else 0.0
        return Meaning(self._named(answer.status_code, told_by(answer).names) or _wish(answer), wait or None)

    def _named(self, status: int, names: tuple[str, ...]) -> type[CallError] | None:
        """The class that the names tell, whatever else is said."""
        if status == HTTPStatus.PAYMENT_REQUIRED or self.money.intersection(names):
            return PermanentError
        is_unwilling = status == HTTPStatus.BAD_REQUEST and self.unwilling.intersection(names)
        return PromptRefused if is_unwilling else None


def _wish(answer: httpx.Response) -> type[CallError] | None:
    """Whether the provider wants the same request again, where it says so beside the status.

    Too many are too many whether its own clients are to repeat them or not: later there will be fewer.
    """
    status, wish = answer.status_code, answer.headers.get("x-should-retry")
    may_pass = status in MAY_PASS or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    if wish == "false" and may_pass and status != TOO_MANY:
        return PermanentError
    is_wanted = wish == "true" and not may_pass
    return TransientError if is_wanted or status == HTTPStatus.CONFLICT else None
