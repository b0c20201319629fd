"""The authorization server. Status and code by RFC 6749 section 5.2, RFC 8693 section 2.2.2 and RFC 8707 section 2."""

from __future__ import annotations

from trust.errors.base import TrustError


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
