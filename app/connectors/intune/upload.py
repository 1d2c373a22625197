# SPDX-License-Identifier: Apache-2.0
"""Bringing content into Intune in steps: any may be the last of one worker and the first of another.

Source: Graph v1.0 ``mobileAppContentFile`` and its actions (CSDL); Azure Put Block and Put Block List. The
order of the steps and the storage's statuses are from clients, not from a vendor's page.
"""

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import quote

from app.connectors.contract import App, UploadProgress
from app.connectors.intune import wire
from app.connectors.intune.content import Content, Keys, content_path, make_content, open_content
from app.connectors.intune.graph import SERVICE, effect_headers
from app.connectors.rest import Headers, Json, Rest
from app.connectors.sources import Sources, kept_for, paced
from app.resilience import FileBody, ResilientClient, Safety
from app.resilience.errors import PolicyError, TransientError

READY = {"azureStorageUriRequestSuccess", "azureStorageUriRenewalSuccess"}
COMMITTED = "commitFileSuccess"
BINARY = "application/octet-stream"
SAS_MARGIN = timedelta(seconds=60)
FRUITLESS_RENEWALS = 2


class Phase(StrEnum):
    """What an upload does next."""

    PREPARE = "prepare"
    BLOCKS = "blocks"
    COMMIT = "commit"
    PUBLISH = "publish"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where an upload stands. ``seal`` ties it to one content: with another, its blocks are worth nothing."""

    phase: Phase = Phase.PREPARE
    version: str | None = None
    file: str | None = None
    seal: str | None = None
    size: int = 0
    blocks: int = 0
    read: int = 0

    @classmethod
    def of(cls, stored: Mapping[str, Any] | None) -> "Checkpoint":
        """From what was stored; what cannot be read starts afresh."""
        try:
            values = dict(stored or {})
            return cls(**(values | {"phase": Phase(values.get("phase", Phase.PREPARE))}))
        except (TypeError, ValueError):
            return cls()


@dataclass(frozen=True, slots=True)
class Pace:
    """Sizes in bytes, times in seconds; ``patience`` is how long Intune may take for one step."""

    block: int
    poll: float
    patience: float


class Upload:
    """One run of one application's upload."""

    def __init__(
        self,
        graph: Rest,
        storage: ResilientClient,
        sources: Sources,
        pace: Pace,
        *,
        app: App,
        app_id: str,
        secret: str,
    ) -> None:
        self._graph = graph
        self._storage = storage
        self._sources = sources
        self._pace = pace
        self._package = wire.windows_package(app)
        self._keys = Keys.derive(secret, marker=app.marker, sha256=self._package.sha256)
        self._headers: Headers = effect_headers(app)
        self._app = f"/deviceAppManagement/mobileApps/{app_id}"
        self._versions = f"{self._app}/microsoft.graph.win32LobApp/contentVersions"

    async def run(self, stored: Mapping[str, Any] | None) -> AsyncGenerator[UploadProgress, None]:
        """Everything from ``stored`` to a published application; quiet where Intune has that already."""
        state = Checkpoint.of(stored)
        found = await self._graph.get(self._app, headers=self._headers)
        if not found.get("committedContentVersion"):
            async with aclosing(self._bring(state)) as steps:
                async for reached in steps:
                    state = reached
                    yield self._progress(state)
        async with aclosing(self._published()) as polls:
            async for _ in polls:
                yield self._progress(state)
        await asyncio.to_thread(self._clean)
        yield self._progress(state, done=True)

    def _progress(self, state: Checkpoint, *, done: bool = False) -> UploadProgress:
        sent = min(state.blocks * self._pace.block, state.size)
        return UploadProgress(checkpoint=asdict(state), sent_bytes=sent, total_bytes=state.size, done=done)

    async def _bring(self, begun: Checkpoint) -> AsyncGenerator[Checkpoint, None]:
        state, setup_file = begun, None
        if state.phase is not Phase.PUBLISH:
            async with aclosing(self._prepare()) as steps:
                async for read in steps:
                    yield replace(state, read=read)
            content = await self._content()
            setup_file = content.setup_file
            async with aclosing(self._transfer(state, content)) as moves:
                async for reached in moves:
                    state = reached
                    yield state
        await self._set_content_version(state, setup_file)
        yield state

    async def _prepare(self) -> AsyncGenerator[int, None]:
        """Package to spool, spool to content; yields bytes read or written."""
        uri, name = self._package.uri, self._keys.name
        async with self._sources.spooling(name, service=SERVICE):
            package = await self._sources.locate(uri, name)
            if await asyncio.to_thread(self._is_spooled, package):
                return
            async with aclosing(self._sources.fetch(uri, self._package.sha256, name)) as steps:
                async for size in steps:
                    yield size
            setup_file, spool = wire.setup_file(self._package), self._sources.spool
            async with aclosing(paced(make_content(package, setup_file, self._keys, spool))) as pieces:
                async for size in pieces:
                    yield size

    def _is_spooled(self, package: Path) -> bool:
        return package.exists() and content_path(self._sources.spool, self._keys).exists()

    async def _content(self) -> Content:
        package = await self._sources.locate(self._package.uri, self._keys.name)
        return await asyncio.to_thread(open_content, package, self._keys, self._sources.spool)

    async def _transfer(self, begun: Checkpoint, content: Content) -> AsyncGenerator[Checkpoint, None]:
        state = await self._open_file(begun, content)
        yield state
        if state.phase is Phase.BLOCKS:
            async with aclosing(self._send_blocks(state, content)) as blocks:
                async for reached in blocks:
                    state = reached
                    yield state
            state = replace(state, phase=Phase.COMMIT)
            yield state
        async with aclosing(self._commit(state, content)) as polls:
            async for _ in polls:
                yield state
        yield replace(state, phase=Phase.PUBLISH)

    async def _open_file(self, state: Checkpoint, content: Content) -> Checkpoint:
        """The content file to fill: the checkpoint's, or one that an earlier run made, or a new one."""
        if state.seal == content.seal and state.file is not None:
            file = await self._graph.get(self._file(state), headers=self._headers)
            if not _has_failed(file):
                return _as_far_as(file, state)
        fresh = await self._find_file(content) or await self._create_file(content)
        return replace(fresh, seal=content.seal, size=content.size_encrypted)

    async def _find_file(self, content: Content) -> Checkpoint | None:
        """A file of this content that no checkpoint tells of: the answer to its creation was lost, say."""
        async for versions in self._graph.pages(self._versions, headers=self._headers):
            for version in versions:
                async for files in self._graph.pages(
                    f"{self._versions}/{version['id']}/files", headers=self._headers
                ):
                    for file in files:
                        if self._is_ours(file, content):
                            found = Checkpoint(Phase.BLOCKS, version=str(version["id"]), file=str(file["id"]))
                            return _as_far_as(file, found)
        return None

    def _is_ours(self, file: Json, content: Content) -> bool:
        same = file.get("name") == self._file_name and file.get("sizeEncrypted") == content.size_encrypted
        return same and not _has_failed(file)

    @property
    def _file_name(self) -> str:
        return f"{self._keys.name}.intunewin"

    async def _create_file(self, content: Content) -> Checkpoint:
        version = await self._graph.post(self._versions, {}, headers=self._headers, safety=Safety.IDEMPOTENT)
        body = {
            "@odata.type": "#microsoft.graph.mobileAppContentFile",
            "name": self._file_name,
            "size": content.size,
            "sizeEncrypted": content.size_encrypted,
            "manifest": None,
            "isDependency": False,
        }
        path = f"{self._versions}/{version['id']}/files"
        file = await self._graph.post(path, body, headers=self._headers, safety=Safety.IDEMPOTENT)
        return Checkpoint(Phase.BLOCKS, version=str(version["id"]), file=str(file["id"]))

    def _file(self, state: Checkpoint) -> str:
        return f"{self._versions}/{state.version}/files/{state.file}"

    async def _address(self, state: Checkpoint) -> str:
        """Where the storage takes the file, renewed if that is about to end. A secret."""
        file = await self._until(self._file(state), READY)
        ends = file.get("azureStorageUriExpirationDateTime")
        if ends and datetime.fromisoformat(ends) - datetime.now(UTC) < SAS_MARGIN:
            return await self._renewed(state)
        return str(file["azureStorageUri"])

    async def _renewed(self, state: Checkpoint) -> str:
        await self._graph.post(
            f"{self._file(state)}/renewUpload", {}, headers=self._headers, safety=Safety.IDEMPOTENT
        )
        file = await self._until(self._file(state), READY)
        return str(file["azureStorageUri"])

    async def _until(self, path: str, wanted: set[str]) -> Json:
        async with aclosing(self._polled(path)) as polls:
            async for file in polls:
                if file.get("uploadState") in wanted:
                    return file
        raise TransientError(f"Intune did not reach {min(wanted)}", service=SERVICE)

    async def _polled(self, path: str) -> AsyncGenerator[Json, None]:
        """The object again and again, until ``patience`` is over or it says that it failed."""
        deadline = time.monotonic() + self._pace.patience
        while time.monotonic() < deadline:
            found = await self._graph.get(path, headers=self._headers)
            yield found
            if _has_failed(found):
                raise TransientError(f"Intune says {found.get('uploadState')}", service=SERVICE)
            await asyncio.sleep(self._pace.poll)

    async def _send_blocks(self, state: Checkpoint, content: Content) -> AsyncGenerator[Checkpoint, None]:
        address, fruitless = await self._address(state), 0
        total = -(-content.size_encrypted // self._pace.block)
        while state.blocks <= total:
            try:
                await self._put(address, state.blocks, total, content)
            except PolicyError:  # the address has ended
                fruitless += 1
                if fruitless > FRUITLESS_RENEWALS:
                    raise
                address = await self._renewed(state)
                continue
            fruitless = 0
            if state.blocks == total:
                return
            state = replace(state, blocks=state.blocks + 1)
            yield state

    async def _put(self, address: str, block: int, total: int, content: Content) -> None:
        """One block; after the last one the list that makes them a blob."""
        joint = "&" if "?" in address else "?"
        if block < total:
            size = self._pace.block
            body = FileBody(b"", content.path, b"", BINARY, start=block * size, length=size)
            target = f"{address}{joint}comp=block&blockid={quote(_block_id(block), safe='')}"
            headers = {**self._headers, **body.headers, "x-ms-blob-type": "BlockBlob"}
            await self._storage.put(target, headers=headers, extensions={"body": body})
        else:
            target = f"{address}{joint}comp=blocklist"
            headers = {**self._headers, "Content-Type": "application/xml"}
            await self._storage.put(target, content=_block_list(total), headers=headers)

    async def _commit(self, state: Checkpoint, content: Content) -> AsyncGenerator[None, None]:
        """Hand over the keys and wait until Intune has checked the content with them."""
        path = self._file(state)
        file = await self._graph.get(path, headers=self._headers)
        if not _is_handed_over(file):
            body = {"fileEncryptionInfo": content.encryption}
            await self._graph.post(f"{path}/commit", body, headers=self._headers, safety=Safety.IDEMPOTENT)
        async with aclosing(self._polled(path)) as polls:
            async for found in polls:
                if found.get("uploadState") == COMMITTED:
                    return
                yield
        raise TransientError("Intune has not committed the content yet", service=SERVICE)

    async def _set_content_version(self, state: Checkpoint, setup_file: str | None) -> None:
        """Make the content the application's; an archive names its installer where the package does not."""
        body: Json = {"@odata.type": wire.APP_TYPE, "committedContentVersion": state.version}
        if setup_file is not None and wire.named_setup_file(self._package) is None:
            body["setupFilePath"] = setup_file
        await self._graph.patch(self._app, body, headers=self._headers)

    async def _published(self) -> AsyncGenerator[None, None]:
        async with aclosing(self._polled(self._app)) as polls:
            async for found in polls:
                if wire.is_usable(found):
                    return
                yield
        raise TransientError("Intune has not published the application yet", service=SERVICE)

    def _clean(self) -> None:
        for path in kept_for(self._sources.spool, self._keys.name):
            path.unlink(missing_ok=True)


def _is_handed_over(file: Json) -> bool:
    """Whether its commit was asked for: it takes no blocks any more."""
    return str(file.get("uploadState")).startswith("commitFile")


def _as_far_as(file: Json, state: Checkpoint) -> Checkpoint:
    """Where to go on with a file: what was stored of it may be older than what became of it."""
    return replace(state, phase=Phase.COMMIT) if _is_handed_over(file) else state


def _has_failed(file: Json) -> bool:
    state = str(file.get("uploadState", ""))
    return state.endswith(("Failed", "TimedOut")) or state == "error"


def _block_id(block: int) -> str:
    return base64.b64encode(f"{block:08d}".encode()).decode("ascii")


def _block_list(total: int) -> bytes:
    latest = "".join(f"<Latest>{_block_id(block)}</Latest>" for block in range(total))
    return f'<?xml version="1.0" encoding="utf-8"?><BlockList>{latest}</BlockList>'.encode()
