# SPDX-License-Identifier: Apache-2.0
"""What can go wrong inside the control plane, by kind; ``app.api.problems`` pairs HTTP statuses."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing that is wrong with the input: an RFC 6901 ``pointer`` into the body and a sentence."""

    pointer: str
    detail: str


class ControlPlaneError(Exception):
    """Root of the domain's errors. ``code`` is public and never renamed."""

    code: ClassVar[str] = "internal"

    def __init__(self, detail: str, **context: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.context = context


class NotFound(ControlPlaneError):
    """No such resource, or none that the caller may see."""

    code = "not_found"


class Conflict(ControlPlaneError):
    """The request is well formed, but not legal in the state things are in."""

    code = "conflict"


class IllegalTransition(Conflict):
    """A command that the present state does not allow; the detail names the state."""

    code = "illegal_transition"


class ActiveDeploymentExists(Conflict):
    """The application is being deployed to that plane already."""

    code = "active_deployment_exists"


class ScopeChangeRequired(Conflict):
    """What was to be decided is not what was asked about: it takes a new decision."""

    code = "scope_change_required"


class RetryBudgetSpent(Conflict):
    """So many devices of the deployment were tried again that more needs somebody to say so."""

    code = "retry_budget_spent"


class RetryUnavailable(Conflict):
    """The plane has no way to try failed devices again."""

    code = "retry_unavailable"


class NewerDeploymentExists(Conflict):
    """A newer version of the application has been rolled out to the same planes since."""

    code = "newer_deployment_exists"


class IdempotencyKeyReused(Conflict):
    """The same key came with another body."""

    code = "idempotency_key_reused"


class AiNotConfigured(Conflict):
    """There is no language model in this installation; the detail says what to set."""

    code = "ai_not_configured"


class ConversationBusy(Conflict):
    """The message before is still being answered: one at a time."""

    code = "conversation_busy"


class ConversationFull(Conflict):
    """The conversation has as many messages as one may have: begin another."""

    code = "conversation_full"


class CannotIsolate(Conflict):
    """The service is one that the control plane itself cannot do without."""

    code = "cannot_isolate"


class VersionMismatch(ControlPlaneError):
    """``If-Match`` names a version that is not the current one."""

    code = "version_mismatch"


class Invalid(ControlPlaneError):
    """The input breaks a rule; ``errors`` names each field and the rule."""

    code = "invalid"

    def __init__(self, detail: str, *errors: FieldError, **context: object) -> None:
        super().__init__(detail, **context)
        self.errors = errors


class TargetNotSet(Invalid):
    """A lane has no target on its plane."""

    code = "target_not_set"


class PlaneNotConfigured(Invalid):
    """The plane has no settings in this installation."""

    code = "plane_not_configured"


class IdempotencyKeyRequired(Invalid):
    """A call that creates something must carry an ``Idempotency-Key``."""

    code = "idempotency_key_required"


class Unauthenticated(ControlPlaneError):
    """No token, or one that is unknown, expired or revoked."""

    code = "unauthenticated"


class Forbidden(ControlPlaneError):
    """The caller's role does not have the permission."""

    code = "forbidden"


class OwnSubmission(Forbidden):
    """Nobody decides on what they submitted themselves."""

    code = "own_submission"


class Unavailable(ControlPlaneError):
    """Something the service cannot do without is down; ``retry_after`` is in seconds."""

    code = "unavailable"

    def __init__(self, detail: str, *, retry_after: float = 5.0, **context: object) -> None:
        super().__init__(detail, **context)
        self.retry_after = retry_after


class AiLimitReached(ControlPlaneError):
    """The caller has asked as much of the assistant as one may in a day; ``retry_after`` is in seconds."""

    code = "ai_limit_reached"

    def __init__(self, detail: str, *, retry_after: float, **context: object) -> None:
        super().__init__(detail, **context)
        self.retry_after = retry_after


class LeaseLost(ControlPlaneError):
    """Another worker holds the operation now: whatever this one was doing must not be written."""

    code = "lease_lost"
