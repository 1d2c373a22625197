# SPDX-License-Identifier: Apache-2.0
"""Azure block blob storage's wire format, as far as an upload by SAS address needs it."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode
from uuid import uuid4
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from sandbox.journal import Document, Table
from sandbox.witness import instant

STORAGE_VERSION = "2024-11-04"
LARGEST_BLOCK = 4000 * 1024 * 1024
LARGEST_ID = 64


class StorageError(Exception):
    """A refusal, as Azure storage words it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class Blobs:
    """Blocks on disk, one file each, below a folder per blob; never whole in memory."""

    def __init__(self, *, files: Table, spool: Path, secret: bytes, clock: Callable[[], float]) -> None:
        self._files = files
        self._spool = spool
        self._secret = secret
        self._clock = clock

    def routes(self) -> list[Route]:
        """The storage endpoint beside Graph."""
        return [Route("/_blob/{file_id}", self._put, methods=["PUT"])]

    def folder(self, file_id: str) -> Path:
        """Where the blocks of a blob lie."""
        return self._spool / file_id

    async def _put(self, request: Request) -> Response:
        try:
            file = self._authorized(request)
            await self._store(request, file)
        except StorageError as error:
            return error_response(error)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        now = self._clock()
        etag = hashlib.sha256(f"{file['id']}{now}".encode()).hexdigest()[:16]
        return Response(status_code=201, headers={**storage_headers(), "etag": f'"0x{etag.upper()}"'})

    def _authorized(self, request: Request) -> Document:
        given = request.query_params
        file = self._files.get(request.path_params["file_id"])
        expected = signature(self._secret, request.path_params["file_id"], given.get("se", ""))
        if file is None or not hmac.compare_digest(expected, given.get("sig", "")):
            raise StorageError(403, "AuthenticationFailed", "Signature did not match.")
        if given["se"] <= instant(self._clock()):
            raise StorageError(403, "AuthenticationFailed", f"Signature not valid: expired at {given['se']}.")
        return file

    async def _store(self, request: Request, file: Document) -> None:
        step = request.query_params.get("comp")
        if file["verdict"] == "":
            raise StorageError(404, "BlobNotFound", "The content was committed and is gone from here.")
        if step == "block":
            await self._receive(request, file["id"], block_name(self._block_id(request, file["id"])))
        elif step == "blocklist":
            names = self._listed(file["id"], await request.body())
            self._files.put(file["id"], {**self._files[file["id"]], "blocks": names})
        elif step is None:
            await self._put_whole(request, file)
        else:
            raise StorageError(400, "InvalidQueryParameterValue", f"comp={step} is not supported.")

    async def _put_whole(self, request: Request, file: Document) -> None:
        if request.headers.get("x-ms-blob-type") != "BlockBlob":
            raise StorageError(400, "MissingRequiredHeader", "x-ms-blob-type: BlockBlob is missing.")
        await self._receive(request, file["id"], "whole")
        self._files.put(file["id"], {**self._files[file["id"]], "blocks": ["whole"]})

    def _block_id(self, request: Request, file_id: str) -> bytes:
        try:
            block_id = base64.b64decode(request.query_params.get("blockid", ""), validate=True)
        except binascii.Error as error:
            raise StorageError(400, "InvalidQueryParameterValue", "blockid is not base64.") from error
        if not 1 <= len(block_id) <= LARGEST_ID:
            raise StorageError(400, "InvalidQueryParameterValue", "blockid must have 1 to 64 bytes.")
        others = (path.name for path in self.folder(file_id).glob("b*") if path.suffix != ".part")
        first = next(others, None)  # one tells for all, for each was compared when it came
        if first is not None and len(first) != len(block_name(block_id)):
            raise StorageError(400, "InvalidBlobOrBlock", "The ids of all blocks must have the same length.")
        return block_id

    async def _receive(self, request: Request, file_id: str, name: str) -> None:
        declared = declared_length(request)
        folder = self.folder(file_id)
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{name}.{uuid4().hex}.part"
        try:
            with part.open("wb") as file:
                async for piece in request.stream():
                    file.write(piece)
                complete = file.tell() == declared
            if complete:
                part.replace(folder / name)
        finally:
            part.unlink(missing_ok=True)

    def _listed(self, file_id: str, body: bytes) -> list[str]:
        try:
            root = ET.fromstring(body)  # noqa: S314  (from a client on this machine)
            ids = [base64.b64decode(item.text or "", validate=True) for item in root]
        except (ET.ParseError, binascii.Error) as error:
            raise StorageError(400, "InvalidXmlDocument", "The block list cannot be read.") from error
        names = [block_name(block_id) for block_id in ids]
        if not names or not all((self.folder(file_id) / name).exists() for name in names):
            raise StorageError(400, "InvalidBlockList", "The specified block list is invalid.")
        return names


def block_name(block_id: bytes) -> str:
    """The file name of a block."""
    return "b" + block_id.hex()


def declared_length(request: Request) -> int:
    """The length that the client announced."""
    declared = request.headers.get("content-length")
    if declared is None:
        raise StorageError(411, "MissingContentLengthHeader", "Content-Length is required.")
    if int(declared) > LARGEST_BLOCK:
        raise StorageError(413, "RequestBodyTooLarge", "The block is too large.")
    return int(declared)


def blob_url(request: Request, secret: bytes, file: Document) -> str:
    """The address, with its signature, at which a file's content may be put until the signature expires."""
    expiry = instant(file["sas_until"])
    query = {
        "sv": STORAGE_VERSION,
        "sr": "b",
        "sp": "w",
        "se": expiry,
        "sig": signature(secret, file["id"], expiry),
    }
    root = request.url.replace(path=f"{request.scope['sandbox.scope']['root_path']}/_blob/{file['id']}")
    return str(root.replace(query=urlencode(query), fragment=""))


def signature(secret: bytes, file_id: str, expiry: str) -> str:
    """What proves that this sandbox gave out the address."""
    return base64.b64encode(hmac.digest(secret, f"{file_id}\n{expiry}".encode(), "sha256")).decode()


def storage_headers() -> dict[str, str]:
    """The headers that every answer of the storage has."""
    return {"x-ms-request-id": str(uuid4()), "x-ms-version": STORAGE_VERSION}


def error_response(error: StorageError) -> Response:
    """Azure storage's error body."""
    body = (
        '<?xml version="1.0" encoding="utf-8"?>'
        f"<Error><Code>{error.code}</Code><Message>{escape(error.message)}</Message></Error>"
    )
    headers = {**storage_headers(), "x-ms-error-code": error.code}
    return Response(body, error.status, headers, media_type="application/xml")
