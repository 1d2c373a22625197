# SPDX-License-Identifier: Apache-2.0
"""How the model is asked: round by round, with tools that only read, within limits that are counted here.

Nothing it says does anything. What it asks for is looked up in the table of tools, checked, and answered as
far as whoever is answered may see it; anything else is denied, and it is told so.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from uuid import UUID

from pydantic_core import to_json

from app import telemetry
from app.ai import guardrails
from app.ai.contract import (
    SERVICE,
    Ask,
    ModelTurn,
    Reply,
    StopReason,
    Tool,
    ToolCall,
    ToolResult,
    ToolTurn,
    Turn,
)
from app.ai.guardrails import LONGEST_ANSWER, Redactor
from app.ai.prompts import Prompt
from app.ai.settings import WHAT_TO_SET
from app.ai.tools import INQUIRIES, Arguments, BadArguments
from app.connectors.contract import Plane
from app.domain import accounts, ai_calls, digests, inquiries
from app.domain.inquiries import Sight
from app.domain.operations import Failure
from app.errors import AiLimitReached, AiNotConfigured, ControlPlaneError
from app.models.base import Json
from app.resilience.errors import AttemptTimeout, CallError, NotConfigured
from app.resilience.status import BreakerState
from app.runtime import Assistant
from workers.context import Job

MOST_ROUNDS, MOST_CALLS = 10, 8
"""How often the model may ask for something in one answer, and for how much at once."""
FLUSH_EVERY = 0.25
"""Seconds between two times that the text so far is stored, and shown to whoever listens."""
WHOLE_CONTEXT = 0.9
"""Part of the context that a question may fill; counting is an estimate."""

log = telemetry.logger(__name__)


class Over(Exception):
    """The answer ends here, without its end; what there is of it is kept."""

    def __init__(self, code: str, detail: str, *, error_class: str = "permanent") -> None:
        super().__init__(detail)
        self.failure = Failure(error_class, code, detail, SERVICE)


class NoModel(NotConfigured):
    """No language model is configured where the work runs; it waits for a worker that has one."""

    code = AiNotConfigured.code


Extra = Callable[[ToolCall], Awaitable[ToolResult]]
"""A tool of one kind of work only, beside those that look."""


async def heard(_: str) -> None:
    """Nobody listens while it is written."""


@dataclass
class Talk:
    """One answer. ``steps`` are its finished rounds, as they are stored; ``until`` on ``time.monotonic()``.

    ``on_text`` stores the text of the round as far as it has come, ``on_step`` a round that is finished.
    """

    job: Job
    caller_id: UUID
    prompt: Prompt
    turns: Sequence[Turn]
    until: float
    steps: list[Json]
    on_step: Callable[[list[Json]], Awaitable[None]]
    on_text: Callable[[str], Awaitable[None]] = heard
    extra: Mapping[str, tuple[Tool, Extra]] = field(default_factory=dict)
    finished: Callable[[], bool] = lambda: False

    async def answer(self) -> Reply:
        """Ask until there is an answer that asks for nothing, or nothing more is wanted.

        Raises:
            Over: a limit was reached.
            CallError: the provider does not answer; see ``Provider.answer``.
        """
        while True:
            reply = await ask_model(self, self.question(), prompt=self.prompt.name)
            if not reply.calls or reply.stop is StopReason.REFUSAL:
                return reply
            if len(self.steps) >= MOST_ROUNDS:
                raise Over(
                    "too_many_rounds", f"the model asked for more {MOST_ROUNDS} times, and has not answered"
                )
            results = [await self._result(number, call) for number, call in enumerate(reply.calls)]
            self.steps.append(step_of(without_secrets(reply, self.job.runtime.assistant.redactor), results))
            await self.on_step(self.steps)
            if self.finished():
                return reply

    def question(self) -> Ask:
        """What the model is asked now."""
        tools = [declared.tool() for declared in INQUIRIES.values()]
        tools += [tool for tool, _ in self.extra.values()]
        now = self.job.runtime.clock().isoformat(timespec="seconds")
        return Ask(
            system=f"{self.prompt.text}\n\nIt is {now}.",
            turns=(*self.turns, *turns_of(self.steps)),
            tools=tuple(tools),
            max_output_tokens=self.job.runtime.assistant.settings.max_output_tokens,
        )

    async def _result(self, number: int, call: ToolCall) -> ToolResult:
        """What the model gets for a call, whatever it is: an answer, or why there is none."""
        if number >= MOST_CALLS:
            return denied(call, "too_many_calls", f"at most {MOST_CALLS} calls at once")
        if call.name in self.extra:
            return await self.extra[call.name][1](call)
        declared = INQUIRIES.get(call.name)
        if declared is None:
            return denied(call, "undeclared_tool", f"there is no tool {call.name[:100]!r}; nothing was done")
        try:
            found = await self._look(call.name, declared.parse(call))
        except BadArguments as error:
            return denied(call, "bad_arguments", str(error))
        except ControlPlaneError as error:
            return guardrails.refusal(call.id, call.name, error.detail)
        return guardrails.envelope(call.id, call.name, self.job.runtime.assistant.redactor.data(found))

    async def _look(self, name: str, asked: Arguments) -> Json:
        """A tool's answer, as far as whoever is answered may see it."""
        runtime = self.job.runtime
        async with runtime.transaction() as session:
            actor = await accounts.current(session, self.caller_id, runtime.clock())
            if not inquiries.may_look(actor):
                detail = "whoever asked may not read any more: the token expired or was revoked"
                raise Over("forbidden", detail, error_class="policy_violation")
            if name in inquiries.ANSWERS:
                return await inquiries.answer(session, name, asked, Sight(runtime.clock(), runtime.limits))
        return await breakers(self.job) if name == "list_breakers" else planes(self.job)


