"""Certificates that are given, and one that is made."""

from __future__ import annotations

import ssl
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from personaplex.errors import OutputError, UsageError
from personaplex.server import tls
from personaplex.server.tls import check_pair, self_signed


def names(certificate: Path) -> set[str]:
    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    known = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in known}


def test_it_is_made_once_for_this_machine_and_nobody_else_reads_its_key(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path / "tls", "0.0.0.0")
    check_pair(certificate, key)
    assert names(certificate) >= {"localhost", "127.0.0.1", "::1"} and "0.0.0.0" not in names(certificate)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700
    before = certificate.read_bytes()
    assert self_signed(tmp_path / "tls", "127.0.0.1")[0].read_bytes() == before, "browsers were told of this one"
    ssl.create_default_context(cafile=certificate)


def test_it_is_made_anew_for_another_name_when_it_ends_or_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = self_signed(tmp_path, "")
    first = certificate.read_bytes()
    self_signed(tmp_path, "192.0.2.7")
    assert "192.0.2.7" in names(certificate) and certificate.read_bytes() != first
    second = certificate.read_bytes()
    key.write_text("nonsense")
    self_signed(tmp_path, "192.0.2.7")
    third = certificate.read_bytes()
    assert third != second
    with monkeypatch.context() as patch:
        patch.setattr(tls, "_LASTS", timedelta(days=6))
        key.unlink()
        self_signed(tmp_path, "192.0.2.7")
    short = certificate.read_bytes()
    self_signed(tmp_path, "192.0.2.7")
    assert certificate.read_bytes() != short, "less than a week is left of it"


def test_files_that_do_not_go_together_are_told(tmp_path: Path) -> None:
    one, one_key = self_signed(tmp_path / "one", "")
    _, other_key = self_signed(tmp_path / "other", "")
    with pytest.raises(UsageError, match="cannot be used"):
        check_pair(one, other_key)
    with pytest.raises(UsageError, match="cannot be used"):
        check_pair(one_key, one)
    with pytest.raises(UsageError, match="does not exist"):
        check_pair(one, tmp_path / "nothing.pem")
    secret = load_pem_private_key(one_key.read_bytes(), None)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")))
    with pytest.raises(UsageError, match="no passphrase"):
        check_pair(one, locked)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make the folder"):
        self_signed(tmp_path / "file" / "tls", "")
