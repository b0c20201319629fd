"""What is in a file: a certificate or chain, a certificate request, a revocation list, a trust bundle, a tree head."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from rich.table import Table
from rich.text import Text

from pki.cli.output import iso, words
from pki.errors import LedgerDamaged, PKIError
from pki.ledger import claimed_head
from trust.bundles import MAX_CRL_BYTES, TrustBundle, TrustBundles
from trust.certificates import UNREADABLE
from trust.credentials import read_bounded
from trust.errors import BundleError
from trust.identity import thumbprint
from trust.private_keys import ml_dsa

MAX_HEAD_BYTES = 4096  # a tree head is about 400 bytes
SHOWN_SERIALS = 50  # of a revocation list; the count is always told

# A block ends before the next five dashes, and nothing is looked at twice: a file of beginnings takes no longer.
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----(?:[^-]++|-(?!----))*+-----END \1-----\r?\n?")


def describe(path: Path) -> list[dict[str, Any]]:
    """What the file holds: its certificates together, and each thing besides. Nothing of it is verified: no signature,
    no chain, no revocation. Of a private key it is only told that it is there.

    Raises:
        PKIError: it cannot be read, or is none of these things.
    """
    data = read_bounded(path, MAX_CRL_BYTES)
    text = data.lstrip()
    try:
        if text.startswith(b"{"):
            return [_bundle(data)]
        if b"-----BEGIN " in data:  # RFC 7468 section 5.2: explanatory lines may stand before it
            if parts := _pem_parts(data):
                return parts
            raise ValueError
        readers: tuple[Callable[[], dict[str, Any]], ...] = (
            lambda: _certificates([x509.load_der_x509_certificate(data)]),
            lambda: _request(x509.load_der_x509_csr(data)),
            lambda: _crl(x509.load_der_x509_crl(data)),
        )
        for read in readers:
            try:
                return [read()]
            except UNREADABLE:
                continue
    except (*UNREADABLE, BundleError):
        pass
    raise PKIError(
        f"{path} is not readable", expected="a certificate, a request, a revocation list (PEM or DER) or a bundle"
    )


def _pem_parts(data: bytes) -> list[dict[str, Any]]:
    blocks = [(match[1], match[0]) for match in _PEM.finditer(data)]
    certificates = [x509.load_pem_x509_certificate(pem) for label, pem in blocks if label == b"CERTIFICATE"]
    parts = [_certificates(certificates)] if certificates else []
    for label, pem in blocks:
        if label.endswith(b"CERTIFICATE REQUEST"):
            parts.append(_request(x509.load_pem_x509_csr(pem)))
        elif label == b"X509 CRL":
            parts.append(_crl(x509.load_pem_x509_crl(pem)))
    if parts:
        keys = [label for label, _ in blocks if label.endswith(b"PRIVATE KEY")]
        parts += [{"what": f"{label.decode().lower()}, not shown"} for label in keys]
    return parts


def table(facts: dict[str, Any]) -> Table:
    """Facts for people: what is empty is left out."""
    result = Table(show_header=False)
    for name, value in facts.items():
        if isinstance(value, list):
            text = "\n".join(json.dumps(v) if isinstance(v, dict) else str(v) for v in value)
        else:
            text = "" if value is None else str(value)
        if text and name in ("not_before", "not_after", "this_update", "next_update"):
            text += f" ({words(datetime.fromisoformat(text))})"
        if text:
            result.add_row(name.replace("_", " "), Text(text, overflow="fold"))
    return result


def names(extensions: x509.Extensions) -> dict[str, list[str]]:
    try:
        value = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return {"dns_names": [], "ip_addresses": []}
    return {
        "dns_names": value.get_values_for_type(x509.DNSName),
        "ip_addresses": [str(address) for address in value.get_values_for_type(x509.IPAddress)],
    }


def kept_head(file: Path | None) -> str | None:
    """A tree head that was kept elsewhere; None where there is no file."""
    if file is None:
        return None
    try:
        text = read_bounded(file, MAX_HEAD_BYTES).decode().strip()
        claimed_head(text)
    except (UnicodeDecodeError, LedgerDamaged):
        raise PKIError(f"{file} is no tree head", expected="what `a2a-pki ledger head` printed") from None
    return text


def _certificates(chain: list[x509.Certificate]) -> dict[str, Any]:
    leaf, *others = chain
    facts = {
        "what": "certificate" if not others else f"chain of {len(chain)} certificates, of which this is the first",
        "uris": _uris(leaf.extensions),
        **names(leaf.extensions),
        "subject": leaf.subject.rfc4514_string(),
        "issuer": leaf.issuer.rfc4514_string(),
        "serial": f"{leaf.serial_number:x}",
        "not_before": iso(leaf.not_valid_before_utc),
        "not_after": iso(leaf.not_valid_after_utc),
        "key": _key(leaf.public_key()),
        "thumbprint": thumbprint(leaf.public_bytes(Encoding.DER)),
        "extensions": [_extension(extension) for extension in leaf.extensions],
    }
    if others:
        facts["others"] = [c.subject.rfc4514_string() for c in others]
    return facts


def _request(csr: x509.CertificateSigningRequest) -> dict[str, Any]:
    return {
        "what": "certificate request",
        "uris": _uris(csr.extensions),
        **names(csr.extensions),
        "subject": csr.subject.rfc4514_string(),
        "key": _key(csr.public_key()),
        "signed_by_its_key": csr.is_signature_valid,
    }


def _crl(crl: x509.CertificateRevocationList) -> dict[str, Any]:
    serials = [f"{entry.serial_number:x}" for entry, _ in zip(crl, range(SHOWN_SERIALS), strict=False)]
    ends = crl.next_update_utc
    return {
        "what": "revocation list",
        "issuer": crl.issuer.rfc4514_string(),
        "this_update": iso(crl.last_update_utc),
        "next_update": None if ends is None else iso(ends),
        "revoked": len(crl),
        "serials": serials + (["..."] if len(crl) > len(serials) else []),
        "extensions": [_extension(extension) for extension in crl.extensions],
    }


def _bundle(data: bytes) -> dict[str, Any]:
    if b'"trust_domains"' in data:
        bundles = TrustBundles.from_json(data).by_domain
    else:  # a SPIFFE bundle document does not say whose it is
        bundles = {"(not named)": TrustBundle.from_json(data, "unnamed")}
    return {
        "what": "trust bundle",
        "domains": [
            {
                "trust_domain": domain,
                "sequence": bundle.sequence,
                "refresh_hint": bundle.refresh_hint,
                "roots": [
                    {
                        "thumbprint": thumbprint(root.public_bytes(Encoding.DER)),
                        "not_after": iso(root.not_valid_after_utc),
                    }
                    for root in bundle.roots
                ],
            }
            for domain, bundle in bundles.items()
        ],
    }


def _uris(extensions: x509.Extensions) -> list[str]:
    try:
        value = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return value.get_values_for_type(x509.UniformResourceIdentifier)


def _key(key: PublicKeyTypes) -> str:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"EC {key.curve.name}"
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    return "Ed25519" if isinstance(key, ed25519.Ed25519PublicKey) else ml_dsa(key) or type(key).__name__


def _extension(extension: x509.Extension[Any]) -> str:
    name = extension.oid._name if extension.oid._name != "Unknown OID" else extension.oid.dotted_string
    return f"{name} (critical)" if extension.critical else name
