"""One good OCSP request, and one wrong thing a row. Every row gets an answer of the right kind, and never an exception.

Requests that no builder makes are written here, byte by byte (RFC 6960 section 4.1.1).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp as oracle

from pki import ocsp
from pki.errors import RequestMalformed, RequestRefused, RequestTooLarge
from tests.pki.conftest import NOW
from tests.pki.small_ca import SmallCA


def der(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(length))) + length + content


SEQUENCE, OCTETS, INTEGER, TRUE = 0x30, 0x04, 0x02, b"\x01\x01\xff"
SHA1 = bytes.fromhex("06052b0e03021a")
SHA256 = bytes.fromhex("0609608648016503040201")
SHA512 = bytes.fromhex("0609608648016503040203")
NONCE = bytes.fromhex("06092b0601050507300102")
OTHER = bytes.fromhex("06032a0304")


def cert_id(
    issuer: x509.Certificate, serial: bytes, *, algorithm: bytes = SHA1, name: bytes = b"", key: bytes = b""
) -> bytes:
    (sha1, _) = ocsp.IssuerHash.all_of(issuer)
    return der(
        SEQUENCE,
        der(SEQUENCE, algorithm, b"\x05\x00"),
        der(OCTETS, name or sha1.name),
        der(OCTETS, key or sha1.key),
        der(INTEGER, serial),
    )


def extension(oid: bytes, value: bytes, *, critical: bool = False) -> bytes:
    return der(SEQUENCE, oid, TRUE if critical else b"", der(OCTETS, value))


def request(*ids: bytes, extensions: tuple[bytes, ...] = ()) -> bytes:
    listed = der(SEQUENCE, *(der(SEQUENCE, one) for one in ids))
    wishes = der(0xA2, der(SEQUENCE, *extensions)) if extensions else b""
    return der(SEQUENCE, der(SEQUENCE, listed, wishes))


def nonce(size: int) -> bytes:
    return extension(NONCE, der(OCTETS, b"n" * size))


@pytest.fixture
def ca(tmp_path: Path) -> SmallCA:
    return SmallCA.make(tmp_path / "ca")


def status(response: bytes) -> str:
    return oracle.load_der_ocsp_response(response).response_status.name


def test_the_request_itself_is_answered(ca: SmallCA) -> None:
    serial = ca.issue().serial_number.to_bytes(16)
    good = request(cert_id(ca.intermediate.certificate, serial), extensions=(nonce(16),))
    response = oracle.load_der_ocsp_response(ca.revocations().respond(good, NOW))
    assert response.certificate_status is oracle.OCSPCertStatus.GOOD
    assert response.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == b"n" * 16


SERIAL = b"\x10" + bytes(15)
ROWS: list[tuple[str, dict[str, object], type[RequestRefused]]] = [
    ("nothing", {"raw": b""}, RequestMalformed),
    ("not DER", {"raw": b"GET / HTTP/1.1\r\n\r\n"}, RequestMalformed),
    ("an empty list", {"raw": der(SEQUENCE, der(SEQUENCE, der(SEQUENCE)))}, RequestMalformed),
    ("a byte more", {"after": b"\0"}, RequestMalformed),
    ("a byte less", {"cut": 1}, RequestMalformed),
    ("8 KiB and a byte", {"extensions": (extension(OTHER, b"x" * 8192),)}, RequestTooLarge),
    ("a megabyte", {"raw": bytes(1 << 20)}, RequestTooLarge),
    ("two certificates", {"times": 2}, RequestMalformed),
    ("a hundred certificates", {"times": 100}, RequestMalformed),
    ("a hash of another kind", {"algorithm": SHA512, "name": b"n" * 64, "key": b"k" * 64}, RequestMalformed),
    ("an unknown hash", {"algorithm": OTHER}, RequestMalformed),
    ("hashes that are too short", {"name": b"n" * 19}, RequestMalformed),
    ("hashes of another algorithm's length", {"algorithm": SHA256}, RequestMalformed),
    ("serial zero", {"serial": b"\0"}, RequestMalformed),
    ("a negative serial", {"serial": b"\xff"}, RequestMalformed),
    ("a serial of 21 octets", {"serial": b"\x01" + bytes(20)}, RequestMalformed),
    ("a serial of 160 bits", {"serial": b"\0\xff" + bytes(19)}, RequestMalformed),
    ("an empty nonce", {"extensions": (nonce(0),)}, RequestMalformed),
    ("a nonce of 129 octets", {"extensions": (nonce(129),)}, RequestMalformed),
    ("two nonces", {"extensions": (nonce(8), nonce(8))}, RequestMalformed),
    ("an unknown critical extension", {"extensions": (extension(OTHER, b"x", critical=True),)}, RequestMalformed),
]


@pytest.mark.parametrize(("change", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_refused(change: dict[str, object], expected: type[RequestRefused], ca: SmallCA) -> None:
    parts = {name: change[name] for name in ("algorithm", "name", "key") if name in change}
    one = cert_id(ca.intermediate.certificate, change.get("serial", SERIAL), **parts)  # type: ignore[arg-type]
    made = request(*[one] * change.get("times", 1), extensions=change.get("extensions", ()))  # type: ignore[arg-type,operator]
    data = change.get("raw", made + change.get("after", b""))  # type: ignore[operator]
    data = data[: len(data) - change.get("cut", 0)]  # type: ignore[index,arg-type,operator]
    with pytest.raises(RequestRefused) as caught:
        ocsp.parse(data)
    assert type(caught.value) is expected
    assert status(ca.revocations().respond(data, NOW)) == "MALFORMED_REQUEST"
    assert ca.asked == 0, "no key is used for those who ask nonsense"


def test_what_is_only_unusual_is_answered(ca: SmallCA) -> None:
    serial = ca.issue().serial_number.to_bytes(16)
    one = cert_id(ca.intermediate.certificate, serial)
    unusual = [
        request(one, extensions=(extension(OTHER, b"x"), nonce(1))),
        request(one, extensions=(nonce(128),)),
        request(one, extensions=(extension(NONCE, der(OCTETS, b"n" * 32), critical=True),)),
        oracle.OCSPRequestBuilder()
        .add_certificate_by_hash(*_hashes(ca), int.from_bytes(serial), hashes.SHA256())
        .build()
        .public_bytes(Encoding.DER),
    ]
    for data in unusual:
        response = oracle.load_der_ocsp_response(ca.revocations().respond(data, NOW))
        assert response.certificate_status is oracle.OCSPCertStatus.GOOD


def test_another_ca_is_not_ours_to_speak_about(ca: SmallCA, tmp_path: Path) -> None:
    stranger = SmallCA.make(tmp_path / "other")
    about = request(cert_id(stranger.intermediate.certificate, SERIAL))
    assert status(ca.revocations().respond(about, NOW)) == "UNAUTHORIZED"
    mixed = cert_id(
        ca.intermediate.certificate, SERIAL, key=ocsp.IssuerHash.all_of(stranger.intermediate.certificate)[0].key
    )
    assert status(ca.revocations().respond(request(mixed), NOW)) == "UNAUTHORIZED"
    assert ca.asked == 0


def test_a_serial_of_another_ca_of_ours_is_unknown(ca: SmallCA) -> None:
    """The intermediate did not issue itself: its serial number, asked about under its own name, is not good."""
    serial = ca.intermediate.certificate.serial_number.to_bytes(16)
    for issuer, expected in ((ca.root, "GOOD"), (ca.intermediate, "UNKNOWN")):
        response = oracle.load_der_ocsp_response(
            ca.revocations().respond(request(cert_id(issuer.certificate, serial)), NOW)
        )
        assert response.certificate_status.name == expected


def _hashes(ca: SmallCA) -> tuple[bytes, bytes]:
    (_, sha256) = ocsp.IssuerHash.all_of(ca.intermediate.certificate)
    return sha256.name, sha256.key
