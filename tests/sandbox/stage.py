# SPDX-License-Identifier: Apache-2.0
"""One real socket for the sandboxes of many tests."""

from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send


@dataclass
class Stage:
    """Serves whichever sandbox is on, for starting a server takes longer than most tests."""

    app: ASGIApp | None = None
    url: str = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await follow_lifespan(receive, send)
        elif self.app is not None:
            await self.app(scope, receive, send)


async def follow_lifespan(receive: Receive, send: Send) -> None:
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return
