# SPDX-License-Identifier: Apache-2.0
"""How the model is asked: round by round, with tools that only read, within limits that are counted here.

Nothing it says does anything. What it asks for is looked up in the table of tools, checked, and answered as
far as whoever is answered may see it; anything else is denied, and it is told so.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from app import telemetry
from app.ai import guardrails
from app.ai.contract import (
    Ask,
    ModelTurn,
    Reply,
    StopReason,
    Tool,
    ToolCall,
    ToolResult,
    ToolTurn,
    Turn,
    UserTurn,
)
from app.ai.guardrails import Redactor
from app.ai.prompts import Prompt
from app.ai.tools import INQUIRIES, Arguments, BadArguments
from app.connectors.contract import Plane
from app.domain import accounts, inquiries
from app.domain.inquiries import Sight
from app.errors import ControlPlaneError, Unavailable
from app.models.base import Json
from app.resilience.errors import CallError
from app.resilience.status import BreakerState
from app.runtime import Runtime
from workers.asking import Line, OnText, Over, heard

MOST_ROUNDS, MOST_CALLS = 10, 8
"""How often the model may ask for something in one answer, and for how much at once."""

log = telemetry.logger(__name__)


Extra = Callable[[ToolCall], Awaitable[ToolResult]]
"""A tool of one kind of work only, beside those that look."""


@dataclass
class Talk:
    """One answer. ``steps`` are its finished rounds, as they are stored.

    ``on_text`` stores the text of the round as far as it has come, ``on_step`` a round that is finished.
    """

    line: Line
    prompt: Prompt
    turns: Sequence[Turn]
    steps: list[Json]
    on_step: Callable[[list[Json]], Awaitable[None]]
    on_text: OnText = heard
    extra: Mapping[str, tuple[Tool, Extra]] = field(default_factory=dict)
    finished: Callable[[], bool] = lambda: False

    async def answer(self) -> Reply:
        """Ask until there is an answer that asks for nothing, or nothing more is wanted.

        Raises:
            Over, CallError: as ``Line.ask``.
        """
        while True:
            reply = await self.line.ask(self.question(), prompt=self.prompt.name, on_text=self.on_text)
            if not reply.calls or reply.stop is StopReason.REFUSAL:
                return reply
            if sum(bool(step["calls"]) for step in self.steps) >= MOST_ROUNDS:
                raise Over(
                    "too_many_rounds", f"the model asked for more {MOST_ROUNDS} times, and has not answered"
                )
            results = [await self._result(number, call) for number, call in enumerate(reply.calls)]
            await self._keep(step_of(without_secrets(reply, self._redactor), results))
            if self.finished():
                return reply

    async def remind(self, reply: Reply, words: str) -> None:
        """After what it has said, and as a round of its own, so that no worker says it twice."""
        await self._keep(
            step_of(without_secrets(replace(reply, calls=()), self._redactor), []) | {"told": words}
        )

    async def _keep(self, step: Json) -> None:
        self.steps.append(step)
        await self.on_step(self.steps)

    @property
    def _redactor(self) -> Redactor:
        return self.line.job.runtime.assistant.redactor

    def question(self) -> Ask:
        """What the model is asked now."""
        now = self.line.job.runtime.clock().isoformat(timespec="seconds")
        return Ask(
            system=f"{self.prompt.text}\n\nIt is {now}.",
            turns=(*self.turns, *turns_of(self.steps)),
            tools=self.tools(),
            max_output_tokens=self.line.job.runtime.assistant.settings.max_output_tokens,
        )

    def tools(self) -> tuple[Tool, ...]:
        """What it may ask for."""
        looking = (declared.tool() for declared in INQUIRIES.values())
        return (*looking, *(tool for tool, _ in self.extra.values()))

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
        return guardrails.envelope(call.id, call.name, self._redactor.data(found))

    async def _look(self, name: str, asked: Arguments) -> Json:
        """A tool's answer, as far as whoever is answered may see it."""
        runtime = self.line.job.runtime
        async with runtime.transaction() as session:
            actor = await accounts.current(session, self.line.caller_id, runtime.clock())
            if not inquiries.may_look(actor):
                detail = "whoever asked may not read any more: the token expired or was revoked"
                raise Over("forbidden", detail, error_class="policy_violation")
            if name in inquiries.ANSWERS:
                return await inquiries.answer(session, name, asked, Sight(runtime.clock(), runtime.limits))
        return await breakers(runtime) if name == "list_breakers" else planes(runtime)


def denied(call: ToolCall, reason: str, why: str) -> ToolResult:
    """Tell the model, and count it: what it may not, it asked for."""
    telemetry.ai_denied.labels(reason).inc()
    log.warning("ai_denied", reason=reason, tool=call.name[:100])
    return guardrails.refusal(call.id, call.name, why)


async def breakers(runtime: Runtime) -> Json:
    """Services that callers are kept away from, as all processes see them.

    Raises:
        Unavailable: what they have in common cannot be read now.
    """
    try:
        statuses = await runtime.breakers.statuses()
    except CallError as error:
        raise Unavailable("the breakers cannot be read now") from error
    shown = [
        {
            "service": each.service,
            "state": each.state,
            "retry_at": each.retry_at,
            "last_error": each.last_error,
        }
        for each in statuses
        if each.state is not BreakerState.CLOSED
    ]
    return {
        "breakers": [
            {name: None if value is None else str(value) for name, value in each.items()} for each in shown
        ]
    }


def planes(runtime: Runtime) -> Json:
    """The device managers as this installation has them."""
    missing = runtime.unconfigured
    return {
        "planes": [
            {
                "plane": plane.value,
                "configured": plane in runtime.connectors,
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
    """Finished rounds as the model is told of them; one that it was reminded after has no calls."""
    turns: list[Turn] = []
    for step in steps:
        if step["calls"] or step["text"].strip():
            turns.append(ModelTurn(step["text"], tuple(ToolCall(**call) for call in step["calls"])))
        if "told" in step:
            turns.append(UserTurn(step["told"]))
        else:
            turns.append(ToolTurn(tuple(ToolResult(**result) for result in step["results"])))
    return turns


def read_in(steps: Sequence[Json]) -> list[str]:
    """What the tools gave in these rounds; refusals are not among it."""
    return [result["content"] for step in steps for result in step["results"] if not result["is_error"]]
