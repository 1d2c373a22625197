# SPDX-License-Identifier: Apache-2.0
"""A package's content on its way into Jamf Pro: fetched, checked, sent in one piece from disk, looked for."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

from app.connectors.contract import App, UploadProgress
from app.connectors.jamf import wire
from app.connectors.jamf.api import Api
from app.connectors.jamf.wire import SERVICE
from app.connectors.rest import effect_headers
from app.connectors.sources import Sources
from app.resilience import DEFAULT_RETRY, FileBody, Safety
from app.resilience.errors import NotReady

REPORT_EVERY = 1.0


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds: between two looks, until content that was sent must show, and for one sending of it."""

    poll: float
    patience: float
    upload: float


class Upload:
    """One run of one package's upload."""

    def __init__(self, api: Api, sources: Sources, app: App, package_id: str, *, pace: Pace) -> None:
        self._api = api
        self._sources = sources
        self._app = app
        self._package = wire.pkg(app)
        self._path = f"/v1/packages/{package_id}"
        self._pace = pace
        self._headers = effect_headers(app)

    async def run(self) -> AsyncGenerator[UploadProgress, None]:
        """Everything that is left to do; quiet where the content is there already."""
        if not await self._is_there():
            async with aclosing(self._fetched()) as steps:
                async for size in steps:
                    yield wire.progress(sent=0, total=size)
            file = await self._sources.locate(self._package.uri, self._name)
            async with aclosing(self._sent(file)) as waits:
                async for total in waits:
                    yield wire.progress(sent=0, total=total)
            async with aclosing(self._arrived()) as polls:
                async for _ in polls:
                    yield wire.progress(sent=0, total=0)
        yield wire.progress(sent=0, total=0, done=True)

    @property
    def _name(self) -> str:
        """What the package is called in the spool."""
        return f"jamf-{self._app.marker.partition('/')[0]}"

    async def _is_there(self) -> bool:
        found = await self._api.get(self._path, headers=self._headers)
        return wire.is_there(found, self._package.sha256)

    async def _fetched(self) -> AsyncGenerator[int, None]:
        fetching = self._sources.fetch(self._package.uri, self._package.sha256, self._name)
        async with self._sources.spooling(self._name, service=SERVICE), aclosing(fetching) as steps:
            async for size in steps:
                yield size

    async def _sent(self, file: Path) -> AsyncGenerator[int, None]:
        """Send while the caller is told, every second, that something happens."""
        body = form(file, wire.file_name(self._app))
        sending = asyncio.ensure_future(self._send(body))
        try:
            while not (await asyncio.wait({sending}, timeout=REPORT_EVERY))[0]:
                yield body.size
            await sending
        finally:
            sending.cancel()

    async def _send(self, body: FileBody) -> None:
        """A repeat replaces what was sent before."""
        longest = self._pace.upload
        profile = replace(DEFAULT_RETRY, attempts=2, attempt_timeout=longest, total=longest)
        extensions = {"body": body, "safety": Safety.IDEMPOTENT, "profile": profile}
        headers = {**self._headers, **body.headers}
        await self._api.http.request(
            "POST", f"/api{self._path}/upload", headers=headers, extensions=extensions
        )

    async def _arrived(self) -> AsyncGenerator[None, None]:
        """Until the instance says that it has this content.

        Raises:
            NotReady: it takes longer than the patience.
        """
        waited = 0.0
        while not await self._is_there():
            if waited >= self._pace.patience:
                detail = "Jamf Pro does not show the content that was sent"
                raise NotReady(detail, service=SERVICE, retry_after=self._pace.poll)
            yield
            await asyncio.sleep(self._pace.poll)
            waited += self._pace.poll


def form(file: Path, name: str) -> FileBody:
    """A form with one file, which is read as it is sent."""
    boundary = uuid4().hex
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    tail = f"\r\n--{boundary}--\r\n"
    kind = f"multipart/form-data; boundary={boundary}"
    return FileBody(head.encode(), file, tail.encode(), content_type=kind)
