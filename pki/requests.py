"""Certificate requests (PKCS#10, RFC 2986): from bytes off the wire to a key whose possession is proven."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import SignatureAlgorithmOID

from pki.errors import PossessionNotProven, RequestKeyRefused, RequestMalformed, RequestTooLarge
from trust.identity import AgentID
from trust.private_keys import PrivateKey, ml_dsa

MAX_REQUEST_BYTES = 16 << 10  # a P-384 key, a dozen names and a signature are about 1 KiB

_PostQuantumKey = mldsa.MLDSA44PublicKey | mldsa.MLDSA65PublicKey | mldsa.MLDSA87PublicKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | _PostQuantumKey

_CURVES = ("secp256r1", "secp384r1")
_ECDSA = {
    SignatureAlgorithmOID.ECDSA_WITH_SHA256: ec.ECDSA(hashes.SHA256()),
    SignatureAlgorithmOID.ECDSA_WITH_SHA384: ec.ECDSA(hashes.SHA384()),
    SignatureAlgorithmOID.ECDSA_WITH_SHA512: ec.ECDSA(hashes.SHA512()),
}
_ONLY = {  # what a key of this kind signs with, and no other key does
    "ML-DSA-44": SignatureAlgorithmOID.ML_DSA_44,
    "ML-DSA-65": SignatureAlgorithmOID.ML_DSA_65,
    "ML-DSA-87": SignatureAlgorithmOID.ML_DSA_87,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What survives of a request: the key, and the IDs it asks for. Everything else in it is a wish."""

    public_key: PublicKey = field(repr=False)
    uris: tuple[str, ...]


def parse(data: bytes) -> Request:
    """Parse a request (DER or PEM) and prove that the sender holds its private key.

    1. The size is bounded.
    2. It is one PKCS#10 request.
    3. The key is one that agents use: P-256, P-384, Ed25519 or ML-DSA.
    4. The request is signed by that key, with a hash that cannot be collided (SHA-2).
    5. The names can be read.

    Not checked here: whether the sender may have the IDs, and a key of this kind; `pki.policy` decides that.

    Raises:
        RequestTooLarge, RequestMalformed, RequestKeyRefused, PossessionNotProven: by the steps above.
    """
    # 1. Before any parsing.
    if len(data) > MAX_REQUEST_BYTES:
        raise RequestTooLarge(
            "certificate request", got=f"{len(data)} bytes", expected=f"at most {MAX_REQUEST_BYTES} bytes"
        )

    # 2. One request, DER or PEM.
    try:
        if data.lstrip().startswith(b"-----BEGIN"):
            csr = x509.load_pem_x509_csr(data)
            data = csr.public_bytes(Encoding.DER)
        else:
            csr = x509.load_der_x509_csr(data)
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise _malformed("not readable") from None

    # 3. The key. RSA and other curves parse, and are refused.
    try:
        key = csr.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise _key_refused("an unknown kind of key") from None
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in _CURVES:
            raise _key_refused(key.curve.name)
    elif not isinstance(key, (ed25519.Ed25519PublicKey, _PostQuantumKey)):
        raise _key_refused(type(key).__name__)

    # DER has no unused bits in a signature (X.690 section 11.2.2): a request is spelled in one way.
    if data[-len(csr.signature) - 1] != 0:
        raise _malformed("a signature of odd bits")

    # 4. Possession.
    if not _signed_by(key, csr):
        raise PossessionNotProven(
            "certificate request is not signed by its own key",
            expected="a SHA-2 signature by the key in the request",
            do="make a new request with the agent's private key",
        )

    # 5. The names. A duplicated or unreadable extension is refused rather than skipped: it may hide an ID.
    try:
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise _malformed("names that cannot be read") from None
    return Request(public_key=key, uris=tuple(uris))


def make(key: PrivateKey, agent_id: AgentID | None) -> bytes:
    """A certificate request (PKCS#10, DER) that names the ID, where it is known."""
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    if agent_id is not None:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(agent_id))])
        builder = builder.add_extension(names, critical=True)
    algorithm = hashes.SHA256() if isinstance(key, ec.EllipticCurvePrivateKey) else None  # the others bring their own
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)


def _signed_by(key: PublicKey, csr: x509.CertificateSigningRequest) -> bool:
    """As `csr.is_signature_valid`, with the key that was read already, and with these algorithms only."""
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            algorithm = _ECDSA.get(csr.signature_algorithm_oid)
            if algorithm is None:
                return False
            key.verify(csr.signature, csr.tbs_certrequest_bytes, algorithm)
        else:
            if csr.signature_algorithm_oid != _ONLY.get(ml_dsa(key), SignatureAlgorithmOID.ED25519):
                return False
            key.verify(csr.signature, csr.tbs_certrequest_bytes)
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        return False
    return True


def _malformed(got: str) -> RequestMalformed:
    return RequestMalformed(
        "certificate request",
        got=got,
        expected="one PKCS#10 request, DER or PEM",
        do="make one with `openssl req -new` or the enrolment client",
    )


def _key_refused(got: str) -> RequestKeyRefused:
    return RequestKeyRefused(
        "key of the certificate request", got=got, expected="P-256, P-384, Ed25519 or ML-DSA", do="make a new key"
    )
