"""What is asked of an authorization server, and what it may answer: values, and no IO."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from trust.errors import ConfigurationError, MetadataRefused, ScopeNotGranted, TokenResponseRefused
from trust.identity import AgentID
from trust.oauth.metadata import ACCESS_TOKEN_TYPE, CLIENT_CREDENTIALS, TOKEN_EXCHANGE, is_resource, origin_of
from trust.oauth.scopes import parse_scope_list
from trust.signing.jws import MAX_COMPACT_BYTES

MAX_EXPIRES_IN = 24 * 3600  # seconds; a longer promise is a mistake or a lie
REFRESH_MARGIN = timedelta(seconds=60)  # a token is renewed this long before its end, or at 4/5 of a short life

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # b64token, RFC 6750 section 2.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """An access token as this side knows it: opaque, with what the server said about it."""

    value: str = field(repr=False)
    scopes: tuple[str, ...]
    asked_at: datetime
    expires_at: datetime
    refresh_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is asked for; with `subject_token` on behalf of its subject."""

    resource: str
    scopes: tuple[str, ...]
    subject_token: str | None = field(default=None, repr=False)

    def form(self, client_id: str) -> dict[str, str]:
        form = {"client_id": client_id, "resource": self.resource, "scope": " ".join(self.scopes)}
        if self.subject_token is None:
            return {"grant_type": CLIENT_CREDENTIALS, **form}
        return {
            "grant_type": TOKEN_EXCHANGE,
            "subject_token": self.subject_token,
            "subject_token_type": ACCESS_TOKEN_TYPE,
            "requested_token_type": ACCESS_TOKEN_TYPE,
            **form,
        }


def ask_for(agent: AgentID | str, scopes: Iterable[str], subject_token: str | None = None) -> Ask:
    resource = str(agent)
    if not is_resource(resource):
        raise ConfigurationError("resource", got=resource, expected="an absolute URI without fragment (RFC 8707)")
    wanted = parse_scope_list(scopes if isinstance(scopes, str) else " ".join(scopes))
    if not wanted:
        raise ConfigurationError("no scopes", expected="at least one: a token that may nothing is of no use")
    return Ask(resource=resource, scopes=wanted, subject_token=subject_token)


def read_token(members: Mapping[str, object], ask: Ask, asked_at: datetime) -> Token:
    """RFC 6749 section 5.1, strictly. No message here shows the answer: it holds the token."""
    value, kind, seconds = members.get("access_token"), members.get("token_type"), members.get("expires_in")
    if not isinstance(value, str) or len(value) > MAX_COMPACT_BYTES or not _TOKEN.fullmatch(value):
        raise TokenResponseRefused("access_token", got=type(value).__name__, expected="a bearer token (RFC 6750)")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise TokenResponseRefused("token_type", got=kind, expected="Bearer")
    if type(seconds) is not int or not 0 < seconds <= MAX_EXPIRES_IN:
        raise TokenResponseRefused("expires_in", got=seconds, expected=f"1 to {MAX_EXPIRES_IN} seconds")
    if ask.subject_token is not None and members.get("issued_token_type") != ACCESS_TOKEN_TYPE:
        raise TokenResponseRefused("issued_token_type", got=members.get("issued_token_type"), expected="access_token")
    scope = members.get("scope", " ".join(ask.scopes))  # left out where it is what was asked for
    granted = tuple(scope.split()) if isinstance(scope, str) else ()
    if missing := sorted(set(ask.scopes) - set(granted)):
        raise ScopeNotGranted(
            "authorization server granted less than was asked for",
            got=" ".join(granted) or "nothing",
            expected="also " + " ".join(missing),
            do="register the client for these scopes",
        )
    lifetime = timedelta(seconds=seconds)
    expires_at = asked_at + lifetime
    return Token(
        value=value,
        scopes=granted,
        asked_at=asked_at,
        expires_at=expires_at,
        refresh_at=expires_at - min(REFRESH_MARGIN, lifetime / 5),
    )


def read_metadata(members: Mapping[str, object], issuer: str) -> str:
    """The token endpoint of metadata that is really the issuer's. RFC 8414 section 3.3, RFC 8705 sections 3.3 and 5."""
    if members.get("issuer") != issuer:
        raise MetadataRefused("metadata is another issuer's", got=members.get("issuer"), expected=issuer)
    if members.get("tls_client_certificate_bound_access_tokens") is not True:
        raise MetadataRefused("authorization server does not bind tokens to certificates", got=issuer)
    aliases = members.get("mtls_endpoint_aliases")
    alias = aliases.get("token_endpoint") if isinstance(aliases, dict) else None
    endpoint = alias or members.get("token_endpoint")
    try:
        same = isinstance(endpoint, str) and origin_of(endpoint) == origin_of(issuer)
    except ConfigurationError:
        same = False
    if not same:
        raise MetadataRefused(
            "token endpoint is elsewhere",
            got=endpoint,
            expected=f"one at {origin_of(issuer)}",
            do="configure token_endpoint where it is meant to be elsewhere",
        )
    return str(endpoint)
