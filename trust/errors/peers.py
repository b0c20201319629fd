"""Check 1: the peer. RFC 8705 section 3 answers a certificate problem with 401 invalid_token."""

from __future__ import annotations

from trust.errors.base import TrustError


class PeerError(TrustError):
    check = "peer"
    status = 401
    code = "invalid_token"


class NoPeerCertificate(PeerError):
    check = "peer.certificate"


class MalformedCertificate(PeerError):
    check = "peer.malformed"


class ChainTooLong(PeerError):
    check = "peer.chain_length"


class UnknownTrustDomain(PeerError):
    check = "peer.trust_domain"


class UntrustedChain(PeerError):
    check = "peer.chain"


class CertificateExpired(PeerError):
    check = "peer.expired"


class CertificateNotYetValid(PeerError):
    check = "peer.not_yet_valid"


class NameConstraintViolated(PeerError):
    check = "peer.name_constraints"


class WeakKey(PeerError):
    check = "peer.key"


class CertificateRevoked(PeerError):
    check = "peer.revoked"


class RevocationUnknown(PeerError):
    check = "peer.revocation"


class NotAnAgentCertificate(PeerError):
    check = "peer.profile"


class NoSpiffeID(NotAnAgentCertificate):
    check = "peer.spiffe_id"


class SeveralSpiffeIDs(NotAnAgentCertificate):
    check = "peer.spiffe_id_count"


class CertificateIsCA(NotAnAgentCertificate):
    check = "peer.ca"


class WrongKeyUsage(NotAnAgentCertificate):
    check = "peer.key_usage"


class WrongExtendedKeyUsage(NotAnAgentCertificate):
    check = "peer.extended_key_usage"


class PeerNotAllowed(PeerError):
    check = "peer.allowed"
    status = 403
    code = "access_denied"


# Behind a proxy: RFC 9440 section 2.4 leaves it to us, and suggests 400.


class ForwardedCertificateRefused(TrustError):
    """Somebody who is no proxy says whose request it is."""

    check = "forwarded.proxy"


class ForwardedCertificateMalformed(TrustError):
    check = "forwarded.form"
