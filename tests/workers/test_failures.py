# SPDX-License-Identifier: Apache-2.0
from datetime import timedelta

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import create_async_engine

from app.domain.operations import Failure
from app.errors import IllegalTransition, LeaseLost, Unavailable
from app.resilience import BreakerOpen
from app.resilience.errors import (
    AmbiguousError,
    AttemptTimeout,
    AuthError,
    ConflictError,
    LocalSaturation,
    NotThere,
    PermanentError,
    PolicyError,
    ServerError,
    Throttled,
    TransientError,
    Unsettled,
)
from workers.context import WorkFailed
from workers.failures import Action, Verdict, deferral_delay, judge, retry_delay


@pytest.mark.parametrize(
    ("error", "action", "error_class", "code"),
    [
        (TransientError("503", service="intune"), Action.RETRY, "transient", "transient"),
        (ServerError("500", service="intune"), Action.RETRY, "transient", "server_error"),
        (AttemptTimeout("30 s", service="intune"), Action.RETRY, "transient", "attempt_timeout"),
        (AmbiguousError("lost", service="intune"), Action.RETRY, "unknown", "ambiguous"),
        (ConflictError("412", service="intune"), Action.RETRY, "permanent", "conflict"),
        (BreakerOpen("open", service="intune"), Action.DEFER, "transient", "circuit_open"),
        (Throttled("429", service="intune"), Action.DEFER, "transient", "throttled"),
        (LocalSaturation("full", service="intune"), Action.DEFER, "transient", "local_saturation"),
        (AuthError("401", service="intune"), Action.FAIL, "auth", "auth_denied"),
        (PolicyError("403", service="intune"), Action.FAIL, "policy_violation", "policy"),
        (PermanentError("400", service="intune"), Action.FAIL, "permanent", "permanent"),
        (NotThere("404", service="intune"), Action.FAIL, "permanent", "not_found"),
        (PoolTimeout(), Action.DEFER, "transient", "local_saturation"),
        (ConnectionRefusedError(), Action.DEFER, "transient", "db_down"),
        (TimeoutError(), Action.RETRY, "transient", "deadline"),
        (Unavailable("later"), Action.DEFER, "transient", "unavailable"),
        (IllegalTransition("no"), Action.FAIL, "permanent", "illegal_transition"),
        (LeaseLost("gone"), Action.DROP, "transient", "lease_lost"),
        (WorkFailed(Failure("transient", "deadline", "late")), Action.FAIL, "transient", "deadline"),
        (KeyError("x"), Action.RETRY, "permanent", "bug"),
        (SystemExit(3), Action.RETRY, "permanent", "bug"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_exception_has_a_verdict(
    error: BaseException, action: Action, error_class: str, code: str
) -> None:
    verdict = judge(error)

    assert (verdict.action, verdict.failure.error_class, verdict.failure.code) == (action, error_class, code)


@pytest.mark.parametrize(
    ("statement", "action", "code"),
    [
        ("SELECT pg_sleep(60)", Action.RETRY, "db_slow"),
        ("SELECT pg_terminate_backend(pg_backend_pid())", Action.DEFER, "db_down"),
        ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40P01'; END $$", Action.RETRY, "conflict"),
        ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$", Action.RETRY, "conflict"),
        ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '55P03'; END $$", Action.RETRY, "db_slow"),
        ("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '53300'; END $$", Action.DEFER, "db_down"),
        ("SELECT 1 / 0", Action.RETRY, "bug"),
    ],
)
async def test_what_the_real_database_raises_is_told_apart(
    database_url: str, statement: str, action: Action, code: str
) -> None:
    engine = create_async_engine(
        make_url(database_url).set(drivername="postgresql+asyncpg"),
        connect_args={"server_settings": {"statement_timeout": "1000"}},
    )
    async with engine.connect() as connection:
        with pytest.raises(DBAPIError) as raised:
            await connection.execute(text(statement))
    await engine.dispose()

    verdict = judge(raised.value)
    assert (verdict.action, verdict.failure.code) == (action, code)


def test_of_several_errors_at_once_the_worst_decides() -> None:
    group = ExceptionGroup(
        "both", [BreakerOpen("open", service="a"), ExceptionGroup("", [AuthError("401", service="b")])]
    )

    verdict = judge(group)

    assert (verdict.action, verdict.failure.service) == (Action.FAIL, "b")


def test_an_unforeseen_error_is_tried_once_more() -> None:
    assert judge(KeyError("x"), last_code="transient").action is Action.RETRY
    assert judge(KeyError("x"), last_code="bug").action is Action.FAIL


def test_the_text_of_an_unforeseen_error_is_not_shown() -> None:
    assert "hunter2" not in judge(ValueError("password hunter2")).failure.message


def test_a_token_in_a_vendors_message_is_not_shown() -> None:
    error = PermanentError("refused: Authorization: Bearer eyJhbGciOi.abc.def", service="intune")

    assert "eyJ" not in judge(error).failure.message


@pytest.mark.parametrize(("attempt", "ceiling"), [(1, 2), (2, 4), (3, 8), (6, 64), (7, 64), (64, 64)])
def test_a_retry_waits_anything_up_to_two_to_the_attempt_seconds(attempt: int, ceiling: int) -> None:
    waits = [retry_delay(attempt, unit=1.0).total_seconds() for _ in range(500)]

    assert min(waits) >= 0
    assert max(waits) <= ceiling
    assert max(waits) > ceiling * 0.8
    assert min(waits) < ceiling * 0.2


def test_a_retry_does_not_come_before_it_may() -> None:
    assert retry_delay(1, unit=1.0, retry_after=timedelta(seconds=7)) == timedelta(seconds=7)


@pytest.mark.parametrize(
    ("asked", "deferrals", "least"), [(60, 0, 60), (0, 0, 2), (0, 2, 8), (0, 100, 64), (3600, 100, 3600)]
)
def test_a_deferral_waits_what_was_asked_and_a_little_more(asked: int, deferrals: int, least: int) -> None:
    verdict = Verdict(Action.DEFER, Failure("transient", "circuit_open", ""), timedelta(seconds=asked))

    waits = [deferral_delay(verdict, deferrals, unit=1.0).total_seconds() for _ in range(200)]

    assert min(waits) >= least
    assert max(waits) <= least * 1.25
    assert max(waits) > min(waits)


def test_a_second_look_comes_when_it_is_due_however_long_the_outage_before_it() -> None:
    verdict = judge(Unsettled("not to be seen", service="intune", retry_after=3.0))

    waits = [deferral_delay(verdict, 20, unit=1.0).total_seconds() for _ in range(200)]

    assert min(waits) >= 3
    assert max(waits) <= 3.75


def test_our_own_saturation_is_tried_again_within_seconds() -> None:
    verdict = judge(LocalSaturation("the queue is full", service="intune"))

    waits = [deferral_delay(verdict, 20, unit=1.0).total_seconds() for _ in range(200)]

    assert min(waits) >= 1
    assert max(waits) <= 5
