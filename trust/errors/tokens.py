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


class KeysUnavailable(TokenError):
    check = "token.keys"
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
