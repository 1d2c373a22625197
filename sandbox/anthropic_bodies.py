# SPDX-License-Identifier: Apache-2.0
"""What Anthropic's messages take, and how they refuse what they do not."""

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from starlette.requests import Request

from sandbox.models import deepest, is_place
from sandbox.rest import Body, Refused
from sandbox.scripted_conversation import Asked, Call, Conversation, Result, Said, Turn, Wish


class Text(Body):
    """A block of text."""

    type: Literal["text"]
    text: str
    cache_control: Any = None
    citations: Any = None


class ToolUse(Body):
    """A call as the client repeats it."""

    type: Literal["tool_use"]
    id: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]+$")]
    name: str
    input: dict[str, Any]
    cache_control: Any = None
    caller: Any = None


class ToolResult(Body):
    """What a call gave."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[Text] | None = None
    is_error: bool | None = None
    cache_control: Any = None


Block = Annotated[Text | ToolUse | ToolResult, Field(discriminator="type")]


class Message(Body):
    """One message of either side."""

    role: Literal["user", "assistant"]
    content: str | list[Block]

    @property
    def blocks(self) -> list[Text | ToolUse | ToolResult]:
        """Its content in blocks."""
        return [Text(type="text", text=self.content)] if isinstance(self.content, str) else self.content


class Tool(Body):
    """A tool that is offered."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    cache_control: Any = None
    strict: bool | None = None


class MessagesBody(Body):
    """A question. Members without a type of their own are taken and change nothing."""

    model: str
    max_tokens: Annotated[int, Field(ge=1)]
    messages: Annotated[list[Message], Field(min_length=1)]
    system: str | list[Text] | None = None
    tools: list[Tool] | None = None
    tool_choice: dict[str, Any] | None = None
    stream: bool | None = None
    stop_sequences: Any = None
    temperature: Any = None
    top_p: Any = None
    top_k: Any = None
    thinking: Any = None
    metadata: Any = None
    service_tier: Any = None


async def read_messages(request: Request) -> MessagesBody:
    """The question; a wrong one is a 400 in Anthropic's words."""
    try:
        body = MessagesBody.model_validate_json(await request.body())
    except ValidationError as error:
        worst = deepest(error)
        place = ".".join(str(part) for part in worst["loc"] if is_place(part))
        raise Refused(400, f"{place}: {worst['msg']}".removeprefix(": ")) from error
    require_content(body.messages)
    require_results_with_calls(body.messages)
    return body


def require_content(messages: Sequence[Message]) -> None:
    """Refuse messages that say nothing, and a conversation that no user began."""
    if messages[0].role != "user":
        raise Refused(400, 'messages: first message must use the "user" role')
    for place, message in enumerate(messages):
        if not message.content:
            raise Refused(400, f"messages.{place}: all messages must have non-empty content")
        if any(isinstance(block, Text) and not block.text.strip() for block in message.blocks):
            raise Refused(400, "messages: text content blocks must be non-empty")


def require_results_with_calls(messages: Sequence[Message]) -> None:
    """Refuse results that nothing asked for, and calls without their results in the next message."""
    open_calls: set[str] = set()
    for place, message in enumerate(messages):
        results = [block.tool_use_id for block in message.blocks if isinstance(block, ToolResult)]
        for number, result in enumerate(results):
            if result not in open_calls:
                raise orphan(place, number, result)
        require_answered(open_calls - set(results), place - 1)
        open_calls = {block.id for block in message.blocks if isinstance(block, ToolUse)}
    require_answered(open_calls, len(messages) - 1)


def orphan(place: int, number: int, result: str) -> Refused:
    """A result without its call."""
    words = (
        f"messages.{place}.content.{number}: unexpected `tool_use_id` found in `tool_result` blocks: "
        f"{result}. Each `tool_result` block must have a corresponding `tool_use` block in the previous "
        "message."
    )
    return Refused(400, words)


def require_answered(calls: set[str], place: int) -> None:
    """Refuse calls without a result."""
    if calls:
        words = (
            f"messages.{place}: `tool_use` ids were found without `tool_result` blocks immediately after: "
            f"{', '.join(sorted(calls))}. Each `tool_use` block must have a corresponding `tool_result` "
            "block in the next message."
        )
        raise Refused(400, words)


def conversation_of(body: MessagesBody) -> Conversation:
    """The question in no vendor's words; who forbids calls offers none."""
    turns = tuple(turn for message in body.messages for turn in turns_of(message))
    forbidden = (body.tool_choice or {}).get("type") == "none"
    offered = [] if forbidden else body.tools or []
    return Conversation(joined(body.system), turns, frozenset(tool.name for tool in offered))


def turns_of(message: Message) -> Iterator[Turn]:
    """A message as turns; clients make one of all that a user says in a row, a block for each time."""
    if message.role == "assistant":
        texts = [block.text for block in message.blocks if isinstance(block, Text)]
        yield Said("\n".join(texts), tuple(calls_of(message)))
        return
    for block in message.blocks:
        if isinstance(block, ToolResult):
            yield Result(block.tool_use_id, joined(block.content))
        elif isinstance(block, Text):
            yield Asked(block.text)


def calls_of(message: Message) -> Iterator[Call]:
    """The calls of a message."""
    for block in message.blocks:
        if isinstance(block, ToolUse):
            yield Call(block.id, Wish(block.name, json.dumps(block.input)))


def joined(content: str | list[Text] | None) -> str:
    """A text that may come in blocks."""
    return content if isinstance(content, str) else "\n".join(block.text for block in content or [])
