"""What the authorization server grants, for whom, and on whose word: pure decisions."""

from trust.oauth.server.grants.assertions import (
    assertion_for_partner,
    presented_assertion,
    read_assertion,
    token_for_assertion,
)
from trust.oauth.server.grants.dpop import bound_to_key
from trust.oauth.server.grants.exchange import read_subject_token, token_exchange
from trust.oauth.server.grants.grant import Grant, GrantPolicy, TokenRequest, check_permit, client_credentials
from trust.oauth.server.grants.partners import FetchClient, PartnerIssuer, Partners, partners_of

__all__ = [
    "FetchClient",
    "Grant",
    "GrantPolicy",
    "PartnerIssuer",
    "Partners",
    "TokenRequest",
    "assertion_for_partner",
    "bound_to_key",
    "check_permit",
    "client_credentials",
    "partners_of",
    "presented_assertion",
    "read_assertion",
    "read_subject_token",
    "token_exchange",
    "token_for_assertion",
]
