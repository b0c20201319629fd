"""Every error that a2a-trust raises, as one tree.

Each class names the `check` that refused (also the word in the audit trail), whose `fault` it is, and what
the wire may learn: an HTTP `status` and an RFC error `code`. The message itself, `str(error)`, is for logs and
people ("what failed: got X, expected Y; do Z") and never leaves the process.

    TrustError
    |- IdentityError            a SPIFFE ID or trust domain is malformed              (also a ValueError)
    |- ConfigurationError       files, keys and settings of this side
    |  |- CredentialsError
    |  |  |- WrongPassword
    |  |  `- WorkloadAPIUnavailable, WorkloadAPIDenied, WorkloadAPIRefused
    |  `- BundleError
    |- PeerError                check 1: who is on the other end of the channel
    |  |- NoPeerCertificate, MalformedCertificate, ChainTooLong, UnknownTrustDomain, UntrustedChain
    |  |- CertificateExpired, CertificateNotYetValid, NameConstraintViolated, WeakKey
    |  |- CertificateRevoked, RevocationUnknown
    |  |- NotAnAgentCertificate
    |  |  `- NoSpiffeID, SeveralSpiffeIDs, CertificateIsCA, WrongKeyUsage, WrongExtendedKeyUsage
    |  `- PeerNotAllowed
    |- ForwardedCertificateRefused, ForwardedCertificateMalformed     behind a proxy: RFC 9440
    |- TokenError               checks 2 and 3: what the caller may do
    |  |- TokenMissing, TokenRequestMalformed, TokenMalformed, TokenTypeWrong, TokenAlgorithmRefused
    |  |- TokenKeyUnknown, TokenSignatureWrong, TokenIssuerWrong, TokenAudienceWrong
    |  |- TokenClaimMissing, TokenClaimMalformed
    |  |- TokenExpired, TokenNotYetValid, TokenLifetimeTooLong, TokenRevoked
    |  |- TokenNotBound, TokenBoundElsewhere, TokenWithoutCertificate
    |  `- KeysUnavailable       the issuer's keys cannot be had: 503, neither 401 nor 500
    |- SignatureError           check 4: that nobody altered what was said
    |  |- SignatureMissing, SignatureTooLarge, SignatureMalformed, HeaderMalformed, TypeWrong
    |  |- AlgorithmRefused, CriticalHeaderRefused, SignerUnknown, KeyMismatch, SignatureWrong
    |  |- IssuerMismatch, AudienceMismatch, BindingMismatch, ResponseMismatch
    |  |- MessageExpired, MessageFromTheFuture, MessageLifetimeTooLong
    |  |- MessageNotPortable, AuthorUnclear, EvidenceMalformed, ReceiptMismatch
    |  |- CardMalformed, CardNotCovered, CardOfAnother, CardAsksForLess       an Agent Card's
    |  |- SignaturesNotOffered
    |  |- ResponseNotSigned, ResponseTooLarge
    |  `- StreamError           an event stream's
    |     |- StreamNotSigned, StreamMalformed, StreamEventTooLarge
    |     `- StreamEventLost, StreamEventsReordered, StreamEventRepeated, StreamEventInserted, StreamTruncated
    |- SignerMismatch           check 5: the signer is not the peer
    |- Replayed, ReplayGuardFull, ReplayStoreUnavailable     check 6: seen before, no room to remember, nobody to ask
    |- ScopeError               check 7
    |  |- ScopeMalformed        (also a ValueError)
    |  `- InsufficientScope
    |- CanonicalizationError    not JSON that RFC 8785 can represent                  (also a ValueError)
    |- RequestMalformed, RequestTooLarge, RequestTooSlow, WebSocketRefused     the edge: 400, 413, 408, 403
    |- WebhookUnknown           a push notification to a path that is no webhook of ours
    |- WebhookRefused           a webhook's URL that no notification is signed for
    |- GrantError               the authorization server's side of OAuth: what its token endpoint refuses
    |  |- GrantRequestMalformed, ClientRefused, GrantTypeUnknown, GrantNotAllowed, ScopeRefused, TargetRefused
    |  `- SubjectTokenRefused, DelegationRefused
    |- TokenRequestError        the client's side of OAuth
    |  |- TokenRequestRefused, TokenResponseRefused, AuthorizationServerUnavailable, MetadataRefused
    |  `- ScopeNotGranted, OriginRefused, CardRefused
    `- TransportError           TLS, beside who the peer is
       |- HandshakeFailed
       |  `- NotPostQuantum
       |- HandshakeRefused, DestinationRefused, AddressRefused
       |- TooManyCalls
       `- TooManyConnections
          `- HandshakeGaveWay
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Fault(StrEnum):
    """Whose fault an error is: where to look first."""

    PEER = "peer"  # the other side sent or presented it
    CALLER = "caller"  # the code that called this library passed it
    CONFIGURATION = "configuration"  # files, keys or settings of this side
    SERVICE = "service"  # a third party that is needed cannot be reached


class TrustError(Exception):
    """The root of the tree.

    Args:
        failed: what failed, in a few words, without a trailing full stop.
        got: what was found; never a secret, a token or a key.
        expected: what would have been right.
        do: what the reader should do now.
    """

    check: ClassVar[str] = "trust"
    fault: ClassVar[Fault] = Fault.PEER
    status: ClassVar[int] = 400
    code: ClassVar[str] = "invalid_request"

    def __init__(self, failed: str, *, got: object = None, expected: str = "", do: str = "") -> None:
        self.failed = failed
        line = failed
        details = [f"got {_bounded(got)}"] if got is not None else []
        if expected:
            details.append(f"expected {expected}")
        if details:
            line += ": " + ", ".join(details)
        if do:
            line += "; " + do
        super().__init__(_escaped(line))

    # Of a connection that failed: the other end's address, and the SPIFFE ID in the certificate that it presented.
    # Where the certificate was refused, that is a claim which nothing has proved.
    address = ""
    claimed = ""

    def of_connection(self, *, address: str, claimed: str) -> None:
        """Say which connection failed, in the message too. What was said first stays."""
        if self.address or self.claimed or not (address or claimed):
            return
        self.address, self.claimed = address, claimed
        words = [f"peer {address}"] * bool(address) + [f"claims {claimed}"] * bool(claimed)
        self.args = (f"{self.args[0]} ({_escaped(', '.join(words))})",)


def _bounded(value: object) -> str:
    """One bounded line: an attacker's text must not flood the log."""
    text = str(value)
    return text if len(text) <= 200 else text[:200] + "..."


