# SPDX-License-Identifier: Apache-2.0
"""Histories as they are written: one poll per process feeds every open event stream."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from uuid import UUID

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app import telemetry
from app.api.problems import passing
from app.domain import events
from app.domain.events import Newest
from app.models import Event
from app.runtime import Runtime

log = telemetry.logger(__name__)

Render = Callable[[Event], bytes]
HEAD_ONLY = "eucora.head_only"
"""In the scope of a request whose client wants no body: one that never ends must not begin."""
INTERVAL = 0.25
HEARTBEAT = 15.0
BATCH = 500


class Watcher:
    """One open stream: the events not sent yet, and how far it was fed. None in the queue is the end."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.queue: asyncio.Queue[Event | None] = asyncio.Queue(maxsize=2 * BATCH)

    def feed(self, found: Sequence[Event], newest: Newest | None) -> None:
        """Take what is new as far as there is room; the next poll brings the rest."""
        for event in found:
            if event.sequence > self.after and not self.queue.full():
                self.queue.put_nowait(event)
                self.after = event.sequence
        if newest is None or (newest.final and self.after >= newest.sequence):
            self.end()

    def end(self) -> None:
        """Nothing more comes."""
        with suppress(asyncio.QueueFull):  # told again by the next poll
            self.queue.put_nowait(None)


class EventStreams:
    """The open streams of this process. While there are any, one task reads for all of them."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._watchers: defaultdict[UUID, set[Watcher]] = defaultdict(set)
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def watching(self, deployment_id: UUID, after: int) -> Iterator[Watcher]:
        """A watcher that is fed with the deployment's events after that sequence until the block is left."""
        watcher = Watcher(after)
        self._watchers[deployment_id].add(watcher)
        self._wanted.set()
        if self._task is None:
            self._task = asyncio.create_task(self._poll(), name="event streams")
        try:
            yield watcher
        finally:
            self._watchers[deployment_id].discard(watcher)
            if not self._watchers[deployment_id]:
                del self._watchers[deployment_id]

    def end(self) -> None:
        """End every open stream: its client resumes elsewhere."""
        for watcher in self._all():
            watcher.end()

    async def close(self) -> None:
        """End every stream and stop reading."""
        self.end()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def _all(self) -> list[Watcher]:
        return [watcher for watchers in self._watchers.values() for watcher in watchers]

    async def _poll(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), INTERVAL if self._watchers else None)
            self._wanted.clear()
            try:
                await self._feed()
            except Exception as error:
                # The streams outlive a database that is away for a while; whatever else it is ends them.
                log.exception("event_streams_failed")
                if passing(error) is None:
                    for watcher in self._all():
                        watcher.end()

    async def _feed(self) -> None:
        async with self._runtime.transaction() as session:
            newest = await events.newest(session, list(self._watchers))
            for deployment_id, watchers in list(self._watchers.items()):
                known = newest.get(deployment_id)
                after = min(watcher.after for watcher in watchers)
                found: Sequence[Event] = ()
                if known is not None and known.sequence > after:
                    found = await events.page(session, deployment_id, after=after, limit=BATCH)
                for watcher in watchers:
                    watcher.feed(found, known)


class EventStream(StreamingResponse):
    """Server-sent events of one deployment; the id of each is its sequence, so that a client may resume."""

    def __init__(self, streams: EventStreams, deployment_id: UUID, after: int, render: Render) -> None:
        super().__init__(
            self._messages(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
        )
        self._watching = streams.watching(deployment_id, after)
        self._render = render
        self._watcher: Watcher | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the history ends or the client goes."""
        if HEAD_ONLY in scope:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body"})
            return
        with self._watching as self._watcher:
            await super().__call__(scope, receive, send)

    async def _messages(self) -> AsyncIterator[bytes]:
        assert self._watcher is not None  # set before the body is read
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT):
                    event = await self._watcher.queue.get()
            except TimeoutError:
                yield b": still here\n\n"
                continue
            if event is None:
                return
            # No event name: a browser hands only unnamed messages to ``onmessage``; the type is in the data.
            yield b"id: %d\ndata: %s\n\n" % (event.sequence, self._render(event))
