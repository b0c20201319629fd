"""Who may have which certificate. Pure: a proven request and a grant in, an approved certificate content out.

The grant (ID, names, lifetime) comes from whoever runs the CA, within the rules of its policy file (`pki.rules`) where
there is one. A request may repeat the ID; whatever else it wishes for (names, extensions, subject) does not survive.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from pki.errors import IDRefused, KeyTypeRefused, LifetimeRefused, NameRefused, PolicyRefused, ReasonRefused
from pki.requests import PublicKey, Request
from pki.rules import BY_NAME_ONLY, RESERVED, Rules, reserved, spelled
from trust.identity import AgentID
from trust.private_keys import ml_dsa

DEFAULT_LIFETIME = timedelta(hours=24)
MIN_LIFETIME = timedelta(seconds=1)  # certificates count whole seconds
MAX_LIFETIME = timedelta(days=7)
MAX_NAMES = 32  # DNS names and addresses beside the ID; an agent has a handful
MAX_DNS_BYTES = 253  # RFC 1035 section 2.3.4, in text form

REASONS = (  # RFC 5280 section 5.3.1, without "on hold": a revoked certificate never comes back
    x509.ReasonFlags.unspecified,
    x509.ReasonFlags.key_compromise,
    x509.ReasonFlags.ca_compromise,
    x509.ReasonFlags.affiliation_changed,
    x509.ReasonFlags.superseded,
    x509.ReasonFlags.cessation_of_operation,
    x509.ReasonFlags.privilege_withdrawn,
)

IPAddress = IPv4Address | IPv6Address

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_URL = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~-]+)*/?", re.ASCII)
_ALL_DIGITS = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Approved:
    """The content of an agent's certificate, as `approve` lets it through."""

    agent_id: AgentID
    public_key: PublicKey = field(repr=False)
    dns_names: tuple[str, ...]
    ip_addresses: tuple[IPAddress, ...]
    lifetime: timedelta


def approve(
    request: Request,
    agent_id: AgentID,
    *,
    trust_domain: str,
    dns_names: Collection[str],
    ip_addresses: Collection[str | IPAddress],
    lifetime: timedelta,
    rules: Rules | None = None,
) -> Approved:
    """Decide on a request for the ID that was granted to its sender.

    1. The ID is one of this CA's trust domain, and none of the CA's own.
    2. The request asks for that ID, or for none; one that asks for another, or for several, is refused.
    3. DNS names and addresses are well-formed, and not too many.
    4. The lifetime is between a second and 7 days.
    5. The rules allow all of it. Without rules, all of it is allowed but post-quantum keys (`rules.BY_NAME_ONLY`).

    Not checked here: the name constraints of the CA that will sign; `pki.profiles` does that.

    Raises:
        IDRefused, NameRefused, LifetimeRefused: by the steps above.
        PolicyRefused: the rules refuse it; the class is the one of what they refuse (KeyTypeRefused for the key).
    """
    # 1. Whoever had the CA's own ID could play the CA to all agents.
    inside(agent_id, trust_domain)
    if reserved(agent_id):
        raise IDRefused("SPIFFE ID", got=agent_id, expected=f"one outside of /{RESERVED}, which is for the CA itself")

    # 2. Compared as text: a URI that is merely equivalent is not the ID.
    if request.uris not in ((), (str(agent_id),)):
        raise IDRefused(
            "certificate request asks for other IDs",
            got=", ".join(request.uris),
            expected=f"{agent_id} or no URI at all",
            do="make the request for the granted ID",
        )

    # 3. and 4.
    approved = _content(agent_id, request.public_key, dns_names, ip_addresses, lifetime)

    # 5.
    kind = key_type(request.public_key)
    if rules is None and kind in BY_NAME_ONLY:
        raise KeyTypeRefused(
            "key of the certificate request",
            got=kind,
            expected="P-256, P-384 or Ed25519 where no policy names other keys",
            do=f'allow keys = ["{kind}"] in the policy of this CA',
        )
    if rules is not None:
        decision = rules.decide(agent_id, approved.dns_names, approved.ip_addresses, kind, lifetime)
        if not decision.allowed:
            raise decision.error(
                "the policy of this CA refuses it",
                got=decision.why,
                expected="what one allow rule has and no deny rule",
                do="see `a2a-pki policy check`",
            )
    return approved


