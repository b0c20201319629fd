"""Where an agent's access tokens come from: an `httpx.Auth` that fetches, keeps and renews them.

    tokens = TokenSource(issuer=..., resource="spiffe://fleet.example/billing", scopes=["agent:execute"],
                         origins=["https://billing.fleet.example"], http=..., source=...)
    await client.post("https://billing.fleet.example/...", auth=tokens)

A token is fetched when it is first needed, by client credentials over mutual TLS, and kept for its (issuer, client,
resource, scopes, own certificate): a renewed certificate gets a token of its own, because the old one is bound to the
old certificate (RFC 8705 section 3). It is renewed before it expires, kept while it is valid when the server is down,
and never used afterwards. Where the server gives refresh tokens, they are used.

    async with tokens.for_task() as auth:       # tokens for this task alone, revoked when it ends
        await client.post("https://billing.fleet.example/...", auth=auth)
"""

from __future__ import annotations

import asyncio
import copy
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Generator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Self, TypedDict, Unpack

import httpx

from trust.clock import Clock, wall_clock
from trust.credentials import CredentialSource
from trust.errors import (
    ApprovalRequired,
    AuthorizationServerUnavailable,
    ConfigurationError,
    OriginRefused,
    TokenRequestRefused,
)
from trust.identity import AgentID
from trust.oauth import dpop
from trust.oauth.client.asks import Ask, Token, ask_for
from trust.oauth.client.authentication import ClientAuthentication
from trust.oauth.client.authority import Authority
from trust.oauth.client.cache import TokenCache
from trust.oauth.client.choice import VerifiedCard, choose
from trust.oauth.client.discovery import issuer_of
from trust.oauth.client.task import TaskTokens
from trust.oauth.keys import SigningKey
from trust.oauth.metadata import APPROVED, origin_of

_INVALID_TOKEN = re.compile(r"""\berror\s*=\s*"?invalid_token\b""", re.IGNORECASE)


class BearerAuth(httpx.Auth):
    """Puts the current token of one request for tokens into requests to the hosts it is for. Async clients only.

    A 401 `invalid_token` drops the token; the request is sent once more with a new one where its body can be. With a
    signer, only a signed 401 comes here whose signed body says the same: where it is a gate's, its request was not
    executed, and cannot be (`trust.gate`). An application that acts on a request must not answer so.
    """

    def __init__(self, cache: TokenCache, ask: Ask, origins: frozenset[str]) -> None:
        self._cache = cache
        self._ask = ask
        self._origins = origins

    @property
    def authority(self) -> Authority:
        """The server that the tokens come from, as its client."""
        return self._cache.authority

    async def token(self) -> Token:
        """A token that is valid now.

        Raises:
            TokenRequestError: none can be had, by the leaf that says why.
            TransportError, PeerError: from the TLS transport, about the authorization server.
        """
        return await self._cache.token(self._best())

    def needing_approval(self, message: str) -> Self:
        """The same, for tokens that a person has approved, whatever the server's own rules are. RFC 9470.

        Args:
            message: what that person is told, beside who asks for what; at most 200 characters.
        """
        mine = copy.copy(self)
        mine._ask = replace(self._ask, step_up=True, message=message)
        return mine

    async def approved(self, pending: ApprovalRequired) -> Token:
        """Wait for the person's decision; the token that they have approved is then used for the next requests.

        Args:
            pending: what `token`, or a request, has raised.

        Raises:
            ApprovalRequired: `pending`, when nobody has decided in time.
            TokenRequestRefused: the person has said no: `error` is "access_denied".
            TokenRequestError: as `token`; while the server cannot be reached, it is asked again.
        """
        ask = replace(self._ask, step_up=pending.step_up)
        end = time.monotonic() + pending.expires_in
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(pending.interval, left))
            try:
                return await self._cache.token(ask)
            except (ApprovalRequired, AuthorizationServerUnavailable):
                continue
            except TokenRequestRefused as error:
                if error.error != "access_denied":
                    raise
                raise TokenRequestRefused(
                    "a person has said no", error=error.error, got=f"approval {pending.approval_id or 'without an ID'}"
                ) from None
        raise pending

    def _best(self) -> Ask:
        """What to ask for: the token that a person has approved, where there is one."""
        approved = replace(self._ask, step_up=True)
        return approved if self._cache.holds(approved) else self._ask

    @asynccontextmanager
    async def for_task(self) -> AsyncIterator[Self]:
        """The same for one task alone: its tokens are fetched anew, and revoked when the task ends (RFC 7009).

        However it ends, by an error or a cancellation too, all that it was given is revoked, in at most 10 seconds;
        cancelling it meanwhile does not stop that. A token that could not be revoked is logged, and raises nothing: it
        expires a few minutes later, and the task has done its work. Afterwards no more tokens are given.

        Of a `TokenSource` it is one, so that the tokens of its `on_behalf_of` and `exchange` are the task's, too.

        Raises:
            TokenRequestError: the server revokes no tokens; or, later, as `token`.
            TokenTaskEnded: a token was asked for after the end.
        """
        await self.authority.revocation_endpoint()
        tokens = TaskTokens(self.authority)
        mine = copy.copy(self)
        mine._cache = tokens
        try:
            yield mine
        finally:
            await tokens.end()

    async def revoke(self, token: Token | str) -> None:
        """Tell the server that a token of ours is not needed any more; it is not used again. RFC 7009.

        Raises:
            TokenRequestError: it may still be valid; by the leaf that says why.
        """
        value = token if isinstance(token, str) else token.value
        kept = self._cache.forget(value) or (None if isinstance(token, str) else token)
        await self.authority.revoke(value, None if kept is None else kept.refresh_token)

    def check_origin(self, url: httpx.URL | str) -> None:
        """That our tokens may be sent to this URL.

        Raises:
            OriginRefused: they may not.
        """
        try:
            ours = origin_of(url) in self._origins
        except ConfigurationError:  # not https, or no host
            ours = False
        if not ours:
            scheme, _, rest = str(url).partition("://")
            raise OriginRefused(
                "token is not for this host",
                got=f"{scheme}://{rest.partition('/')[0].rpartition('@')[2]}",  # a path may hold what logs should not
                expected=" or ".join(sorted(self._origins)),
                do="make a token source for it, or leave its requests without one",
            )

    def _authorize(self, request: httpx.Request, token: Token) -> None:
        key, clock = self.authority.proof_key, self.authority.clock
        if key is None:
            request.headers["Authorization"] = f"Bearer {token.value}"
            return
        request.headers["Authorization"] = f"DPoP {token.value}"
        request.headers[dpop.HEADER] = dpop.new_proof(
            key, request.method, str(request.url), now=clock(), token=token.value
        )

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        self.check_origin(request.url)
        ask = self._best()
        token = await self._cache.token(ask)
        self._authorize(request, token)
        response = yield request
        # After a redirect it may be another host that answers; what that says of our token means nothing.
        url = response.request.url
        ours = url.scheme == "https" and origin_of(url) in self._origins
        if not ours:
            return
        if _approval_is_wanted(response) and not ask.step_up:  # whom an approved token does not satisfy, no other will
            await self._cache.token(replace(self._ask, step_up=True))
        elif not _token_was_refused(response) or not self._cache.drop(ask, token):
            return
        # A body that was streamed from an iterator is gone; bytes can be sent again.
        if isinstance(request.stream, httpx.ByteStream):
            self._authorize(request, await self.token())
            yield request

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        raise ConfigurationError("token source in a synchronous client", expected="httpx.AsyncClient")


