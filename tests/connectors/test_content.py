# SPDX-License-Identifier: Apache-2.0
"""What is uploaded: made the same everywhere, opened by the sheet that goes with it."""

import base64
import hashlib
import hmac
import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from app.connectors.intune.content import (
    DETECTION,
    INNER,
    Content,
    Keys,
    content_path,
    is_archive,
    make_content,
    open_content,
)
from app.resilience.errors import PermanentError, TransientError

SHA = "ab" * 32


@pytest.fixture
def keys() -> Keys:
    return Keys.derive("secret", marker="d/intune", sha256=SHA)


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    folder = tmp_path / "spool"
    folder.mkdir()
    return folder


def made(package: Path, keys: Keys, spool: Path, entry: str = "setup.exe") -> Content:
    for _ in make_content(package, entry, keys, spool):
        pass
    return open_content(package, keys, spool)


def opened(content: Content) -> bytes:
    """What a device gets: checked and decrypted with nothing but the sheet."""
    sheet = {
        name: base64.b64decode(value)
        for name, value in content.encryption.items()
        if "rofile" not in name and "Algorithm" not in name
    }
    sealed = content.path.read_bytes()
    assert hmac.new(sheet["macKey"], sealed[32:], hashlib.sha256).digest() == sealed[:32] == sheet["mac"]
    assert sealed[32:48] == sheet["initializationVector"]
    decryptor = Cipher(algorithms.AES(sheet["encryptionKey"]), modes.CBC(sealed[32:48])).decryptor()
    unpadder = padding.PKCS7(128).unpadder()
    plain = unpadder.update(decryptor.update(sealed[48:]) + decryptor.finalize()) + unpadder.finalize()
    assert hashlib.sha256(plain).digest() == sheet["fileDigest"]
    assert (len(plain), len(sealed)) == (content.size, content.size_encrypted)
    return plain


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 8 * 2**20, 8 * 2**20 + 1, 20_000_003])
def test_a_device_can_open_what_was_made(tmp_path: Path, spool: Path, keys: Keys, size: int) -> None:
    package = tmp_path / "firefox.exe"
    package.write_bytes(os.urandom(size))

    plain = opened(made(package, keys, spool))

    with zipfile.ZipFile(io.BytesIO(plain)) as archive:
        assert archive.namelist() == ["setup.exe"]
        assert archive.testzip() is None
        assert archive.read("setup.exe") == package.read_bytes()


def test_another_worker_makes_the_same_bytes_on_another_day(tmp_path: Path, keys: Keys) -> None:
    results = []
    for number, when in enumerate([0, 1_700_000_000]):
        spool, package = tmp_path / f"spool-{number}", tmp_path / f"{number}.exe"
        spool.mkdir()
        package.write_bytes(b"same" * 1000)
        package.chmod(0o600 + number)
        os.utime(package, (when, when))
        content = made(package, keys, spool)
        results.append((content.path.read_bytes(), content.encryption, content.seal))

    assert results[0] == results[1]


def test_no_key_is_kept_on_the_disk(tmp_path: Path, spool: Path, keys: Keys) -> None:
    package = tmp_path / "x.exe"
    package.write_bytes(b"x" * 1000)
    made(package, keys, spool)

    for path in spool.iterdir():
        stored = path.read_bytes()
        for key in (keys.encryption, keys.mac):
            assert key not in stored
            assert key.hex().encode() not in stored
            assert base64.b64encode(key) not in stored


def test_keys_differ_by_secret_marker_and_package() -> None:
    all_keys = [
        Keys.derive(secret, marker=marker, sha256=sha)
        for secret in ("a", "b")
        for marker in ("1/intune", "2/intune")
        for sha in ("ab" * 32, "cd" * 32)
    ]

    for part in ("name", "encryption", "mac", "iv"):
        assert len({getattr(keys, part) for keys in all_keys}) == 8
    assert Keys.derive("a", marker="m", sha256="AB" * 32) == Keys.derive("a", marker="m", sha256="ab" * 32)
    assert {len(keys.encryption) for keys in all_keys} == {32}


def test_keys_and_sheets_are_not_shown(tmp_path: Path, spool: Path, keys: Keys) -> None:
    package = tmp_path / "x.exe"
    package.write_bytes(b"x")
    content = made(package, keys, spool)

    shown = repr(keys) + repr(content)

    assert content.encryption["encryptionKey"] not in shown
    assert repr(keys.encryption) not in shown


