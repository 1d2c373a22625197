# SPDX-License-Identifier: Apache-2.0
"""Content upload: addresses that end, blocks, and a commit that decrypts what came."""

import base64
from pathlib import Path
from typing import Any

import httpx
import pytest

from sandbox.main import create_app, serving
from tests.sandbox.tenant import (
    APPS,
    STORAGE,
    WIN32,
    Clock,
    Sealed,
    Tenant,
    assignment,
    block_id,
    put_block,
    put_list,
    seal,
    until,
)

PLAIN = bytes(range(256)) * 500


@pytest.fixture
def sealed() -> Sealed:
    return seal(PLAIN)


def upload_uri(tenant: Tenant, path: str) -> str:
    uri: str = tenant.graph.get(path).json()["azureStorageUri"]
    return uri


def changed(sealed: Sealed, **members: bytes) -> dict[str, str]:
    """The encryption information with other values."""
    return dict(sealed.info) | {name: base64.b64encode(value).decode() for name, value in members.items()}


def test_an_upload_address_comes_after_a_moment(tenant: Tenant, clock: Clock, sealed: Sealed) -> None:
    versions = tenant.content_path(tenant.create())
    version = tenant.graph.post(versions, json={})
    sizes = {"size": len(PLAIN), "sizeEncrypted": len(sealed.blob)}
    files = f"{versions}/{version.json()['id']}/files"

    created = tenant.graph.post(files, json={"name": "a.intunewin", "manifest": None, **sizes})

    assert (version.status_code, created.status_code) == (201, 201)
    file = created.json()
    assert (file["uploadState"], file["azureStorageUri"]) == ("azureStorageUriRequestPending", None)
    clock.advance(0.5)
    file = tenant.graph.get(f"{files}/{file['id']}").json()
    assert file["uploadState"] == "azureStorageUriRequestSuccess"
    assert "sig=" in file["azureStorageUri"]
    assert file["azureStorageUriExpirationDateTime"]
    assert tenant.graph.get(files).json()["value"] == [file]
    assert tenant.graph.get(versions).json()["value"] == [version.json()]
    assert tenant.graph.get(f"{versions}/1").json() == version.json()


@pytest.mark.parametrize(
    "body",
    [
        {"name": "a", "size": 1},
        {"name": "a", "size": "1", "sizeEncrypted": 64},
        {"name": "a", "size": 0, "sizeEncrypted": 64},
        {"name": "a", "size": 1, "sizeEncrypted": 64, "invented": 1},
        {"name": "a", "size": 1, "sizeEncrypted": 64, "manifest": "???"},
    ],
)
def test_a_file_that_graph_would_not_take_is_refused(tenant: Tenant, body: dict[str, Any]) -> None:
    versions = tenant.content_path(tenant.create())
    tenant.graph.post(versions, json={})

    assert tenant.graph.post(f"{versions}/1/files", json=body).status_code == 400


def test_files_belong_to_their_app_and_version(tenant: Tenant, sealed: Sealed) -> None:
    path = tenant.open_file(tenant.create("One"), sealed)
    other = tenant.content_path(tenant.create("Other"))
    tenant.graph.post(other, json={})
    file_id = path.rsplit("/", 1)[1]

    assert tenant.graph.get(f"{other}/1/files/{file_id}").status_code == 404
    assert tenant.graph.get(f"{other}/2").status_code == 404


def test_good_content_is_committed_after_a_moment_and_then_gone_from_the_disk(
    clock: Clock, sealed: Sealed, tmp_path: Path
) -> None:
    state = tmp_path / "state.jsonl"
    with serving(create_app(state, clock=clock)) as url:
        tenant = Tenant(url, clock)
        path = tenant.open_file(tenant.create(), sealed)
        tenant.put_blocks(path, sealed)
        spooled = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file() and file != state)

        accepted = tenant.graph.post(f"{path}/commit", json={"fileEncryptionInfo": dict(sealed.info)})

        assert (spooled, accepted.status_code) == (len(sealed.blob), 204)
        assert tenant.graph.get(path).json()["uploadState"] == "commitFilePending"
        clock.advance(1)
        until(
            lambda: tenant.graph.get(path).json()["uploadState"], holds=lambda at: at == "commitFileSuccess"
        )
        assert tenant.graph.get(path).json()["isCommitted"] is True
        until(
            lambda: [file for file in tmp_path.rglob("*") if file.is_file()], holds=lambda at: at == [state]
        )
        again = tenant.graph.post(f"{path}/commit", json={"fileEncryptionInfo": dict(sealed.info)})
        assert again.status_code == 204
        tenant.close()


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("encryptionKey", bytes(32)),
        ("encryptionKey", bytes(16)),
        ("macKey", bytes(32)),
        ("initializationVector", bytes(16)),
        ("mac", bytes(32)),
        ("fileDigest", bytes(32)),
    ],
)
def test_content_that_does_not_fit_its_sheet_is_not_committed(
    tenant: Tenant, sealed: Sealed, member: str, value: bytes
) -> None:
    path = tenant.open_file(tenant.create(), sealed)
    tenant.put_blocks(path, sealed)

    assert tenant.commit(path, changed(sealed, **{member: value})) == "commitFileFailed"
    assert tenant.commit(path, sealed.info) == "commitFileSuccess"  # the content itself was good


