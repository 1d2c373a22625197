# SPDX-License-Identifier: Apache-2.0
"""What an exception that leaves a job means for its operation, and how long to wait then."""

import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum

from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.domain.operations import Failure
from app.errors import ControlPlaneError, LeaseLost, Unavailable
from app.resilience.errors import (
    AmbiguousError,
    CallError,
    ConflictError,
    Deferral,
    LocalSaturation,
    TransientError,
)
from app.telemetry import redact_text

BUG = "bug"
LONGEST_EXPONENT = 6
dice = random.SystemRandom()


class Action(IntEnum):
    """What happens to the operation; of several, the highest."""

    DEFER = 1
    RETRY = 2
    FAIL = 3
    DROP = 4


@dataclass(frozen=True, slots=True)
class Verdict:
    """``retry_after`` is what the other side asked for, if it did."""

    action: Action
    failure: Failure
    retry_after: timedelta = timedelta(0)


def judge(error: BaseException, *, last_code: str | None = None) -> Verdict:
    """Every exception has a verdict. ``last_code`` is the code with which the run before this one ended."""
    return max(
        (_judge_one(leaf, last_code) for leaf in _leaves(error)),
        key=lambda verdict: (verdict.action, verdict.retry_after),
    )


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _judge_one(error: BaseException, last_code: str | None) -> Verdict:
    if isinstance(error, LeaseLost):
        return Verdict(Action.DROP, Failure("transient", error.code, error.detail))
    if isinstance(error, CallError):
        return _judge_call(error)
    if isinstance(error, Unavailable):
        failure = Failure("transient", error.code, error.detail)
        return Verdict(Action.DEFER, failure, timedelta(seconds=error.retry_after))
    if isinstance(error, ControlPlaneError):
        return Verdict(Action.FAIL, Failure("permanent", error.code, error.detail))
    return _judge_local(error) or _judge_bug(error, last_code)


def _judge_call(error: CallError) -> Verdict:
    failure = Failure(error.error_class, error.code, redact_text(error.detail), error.service)
    if isinstance(error, Deferral):
        action = Action.DEFER
    elif isinstance(error, TransientError | AmbiguousError | ConflictError):
        action = Action.RETRY
    else:
        action = Action.FAIL
    return Verdict(action, failure, timedelta(seconds=error.retry_after or 0))


def _judge_local(error: BaseException) -> Verdict | None:
    """PostgreSQL's and our own limits; None for anything else."""
    if isinstance(error, PoolTimeout):
        detail = "all connections to the database are in use"
        return Verdict(Action.DEFER, _database(LocalSaturation.code, detail))
    state = sqlstate(error)
    if is_down(error):
        return Verdict(Action.DEFER, _database("db_down", "the database cannot be reached"))
    if state in {"57014", "55P03"}:
        return Verdict(Action.RETRY, _database("db_slow", "the database took too long"))
    if state in {"40001", "40P01"}:
        return Verdict(Action.RETRY, _database("conflict", "a concurrent change won"))
    if isinstance(error, TimeoutError):
        return Verdict(Action.RETRY, Failure("transient", "deadline", "a time limit passed"))
    return None


def _database(code: str, message: str) -> Failure:
    return Failure("transient", code, message, "database")


def sqlstate(error: BaseException) -> str | None:
    """PostgreSQL's code, whether SQLAlchemy wrapped the error or (while connecting) did not."""
    source = error.orig if isinstance(error, DBAPIError) else error
    return getattr(source, "sqlstate", None)


def is_down(error: BaseException) -> bool:
    """Whether the error says that there is no PostgreSQL to talk to, or that the connection to it broke."""
    if isinstance(error, ConnectionError | socket.gaierror | InterfaceError):
        return True
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    state = sqlstate(error)
    return state is not None and (state[:2] == "08" or state in {"57P01", "57P02", "57P03", "53300"})


def _judge_bug(error: BaseException, last_code: str | None) -> Verdict:
    # The text of an unforeseen exception may hold anything, secrets too: it goes to the log only.
    failure = Failure(
        "permanent", BUG, f"unexpected {type(error).__name__}; the log has it under the correlation id"
    )
    return Verdict(Action.FAIL if last_code == BUG else Action.RETRY, failure)


def retry_delay(attempt: int, *, unit: float, retry_after: timedelta = timedelta(0)) -> timedelta:
    """Full jitter below 2^attempt units, but not before ``retry_after``; the first attempt is 1."""
    return max(timedelta(seconds=dice.uniform(0, unit * 2**attempt)), retry_after)


def deferral_delay(verdict: Verdict, deferrals: int, *, unit: float) -> timedelta:
    """At least what was asked for, growing to 64 units, with up to a quarter more so that waiters part."""
    if verdict.failure.code == LocalSaturation.code:
        return timedelta(seconds=unit * dice.uniform(1, 5))
    growing = timedelta(seconds=unit * 2 ** min(deferrals + 1, LONGEST_EXPONENT))
    return max(growing, verdict.retry_after) * dice.uniform(1, 1.25)
