"""An agent's chain and key: in memory, in files, and refused where they do not belong together."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from tests.forge import Forge
from trust.credentials import CHAIN_FILE, KEY_FILE, MAX_FILE_BYTES, Credentials, read_bounded, write_atomically
from trust.errors import CredentialsError, WrongPassword

FORGE = Forge()
MINE = FORGE.leaf()
OTHERS = FORGE.leaf("/other")
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX file modes")


def test_chain_and_key_are_joined() -> None:
    joined = Credentials.of(MINE.chain, MINE.private_key)
    assert joined == MINE
    assert joined.certificate is MINE.chain[0]
    assert joined.chain_der == [c.public_bytes(Encoding.DER) for c in MINE.chain]
    assert joined.current() is joined
    assert "key" not in repr(joined) and "chain" not in repr(joined)


def test_ed25519() -> None:
    agent = FORGE.leaf(key=ed25519.Ed25519PrivateKey.generate())
    again = Credentials.from_pem(agent.chain_pem, agent.key_pem("password"), "password")
    assert again.thumbprint == agent.thumbprint


@pytest.mark.parametrize(
    ("chain", "key", "message"),
    [
        ((), MINE.private_key, "no certificate"),
        (MINE.chain, OTHERS.private_key, "belongs to another"),
        (MINE.chain[::-1], MINE.private_key, "belongs to another"),
        (MINE.chain, ed25519.Ed25519PrivateKey.generate(), "belongs to another"),
        (MINE.chain, MINE.private_key.public_key(), "expected an EC or Ed25519 key"),
        (FORGE.leaf(key=(key := rsa.generate_private_key(65537, 2048))).chain, key, "got RSAPrivateKey"),
        (FORGE.leaf(sans=None, key=MINE.private_key).chain, MINE.private_key, "names no agent"),
    ],
    ids=["no chain", "another key", "leaf not first", "another kind", "a public key", "RSA", "no SPIFFE ID"],
)
def test_parts_that_do_not_belong_together(chain: tuple[x509.Certificate, ...], key: object, message: str) -> None:
    with pytest.raises(CredentialsError, match=message):
        Credentials.of(chain, key)  # type: ignore[arg-type]


def test_a_certificate_whose_key_cannot_be_read() -> None:
    point = MINE.private_key.public_key().public_bytes(Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    off_curve = MINE.chain_der[0].replace(point, point[:-1] + bytes([point[-1] ^ 1]))
    with pytest.raises(CredentialsError, match="belongs to another"):
        Credentials.of((x509.load_der_x509_certificate(off_curve),), MINE.private_key)


# Files


@pytest.mark.parametrize("password", [None, "correct horse", b"battery staple"])
def test_saved_and_loaded(tmp_path: Path, password: str | bytes | None) -> None:
    folder = tmp_path / "agents" / "billing"
    MINE.save(folder, password)
    loaded = Credentials.load(folder, password)
    assert loaded.chain == MINE.chain
    assert loaded.thumbprint == MINE.thumbprint
    assert loaded.key_pem() == MINE.key_pem()
    assert (b"ENCRYPTED" in (folder / KEY_FILE).read_bytes()) == (password is not None)
    assert sorted(p.name for p in folder.iterdir()) == [CHAIN_FILE, KEY_FILE]


@posix
def test_the_key_is_its_owners_alone(tmp_path: Path) -> None:
    MINE.save(tmp_path / "a")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "a" / KEY_FILE).stat().st_mode) == 0o600
    (tmp_path / "a" / KEY_FILE).chmod(0o644)  # an older file with too wide a mode is replaced, not filled
    MINE.save(tmp_path / "a")
    assert stat.S_IMODE((tmp_path / "a" / KEY_FILE).stat().st_mode) == 0o600


def test_one_file_with_both(tmp_path: Path) -> None:
    file = tmp_path / "agent.pem"
    for content in (MINE.chain_pem + MINE.key_pem(), MINE.key_pem() + MINE.chain_pem):
        file.write_bytes(content)
        assert Credentials.load(file).thumbprint == MINE.thumbprint


def test_a_key_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "certs.pem").write_bytes(MINE.chain_pem)
    (tmp_path / "secret.pem").write_bytes(MINE.key_pem())
    assert Credentials.load(tmp_path / "certs.pem", key=tmp_path / "secret.pem").thumbprint == MINE.thumbprint
    (tmp_path / CHAIN_FILE).write_bytes(MINE.chain_pem)
    assert Credentials.load(str(tmp_path), key=str(tmp_path / "secret.pem")).thumbprint == MINE.thumbprint


def test_a_password_for_a_key_that_needs_none() -> None:
    assert Credentials.from_pem(MINE.chain_pem, MINE.key_pem(), "unneeded").thumbprint == MINE.thumbprint


@pytest.mark.parametrize("password", [None, "", "wrong"])
def test_a_missing_or_wrong_password(password: str | None) -> None:
    with pytest.raises(WrongPassword):
        Credentials.from_pem(MINE.chain_pem, MINE.key_pem("right"), password)


def test_an_old_encrypted_pem() -> None:
    legacy = MINE.private_key.private_bytes(  # type: ignore[union-attr]
        Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.BestAvailableEncryption(b"right"),
    )
    assert Credentials.from_pem(MINE.chain_pem, legacy, "right").thumbprint == MINE.thumbprint
    with pytest.raises(WrongPassword):
        Credentials.from_pem(MINE.chain_pem, legacy)


RSA_KEY = rsa.generate_private_key(65537, 2048).private_bytes(
    Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
# An elliptic curve that OpenSSL knows and the parser does not: SM2, in PKCS#8.
SM2_KEY = b"""-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqBHM9VAYItBG0wawIBAQQgAQEBAQEBAQEBAQEB
AQEBAQEBAQEBAQEBAQEBAQEBAQGhRANCAAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==
-----END PRIVATE KEY-----
"""


@pytest.mark.parametrize("password", [None, "any"])
@pytest.mark.parametrize(
    "key_pem",
    [b"", b"rubbish", MINE.chain_pem, MINE.key_pem()[:-60], RSA_KEY, SM2_KEY],
    ids=["empty", "rubbish", "a certificate", "cut short", "RSA", "an unknown curve"],
)
def test_what_is_not_a_private_key_of_ours(key_pem: bytes, password: str | None) -> None:
    with pytest.raises(CredentialsError) as caught:
        Credentials.from_pem(MINE.chain_pem, key_pem, password)
    assert type(caught.value) is CredentialsError


@pytest.mark.parametrize("chain_pem", [b"", b"rubbish", MINE.key_pem(), MINE.chain_pem[:100]])
def test_what_is_not_a_chain(chain_pem: bytes) -> None:
    with pytest.raises(CredentialsError, match="chain is not readable"):
        Credentials.from_pem(chain_pem, MINE.key_pem())


def test_no_secret_in_any_message() -> None:
    secret = "correct horse battery staple"
    with pytest.raises(WrongPassword) as caught:
        Credentials.from_pem(MINE.chain_pem, MINE.key_pem("right"), secret)
    assert secret not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="cannot read"):
        Credentials.load(tmp_path / "missing.pem")
    with pytest.raises(CredentialsError, match=CHAIN_FILE):
        Credentials.load(tmp_path)
    (tmp_path / CHAIN_FILE).write_bytes(MINE.chain_pem)
    with pytest.raises(CredentialsError, match=KEY_FILE):
        Credentials.load(tmp_path)


def test_large_files_are_not_read(tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(b"x" * MAX_FILE_BYTES)
    assert len(read_bounded(file)) == MAX_FILE_BYTES
    file.write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    with pytest.raises(CredentialsError, match="too large"):
        read_bounded(file)


def test_a_write_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"old", mode=0o600)

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(CredentialsError, match="No space left"):
        write_atomically(file, b"new", mode=0o600)
    assert file.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CredentialsError, match="cannot create"):
        MINE.save(tmp_path / "file" / "sub")
    with pytest.raises(CredentialsError, match="cannot write"):
        write_atomically(tmp_path / "missing" / "file", b"", mode=0o600)
    (tmp_path / "folder" / KEY_FILE).mkdir(parents=True)
    with pytest.raises(CredentialsError, match="cannot write"):
        MINE.save(tmp_path / "folder")


def test_p384_keys_are_kept() -> None:
    agent = FORGE.leaf(key=ec.generate_private_key(ec.SECP384R1()))
    assert Credentials.from_pem(agent.chain_pem, agent.key_pem()).private_key.key_size == 384  # type: ignore[union-attr]
