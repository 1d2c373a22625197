# SPDX-License-Identifier: Apache-2.0
"""What the assistant may propose: a closed set of actions, with limits. Pure.

What is not declared here is denied, whatever the model, its prompt or the data it read may say. Nothing here
sets a risk score, decides on an approval, promotes or deploys.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any
from uuid import UUID

from app.domain.digests import digest
from app.models import AiTaskKind
from app.models.base import Json

LONGEST_TEXT, LONGEST_REASON = 20_000, 1_000


class ActionKind(StrEnum):
    """The only things that can ever come of a proposal."""

    ROLLBACK = "rollback"
    PAUSE = "pause"
    RETRY_FAILED_DEVICES = "retry_failed_devices"


@dataclass(frozen=True, slots=True)
class Action:
    """One of them, with its target and why."""

    kind: ActionKind
    deployment_id: UUID
    reason: str

    def to_json(self) -> Json:
        """As it is stored and shown."""
        return {
            "action": self.kind.value,
            "target": {"deployment_id": str(self.deployment_id)},
            "arguments": {"reason": self.reason},
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Action":
        """As it was stored.

        Raises:
            ValueError, KeyError, TypeError: nobody stored it so.
        """
        target, arguments = stored["target"], stored["arguments"]
        if set(stored) != {"action", "target", "arguments"} or set(target) != {"deployment_id"}:
            raise ValueError("an action has other parts than were declared")
        if set(arguments) != {"reason"}:
            raise ValueError("an action has other arguments than were declared")
        return cls(ActionKind(stored["action"]), UUID(target["deployment_id"]), str(arguments["reason"]))


@dataclass(frozen=True, slots=True)
class Rules:
    """What one kind of task may propose: which actions, at most how many, and how long that holds.

    The only target is the deployment that the task is about.
    """

    actions: frozenset[ActionKind]
    most: int
    lasts: timedelta


_TEXT_ONLY = Rules(frozenset(), 0, timedelta(days=7))
RULES: Mapping[AiTaskKind, Rules] = MappingProxyType(
    {
        AiTaskKind.SUMMARISE_ROLLOUT: _TEXT_ONLY,
        AiTaskKind.TRIAGE_FAILURES: Rules(
            frozenset({ActionKind.RETRY_FAILED_DEVICES, ActionKind.PAUSE}), 2, timedelta(hours=12)
        ),
        AiTaskKind.DRAFT_CHANGE_REQUEST: _TEXT_ONLY,
        AiTaskKind.PROPOSE_ROLLBACK: Rules(
            frozenset({ActionKind.ROLLBACK, ActionKind.PAUSE}), 1, timedelta(hours=4)
        ),
        AiTaskKind.PROPOSE_PROMOTION_PLAN: _TEXT_ONLY,
    }
)


class ProposalDenied(ValueError):
    """What was proposed is not what may be; the text says why, in words a model can mend it by."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A text, and what is to be done, in order."""

    text: str
    actions: tuple[Action, ...]


def check(kind: AiTaskKind, deployment_id: UUID, given: Any) -> Proposal:
    """What a model proposed, if it may.

    Raises:
        ProposalDenied: it holds anything that was not declared for this kind of task.
    """
    if not isinstance(given, dict) or set(given) != {"text", "actions"}:
        raise ProposalDenied("a proposal is an object with just `text` and `actions`")
    text, actions = given["text"], given["actions"]
    if not isinstance(text, str) or not text.strip() or len(text) > LONGEST_TEXT:
        raise ProposalDenied(f"`text` must be a text of 1 to {LONGEST_TEXT} characters")
    if not isinstance(actions, list) or len(actions) > RULES[kind].most:
        raise ProposalDenied(f"{kind.value} may propose at most {RULES[kind].most} actions")
    checked = tuple(_action(kind, deployment_id, action) for action in actions)
    if len({action.kind for action in checked}) != len(checked):
        raise ProposalDenied("an action may be proposed once")
    return Proposal(text.replace("\x00", "").strip(), checked)


def _action(kind: AiTaskKind, deployment_id: UUID, given: Any) -> Action:
    if not isinstance(given, dict) or set(given) != {"action", "deployment_id", "reason"}:
        raise ProposalDenied("an action is an object with just `action`, `deployment_id` and `reason`")
    allowed = sorted(action.value for action in RULES[kind].actions)
    if given["action"] not in allowed:
        known = ", ".join(allowed) or "none"
        raise ProposalDenied(f"{kind.value} may not propose {given['action']!r:.100}; allowed: {known}")
    if given["deployment_id"] != str(deployment_id):
        raise ProposalDenied(f"the only target of this task is deployment {deployment_id}")
    reason = given["reason"]
    if not isinstance(reason, str) or not reason.strip() or len(reason) > LONGEST_REASON:
        raise ProposalDenied(f"`reason` must be a text of 1 to {LONGEST_REASON} characters")
    return Action(ActionKind(given["action"]), deployment_id, reason.replace("\x00", "").strip())


def digest_of(
    *,
    task_id: UUID,
    kind: AiTaskKind,
    deployment_id: UUID,
    author: str,
    revision: int,
    text: str,
    actions: Sequence[Json],
    expires_at: datetime,
) -> str:
    """What an approval is bound to: the proposal, whose it is, and how long it holds."""
    return digest(
        {
            "task": str(task_id),
            "kind": kind.value,
            "deployment": str(deployment_id),
            "author": author,
            "revision": revision,
            "text": text,
            "actions": list(actions),
            "expires_at": expires_at.timestamp(),
        }
    )
