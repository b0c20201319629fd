"""Reading one certificate. Most of its refusals stand in the attack table of `tests/attacks/test_peers_attacks.py`."""

from __future__ import annotations

import warnings

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from tests.forge import NOW, Forge, spiffe
from trust.certificates import MAX_CERTIFICATE_BYTES, Certificate
from trust.errors import MalformedCertificate, WeakKey

FORGE = Forge()
VALID = FORGE.leaf()
VALIDITY = (VALID.certificate.not_valid_before_utc, VALID.certificate.not_valid_after_utc)
KEY = ec.derive_private_key(3, ec.SECP256R1())


def test_all_parts_are_read() -> None:
    der = VALID.chain_der[0]
    certificate = Certificate.read(der)
    assert certificate.der == der
    assert certificate.parsed == VALID.certificate
    assert certificate.subject == VALID.certificate.subject
    assert certificate.issuer == FORGE.intermediate.subject
    assert certificate.serial == VALID.certificate.serial_number
    assert certificate.not_before == VALID.certificate.not_valid_before_utc < NOW
    assert certificate.not_after == VALID.certificate.not_valid_after_utc > NOW
    assert certificate.public_key == VALID.private_key.public_key()
    assert certificate.public_key_der in der
    assert certificate.uris == ("spiffe://fleet.example/billing",)
    assert certificate.extension(x509.BasicConstraints) == x509.BasicConstraints(False, None)
    assert certificate.extension(x509.NameConstraints) is None


@pytest.mark.parametrize("warnings_are", ["error", "ignore"])
def test_a_serial_that_is_not_positive_is_refused_whatever_a_program_does_with_warnings(warnings_are: str) -> None:
    der = FORGE.leaf(serial=0x1234567890).chain_der[0]
    negative = der.replace(b"\x02\x05\x12\x34\x56\x78\x90", b"\x02\x05\x92\x34\x56\x78\x90")
    with warnings.catch_warnings():
        warnings.simplefilter(warnings_are)  # type: ignore[arg-type]
        with pytest.raises(MalformedCertificate):
            Certificate.read(negative)


@pytest.mark.parametrize(("serial", "readable"), [(2**159 - 1, True), (2**159, False), (2**168, False)])
def test_a_serial_has_at_most_20_octets(serial: int, readable: bool) -> None:
    subject, issuer = VALID.certificate.subject, FORGE.intermediate.subject
    builder = x509.CertificateBuilder(issuer, subject, KEY.public_key(), serial, *VALIDITY, [])
    der = builder.sign(FORGE.key, hashes.SHA256()).public_bytes(Encoding.DER)
    if readable:
        assert Certificate.read(der).serial == serial
    else:
        with pytest.raises(MalformedCertificate, match="20 octets"):
            Certificate.read(der)


def test_the_largest_certificate_that_is_read() -> None:
    def sized(filler: int) -> bytes:
        content = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x00" * filler)
        return FORGE.leaf(key=key, serial=7, extra=[(content, False)]).chain_der[0]

    key = rsa.generate_private_key(65537, 2048)
    filler = MAX_CERTIFICATE_BYTES - len(sized(10_000)) + 10_000 - 4  # ECDSA signatures differ by a few bytes
    assert Certificate.read(sized(filler)).serial == 7
    with pytest.raises(MalformedCertificate, match="too large"):
        Certificate.read(sized(filler + 16))


def test_the_name_is_for_people() -> None:
    def name(**changes: object) -> str:
        return Certificate.read(FORGE.leaf(**changes).chain_der[0]).name  # type: ignore[arg-type]

    assert name() == "spiffe://fleet.example/billing"
    assert name(sans=None) == "CN=agent"
    unnamed = x509.CertificateBuilder(FORGE.root.subject, x509.Name([]), KEY.public_key(), 0xABC, *VALIDITY, [])
    der = unnamed.sign(FORGE.root_key, hashes.SHA256()).public_bytes(Encoding.DER)
    assert Certificate.read(der).name == f"serial {0xABC}"


def test_a_weak_key_is_named_in_the_message() -> None:
    weak = FORGE.leaf("/weak", key=rsa.generate_private_key(65537, 1024), sans=[spiffe("spiffe://fleet.example/weak")])
    with pytest.raises(WeakKey, match=r"RSA of 1024 bits in the certificate of spiffe://fleet\.example/weak"):
        Certificate.read(weak.chain_der[0])


@pytest.mark.parametrize(
    ("bits", "exponent", "words"),
    [
        (2047, 65537, "RSA of 2047 bits"),
        (8193, 65537, "RSA of 8193 bits"),
        (2048, (1 << 32) + 1, "RSA with a huge exponent"),
    ],
)
def test_rsa_keys_that_cost_too_much_or_too_little_are_refused(bits: int, exponent: int, words: str) -> None:
    # The modulus has the size of one; nobody needs to know its factors to put it into a certificate.
    modulus = (1 << (bits - 1)) + 1
    key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    made = x509.CertificateBuilder(FORGE.intermediate.subject, VALID.certificate.subject, key, 5, *VALIDITY, []).sign(
        FORGE.key, hashes.SHA256()
    )
    with pytest.raises(WeakKey, match=words):
        Certificate.read(made.public_bytes(Encoding.DER))
