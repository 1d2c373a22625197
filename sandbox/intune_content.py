# SPDX-License-Identifier: Apache-2.0
"""Graph's content upload: versions, files, addresses, and a commit that really checks what came."""

import asyncio
import base64
import binascii
import hashlib
import hmac
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal
from uuid import uuid4

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.padding import PKCS7
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sandbox.graph import (
    Document,
    GraphError,
    GraphModel,
    GraphResponse,
    collection,
    not_found,
    options,
    read,
    read_json,
)
from sandbox.intune_apps import APPS, Apps
from sandbox.intune_blob import Blobs, blob_url
from sandbox.plane import Plane
from sandbox.witness import instant

URI_SECONDS = 0.2
COMMIT_SECONDS = 0.3
HEAD = 48
PIECE = 1 << 20
VERSIONS = APPS + "/{app_id}/microsoft.graph.win32LobApp/contentVersions"
FILES = VERSIONS + "/{version}/files"


class NewFile(GraphModel):
    """A file to upload; ``size`` is that of the plain content."""

    odata_type: Annotated[str | None, Field(alias="@odata.type")] = None
    name: Annotated[str, Field(min_length=1)]
    size: Annotated[int, Field(gt=0)]
    size_encrypted: Annotated[int, Field(gt=0)]
    manifest: str | None = None
    is_dependency: bool = False


class EncryptionInfo(GraphModel):
    """How the content was encrypted; binary members in base64."""

    odata_type: Annotated[str | None, Field(alias="@odata.type")] = None
    encryption_key: str
    mac_key: str
    initialization_vector: str
    mac: str
    profile_identifier: Literal["ProfileVersion1"]
    file_digest: str
    file_digest_algorithm: Literal["SHA256"]


class Commit(GraphModel):
    """The body of ``commit``."""

    file_encryption_info: EncryptionInfo


