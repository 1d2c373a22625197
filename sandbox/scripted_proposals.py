# SPDX-License-Identifier: Apache-2.0
"""What the scripted model proposes when it is given a task: a text, and actions for somebody to approve."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sandbox import scripted_words as words
from sandbox.scripted_conversation import Json
from sandbox.scripted_words import Sheet

UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
KIND = re.compile(r"^\s*task:\s*(\w+)\s*$", re.MULTILINE)
DEPLOYMENT = re.compile(rf"^\s*deployment:\s*({UUID.pattern})\s*$", re.MULTILINE)
REVISION = re.compile(r"^\s*revision:\s*(.+?)\s*$", re.MULTILINE)
ACTIONS = {"propose_rollback": "rollback", "triage_failures": "retry_failed_devices"}


@dataclass(frozen=True, slots=True)
class Task:
    """What the last thing a person said asks for."""

    kind: str
    deployment_id: str
    revision: str | None


def task_in(question: str) -> Task | None:
    """The task that a text describes, if it does."""
    kind, deployment, revision = (line.search(question) for line in (KIND, DEPLOYMENT, REVISION))
    if kind is None or deployment is None:
        return None
    return Task(kind[1], deployment[1], revision[1] if revision else None)


def proposal(task: Task, told: Sheet) -> Json:
    """The arguments of ``submit_proposal``."""
    write = TEXTS.get(task.kind, summary)
    if told.error is not None:
        write = unread
    lines = [*acknowledged(task), *write(told)]
    return {"text": "\n".join(lines), "actions": actions(task, told)}


def acknowledged(task: Task) -> Iterator[str]:
    """That a reviewer's wish was heard."""
    if task.revision is not None:
        yield f"Revised as asked: {task.revision}"


def actions(task: Task, told: Sheet) -> list[Json]:
    """What is to be done; a retry only where something failed."""
    action = ACTIONS.get(task.kind)
    if action is None or (task.kind == "triage_failures" and not told.failures):
        return []
    reason = next(words.commonest(told), words.state(told))
    return [{"action": action, "deployment_id": task.deployment_id, "reason": reason}]


def unread(told: Sheet) -> Iterator[str]:
    """What is said about a deployment that cannot be read."""
    yield words.explained(told)


def summary(told: Sheet) -> Iterator[str]:
    """The state of a rollout, ring by ring."""
    yield words.explained(told)
    yield from (lane_line(lane) for lane in told.rings)


def lane_line(lane: Json) -> str:
    """How a lane stands, in numbers."""
    counts = f"{lane.get('success_count')} of {lane.get('targeted')} devices succeeded"
    lost = f"{lane.get('failure_count')} failed, {lane.get('unreachable_count')} unreachable"
    rate = words.amount("success_rate", lane.get("success_rate"))
    return f"{words.place(lane)}: {lane.get('status')}; {counts} ({rate}), {lost}."


def triage(told: Sheet) -> Iterator[str]:
    """One paragraph per cause."""
    if not told.failures:
        yield f"No device of {told.name} {told.mark} failed."
    for place, failure in enumerate(words.by_count(told.failures or []), 1):
        yield f"Cause {place}: {words.cause_line(failure)}."


def change_request(told: Sheet) -> Iterator[str]:
    """What a change advisory board reads."""
    known = told.deployment or {}
    planes = ", ".join(map(str, known.get("planes") or [])) or "unknown planes"
    approval = "the board must approve it" if known.get("requires_cab_approval") else "no board needed"
    yield f"Title: Deploy {told.name} up to {known.get('target_ring')} {told.mark}"
    yield f"Reason: {words.state(told)} {' '.join(words.held(told))}"
    yield f"Scope: {planes}, rings up to {known.get('target_ring')}"
    yield f"Risk score: {known.get('risk_score')} ({approval})"
    yield "Plan: " + " ".join(lane_line(lane) for lane in told.rings)
    yield f"Back-out: roll back {', '.join(map(words.place, told.rings)) or 'nothing'}"


def rollback(told: Sheet) -> Iterator[str]:
    """Why to go back."""
    yield f"Roll back {told.name} {told.mark}."
    yield words.explained(told)


def promotion(told: Sheet) -> Iterator[str]:
    """Ring by ring, what is still missing."""
    yield words.state(told)
    gates = {words.place(lane): lane for lane in told.lanes or []}
    for lane in told.rings:
        where = words.place(lane)
        missing = [*map(words.criterion_line, words.unmet(gates.get(where, {}))), *blocked(told, where)]
        yield f"{where}: {lane.get('status')}; still missing: {'; '.join(missing) or 'nothing'}."
    general = blocked(told, "deployment")
    if general:
        yield f"For all rings: {'; '.join(general)}."


def blocked(told: Sheet, subject: str) -> list[str]:
    """What holds a lane, or all of it."""
    return [words.blocker_line(each) for each in told.blockers or [] if each.get("subject") == subject]


TEXTS: dict[str, Callable[[Sheet], Iterator[str]]] = {
    "summarise_rollout": summary,
    "triage_failures": triage,
    "draft_change_request": change_request,
    "propose_rollback": rollback,
    "propose_promotion_plan": promotion,
}
