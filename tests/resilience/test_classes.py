# SPDX-License-Identifier: Apache-2.0
"""What each class means: for the next attempt, the breaker and the work. No class is without its row."""

import asyncio

import httpx
import pytest
from sqlalchemy.exc import InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.ai.refusals import PromptRefused
from app.connectors.sources import PACKAGE_SOURCE
from app.resilience import BreakerOpen, Safety, errors
from app.resilience.classify import classify, verdict
from app.resilience.errors import CallError, JobAction, Verdict
from app.resilience.retry import is_repeatable

FAILURE, NEUTRAL = Verdict.FAILURE, Verdict.NEUTRAL
RETRY, DEFER, FAIL = JobAction.RETRY, JobAction.DEFER, JobAction.FAIL

ROWS: dict[type[CallError], tuple[str, str, bool, Verdict, JobAction]] = {
    errors.TransientError: ("transient", "transient", True, FAILURE, RETRY),
    errors.ServerError: ("server_error", "transient", True, FAILURE, RETRY),
    errors.AttemptTimeout: ("attempt_timeout", "transient", True, FAILURE, RETRY),
    errors.AmbiguousError: ("ambiguous", "unknown", False, FAILURE, RETRY),
    errors.Throttled: ("throttled", "transient", True, NEUTRAL, DEFER),
    errors.AuthExpired: ("auth_expired", "auth", False, NEUTRAL, RETRY),
    errors.AuthError: ("auth_denied", "auth", False, NEUTRAL, FAIL),
    errors.PolicyError: ("policy", "policy_violation", False, NEUTRAL, FAIL),
    errors.ConflictError: ("conflict", "permanent", False, NEUTRAL, RETRY),
    errors.PermanentError: ("permanent", "permanent", False, NEUTRAL, FAIL),
    errors.NotThere: ("not_found", "permanent", False, NEUTRAL, FAIL),
    PromptRefused: ("permanent", "permanent", False, NEUTRAL, FAIL),
    BreakerOpen: ("circuit_open", "transient", False, NEUTRAL, DEFER),
    errors.LocalSaturation: ("local_saturation", "transient", False, NEUTRAL, DEFER),
    errors.NotConfigured: ("plane_not_configured", "transient", False, NEUTRAL, DEFER),
    errors.Unsettled: ("verifying", "transient", False, NEUTRAL, DEFER),
    errors.NotReady: ("not_ready", "transient", False, NEUTRAL, DEFER),
    errors.Deferral: ("deferred", "transient", False, NEUTRAL, DEFER),
    errors.DeadlineExceeded: ("deadline", "transient", False, NEUTRAL, RETRY),
    errors.Cancelled: ("cancelled", "transient", False, NEUTRAL, JobAction.GIVE_BACK),
    errors.DatabaseDown: ("db_down", "transient", True, FAILURE, DEFER),
    errors.DatabaseSlow: ("db_slow", "transient", True, NEUTRAL, RETRY),
    errors.DatabaseConflict: ("conflict", "transient", True, NEUTRAL, RETRY),
    errors.FleetUnreachable: ("unavailable", "transient", False, NEUTRAL, DEFER),
    errors.Unexpected: ("bug", "permanent", False, NEUTRAL, JobAction.ONCE_MORE),
}


def every(kind: type[CallError]) -> set[type[CallError]]:
    """The product's classes; tests of others may have made more."""
    known = {each for each in kind.__subclasses__() if each.__module__.startswith("app.")}
    return known.union(*(every(each) for each in known))


def test_every_class_has_its_row() -> None:
    assert every(CallError) == set(ROWS)


@pytest.mark.parametrize(("kind", "row"), ROWS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_class_means_what_its_row_says(
    kind: type[CallError], row: tuple[str, str, bool, Verdict, JobAction]
) -> None:
    error = kind("why", service="intune")

    seen = is_repeatable(error, may_repeat=True), verdict(error, service="intune"), error.action
    assert (error.code, error.error_class, *seen) == row
    assert verdict(error, service=PACKAGE_SOURCE) is NEUTRAL  # nobody else is to blame


def test_what_opened_the_breaker_waits_with_everybody_else() -> None:
    error = errors.TransientError("503", service="intune", status=503)
    assert not error.defers

    error.kept_away = 60.0

    assert error.defers
    assert not is_repeatable(error, may_repeat=True)


def test_a_refusal_proves_the_service_alive() -> None:
    assert verdict(errors.NotThere("404", service="intune", status=404), service="intune") is Verdict.SUCCESS
    assert verdict(None, service="intune") is Verdict.SUCCESS


def raised_for(status: int) -> httpx.HTTPStatusError:
    """What httpx raises by itself when it is asked to."""
    return httpx.HTTPStatusError("", request=httpx.Request("GET", "/"), response=httpx.Response(status))


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (asyncio.CancelledError(), errors.Cancelled),
        (KeyboardInterrupt(), errors.Cancelled),
        (SystemExit(3), errors.Unexpected),
        (raised_for(503), errors.TransientError),
        (raised_for(200), errors.Unexpected),
        (httpx.PoolTimeout("full"), errors.LocalSaturation),
        (PoolTimeout(), errors.LocalSaturation),
        (InterfaceError("", None, Exception()), errors.DatabaseDown),
        (ExceptionGroup("", [KeyError(), ConnectionResetError()]), errors.TransientError),
        (ExceptionGroup("", [KeyError(), BreakerOpen("", service="intune")]), errors.Unexpected),
        (httpx.Response(401), errors.AuthError),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, type) else value.__name__,
)
def test_the_one_function_knows_whatever_a_call_can_end_in(outcome: object, kind: type[CallError]) -> None:
    assert type(classify(outcome, service="intune")) is kind


@pytest.mark.parametrize("outcome", [None, 7, "text", httpx.Response(204), httpx.Response(304)])
def test_what_was_asked_for_has_no_class(outcome: object) -> None:
    assert classify(outcome, service="intune") is None


def test_a_refused_token_is_renewed_before_it_is_denied() -> None:
    first = classify(httpx.Response(401), service="intune", safety=Safety.KEYED, refreshed=False)

    assert isinstance(first, errors.AuthExpired)