class Contents:
    """Content versions and files of all apps. A file's ``verdict`` is "" when its content was found good."""

    def __init__(self, plane: Plane, apps: Apps, blobs: Blobs) -> None:
        self._plane = plane
        self._apps = apps
        self._blobs = blobs
        self._versions = plane.table("contents")
        self._files = plane.table("files")
        self._checks: dict[str, asyncio.Task[None]] = {}

    def routes(self) -> list[Route]:
        """The routes of this noun."""
        return [
            Route(VERSIONS, self._create_version, methods=["POST"]),
            Route(VERSIONS, self._list_versions, methods=["GET"]),
            Route(VERSIONS + "/{version}", self._read_version, methods=["GET"]),
            Route(FILES, self._create_file, methods=["POST"]),
            Route(FILES, self._list_files, methods=["GET"]),
            Route(FILES + "/{file_id}", self._read_file, methods=["GET"]),
            Route(FILES + "/{file_id}/commit", self._commit, methods=["POST"]),
            Route(FILES + "/{file_id}/renewUpload", self._renew, methods=["POST"]),
        ]

    async def _create_version(self, request: Request) -> Response:
        app = self._apps.one(request)
        if set(await read_json(request)) - {"@odata.type", "id"}:
            raise GraphError(400, "A content version has no properties to set.")
        version = str(1 + sum(row["app_id"] == app["id"] for row in self._versions.values()))
        effect_key = request.headers.get("x-effect-key")
        row = {"app_id": app["id"], "version": version, "effect_key": effect_key}
        self._versions.put(f"{app['id']}/{version}", row)
        return GraphResponse(shown_version(version), status_code=201)

    async def _list_versions(self, request: Request) -> Response:
        app = self._apps.one(request)
        rows = [row for row in self._versions.values() if row["app_id"] == app["id"]]
        return collection(
            request,
            len(rows),
            lambda skip, top: [shown_version(row["version"]) for row in rows[skip : skip + top]],
            filters=False,
        )

    async def _read_version(self, request: Request) -> Response:
        return GraphResponse(shown_version(self._version(request)["version"]))

    async def _create_file(self, request: Request) -> Response:
        row = self._version(request)
        body = await read(request, NewFile)
        if body.manifest is not None:
            from_base64("manifest", body.manifest)
        now = self._plane.clock()
        file_id = str(uuid4())
        file = {
            **body.model_dump(exclude={"odata_type"}),
            "id": file_id,
            "app_id": row["app_id"],
            "version": row["version"],
            "created_at": now,
            "effect_key": request.headers.get("x-effect-key"),
            "uri_at": now + URI_SECONDS * self._plane.scale,
            "sas_until": now + self._plane.faults.document.sas_lifetime,
            "renewed": False,
            "blocks": None,
            "commit": None,
            "verdict": None,
        }
        return GraphResponse(self._shown(request, self._files.put(file_id, file)), status_code=201)

    async def _list_files(self, request: Request) -> Response:
        row = self._version(request)
        place = (row["app_id"], row["version"])
        files = [file for file in self._files.values() if (file["app_id"], file["version"]) == place]
        return collection(
            request,
            len(files),
            lambda skip, top: [self._shown(request, file) for file in files[skip : skip + top]],
            filters=False,
        )

    async def _read_file(self, request: Request) -> Response:
        options(request, [])
        file = self._file(request)
        if file["commit"] is not None and file["verdict"] is None:
            self._check(file)  # also after a restart in the middle of the check
        return GraphResponse(self._shown(request, file))

    async def _commit(self, request: Request) -> Response:
        file = self._file(request)
        body = (await read(request, Commit)).file_encryption_info
        for name, value in body.model_dump(by_alias=True, exclude={"odata_type"}).items():
            if name not in {"profileIdentifier", "fileDigestAlgorithm"}:
                from_base64(name, value)
        if file["verdict"] == "" or (file["commit"] is not None and file["verdict"] is None):
            return Response(status_code=204)
        if file["blocks"] is None:
            raise GraphError(400, "There is no uploaded content to commit.")
        ready = self._plane.clock() + COMMIT_SECONDS * self._plane.scale
        commit = {"info": body.model_dump(exclude={"odata_type"}), "ready": ready}
        self._check(self._files.put(file["id"], {**file, "commit": commit, "verdict": None}))
        return Response(status_code=204)

    async def _renew(self, request: Request) -> Response:
        file = self._file(request)
        now = self._plane.clock()
        renewal = {
            "uri_at": now + URI_SECONDS * self._plane.scale,
            "sas_until": now + self._plane.faults.document.sas_lifetime,
            "renewed": True,
        }
        self._files.put(file["id"], {**file, **renewal})
        return Response(status_code=204)

    def _version(self, request: Request) -> Document:
        key = f"{self._apps.one(request)['id']}/{request.path_params['version']}"
        return self._versions.get(key) or not_found("mobileAppContent", key)

    def _file(self, request: Request) -> Document:
        row = self._version(request)
        file = self._files.get(request.path_params["file_id"])
        if file is None or (file["app_id"], file["version"]) != (row["app_id"], row["version"]):
            not_found("mobileAppContentFile", request.path_params["file_id"])
        return file

    def _shown(self, request: Request, file: Document) -> Document:
        state = self._upload_state(file)
        has_uri = self._plane.clock() >= file["uri_at"] and file["verdict"] != ""
        return {
            "@odata.type": "#microsoft.graph.mobileAppContentFile",
            "id": file["id"],
            "name": file["name"],
            "size": file["size"],
            "sizeEncrypted": file["size_encrypted"],
            "manifest": file["manifest"],
            "isDependency": file["is_dependency"],
            "createdDateTime": instant(file["created_at"]),
            "isCommitted": state == "commitFileSuccess",
            "uploadState": state,
            "azureStorageUri": blob_url(request, self._plane.secret, file) if has_uri else None,
            "azureStorageUriExpirationDateTime": instant(file["sas_until"]) if has_uri else None,
        }

    def _upload_state(self, file: Document) -> str:
        now = self._plane.clock()
        if file["commit"] is not None:
            if file["verdict"] is None or now < file["commit"]["ready"]:
                return "commitFilePending"
            return "commitFileFailed" if file["verdict"] else "commitFileSuccess"
        step = "Renewal" if file["renewed"] else "Request"
        return f"azureStorageUri{step}{'Pending' if now < file['uri_at'] else 'Success'}"

    def _check(self, file: Document) -> None:
        if file["id"] not in self._checks:
            task = asyncio.create_task(self._judge(file))
            self._checks[file["id"]] = task
            task.add_done_callback(lambda _: self._checks.pop(file["id"], None))

    async def _judge(self, file: Document) -> None:
        """Check the content away from the event loop; good content is not needed any more."""
        folder = self._blobs.folder(file["id"])
        paths = [folder / name for name in file["blocks"]]
        verdict = await asyncio.to_thread(what_is_wrong, paths, file)
        if file["id"] not in self._files:
            return
        known = self._files[file["id"]]
        # Good keys are forgotten.
        commit = known["commit"] if verdict else {"ready": known["commit"]["ready"]}
        self._files.put(file["id"], {**known, "commit": commit, "verdict": verdict})
        if not verdict:
            await asyncio.to_thread(shutil.rmtree, folder)