@pytest.mark.parametrize("wrong", [{"size": len(PLAIN) - 1}, {"sizeEncrypted": len(PLAIN)}])
def test_declared_sizes_must_be_true(tenant: Tenant, sealed: Sealed, wrong: dict[str, int]) -> None:
    path = tenant.open_file(tenant.create(), sealed, **wrong)
    tenant.put_blocks(path, sealed)

    assert tenant.commit(path, sealed.info) == "commitFileFailed"


def test_one_damaged_byte_is_noticed(tenant: Tenant, sealed: Sealed) -> None:
    damaged = bytearray(sealed.blob)
    damaged[70_000] ^= 1
    path = tenant.open_file(tenant.create(), sealed)
    tenant.put_blocks(path, Sealed(sealed.plain, bytes(damaged), sealed.info))

    assert tenant.commit(path, sealed.info) == "commitFileFailed"


def test_a_commit_needs_content_and_a_whole_sheet(tenant: Tenant, sealed: Sealed) -> None:
    path = tenant.open_file(tenant.create(), sealed)
    without_mac = {name: value for name, value in sealed.info.items() if name != "mac"}

    too_early = tenant.graph.post(f"{path}/commit", json={"fileEncryptionInfo": dict(sealed.info)})
    tenant.put_blocks(path, sealed)
    partial = tenant.graph.post(f"{path}/commit", json={"fileEncryptionInfo": without_mac})
    no_base64 = tenant.graph.post(
        f"{path}/commit", json={"fileEncryptionInfo": dict(sealed.info) | {"mac": "a" * 5}}
    )

    assert [answer.status_code for answer in (too_early, partial, no_base64)] == [400, 400, 400]
    assert tenant.graph.get(path).json()["uploadState"] == "azureStorageUriRequestSuccess"


def test_an_expired_address_is_refused_until_it_is_renewed(
    tenant: Tenant, clock: Clock, sealed: Sealed
) -> None:
    tenant.control("faults", {"items": [], "sas_lifetime": 100})
    path = tenant.open_file(tenant.create(), sealed)
    uri = upload_uri(tenant, path)
    assert put_block(uri, block_id(0), sealed.blob[:100]).status_code == 201
    clock.advance(101)

    refused = put_block(uri, block_id(1), sealed.blob[100:])
    renewed = tenant.graph.post(f"{path}/renewUpload")

    assert refused.status_code == 403
    assert refused.headers["x-ms-error-code"] == "AuthenticationFailed"
    assert "<Code>AuthenticationFailed</Code>" in refused.text
    assert renewed.status_code == 204
    assert tenant.graph.get(path).json()["uploadState"] == "azureStorageUriRenewalPending"
    clock.advance(1)
    assert tenant.graph.get(path).json()["uploadState"] == "azureStorageUriRenewalSuccess"
    uri = upload_uri(tenant, path)
    assert put_block(uri, block_id(1), sealed.blob[100:]).status_code == 201
    assert put_list(uri, [block_id(0), block_id(1)]).status_code == 201  # the first block was kept
    assert tenant.commit(path, sealed.info) == "commitFileSuccess"


def test_a_forged_address_is_refused(tenant: Tenant, sealed: Sealed) -> None:
    uri = upload_uri(tenant, tenant.open_file(tenant.create(), sealed))
    forged = str(httpx.URL(uri).copy_set_param("se", "2999-01-01T00:00:00.000Z"))

    assert put_block(forged, block_id(0), b"x").status_code == 403