def denied(call: ToolCall, reason: str, why: str) -> ToolResult:
    """Tell the model, and count it: what it may not, it asked for."""
    telemetry.ai_denied.labels(reason).inc()
    log.warning("ai_denied", reason=reason, tool=call.name[:100])
    return guardrails.refusal(call.id, call.name, why)


async def breakers(job: Job) -> Json:
    """Services that callers are kept away from, as all processes see them."""
    shown = [
        {
            "service": each.service,
            "state": each.state,
            "retry_at": each.retry_at,
            "last_error": each.last_error,
        }
        for each in await job.runtime.breakers.statuses()
        if each.state is not BreakerState.CLOSED
    ]
    return {
        "breakers": [
            {name: None if value is None else str(value) for name, value in each.items()} for each in shown
        ]
    }


def planes(job: Job) -> Json:
    """The device managers as this installation has them."""
    missing = job.runtime.unconfigured
    return {
        "planes": [
            {
                "plane": plane.value,
                "configured": plane in job.runtime.connectors,
                "missing": missing.get(plane),
            }
            for plane in Plane
        ]
    }


def step_of(reply: Reply, results: Sequence[ToolResult]) -> Json:
    """A finished round as it is stored."""
    calls = [asdict(call) for call in reply.calls]
    return {"text": reply.text, "calls": calls, "results": [asdict(result) for result in results]}


def without_secrets(reply: Reply, redactor: Redactor) -> Reply:
    """What the model said, as it is stored: it may have made one up."""
    calls = tuple(replace(call, arguments=redactor.json(call.arguments)) for call in reply.calls)
    return replace(reply, text=redactor.text(reply.text), calls=calls)


def turns_of(steps: Sequence[Json]) -> list[Turn]:
    """Finished rounds as the model is told of them."""
    turns: list[Turn] = []
    for step in steps:
        turns.append(ModelTurn(step["text"], tuple(ToolCall(**call) for call in step["calls"])))
        turns.append(ToolTurn(tuple(ToolResult(**result) for result in step["results"])))
    return turns


def read_in(steps: Sequence[Json]) -> list[str]:
    """What the tools gave in these rounds; refusals are not among it."""
    return [result["content"] for step in steps for result in step["results"] if not result["is_error"]]


def assistant_of(job: Job) -> Assistant:
    """The language model.

    Raises:
        NoModel: this worker has none, whatever the API has.
    """
    if job.runtime.model is None:
        raise NoModel(f"this worker has no language model configured: {WHAT_TO_SET}", service=SERVICE)
    return job.runtime.model


