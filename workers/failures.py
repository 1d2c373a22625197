# SPDX-License-Identifier: Apache-2.0
"""What an exception that leaves a job means for its operation, and how long to wait then."""

import random
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum

from app.domain.operations import Failure
from app.errors import ControlPlaneError, LeaseLost, Unavailable
from app.resilience.classify import DATABASE, Safety, classify_exception, leaves
from app.resilience.errors import CallError, DatabaseDown, JobAction, LocalSaturation, Unexpected, Unsettled
from app.resilience.fence import Fenced
from app.telemetry import redact_text
from workers.context import WorkFailed

BUG = Unexpected.code
LONGEST_EXPONENT = 6
dice = random.SystemRandom()


class Action(IntEnum):
    """What happens to the operation; of several, the highest."""

    DEFER = 1
    RETRY = 2
    FAIL = 3
    DROP = 4


ACTIONS = {
    JobAction.DEFER: Action.DEFER,
    JobAction.RETRY: Action.RETRY,
    JobAction.ONCE_MORE: Action.RETRY,
    JobAction.FAIL: Action.FAIL,
    JobAction.GIVE_BACK: Action.RETRY,
}
"""A cancellation that nobody asked for, from inside the job, is an attempt like any other."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """``retry_after`` is what the other side asked for, if it did."""

    action: Action
    failure: Failure
    retry_after: timedelta = timedelta(0)


def judge(error: BaseException, *, last_code: str | None = None) -> Verdict:
    """Every exception has a verdict. ``last_code`` is the code with which the run before this one ended."""
    return max(
        (_judge_one(leaf, last_code) for leaf in leaves(error)),
        key=lambda verdict: (verdict.action, verdict.retry_after),
    )


def _judge_one(error: BaseException, last_code: str | None) -> Verdict:
    if isinstance(error, LeaseLost | Fenced):
        return Verdict(Action.DROP, Failure("transient", LeaseLost.code, str(error)))
    if isinstance(error, WorkFailed):
        return Verdict(Action.FAIL, error.failure)
    if isinstance(error, Unavailable):
        failure = Failure("transient", error.code, error.detail)
        return Verdict(Action.DEFER, failure, timedelta(seconds=error.retry_after))
    if isinstance(error, ControlPlaneError):
        return Verdict(Action.FAIL, Failure("permanent", error.code, error.detail))
    if type(error) is TimeoutError:  # a limit of our own: calls and connections have classes of theirs
        return Verdict(Action.RETRY, Failure("transient", "deadline", "a time limit passed"))
    return _judge_call(_classified(error), last_code)


def _classified(error: BaseException) -> CallError:
    """What leaves a job and was no call out can only have come from the database, or is a bug.

    A file that is missing is a bug too: only the way to the database says ``DatabaseDown`` of its own.
    """
    return classify_exception(error, service=DATABASE, safety=Safety.IDEMPOTENT, sent=True)


def _judge_call(error: CallError, last_code: str | None) -> Verdict:
    wait = timedelta(seconds=max(error.retry_after or 0, error.kept_away or 0))
    if isinstance(error, Unexpected) and error.service == DATABASE:
        return _judge_bug(error, last_code)
    action = Action.DEFER if error.defers else ACTIONS[error.action]
    if error.code == BUG == last_code:
        action = Action.FAIL
    return Verdict(
        action, Failure(error.error_class, error.code, redact_text(error.detail), error.service), wait
    )


def _judge_bug(error: Unexpected, last_code: str | None) -> Verdict:
    # The text of an unforeseen exception may hold anything, secrets too: it goes to the log only.
    detail = f"{error.detail.partition(' while ')[0]}; the log has it under the correlation id"
    return Verdict(Action.FAIL if last_code == BUG else Action.RETRY, Failure(error.error_class, BUG, detail))


def is_down(error: BaseException) -> bool:
    """Whether the error says that there is no PostgreSQL to talk to, or that the connection to it broke."""
    return isinstance(_classified(error), DatabaseDown)


def retry_delay(attempt: int, *, unit: float, retry_after: timedelta = timedelta(0)) -> timedelta:
    """Full jitter below 2^attempt units, 64 at most, but not before ``retry_after``; the first attempt is 1.

    Lost workers count as attempts too, though not against the work: there may be many.
    """
    exponent = min(attempt, LONGEST_EXPONENT)
    return max(timedelta(seconds=dice.uniform(0, unit * 2**exponent)), retry_after)


def deferral_delay(verdict: Verdict, deferrals: int, *, unit: float) -> timedelta:
    """At least what was asked for, growing to 64 units, with up to a quarter more so that waiters part.

    A second look at a plane that answers does not grow: an outage before it is over.
    """
    if verdict.failure.code == LocalSaturation.code:
        return timedelta(seconds=unit * dice.uniform(1, 5))
    parted = dice.uniform(1, 1.25)
    if verdict.failure.code == Unsettled.code:
        return verdict.retry_after * parted
    growing = timedelta(seconds=unit * 2 ** min(deferrals + 1, LONGEST_EXPONENT))
    return max(growing, verdict.retry_after) * parted
