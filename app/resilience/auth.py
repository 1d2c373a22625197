# SPDX-License-Identifier: Apache-2.0
"""Tokens for calls out: fetched once for all who wait, renewed before they end or when they are refused."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol

import httpx
from pydantic import SecretStr

from app.resilience.classify import Safety
from app.resilience.errors import AuthError, CallError, PermanentError

REFUSALS = {HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}
EARLIEST_RENEWAL = 60.0
DEFAULT_LIFETIME = 300.0


class Authenticator(Protocol):
    """What a client asks for a token. The value is a secret: it is put into a header and nowhere else."""

    async def token(self) -> SecretStr:
        """A token that is valid now."""
        ...

    async def renew(self, refused: SecretStr) -> SecretStr:
        """A token other than the refused one; many callers with the same refused token cause one request."""
        ...

    def secrets(self) -> tuple[str, ...]:
        """What must be cut out of every text that leaves the client."""
        ...


@dataclass(slots=True)
class ClientCredentials:
    """The OAuth 2.0 client-credentials grant, with the secret in the form.

    ``http`` is a client of its own: the token endpoint has its own breaker and gets no token.
    """

    http: httpx.AsyncClient
    service: str
    token_url: str
    client_id: str
    client_secret: SecretStr
    scope: str
    clock: Callable[[], float] = time.monotonic
    _held: SecretStr | None = field(default=None, init=False)
    _renew_at: float = field(default=0.0, init=False)
    _flight: asyncio.Lock = field(default_factory=asyncio.Lock, init=False, repr=False)

    async def token(self) -> SecretStr:
        """The token held, or a new one if it is about to end.

        Raises:
            AuthError: the credentials were refused.
        """
        if self._held is not None and self.clock() < self._renew_at:
            return self._held
        async with self._flight:
            if self._held is None or self.clock() >= self._renew_at:
                self._held = await self._fetch()
            return self._held

    async def renew(self, refused: SecretStr) -> SecretStr:
        """A new token, unless somebody has fetched one since ``refused`` was handed out."""
        async with self._flight:
            if self._held is None or self._held == refused:
                self._held = await self._fetch()
            return self._held

    def secrets(self) -> tuple[str, ...]:
        """The client secret and the token held."""
        held = () if self._held is None else (self._held.get_secret_value(),)
        return (self.client_secret.get_secret_value(), *held)

    async def _fetch(self) -> SecretStr:
        form = {
            "grant_type": "client_credentials",
            "client_id": self.client_id,
            "client_secret": self.client_secret.get_secret_value(),
            "scope": self.scope,
        }
        try:
            answer = await self.http.post(self.token_url, data=form, extensions={"safety": Safety.IDEMPOTENT})
        except CallError as error:
            if error.status in REFUSALS:
                raise AuthError(error.detail, service=self.service, status=error.status) from error
            raise
        return self._keep(answer)

    def _keep(self, answer: httpx.Response) -> SecretStr:
        try:
            body: dict[str, Any] = answer.json()
            value = SecretStr(str(body["access_token"]))
            lifetime = float(body.get("expires_in", DEFAULT_LIFETIME))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PermanentError(
                "the token endpoint's answer holds no token", service=self.service
            ) from error
        self._renew_at = self.clock() + lifetime - min(EARLIEST_RENEWAL, lifetime / 5)
        return value
