"""x509-limbo (https://x509-limbo.com) as cases for our verifier.

Its leaves are those of web sites and have no SPIFFE ID, so what runs here is what `PeerVerifier` runs for every chain
but for that: `Certificate.read`, `check_end_entity`, `build_path` and the revocation answers of the path.
"""

from __future__ import annotations

import base64
import gzip
import ipaddress
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from trust.bundles import RevocationLists
from trust.certificates import Certificate
from trust.errors import ChainTooLong, NameConstraintViolated, TrustError, WeakKey
from trust.paths import Root, Usage, build_path, check_end_entity
from trust.peers import MAX_CERTIFICATES
from trust.revocation import RevocationIndex

FOLDER = os.environ.get("A2A_TRUST_LIMBO")
NOW = datetime.now(UTC)
DOMAIN = "limbo.example"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    id: str
    usage: Usage
    valid: bool  # what x509-limbo expects
    features: frozenset[str]
    chain: tuple[bytes, ...] = field(repr=False)
    roots: tuple[bytes, ...] = field(repr=False)
    crls: tuple[bytes, ...] = field(repr=False)
    host: tuple[str, str] | None  # the kind and value of the name that a client asks for
    now: datetime

    @classmethod
    def of(cls, case: dict[str, Any]) -> Case:
        assert not case["signature_algorithms"], "x509-limbo has become richer than this harness"
        assert case["validation_kind"] in ("CLIENT", "SERVER")
        # SERVER cases are clients that verify a server; what the peer is, is what we call usage.
        usage: Usage = "server" if case["validation_kind"] == "SERVER" else "client"
        assert case["extended_key_usage"] in ([], [f"{usage}Auth"])
        host = case["expected_peer_name"]
        return cls(
            id=case["id"],
            usage=usage,
            valid=case["expected_result"] == "SUCCESS",
            features=frozenset(case["features"] or ()),
            chain=tuple(map(_der, [case["peer_certificate"], *case["untrusted_intermediates"]])),
            roots=tuple(map(_der, case["trusted_certs"])),
            crls=tuple(map(_der, case["crls"])),
            host=(host["kind"], host["value"]) if host else None,
            now=datetime.fromisoformat(case["validation_time"]) if case["validation_time"] else NOW,
        )

    @property
    def leaf(self) -> x509.Certificate:
        return x509.load_der_x509_certificate(self.chain[0])


def cases(*, bettertls: bool) -> list[Case]:
    """The cases of BetterTLS (nine thousand combinations of names and constraints), or all the others."""
    if not FOLDER:
        return []
    document = json.loads(gzip.decompress((Path(FOLDER) / "limbo.json.gz").read_bytes()))
    assert document["version"] == 1
    return [Case.of(case) for case in document["testcases"] if case["id"].startswith("bettertls::") == bettertls]


def verdict(case: Case) -> TrustError | None:
    """None where the path is accepted. Anything but a TrustError is a defect and propagates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the parser, about the very oddities that the cases are made of
        try:
            if len(case.chain) > MAX_CERTIFICATES:
                raise ChainTooLong("certificate chain is too long", got=len(case.chain), expected=MAX_CERTIFICATES)
            presented = [Certificate.read(der) for der in case.chain]
            check_end_entity(presented[0], case.usage)
            roots = [Root.of(x509.load_der_x509_certificate(der), DOMAIN) for der in case.roots]
            path = build_path(presented, roots, now=case.now, usage=case.usage)
            lists = RevocationLists.of(x509.load_der_x509_crl(der) for der in case.crls)
            for answer in RevocationIndex(lists).answers(path, DOMAIN):
                answer.check(case.now)
        except TrustError as error:
            return error
    return None


def not_about_agents(case: Case) -> str:
    """Why a chain that has to be refused may be accepted here; the empty string where it may not.

    The rules are the ones that the library does not have because agents are known by SPIFFE ID and not by host name,
    and because what a root is for is said by its bundle and not by the CA/Browser Forum.
    """
    if case.id.startswith("webpki::cn::"):
        return "the common name of web sites, which nobody reads here"
    if case.id.startswith("webpki::san::"):
        return "host names and their wildcards, which nobody matches here"
    if case.features & {"pedantic-webpki-eku", "pedantic-public-suffix-wildcard"}:
        return "CA/Browser Forum rules for web sites, by x509-limbo's own label"
    if "max-chain-depth" in case.features:
        return f"a caller's own limit of intermediates; ours is {MAX_CERTIFICATES} certificates presented"
    if case.host and not _names(case.leaf, *case.host):
        return "the host name is not in the certificate"
    return ""


def _names(leaf: x509.Certificate, kind: str, value: str) -> bool:
    """Whether one of the leaf's alternative names is this host, as a strict client matches it (RFC 9525)."""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except ValueError:
        return True  # unreadable: that has to be refused whatever it says
    except x509.ExtensionNotFound:
        return False
    if kind == "IP":
        return ipaddress.ip_address(value) in names.get_values_for_type(x509.IPAddress)
    assert kind == "DNS"
    hosts = names.get_values_for_type(x509.DNSName)
    return value in hosts or "*." + value.partition(".")[2] in hosts


def common_name_is_constrained(case: Case, error: TrustError) -> bool:
    """OpenSSL holds DNS constraints against a common name that looks like a host where no DNS name stands beside it."""
    names = case.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return (
        type(error) is NameConstraintViolated
        and not names.get_values_for_type(x509.DNSName)
        and bool(case.leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME))
    )


def too_many(case: Case, error: TrustError) -> bool:
    return type(error) is ChainTooLong and len(case.chain) > MAX_CERTIFICATES


def weak_one_beside(case: Case, error: TrustError) -> bool:
    return type(error) is WeakKey


# Differences in cases of BetterTLS, which have numbers for names: valid chains that we refuse, by rule.
STRICTER: dict[Callable[[Case, TrustError], bool], str] = {
    common_name_is_constrained: "a constraint may not be evaded through the common name (RFC 6125 section 6.4.4)",
    too_many: f"at most {MAX_CERTIFICATES} certificates are read: a longer search is a denial of service",
    weak_one_beside: "a chain with a certificate that is signed with SHA-1 is refused, even where another path exists",
}


def _der(pem: str) -> bytes:
    # The parsers of PEM refuse what the cases are made of; only the armour is taken off here.
    return base64.b64decode("".join(pem.strip().splitlines()[1:-1]))
