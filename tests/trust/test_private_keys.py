from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from trust import private_keys
from trust.errors import ConfigurationError, CredentialsError, TrustError, WrongPassword

KEY = ec.generate_private_key(ec.SECP256R1())
CLEAR = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
LOCKED = private_keys.write(KEY, "right")
PBKDF2 = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"right"))
LEGACY = KEY.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"right"))
RSA_KEY = rsa.generate_private_key(65537, 2048)
BEGIN, END = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n", b"-----END ENCRYPTED PRIVATE KEY-----\n"
DER = base64.b64decode(b"".join(LOCKED.splitlines()[1:-1]))


# A key on prime239v1, which `cryptography` has no name for.
UNKNOWN_CURVE = KEY.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()).replace(
    bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030104")
)


def _pem(der: bytes) -> bytes:
    return b"-----BEGIN PRIVATE KEY-----\n" + base64.encodebytes(der) + b"-----END PRIVATE KEY-----\n"


def _sealed(der: bytes) -> bytes:
    class Other:
        def private_bytes(self, *_: Any) -> bytes:
            return der

    return private_keys.write(Other(), "right")  # type: ignore[arg-type]


def locked(der: bytes) -> bytes:
    return BEGIN + base64.encodebytes(der) + END


@pytest.mark.parametrize("password", ["pässword", "pässword".encode()])
@pytest.mark.parametrize("kind", private_keys.KINDS)
def test_what_is_written_is_read_again(kind: str, password: str | bytes) -> None:
    key = private_keys.generate(kind)
    again = private_keys.read(private_keys.write(key, password), "pässword")
    assert again.public_key() == key.public_key()


@pytest.mark.parametrize("kind", private_keys.KINDS)
def test_kinds_of_keys_and_what_follows_them(kind: str) -> None:
    key = private_keys.generate(kind)
    assert isinstance(key, private_keys.PrivateKey)
    assert isinstance(key, private_keys.PostQuantumKey) is (kind in private_keys.POST_QUANTUM)
    assert private_keys.ml_dsa(key.public_key()) == (kind if kind in private_keys.POST_QUANTUM else "")
    following = private_keys.successor(key)
    assert following.public_key() != key.public_key()
    assert private_keys.ml_dsa(following.public_key()) == private_keys.ml_dsa(key.public_key())
    assert kind in private_keys.POST_QUANTUM or isinstance(following, ec.EllipticCurvePrivateKey)


def test_a_kind_that_there_is_not() -> None:
    for kind in ("", "P-521", "ml-dsa-44", "RSA"):
        with pytest.raises(ConfigurationError, match="kind of key: got"):
            private_keys.generate(kind)


@pytest.mark.usefixtures("full_scrypt")
def test_each_file_has_its_own_salt_and_the_slow_derivation() -> None:
    locked = private_keys.write(KEY, "right")
    der = base64.b64decode(b"".join(locked.splitlines()[1:-1]))
    assert private_keys.write(KEY, "right") != locked
    assert bytes.fromhex("2b06010401da47040b") in der  # the OID of scrypt
    assert bytes.fromhex("02024000020108020105") in der  # N = 16384, r = 8, p = 5


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_openssl_opens_it(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(LOCKED)
    arguments = ["openssl", "pkey", "-in", str(file), "-passin", "pass:right", "-pubout"]
    public = subprocess.run(arguments, check=True, capture_output=True).stdout
    assert public == KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(("pem", "password"), [(CLEAR, None), (CLEAR, ""), (PBKDF2, "right"), (LEGACY, b"right")])
def test_what_other_tools_write_is_read_too(pem: bytes, password: Any) -> None:
    assert private_keys.read(pem, password).public_key() == KEY.public_key()


@pytest.mark.parametrize(
    ("pem", "password", "error"),
    [
        (LOCKED, None, WrongPassword),
        (LOCKED, "", WrongPassword),
        (LOCKED, "wrong", WrongPassword),
        (PBKDF2, b"wrong", WrongPassword),
        (LEGACY, "wrong", WrongPassword),
        (CLEAR, "right", WrongPassword),  # somebody may have put it there
        # Damaged or no key at all: no password would help.
        (b"no key", None, CredentialsError),
        (b"no key", "right", CredentialsError),
        (BEGIN + b"!!!!\n" + END, "right", CredentialsError),
        (locked(b"junk"), "right", CredentialsError),
        (locked(DER[:-16]), "right", CredentialsError),
        (KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), None, CredentialsError),
        # Other kinds.
        (RSA_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), None, CredentialsError),
        (_pem(UNKNOWN_CURVE), None, CredentialsError),
        (_sealed(UNKNOWN_CURVE), "right", CredentialsError),
    ],
)
def test_what_is_not_read(pem: bytes, password: Any, error: type[TrustError]) -> None:
    with pytest.raises(error) as caught:
        private_keys.read(pem, password)
    assert type(caught.value) is error


def test_a_password_is_never_empty() -> None:
    for empty in ("", b""):
        with pytest.raises(CredentialsError):
            private_keys.write(KEY, empty)
