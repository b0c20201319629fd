"""Whom we trust: root certificates by trust domain, and the revocation lists beside them.

The formats are SPIFFE's: a trust bundle is a JWKS (SPIFFE Trust Domain and Bundle, section 4), several of them stand
in a bundle map (`{"trust_domains": {"fleet.example": {...}}}`). Domains are never pooled: a chain is verified against
the roots of the domain that its leaf names, and no others.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from trust import json_text
from trust.credentials import read_bounded
from trust.errors import BundleError, CredentialsError, IdentityError
from trust.identity import trust_domain
from trust.json_text import NotStrictJson
from trust.private_keys import ml_dsa
from trust.sources import Source

MAX_BUNDLE_BYTES = 4 << 20  # a root is about 1 KiB as JSON; a federation of a thousand domains still fits
MAX_BUNDLE_DEPTH = 32  # of objects and arrays; a bundle map has six levels
MAX_ROOTS = 64  # of one domain; a rotation needs two or three
MAX_CRL_BYTES = 64 << 20  # about a million entries
REFRESH_HINT_SECONDS = 300  # SPIFFE Federation's recommended default


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustBundle:
    """The roots of one trust domain. No roots means that nothing of the domain is trusted (all revoked)."""

    trust_domain: str
    roots: tuple[x509.Certificate, ...] = field(repr=False)
    sequence: int = 0  # grows with every change; a bundle never goes back
    refresh_hint: int = REFRESH_HINT_SECONDS

    def __post_init__(self) -> None:
        trust_domain(self.trust_domain)

    @classmethod
    def from_json(cls, text: str | bytes, trust_domain: str) -> TrustBundle:
        """Parse one SPIFFE bundle document. It does not name its trust domain: that is configuration.

        Raises:
            BundleError: not a bundle, or an `x509-svid` entry without exactly one certificate in `x5c`.
        """
        return cls.from_document(_strict_json(text), trust_domain)

    @classmethod
    def from_pem(cls, text: str | bytes, trust_domain: str) -> TrustBundle:
        """The roots in a PEM text, as SPIRE's spiffe-helper (`svid_bundle.pem`) and cert-manager (`ca.crt`) write them.

        It names neither its trust domain nor a sequence: the one is configuration, the other stays 0. A text without a
        certificate is refused rather than read as "nothing is trusted": that is said by a bundle document alone.

        Raises:
            BundleError: no certificate, one that cannot be read, or too many.
        """
        data = text.encode() if isinstance(text, str) else text
        if len(data) > MAX_BUNDLE_BYTES:
            raise BundleError(f"roots of {trust_domain} are too large", expected=f"at most {MAX_BUNDLE_BYTES} bytes")
        try:
            roots = x509.load_pem_x509_certificates(data)
        except (ValueError, x509.InvalidVersion):
            raise BundleError(f"roots of {trust_domain} are not readable", expected="PEM certificates") from None
        if data.count(b"-----BEGIN CERTIFICATE-----") != len(roots):  # the parser passes over one that has no end
            raise BundleError(f"roots of {trust_domain} are not whole", expected="PEM certificates")
        if len(roots) > MAX_ROOTS:
            raise BundleError(f"roots of {trust_domain}", got=f"{len(roots)} roots", expected=f"<= {MAX_ROOTS}")
        return cls(trust_domain=trust_domain, roots=tuple(roots))

    @classmethod
    def from_document(cls, document: object, domain: str) -> TrustBundle:
        """As `from_json`, from parsed JSON."""
        if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
            raise BundleError(f"trust bundle of {domain}", expected='a JSON object with a "keys" list')
        entries = [k for k in document["keys"] if isinstance(k, dict) and k.get("use") == "x509-svid"]
        if len(entries) > MAX_ROOTS:
            raise BundleError(f"trust bundle of {domain}", got=f"{len(entries)} roots", expected=f"<= {MAX_ROOTS}")
        return cls(
            trust_domain=domain,
            roots=tuple(_root(entry, domain) for entry in entries),
            sequence=_count(document, "spiffe_sequence", 0, domain),
            refresh_hint=_count(document, "spiffe_refresh_hint", REFRESH_HINT_SECONDS, domain),
        )

    def to_document(self) -> dict[str, Any]:
        return {
            "spiffe_sequence": self.sequence,
            "spiffe_refresh_hint": self.refresh_hint,
            "keys": [_jwk(root) for root in self.roots],
        }

    def to_json(self) -> str:
        """The SPIFFE bundle document, as a bundle endpoint serves it."""
        return json.dumps(self.to_document(), indent=2)


@dataclass(frozen=True, slots=True)
class TrustBundles:
    """The trusted domains, each with its own bundle. Also a `Source` of itself."""

    by_domain: Mapping[str, TrustBundle]

    def __post_init__(self) -> None:
        # A copy nobody can change: what was verified against a value is remembered for as long as it is the same.
        object.__setattr__(self, "by_domain", MappingProxyType(dict(self.by_domain)))
        for domain, bundle in self.by_domain.items():
            if domain != bundle.trust_domain:
                raise BundleError("trust bundles", got=f"{bundle.trust_domain} under {domain}", expected="its own name")

    @classmethod
    def of(cls, *bundles: TrustBundle) -> TrustBundles:
        by_domain = {b.trust_domain: b for b in bundles}
        if len(by_domain) != len(bundles):
            raise BundleError("trust bundles", got="one trust domain twice", expected="one bundle a domain")
        return cls(by_domain)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TrustBundles:
        """Read a bundle map from a file.

        Raises:
            BundleError: the file is missing, too large or not a bundle map.
        """
        return cls.from_json(_read_file(Path(path), MAX_BUNDLE_BYTES))

    @classmethod
    def from_json(cls, text: str | bytes) -> TrustBundles:
        """Parse a bundle map: `{"trust_domains": {"fleet.example": {"keys": [...]}}}`.

        Raises:
            BundleError: not a bundle map, or one of its bundles is malformed.
        """
        document = _strict_json(text)
        domains = document.get("trust_domains") if isinstance(document, dict) else None
        if not isinstance(domains, dict):
            raise BundleError("trust bundles", expected='{"trust_domains": {"<trust domain>": {"keys": [...]}}}')
        try:
            return cls.of(*(TrustBundle.from_document(value, domain) for domain, value in domains.items()))
        except IdentityError as error:
            raise BundleError(str(error)) from None

    def to_json(self) -> str:
        return json.dumps({"trust_domains": {d: b.to_document() for d, b in self.by_domain.items()}}, indent=2)

    def current(self) -> TrustBundles:
        return self


@dataclass(frozen=True, slots=True)
class RevocationLists:
    """The CRLs known now. Also a `Source` of itself.

    An empty one means that revocation is not checked: certificates then live out their (short) life.

    Attributes:
        required_in: the trust domains whose certificates are refused where no current CRL answers for them; None for
            all. Elsewhere only what a CRL lists is refused: lists of one domain say nothing about a federated one.
    """

    crls: tuple[x509.CertificateRevocationList, ...] = ()
    required_in: frozenset[str] | None = None

    @classmethod
    def load(cls, *paths: str | os.PathLike[str]) -> RevocationLists:
        """Read CRLs from files, each with one in DER or any number in PEM.

        Raises:
            BundleError: a file is missing, too large or holds anything but CRLs.
        """
        files = ((_read_file(Path(path), MAX_CRL_BYTES), str(path)) for path in paths)
        return cls(tuple(crl for data, name in files for crl in read_crls(data, name)))

    @classmethod
    def of(cls, crls: Iterable[x509.CertificateRevocationList]) -> RevocationLists:
        return cls(tuple(crls))

    def current(self) -> RevocationLists:
        return self


_PEM_CRL = re.compile(rb"-----BEGIN X509 CRL-----[^-]++-----END X509 CRL-----")
_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}

BundleSource = Source[TrustBundles]
RevocationSource = Source[RevocationLists]


def _strict_json(text: str | bytes) -> object:
    if len(text) > MAX_BUNDLE_BYTES:
        raise BundleError("trust bundle is too large", expected=f"at most {MAX_BUNDLE_BYTES} bytes")
    try:
        data = text.encode() if isinstance(text, str) else text
        return json_text.parse(data, max_bytes=MAX_BUNDLE_BYTES, max_depth=MAX_BUNDLE_DEPTH)
    except (NotStrictJson, UnicodeEncodeError) as error:
        raise BundleError("trust bundle is not readable", got=error, expected="strict JSON (RFC 7493)") from None


def _root(entry: dict[str, Any], domain: str) -> x509.Certificate:
    x5c = entry.get("x5c")
    if not isinstance(x5c, list) or len(x5c) != 1 or not isinstance(x5c[0], str):
        raise BundleError(f"trust bundle of {domain}", expected="exactly one certificate in each x5c")
    try:
        return x509.load_der_x509_certificate(base64.b64decode(x5c[0], validate=True))
    except (ValueError, x509.InvalidVersion):
        raise BundleError(f"trust bundle of {domain}", expected="x5c holds a base64 DER certificate") from None


def _count(document: dict[str, Any], name: str, default: int, domain: str) -> int:
    value = document.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BundleError(f"trust bundle of {domain}: {name}", got=value, expected="a whole number")
    return value


def _jwk(root: x509.Certificate) -> dict[str, Any]:
    """The JWK of a root: its public key, the certificate itself as the only x5c entry, and no kid."""
    key = root.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        size = (key.key_size + 7) // 8
        numbers = key.public_numbers()
        curve = _CURVES.get(key.curve.name)
        if curve is None:
            raise BundleError("root key", got=f"curve {key.curve.name}", expected="P-256, P-384 or P-521")
        members = {"kty": "EC", "crv": curve, "x": _b64u(numbers.x, size), "y": _b64u(numbers.y, size)}
    elif isinstance(key, rsa.RSAPublicKey):
        n, e = key.public_numbers().n, key.public_numbers().e
        members = {"kty": "RSA", "n": _b64u(n, (n.bit_length() + 7) // 8), "e": _b64u(e, (e.bit_length() + 7) // 8)}
    elif isinstance(key, ed25519.Ed25519PublicKey):
        raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
        members = {"kty": "OKP", "crv": "Ed25519", "x": _b64u(int.from_bytes(raw), 32)}
    elif algorithm := ml_dsa(key):  # the JWK of RFC 9964
        raw = base64.urlsafe_b64encode(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).rstrip(b"=")
        members = {"kty": "AKP", "alg": algorithm, "pub": raw.decode()}
    else:
        raise BundleError("root key", got=type(key).__name__, expected="EC, RSA, Ed25519 or ML-DSA")
    return {"use": "x509-svid", **members, "x5c": [base64.b64encode(root.public_bytes(Encoding.DER)).decode()]}


def _b64u(number: int, size: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes(size)).rstrip(b"=").decode()


def read_crls(data: bytes, name: str) -> tuple[x509.CertificateRevocationList, ...]:
    """Parse CRLs, one after another in PEM, or one in DER; `name` is for the message.

    Raises:
        BundleError: there is none, or something else in PEM beside them. One that was passed over would revoke nothing.
    """
    try:
        if not data.lstrip().startswith(b"-----BEGIN"):
            return (x509.load_der_x509_crl(data),)
        found = _PEM_CRL.findall(data)
        if found and not _PEM_CRL.sub(b"", data).strip():
            return tuple(x509.load_pem_x509_crl(one) for one in found)
    except (ValueError, x509.InvalidVersion):
        pass
    raise BundleError(f"{name} is not a CRL", expected="CRLs in PEM, and nothing else, or one in DER")


def _read_file(path: Path, limit: int) -> bytes:
    try:
        return read_bounded(path, limit)
    except CredentialsError as error:
        raise BundleError(str(error)) from None
