# SPDX-License-Identifier: Apache-2.0
"""What is asked for by name, and what decorators do to functions."""

import functools
import socket
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from app import resilience
from app.resilience import (
    DEFAULT_RETRY,
    NO_RETRY,
    SERVICES,
    BreakerOpen,
    BreakerPolicy,
    Breakers,
    BreakerState,
    RetryProfile,
    Safety,
    UnknownService,
    call,
    check_breaker_status,
    create_resilient_client,
    get_all_breaker_status,
    get_breaker,
    reset_breaker,
    with_circuit_breaker,
)
from app.resilience.errors import AmbiguousError, PermanentError, TransientError, Unexpected
from app.resilience.registry import current, in_use

QUICK = RetryProfile(attempts=3, shortest=0.001, longest=0.002)


@pytest.fixture(autouse=True)
def breakers() -> Iterator[Breakers]:
    """Those of this test's own process."""
    own = Breakers()
    with in_use(own):
        yield own


async def down() -> None:
    raise ConnectionRefusedError("own")


async def open_by_hand(service: str) -> None:
    for _ in range(5):
        with pytest.raises(ConnectionRefusedError):
            await (await get_breaker(service)).call_async(down)


def test_everything_that_is_offered_can_be_imported() -> None:
    assert all(hasattr(resilience, name) for name in resilience.__all__)


async def test_there_are_eighteen_services_and_others_are_refused_by_name() -> None:
    assert len(await get_all_breaker_status()) == len(SERVICES) == 18
    for ask in (get_breaker, check_breaker_status, reset_breaker):
        with pytest.raises(UnknownService, match="known are intune, jamf, sccm"):
            await ask("nobody")
    with pytest.raises(UnknownService):
        with_circuit_breaker("nobody")
    with pytest.raises(UnknownService):
        create_resilient_client("nobody")
    with pytest.raises(UnknownService):
        Breakers(policies={"nobody": BreakerPolicy()})
    with pytest.raises(UnknownService):
        await call("nobody", down)


async def test_a_breaker_is_found_read_and_reset_by_name(breakers: Breakers) -> None:
    await open_by_hand("jira")

    status = await check_breaker_status("jira")
    assert (status.state, status.fail_counter, status.fail_max) == (BreakerState.OPEN, 5, 5)
    assert status.retry_at is not None
    assert status.opened_at is not None
    assert status.last_error == "transient"
    closed = await reset_breaker("jira", actor="alice")

    assert (closed.state, closed.fail_counter) == (BreakerState.CLOSED, 0)
    assert await get_breaker("jira") is breakers.get("jira")
    assert (await check_breaker_status("database")).reset_timeout == 30.0


async def test_orders_reach_a_process_without_a_fleet_too(breakers: Breakers) -> None:
    isolated = await breakers.isolate("jira", actor="alice", reason="maintenance")
    with pytest.raises(BreakerOpen, match="alice: maintenance"):
        await (await get_breaker("jira")).admit()
    enabled = await breakers.enable("jira", actor="alice")
    disabled = await breakers.disable("jira", actor="bob")

    assert (isolated.actor, isolated.reason) == ("alice", "maintenance")
    assert (enabled.state, disabled.state) == (BreakerState.CLOSED, BreakerState.DISABLED)
    for _ in range(9):
        with pytest.raises(ConnectionRefusedError):
            await (await get_breaker("jira")).call_async(down)


class Thing:
    async def method(self, number: int) -> int:
        return number

    async def __call__(self) -> str:
        return "called"


async def test_anything_that_is_awaited_can_stand_under_a_breaker() -> None:
    guarded = with_circuit_breaker("jira")

    assert await guarded(Thing().method)(3) == 3
    assert await guarded(functools.partial(Thing().method, 4))() == 4
    assert await guarded(Thing())() == "called"