class Options(TypedDict, total=False):
    """Of a `TokenSource`."""

    client_id: str | None
    authentication: ClientAuthentication | None
    token_endpoint: str | None
    revocation_endpoint: str | None
    proof_key: SigningKey | None
    clock: Clock


class TokenSource(BearerAuth):
    """Tokens that an agent gets for itself, and the way to those that it gets on behalf of others.

    Belongs to the event loop of its `http` client. An agent that only acts for its callers uses `on_behalf_of`, whose
    arguments count then: `resource`, `scopes` and `origins` here are of tokens that it never asks for.

    Args:
        issuer: the authorization server, exactly as its metadata names it. It is configured, never read from a card.
        resource: the audience of the tokens (RFC 8707), such as the SPIFFE ID of the agent to be called.
        scopes: all that are asked for; a server that grants fewer is an error.
        http: a client with mutual TLS to the authorization server.
        source: our credentials; only the certificate's thumbprint and SPIFFE ID are read.
        origins: the https origins that may see the tokens; that of `resource` itself where it is an https URL.
        client_id: our OAuth name; by default our SPIFFE ID.
        authentication: how we prove who we are, beside the certificate of the connection: `TLSCertificate`,
            `PrivateKeyJWT` or `ClientSecret`. The server's metadata must list it.
        token_endpoint, revocation_endpoint: where they are not on the issuer's own origin, or the server has no
            metadata.
        proof_key: bind tokens to this key instead of our certificate, and prove it with each request (DPoP, RFC 9449):
            for resources behind a proxy that ends TLS. Nonces of servers are not supported.
        clock: the time, aware.

    Raises:
        ConfigurationError: a malformed issuer, resource, scope or origin, or none of them.
    """

    def __init__(
        self,
        *,
        issuer: str,
        resource: AgentID | str,
        scopes: Iterable[str],
        http: httpx.AsyncClient,
        source: CredentialSource,
        origins: Iterable[str] = (),
        client_id: str | None = None,
        authentication: ClientAuthentication | None = None,
        token_endpoint: str | None = None,
        revocation_endpoint: str | None = None,
        proof_key: SigningKey | None = None,
        clock: Clock = wall_clock,
    ) -> None:
        authority = Authority(
            issuer=issuer,
            http=http,
            source=source,
            client_id=client_id,
            authentication=authentication,
            token_endpoint=token_endpoint,
            revocation_endpoint=revocation_endpoint,
            clock=clock,
            proof_key=proof_key,
        )
        super().__init__(TokenCache(authority), ask_for(resource, scopes), origins_of(resource, origins))

    @classmethod
    def from_card(
        cls,
        card: VerifiedCard,
        *,
        issuers: Collection[str],
        resource: AgentID | str,
        scopes: Iterable[str],
        origins: Iterable[str],
        http: httpx.AsyncClient,
        source: CredentialSource,
        skill: str | None = None,
        signatures: bool = True,
        **options: Unpack[Options],
    ) -> Self:
        """A source for the agent of a card, which chooses within our policy and cannot widen it.

        The card says which of our issuers the agent takes tokens from, which scopes its callers need, and at which of
        our origins it is.

        Args:
            card: what `trust.signing.cards.verify_card` returned.
            issuers: the authorization servers that we are configured for.
            resource: the audience of the tokens, such as the SPIFFE ID that the card was verified for.
            scopes: the widest that we would hand this agent; each that the card requires must be covered by one. The
                time scopes among them are asked for in any case.
            origins: the https origins where this agent may be.
            skill: the `id` of the one skill that is meant, where tokens for the others should not be asked for.
            signatures: False for an agent that may be called without signed messages.
            http, source, options: as of `TokenSource`.

        Raises:
            CardRefused: the card asks for less than mutual TLS and signed messages, or for more than our policy; or has
                no such skill.
            ConfigurationError: as `TokenSource`, or a card that was not verified.
        """
        chosen = choose(
            card, issuers=issuers, scopes=scopes, origins=_normalised(origins), skill=skill, signatures=signatures
        )
        return cls(resource=resource, http=http, source=source, **chosen, **options)

    @classmethod
    async def from_resource(
        cls,
        url: str,
        *,
        issuers: Collection[str],
        scopes: Iterable[str],
        http: httpx.AsyncClient,
        source: CredentialSource,
        resource: AgentID | str | None = None,
        **options: Unpack[Options],
    ) -> Self:
        """A source for the resource at `url`, whose own metadata says which of our issuers it takes tokens from.

        RFC 9728. What else the metadata says changes nothing; tokens go to the origin of `url`.

        Args:
            url: where the resource is.
            issuers: the authorization servers that we are configured for.
            resource: its identifier, as its metadata must repeat it; by default `url` itself.
            http: as of `TokenSource`, and it reaches the resource, too.
            scopes, source, options: as of `TokenSource`.

        Raises:
            MetadataRefused: no metadata, that of another resource, or none of our issuers in it.
            AuthorizationServerUnavailable: no answer.
            ConfigurationError: as `TokenSource`.
        """
        identifier = url if resource is None else str(resource)
        issuer = await issuer_of(url, resource=identifier, issuers=issuers, http=http)
        return cls(
            issuer=issuer, resource=identifier, scopes=scopes, origins=[url], http=http, source=source, **options
        )

    def on_behalf_of(
        self, subject_token: str, *, resource: AgentID | str, scopes: Iterable[str], origins: Iterable[str] = ()
    ) -> BearerAuth:
        """As this source, for tokens that are exchanged from a caller's token (RFC 8693).

        Args:
            subject_token: the token that we were called with, such as `caller.access_token`.
            resource, scopes, origins: as for the source; the scopes must be covered by those of `subject_token`.
        """
        return BearerAuth(self._cache, ask_for(resource, scopes, subject_token), origins_of(resource, origins))

    async def exchange(self, subject_token: str, *, resource: AgentID | str, scopes: Iterable[str]) -> Token:
        """Exchange a caller's token for one that we hold for another resource. Errors as `token`."""
        return await self._cache.token(ask_for(resource, scopes, subject_token))


