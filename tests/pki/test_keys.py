"""The CA's keys: opened by the right password, here and by openssl, and by nothing else; and other signers."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

from pki import keys, ledger
from pki.errors import AuthorityDamaged, KeyStoreError, PKIError, WrongPassword
from tests.pki import books
from tests.pki.judges import needs_openssl, openssl
from trust import private_keys

KEY = keys.generate()
PASSWORD = "pässword"
SEALED = private_keys.write(KEY, PASSWORD)


def test_round_trip() -> None:
    assert keys.read(keys.write(KEY, PASSWORD), PASSWORD).private_numbers() == KEY.private_numbers()


def test_a_new_key_is_on_p256() -> None:
    assert isinstance(KEY.curve, ec.SECP256R1)
    assert keys.generate().private_numbers() != KEY.private_numbers()


def test_two_files_of_one_key_share_nothing() -> None:
    assert private_keys.write(KEY, PASSWORD).splitlines()[2:-2] != SEALED.splitlines()[2:-2]


@needs_openssl
@pytest.mark.usefixtures("full_scrypt")
def test_openssl_opens_it_and_finds_scrypt(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(private_keys.write(KEY, PASSWORD))
    opened = openssl("pkey", "-in", file, "-passin", f"pass:{PASSWORD}", "-pubout")
    public = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert opened.stdout.encode() == public, opened.stderr
    assert openssl("pkey", "-in", file, "-passin", "pass:wrong", "-pubout").returncode != 0
    parsed = openssl("asn1parse", "-in", file).stdout
    assert ":scrypt" in parsed.replace("id-scrypt", "scrypt")
    assert ":aes-256-cbc" in parsed
    assert ":4000" in parsed, "N = 2^14, in hexadecimal"


def _clear(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


RSA = rsa.generate_private_key(65537, 2048).private_bytes(
    Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSWORD.encode())
)

P521 = private_keys.write(ec.generate_private_key(ec.SECP521R1()), PASSWORD)
ED25519 = private_keys.write(ed25519.Ed25519PrivateKey.generate(), PASSWORD)
ATTACKS: list[tuple[str, bytes, str, type[PKIError]]] = [
    ("wrong password", SEALED, "password", WrongPassword),
    ("empty password", SEALED, "", WrongPassword),
    ("key in the clear", _clear(KEY), PASSWORD, AuthorityDamaged),
    ("key in the clear, called encrypted", _clear(KEY) + b"BEGIN ENCRYPTED PRIVATE KEY", PASSWORD, WrongPassword),
    ("nothing", b"", PASSWORD, AuthorityDamaged),
    ("cut", SEALED[:200], PASSWORD, AuthorityDamaged),
    ("RSA key", RSA, PASSWORD, AuthorityDamaged),
    ("Ed25519 key", ED25519, PASSWORD, AuthorityDamaged),
    ("curve P-521", P521, PASSWORD, AuthorityDamaged),
]


@pytest.mark.parametrize(
    ("content", "password", "expected"), [row[1:] for row in ATTACKS], ids=[row[0] for row in ATTACKS]
)
def test_refused(content: bytes, password: str, expected: type[PKIError]) -> None:
    with pytest.raises(PKIError) as caught:
        keys.read(content, password)
    assert type(caught.value) is expected


def test_an_empty_password_writes_nothing() -> None:
    with pytest.raises(WrongPassword):
        keys.write(KEY, "")


# The key of a CA.


def test_the_key_of_a_ca_opens() -> None:
    issuer = replace(books.ISSUER, key_pem=keys.write(books.KEY, PASSWORD))
    assert keys.open_signer(issuer, password=PASSWORD, pin=None).public_key() == books.KEY.public_key()
    assert "PRIVATE" not in repr(issuer)


OPENING: list[tuple[str, dict[str, Any], str | None, type[PKIError], str]] = [
    ("wrong password", {"key_pem": SEALED}, "x", WrongPassword, "key of the intermediate CA does not open"),
    ("no password", {"key_pem": SEALED}, None, WrongPassword, "got no password"),
    ("another CA's key", {"key_pem": SEALED}, PASSWORD, AuthorityDamaged, "is not the one in its certificate"),
    ("damaged", {"key_pem": b"x"}, PASSWORD, AuthorityDamaged, "key of the intermediate CA is damaged"),
    ("offline", {}, PASSWORD, KeyStoreError, "key of the intermediate CA is not here"),
    ("on a token, without a PIN", {"key_uri": "pkcs11:"}, PASSWORD, WrongPassword, "PIN of the token"),
]


@pytest.mark.parametrize(
    ("columns", "password", "expected", "line"), [row[1:] for row in OPENING], ids=[row[0] for row in OPENING]
)
def test_no_other_key_opens(columns: dict[str, Any], password: str | None, expected: type[PKIError], line: str) -> None:
    with pytest.raises(PKIError, match=re.escape(line)) as caught:
        keys.open_signer(replace(books.ISSUER, **columns), password=password, pin=None)
    assert type(caught.value) is expected


# Signers that are no keys of `cryptography`.


class Elsewhere:
    """A key that nobody sees: all that a signer has to be."""

    def __init__(self, curve: ec.EllipticCurve) -> None:
        self._hidden = ec.generate_private_key(curve)
        self.signed: list[str] = []

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._hidden.public_key()

    def sign(self, data: bytes, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        assert isinstance(signature_algorithm.algorithm, hashes.HashAlgorithm)
        self.signed.append(signature_algorithm.algorithm.name)
        return self._hidden.sign(data, signature_algorithm)


class Broken(Elsewhere):
    """A token that answers with somebody else's signature."""

    def sign(self, data: bytes, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        return ec.generate_private_key(ec.SECP256R1()).sign(data, signature_algorithm)


class Absent(Elsewhere):
    def sign(self, data: bytes, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        raise KeyStoreError("token is gone")


def everything(signer: keys.Signer) -> list[Callable[[], object]]:
    """All that a CA signs."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA")])
    end = books.NOW + timedelta(days=1)
    certificate = x509.CertificateBuilder(name, name, signer.public_key(), 1, books.NOW, end)
    crl = x509.CertificateRevocationListBuilder(name, books.NOW, end)
    csr = x509.CertificateSigningRequestBuilder(name)
    head = ledger.Head(trust_domain="fleet.example", size=0, root=bytes(32), time=books.NOW)
    return [
        lambda: keys.sign(certificate, signer),
        lambda: keys.sign_crl(crl, signer),
        lambda: keys.sign_csr(csr, signer),
        lambda: ledger.sign_head(head, signer, "ab"),
    ]


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()], ids=lambda c: c.name)
@pytest.mark.parametrize("own", [True, False], ids=["a key of ours", "another signer"])
def test_everything_is_signed_by_whatever_signs(curve: ec.EllipticCurve, own: bool) -> None:
    elsewhere = Elsewhere(curve)
    signer: keys.Signer = ec.generate_private_key(curve) if own else elsewhere
    certificate, crl, csr, head = (sign() for sign in everything(signer))
    public = signer.public_key()
    assert isinstance(certificate, x509.Certificate)
    certificate.verify_directly_issued_by(certificate)
    assert isinstance(crl, x509.CertificateRevocationList) and crl.is_signature_valid(public)
    assert isinstance(csr, x509.CertificateSigningRequest) and csr.is_signature_valid
    assert isinstance(head, str) and ledger.verify_head(head, public).size == 0
    for signed in (certificate, crl, csr):
        assert signed.signature_hash_algorithm is not None
        assert signed.signature_hash_algorithm.digest_size * 8 == curve.key_size, "RFC 5480 section 4"
    if not own:
        assert elsewhere.signed == [f"sha{curve.key_size}"] * 4, "and it was it that signed"


def test_keys_of_ours_sign_deterministically() -> None:
    first, second = (everything(KEY)[0]() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("number", range(4), ids=["certificate", "CRL", "CSR", "tree head"])
def test_a_wrong_signature_makes_nothing(number: int) -> None:
    with pytest.raises(KeyStoreError, match="wrong signature"):
        everything(Broken(ec.SECP256R1()))[number]()


@pytest.mark.parametrize("number", range(4), ids=["certificate", "CRL", "CSR", "tree head"])
def test_an_error_of_the_token_comes_through(number: int) -> None:
    with pytest.raises(KeyStoreError, match="token is gone"):
        everything(Absent(ec.SECP256R1()))[number]()


def test_an_adapted_signer_gives_no_key_away() -> None:
    key = keys.private_key(Elsewhere(ec.SECP256R1()))
    assert copy.copy(key) is key
    assert copy.deepcopy(key) is key
    assert (key.key_size, key.curve.name) == (256, "secp256r1")
    secrets: list[Callable[[], object]] = [
        key.private_numbers,
        lambda: key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        lambda: key.exchange(ec.ECDH(), KEY.public_key()),
    ]
    for secret in secrets:
        with pytest.raises(KeyStoreError, match="does not leave its token"):
            secret()


def test_a_key_of_ours_is_not_adapted() -> None:
    assert keys.private_key(KEY) is KEY
