# SPDX-License-Identifier: Apache-2.0
"""Certificates of every kind that a service may show."""

import datetime as dt
import hashlib
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Authority:
    """A root that signs; ``file`` and ``folder`` hold its certificate as ``SSL_CERT_*`` name it."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def file(self) -> Path:
        return next(self.folder.glob("*.0"))

    def trusted(self) -> ssl.SSLContext:
        """What a client is given to trust this root and no other."""
        return ssl.create_default_context(cafile=str(self.file))

    def shows(self, name: str = "localhost", *, ended: bool = False) -> ssl.SSLContext:
        """What a server is given to show a certificate for ``name``."""
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = _signed(name, key, self.key, issuer=self.certificate.subject, ended=ended)
        return self._served(key, leaf)

    def shows_itself(self) -> ssl.SSLContext:
        """What a server is given to show a certificate that it signed itself."""
        return self._served(self.key, self.certificate)

    def _served(self, key: ec.EllipticCurvePrivateKey, leaf: x509.Certificate) -> ssl.SSLContext:
        pem = self.folder / f"{leaf.serial_number}.pem"
        pem.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + leaf.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context


def make_authority(folder: Path, name: str = "our own root") -> Authority:
    """A new root."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _signed(name, key, key, issuer=_called(name), is_authority=True)
    folder.mkdir(parents=True)
    (folder / f"{_hash(certificate.subject)}.0").write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
    )
    return Authority(folder, key, certificate)


def _signed(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    *,
    issuer: x509.Name,
    ended: bool = False,
    is_authority: bool = False,
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_called(name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=9))
        .not_valid_after(now + dt.timedelta(days=-1 if ended else 1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name.replace(" ", "-"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )


def _called(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _hash(name: x509.Name) -> str:
    """The file name under which OpenSSL looks for a root; right for short names in lower case."""
    without_outer_sequence = name.public_bytes()[2:]
    return hashlib.sha1(without_outer_sequence).digest()[3::-1].hex()
