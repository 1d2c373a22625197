# SPDX-License-Identifier: Apache-2.0
"""What the assistant may propose: a closed set of actions, with limits. Pure.

What is not declared here is denied, whatever the model, its prompt or the data it read may say. Nothing here
sets a risk score, decides on an approval, promotes or deploys.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any
from uuid import UUID

from app.ai.guardrails import visible
from app.domain.digests import digest
from app.models import AiTaskKind
from app.models.base import Json

LONGEST_TEXT, LONGEST_REASON = 20_000, 1_000
UNPAIRED = re.compile("[\ud800-\udfff]")
"""Halves of characters, which cannot be stored."""


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
    actions = given["actions"]
    if not isinstance(actions, list) or len(actions) > RULES[kind].most:
        raise ProposalDenied(f"{kind.value} may propose at most {RULES[kind].most} actions")
    checked = tuple(_action(kind, deployment_id, action) for action in actions)
    return Proposal(_text("text", given["text"], LONGEST_TEXT), _within(kind, deployment_id, checked))


def stored(kind: AiTaskKind, deployment_id: UUID, actions: Any) -> tuple[Action, ...]:
    """The actions of a proposal as they were stored, if they may still be its.

    Raises:
        ProposalDenied: nobody stored them so, or the rules do not have them.
    """
    if not isinstance(actions, list):
        raise ProposalDenied("actions are a list")
    try:
        read = tuple(Action.from_json(action) for action in actions)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProposalDenied("an action is not what was declared") from error
    if [action.to_json() for action in read] != actions:
        raise ProposalDenied("an action is written in another way than it was")
    return _within(kind, deployment_id, read)


def _within(kind: AiTaskKind, deployment_id: UUID, actions: tuple[Action, ...]) -> tuple[Action, ...]:
    """The same, if the rules of the kind have them."""
    rules = RULES[kind]
    if len(actions) > rules.most or len({action.kind for action in actions}) != len(actions):
        raise ProposalDenied(f"at most {rules.most} actions may be proposed, and each once")
    if any(action.kind not in rules.actions or action.deployment_id != deployment_id for action in actions):
        raise ProposalDenied("an action is none of this kind of task, or is done to something else")
    return actions


def _action(kind: AiTaskKind, deployment_id: UUID, given: Any) -> Action:
    if not isinstance(given, dict) or set(given) != {"action", "deployment_id", "reason"}:
        raise ProposalDenied("an action is an object with just `action`, `deployment_id` and `reason`")
    allowed = sorted(action.value for action in RULES[kind].actions)
    if given["action"] not in allowed:
        known = ", ".join(allowed) or "none"
        raise ProposalDenied(f"{kind.value} may not propose {given['action']!r:.100}; allowed: {known}")
    if given["deployment_id"] != str(deployment_id):
        raise ProposalDenied(f"the only target of this task is deployment {deployment_id}")
    return Action(
        ActionKind(given["action"]), deployment_id, _text("reason", given["reason"], LONGEST_REASON)
    )


def _text(name: str, given: Any, longest: int) -> str:
    """A text that can be stored, without what nobody sees: who decides is to see what stands there."""
    if not isinstance(given, str) or UNPAIRED.search(given):
        raise ProposalDenied(f"`{name}` must be a text")
    text = visible(given).strip()
    if not text or len(text) > longest:
        raise ProposalDenied(f"`{name}` must be a text of 1 to {longest} characters")
    return text


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