def _escaped(text: str) -> str:
    """One line of printable characters: nobody's text, wherever it stands in the message, forges log lines."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


class IdentityError(TrustError, ValueError):
    check = "identity"


class ConfigurationError(TrustError):
    check = "configuration"
    fault = Fault.CONFIGURATION
    status = 500
    code = "server_error"


class CredentialsError(ConfigurationError):
    check = "credentials"


class WrongPassword(CredentialsError):
    check = "credentials.password"


class WorkloadAPIUnavailable(CredentialsError):
    check = "credentials.workload_api"
    fault = Fault.SERVICE


class WorkloadAPIDenied(CredentialsError):
    """The SPIFFE Workload API knows this process, and has no such identity for it (any more)."""

    check = "credentials.workload_api_denied"


class WorkloadAPIRefused(CredentialsError):
    """The Workload API said something that cannot be used."""

    check = "credentials.workload_api_answer"
    fault = Fault.SERVICE


class BundleError(ConfigurationError):
    check = "bundle"


# Check 1: the peer. RFC 8705 section 3 answers a certificate problem with 401 invalid_token.


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


# Checks 2 and 3: the token. Status and code by RFC 6750 section 3.1.


class TokenError(TrustError):
    check = "token"
    status = 401
    code = "invalid_token"


class TokenMissing(TokenError):
    check = "token.missing"
    code = ""  # RFC 6750 section 3.1: no error code when there was no token at all


class TokenRequestMalformed(TokenError):
    check = "token.request"
    status = 400
    code = "invalid_request"


class TokenMalformed(TokenError):
    check = "token.malformed"


class TokenTypeWrong(TokenError):
    check = "token.type"


class TokenAlgorithmRefused(TokenError):
    check = "token.algorithm"


class TokenKeyUnknown(TokenError):
    check = "token.key"


class TokenSignatureWrong(TokenError):
    check = "token.signature"


class TokenIssuerWrong(TokenError):
    check = "token.issuer"


class TokenAudienceWrong(TokenError):
    check = "token.audience"


class TokenClaimMissing(TokenError):
    check = "token.claims"


class TokenClaimMalformed(TokenError):
    check = "token.claim_type"


class TokenExpired(TokenError):
    check = "token.expired"


class TokenNotYetValid(TokenError):
    check = "token.not_yet_valid"


class TokenLifetimeTooLong(TokenError):
    check = "token.lifetime"


class TokenRevoked(TokenError):
    check = "token.revoked"


class TokenNotBound(TokenError):
    check = "token.unbound"


class TokenBoundElsewhere(TokenError):
    check = "token.binding"


class TokenWithoutCertificate(TokenError):
    check = "token.certificate"


class KeysUnavailable(TokenError):
    check = "token.keys"
    fault = Fault.SERVICE
    status = 503
    code = "temporarily_unavailable"


# Check 4: the message signature, in the order of the verifier's steps.


class SignatureError(TrustError):
    check = "signature"
    status = 401


class SignatureMissing(SignatureError):
    check = "signature.missing"


class SignatureTooLarge(SignatureError):
    check = "signature.size"
    status = 400


class SignatureMalformed(SignatureError):
    check = "signature.malformed"
    status = 400


class HeaderMalformed(SignatureError):
    check = "signature.header"
    status = 400


class TypeWrong(SignatureError):
    check = "signature.type"


class AlgorithmRefused(SignatureError):
    check = "signature.algorithm"


class CriticalHeaderRefused(SignatureError):
    check = "signature.crit"


class SignerUnknown(SignatureError):
    check = "signature.certificate"


class KeyMismatch(SignatureError):
    check = "signature.key"


class SignatureWrong(SignatureError):
    check = "signature.value"


class IssuerMismatch(SignatureError):
    check = "signature.issuer"


class AudienceMismatch(SignatureError):
    check = "signature.audience"


class BindingMismatch(SignatureError):
    check = "signature.binding"


class ResponseMismatch(SignatureError):
    check = "signature.response"


class MessageExpired(SignatureError):
    check = "signature.expired"


class MessageFromTheFuture(SignatureError):
    check = "signature.future"


class MessageLifetimeTooLong(SignatureError):
    check = "signature.lifetime"


class MessageNotPortable(SignatureError):
    """A message inside JSON has a part that an SDK on its way would lose or change."""

    check = "signature.portable"
    status = 400


class AuthorUnclear(SignatureError):
    """Of several signatures beside one another, not exactly one is meant for us, by whom we believe."""

    check = "signature.author"


class EvidenceMalformed(SignatureError):
    check = "evidence.form"
    status = 400


class ReceiptMismatch(SignatureError):
    """A receipt that is another message's, or another agent's than the receiver's."""

    check = "evidence.receipt"


