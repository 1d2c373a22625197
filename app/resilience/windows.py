# SPDX-License-Identifier: Apache-2.0
"""Windows authentication over HTTP: Negotiate (Kerberos where it is set up, else NTLM) or NTLM alone."""

import base64
import re
import struct
from collections.abc import Generator
from typing import TYPE_CHECKING, Literal

import httpx
from pydantic import SecretStr

from app.resilience.errors import AuthError

if TYPE_CHECKING:
    import spnego

Protocol = Literal["negotiate", "ntlm"]
MOST_LEGS = 4


class WindowsAuth(httpx.Auth):
    """One account's handshakes. Both protocols authenticate the connection, so its legs must share one.

    Sources: RFC 4559 for the headers; [MS-NTHT] for NTLM's.
    """

    def __init__(
        self, service: str, username: str, password: SecretStr, protocol: Protocol = "negotiate"
    ) -> None:
        self._service = service
        self._username = username
        self._password = password
        self._protocol = protocol

    def secrets(self) -> tuple[str, ...]:
        """The password."""
        return (self._password.get_secret_value(),)

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """The first leg without credentials: a connection that is authenticated already answers at once."""
        response = yield request
        scheme = self._scheme(response)
        if scheme is None:
            return
        context = self._context(scheme, request.url.host)
        token: bytes | None = None
        for _ in range(MOST_LEGS):
            ours = self._step(context, token)
            if ours is None:
                return
            request.headers["Authorization"] = f"{scheme} {base64.b64encode(ours).decode('ascii')}"
            response = yield request
            token = challenge(response, scheme)
            if response.status_code != httpx.codes.UNAUTHORIZED or token is None:
                return

    def _scheme(self, response: httpx.Response) -> str | None:
        """The scheme to answer a refusal with; None if there was none, or none that we speak."""
        if response.status_code != httpx.codes.UNAUTHORIZED:
            return None
        offered = {
            value.split(" ")[0].lower()
            for value in response.headers.get_list("www-authenticate", split_commas=True)
        }
        spoken = ("Negotiate", "NTLM") if self._protocol == "negotiate" else ("NTLM",)
        return next((scheme for scheme in spoken if scheme.lower() in offered), None)

    def _context(self, scheme: str, host: str) -> "spnego.ContextProxy":
        import spnego  # with all of cryptography: not before somebody asks for a handshake

        try:
            return spnego.client(
                self._username,
                self._password.get_secret_value(),
                hostname=host,
                service="HTTP",
                protocol=scheme.lower(),
            )
        except senseless() as error:
            raise self._refused(error) from error

    def _step(self, context: "spnego.ContextProxy", token: bytes | None) -> bytes | None:
        try:
            return context.step(token)
        except senseless() as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> AuthError:
        return AuthError(f"Windows authentication failed: {type(error).__name__}", service=self._service)


def senseless() -> tuple[type[Exception], ...]:
    """What the library raises where a service says something that is no handshake."""
    from spnego.exceptions import SpnegoError

    return SpnegoError, ValueError, struct.error


def challenge(response: httpx.Response, scheme: str) -> bytes | None:
    """The service's part of the handshake."""
    told = ", ".join(response.headers.get_list("www-authenticate"))
    found = re.search(rf"(?i)\b{scheme}\s+([A-Za-z0-9+/=]+)", told)
    return base64.b64decode(found[1]) if found else None