async def test_the_decorator_keeps_name_and_errors_and_counts_them() -> None:
    @with_circuit_breaker("jira")
    async def ask() -> None:
        """Documented."""
        raise ConnectionRefusedError("own")

    for _ in range(5):
        with pytest.raises(ConnectionRefusedError, match="own"):
            await ask()
    with pytest.raises(BreakerOpen):
        await ask()

    assert (ask.__name__, ask.__doc__) == ("ask", "Documented.")


async def test_a_decorated_function_inside_another_counts_for_both() -> None:
    @with_circuit_breaker("jira")
    async def outer() -> None:
        await inner()

    @with_circuit_breaker("splunk")
    async def inner() -> None:
        raise ConnectionRefusedError

    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            await outer()

    assert (await get_breaker("jira")).fail_counter == 3
    assert (await get_breaker("splunk")).fail_counter == 3


async def test_an_error_that_is_returned_counts_like_one_that_is_raised() -> None:
    @with_circuit_breaker("jira")
    async def ask(status: int) -> httpx.Response:
        return httpx.Response(status)

    for status in (404, 404, 503, 503):
        await ask(status)

    assert (await get_breaker("jira")).fail_counter == 2


async def test_a_generator_is_counted_when_it_ends() -> None:
    @with_circuit_breaker("jira")
    async def pages(*, broken: bool) -> AsyncIterator[int]:
        yield 1
        if broken:
            raise ConnectionResetError
        yield 2

    with pytest.raises(ConnectionResetError):
        [page async for page in pages(broken=True)]
    assert (await get_breaker("jira")).fail_counter == 1
    assert [page async for page in pages(broken=False)] == [1, 2]
    assert (await get_breaker("jira")).fail_counter == 0


async def test_a_group_of_errors_counts_by_its_worst() -> None:
    @with_circuit_breaker("jira")
    async def ask() -> None:
        raise ExceptionGroup("two", [KeyError("ours"), ConnectionResetError()])

    with pytest.raises(ExceptionGroup):
        await ask()

    assert (await get_breaker("jira")).fail_counter == 1


async def test_a_profile_is_a_decorator_too() -> None:
    tries = 0

    @QUICK
    async def ask(answer: str) -> str:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise ConnectionResetError
        return answer

    assert await ask("fine") == "fine"
    assert (tries, ask.__name__) == (3, "ask")


async def test_a_profile_repeats_only_what_may_pass_and_raises_the_functions_own_error() -> None:
    tries = 0

    @QUICK
    async def ask(error: Exception) -> None:
        nonlocal tries
        tries += 1
        raise error

    for error, expected in [
        (KeyError("ours"), 1),
        (PermanentError("no", service="jira", status=400), 1),
        (BreakerOpen("open", service="jira"), 1),
        (socket.gaierror(), 3),
        (httpx.ReadTimeout("slow"), 3),
        (TransientError("503", service="jira", status=503), 3),
    ]:
        tries = 0
        with pytest.raises(type(error)) as raised:
            await ask(error)
        assert raised.value is error
        assert tries == expected, error


def test_no_retry_changes_nothing() -> None:
    assert NO_RETRY(down) is down


async def test_what_is_not_http_goes_through_the_same_layers() -> None:
    tries = 0

    async def search(answer: str) -> str:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ConnectionResetError
        return answer

    assert await call("active_directory", search, "found", profile=QUICK) == "found"
    with pytest.raises(AmbiguousError):
        await call("active_directory", down, profile=QUICK, safety=Safety.UNSAFE)
    with pytest.raises(Unexpected):
        await call("active_directory", search, "too", "many", profile=QUICK)
    for _ in range(2):
        with pytest.raises((TransientError, BreakerOpen)):
            await call("active_directory", down, profile=QUICK)

    assert (await get_breaker("active_directory")).effective is BreakerState.OPEN


async def test_the_policy_in_force_can_be_read(breakers: Breakers) -> None:
    async with create_resilient_client("jira", max_concurrency=4, breakers=breakers):
        (client,) = (await check_breaker_status("jira")).clients

    assert (client.max_concurrency, client.max_waiting, client.profile) == (4, 64, DEFAULT_RETRY)
    assert current() is breakers
