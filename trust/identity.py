"""Who an agent is: its SPIFFE ID, the peer that proved it, and the caller that the application sees.

Nothing here does IO, reads a clock or verifies anything: a `PeerIdentity` comes only from `trust.peers`, a
`Caller` only from `trust.gate`.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from trust.errors import IdentityError, MalformedCertificate, NoSpiffeID, SeveralSpiffeIDs

MAX_ID_BYTES = 2048  # SPIFFE-ID section 2.3
MAX_TRUST_DOMAIN_BYTES = 255  # SPIFFE-ID section 2.1

_SCHEME = "spiffe://"
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+", re.ASCII)
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class AgentID:
    """A SPIFFE ID that names one agent, `spiffe://trust-domain/path`; `parse` is the only door."""

    trust_domain: str
    path: str

    def __post_init__(self) -> None:
        trust_domain(self.trust_domain)
        if len(_SCHEME) + len(self.trust_domain) + len(self.path) > MAX_ID_BYTES:
            raise IdentityError("SPIFFE ID too long", got=f"{len(self.path)} bytes", expected="<= 2048 bytes in all")
        if not self.path.startswith("/"):
            raise IdentityError(
                "SPIFFE ID names no agent",
                got=self.path or "an empty path",
                expected="spiffe://trust-domain/path",
            )
        for segment in self.path[1:].split("/"):
            if not _SEGMENT.fullmatch(segment) or segment in (".", ".."):
                raise IdentityError(
                    "SPIFFE ID path segment",
                    got=repr(segment),
                    expected="letters, digits, '.', '_', '-'; not '.' or '..'",
                )

    @classmethod
    def parse(cls, text: str) -> AgentID:
        """Parse a SPIFFE ID, strictly: no percent-encoding, query, port, user, upper-case domain, trailing slash.

        Raises:
            IdentityError: (a ValueError) the text is not the SPIFFE ID of an agent. SPIFFE-ID section 2.
        """
        if not isinstance(text, str):
            raise IdentityError("SPIFFE ID", got=type(text).__name__, expected="a str")
        if len(text) > MAX_ID_BYTES:
            raise IdentityError("SPIFFE ID too long", got=f"{len(text)} characters", expected="<= 2048 bytes")
        if not text.startswith(_SCHEME):
            raise IdentityError("SPIFFE ID scheme", got=text, expected="spiffe://trust-domain/path")
        domain, slash, path = text[len(_SCHEME) :].partition("/")
        return cls(domain, slash + path)

    def __str__(self) -> str:
        return f"{_SCHEME}{self.trust_domain}{self.path}"

    def __repr__(self) -> str:
        return f"AgentID({str(self)!r})"

    @classmethod
    def of(cls, certificate: x509.Certificate) -> AgentID:
        """The one SPIFFE ID that a certificate names. Nothing else of the certificate is checked.

        Raises:
            NoSpiffeID, SeveralSpiffeIDs: not exactly one URI SAN (X509-SVID section 2).
            MalformedCertificate: the names cannot be read, or the URI is not the SPIFFE ID of an agent.
        """
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        except x509.ExtensionNotFound:
            uris = []
        except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
            raise MalformedCertificate("certificate names cannot be read", got=error) from None
        if not uris:
            raise NoSpiffeID("certificate names no agent", got="no URI SAN", expected="exactly one spiffe:// URI SAN")
        if len(uris) > 1:
            raise SeveralSpiffeIDs("certificate names several", got=f"{len(uris)} URI SANs", expected="exactly one")
        try:
            return cls.parse(uris[0])
        except IdentityError as error:
            raise MalformedCertificate(str(error)) from None


def trust_domain(text: str) -> str:
    """Return `text` when it is a valid trust domain name, or raise `IdentityError`. SPIFFE-ID section 2.1."""
    if not isinstance(text, str) or not _TRUST_DOMAIN.fullmatch(text) or len(text) > MAX_TRUST_DOMAIN_BYTES:
        raise IdentityError(
            "trust domain", got=repr(text), expected="1-255 of lower-case letters, digits, '.', '_', '-'"
        )
    return text


def thumbprint(der: bytes) -> str:
    """`x5t#S256` of a certificate: base64url(SHA-256(DER)) without padding. RFC 8705 section 3.1."""
    return base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()


def fingerprint(der: bytes) -> str:
    """A root certificate as people compare it, `sha256:` and its SHA-256 in hex: what `a2a-pki enrol` pins."""
    return "sha256:" + hashlib.sha256(der).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerIdentity:
    """The verified other end: made by `trust.peers` after every check of its chain has passed.

    It says nothing about *later*: validity and revocation are checked again wherever it is used again.
    """

    agent_id: AgentID
    thumbprint: str  # x5t#S256 of the leaf: base64url(SHA-256(DER)), no padding (RFC 8705 section 3.1)
    serial: int
    not_before: datetime
    not_after: datetime
    chain: tuple[bytes, ...] = field(repr=False)  # DER, leaf first, the root left out
    public_key: CertificatePublicKeyTypes = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who is calling and what it may do: the one value that `trust.gate` lets through to the application.

    It is also Starlette's `request.user` and, through it, a2a-sdk's `ServerCallContext.user`.
    """

    peer: PeerIdentity  # check 1: on the other end of this very connection
    subject: str  # `sub` of the token: on whose behalf (the peer itself, or the start of a delegation)
    actors: tuple[str, ...]  # `act`, outermost (current) first; empty when nobody acts for another
    client_id: str
    scopes: tuple[str, ...]
    token_id: str  # `jti` of the token
    issued_at: datetime  # of the token
    expires_at: datetime
    access_token: str = field(repr=False)  # for a token exchange on the caller's behalf; never log it
    signer: AgentID | None  # check 4: who signed the message; None where signatures are not required
    message_id: str | None  # `jti` of the message's signature

    @property
    def agent_id(self) -> AgentID:
        return self.peer.agent_id

    # Starlette's BaseUser and a2a-sdk's User, by duck typing.

    @property
    def is_authenticated(self) -> bool:
        return True

    @property
    def display_name(self) -> str:
        return self.subject

    @property
    def identity(self) -> str:
        return self.subject

    @property
    def user_name(self) -> str:
        return self.subject


# Where the TLS server puts the verified peer: scope["extensions"][PEER_EXTENSION] -> PeerIdentity. A key of our
# own, beside ASGI's "tls", so that a server that fills in "tls" itself cannot collide with it.
PEER_EXTENSION = "a2a-trust.peer"
# Beside it: the thumbprint of the certificate that we presented on that connection, a str. It need not be our current
# one, for a connection outlives a renewal.
PRESENTED_EXTENSION = "a2a-trust.presented"
# And the key exchange of that connection by its name in TLS, such as "X25519MLKEM768", which is a post-quantum one.
GROUP_EXTENSION = "a2a-trust.group"

# Behind a proxy that terminates TLS: its PeerIdentity. The peer is then the client that it forwards for, or nobody.
PROXY_EXTENSION = "a2a-trust.proxy"


def peer_of(scope: Mapping[str, Any]) -> PeerIdentity | None:
    """The verified peer of an ASGI connection, or None where it presented no certificate."""
    peer = (scope.get("extensions") or {}).get(PEER_EXTENSION)
    return peer if isinstance(peer, PeerIdentity) else None
