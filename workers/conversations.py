# SPDX-License-Identifier: Apache-2.0
"""The job that answers one message. A run that follows another goes on after its last finished round."""

import time
from typing import Any
from uuid import UUID

from app.ai import guardrails, room
from app.ai.contract import Reply
from app.ai.guardrails import Unfolding
from app.ai.prompts import load
from app.domain import conversations
from app.models.base import Json
from workers.asking import Line, assistant_of
from workers.assistant import Talk, read_in
from workers.context import Done, Job, Outcome
from workers.history import HISTORY_SHARE, History

CONVERSATION = load("conversation.v1")
MOST_IDS = 1000


async def process_ai_conversation(job: Job) -> Outcome:
    """Answer one message, within the two minutes that somebody waits for it; ends with what there is then.

    Raises:
        Over, CallError: as ``Line.ask``; whoever writes the operation's end breaks the answer off with it.
    """
    assistant_of(job)
    message_id = UUID(job.claimed.subject.id)
    async with job.holding() as session:
        turn = await conversations.begin_turn(session, message_id, now=job.runtime.clock())
    if turn is None:
        return Done()
    until = min(job.soft_deadline, time.monotonic() + turn.left.total_seconds())
    answer = Answer(job, turn, until)
    reply = await answer.write()
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
        self._begin_text()
        self._talk = Talk(
            line=Line(job, turn.caller_id, until),
            prompt=CONVERSATION,
            turns=(),
            steps=list(turn.steps),
            on_text=self._keep_text,
            on_step=self._keep_step,
        )

    async def write(self) -> Reply:
        """All of it. Errors as ``Talk.answer``."""
        whole = room.room(self._job.runtime.assistant.settings, self._talk.tools())
        history = History(self._talk.line, self._turn, int(whole * HISTORY_SHARE))
        self._talk.turns = await history.turns()
        return await self._talk.answer()

    def columns(self, reply: Reply) -> dict[str, Any]:
        """A finished answer as it is stored."""
        cited, unknown = guardrails.citations(reply.text, read_in(self._talk.steps))
        content = self._show(self._job.runtime.assistant.redactor.text(reply.text))
        return {
            "content": content,
            "draft": self._draft,
            "citations": [{"id": each} for each in cited[:MOST_IDS]],
            "unverified": [{"id": each} for each in unknown[:MOST_IDS]],
            "stop_reason": reply.stop.value,
            "model": reply.model,
        }

    def _begin_text(self) -> None:
        self._shown, self._text = "", Unfolding(self._job.runtime.assistant.redactor)

    def _show(self, shown: str) -> str:
        if not shown.startswith(self._shown):  # what was cut out of it is not where it was
            self._draft += 1
        self._shown = shown
        return shown

    async def _keep_text(self, text: str) -> None:
        shown = self._show(self._text.text(text))
        async with self._job.holding() as session:
            await conversations.keep_text(session, self._turn.message_id, shown, draft=self._draft)

    async def _keep_step(self, steps: list[Json]) -> None:
        self._draft += 1
        self._begin_text()
        async with self._job.holding() as session:
            await conversations.keep_step(session, self._turn.message_id, steps, draft=self._draft)
