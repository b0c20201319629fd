"""One OCSP request and its answer (RFC 6960, in the small form of RFC 5019; nonces by RFC 9654). Pure but for the key.

The answer is signed by a key of its own, which the CA has certified for nothing else (RFC 6960 section 4.2.2.2): the
CA's key is not used, and not needed, whenever somebody asks. `cryptography` takes the time at which an answer was
produced from the machine's clock; all that a verifier decides by comes from the `now` given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp

from pki.errors import RequestMalformed, RequestTooLarge
from pki.profiles import BACKDATE
from pki.records import CertificateStatus
from trust.certificates import MAX_SERIAL_BITS, UNREADABLE
from trust.clock import utc

MAX_REQUEST_BYTES = 8 << 10  # one certificate is asked for in about 100 bytes; a signed request holds a chain
MAX_NONCE_BYTES = 128  # RFC 9654 section 2.1
ANSWER_LIFETIME = timedelta(hours=12)

_HASHES = (hashes.SHA1, hashes.SHA256)  # RFC 5019 section 2.1.1 and RFC 9654; here they are names, and protect nothing


@dataclass(frozen=True, slots=True)
class IssuerHash:
    """Which CA a request is about: the hashes of its name and key."""

    algorithm: str
    name: bytes
    key: bytes

    @classmethod
    def all_of(cls, issuer: x509.Certificate) -> tuple[IssuerHash, ...]:
        """Every way in which a request may name this CA."""
        key = issuer.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101  # a CA of ours has no other
        point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return tuple(
            cls(kind.name, _digest(kind(), issuer.subject.public_bytes()), _digest(kind(), point)) for kind in _HASHES
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What an OCSP request asks."""

    issuer: IssuerHash
    serial: int
    nonce: bytes | None
    algorithm: hashes.HashAlgorithm = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class OcspSigner:
    """A key that answers for one CA, and the certificate by which the CA says so."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    def good(self, now: datetime) -> bool:
        """Whether an answer made at `now` is worth making."""
        return self.certificate.not_valid_before_utc + BACKDATE <= utc(now) < self.certificate.not_valid_after_utc

    def good_for_a_full_answer(self, now: datetime) -> bool:
        """Whether an answer made at `now` can have its full life. With less it is time for the next signer."""
        return self.good(now) and utc(now) + ANSWER_LIFETIME <= self.certificate.not_valid_after_utc


def parse(data: bytes) -> Question:
    """Read a request, DER.

    1. The size is bounded.
    2. It asks about exactly one certificate (RFC 5019 section 2.1.1), by SHA-1 or SHA-256 hashes of its issuer.
    3. The serial number is one that a certificate can have.
    4. It has no critical extension but a nonce, and that is of 1 to 128 octets (RFC 9654 section 2.1).

    Not checked: who asks. A signature of the requester is left aside, for the answer is public.

    Raises:
        RequestTooLarge, RequestMalformed: by the steps above.
    """
    # 1.
    if len(data) > MAX_REQUEST_BYTES:
        raise RequestTooLarge("OCSP request", got=f"{len(data)} bytes", expected=f"at most {MAX_REQUEST_BYTES} bytes")
    try:
        # 2.
        request = ocsp.load_der_ocsp_request(data)
        algorithm = request.hash_algorithm
        issuer = IssuerHash(algorithm.name, request.issuer_name_hash, request.issuer_key_hash)
        serial = request.serial_number
        extensions = list(request.extensions)
    except (*UNREADABLE, NotImplementedError):
        raise _malformed("not readable, or about several certificates") from None
    if not isinstance(algorithm, _HASHES):
        raise _malformed(f"an issuer by {algorithm.name}")
    if not len(issuer.name) == len(issuer.key) == algorithm.digest_size:
        raise _malformed("hashes of another length")

    # 3.
    if serial <= 0 or serial.bit_length() > MAX_SERIAL_BITS:
        raise _malformed("a serial number that no certificate has")

    # 4. RFC 6960 section 4.4: unknown extensions are ignored, unless they are critical.
    nonce = None
    for extension in extensions:
        if isinstance(extension.value, x509.OCSPNonce):
            nonce = extension.value.nonce
            if not 1 <= len(nonce) <= MAX_NONCE_BYTES:
                raise _malformed(f"a nonce of {len(nonce)} octets")
        elif extension.critical:
            raise _malformed(f"the unknown critical extension {extension.oid.dotted_string}")
    return Question(issuer=issuer, serial=serial, nonce=nonce, algorithm=algorithm)


def answer(question: Question, status: CertificateStatus, *, signer: OcspSigner, now: datetime) -> bytes:
    """The signed answer, DER.

    It is good for 12 hours, but never beyond the end of its signer's certificate, which it includes. A nonce comes
    back as it was.

    Args:
        status: of the serial number, among the certificates of the issuer that was asked about and no other.
        signer: one of that same issuer.
    """
    this_update = utc(now).replace(microsecond=0) - BACKDATE
    state, when, reason = ocsp.OCSPCertStatus.UNKNOWN, None, None
    if status.known and status.revoked_at is None:
        state = ocsp.OCSPCertStatus.GOOD
    elif status.known:
        state, when = ocsp.OCSPCertStatus.REVOKED, status.revoked_at
        # As on a revocation list: absent rather than unspecified.
        reason = None if status.reason is x509.ReasonFlags.unspecified else status.reason
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response_by_hash(
            question.issuer.name,
            question.issuer.key,
            question.serial,
            question.algorithm,
            state,
            this_update,
            min(utc(now).replace(microsecond=0) + ANSWER_LIFETIME, signer.certificate.not_valid_after_utc),
            when,
            reason,
        )
        .responder_id(ocsp.OCSPResponderEncoding.HASH, signer.certificate)
        .certificates([signer.certificate])
    )
    if question.nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(question.nonce), critical=False)
    return builder.sign(signer.key, hashes.SHA256()).public_bytes(Encoding.DER)


def refusal(status: ocsp.OCSPResponseStatus) -> bytes:
    """An answer without a signature (RFC 6960 section 4.2.1): that there is none, and why."""
    return ocsp.OCSPResponseBuilder.build_unsuccessful(status).public_bytes(Encoding.DER)


MALFORMED = refusal(ocsp.OCSPResponseStatus.MALFORMED_REQUEST)
# RFC 5019 section 2.2.3: this responder cannot speak about that certificate.
UNAUTHORIZED = refusal(ocsp.OCSPResponseStatus.UNAUTHORIZED)


def _digest(algorithm: hashes.HashAlgorithm, data: bytes) -> bytes:
    digest = hashes.Hash(algorithm)
    digest.update(data)
    return digest.finalize()


def _malformed(got: str) -> RequestMalformed:
    return RequestMalformed("OCSP request", got=got, expected="one certificate, by SHA-1 or SHA-256 of its issuer")
