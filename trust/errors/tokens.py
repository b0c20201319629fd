"""Checks 2, 3 and 7: the token and what it grants. Status and code by RFC 6750 section 3.1."""

from __future__ import annotations

from trust.errors.base import Fault, TrustError


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


class TokenWithoutProof(TokenError):
    check = "token.proof"


class TokenRelayRefused(TokenError):
    """The token is another agent's, and the peer was not configured to forward that agent's requests."""

    check = "token.relay"


class ProofError(TokenError):
    """A DPoP proof that proves nothing. RFC 9449 section 7.1."""

    check = "proof"
    code = "invalid_dpop_proof"


class ProofMalformed(ProofError):
    check = "proof.malformed"


class ProofAlgorithmRefused(ProofError):
    check = "proof.algorithm"


class ProofSignatureWrong(ProofError):
    check = "proof.signature"


class ProofForAnotherRequest(ProofError):
    check = "proof.request"


class ProofForAnotherToken(ProofError):
    check = "proof.token"


class ProofTimeWrong(ProofError):
    check = "proof.time"


class ProofReplayed(ProofError):
    check = "proof.replay"


class KeysUnavailable(TokenError):
    check = "token.keys"
    fault = Fault.SERVICE
    status = 503
    code = "temporarily_unavailable"


class DenylistUnavailable(TokenError):
    """Which tokens are revoked cannot be known: the list cannot be had, and the copy of it is too old."""

    check = "token.denylist"
    fault = Fault.SERVICE
    status = 503
    code = "temporarily_unavailable"


class DenylistTooLarge(DenylistUnavailable):
    check = "token.denylist_size"


class DenylistMalformed(DenylistUnavailable):
    check = "token.denylist_malformed"


class DenylistIssuerWrong(DenylistUnavailable):
    check = "token.denylist_issuer"


class DenylistOutdated(DenylistUnavailable):
    """It has expired, or has seen less than the one before."""

    check = "token.denylist_outdated"


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


class OperationMalformed(ScopeError):
    """What the request asks for cannot be told, and so not what it needs either."""

    check = "scope.request"
    status = 400
    code = "invalid_request"


class OperationUnknown(ScopeError):
    """No scope is for this: a token with other scopes would not help."""

    check = "scope.operation"
    code = "access_denied"


class PolicyDenied(ScopeError):
    """The scopes suffice, and a policy for what scopes cannot say does not allow it."""

    check = "scope.policy"
    code = "access_denied"


class ApprovalMissing(ScopeError):
    """The token grants it, and no person has approved it. RFC 9470 section 3."""

    check = "scope.approval"
    status = 401
    code = "insufficient_user_authentication"

    def __init__(
        self, failed: str, *, required: str = "", got: object = None, expected: str = "", do: str = ""
    ) -> None:
        super().__init__(failed, got=got, expected=expected, do=do)
        self.required = required  # the scope that needs the approval
