# SPDX-License-Identifier: Apache-2.0
"""The job that answers one message. A run that follows another goes on after its last finished round."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from app.ai import guardrails
from app.ai.contract import Ask, ModelTurn, Reply, StopReason, Turn, UserTurn
from app.ai.prompts import load
from app.domain import conversations
from app.domain.conversations import Said
from app.models import MessageRole
from app.models.base import Json
from workers.assistant import Over, Talk, ask_model, assistant_of, heard, read_in
from workers.context import Done, Job, Outcome

CONVERSATION, SUMMARY = load("conversation.v1"), load("summary.v1")
HISTORY_SHARE = 0.4
"""Part of the context that what was said before may take; what is more is summarised."""
MOST_IDS = 1000
KEPT_AS_SAID = 3
"""The newest messages, the question among them, are never summarised."""


async def process_ai_conversation(job: Job) -> Outcome:
    """Answer one message, within the two minutes that somebody waits for it; ends with what there is then."""
    message_id = UUID(job.claimed.subject.id)
    async with job.holding() as session:
        turn = await conversations.begin_turn(session, message_id, now=job.runtime.clock())
    if turn is None:
        return Done()
    assistant_of(job)
    until = min(job.soft_deadline, time.monotonic() + turn.left.total_seconds())
    answer = Answer(job, turn, until)
    try:
        reply = await answer.write()
    except Over as over:
        async with job.holding() as session:
            await conversations.break_off(session, message_id, over.failure, now=job.runtime.clock())
        return Done({"outcome": "incomplete", "code": over.failure.code})
    async with job.holding() as session:
        await conversations.complete(session, message_id, now=job.runtime.clock(), **answer.columns(reply))
    return Done({"outcome": "complete", "stop_reason": reply.stop.value})


class Answer:
    """An answer that is being written. ``_draft`` is the number of the text that grows now, ``_shown`` it.

    A text that does not go on where the one before ended is another draft: readers begin anew.
    """

    def __init__(self, job: Job, turn: conversations.Turn, until: float) -> None:
        self._job = job
        self._turn = turn
        self._draft = turn.draft + 1
        self._shown = ""
        self._talk = Talk(
            job=job,
            caller_id=turn.caller_id,
            prompt=CONVERSATION,
            turns=(),
            until=until,
            steps=list(turn.steps),
            on_text=self._keep_text,
            on_step=self._keep_step,
        )

    async def write(self) -> Reply:
        """All of it. Errors as ``Talk.answer``."""
        history: Sequence[Said] = self._turn.history
        summary = self._turn.summary
        if is_long(history, summary, self._job):
            history, summary = await self._summarise(history, summary)
        self._talk.turns = turns_of(history, summary)
        return await self._talk.answer()

    def columns(self, reply: Reply) -> dict[str, Any]:
        """A finished answer as it is stored."""
        cited, unknown = guardrails.citations(reply.text, read_in(self._talk.steps))
        content = self._show(reply.text)
        return {
            "content": content,
            "draft": self._draft,
            "citations": [{"id": each} for each in cited[:MOST_IDS]],
            "unverified": [{"id": each} for each in unknown[:MOST_IDS]],
            "stop_reason": reply.stop.value,
            "model": reply.model,
        }

    def _show(self, text: str) -> str:
        shown = self._job.runtime.assistant.redactor.text(text)
        if not shown.startswith(self._shown):  # what was cut out of it is not where it was
            self._draft += 1
        self._shown = shown
        return shown

    async def _keep_text(self, text: str) -> None:
        shown = self._show(text)
        async with self._job.holding() as session:
            await conversations.keep_text(session, self._turn.message_id, shown, draft=self._draft)

    async def _keep_step(self, steps: list[Json]) -> None:
        self._draft, self._shown = self._draft + 1, ""
        async with self._job.holding() as session:
            await conversations.keep_step(session, self._turn.message_id, steps, draft=self._draft)

    async def _summarise(
        self, history: Sequence[Said], summary: str | None
    ) -> tuple[Sequence[Said], str | None]:
        """The older part in few words, which are stored and stand for it from now on.

        Without such words it is told as it was said.
        """
        older, newer = history[:-KEPT_AS_SAID], history[-KEPT_AS_SAID:]
        reply = await ask_model(self._apart(), self._request(older, summary), prompt=SUMMARY.name)
        short = self._job.runtime.assistant.redactor.text(reply.text).strip()
        if not short or reply.stop not in {StopReason.END, StopReason.LENGTH}:
            return history, summary
        async with self._job.holding() as session:
            through = older[-1].sequence
            await conversations.keep_summary(session, self._turn.conversation_id, short, through=through)
        return newer, short

    def _apart(self) -> Talk:
        """A question beside the answer: nobody reads what is said to it."""
        return replace(self._talk, on_text=heard)

    def _request(self, older: Sequence[Said], summary: str | None) -> Ask:
        assistant = self._job.runtime.assistant
        said = [{"role": each.role, "content": each.content} for each in older]
        told = assistant.redactor.data({"summary": summary, "messages": said})
        turn = UserTurn(json.dumps(told, ensure_ascii=False))
        return Ask(SUMMARY.text, (turn,), max_output_tokens=assistant.settings.max_output_tokens)


def is_long(history: Sequence[Said], summary: str | None, job: Job) -> bool:
    """Whether what was said is to be summarised before the model is asked."""
    size = sum(guardrails.tokens(each.content) for each in history) + guardrails.tokens(summary or "")
    budget = job.runtime.assistant.settings.context_tokens * HISTORY_SHARE
    return len(history) > KEPT_AS_SAID and size > budget


def turns_of(history: Sequence[Said], summary: str | None) -> tuple[Turn, ...]:
    """What was said as the model is told of it; a summary is data like any other."""
    turns: list[Turn] = []
    if summary:
        turns.append(
            UserTurn("Summary of what was said before (data): " + json.dumps(summary, ensure_ascii=False))
        )
        turns.append(ModelTurn("I have read it."))
    for said in history:
        if said.role is MessageRole.USER:
            turns.append(UserTurn(said.content))
        elif said.content:
            turns.append(ModelTurn(said.content if said.complete else f"{said.content} (cut off here)"))
    return tuple(turns)