def approve_own(
    public_key: PublicKey,
    name: str,
    *,
    trust_domain: str,
    dns_names: Collection[str],
    ip_addresses: Collection[str | IPAddress],
    lifetime: timedelta,
) -> Approved:
    """The certificate of a part of the CA itself, `spiffe://trust-domain/a2a-pki/name`, for a key made by the CA.

    No rules apply: they are about agents.

    Raises:
        NameRefused, LifetimeRefused: as `approve`.
    """
    agent_id = AgentID(trust_domain, f"/{RESERVED}/{name}")
    return _content(agent_id, public_key, dns_names, ip_addresses, lifetime)


def key_type(public_key: PublicKey) -> str:
    """What a policy file calls the kind of a key that `pki.requests` has let through."""
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return "P-256" if public_key.curve.name == "secp256r1" else "P-384"
    return ml_dsa(public_key) or "Ed25519"


def _content(
    agent_id: AgentID,
    public_key: PublicKey,
    dns_names: Collection[str],
    ip_addresses: Collection[str | IPAddress],
    lifetime: timedelta,
) -> Approved:
    """Steps 3 and 4 of `approve`."""
    if isinstance(dns_names, str) or isinstance(ip_addresses, str):
        raise NameRefused("names", got="one text", expected='a collection, such as ("localhost",)')
    names = tuple(dict.fromkeys(dns_name(name) for name in dns_names))
    addresses = tuple(dict.fromkeys(_address(address) for address in ip_addresses))
    if len(names) + len(addresses) > MAX_NAMES:
        raise NameRefused("names", got=f"{len(names) + len(addresses)}", expected=f"at most {MAX_NAMES}")
    if not MIN_LIFETIME <= lifetime <= MAX_LIFETIME:
        raise LifetimeRefused("lifetime", got=spelled(lifetime), expected="from 1 second to 7 days")
    return Approved(
        agent_id=agent_id,
        public_key=public_key,
        dns_names=names,
        ip_addresses=addresses,
        lifetime=lifetime,
    )


def inside(agent_id: AgentID, trust_domain: str) -> None:
    """SPIFFE-ID section 2.1: a CA speaks for its own domain only. Raises `IDRefused`."""
    if agent_id.trust_domain != trust_domain:
        raise IDRefused("SPIFFE ID", got=agent_id, expected=f"an ID of {trust_domain}, the trust domain of this CA")


def dns_name(text: str) -> str:
    """Return a DNS name in lower case, or refuse it.

    Wildcards are refused (a certificate names one agent), and so is a name whose last label is a number: some
    verifiers would compare it as an address (WHATWG URL, "ends in a number").
    """
    name = text.lower()
    labels = name.split(".")
    if (
        not text.isascii()  # a few letters of other alphabets turn into ASCII when they are lowered
        or len(name) > MAX_DNS_BYTES
        or not all(_LABEL.fullmatch(label) for label in labels)
        or _ALL_DIGITS.fullmatch(labels[-1])
    ):
        raise NameRefused(
            "DNS name", got=repr(text), expected="letters, digits, '-' and '.'; no wildcard, no final dot, no address"
        )
    return name


def revocation_reason(reason: x509.ReasonFlags | str) -> x509.ReasonFlags:
    """The reason, also by its RFC 5280 name (`keyCompromise`), if a certificate can be revoked for it."""
    if reason in REASONS:
        return x509.ReasonFlags(reason)
    for known in REASONS:
        if reason == known.value:
            return known
    got = reason.value if isinstance(reason, x509.ReasonFlags) else reason
    raise ReasonRefused("revocation reason", got=got, expected="one of " + ", ".join(r.value for r in REASONS))


def crl_base_url(url: str) -> str:
    """The URL below which the CA's revocation lists will be served, without its final slash.

    RFC 5280 section 8 warns of https here: a verifier would need the very certificates that it is checking. Both are
    taken; http is the usual choice, because a CRL is signed.
    """
    return _url("CRL base URL", url, "http://pki.example/crl")


def public_url(url: str) -> str:
    """The URL at which the plain-HTTP side of the CA service will be reached, without its final slash; as above."""
    return _url("public URL", url, "http://pki.example")


def _url(what: str, url: str, example: str) -> str:
    if not _URL.fullmatch(url):
        raise PolicyRefused(what, got=repr(url), expected=f"an http:// or https:// URL, such as {example}")
    return url.rstrip("/")


def _address(value: str | IPAddress) -> IPAddress:
    try:
        address = ip_address(str(value))  # an int or bytes would be read as an address too
    except ValueError:
        raise NameRefused("IP address", got=repr(value), expected="an IPv4 or IPv6 address") from None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise NameRefused("IP address", got=repr(str(value)), expected="an address without a zone")
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        # The same host under another name: a rule about the one would not see the other.
        raise NameRefused("IP address", got=repr(str(value)), expected=str(address.ipv4_mapped))
    return address