async def ask_model(talk: Talk, question: Ask, *, prompt: str) -> Reply:
    """One question, without secrets, within the caller's limits, written down with digests and cost."""
    assistant = assistant_of(talk.job)
    ask = assistant.redactor.ask(question)
    size = sum(guardrails.tokens(str(part)) for part in (ask.system, ask.tools, *ask.turns))
    if size + ask.max_output_tokens > assistant.settings.context_tokens * WHOLE_CONTEXT:
        raise Over("context_full", f"about {size} tokens are more than the model is to be asked")
    if time.monotonic() >= talk.until:
        raise _out_of_time()
    call_id, began = await _begin(talk, ask, prompt, size), time.monotonic()
    text = Growing(talk.on_text)
    try:
        reply = guardrails.held(await _streamed(talk, assistant, ask, text))
    except (Over, CallError, asyncio.CancelledError) as error:
        if isinstance(error, CallError):  # providers repeat what they were sent
            error.detail = assistant.redactor.text(error.detail)
        await _end(talk, call_id, began, _broken_off(error, text, size))
        raise
    await _end(talk, call_id, began, _ended(reply, size))
    return reply


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


async def _begin(talk: Talk, ask: Ask, prompt: str, size: int) -> UUID:
    job, assistant = talk.job, assistant_of(talk.job)
    now = job.runtime.clock()
    async with job.holding() as session:
        actor = await accounts.current(session, talk.caller_id, now)
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


def _plain(value: Any) -> dict[str, Any]:
    return {"content": to_json(asdict(value)).decode()}


async def _end(talk: Talk, call_id: UUID, began: float, facts: dict[str, Any]) -> None:
    """Whoever holds the operation by now: it was asked, and it cost what it cost."""
    runtime, provider = talk.job.runtime, assistant_of(talk.job).provider
    telemetry.ai_calls.labels(provider.name, facts.get("error_code") or facts["stop_reason"]).inc()
    telemetry.ai_seconds.labels(provider.name).observe(time.monotonic() - began)
    for direction in ("input", "output"):
        telemetry.ai_tokens.labels(provider.name, direction).inc(facts[f"{direction}_tokens"])
    async with runtime.transaction(guarded=False) as session:
        await ai_calls.end(session, call_id, now=runtime.clock(), **facts)


async def _streamed(talk: Talk, assistant: Assistant, ask: Ask, text: "Growing") -> Reply:
    """The answer, its text stored as it comes; what came before it broke off is stored too."""
    try:
        async with (
            asyncio.timeout(talk.until - time.monotonic()) as limit,
            aclosing(assistant.provider.answer(ask)) as pieces,
        ):
            async for piece in pieces:
                if isinstance(piece, Reply):
                    return piece
                await text.add(piece)
    except TimeoutError as error:
        if not limit.expired():  # somebody else's limit, such as the database's
            raise
        await text.store()
        raise _out_of_time() from error
    except (CallError, Over):
        await text.store()
        raise
    raise Over("no_answer", "the model's answer had no end")


class Growing:
    """A text that is stored as it grows, a few times a second at most. ``whole``: as far as it has come."""

    def __init__(self, on_text: Callable[[str], Awaitable[None]]) -> None:
        self._on_text = on_text
        self.whole = self._stored = ""
        self._stored_at = time.monotonic()

    async def add(self, piece: str) -> None:
        """Some more of it; stored without its last word, which may be half of one, or of a secret.

        Raises:
            Over: it is longer than any answer.
        """
        self.whole += guardrails.storable(piece)
        if len(self.whole) > LONGEST_ANSWER:
            self.whole = self.whole[:LONGEST_ANSWER]
            raise Over("answer_too_long", f"the answer is longer than {LONGEST_ANSWER} characters")
        if time.monotonic() - self._stored_at >= FLUSH_EVERY:
            await self._store(guardrails.settled(self.whole))

    async def store(self) -> None:
        """All there is, unless it is stored already."""
        await self._store(self.whole)

    async def _store(self, text: str) -> None:
        if text != self._stored:
            await self._on_text(text)
            self._stored, self._stored_at = text, time.monotonic()
