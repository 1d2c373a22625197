# SPDX-License-Identifier: Apache-2.0
"""Tokens for calls out: fetched once for all who wait, renewed before they end or when they are refused."""

import asyncio
import base64
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar, Protocol

import httpx
from pydantic import SecretStr

from app.resilience.classify import Safety
from app.resilience.errors import AuthError, CallError, PermanentError

REFUSALS = {HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}
EARLIEST_RENEWAL = 60.0
DEFAULT_LIFETIME = 300.0
AUTHORIZATION = "Authorization"


class Authenticator(Protocol):
    """What a client asks for a token. The value is a secret: it is put into a header and nowhere else.

    ``header`` is that header, and ``scheme`` stands before the token there; empty: the token alone.
    """

    @property
    def header(self) -> str:
        """``Authorization``, or what the service takes in its place."""
        ...

    @property
    def scheme(self) -> str:
        """``Bearer`` or another of HTTP's."""
        ...

    async def token(self) -> SecretStr:
        """A token that is valid now."""
        ...

    async def renew(self, refused: SecretStr) -> SecretStr:
        """A token other than the refused one; many callers with the same refused token cause one request."""
        ...

    def secrets(self) -> tuple[str, ...]:
        """What must be cut out of every text that leaves the client."""
        ...


class HeldToken(ABC):
    """A token that is fetched when one is needed, and kept until shortly before its end.

    ``service``: whose errors those of the login become.
    """

    header: ClassVar[str] = AUTHORIZATION
    scheme: ClassVar[str] = "Bearer"

    def __init__(self, service: str, clock: Callable[[], float]) -> None:
        self.service = service
        self._clock = clock
        self._held: SecretStr | None = None
        self._renew_at = 0.0
        self._flight = asyncio.Lock()

    @abstractmethod
    async def _fetch(self, held: SecretStr | None) -> tuple[SecretStr, float]:
        """A new token and its lifetime in seconds; ``held`` is the one that still works, if there is one."""

    @abstractmethod
    def _credentials(self) -> tuple[str, ...]:
        """The secrets that tokens are got with."""

    async def token(self) -> SecretStr:
        """The token held, or a new one if it is about to end.

        Raises:
            AuthError: the credentials were refused.
        """
        if self._held is not None and self._clock() < self._renew_at:
            return self._held
        async with self._flight:
            if self._held is None or self._clock() >= self._renew_at:
                return await self._renewed(self._held)
            return self._held

    async def renew(self, refused: SecretStr) -> SecretStr:
        """A new token, unless somebody has fetched one since ``refused`` was handed out."""
        async with self._flight:
            if self._held is None or self._held == refused:
                return await self._renewed(None)
            return self._held

    def secrets(self) -> tuple[str, ...]:
        """What the token is got with, and the token held."""
        held = () if self._held is None else (self._held.get_secret_value(),)
        return (*self._credentials(), *held)

    async def _renewed(self, held: SecretStr | None) -> SecretStr:
        try:
            value, lifetime = await self._fetch(held)
        except CallError as error:
            if error.status in REFUSALS:
                raise AuthError(error.detail, service=self.service, status=error.status) from error
            raise
        self._held = value
        self._renew_at = self._clock() + lifetime - min(EARLIEST_RENEWAL, lifetime / 5)
        return value

    def _told(self, answer: httpx.Response, name: str, lifetime: str) -> tuple[SecretStr, float]:
        """The token in a login's answer and the seconds it lasts, under those names.

        Raises:
            PermanentError: there is no token.
        """
        try:
            body: dict[str, Any] = answer.json()
            return SecretStr(str(body[name])), float(body.get(lifetime, DEFAULT_LIFETIME))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PermanentError(
                "the token endpoint's answer holds no token", service=self.service
            ) from error


@dataclass(frozen=True, slots=True)
class Grant:
    """Who we are to an OAuth 2.0 token endpoint."""

    token_url: str
    client_id: str
    client_secret: SecretStr
    scope: str | None = None


class ClientCredentials(HeldToken):
    """The OAuth 2.0 client-credentials grant, with the secret in the form.

    ``http`` is a client of its own: the token endpoint has its own breaker and gets no token.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        service: str,
        grant: Grant,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(service, clock)
        self._http = http
        self._grant = grant

    def _credentials(self) -> tuple[str, ...]:
        return (self._grant.client_secret.get_secret_value(),)

    async def _fetch(self, held: SecretStr | None) -> tuple[SecretStr, float]:
        del held  # the grant knows no renewal
        form = {
            "grant_type": "client_credentials",
            "client_id": self._grant.client_id,
            "client_secret": self._grant.client_secret.get_secret_value(),
        }
        if self._grant.scope is not None:
            form["scope"] = self._grant.scope
        answer = await self._http.post(
            self._grant.token_url, data=form, extensions={"safety": Safety.IDEMPOTENT}
        )
        return self._told(answer, "access_token", "expires_in")


@dataclass(frozen=True, slots=True)
class Fixed:
    """A credential that is sent as it is, and cannot be renewed."""

    service: str
    scheme: str
    value: SecretStr
    header: str = AUTHORIZATION

    @classmethod
    def basic(cls, service: str, user: str, password: SecretStr) -> "Fixed":
        """User and password, with each request."""
        pair = f"{user}:{password.get_secret_value()}".encode()
        return cls(service, "Basic", SecretStr(base64.b64encode(pair).decode("ascii")))

    @classmethod
    def key(cls, service: str, header: str, value: SecretStr) -> "Fixed":
        """A key alone, in a header of the service's own."""
        return cls(service, "", value, header)

    async def token(self) -> SecretStr:
        """The credential."""
        return self.value

    async def renew(self, refused: SecretStr) -> SecretStr:
        """There is no other.

        Raises:
            AuthError: always.
        """
        del refused
        raise AuthError(f"{self.service} refused the credentials", service=self.service, status=401)

    def secrets(self) -> tuple[str, ...]:
        """The credential."""
        return (self.value.get_secret_value(),)
