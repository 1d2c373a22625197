# SPDX-License-Identifier: Apache-2.0
"""What an operator sets under ``EUCORA_AI__…``."""

from collections.abc import Mapping
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

ADDRESS = r"^https?://[^\s?#]+$"
DEFAULT_URLS = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}


class AiSettings(BaseModel):
    """Which model is asked, and how much. An unknown name is an error; no value is told.

    ``provider`` is the wire format: ``openai`` (chat completions: OpenAI, Azure OpenAI, vLLM, Ollama, …) or
    ``anthropic`` (messages). ``base_url`` is what the vendor's paths come below, ``…/v1`` with ``openai``.
    ``key_header``: where the key goes; by default ``authorization`` (as a bearer) or ``x-api-key``.
    ``output_limit_field``: what the server calls the limit of an answer (older ones: ``max_tokens``).
    ``first_timeout``: seconds from a question to the first piece of its answer, or to all of an answer that
    is not streamed; ``idle_timeout``: between two pieces. Tokens: ``context_tokens`` is what a question with
    all its history may take, ``max_output_tokens`` an answer, at most half as much. The last two are limits
    of each caller.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    provider: Literal["openai", "anthropic"]
    model: str = Field(min_length=1, max_length=200)
    base_url: str = Field(default="", pattern=rf"{ADDRESS}|^$")
    api_key: SecretStr | None = Field(default=None, min_length=1)
    key_header: Literal["authorization", "api-key", "x-api-key"] | None = None
    anthropic_version: str = Field(default="2023-06-01", min_length=1, max_length=50)
    output_limit_field: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    max_output_tokens: PositiveInt = 2048
    context_tokens: int = Field(default=32_000, ge=4_000)
    first_timeout: PositiveFloat = 60.0
    idle_timeout: PositiveFloat = 20.0
    max_concurrency: PositiveInt = 8
    requests_per_day: PositiveInt = 200
    tokens_per_day: PositiveInt = 2_000_000

    @model_validator(mode="after")
    def key_where_it_is_needed(self) -> "AiSettings":
        """The vendors' own addresses take nobody without a key; other servers may."""
        if not self.base_url and self.api_key is None:
            raise PydanticCustomError(
                "not_enough", "set API_KEY, or the BASE_URL of a server that needs none"
            )
        return self

    @model_validator(mode="after")
    def room_for_a_question(self) -> "AiSettings":
        """An answer leaves at least as much to what is asked."""
        answer, context = self.max_output_tokens, self.context_tokens
        if answer * 2 > context:
            detail = "MAX_OUTPUT_TOKENS ({answer}) must be at most half of CONTEXT_TOKENS ({context})"
            raise PydanticCustomError("no_room", detail, {"answer": answer, "context": context})
        return self

    @property
    def url(self) -> str:
        """Where the provider is, without a slash at its end."""
        return (self.base_url or DEFAULT_URLS[self.provider]).rstrip("/")


WHAT_TO_SET = (
    "set EUCORA_AI__PROVIDER (openai or anthropic) and EUCORA_AI__MODEL,"
    " with EUCORA_AI__API_KEY, or EUCORA_AI__BASE_URL of a server that needs no key"
)


class BadAiSettings(ValueError):
    """What is set is no way to a language model; the text names each variable."""


def parse(given: Mapping[str, SecretStr | str]) -> AiSettings | None:
    """The settings, None if there are none; what is empty is not set, as files of variables have it.

    Raises:
        BadAiSettings: some are missing, unknown or wrong.
    """
    plain = {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value
        for name, value in given.items()
    }
    told = {name: value for name, value in plain.items() if value.strip()}
    try:
        return AiSettings.model_validate(told) if told else None
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)
        wrong = [f"EUCORA_AI__{'_'.join(map(str, each['loc'])).upper()}: {each['msg']}" for each in found]
        raise BadAiSettings(
            "; ".join(line.replace("EUCORA_AI__: ", "EUCORA_AI: ") for line in wrong)
        ) from None


def sandbox_settings(sandbox_url: str) -> AiSettings:
    """Those of the sandbox's scripted model, with its demo credentials."""
    return AiSettings(
        provider="openai",
        model="sandbox-scripted",
        base_url=f"{sandbox_url.rstrip('/')}/openai/v1",
        api_key=SecretStr("sandbox-secret"),
    )
