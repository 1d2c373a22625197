# SPDX-License-Identifier: Apache-2.0
"""All sandbox planes and language models in one process, each at ``/<its name>``."""

import asyncio
import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp

from sandbox.ansible import Ansible
from sandbox.anthropic import Anthropic
from sandbox.connections import BreakableProtocol
from sandbox.intune import Intune
from sandbox.jamf import Jamf
from sandbox.journal import Journal
from sandbox.landscape import Landscape
from sandbox.models import Desk, MakeWire, ModelApp
from sandbox.openai import OpenAi
from sandbox.plane import MakeVendor, Plane, PlaneApp
from sandbox.sccm import Sccm

PLANES: dict[str, MakeVendor] = {
    "intune": Intune,
    "jamf": Jamf,
    "sccm": Sccm,
    "landscape": Landscape,
    "ansible": Ansible,
}
MODELS: dict[str, MakeWire] = {"openai": OpenAi, "anthropic": Anthropic}
FLUSH_SECONDS = 0.2
KEEP_ALIVE_SECONDS = 75  # longer than any client keeps one, so that no connection ends under a request


def create_app(
    state: Path | None = None, *, scale: float = 1.0, clock: Callable[[], float] = time.time
) -> Starlette:
    """The application with all planes and language models.

    ``state`` is a file that outlives the process (uploads go to a folder beside it); without one everything
    is forgotten. ``scale`` multiplies the delays of vendors and devices; ``clock`` tells the Unix time.
    """
    journal = Journal(state)
    scratch = None if state is not None else tempfile.TemporaryDirectory(prefix="sandbox-")
    spool = Path(scratch.name) if scratch is not None else spool_beside(state)
    routes: list[BaseRoute] = [Route("/health", health, methods=["GET"])]
    for name, make in PLANES.items():
        plane = Plane(name, journal, clock, scale, spool / name)
        routes.append(Mount(f"/{name}", app=PlaneApp(plane, make(plane))))
    for name, make_wire in MODELS.items():
        desk = Desk(name, journal, clock)
        routes.append(Mount(f"/{name}", app=ModelApp(desk, make_wire(desk))))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        flushing = asyncio.create_task(flush_for_ever(journal))
        try:
            yield
        finally:
            flushing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await flushing
            journal.close()
            if scratch is not None:
                scratch.cleanup()

    return Starlette(routes=routes, lifespan=lifespan)


def spool_beside(state: Path | None) -> Path:
    """The folder for uploads that belongs to a state file."""
    if state is None:
        raise ValueError("there is no state file")
    return state.with_name(state.name + ".uploads")


async def flush_for_ever(journal: Journal) -> None:
    """Write what was put off, again and again."""
    while True:
        await asyncio.sleep(FLUSH_SECONDS)
        journal.flush()


async def health(_: Request) -> Response:
    """Tell a supervisor that the process answers, and for which planes and language models."""
    return JSONResponse({"status": "ok", "planes": sorted(PLANES), "models": sorted(MODELS)})


def server(app: ASGIApp, *, port: int = 0) -> uvicorn.Server:
    """A server whose connections faults can break."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host="127.0.0.1",
            port=port,
            http=BreakableProtocol,
            ws="none",
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=3,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
    )


def run(port: int, state: Path | None = None, *, scale: float = 1.0) -> None:
    """Serve everything on 127.0.0.1 until SIGINT or SIGTERM."""
    server(create_app(state, scale=scale), port=port).run()


@contextlib.contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """Serve in a thread on a free port, for tests and benchmarks; the URL without a slash at its end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = server(app)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join(timeout=10)
