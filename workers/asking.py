# SPDX-License-Identifier: Apache-2.0
"""One question to the model: without secrets, within its room and the caller's limits, written down."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from pydantic_core import to_json

from app import telemetry
from app.ai import guardrails, room
from app.ai.contract import SERVICE, Ask, Reply
from app.ai.guardrails import LONGEST_ANSWER
from app.ai.settings import WHAT_TO_SET
from app.domain import accounts, ai_calls, digests
from app.domain.operations import Failure
from app.errors import AiLimitReached, AiNotConfigured
from app.resilience.errors import AttemptTimeout, CallError, NotConfigured
from app.runtime import Assistant
from workers.context import Job, WorkFailed

FLUSH_EVERY = 0.25
"""Seconds between two times that the text so far is stored, and shown to whoever listens."""
LAST_WORD = 1.0
"""Seconds in which a run that is stopped may write down how its question ended."""

log = telemetry.logger(__name__)


class Over(WorkFailed):
    """The answer ends here, without its end; what there is of it is kept."""

    def __init__(self, code: str, detail: str, *, error_class: str = "permanent") -> None:
        super().__init__(Failure(error_class, code, detail, SERVICE))


class NoModel(NotConfigured):
    """No language model is configured where the work runs; it waits for a worker that has one."""

    code = AiNotConfigured.code


OnText = Callable[[str], Awaitable[None]]


async def heard(_: str) -> None:
    """Nobody listens while it is written."""


def assistant_of(job: Job) -> Assistant:
    """The language model.

    Raises:
        NoModel: this worker has none, whatever the API has.
    """
    if job.runtime.model is None:
        raise NoModel(f"this worker has no language model configured: {WHAT_TO_SET}", service=SERVICE)
    return job.runtime.model


@dataclass(frozen=True, slots=True)
class Line:
    """The way to the model for one caller; ``until`` on ``time.monotonic()``."""

    job: Job
    caller_id: UUID
    until: float

    async def ask(self, question: Ask, *, prompt: str, on_text: OnText = heard) -> Reply:
        """The answer; ``on_text`` stores its text as far as it has come, a few times a second.

        Raises:
            Over: a limit was reached.
            CallError: the provider does not answer; see ``Provider.answer``.
        """
        assistant = assistant_of(self.job)
        ask = _within_its_room(assistant, question)
        size = room.size_of(ask) + room.size_of_tools(ask.tools)
        if time.monotonic() >= self.until:
            raise _out_of_time()
        call_id, began = await self._begin(ask, prompt, size), time.monotonic()
        text = Growing(on_text)
        try:
            reply = guardrails.held(await self._streamed(assistant, ask, text))
        except asyncio.CancelledError as error:
            await self._end_at_once(call_id, began, _broken_off(error, text, size))
            raise
        except (Over, CallError) as error:
            if isinstance(error, CallError):  # providers repeat what they were sent
                error.detail = assistant.redactor.text(error.detail)
            await self._end(call_id, began, _broken_off(error, text, size))
            raise
        await self._end(call_id, began, _ended(reply, size))
        return reply

    async def _begin(self, ask: Ask, prompt: str, size: int) -> UUID:
        job, assistant = self.job, assistant_of(self.job)
        now = job.runtime.clock()
        async with job.holding() as session:
            actor = await accounts.current(session, self.caller_id, now)
            if actor is None:
                detail = "the token of whoever asked expired or was revoked"
                raise Over("forbidden", detail, error_class="policy_violation")
            try:
                await ai_calls.check_tokens(session, actor.name, assistant.allowance, now=now)
            except AiLimitReached as error:
                raise Over(error.code, error.detail, error_class="policy_violation") from error
            return await ai_calls.begin(
                session,
                operation_id=job.claimed.id,
                actor=actor.name,
                now=now,
                provider=assistant.provider.name,
                model=assistant.provider.model,
                prompt=prompt,
                input_digest=digests.digest(_plain(ask)),
                input_tokens=size,
            )

    async def _streamed(self, assistant: Assistant, ask: Ask, text: "Growing") -> Reply:
        """The answer, its text stored as it comes; what came before it broke off is stored too."""
        with text.stored_on_time():
            try:
                reply = await self._read(assistant, ask, text)
            except (CallError, Over):
                await text.settle()
                await text.store()
                raise
            await text.settle()
            return reply

    async def _read(self, assistant: Assistant, ask: Ask, text: "Growing") -> Reply:
        try:
            async with (
                asyncio.timeout(self.until - time.monotonic()) as limit,
                aclosing(assistant.provider.answer(ask)) as pieces,
            ):
                async for piece in pieces:
                    if isinstance(piece, Reply):
                        return piece
                    text.add(piece)
        except TimeoutError as error:
            if not limit.expired():  # somebody else's limit
                raise
            raise _out_of_time() from error
        raise Over("no_answer", "the model's answer had no end")

    async def _end(self, call_id: UUID, began: float, facts: dict[str, Any]) -> None:
        """Whoever holds the operation by now: it was asked, and it cost what it cost."""
        runtime, provider = self.job.runtime, assistant_of(self.job).provider
        telemetry.ai_calls.labels(provider.name, facts.get("error_code") or facts["stop_reason"]).inc()
        telemetry.ai_seconds.labels(provider.name).observe(time.monotonic() - began)
        for direction in ("input", "output"):
            telemetry.ai_tokens.labels(provider.name, direction).inc(facts[f"{direction}_tokens"])
        async with runtime.transaction(guarded=False) as session:
            await ai_calls.end(session, call_id, now=runtime.clock(), **facts)

    async def _end_at_once(self, call_id: UUID, began: float, facts: dict[str, Any]) -> None:
        """The same, as far as there is a moment for it: whoever was told to stop is not kept from it."""
        writing = asyncio.create_task(self._end(call_id, began, facts))
        writing.add_done_callback(_noted)
        try:
            await asyncio.wait({writing}, timeout=LAST_WORD)
        finally:
            writing.cancel()


def _noted(written: asyncio.Task[None]) -> None:
    """A question may stay without an end."""
    if written.cancelled() or (error := written.exception()) is not None:
        log.warning("ai_call_without_end", error=None if written.cancelled() else repr(error))


def _within_its_room(assistant: Assistant, question: Ask) -> Ask:
    """The question as it leaves: without secrets, and without what does not fit.

    Raises:
        Over: it does not fit at all.
    """
    ask = assistant.redactor.ask(question)
    most = room.room(assistant.settings, ask.tools)
    fitted = room.fitted(ask, most)
    if fitted is None:
        size = room.size_of(ask)
        raise Over("context_full", f"about {size} tokens are more than the {max(most, 0)} there is room for")
    return fitted


def _out_of_time() -> Over:
    return Over("deadline", "there was no more time for the answer", error_class="transient")


def _broken_off(error: BaseException, text: "Growing", size: int) -> dict[str, Any]:
    """An answer without its end, as it is written down. What was refused at once costs nothing."""
    code = "cancelled"
    if isinstance(error, Over | CallError):
        code = error.failure.code if isinstance(error, Over) else error.code
    spent = bool(text.whole) or isinstance(error, AttemptTimeout) or not isinstance(error, CallError)
    written = guardrails.tokens(text.whole) if text.whole else 0
    return {"error_code": code, "input_tokens": size if spent else 0, "output_tokens": written}


def _ended(reply: Reply, size: int) -> dict[str, Any]:
    """A whole answer, as it is written down."""
    counted = reply.usage
    written = reply.text + "".join(call.name + call.arguments for call in reply.calls)
    return {
        "input_tokens": counted.input_tokens if counted else size,
        "output_tokens": counted.output_tokens if counted else guardrails.tokens(written),
        "stop_reason": reply.stop.value,
        "model": reply.model,
        "output_digest": digests.digest(_plain(reply)),
    }


def _plain(value: Any) -> dict[str, Any]:
    return {"content": to_json(asdict(value)).decode()}


class Growing:
    """A text that is stored as it grows, a few times a second at most, without its writer waiting for it."""

    def __init__(self, on_text: OnText) -> None:
        self._on_text = on_text
        self._pieces: list[str] = []
        self._length = 0
        self._stored = ""
        self._stored_at = time.monotonic()
        self._news = asyncio.Event()
        self._timer: asyncio.Task[None] | None = None
        self._storing = asyncio.Lock()

    @property
    def whole(self) -> str:
        """As far as it has come."""
        self._pieces[:] = ["".join(self._pieces)]
        return self._pieces[0]

    def add(self, piece: str) -> None:
        """Some more of it; raises what kept it from being stored, too.

        Raises:
            Over: it is longer than any answer.
        """
        if self._timer is not None and self._timer.done():
            self._timer.result()
        told = guardrails.storable(piece)[: LONGEST_ANSWER - self._length + 1]
        self._length += len(told)
        if self._length > LONGEST_ANSWER:
            self._pieces.append(told[:-1])
            raise Over("answer_too_long", f"the answer is longer than {LONGEST_ANSWER} characters")
        self._pieces.append(told)
        self._news.set()

    @contextmanager
    def stored_on_time(self) -> Iterator[None]:
        """Meanwhile it is stored by a timer: at its time, whether anything more comes or not."""
        self._timer = asyncio.create_task(self._store_on_time())
        try:
            yield
        finally:
            self._timer.cancel()

    async def _store_on_time(self) -> None:
        """Without the last word, which may be half of one, or of a secret."""
        while True:
            await self._news.wait()
            await asyncio.sleep(self._stored_at + FLUSH_EVERY - time.monotonic())
            self._news.clear()
            await self._store(guardrails.settled(self.whole))

    async def settle(self) -> None:
        """Let the timer finish what it stores, and end it; raises what kept it from storing."""
        assert self._timer is not None  # there is one while anything is read
        async with self._storing:
            self._timer.cancel()
        await asyncio.wait({self._timer})
        if not self._timer.cancelled():
            self._timer.result()

    async def store(self) -> None:
        """All there is, unless it is stored already."""
        await self._store(self.whole)

    async def _store(self, text: str) -> None:
        async with self._storing:
            if text != self._stored:
                await self._on_text(text)
                self._stored, self._stored_at = text, time.monotonic()
