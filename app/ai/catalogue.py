# SPDX-License-Identifier: Apache-2.0
"""Which wire formats there are, and how a provider is made of the settings."""

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType

from app.ai import refusals
from app.ai.anthropic import Anthropic
from app.ai.contract import SERVICE, Provider
from app.ai.exchange import patience
from app.ai.openai import OpenAi
from app.ai.settings import AiSettings
from app.resilience import Breakers, create_resilient_client
from app.resilience.auth import Fixed

FORMATS: Mapping[str, type[OpenAi] | type[Anthropic]] = MappingProxyType(
    {known.name: known for known in (OpenAi, Anthropic)}
)
AUTHORIZATION = "authorization"


@asynccontextmanager
async def open_provider(
    settings: AiSettings, breakers: Breakers, *, verify: ssl.SSLContext | None = None
) -> AsyncIterator[Provider]:
    """The provider of the settings, behind its breaker; nothing is connected before the first question.

    ``verify``: the certificates to trust, by default those of the environment.
    """
    wanted = FORMATS[settings.provider]
    client = create_resilient_client(
        SERVICE,
        base_url=settings.url,
        auth=credentials(settings),
        max_concurrency=settings.max_concurrency,
        profile=patience(settings.first_timeout),
        breakers=breakers,
        verify=verify,
        describe=refusals.describe,
        refine=wanted.words.meaning,
    )
    async with client:
        yield wanted(settings, client)


def credentials(settings: AiSettings) -> Fixed | None:
    """The key as the server wants it; None: it wants none."""
    if settings.api_key is None:
        return None
    header = settings.key_header or FORMATS[settings.provider].key_header
    if header == AUTHORIZATION:
        return Fixed(SERVICE, "Bearer", settings.api_key)
    return Fixed.key(SERVICE, header, settings.api_key)
