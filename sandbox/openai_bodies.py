# SPDX-License-Identifier: Apache-2.0
"""What OpenAI's chat completions take, and how they refuse what they do not."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from starlette.requests import Request

from sandbox.models import deepest, is_place
from sandbox.rest import Body, Refused
from sandbox.scripted_conversation import Asked, Call, Conversation, Result, Said, Turn, Wish


class Part(Body):
    """A part of a text."""

    type: Literal["text", "refusal"]
    text: str = ""
    refusal: str = ""


class Function(Body):
    """A call's function; its arguments are text, JSON or not."""

    name: str
    arguments: str


class ToolCall(Body):
    """A call as the client repeats it."""

    id: str
    type: Literal["function"]
    function: Function


class Message(Body):
    """One message of any role."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """All its parts."""
        parts = self.content if isinstance(self.content, list) else []
        return self.content if isinstance(self.content, str) else "\n".join(each.text for each in parts)


class FunctionTool(Body):
    """What a tool is called and takes."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool that is offered."""

    type: Literal["function"]
    function: FunctionTool


class StreamOptions(Body):
    """What a stream brings besides."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatBody(Body):
    """A question. Members without a type of their own are taken and change nothing."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[Tool] | None = None
    tool_choice: Any = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    parallel_tool_calls: bool | None = None
    response_format: Any = None
    temperature: Any = None
    top_p: Any = None
    n: Literal[1] | None = None
    seed: Any = None
    stop: Any = None
    store: Any = None
    metadata: Any = None
    reasoning_effort: Any = None
    service_tier: Any = None
    user: Any = None


def refusal(status: int, words: str, *, param: str | None = None, code: str | None = None) -> Refused:
    """A refusal that names a parameter or has a code."""
    error = {"message": words, "type": "invalid_request_error", "param": param, "code": code}
    return Refused(status, words, body={"error": error})


async def read_chat(request: Request) -> ChatBody:
    """The question; a wrong one is a 400 in OpenAI's words."""
    try:
        body = ChatBody.model_validate_json(await request.body())
    except ValidationError as error:
        raise invalid(error) from error
    require_results_with_calls(body.messages)
    return body


def invalid(error: ValidationError) -> Refused:
    """What is wrong, as OpenAI says it."""
    worst = deepest(error)
    name = spelled(worst["loc"])
    match worst["type"]:
        case "json_invalid":
            return refusal(400, "We could not parse the JSON body of your request.")
        case "missing" if name == "model":
            return refusal(400, "you must provide a model parameter")
        case "missing":
            words, code = f"Missing required parameter: '{name}'.", "missing_required_parameter"
        case "extra_forbidden":
            words, code = f"Unknown parameter: '{name}'.", "unknown_parameter"
        case _:
            words, code = f"Invalid value for '{name}': {worst['msg']}.", "invalid_value"
    return refusal(400, words, param=name, code=code)


def spelled(place: Sequence[int | str]) -> str:
    """A place in a body, such as ``messages[0].role``."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in place if is_place(part)]
    return "".join(parts).removeprefix(".")


def require_results_with_calls(messages: Sequence[Message]) -> None:
    """Refuse results that nothing asked for, and calls without their results."""
    open_calls: set[str] = set()
    for place, message in enumerate(messages):
        if message.role == "tool":
            if message.tool_call_id not in open_calls:
                raise orphan(place)
            open_calls.discard(message.tool_call_id or "")
            continue
        require_none_open(open_calls)
        open_calls = {call.id for call in message.tool_calls or ()}
        require_content(message, place)
    require_none_open(open_calls)


def orphan(place: int) -> Refused:
    """A result without its call."""
    words = (
        "Invalid parameter: messages with role 'tool' must be a response to a preceeding message "
        "with 'tool_calls'."
    )
    return refusal(400, words, param=f"messages.[{place}].role")


def require_none_open(calls: set[str]) -> None:
    """Refuse calls without a result."""
    if calls:
        words = (
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            "'tool_call_id'. The following tool_call_ids did not have response messages: "
        )
        raise refusal(400, words + ", ".join(sorted(calls)), param="messages")


def require_content(message: Message, place: int) -> None:
    """Only a message of calls, or a refusal, may be without content."""
    if message.content is None and not message.tool_calls and message.refusal is None:
        words = f"Invalid value for 'messages[{place}].content': expected a string, got null."
        raise refusal(400, words, param=f"messages.[{place}].content")


def conversation_of(body: ChatBody) -> Conversation:
    """The question in no vendor's words; who forbids calls offers none."""
    instructing = {"system", "developer"}
    system = [message.text for message in body.messages if message.role in instructing]
    turns = tuple(turn for message in body.messages for turn in turns_of(message))
    offered = [] if body.tool_choice == "none" else body.tools or []
    return Conversation("\n".join(system), turns, frozenset(tool.function.name for tool in offered))


def turns_of(message: Message) -> Iterator[Turn]:
    """A message as turns; instructions are none."""
    match message.role:
        case "user":
            yield Asked(message.text)
        case "tool":
            yield Result(message.tool_call_id or "", message.text)
        case "assistant":
            calls = [
                Call(each.id, Wish(each.function.name, each.function.arguments))
                for each in message.tool_calls or ()
            ]
            yield Said(message.text, tuple(calls))
