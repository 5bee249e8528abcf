"""Certificates: those that are given are checked before a model is loaded, and one is made where none is.

Browsers give a page the microphone only on localhost or over https. A self-signed certificate is enough for that, once
the person has told the browser to go on; it is kept, so that they are asked once.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from personaplex.errors import OutputError, UsageError
from personaplex.files import whole_file

if TYPE_CHECKING:
    from cryptography.x509 import GeneralName

_LASTS = timedelta(days=820)
"""Longer than that, Apple's systems do not take one."""


def check_pair(certificate: Path, key: Path) -> None:
    """Raise UsageError unless these PEM files can be read and belong together."""
    for path in (certificate, key):
        if not path.is_file():
            raise UsageError(f"{path} does not exist; --tls takes a certificate and its key, as PEM files")
    try:
        # A key with a passphrase would ask for it on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: b"")
    except (ssl.SSLError, OSError) as error:
        why = getattr(error, "reason", None) or error.strerror or error
        raise UsageError(
            f"{certificate} and {key} cannot be used: {why}; expected a certificate and its key, as PEM, no passphrase"
        ) from error


def self_signed(folder: Path, host: str) -> tuple[Path, Path]:
    """The certificate of this machine in `folder`, made if there is none that is good for another week and for `host`.

    Raises UsageError where the package that makes it is missing, OutputError where it cannot be written.
    """
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    names = _names(host)
    if not _is_good(certificate, key, names):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {folder}: {error.strerror}") from error
        _make(certificate, key, names)
    return certificate, key


def _names(host: str) -> list[str]:
    return sorted({"localhost", "127.0.0.1", "::1", socket.gethostname(), host.strip("[]")} - {"", "0.0.0.0", "::"})


def _is_good(certificate: Path, key: Path, names: list[str]) -> bool:
    from cryptography import x509

    try:
        check_pair(certificate, key)
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        known = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (UsageError, ValueError, OSError, x509.ExtensionNotFound):
        return False
    lasts = found.not_valid_after_utc - datetime.now(UTC) > timedelta(days=7)
    return lasts and {str(name.value) for name in known} >= set(names)


def _make(certificate: Path, key: Path, names: list[str]) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "PersonaPlex on this machine")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + _LASTS)
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(secret, hashes.SHA256())
    )
    private = secret.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    before = os.umask(0o077)  # nobody else's to read, at no moment
    try:
        with whole_file(key) as temporary:
            temporary.write_bytes(private)
        with whole_file(certificate) as temporary:
            temporary.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    finally:
        os.umask(before)


def _general(name: str) -> GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