class CardMalformed(SignatureError):
    """Not the JSON of an A2A 1.0 Agent Card."""

    check = "card.form"
    status = 400


class CardNotCovered(SignatureError):
    """A part of the Agent Card is outside of its signature."""

    check = "card.coverage"


class CardOfAnother(SignatureError):
    """The signature is good, and its signer does not speak for the agent that is asked about."""

    check = "card.agent"


class CardAsksForLess(SignatureError):
    """The card asks less of callers than it must, or shows traces of requirements that were taken out."""

    check = "card.security"


class SignaturesNotOffered(SignatureError):
    """The agent's card does not say that it takes messages that are signed as ours are."""

    check = "card.extension"


class ResponseNotSigned(SignatureError):
    check = "signature.response_missing"


class ResponseTooLarge(SignatureError):
    check = "signature.response_size"
    status = 500
    code = "server_error"


class StreamError(SignatureError):
    """An event stream, or one of its events."""

    check = "stream"


class StreamNotSigned(StreamError):
    """The application answers a signed request with a stream that cannot be signed; an unsigned one never goes out."""

    check = "stream.unsigned"
    fault = Fault.CALLER
    status = 501


class StreamMalformed(StreamError):
    """Not a text/event-stream in UTF-8 that every reader reads alike."""

    check = "stream.form"


class StreamEventTooLarge(StreamError):
    check = "stream.size"


class StreamEventLost(StreamError):
    """An event is there that comes after one that is not."""

    check = "stream.lost"


class StreamEventsReordered(StreamError):
    """As `StreamEventLost`, and the missing event came behind it."""

    check = "stream.reordered"


class StreamEventRepeated(StreamError):
    """An event has the number of an earlier one."""

    check = "stream.repeated"


class StreamEventInserted(StreamError):
    """An event in the stream is not of the stream."""

    check = "stream.inserted"


class StreamTruncated(StreamError):
    """The stream ended without its signed end: the connection failed, the server stopped, or somebody cut it."""

    check = "stream.truncated"

    def __init__(
        self, failed: str, *, last_event_id: str = "", got: object = None, expected: str = "", do: str = ""
    ) -> None:
        super().__init__(failed, got=got, expected=expected, do=do)
        self.last_event_id = last_event_id  # of the last verified event: the Last-Event-ID of a resubscription


# Checks 5, 6 and 7, and the edge.


class SignerMismatch(TrustError):
    check = "signer"
    status = 401


class Replayed(TrustError):
    check = "replay"
    status = 401


