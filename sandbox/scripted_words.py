# SPDX-License-Identifier: Apache-2.0
"""The scripted model's sentences. Each is built from the tools' results only: nothing is made up."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sandbox.scripted_conversation import Conversation, Json, Outcome, Wish, wish

RATES = frozenset({"failure_rate", "success_rate", "success_bound", "coverage"})
"""Measures that are fractions, 0..1; soak is in seconds, the others are counts."""
MOST_CRITERIA = 3


@dataclass(frozen=True)
class Sheet:
    """What was read about one deployment; None for what was not."""

    deployment_id: str
    error: str | None
    deployment: Json | None
    blockers: list[Json] | None
    lanes: list[Json] | None
    failures: list[Json] | None

    @property
    def mark(self) -> str:
        """How a deployment is cited."""
        return f"[deployment {self.deployment_id}]"

    @property
    def name(self) -> str:
        """The application and its version, as far as they are known."""
        told = self.deployment or {}
        known = [str(told[part]) for part in ("app_name", "app_version") if told.get(part)]
        return " ".join(known) or "the deployment"

    @property
    def rings(self) -> list[Json]:
        """The lanes as the deployment itself tells them, in order."""
        return list((self.deployment or {}).get("lanes") or [])


def reads(deployment_id: str) -> tuple[Wish, ...]:
    """The calls that tell everything about a deployment."""
    tools = ("read_deployment", "read_blockers", "read_gates", "read_failures")
    return tuple(wish(tool, deployment_id=deployment_id) for tool in tools)


def sheet(conversation: Conversation, deployment_id: str) -> Sheet:
    """What these calls gave."""
    outcomes = [conversation.outcome(each) for each in reads(deployment_id)]
    head, blockers, gates, failures = outcomes
    return Sheet(
        deployment_id,
        error=head.error if head else None,
        deployment=head.found if head and head.error is None else None,
        blockers=rows(blockers, "blockers"),
        lanes=rows(gates, "lanes"),
        failures=rows(failures, "failures"),
    )


def rows(outcome: Outcome | None, name: str) -> list[Json] | None:
    """The rows of a result; None where there is none, or an error."""
    return None if outcome is None or outcome.error is not None else list(outcome.found.get(name) or [])


def explained(told: Sheet) -> str:
    """A few plain sentences about one deployment."""
    if told.error is not None:
        return f"I could not read {told.mark}: {told.error}"
    parts = [state(told), *held(told), *measured(told), *commonest(told)]
    return " ".join(part for part in parts if part)


def state(told: Sheet) -> str:
    """What it is and how it stands."""
    if told.deployment is None:
        return f"I have not read the state of {told.mark}."
    pause = f" It is paused: {told.deployment.get('pause_reason') or 'no reason is given'}."
    line = f"{told.name} {told.mark} is {told.deployment.get('status', 'in an unknown state')}."
    return line + (pause if told.deployment.get("paused") else "")


def held(told: Sheet) -> Iterator[str]:
    """What keeps it from moving."""
    if told.blockers == []:
        yield "Nothing holds it."
    for blocker in told.blockers or []:
        yield f"It is held by {blocker_line(blocker)}."


def blocker_line(blocker: Json) -> str:
    """A blocker: what, where, until when, and whose turn it is."""
    who = blocker.get("who_can_act")
    names = ", ".join(map(str, who)) if isinstance(who, list) else str(who or "nobody")
    until = f"it is over when {clause(blocker.get('unblocks_when', 'unknown'))}"
    return f"{blocker.get('code')} ({blocker.get('subject')}): {until}; who can act: {names}"


def clause(text: object) -> str:
    """A sentence as the part of another."""
    return str(text).rstrip(". ")


def measured(told: Sheet) -> Iterator[str]:
    """The numbers at the gates: of lanes that do not pass, else of the last one that was measured."""
    lanes = [lane for lane in told.lanes or [] if lane.get("criteria")]
    failing = [lane for lane in lanes if unmet(lane)]
    for lane in failing or lanes[-1:]:
        shown = (unmet(lane) or lane["criteria"])[:MOST_CRITERIA]
        numbers = ", ".join(criterion_line(criterion) for criterion in shown)
        verdict = f" (verdict {lane['verdict']})" if lane.get("verdict") else ""
        yield f"The gate of {place(lane)}{verdict}: {numbers}."


def unmet(lane: Json) -> list[Json]:
    """The criteria a lane does not meet."""
    return [criterion for criterion in lane.get("criteria") or [] if not criterion.get("passed")]


def criterion_line(criterion: Json) -> str:
    """A criterion with its two numbers."""
    name = str(criterion.get("name"))
    found = amount(name, criterion.get("measured"))
    return f"{name} {found} against a threshold of {amount(name, criterion.get('threshold'))}"


def amount(measure: str, value: Any) -> str:
    """A number as people read it."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "not measured" if value is None else str(value)
    if measure not in RATES:
        return f"{value:g} s" if measure == "soak" else f"{value:g}"
    return f"{round(value * 100, 2):g} %"


def place(lane: Json) -> str:
    """Where a lane is."""
    return f"{lane.get('ring')}/{lane.get('plane')}"


def commonest(told: Sheet) -> Iterator[str]:
    """The cause that most devices failed for."""
    if told.failures:
        yield f"The commonest failure is {cause_line(by_count(told.failures)[0])}."


def by_count(failures: Sequence[Json]) -> list[Json]:
    """The causes, the commonest first."""
    return sorted(failures, key=lambda failure: -int(failure.get("devices") or 0))


def cause_line(failure: Json) -> str:
    """A cause with its counts."""
    where = ", ".join(map(str, failure.get("lanes") or [])) or "no lane"
    counts = f"{failure.get('devices')} of {failure.get('of')} failed devices"
    return f"{clause(failure.get('cause'))} ({counts}, on {where})"


def breakers(found: Json) -> str:
    """The circuit breakers."""
    told = [breaker_line(breaker) for breaker in found.get("breakers") or []]
    return " ".join(told) or "There are no breakers."


def breaker_line(breaker: Json) -> str:
    """One breaker."""
    retry = f", tried again at {breaker['retry_at']}" if breaker.get("retry_at") else ""
    error = f", last error: {clause(breaker['last_error'])}" if breaker.get("last_error") else ""
    return f"The breaker of {breaker.get('service')} is {breaker.get('state')}{retry}{error}."


def planes(found: Json) -> str:
    """The device managers."""
    told = [plane_line(plane) for plane in found.get("planes") or []]
    return " ".join(told) or "There are no planes."


def plane_line(plane: Json) -> str:
    """One device manager."""
    if plane.get("configured"):
        return f"{plane.get('plane')} is configured."
    missing = ", ".join(map(str, plane.get("missing") or []))
    return f"{plane.get('plane')} is not configured" + (f": {missing} is missing." if missing else ".")
