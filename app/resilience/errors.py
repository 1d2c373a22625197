# SPDX-License-Identifier: Apache-2.0
"""What a call out may end in. ``error_class`` and ``code`` are public: operations and effects show them."""

from typing import ClassVar


class CallError(Exception):
    """Root of everything that can go wrong with a call to another system.

    ``service`` is the breaker's name, ``status`` the HTTP status if there was an answer, ``retry_after`` in
    seconds.
    """

    error_class: ClassVar[str] = "permanent"
    code: ClassVar[str] = "permanent"

    def __init__(
        self, detail: str, *, service: str, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.service = service
        self.status = status
        self.retry_after = retry_after


class TransientError(CallError):
    """The same call may succeed later."""

    error_class = "transient"
    code = "transient"


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


class PermanentError(CallError):
    """Repeating the same call cannot help."""


class NotThere(PermanentError):
    """404 or 410 where something should be."""

    code = "not_found"


class ConflictError(CallError):
    """409 or 412: the object changed meanwhile; read it again."""

    code = "conflict"


class AuthError(CallError):
    """401 after the token was refreshed once, or the credentials were refused."""

    error_class = "auth"
    code = "auth_denied"


class PolicyError(CallError):
    """403: a person must grant something."""

    error_class = "policy_violation"
    code = "policy"


class Deferral(CallError):
    """Nothing is wrong with the work: it must wait. Costs no attempt."""

    error_class = "transient"
    code = "deferred"


class BreakerOpen(Deferral):
    """The service's breaker keeps callers away; ``retry_after`` is what is left of the cool-down."""

    code = "circuit_open"


class Throttled(Deferral):
    """The service asked callers to slow down (429, 503 with Retry-After), longer than we wait in process."""

    code = "throttled"


class NotConfigured(Deferral):
    """The process has no settings for the service: somebody has to set it up."""

    code = "plane_not_configured"


class Unsettled(Deferral):
    """The plane does not show what was sent; it may be slow to, so it is looked at once more."""

    code = "verifying"


class LocalSaturation(Deferral):
    """Our own queue or pool for this service is full."""

    code = "local_saturation"


class Unexpected(CallError):
    """An error nobody foresaw: a bug of ours, chained as the cause."""

    code = "bug"
