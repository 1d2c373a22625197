# SPDX-License-Identifier: Apache-2.0
"""One real socket for the sandboxes of many tests."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send


@dataclass
class Stage:
    """Serves whichever sandbox is on, for starting a server takes longer than most tests.

    In a thread of its own: what belongs to a sandbox runs in that thread's loop, as it does elsewhere.
    """

    url: str = ""
    _app: ASGIApp | None = None
    _loop: Future[asyncio.AbstractEventLoop] = field(default_factory=Future)
    """Which one that is, as soon as it runs."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            self._loop.set_result(asyncio.get_running_loop())
            await follow_lifespan(receive, send)
        elif self._app is not None:
            await self._app(scope, receive, send)

    @asynccontextmanager
    async def showing(self, app: Starlette, *, through: ASGIApp | None = None) -> AsyncIterator[None]:
        """Have this one on; ``through``: what stands before it."""
        living = app.router.lifespan_context(app)
        await self._there(living.__aenter__())
        self._app = through or app
        try:
            yield
        finally:
            self._app = None
            await self._there(living.__aexit__(None, None, None))

    async def _there(self, work: Coroutine[Any, Any, Any]) -> None:
        loop = await asyncio.wrap_future(self._loop)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


async def follow_lifespan(receive: Receive, send: Send) -> None:
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return
