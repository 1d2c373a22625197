# SPDX-License-Identifier: Apache-2.0
"""What was said before, as the model is told of it: within its part of the room, its older part in short."""

import json
from collections.abc import Sequence
from typing import Any

from app.ai import guardrails, room
from app.ai.contract import Ask, ModelTurn, StopReason, Turn, UserTurn
from app.ai.prompts import load
from app.domain import conversations
from app.domain.conversations import Said
from app.models import MessageRole
from app.resilience.errors import CallError, JobAction
from workers.asking import Line, Over, assistant_of

SUMMARY = load("summary.v1")
HISTORY_SHARE = 0.4
"""Part of the room that what was said before may take; what is more is summarised."""
KEPT_AS_SAID = 2
"""The newest messages before the question are never summarised."""
MOST_PIECES = 4
"""How many questions of one answer may go into summaries; what they do not reach is left out for now."""
CUT_OFF = " (cut off here)"


class History:
    """What was said before a question. ``most`` is the number of tokens it may take."""

    def __init__(self, line: Line, turn: conversations.Turn, most: int) -> None:
        self._line = line
        self._conversation_id = turn.conversation_id
        self._question = turn.history[-1]
        self._said: Sequence[Said] = turn.history[:-1]
        self._summary = turn.summary
        self._most = most

    async def turns(self) -> tuple[Turn, ...]:
        """All of it and the question; what is too much is summarised, or left out, which is told.

        Raises:
            Over, CallError: as ``Line.ask``, where asking for the answer will not go better.
        """
        for _ in range(MOST_PIECES):
            if self._size() <= self._most or not await self._summarise():
                break
        said = [each for each in self._said if each.content]
        kept = within(said, self._most - guardrails.tokens(self._summary or ""))
        told: list[Turn] = [*kept, turn_of(self._question)]
        if before := introduction(self._summary, len(said) - len(kept)):
            read = [ModelTurn("I have read it.")] if isinstance(told[0], UserTurn) else []
            told = [UserTurn(before), *read, *told]
        return tuple(told)

    def _size(self) -> int:
        return sum(guardrails.tokens(each.content) for each in self._said) + guardrails.tokens(
            self._summary or ""
        )

    async def _summarise(self) -> bool:
        """Let a summary, which is stored, stand for the oldest messages; whether it does."""
        piece, request = self._request(self._said[:-KEPT_AS_SAID])
        short = await self._short(request) if piece else ""
        if not short:
            return False
        async with self._line.job.holding() as session:
            through = piece[-1].sequence
            await conversations.keep_summary(session, self._conversation_id, short, through=through)
        self._said, self._summary = self._said[len(piece) :], short
        return True

    def _request(self, older: Sequence[Said]) -> tuple[Sequence[Said], Ask]:
        """As many messages as fit into one question, each within bounds, with the summary so far."""
        assistant = assistant_of(self._line.job)
        most = room.room(assistant.settings) - guardrails.tokens(SUMMARY.text) - 4 * room.FRAME
        left, told = most - guardrails.tokens(_json(self._summary)), list[dict[str, Any]]()
        for each in older:
            message = {"role": each.role.value, "content": room.cut(each.content, most // 4)}
            message = assistant.redactor.data(message)
            left -= guardrails.tokens(_json(message))
            if left < 0:
                break
            told.append(message)
        question = UserTurn(_json({"summary": self._summary, "messages": told}))
        ask = Ask(SUMMARY.text, (question,), max_output_tokens=assistant.settings.max_output_tokens)
        return older[: len(told)], ask

    async def _short(self, request: Ask) -> str:
        """The summary; empty if there is none to be had."""
        try:
            reply = await self._line.ask(request, prompt=SUMMARY.name)
        except Over as over:
            if over.failure.code != "context_full":
                raise
            return ""
        except CallError as error:
            if error.defers or error.action is not JobAction.FAIL:
                raise
            return ""
        if reply.stop not in {StopReason.END, StopReason.LENGTH}:
            return ""
        short = assistant_of(self._line.job).redactor.text(reply.text).strip()
        return room.cut(short, self._most // 2)


def within(said: Sequence[Said], most: int) -> list[Turn]:
    """The newest of what was said, as far as it fits; a message that would take more than half is cut."""
    kept: list[Turn] = []
    half = most // 2
    for each in reversed(said):
        turn = turn_of(each, room.cut(each.content, half))
        most -= guardrails.tokens(turn.text) + room.FRAME
        if most < 0:
            break
        kept.insert(0, turn)
    return kept


def introduction(summary: str | None, left_out: int) -> str:
    """What stands for the messages before those that are told, a summary being data like any other."""
    told = []
    if summary:
        told.append("Summary of what was said before (data): " + _json(summary))
    if left_out:
        told.append(f"({left_out} messages are left out here: there was no room for them.)")
    return "\n".join(told)


def turn_of(said: Said, content: str | None = None) -> UserTurn | ModelTurn:
    """A message as the model is told of it."""
    content = said.content if content is None else content
    if said.role is MessageRole.USER:
        return UserTurn(content)
    return ModelTurn(content if said.complete else f"{content}{CUT_OFF}")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
