"""Tokens of another trust domain's authorization server, on behalf of a caller: identity chaining.

    away = ChainedTokens(home=tokens, issuer="https://auth.partner.example", http=..., source=...)
    auth = away.on_behalf_of(caller.access_token, resource="spiffe://partner.example/ledger", scopes=["read:ledger.eu"],
                             origins=["https://ledger.partner.example"])
    await client.get("https://ledger.partner.example/...", auth=auth)

Our own server vouches for the caller (RFC 8693, an assertion for that one other server), and the other server gives a
token for it (RFC 7523), as draft-ietf-oauth-identity-chaining has it. An assertion is used once and is kept nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Unpack

import httpx

from trust.credentials import CredentialSource
from trust.errors import TokenResponseRefused
from trust.identity import AgentID
from trust.oauth.client.asks import Ask, Token, ask_for
from trust.oauth.client.authority import Authority
from trust.oauth.client.cache import TokenCache
from trust.oauth.client.source import BearerAuth, Options, TokenSource, origins_of
from trust.oauth.metadata import JWT_BEARER, JWT_TYPE
from trust.signing.jws import MAX_COMPACT_BYTES

_JWS = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


class ChainedTokens:
    """The way to the tokens of another trust domain. Belongs to the event loop of its clients.

    Where a person has to approve a scope, only one of the two servers should say so: each time that we ask whether the
    other server's person has decided, we need an assertion of our own server, and its person would approve each.

    Args:
        home: our tokens at our own authorization server, which must let us take a caller's authority to `issuer`. Its
            own `resource`, `scopes` and `origins` do not matter here.
        issuer: the other server, exactly as its metadata names it; it must have our own server as a partner, and us as
            a client.
        http: a client with mutual TLS to the other server: our certificate, and its trust domain's bundle.
        source, options: as of `TokenSource`, for the other server.

    Raises:
        ConfigurationError: a malformed issuer.
    """

    def __init__(
        self,
        *,
        home: TokenSource,
        issuer: str,
        http: httpx.AsyncClient,
        source: CredentialSource,
        **options: Unpack[Options],
    ) -> None:
        authority = _PartnerAuthority(home=home.authority, issuer=issuer, http=http, source=source, **options)
        self._cache = TokenCache(authority)

    def on_behalf_of(
        self, subject_token: str, *, resource: AgentID | str, scopes: Iterable[str], origins: Iterable[str] = ()
    ) -> BearerAuth:
        """Tokens for an agent of the other trust domain, on behalf of the subject of `subject_token`.

        Args:
            subject_token: the token of our own domain that we were called with, such as `caller.access_token`. It must
                hold `delegate:X`, X being us.
            resource, scopes, origins: as of a `TokenSource`; the scopes must be covered by those of `subject_token`.

        Raises:
            ConfigurationError: a malformed resource, scope or origin, or none of them.
        """
        return BearerAuth(self._cache, ask_for(resource, scopes, subject_token), origins_of(resource, origins))


class _PartnerAuthority(Authority):
    """The other server. Each token costs one assertion of our own, which is refreshed by nothing."""

    def __init__(self, *, home: Authority, **options: Any) -> None:
        super().__init__(**options)
        self._home = home

    async def fetch(self, ask: Ask, refresh_token: str | None = None) -> Token:
        await self.token_endpoint()  # before the assertion, which lives for a minute
        wanted = {"resource": self.issuer, "requested_token_type": JWT_TYPE}
        unapproved = replace(ask, step_up=False, message="")
        members = await self._home.request({**unapproved.form(self._home.client_id), **wanted})
        form = {
            "grant_type": JWT_BEARER,
            "assertion": _assertion(members),
            "client_id": self.client_id,
            "resource": ask.resource,
            "scope": " ".join(ask.scopes),
            **ask.approval,
        }
        return await self._fetch(replace(ask, subject_token=None), form, None)


def _assertion(members: Mapping[str, object]) -> str:
    """RFC 8693 section 2.2.1: what is no access token comes as one of no type. No message here shows it."""
    value, kind, issued = (members.get(name) for name in ("access_token", "token_type", "issued_token_type"))
    if issued != JWT_TYPE:
        raise TokenResponseRefused("issued_token_type", got=issued, expected=JWT_TYPE)
    if not isinstance(kind, str) or kind.upper() != "N_A":
        raise TokenResponseRefused("token_type", got=kind, expected="N_A: an assertion is no access token")
    if not isinstance(value, str) or len(value) > MAX_COMPACT_BYTES or not _JWS.fullmatch(value):
        raise TokenResponseRefused("assertion", got=type(value).__name__, expected="a signed JWT")
    return value
