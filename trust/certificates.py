"""A certificate read from hostile bytes: every part that is needed is parsed here, once, or the bytes are refused.

`cryptography` parses extensions, names, keys and dates when they are asked for, and each may then fail in its own way.
After `Certificate.read` nothing can fail any more. Nothing is verified here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import SignatureAlgorithmOID

from trust.errors import MalformedCertificate, WeakKey
from trust.private_keys import ml_dsa

MAX_CERTIFICATE_BYTES = 16_384  # an agent's is below 1 KiB, one with RSA keys and many names below 4 KiB
MAX_SERIAL_BITS = 159  # 20 octets, the first bit of which is the sign (RFC 5280 section 4.1.2.2)
RSA_EXPONENT = range(3, 1 << 32)  # a huge exponent costs as much as a huge modulus; everybody uses 65537
RSA_BITS = range(2048, 8193)  # shorter is weak (NIST SP 800-131A), longer makes each verification a denial of service

# What the parser raises for odd bytes. Warnings are among them because a program may turn them into errors.
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    Warning,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)

_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_SIGNATURES = (
    SignatureAlgorithmOID.ECDSA_WITH_SHA256,
    SignatureAlgorithmOID.ECDSA_WITH_SHA384,
    SignatureAlgorithmOID.ECDSA_WITH_SHA512,
    SignatureAlgorithmOID.RSA_WITH_SHA256,
    SignatureAlgorithmOID.RSA_WITH_SHA384,
    SignatureAlgorithmOID.RSA_WITH_SHA512,
    SignatureAlgorithmOID.RSASSA_PSS,
)

_WITHOUT_HASH = (
    SignatureAlgorithmOID.ED25519,
    # The post-quantum ones (FIPS 204, RFC 9881). Whether agents have such keys, the CA of their trust domain says: a
    # verifier takes them where that CA has issued them.
    SignatureAlgorithmOID.ML_DSA_44,
    SignatureAlgorithmOID.ML_DSA_65,
    SignatureAlgorithmOID.ML_DSA_87,
)

E = TypeVar("E", bound=x509.ExtensionType)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Certificate:
    """The parts of one certificate, parsed. Not checked: anything that needs an issuer, a clock or a policy."""

    der: bytes = field(repr=False)
    parsed: x509.Certificate = field(repr=False)
    subject: x509.Name
    issuer: x509.Name
    serial: int
    not_before: datetime
    not_after: datetime
    public_key: CertificatePublicKeyTypes = field(repr=False)
    public_key_der: bytes = field(repr=False)  # SubjectPublicKeyInfo
    extensions: Mapping[x509.ObjectIdentifier, x509.Extension[x509.ExtensionType]] = field(repr=False)
    uris: tuple[str, ...]  # the URI SANs

    @classmethod
    def read(cls, der: bytes) -> Certificate:
        """Parse one DER certificate.

        Raises:
            MalformedCertificate: too large, not one whole DER certificate, or a part that cannot be read.
            WeakKey: its key, or the algorithm that it is signed with, is weak or of no supported kind.
        """
        if len(der) > MAX_CERTIFICATE_BYTES:
            raise MalformedCertificate(
                "certificate is too large", got=f"{len(der)} bytes", expected=f"at most {MAX_CERTIFICATE_BYTES}"
            )
        try:
            parsed = x509.load_der_x509_certificate(der)  # refuses bytes after the certificate
            weakness = weak_signature(parsed)
            key = parsed.public_key()
            certificate = cls(
                der=der,
                parsed=parsed,
                subject=parsed.subject,
                issuer=parsed.issuer,
                serial=parsed.serial_number,
                not_before=parsed.not_valid_before_utc,
                not_after=parsed.not_valid_after_utc,
                public_key=key,
                public_key_der=key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
                extensions={e.oid: e for e in parsed.extensions},
                uris=_uris(parsed),
            )
        except UNREADABLE as error:
            raise MalformedCertificate(
                "certificate cannot be read", got=error, expected="one DER certificate"
            ) from None
        # RFC 5280 section 4.1.2.1: version 3 is the one that has extensions, which all of ours have.
        if parsed.version is not x509.Version.v3:
            raise MalformedCertificate("certificate version", got=parsed.version.name, expected="v3")
        if certificate.serial <= 0 or certificate.serial.bit_length() > MAX_SERIAL_BITS:
            raise MalformedCertificate(
                "certificate serial", got=certificate.serial, expected="a positive number of at most 20 octets"
            )
        weakness = weakness or _weak_key(key)
        if weakness:
            raise WeakKey(
                "certificate is cryptographically weak",
                got=f"{weakness} in the certificate of {certificate.name}",
                expected="P-256, P-384, P-521, Ed25519, ML-DSA or RSA of 2048 to 8192 bits in whole bytes, with SHA-2",
            )
        return certificate

    def extension(self, kind: type[E]) -> E | None:
        found = self.extensions.get(kind.oid)
        return found.value if found is not None and isinstance(found.value, kind) else None

    @property
    def name(self) -> str:
        """For messages: the SPIFFE ID, or the subject where there is none."""
        return self.uris[0] if self.uris else self.subject.rfc4514_string() or f"serial {self.serial}"


def weak_signature(signed: x509.Certificate | x509.CertificateRevocationList) -> str:
    """Say what is weak in the algorithm of a signature; the empty string where nothing is."""
    oid = signed.signature_algorithm_oid
    if oid in _WITHOUT_HASH:
        return ""
    if oid not in _SIGNATURES:
        return f"signature algorithm {oid.dotted_string}"
    algorithm = signed.signature_hash_algorithm  # of RSASSA-PSS it stands in the parameters
    return "" if isinstance(algorithm, _HASHES) else "a signature hash other than SHA-2"


def _weak_key(key: CertificatePublicKeyTypes) -> str:
    match key:
        case rsa.RSAPublicKey():
            if key.key_size not in RSA_BITS or key.key_size % 8:
                return f"RSA of {key.key_size} bits"
            return "" if key.public_numbers().e in RSA_EXPONENT else "RSA with a huge exponent"
        case ec.EllipticCurvePublicKey():
            return "" if key.curve.name in _CURVES else f"curve {key.curve.name}"
        case ed25519.Ed25519PublicKey():
            return ""
        case _ if ml_dsa(key):
            return ""
        case _:
            return f"a key of kind {type(key).__name__}"


def _uris(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(names.get_values_for_type(x509.UniformResourceIdentifier))
