"""The authorization server. Status and code by RFC 6749 section 5.2, RFC 8693 section 2.2.2 and RFC 8707 section 2."""

from __future__ import annotations

from collections.abc import Mapping

from trust.errors.base import ConfigurationError, Fault, TrustError


class GrantError(TrustError):
    check = "grant"
    members: Mapping[str, str | int] = {}  # of the answer, beside the code


class GrantRequestMalformed(GrantError):
    check = "grant.request"


class ClientRefused(GrantError):
    check = "grant.client"
    status = 401
    code = "invalid_client"


class ClientNotRegistered(ConfigurationError):
    """There is no client of that name to change."""

    check = "registration"


class TooManyTokenRequests(GrantError):
    """RFC 6585 section 4."""

    check = "grant.rate"
    status = 429
    code = "temporarily_unavailable"

    def __init__(
        self,
        failed: str,
        *,
        retry_after: int = 0,
        is_first: bool = False,
        got: object = None,
        expected: str = "",
        do: str = "",
    ) -> None:
        super().__init__(failed, got=got, expected=expected, do=do)
        self.retry_after = retry_after  # seconds
        self.is_first = is_first  # of a time in which all are refused: the one to record


class ClientLockedOut(TooManyTokenRequests):
    """It has failed to authenticate too often."""

    check = "grant.locked"


class TooManyTokensHeld(TooManyTokenRequests):
    """It has too many tokens that have not expired: revoked, they would fill the list of revoked tokens."""

    check = "grant.held"


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


class GrantProofRefused(GrantError):
    """The DPoP proof of a request proves nothing, or there is nothing to bind to its key. RFC 9449 section 5."""

    check = "grant.proof"
    code = "invalid_dpop_proof"


class AssertionRefused(GrantError):
    """What a client brings from another authorization server, this one does not believe. RFC 7523 section 3.1."""

    check = "grant.assertion"
    code = "invalid_grant"


class AssertionIssuerUnknown(AssertionRefused):
    check = "grant.assertion_issuer"


class AssertionBoundElsewhere(AssertionRefused):
    """It was made for another client, or for another certificate of this one."""

    check = "grant.assertion_binding"


class AssertionSubjectRefused(AssertionRefused):
    """Its issuer may not speak for this subject, or for one of the actors."""

    check = "grant.assertion_subject"


class AssertionUsed(AssertionRefused):
    check = "grant.assertion_used"


class PartnerUnavailable(GrantError):
    """The keys of the other authorization server cannot be had: nothing can be said of its assertion."""

    check = "grant.partner"
    fault = Fault.SERVICE
    status = 503
    code = "temporarily_unavailable"


class TokenStoreUnavailable(GrantError):
    """The server's database does not answer: nothing is issued, and nothing is said of a token."""

    check = "grant.store"
    fault = Fault.SERVICE
    status = 503
    code = "temporarily_unavailable"
    retry_after = 5  # seconds, RFC 9110 section 10.2.3


class RevocationRefused(GrantError):
    """The token was issued to another client. RFC 7009 section 2.1."""

    check = "grant.revocation"
    code = "unauthorized_client"


class TokenNotRevocable(GrantError):
    """What was presented is no access token, so that revoking it is none of this server's services."""

    check = "grant.revocation_type"
    code = "unsupported_token_type"


class IssuanceDenied(GrantError):
    """The client is registered for it, and a policy for what registrations cannot say does not allow it."""

    check = "grant.policy"
    code = "access_denied"


class ApprovalPending(GrantError):
    """A person has to say yes first: the same request will be answered once that is done. RFC 8628 section 3.5."""

    check = "grant.approval_pending"
    code = "authorization_pending"

    def __init__(
        self,
        failed: str,
        *,
        approval_id: str = "",
        interval: int = 0,
        expires_in: int = 0,
        got: object = None,
        expected: str = "",
        do: str = "",
    ) -> None:
        super().__init__(failed, got=got, expected=expected, do=do)
        self.members = {"approval_id": approval_id, "interval": interval, "expires_in": expires_in}


class ApprovalDenied(GrantError):
    check = "grant.approval_denied"
    code = "access_denied"


class TooManyApprovals(GrantError):
    check = "grant.approvals"
    code = "slow_down"


class StepUpUnknown(GrantError):
    """The client asks for a way of authentication that this server has not."""

    check = "grant.acr"
    code = "unmet_authentication_requirements"


class ApprovalNotWaiting(GrantError):
    """Nothing with this ID waits for a person's decision."""

    check = "grant.approval_id"
