# SPDX-License-Identifier: Apache-2.0
"""What Intune stores of a package: an encrypted ZIP, ``HMAC | IV | ciphertext``, and the sheet that opens it.

A Content Prep archive has both already; anything else is zipped and encrypted here. Keys come from the client
secret, the marker and the package's hash, so every worker makes the same bytes and no key is ever stored.
"""

import base64
import hashlib
import hmac
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from uuid import uuid4
from xml.etree import ElementTree as ET

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.connectors.sources import PIECE, Identity
from app.resilience.errors import PermanentError, TransientError

DETECTION = "IntuneWinPackage/Metadata/Detection.xml"
INNER = "IntuneWinPackage/Contents/IntunePackage.intunewin"
MAX_DETECTION_BYTES = 2**20
MAC_BYTES = 32
AES_BLOCK = 16
EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Keys:
    """Key material of one upload, and a name for its files that tells nothing of it."""

    name: str
    encryption: bytes = field(repr=False)
    mac: bytes = field(repr=False)
    iv: bytes = field(repr=False)

    @classmethod
    def derive(cls, secret: str, *, marker: str, sha256: str) -> "Keys":
        """The same for the same three everywhere; a rotated secret makes other keys and another name."""
        purpose = f"eucora intune content 1\n{marker}\n{sha256.lower()}".encode()
        stream = HKDF(hashes.SHA256(), length=96, salt=None, info=purpose).derive(secret.encode())
        return cls(name=stream[80:].hex(), encryption=stream[:32], mac=stream[32:64], iv=stream[64:80])


@dataclass(frozen=True, slots=True)
class Content:
    """What is uploaded. ``encryption`` is Graph's ``fileEncryptionInfo``; archives name a ``setup_file``."""

    path: Path
    size: int
    size_encrypted: int
    encryption: dict[str, str] = field(repr=False)
    setup_file: str | None = None

    @property
    def seal(self) -> str:
        """Tells this content from any other: the HMAC over all of it."""
        return self.encryption["mac"]


def is_archive(package: Path) -> bool:
    """Whether the package is one of Microsoft's Content Prep Tool. Blocks."""
    if not zipfile.is_zipfile(package):
        return False
    with zipfile.ZipFile(package) as archive:
        return {DETECTION, INNER} <= set(archive.namelist())


def content_path(spool: Path, keys: Keys) -> Path:
    """Where the content of an upload lies once it is complete."""
    return spool / f"{keys.name}.content"


def make_content(package: Path, entry: str, keys: Keys, spool: Path) -> Iterator[int]:
    """Write the content into the spool, piece by piece; yields bytes written. Blocks.

    ``entry`` is the file's name inside the ZIP. A repeat of a complete content does nothing.

    Raises:
        TransientError: the package changed while it was read.
    """
    target = content_path(spool, keys)
    if target.exists() and (is_archive(package) or target.with_suffix(".json").exists()):
        return
    before = Identity.of(package)
    making = target.with_suffix(f".{uuid4().hex}.making")  # a cancelled run may still be writing to its own
    with making.open("w+b") as file:
        if is_archive(package):
            yield from _extract(package, file)
        else:
            yield from _zip_and_encrypt(package, entry, keys, file, target.with_suffix(".json"))
    if Identity.of(package) != before:
        making.unlink()
        raise TransientError(f"{package.name} changed while it was read", service="intune")
    making.replace(target)


def open_content(package: Path, keys: Keys, spool: Path) -> Content:
    """The complete content of an upload, with the sheet that opens it. Blocks."""
    path = content_path(spool, keys)
    if is_archive(package):
        return _archived(package, path)
    sheet = json.loads(path.with_suffix(".json").read_text("utf-8"))
    with path.open("rb") as file:
        mac = file.read(MAC_BYTES)
    encryption = {
        "encryptionKey": _text(keys.encryption),
        "macKey": _text(keys.mac),
        "initializationVector": _text(keys.iv),
        "mac": _text(mac),
        "profileIdentifier": "ProfileVersion1",
        "fileDigest": sheet["digest"],
        "fileDigestAlgorithm": "SHA256",
    }
    return Content(path, sheet["size"], path.stat().st_size, encryption)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


