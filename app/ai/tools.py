# SPDX-License-Identifier: Apache-2.0
"""What the assistant may ask for: to look at the control plane, and, in a task, to hand in a proposal.

A model's arguments are checked against these before anything is done with them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from app.ai.contract import Tool, ToolCall

LONGEST_ARGUMENTS = 100_000
"""Characters; a proposal's text is the longest thing there is."""
LONGEST_NAME = 100
"""Of an argument that is none, as the model is told of it."""


class Arguments(BaseModel):
    """A tool's one object of arguments: an unknown one is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def _without_nul(text: str) -> str:
    """PostgreSQL has no such text."""
    if "\x00" in text:
        raise ValueError("must not contain NUL")
    return text


class Nothing(Arguments):
    """No arguments."""


class FindDeployments(Arguments):
    """Narrowed by words of the application's name or version, and by a state."""

    text: Annotated[str, Field(max_length=200), AfterValidator(_without_nul)] | None = None
    status: Annotated[str, Field(max_length=20, pattern="^[A-Z_]+$")] | None = None
    limit: Annotated[int, Field(ge=1, le=20)] = 10


class OneDeployment(Arguments):
    """Which one."""

    deployment_id: UUID


class BadArguments(ValueError):
    """What the model wrote is no call of this tool; the text says why, in words it can mend it by."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A tool: what it is called, what it gives, what it takes."""

    name: str
    description: str
    arguments: type[Arguments]

    def tool(self) -> Tool:
        """As the model is told of it."""
        schema = self.arguments.model_json_schema()
        schema.pop("description", None)
        return Tool(self.name, self.description, schema)

    def parse(self, call: ToolCall) -> Arguments:
        """The arguments of a call of it.

        Raises:
            BadArguments: they are no JSON, or not this tool's.
        """
        try:
            return self.arguments.model_validate(arguments_of(call))
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, each['loc']))[:LONGEST_NAME] or 'arguments'}: {each['msg']}"
                for each in error.errors(include_url=False, include_input=False)[:5]
            )
            raise BadArguments(wrong) from error


def arguments_of(call: ToolCall) -> Any:
    """What a model wrote as arguments, parsed.

    Raises:
        BadArguments: it is no JSON, or too long.
    """
    if len(call.arguments) > LONGEST_ARGUMENTS:
        raise BadArguments("the arguments are too long")
    try:
        return json.loads(call.arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise BadArguments("the arguments are no JSON") from error


INQUIRIES: Mapping[str, Declared] = {
    declared.name: declared
    for declared in (
        Declared(
            "find_deployments",
            "The newest deployments whose application's name or version has all words of `text`.",
            FindDeployments,
        ),
        Declared(
            "read_deployment",
            "One deployment: its state, risk, and lanes with counters (a lane is one ring on one plane).",
            OneDeployment,
        ),
        Declared(
            "read_gates",
            "What each lane's gate asked for and measured last, and the verdict. Rates are 0..1.",
            OneDeployment,
        ),
        Declared(
            "read_blockers",
            "Why a deployment does not move, and who can do something about it; empty: it moves, or is over.",
            OneDeployment,
        ),
        Declared(
            "read_failures",
            "Why devices failed: the causes they gave, without what differs from device to device, commonest"
            " first, with counts.",
            OneDeployment,
        ),
        Declared(
            "read_events",
            "The newest entries of a deployment's history: what changed, when, by whom, why.",
            OneDeployment,
        ),
        Declared(
            "list_breakers",
            "Services that callers are kept away from now, and since when; empty: none.",
            Nothing,
        ),
        Declared("list_planes", "The device managers, and whether each is configured.", Nothing),
    )
}
"""Everything the assistant can look at. There is no tool that changes anything."""

SUBMIT = Tool(
    "submit_proposal",
    "Hand in the proposal; ends the task if it is accepted, and says what is wrong with it if it is not.",
    {
        "type": "object",
        "properties": {
            "text": {"type": "string", "description": "For the person who decides."},
            "actions": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "action": {"type": "string", "description": "One of those this task may propose."},
                        "deployment_id": {"type": "string", "description": "The task's own deployment."},
                        "reason": {"type": "string"},
                    },
                    "required": ["action", "deployment_id", "reason"],
                    "additionalProperties": False,
                },
            },
        },
        "required": ["text", "actions"],
        "additionalProperties": False,
    },
)
