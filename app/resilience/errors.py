# SPDX-License-Identifier: Apache-2.0
"""What a call out may end in, and what each ending means: for the next attempt, the breaker and the job.

``error_class`` and ``code`` are public: operations and effects show them.
"""

from enum import Enum, IntEnum
from typing import ClassVar


class Verdict(Enum):
    """What an outcome says of the service to its breaker."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"


class JobAction(IntEnum):
    """What becomes of the operation whose job ended so; of several, the highest.

    DEFER costs no attempt. ONCE_MORE: one more attempt, then as FAIL. GIVE_BACK: the work goes to somebody
    else, or nowhere; nothing is written of this error.
    """

    DEFER = 1
    RETRY = 2
    ONCE_MORE = 3
    FAIL = 4
    GIVE_BACK = 5


class CallError(Exception):
    """Root of everything that can go wrong with a call to another system.

    ``service`` is the breaker's name, ``status`` the HTTP status if there was an answer, ``retry_after`` in
    seconds. ``kept_away``: seconds for which the breaker keeps callers away since this very outcome; the work
    then waits as if it had been refused by the breaker. ``words``: what the service itself said, if it did,
    without secrets.
    """

    error_class: ClassVar[str] = "permanent"
    code: ClassVar[str] = "permanent"
    verdict: ClassVar[Verdict] = Verdict.NEUTRAL
    action: ClassVar[JobAction] = JobAction.FAIL

    kept_away: float | None = None
    words: str = ""

    def __init__(
        self, detail: str, *, service: str, status: int | None = None, retry_after: float | None = None
    ) -> None:
        Exception.__init__(self, detail)  # a subclass may have another library's error beside this one
        self.detail = detail
        self.service = service
        self.status = status
        self.retry_after = retry_after

    @property
    def brief(self) -> str:
        """The code, with the status if there was an answer: what may be shown of any error."""
        return self.code if self.status is None else f"{self.code} ({self.status})"

    @property
    def defers(self) -> bool:
        """Whether the work waits without having spent an attempt."""
        return self.kept_away is not None or self.action is JobAction.DEFER


class TransientError(CallError):
    """The same call may succeed later."""

    error_class = "transient"
    code = "transient"
    verdict = Verdict.FAILURE
    action = JobAction.RETRY


class ServerError(TransientError):
    """500 on a call that may be repeated."""

    code = "server_error"


class AttemptTimeout(TransientError):
    """One attempt took longer than it may, on a call that may be repeated."""

    code = "attempt_timeout"


class AmbiguousError(CallError):
    """A change was sent and the answer never came: ask what happened before sending anything again."""

    error_class = "unknown"
    code = "ambiguous"
    verdict = Verdict.FAILURE
    action = JobAction.RETRY


class PermanentError(CallError):
    """Repeating the same call cannot help."""


class NotThere(PermanentError):
    """404 or 410 where something should be."""

    code = "not_found"


class ConflictError(CallError):
    """409 or 412: the object changed meanwhile; read it again."""

    code = "conflict"
    action = JobAction.RETRY


class AuthExpired(CallError):
    """401 with a token that was not renewed yet: renew it once and repeat, at no cost."""

    error_class = "auth"
    code = "auth_expired"
    action = JobAction.RETRY


class AuthError(CallError):
    """401 after the token was refreshed once, or the credentials were refused."""

    error_class = "auth"
    code = "auth_denied"


class PolicyError(CallError):
    """403: a person must grant something."""

    error_class = "policy_violation"
    code = "policy"


class DeadlineExceeded(CallError):
    """The time that the whole call, or its job, may take was over; says nothing of the service."""

    error_class = "transient"
    code = "deadline"
    action = JobAction.RETRY


class Cancelled(CallError):
    """The work was stopped from outside: a shutdown, a person, a lost lease."""

    error_class = "transient"
    code = "cancelled"
    action = JobAction.GIVE_BACK


class Deferral(CallError):
    """Nothing is wrong with the work: it must wait. Costs no attempt."""

    error_class = "transient"
    code = "deferred"
    action = JobAction.DEFER


class Throttled(Deferral):
    """The service asked callers to slow down (429, 503 with Retry-After), longer than we wait in process."""

    code = "throttled"


class NotConfigured(Deferral):
    """The process has no settings for the service: somebody has to set it up."""

    code = "plane_not_configured"


class Unsettled(Deferral):
    """The plane does not show what was sent; it may be slow to, so it is looked at once more."""

    code = "verifying"


class NotReady(Deferral):
    """What the work needs first is under way at the service; nobody has to do anything."""

    code = "not_ready"


class LocalSaturation(Deferral):
    """Our own queue, pool or budget of retries for this service is used up."""

    code = "local_saturation"


class DatabaseDown(TransientError):
    """There is no PostgreSQL to talk to, or the connection to it broke."""

    code = "db_down"
    action = JobAction.DEFER


class DatabaseSlow(TransientError):
    """PostgreSQL works, but a statement or a lock took too long."""

    code = "db_slow"
    verdict = Verdict.NEUTRAL


class DatabaseConflict(ConflictError):
    """A serialisation failure or a deadlock: another transaction won, the same one may succeed at once."""

    error_class = "transient"


class Unexpected(CallError):
    """An error nobody foresaw: a bug of ours, chained as the cause."""

    code = "bug"
    action = JobAction.ONCE_MORE


class FleetUnreachable(CallError):
    """Redis did not answer, so what all processes share can be neither read nor changed."""

    error_class = "transient"
    code = "unavailable"
    action = JobAction.DEFER