def test_a_block_may_be_sent_again_and_the_list_decides_the_order(tenant: Tenant, sealed: Sealed) -> None:
    path = tenant.open_file(tenant.create(), sealed)
    uri = upload_uri(tenant, path)

    put_block(uri, block_id(2), sealed.blob[50_000:])
    put_block(uri, block_id(1), b"first try, cut short")
    put_block(uri, block_id(1), sealed.blob[:50_000])
    listed = put_list(uri, [block_id(1), block_id(2)])

    assert (listed.status_code, listed.headers["x-ms-version"]) == (201, "2024-11-04")
    assert "etag" in listed.headers
    assert tenant.commit(path, sealed.info) == "commitFileSuccess"


def test_a_blob_may_be_put_in_one_piece(tenant: Tenant, sealed: Sealed) -> None:
    path = tenant.open_file(tenant.create(), sealed)
    uri = upload_uri(tenant, path)

    without_type = STORAGE.put(uri, content=sealed.blob)
    whole = STORAGE.put(uri, content=sealed.blob, headers={"x-ms-blob-type": "BlockBlob"})

    assert (without_type.status_code, whole.status_code) == (400, 201)
    assert tenant.commit(path, sealed.info) == "commitFileSuccess"


def test_storage_refuses_what_azure_refuses(tenant: Tenant, sealed: Sealed) -> None:
    uri = upload_uri(tenant, tenant.open_file(tenant.create(), sealed))
    put_block(uri, block_id(0), b"x")

    refusals = {
        "no base64": put_block(uri, "?", b"x"),
        "other length": put_block(uri, base64.b64encode(b"short").decode(), b"x"),
        "too long": put_block(uri, base64.b64encode(bytes(65)).decode(), b"x"),
        "no length": STORAGE.put(f"{uri}&comp=block&blockid={block_id(1)}", content=iter([b"x"])),
        "unknown block": put_list(uri, [block_id(0), block_id(9)]),
        "no xml": STORAGE.put(f"{uri}&comp=blocklist", content=b"<BlockList>"),
        "other step": STORAGE.put(f"{uri}&comp=tier", content=b""),
    }

    assert {
        name: (answer.status_code, answer.headers["x-ms-error-code"]) for name, answer in refusals.items()
    } == {
        "no base64": (400, "InvalidQueryParameterValue"),
        "other length": (400, "InvalidBlobOrBlock"),
        "too long": (400, "InvalidQueryParameterValue"),
        "no length": (411, "MissingContentLengthHeader"),
        "unknown block": (400, "InvalidBlockList"),
        "no xml": (400, "InvalidXmlDocument"),
        "other step": (400, "InvalidQueryParameterValue"),
    }


def test_an_app_is_published_a_moment_after_its_content_version_is_set(tenant: Tenant, clock: Clock) -> None:
    app_id, sealed = tenant.create(), seal(b"content")
    path = tenant.open_file(app_id, sealed)
    tenant.put_blocks(path, sealed)
    refused = tenant.use_content(app_id, "1")
    assert tenant.commit(path, sealed.info) == "commitFileSuccess"

    accepted = tenant.use_content(app_id, "1")

    assert (refused.status_code, tenant.use_content(app_id, "2").status_code) == (400, 400)
    assert accepted.json()["publishingState"] == "processing"
    clock.advance(1)
    app = tenant.graph.get(f"{APPS}/{app_id}").json()
    assert (app["publishingState"], app["committedContentVersion"]) == ("published", "1")
    assert app["size"] == len(b"content")


def test_an_app_without_committed_content_cannot_be_assigned(tenant: Tenant, clock: Clock) -> None:
    app_id, sealed = tenant.create(), seal(b"content")

    def attempts() -> set[int]:
        whole = {"mobileAppAssignments": [assignment(tenant.group("LAB"))]}
        one = tenant.assign(app_id, "LAB")
        return {one.status_code, tenant.graph.post(f"{APPS}/{app_id}/assign", json=whole).status_code}

    assert attempts() == {400}
    path = tenant.open_file(app_id, sealed)
    tenant.put_blocks(path, sealed)
    tenant.commit(path, sealed.info)
    assert attempts() == {400}
    body = {"@odata.type": WIN32, "committedContentVersion": "1"}
    tenant.graph.patch(f"{APPS}/{app_id}", json=body)
    assert attempts() == {400}  # still processing
    clock.advance(1)
    assert tenant.assign(app_id, "LAB").status_code == 201
