"""The CA's key files: opened by the right password, by this library and by openssl, and by nothing else."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from pki import keys, profiles
from pki.errors import AuthorityDamaged, PKIError, WrongPassword
from pki.profiles import Issuer
from tests.pki.conftest import DOMAIN, NOW
from tests.pki.judges import listing, needs_openssl, openssl
from trust import private_keys
from trust.errors import CredentialsError

KEY = keys.generate()
PASSWORD = "pässword"
SEALED = private_keys.write(KEY, PASSWORD)


def test_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    keys.save(KEY, file, PASSWORD)
    assert keys.load(file, PASSWORD).private_numbers() == KEY.private_numbers()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert listing(tmp_path) == ["key.pem"]


def test_a_new_key_is_on_p256() -> None:
    assert isinstance(KEY.curve, ec.SECP256R1)
    assert keys.generate().private_numbers() != KEY.private_numbers()


def test_two_files_of_one_key_share_nothing() -> None:
    assert private_keys.write(KEY, PASSWORD).splitlines()[2:-2] != SEALED.splitlines()[2:-2]


@needs_openssl
def test_openssl_opens_it_and_finds_scrypt(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(SEALED)
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

ATTACKS: list[tuple[str, bytes, str, type[PKIError]]] = [
    ("wrong password", SEALED, "password", WrongPassword),
    ("empty password", SEALED, "", WrongPassword),
    ("key in the clear", _clear(KEY), PASSWORD, AuthorityDamaged),
    ("nothing", b"", PASSWORD, AuthorityDamaged),
    ("RSA key", RSA, PASSWORD, AuthorityDamaged),
]


@pytest.mark.parametrize(
    ("content", "password", "expected"), [row[1:] for row in ATTACKS], ids=[row[0] for row in ATTACKS]
)
def test_refused(content: bytes, password: str, expected: type[PKIError], tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(content)
    with pytest.raises(PKIError) as caught:
        keys.load(file, password)
    assert type(caught.value) is expected


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match=r"cannot read .*key\.pem"):
        keys.load(tmp_path / "key.pem", PASSWORD)


def test_an_empty_password_seals_nothing(tmp_path: Path) -> None:
    with pytest.raises(WrongPassword):
        keys.save(KEY, tmp_path / "key.pem", "")
    assert listing(tmp_path) == []


class TokenKey(ec.EllipticCurvePrivateKey):
    """A key that cannot leave its token: what a PKCS#11 key will look like."""

    def __init__(self, hidden: ec.EllipticCurvePrivateKey) -> None:
        self._hidden = hidden

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._hidden.public_key()

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._hidden.curve

    @property
    def key_size(self) -> int:
        return self._hidden.key_size

    def sign(self, data: bytes, algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:  # type: ignore[override]
        return self._hidden.sign(data, algorithm)

    def exchange(self, *_: object) -> bytes:
        raise AssertionError

    def private_numbers(self) -> ec.EllipticCurvePrivateNumbers:
        raise AssertionError

    def private_bytes(self, *_: object) -> bytes:
        raise AssertionError

    def __copy__(self) -> TokenKey:
        return self

    def __deepcopy__(self, memo: object) -> TokenKey:
        return self


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()], ids=lambda c: c.name)
def test_a_key_on_a_token_signs(curve: ec.EllipticCurve) -> None:
    key = TokenKey(ec.generate_private_key(curve))
    root = keys.sign(profiles.root(trust_domain=DOMAIN, public_key=key.public_key(), serial=1, now=NOW), key)
    root.verify_directly_issued_by(root)
    assert root.signature_hash_algorithm is not None
    assert root.signature_hash_algorithm.digest_size * 8 == curve.key_size, "RFC 5480 section 4"
    crl = keys.sign_crl(profiles.revocation_list([], issuer=Issuer.of(root), number=1, now=NOW), key)
    assert isinstance(crl, x509.CertificateRevocationList)
    assert crl.is_signature_valid(key.public_key())
