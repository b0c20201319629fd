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


class TokenTaskEnded(TokenRequestError):
    """The task that the tokens were for has ended, and they are revoked."""

    check = "authority.task"
    fault = Fault.CALLER


class CardRefused(TokenRequestError):
    check = "card"


class ApprovalRequired(TokenRequestRefused):
    """A person has to say yes first. `BearerAuth.approved` waits for it; an A2A task is `AUTH_REQUIRED` meanwhile.

    Attributes:
        approval_id: by which the person finds it at the authorization server (`a2a-trust approval approve ID`); empty
            where the server does not say.
        interval: seconds between two questions, at least.
        expires_in: seconds that the person has to decide; 0 where the server does not say.
        step_up: the approval was asked for by the resource, or by us; not by the server's own rules.
    """

    check = "authority.approval"

    def __init__(
        self,
        failed: str,
        *,
        approval_id: str = "",
        interval: int = 0,
        expires_in: int = 0,
        error: str = "authorization_pending",
        got: object = None,
        expected: str = "",
        do: str = "",
    ) -> None:
        super().__init__(failed, error=error, got=got, expected=expected, do=do)
        self.approval_id = approval_id
        self.interval = interval
        self.expires_in = expires_in
        self.step_up = False
