# SPDX-License-Identifier: Apache-2.0
"""The tables of all state machines as the document ``docs/states.md``: drawn from the tables themselves."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TypeVar

from app.domain import ai_tasks, conversations, deadlines, drift, effects, operations, rollout
from app.domain.guards import LANE_GUARDS
from app.domain.rollout import COMMANDS, HOLDS
from app.models import DeploymentStatus

State = TypeVar("State", bound=StrEnum)

HEAD = """\
# States: what may follow what

Made from the tables in `app/domain` by `eucora states`; a test holds it to them. A move that is not drawn is
refused: over HTTP with 409 `illegal_transition`, which names the state.
"""
GUARDS_HEAD = """\
### What may keep a lane from moving

Each guard is the blocker of its name in `GET /deployments/{id}/blockers`: what the scheduler asks
before it moves anything (`app/domain/guards.py`).

| move | guards, in the order in which they are asked |
| --- | --- |
"""
LIMITS_HEAD = """\
## How long a state may last

Every state that is not final has an owner that moves it on, and a limit after which a sweeper, which runs in
each worker, moves it to its successor (`app/domain/deadlines.py`). The metric `eucora_oldest_state_age_ratio`
tells how near the oldest of each is to its limit; it stays below 1.

| what | state | owner | counted since | for at most | then |
| --- | --- | --- | --- | --- | --- |
"""
UNWATCHED_HEAD = """
No sweeper looks at some of these, and the metric does not have them, because something else ends them:

"""
COMMANDS_HEAD = """\
## What may be ordered when

*acts*: the command may change something · *holds*: what it orders holds already, it is accepted and changes
nothing · empty: 409.

"""


def document() -> str:
    """The whole of it, with a newline at its end."""
    parts = [
        HEAD,
        drawing("Deployments", rollout.DEPLOYMENT_MOVES, DeploymentStatus.PENDING),
        commands(),
        drawing("Lanes", rollout.LANE_MOVES, next(iter(rollout.LANE_MOVES))),
        guarded(),
        drawing("Requests to the board", rollout.APPROVAL_MOVES, next(iter(rollout.APPROVAL_MOVES))),
        drawing("Operations", operations.MOVES, next(iter(operations.MOVES))),
        drawing("Effects", effects.MOVES, next(iter(effects.MOVES))),
        drawing("Drift", drift.MOVES, next(iter(drift.MOVES))),
        drawing("Messages of a conversation", conversations.MOVES, next(iter(conversations.MOVES))),
        drawing("Tasks of the assistant", ai_tasks.MOVES, next(iter(ai_tasks.MOVES))),
        limits(),
    ]
    return "\n".join(parts)


def drawing(title: str, moves: Mapping[State, Iterable[State]], first: State) -> str:
    """One machine as a Mermaid state diagram; states without a way out end."""
    lines = [f"## {title}", "", "```mermaid", "stateDiagram-v2", f"  [*] --> {first.value}"]
    for before, following in moves.items():
        order = [state for state in moves if state in set(following)]
        lines += [f"  {before.value} --> {after.value}" for after in order]
        if not order:
            lines.append(f"  {before.value} --> [*]")
    return "\n".join([*lines, "```", ""])


def commands() -> str:
    """Which command is legal in which state, as a table."""
    names = [command.value for command in COMMANDS]
    lines = ["| state | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for status in DeploymentStatus:
        cells = [
            "acts" if status in states else "holds" if status in HOLDS.get(command, ()) else ""
            for command, states in COMMANDS.items()
        ]
        lines.append(f"| {status.value} | " + " | ".join(cells) + " |")
    return COMMANDS_HEAD + "\n".join([*lines, ""])


def guarded() -> str:
    """The guards of each move of a lane, as a table."""
    rows = [
        f"| {before.value} → {after.value} | {', '.join(f'`{code.value}`' for code in codes)} |"
        for (before, after), codes in LANE_GUARDS.items()
    ]
    return GUARDS_HEAD + "\n".join([*rows, ""])


def limits() -> str:
    """The table of limits."""
    rows = [
        (machine.name, limit.state, limit.owner, limit.since, limit.after, _then(limit))
        for machine in deadlines.MACHINES
        for limit in machine.limits
    ]
    return LIMITS_HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows) + _unwatched()


def _then(limit: deadlines.Limit) -> str:
    known = limit.successor.value + (f" or {limit.otherwise.value}" if limit.otherwise else "")
    return f"{known}, {limit.at_last}" if limit.at_last else known


def _unwatched() -> str:
    """What else ends the states that no sweeper looks at."""
    states: dict[tuple[str, str], list[str]] = {}
    for machine in deadlines.MACHINES:
        for limit in machine.limits:
            if limit.instead:
                states.setdefault((machine.name, limit.instead), []).append(limit.state.value)
    told = [f"- {name} {', '.join(which)}: {why}.\n" for (name, why), which in states.items()]
    return UNWATCHED_HEAD + "".join(told)
