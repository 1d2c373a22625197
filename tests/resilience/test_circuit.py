# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to a breaker, in whatever order: what must hold after each step."""

from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from app.resilience import BreakerOpen, BreakerPolicy, BreakerState, ServiceBreaker
from app.resilience.circuit import PROBE_LEASE, Permit
from app.resilience.errors import Verdict
from app.resilience.status import FORCED

T = TypeVar("T")
POLICY = BreakerPolicy(fail_max=3, reset_timeout=10.0, minimum_calls=6, window=30.0)
LONG = POLICY.reset_timeout + PROBE_LEASE + 1
ORDER = 20.0


def at_once(awaited: Coroutine[Any, Any, T]) -> T:
    """The result of what never really waits: a process without a fleet asks nobody."""
    try:
        awaited.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("it waited")


class Life(RuleBasedStateMachine):
    """Calls begin and end, time passes, operators give orders, the fleet tells news."""

    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.breaker = ServiceBreaker("intune", POLICY, clock=lambda: self.now)

    def admitted(self) -> Permit | None:
        try:
            return at_once(self.breaker.admit())
        except BreakerOpen:
            return None

    @rule(target=calls)
    def begin(self) -> Permit | None:
        before, left = self.breaker.effective, self.breaker.time_left()
        permit = self.admitted()
        if permit is None:
            assert left is not None, "refused although nothing stood in the way"
        elif permit.probe:
            assert before not in {BreakerState.CLOSED, BreakerState.DISABLED}
            assert left is None
        return permit

    @rule(permit=consumes(calls), outcome=st.sampled_from(Verdict))
    def end(self, permit: Permit | None, outcome: Verdict) -> None:
        if permit is None:
            return
        before, stale = self.breaker.effective, permit.generation != self.breaker._generation
        counter = self.breaker.fail_counter
        permit.settle(outcome, "transient")
        if stale:
            assert (self.breaker.effective, self.breaker.fail_counter) == (before, counter)
        elif permit.probe and outcome is Verdict.SUCCESS:
            assert self.breaker.effective is BreakerState.CLOSED
        elif permit.probe and outcome is Verdict.FAILURE:
            assert self.breaker.effective is BreakerState.OPEN
        elif outcome is Verdict.NEUTRAL:
            assert self.breaker.fail_counter == counter

    @rule(seconds=st.sampled_from([0.5, 3.0, POLICY.reset_timeout, LONG]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        state=st.sampled_from([BreakerState.CLOSED, *sorted(FORCED)]),
        seconds=st.sampled_from([0.0, ORDER]),
    )
    def order(self, state: BreakerState, seconds: float) -> None:
        self.breaker.order(state, actor="alice", reason=None, seconds=seconds)
        assert self.breaker.effective is state
        assert self.breaker.fail_counter == 0

    @rule(state=st.sampled_from([BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN]))
    def hear(self, state: BreakerState) -> None:
        news = replace(
            self.breaker.shared,
            state=state,
            epoch=self.breaker.shared.epoch + 1,
            reopens_at=self.now + POLICY.reset_timeout if state is BreakerState.OPEN else 0.0,
            lease_ends_at=self.now + PROBE_LEASE if state is BreakerState.HALF_OPEN else 0.0,
            expires_at=0.0,
        )
        assert self.breaker.adopt(news)
        assert self.breaker.effective is state

    @rule()
    def hear_old_news(self) -> None:
        before = self.breaker.shared
        if before.epoch:
            assert not self.breaker.adopt(
                replace(before, epoch=before.epoch - 1, state=BreakerState.OPEN, reopens_at=self.now + 99)
            )
        assert self.breaker.shared is before

    @rule()
    def everything_ends(self) -> None:
        """Nobody is kept away for ever, except by an operator who said so."""
        for_ever = self.breaker.shared.state is BreakerState.ISOLATED and not self.breaker.shared.expires_at
        self.now += LONG
        assert (self.admitted() is None) is for_ever

    @invariant()
    def a_closed_breaker_has_not_seen_too_much(self) -> None:
        if self.breaker.effective is BreakerState.CLOSED:
            assert self.breaker.fail_counter < POLICY.fail_max

    @invariant()
    def whoever_is_admitted_at_once_is_so_by_the_state(self) -> None:
        open_to_all = self.breaker.effective in {BreakerState.CLOSED, BreakerState.DISABLED}
        assert (self.breaker.admit_now() is not None) is open_to_all

    @invariant()
    def nobody_waits_longer_than_the_longest_limit(self) -> None:
        left = self.breaker.time_left()
        assert left is None or 0 < left <= max(60.0, LONG)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=40)
