"""Certificate requests off the wire: one good one, and everything else refused with its own error."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from pki import requests
from pki.errors import PossessionNotProven, RequestKeyRefused, RequestMalformed, RequestRefused, RequestTooLarge
from tests.pki.conftest import AGENT
from tests.pki.judges import request, uri

GOOD = request(uri(AGENT))

KEYS = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
}


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("encoding", [Encoding.DER, Encoding.PEM])
def test_the_key_and_the_ids_survive(name: str, encoding: Encoding) -> None:
    key = KEYS[name]
    algorithm = None if name == "Ed25519" else hashes.SHA384()
    parsed = requests.parse(request(uri(AGENT), key=key, algorithm=algorithm, encoding=encoding))
    assert parsed.public_key == key.public_key()
    assert parsed.uris == (AGENT,)


def test_a_request_without_names() -> None:
    assert requests.parse(request()).uris == ()


def test_all_ids_are_reported_and_other_names_are_not() -> None:
    parsed = requests.parse(request(uri("spiffe://a/b"), x509.DNSName("bank.example"), uri("https://bank.example")))
    assert parsed.uris == ("spiffe://a/b", "https://bank.example")


def _flip(data: bytes, index: int) -> bytes:
    return data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :]


def _other_key(data: bytes) -> bytes:
    """The request of somebody else, with our key written over theirs: possession of ours is not proven."""
    theirs = x509.load_der_x509_csr(data).public_key()
    ours = ec.generate_private_key(ec.SECP256R1()).public_key()
    old, new = (_point(key) for key in (theirs, ours))
    assert data.count(old) == 1
    return data.replace(old, new)


def _point(key: object) -> bytes:
    assert isinstance(key, ec.EllipticCurvePublicKey)
    numbers = key.public_numbers()
    return numbers.x.to_bytes(32) + numbers.y.to_bytes(32)


ATTACKS: list[tuple[str, bytes, type[RequestRefused]]] = [
    ("empty", b"", RequestMalformed),
    ("text", b"hello", RequestMalformed),
    ("empty PEM", b"-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n", RequestMalformed),
    ("PEM of something else", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", RequestMalformed),
    ("cut off", GOOD[:-1], RequestMalformed),
    ("something behind it", GOOD + b"\x00", RequestMalformed),
    ("another version", GOOD.replace(b"\x02\x01\x00", b"\x02\x01\x01", 1), RequestMalformed),
    ("too large", GOOD + b"\x00" * requests.MAX_REQUEST_BYTES, RequestTooLarge),
    ("one byte too large", b"\x30" * (requests.MAX_REQUEST_BYTES + 1), RequestTooLarge),
    ("signature changed", _flip(GOOD, len(GOOD) - 1), PossessionNotProven),
    ("another's key", _other_key(GOOD), PossessionNotProven),
    ("ID changed after signing", GOOD.replace(b"/billing", b"/payroll"), PossessionNotProven),
    ("signed with a short hash", request(algorithm=hashes.SHA224()), PossessionNotProven),
    ("P-521", request(key=ec.generate_private_key(ec.SECP521R1())), RequestKeyRefused),
    ("secp256k1", request(key=ec.generate_private_key(ec.SECP256K1())), RequestKeyRefused),
    ("RSA", request(key=rsa.generate_private_key(65537, 2048)), RequestKeyRefused),
    ("DSA", request(key=dsa.generate_private_key(2048)), RequestKeyRefused),
    ("Ed448", request(key=ed448.Ed448PrivateKey.generate(), algorithm=None), RequestKeyRefused),
]


@pytest.mark.parametrize(("data", "expected"), [row[1:] for row in ATTACKS], ids=[row[0] for row in ATTACKS])
def test_refused(data: bytes, expected: type[RequestRefused]) -> None:
    with pytest.raises(RequestRefused) as caught:
        requests.parse(data)
    assert type(caught.value) is expected
    assert ", expected " in str(caught.value) or ": expected " in str(caught.value)


@pytest.mark.parametrize(
    "extension",
    [
        x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), b"not DER"),
        x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), bytes.fromhex("3003860180")),  # not ASCII
    ],
    ids=["not DER", "not ASCII"],
)
def test_names_that_cannot_be_read_are_refused_and_not_skipped(extension: x509.ExtensionType) -> None:
    with pytest.raises(RequestRefused) as caught:
        requests.parse(request(extensions=[(extension, False)]))
    assert type(caught.value) is RequestMalformed


def test_two_name_extensions_are_refused() -> None:
    """Re-signed, so that nothing but the duplicate can be the reason."""
    key = ec.generate_private_key(ec.SECP256R1())
    first = x509.SubjectAlternativeName([uri("spiffe://a/b")])
    builder = x509.CertificateSigningRequestBuilder(
        x509.Name([]),
        [
            x509.Extension(first.oid, False, first),
            x509.Extension(first.oid, False, x509.SubjectAlternativeName([uri(AGENT)])),
        ],
    )
    with pytest.raises(RequestRefused) as caught:
        requests.parse(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER))
    assert type(caught.value) is RequestMalformed


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_with_our_errors(data: bytes) -> None:
    with pytest.raises(RequestRefused):
        requests.parse(data)


@given(index=st.integers(0, len(GOOD) - 1), bit=st.integers(0, 7))
def test_any_changed_bit_is_refused(index: int, bit: int) -> None:
    changed = GOOD[:index] + bytes([GOOD[index] ^ (1 << bit)]) + GOOD[index + 1 :]
    with pytest.raises(RequestRefused):
        requests.parse(changed)


def test_a_signature_has_no_unused_bits() -> None:
    """Where the last bit of a signature is 0, the same request could be spelled in a second way."""
    good = next(made for made in iter(lambda: request(uri(AGENT)), None) if made[-1] % 2 == 0)
    at = len(good) - len(x509.load_der_x509_csr(good).signature) - 1
    requests.parse(good)
    with pytest.raises(RequestRefused):
        requests.parse(good[:at] + b"\x01" + good[at + 1 :])