def test_a_package_that_changes_while_it_is_read_is_not_used(tmp_path: Path, spool: Path, keys: Keys) -> None:
    package = tmp_path / "x.exe"
    package.write_bytes(b"x" * 1000)
    steps: Iterator[int] = make_content(package, "x.exe", keys, spool)
    next(steps)
    package.write_bytes(b"y" * 2000)

    with pytest.raises(TransientError):
        list(steps)

    assert not content_path(spool, keys).exists()


def test_a_complete_content_is_not_made_again(tmp_path: Path, spool: Path, keys: Keys) -> None:
    package = tmp_path / "x.exe"
    package.write_bytes(b"x" * 1000)
    made(package, keys, spool)

    assert list(make_content(package, "x.exe", keys, spool)) == []


SHEET = """<?xml version="1.0" encoding="utf-8"?>
<ApplicationInfo xmlns:xsd="http://www.w3.org/2001/XMLSchema" ToolVersion="1.8.6.0">
  <Name>setup.exe</Name>
  <UnencryptedContentSize>{size}</UnencryptedContentSize>
  <FileName>IntunePackage.intunewin</FileName>
  <SetupFile>setup.exe</SetupFile>
  <EncryptionInfo>
    <EncryptionKey>{encryptionKey}</EncryptionKey>
    <MacKey>{macKey}</MacKey>
    <InitializationVector>{initializationVector}</InitializationVector>
    <Mac>{mac}</Mac>
    <ProfileIdentifier>ProfileVersion1</ProfileIdentifier>
    <FileDigest>{fileDigest}</FileDigest>
    <FileDigestAlgorithm>SHA256</FileDigestAlgorithm>
  </EncryptionInfo>
</ApplicationInfo>
"""


def prepared(folder: Path, sheet: str = SHEET) -> tuple[Path, bytes]:
    """A Content Prep archive, made as Microsoft's tool makes it; and what is inside it."""
    theirs, spool = Keys.derive("the tool's", marker="its", sha256=SHA), folder / "tool"
    spool.mkdir()
    package = folder / "setup.exe"
    package.write_bytes(b"installer" * 500)
    inner = made(package, theirs, spool)
    archive = folder / "setup.intunewin"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(DETECTION, "\ufeff" + sheet.format(size=inner.size, **inner.encryption))
        file.write(inner.path, INNER)
    return archive, inner.path.read_bytes()


def test_an_archive_of_microsofts_tool_goes_out_unchanged(tmp_path: Path, spool: Path, keys: Keys) -> None:
    archive, inside = prepared(tmp_path)

    content = made(archive, keys, spool)

    assert is_archive(archive)
    assert content.path.read_bytes() == inside
    assert content.setup_file == "setup.exe"
    assert content.encryption["profileIdentifier"] == "ProfileVersion1"
    assert content.encryption["encryptionKey"] != base64.b64encode(keys.encryption).decode()
    with zipfile.ZipFile(io.BytesIO(opened(content))) as plain:
        assert plain.read("setup.exe") == b"installer" * 500


def test_an_ordinary_zip_is_a_package_like_any_other(tmp_path: Path, spool: Path, keys: Keys) -> None:
    package = tmp_path / "app.zip"
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("a.txt", "a")

    assert not is_archive(package)
    with zipfile.ZipFile(io.BytesIO(opened(made(package, keys, spool, "app.zip")))) as outer:
        assert outer.namelist() == ["app.zip"]


@pytest.mark.parametrize(
    "sheet",
    [
        "not xml at all",
        "<ApplicationInfo/>",
        SHEET.replace("<Mac>{mac}</Mac>", ""),
        SHEET.replace("{size}", "many"),
        SHEET.replace("<ApplicationInfo", '<!DOCTYPE a [<!ENTITY b "c">]><ApplicationInfo', 1),
        "x" * (2**20 + 1),
    ],
    ids=["no xml", "empty", "a key is missing", "no size", "a document type", "too big"],
)
def test_an_archive_with_a_strange_sheet_is_refused(
    tmp_path: Path, spool: Path, keys: Keys, sheet: str
) -> None:
    archive, _ = prepared(tmp_path, sheet)

    with pytest.raises(PermanentError, match="Content Prep"):
        made(archive, keys, spool)


def test_the_sheet_beside_the_content_tells_sizes_only(tmp_path: Path, spool: Path, keys: Keys) -> None:
    package = tmp_path / "x.exe"
    package.write_bytes(b"x")
    content = made(package, keys, spool)

    assert set(json.loads(content.path.with_suffix(".json").read_text())) == {"digest", "size"}