class ReplayGuardFull(TrustError):
    check = "replay.capacity"
    fault = Fault.SERVICE
    status = 503
    code = "temporarily_unavailable"


class ReplayStoreUnavailable(TrustError):
    """The store of a shared replay guard does not answer: nothing signed is admitted until it does."""

    check = "replay.store"
    fault = Fault.SERVICE
    status = 503
    code = "temporarily_unavailable"


class ScopeError(TrustError):
    check = "scope"
    status = 403
    code = "insufficient_scope"


class ScopeMalformed(ScopeError, ValueError):
    check = "scope.malformed"
    status = 400
    code = "invalid_scope"


class InsufficientScope(ScopeError):
    check = "scope.insufficient"

    def __init__(
        self, failed: str, *, required: str = "", got: object = None, expected: str = "", do: str = ""
    ) -> None:
        super().__init__(failed, got=got, expected=expected, do=do)
        self.required = required  # RFC 6750 section 3: the scope necessary, space-delimited


class CanonicalizationError(TrustError, ValueError):
    check = "canonical"


class RequestMalformed(TrustError):
    check = "request.form"


class WebSocketRefused(TrustError):
    check = "request.websocket"
    status = 403
    code = "access_denied"


class RequestTooSlow(TrustError):
    check = "request.time"
    status = 408


class RequestTooLarge(TrustError):
    check = "request.size"
    status = 413


class WebhookUnknown(TrustError):
    check = "push.path"
    status = 404
    code = "not_found"


class WebhookRefused(TrustError):
    """Two readers of the URL could take it for different places, so no signature can name it."""

    check = "push.webhook"


# The token endpoint. Status and code by RFC 6749 section 5.2, RFC 8693 section 2.2.2 and RFC 8707 section 2.


class GrantError(TrustError):
    check = "grant"


class GrantRequestMalformed(GrantError):
    check = "grant.request"


class ClientRefused(GrantError):
    check = "grant.client"
    status = 401
    code = "invalid_client"


class GrantTypeUnknown(GrantError):
    check = "grant.type"
    code = "unsupported_grant_type"


class GrantNotAllowed(GrantError):
    check = "grant.allowed"
    code = "unauthorized_client"


class ScopeRefused(GrantError):
    check = "grant.scope"
    code = "invalid_scope"


class TargetRefused(GrantError):
    check = "grant.target"
    code = "invalid_target"


class SubjectTokenRefused(GrantError):
    check = "grant.subject_token"


class DelegationRefused(GrantError):
    """The subject token is good, and does not let this client act with it."""

    check = "grant.delegation"


class TokenRequestError(TrustError):
    check = "authority"
    fault = Fault.SERVICE
    status = 502
    code = "server_error"


class TokenRequestRefused(TokenRequestError):
    """The authorization server said no; `error` is its RFC 6749 section 5.2 code."""

    check = "authority.refused"
    fault = Fault.CALLER

    def __init__(self, failed: str, *, error: str = "", got: object = None, expected: str = "", do: str = "") -> None:
        super().__init__(failed, got=got, expected=expected, do=do)
        self.error = error


class AuthorizationServerUnavailable(TokenRequestError):
    check = "authority.unavailable"
    status = 503
    code = "temporarily_unavailable"


class TokenResponseRefused(TokenRequestError):
    check = "authority.response"


class MetadataRefused(TokenRequestError):
    check = "authority.metadata"


class ScopeNotGranted(TokenRequestError):
    check = "authority.scope"


class OriginRefused(TokenRequestError):
    """A token must not leave for a host that it was not made for."""

    check = "authority.origin"
    fault = Fault.CALLER


class CardRefused(TokenRequestError):
    check = "card"


class TransportError(TrustError):
    check = "transport"
    status = 502
    code = "server_error"


class HandshakeFailed(TransportError):
    check = "transport.handshake"


class NotPostQuantum(HandshakeFailed):
    check = "transport.post_quantum"


class DestinationRefused(TransportError):
    check = "transport.destination"
    fault = Fault.CONFIGURATION


class AddressRefused(TransportError):
    """A URL that others gave leads where this client does not connect to."""

    check = "transport.address"


class HandshakeRefused(TransportError):
    check = "transport.refused"
    by_verified_peer = False  # who refused had proved who it is; else anybody on the path may have


class TooManyCalls(TransportError):
    check = "transport.calls"
    status = 503
    code = "temporarily_unavailable"


class TooManyConnections(TransportError):
    check = "transport.capacity"
    status = 503
    code = "temporarily_unavailable"


class HandshakeGaveWay(TooManyConnections):
    """A stranger's: apart from agents that have too many, so that no flood hides these in the audit trail."""

    check = "transport.handshakes"