def _approval_is_wanted(response: httpx.Response) -> bool:
    """RFC 9470 section 3: 401 with the error of its own and the `acr` that would do."""
    return response.status_code == httpx.codes.UNAUTHORIZED and any(
        "insufficient_user_authentication" in challenge and APPROVED in challenge
        for challenge in response.headers.get_list("www-authenticate")
    )


def _token_was_refused(response: httpx.Response) -> bool:
    """RFC 6750 section 3.1, RFC 9449 section 7.1: 401 with `error="invalid_token"` in a challenge of either scheme."""
    return response.status_code == httpx.codes.UNAUTHORIZED and any(
        challenge.lower().lstrip().startswith(("bearer", "dpop")) and _INVALID_TOKEN.search(challenge)
        for challenge in response.headers.get_list("www-authenticate")
    )


def origins_of(resource: AgentID | str, origins: Iterable[str]) -> frozenset[str]:
    """The https origins that may see the tokens of a resource, in one spelling: its own where it is a URL.

    Raises:
        ConfigurationError: there are none, or one is malformed.
    """
    found = _normalised(origins)
    if str(resource).startswith("https:"):
        found |= {origin_of(str(resource))}
    if not found:
        raise ConfigurationError("no origins", expected="the https origins that may see the tokens")
    return found


def _normalised(origins: Iterable[str]) -> frozenset[str]:
    return frozenset(origin_of(origin) for origin in ([origins] if isinstance(origins, str) else origins))
