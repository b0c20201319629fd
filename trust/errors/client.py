"""The client's side of OAuth: what it cannot get, and what it does not take."""

from __future__ import annotations

from trust.errors.base import Fault, TrustError


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