class _Sealer:
    """A file that is written once: hashes what comes in, encrypts it and authenticates what goes out."""

    def __init__(self, keys: Keys, out: IO[bytes]) -> None:
        self._out = out
        self._cipher = Cipher(algorithms.AES(keys.encryption), modes.CBC(keys.iv)).encryptor()
        self._mac = hmac.new(keys.mac, digestmod=hashlib.sha256)
        self.digest = hashlib.sha256()
        self.size = 0
        out.write(bytes(MAC_BYTES))
        self._emit(keys.iv)

    def write(self, plain: bytes) -> int:
        self.digest.update(plain)
        self.size += len(plain)
        self._emit(self._cipher.update(plain))
        return len(plain)

    def flush(self) -> None:
        """Nothing is held back that could be written."""

    def finish(self) -> None:
        missing = AES_BLOCK - self.size % AES_BLOCK  # PKCS#7: as many bytes as are missing, each their number
        self._emit(self._cipher.update(bytes([missing]) * missing) + self._cipher.finalize())
        self._out.seek(0)
        self._out.write(self._mac.digest())

    def _emit(self, sealed: bytes) -> None:
        self._mac.update(sealed)
        self._out.write(sealed)


def _zip_and_encrypt(package: Path, entry: str, keys: Keys, out: IO[bytes], sheet: Path) -> Iterator[int]:
    sealer = _Sealer(keys, out)
    with (
        package.open("rb") as source,
        zipfile.ZipFile(sealer, "w", zipfile.ZIP_STORED) as archive,  # type: ignore[call-overload]
        archive.open(_entry(entry, package), "w", force_zip64=True) as member,
    ):
        while piece := source.read(PIECE):
            member.write(piece)
            yield sealer.size
    sealer.finish()
    sheet.write_text(json.dumps({"digest": _text(sealer.digest.digest()), "size": sealer.size}), "utf-8")


def _entry(name: str, package: Path) -> zipfile.ZipInfo:
    """Nothing of it depends on the machine or the day. Stored: zlib's output differs between its versions."""
    entry = zipfile.ZipInfo(name, date_time=EPOCH)
    entry.create_system = 0
    entry.file_size = package.stat().st_size
    return entry


def _extract(package: Path, out: IO[bytes]) -> Iterator[int]:
    with zipfile.ZipFile(package) as archive, archive.open(INNER) as inner:
        while piece := inner.read(PIECE):
            out.write(piece)
            yield out.tell()


def _archived(package: Path, path: Path) -> Content:
    with zipfile.ZipFile(package) as archive:
        if archive.getinfo(DETECTION).file_size > MAX_DETECTION_BYTES:
            raise _unusable("its Detection.xml is too big")
        sheet = _parse(archive.read(DETECTION))
    try:
        keys = sheet["EncryptionInfo"]
        encryption = {
            name[0].lower() + name[1:]: (value.text or "").strip() for name, value in _children(keys).items()
        }
        size = int(sheet["UnencryptedContentSize"].text or "")
    except (KeyError, ValueError) as error:
        raise _unusable("its Detection.xml lacks sizes or keys") from error
    wanted = {
        "encryptionKey",
        "macKey",
        "initializationVector",
        "mac",
        "profileIdentifier",
        "fileDigest",
        "fileDigestAlgorithm",
    }
    if not wanted <= set(encryption):
        raise _unusable("its Detection.xml lacks keys")
    setup = sheet["SetupFile"].text if "SetupFile" in sheet else None
    return Content(
        path, size, path.stat().st_size, {name: encryption[name] for name in sorted(wanted)}, setup
    )


def _parse(raw: bytes) -> dict[str, ET.Element]:
    try:
        text = raw.decode("utf-8-sig")
        if "<!" in text:  # no document type, so no entities to expand
            raise _unusable("its Detection.xml declares a document type")
        return _children(ET.fromstring(text.partition("?>")[2] if text.startswith("<?xml") else text))  # noqa: S314
    except (UnicodeDecodeError, ET.ParseError) as error:
        raise _unusable("its Detection.xml cannot be read") from error


def _children(element: ET.Element) -> dict[str, ET.Element]:
    return {child.tag.rpartition("}")[2]: child for child in element}


def _unusable(why: str) -> PermanentError:
    return PermanentError(f"the Content Prep archive cannot be used: {why}", service="intune")