def shown_version(version: str) -> Document:
    """A content version as Graph answers it."""
    return {"@odata.type": "#microsoft.graph.mobileAppContent", "id": version}


def from_base64(name: str, value: str) -> bytes:
    """The bytes of a binary property."""
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise GraphError(
            400, f"{name}: Cannot convert the literal to the expected type 'Edm.Binary'."
        ) from error


def pieces(paths: Iterable[Path]) -> Iterator[bytes]:
    """The uploaded bytes, a little at a time."""
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece


def what_is_wrong(paths: list[Path], file: Document) -> str:
    """Decrypt uploaded content and compare it with what its sender declared; "" if all is well.

    Layout: HMAC-SHA256 over the rest (32 bytes), initialization vector (16), AES-256-CBC with PKCS#7 padding.
    """
    info = {
        name: base64.b64decode(value) for name, value in file["commit"]["info"].items() if is_binary(name)
    }
    if len(info["encryption_key"]) != 32 or len(info["initialization_vector"]) != 16:
        return "the key or the initialization vector has the wrong length"
    if sum(path.stat().st_size for path in paths) != file["size_encrypted"]:
        return "sizeEncrypted is not the size of the blob"
    head = first_bytes(paths)
    if head[:32] != info["mac"] or head[32:] != info["initialization_vector"]:
        return "the blob does not begin with the mac and the initialization vector"
    try:
        return compare(paths, info, file["size"])
    except ValueError:
        return "the content cannot be decrypted"


def is_binary(name: str) -> bool:
    """Whether a member of the encryption information is base64."""
    return name not in {"profile_identifier", "file_digest_algorithm"}


def first_bytes(paths: list[Path]) -> bytes:
    """The blob's head, however small its blocks are."""
    head = b""
    for piece in pieces(paths):
        head += piece[: HEAD - len(head)]
        if len(head) == HEAD:
            break
    return head


def compare(paths: list[Path], info: dict[str, bytes], size: int) -> str:
    """Read the blob once; check mac, plain size and digest."""
    mac = hmac.new(info["mac_key"], info["initialization_vector"], hashlib.sha256)
    decryptor = Cipher(AES256(info["encryption_key"]), CBC(info["initialization_vector"])).decryptor()
    unpadder = PKCS7(128).unpadder()
    digest, plain_size, skip = hashlib.sha256(), 0, HEAD
    for piece in pieces(paths):
        body, skip = piece[skip:], max(0, skip - len(piece))
        mac.update(body)
        plain = unpadder.update(decryptor.update(body))
        digest.update(plain)
        plain_size += len(plain)
    rest = unpadder.update(decryptor.finalize()) + unpadder.finalize()
    digest.update(rest)
    if not hmac.compare_digest(mac.digest(), info["mac"]):
        return "mac does not fit the content"
    if digest.digest() != info["file_digest"]:
        return "fileDigest is not the digest of the plain content"
    return "" if plain_size + len(rest) == size else "size is not the size of the plain content"
