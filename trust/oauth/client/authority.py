"""One authorization server, as one client of it: how a token is asked for, and how it is given back."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType

import httpx

from trust.clock import Clock, wall_clock
from trust.credentials import CredentialSource, check_source
from trust.errors import (
    ApprovalRequired,
    MetadataRefused,
    ScopeNotGranted,
    TokenRequestRefused,
    TokenResponseRefused,
    must_be,
    must_have,
)
from trust.oauth.client.asks import Ask, Token, read_token
from trust.oauth.client.authentication import ClientAuthentication, TLSCertificate
from trust.oauth.client.discovery import Discovery
from trust.oauth.client.talk import json_of, post
from trust.oauth.dpop import HEADER, new_proof
from trust.oauth.fetch import Answer
from trust.oauth.keys import SigningKey
from trust.oauth.metadata import check_issuer, origin_of

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
APPROVAL_INTERVAL = 5  # seconds between two questions, where the server does not say (RFC 8628 section 3.2)
MAX_WAIT = 24 * 3600  # seconds, for a person; a longer promise is a mistake or a lie


class Authority:
    """One authorization server, as one client of it. It keeps no token."""

    def __init__(
        self,
        *,
        issuer: str,
        http: httpx.AsyncClient,
        source: CredentialSource,
        client_id: str | None = None,
        authentication: ClientAuthentication | None = None,
        token_endpoint: str | None = None,
        revocation_endpoint: str | None = None,
        clock: Clock = wall_clock,
        proof_key: SigningKey | None = None,
    ) -> None:
        """As `TokenSource`."""
        must_be("http", http, httpx.AsyncClient, expected="an httpx.AsyncClient", do="use agent_client(...)")
        check_source(source)
        if authentication is not None:
            expected = "TLSCertificate, PrivateKeyJWT or ClientSecret"
            must_have("authentication", authentication, "prove", expected=expected)
        if proof_key is not None:
            must_be("proof_key", proof_key, SigningKey, expected="a SigningKey", do="use SigningKey.generate()")
        self.issuer = check_issuer(issuer)
        self.clock = clock
        self.proof_key = proof_key  # that tokens are bound to (DPoP), where they are not bound to our certificate
        self._http = http
        self._source = source
        self.client_id = client_id or str(source.current().agent_id)
        self._authentication = TLSCertificate() if authentication is None else authentication
        for endpoint in (token_endpoint, revocation_endpoint):
            if endpoint is not None:
                origin_of(endpoint)
        self._token_endpoint = token_endpoint
        self._revocation_endpoint = revocation_endpoint
        self._discovery = Discovery(issuer, http, clock)

    @property
    def thumbprint(self) -> str:
        """Of the certificate that tokens are bound to now."""
        return self._source.current().thumbprint

    async def fetch(self, ask: Ask, refresh_token: str | None = None) -> Token:
        """A new token, by the refresh token where there is one and the server takes it.

        Raises:
            TokenRequestError, ConfigurationError: none can be had, by the leaf that says why.
        """
        if refresh_token is not None:
            form = ask.refresh_form(self.client_id, refresh_token)
            try:
                return await self._fetch(ask, form, refresh_token)
            except (TokenRequestRefused, TokenResponseRefused, ScopeNotGranted):
                pass  # its end, its revocation, a new policy: as before there was one
        return await self._fetch(ask, ask.form(self.client_id), None)

    async def revoke(self, token: str, refresh_token: str | None = None) -> None:
        """Tell the server that a token is not needed any more, and what it could be renewed by. RFC 7009.

        Raises:
            TokenRequestError, ConfigurationError: it may still be valid.
        """
        try:
            if refresh_token is not None:
                await self._revoke(refresh_token, "refresh_token")
        finally:
            await self._revoke(token, "access_token")

    async def revocation_endpoint(self) -> str:
        """Where tokens are given back.

        Raises:
            MetadataRefused: the server has no such endpoint, or does not take our authentication there.
        """
        if self._revocation_endpoint is not None:
            return self._revocation_endpoint
        found = await self._discovery.current()
        if found.revocation_endpoint is None:
            raise MetadataRefused("authorization server revokes no tokens", expected="a revocation_endpoint")
        self._check_method(found.revocation_methods)
        return found.revocation_endpoint

    async def request(self, form: Mapping[str, str], proof_key: SigningKey | None = None) -> dict[str, object]:
        """What the token endpoint answers to a form, where that is a success.

        Raises:
            TokenRequestRefused: the server's no, with its code.
            TokenRequestError, ConfigurationError: no answer, or none that is one.
        """
        endpoint = await self.token_endpoint()
        proof = {} if proof_key is None else {HEADER: new_proof(proof_key, "POST", endpoint, now=self.clock())}
        answer = await self._post(endpoint, form, proof)
        members = json_of(answer, TokenResponseRefused)
        if answer.status != httpx.codes.OK:
            raise refusal("authorization server refused the token", answer.status, members)
        return members

    async def token_endpoint(self) -> str:
        """Where tokens are asked for: as configured, or as the issuer's metadata says.

        Raises:
            MetadataRefused: not the issuer's metadata, or it does not have what we are configured for.
        """
        if self._token_endpoint is not None:
            return self._token_endpoint
        found = await self._discovery.current()
        if found.token_endpoint is None:
            raise MetadataRefused("authorization server has no token_endpoint", got=self.issuer)
        self._check_method(found.authentication_methods)
        return found.token_endpoint

    def _check_method(self, methods: Collection[str]) -> None:
        if self._authentication.method not in methods:
            raise MetadataRefused(
                "authorization server does not take our authentication",
                got=" ".join(methods) or "none",
                expected=self._authentication.method,
                do="configure one that it takes",
            )

    async def _fetch(self, ask: Ask, form: Mapping[str, str], refresh_token: str | None) -> Token:
        await self.token_endpoint()  # may take a request of its own, which the lifetime does not count from
        asked_at = self.clock()  # before the question: the token is never used for longer than the server meant
        members = await self.request(form, self.proof_key)
        kind = "Bearer" if self.proof_key is None else "DPoP"
        return read_token(members, ask, asked_at, kind=kind, refreshed_by=refresh_token)

    async def _revoke(self, token: str, kind: str) -> None:
        form = {"client_id": self.client_id, "token": token, "token_type_hint": kind}
        answer = await self._post(await self.revocation_endpoint(), form)
        if answer.status != httpx.codes.OK:  # of a 200 the body means nothing, RFC 7009 section 2.2
            raise refusal(
                "authorization server did not revoke the token", answer.status, json_of(answer, TokenResponseRefused)
            )

    async def _post(self, url: str, form: Mapping[str, str], headers: Mapping[str, str] = NO_HEADERS) -> Answer:
        proof = await self._authentication.prove(
            client_id=self.client_id, issuer=self.issuer, credentials=self._source.current(), now=self.clock()
        )
        return await post(self._http, url, {**form, **proof.form}, {**headers, **proof.headers})


_CODE = re.compile(r"[a-z_]{1,64}")  # every registered one; what else a server says does not come into our logs
_APPROVAL_ID = re.compile(r"[A-Za-z0-9-]{1,64}")


def refusal(failed: str, status: int, members: Mapping[str, object]) -> TokenRequestRefused | TokenResponseRefused:
    """The server's no as an error; of what it says, only the code is taken over. RFC 6749 section 5.2."""
    code = members.get("error")
    if not isinstance(code, str) or not _CODE.fullmatch(code):
        return TokenResponseRefused("token request failed without an error code", got=f"status {status}")
    if code == "authorization_pending":
        said, interval, expires_in = (members.get(name) for name in ("approval_id", "interval", "expires_in"))
        approval_id = said if isinstance(said, str) and _APPROVAL_ID.fullmatch(said) else ""
        return ApprovalRequired(
            "a person has to approve this first",
            approval_id=approval_id,
            interval=interval if type(interval) is int and 0 < interval <= MAX_WAIT else APPROVAL_INTERVAL,
            expires_in=expires_in if type(expires_in) is int and 0 <= expires_in <= MAX_WAIT else 0,
            got=approval_id or None,
            do="wait for it with `approved`, or ask again later",
        )
    # Which of the two it was, the server does not say; nor anything else, to a client.
    got = f"{code}: a person or a policy has said no" if code == "access_denied" else code
    return TokenRequestRefused(failed, error=code, got=got, do="the authorization server's audit trail says why")
