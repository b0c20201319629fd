"""EST's encodings, by themselves."""

from __future__ import annotations

import base64
import subprocess
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from hypothesis import given
from hypothesis import strategies as st

from pki import CertificateAuthority
from pki.errors import EnrolmentTokenMalformed, EnrolmentTokenMissing, PKIError, RequestMalformed
from pki.service import est
from tests.pki.service.parts import request

CSR = request()
ONE_LINE = base64.b64encode(CSR)
TOKEN = "a2ae_" + "0" * 24 + "_" + "f" * 64


def basic(pair: str) -> str:
    return "Basic " + base64.b64encode(pair.encode()).decode()


@pytest.mark.parametrize(
    "body",
    [
        ONE_LINE,
        base64.encodebytes(CSR),
        base64.encodebytes(CSR).replace(b"\n", b"\r\n"),
        b"\r\n" + ONE_LINE[:100] + b"\t " + ONE_LINE[100:] + b"\n\n",
    ],
)
@pytest.mark.parametrize("content_type", ["application/pkcs10", "Application/PKCS10; charset=us-ascii"])
def test_a_request_with_and_without_line_breaks(body: bytes, content_type: str) -> None:
    assert est.request_of(body, content_type) == CSR


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (ONE_LINE, ""),
        (ONE_LINE, "application/x-pkcs10"),
        (ONE_LINE, "application/octet-stream"),
        (b"", "application/pkcs10"),
        (b"\r\n", "application/pkcs10"),
        (CSR, "application/pkcs10"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\n" + ONE_LINE, "application/pkcs10"),
        (ONE_LINE[:-2], "application/pkcs10"),
        (ONE_LINE + b"=", "application/pkcs10"),
        (b"=" + ONE_LINE, "application/pkcs10"),
        (ONE_LINE.replace(b"M", b"-", 1), "application/pkcs10"),
        (ONE_LINE.replace(b"M", b"\x00", 1), "application/pkcs10"),
    ],
)
def test_what_is_no_request(body: bytes, content_type: str) -> None:
    with pytest.raises(RequestMalformed) as caught:
        est.request_of(body, content_type)
    assert type(caught.value) is RequestMalformed


@given(st.binary(max_size=200))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    try:
        der = est.request_of(body, est.REQUEST_TYPE)
    except RequestMalformed:
        return
    assert der and base64.b64encode(der) == b"".join(body.split())


def test_certificates_as_pkcs7(own_ca: CertificateAuthority) -> None:
    chain = [own_ca.root, own_ca.intermediate]
    encoded = est.certificates(chain)
    assert b"\n" not in encoded  # strongSwan reads it as part of the data
    assert sorted(c.serial_number for c in pkcs7.load_der_pkcs7_certificates(base64.b64decode(encoded))) == sorted(
        c.serial_number for c in chain
    )


@pytest.mark.parametrize("size", [1, 150, 5000], ids=["small", "medium", "large"])
def test_one_certificate_is_wrapped_as_cryptography_does_it(size: int) -> None:
    name = x509.Name([])
    key = ec.generate_private_key(ec.SECP256R1())
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
    for padding in range(size, size + 5):
        comment = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.999"), bytes(padding))
        builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, end).add_extension(comment, False)
        leaf = builder.sign(key, hashes.SHA256())
        assert est.certificate(leaf.public_bytes(Encoding.DER)) == est.certificates([leaf])


def test_attributes_by_openssl() -> None:
    """The answer that OpenSSL reads: a P-256 key, and ECDSA with SHA-256."""
    der = base64.b64decode(est.attributes())
    shown = subprocess.run(["openssl", "asn1parse", "-inform", "DER"], input=der, capture_output=True, check=True)
    values = [line.split(":")[-1] for line in shown.stdout.decode().splitlines() if "OBJECT" in line]
    assert values == ["id-ecPublicKey", "prime256v1", "ecdsa-with-SHA256"]
    assert shown.stdout.decode().count("SEQUENCE") == 2 and shown.stdout.decode().count("SET") == 1


@pytest.mark.parametrize(
    "header",
    [
        basic(f"agent:{TOKEN}"),
        basic(f":{TOKEN}"),
        "bAsIc  " + basic(f"agent:{TOKEN}")[6:] + " ",
        f"Bearer {TOKEN}",
        f"BEARER  {TOKEN}",
    ],
)
def test_a_token(header: str) -> None:
    assert est.token_of([header]) == TOKEN


NO_TOKEN: list[tuple[str, list[str], type[PKIError]]] = [
    ("no header", [], EnrolmentTokenMissing),
    ("an empty header", [""], EnrolmentTokenMissing),
    ("another scheme", [f"Digest {TOKEN}"], EnrolmentTokenMissing),
    ("the token without a scheme", [TOKEN], EnrolmentTokenMissing),
    ("two headers", [f"Bearer {TOKEN}", f"Bearer {TOKEN}"], EnrolmentTokenMalformed),
    ("bearer without a token", ["Bearer"], EnrolmentTokenMalformed),
    ("bearer with two", [f"Bearer {TOKEN} {TOKEN}"], EnrolmentTokenMalformed),
    ("bearer outside ASCII", ["Bearer tökén"], EnrolmentTokenMalformed),
    ("a control character", ["Bearer a\x00b"], EnrolmentTokenMalformed),
    ("basic without base64", [f"Basic {TOKEN}!"], EnrolmentTokenMalformed),
    ("basic outside ASCII", ["Basic é"], EnrolmentTokenMalformed),
    ("basic without padding", [basic("agent:token-").rstrip("=")[:-1]], EnrolmentTokenMalformed),
    ("basic without a colon", [basic(TOKEN)], EnrolmentTokenMalformed),
    ("basic without a password", [basic("agent:")], EnrolmentTokenMalformed),
    ("basic with other bytes", ["Basic /////w=="], EnrolmentTokenMalformed),
    ("too long", ["Bearer " + "a" * 1024], EnrolmentTokenMalformed),
]


@pytest.mark.parametrize(("headers", "expected"), [row[1:] for row in NO_TOKEN], ids=[row[0] for row in NO_TOKEN])
def test_no_token(headers: list[str], expected: type[PKIError]) -> None:
    with pytest.raises(PKIError) as caught:
        est.token_of(headers)
    assert type(caught.value) is expected
    assert TOKEN not in str(caught.value)  # what is almost a token must not end in a log


@given(st.lists(st.text(max_size=60), max_size=2))
def test_any_header_is_read_or_refused(headers: list[str]) -> None:
    try:
        token = est.token_of(headers)
    except (EnrolmentTokenMissing, EnrolmentTokenMalformed):
        return
    assert token.isascii() and token.isprintable() and " " not in token
