# SPDX-License-Identifier: Apache-2.0
"""What is written down, told live as server-sent events: one poll per process feeds all streams of a kind."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app import telemetry
from app.api.problems import passing
from app.runtime import Runtime

log = telemetry.logger(__name__)

Place = TypeVar("Place")
HEAD_ONLY = "eucora.head_only"
"""In the scope of a request whose client wants no body: one that never ends must not begin."""
INTERVAL = 0.25
HEARTBEAT = 15.0
BATCH = 500
STREAM = "text/event-stream"
LINE_ENDS = {each.encode(): b"\\u%04x" % ord(each) for each in "\x85\u2028\u2029"}
"""No ends of lines here, but many clients take them for some (``str.splitlines``)."""


class Watcher(Generic[Place]):
    """One open stream: the messages not sent yet, and the place up to which it was fed. None ends it."""

    def __init__(self, after: Place) -> None:
        self.after = after
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=2 * BATCH)

    def offer(self, message: bytes, place: Place) -> bool:
        """Take one more message, which leads to ``place``; False: no room, the next poll brings it."""
        if self.queue.full():
            return False
        self.queue.put_nowait(message)
        self.after = place
        return True

    def end(self) -> None:
        """Nothing more comes."""
        with suppress(asyncio.QueueFull):  # told again by the next poll
            self.queue.put_nowait(None)


@contextmanager
def by_itself(watchers: Collection[Watcher[Place]]) -> Iterator[None]:
    """What cannot be told ends the streams of those who listen to it, and nobody else's."""
    try:
        yield
    except (ValueError, LookupError, TypeError):  # what is stored is not what it should be
        log.exception("event_stream_failed")
        for watcher in watchers:
            watcher.end()


Watched = Mapping[UUID, Collection[Watcher[Place]]]
Feed = Callable[[AsyncSession, Watched[Place]], Awaitable[None]]
"""Reads what is new of all that is watched, and offers it to the watchers."""


def message(place: str, body: bytes) -> bytes:
    """One event as it stands in a stream; ``body`` is JSON.

    No event name: a browser hands only unnamed messages to ``onmessage``; the type is in the body.
    """
    for end, escaped in LINE_ENDS.items():
        body = body.replace(end, escaped)
    return b"id: %s\ndata: %s\n\n" % (place.encode("ascii"), body)


class EventStreams(Generic[Place]):
    """The open streams of this process. While there are any, one task reads for all of them."""

    def __init__(self, runtime: Runtime, feed: Feed[Place]) -> None:
        self._runtime = runtime
        self._feed = feed
        self._watchers: defaultdict[UUID, set[Watcher[Place]]] = defaultdict(set)
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def watching(self, subject_id: UUID, after: Place) -> Iterator[Watcher[Place]]:
        """A watcher that is fed with what comes after that place until the block is left."""
        watcher = Watcher(after)
        self._watchers[subject_id].add(watcher)
        self._wanted.set()
        if self._task is None:
            self._task = asyncio.create_task(self._poll(), name="event streams")
        try:
            yield watcher
        finally:
            self._watchers[subject_id].discard(watcher)
            if not self._watchers[subject_id]:
                del self._watchers[subject_id]

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

    def _all(self) -> list[Watcher[Place]]:
        return [watcher for watchers in self._watchers.values() for watcher in watchers]

    async def _poll(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), INTERVAL if self._watchers else None)
            self._wanted.clear()
            try:
                async with self._runtime.transaction() as session:
                    await self._feed(session, {key: list(each) for key, each in self._watchers.items()})
            except Exception as error:
                # The streams outlive a database that is away for a while; whatever else it is ends them.
                log.exception("event_streams_failed")
                if passing(error) is None:
                    for watcher in self._all():
                        watcher.end()


class EventStream(StreamingResponse, Generic[Place]):
    """Server-sent events of one subject; the id of each is its place, so that a client may resume."""

    def __init__(self, streams: EventStreams[Place], subject_id: UUID, after: Place) -> None:
        super().__init__(self._messages(), media_type=STREAM, headers={"X-Accel-Buffering": "no"})
        self._watching = streams.watching(subject_id, after)
        self._watcher: Watcher[Place] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until there is nothing more to come or the client goes."""
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
                    told = await self._watcher.queue.get()
            except TimeoutError:
                yield b": still here\n\n"
                continue
            if told is None:
                return
            yield told
