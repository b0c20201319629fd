"""Where an agent's access tokens come from: an `httpx.Auth` that fetches, keeps and renews them.

    tokens = TokenSource(issuer=..., resource="spiffe://fleet.example/billing", scopes=["agent:execute"],
                         origins=["https://billing.fleet.example"], http=..., source=...)
    await client.post("https://billing.fleet.example/...", auth=tokens)

A token is fetched when it is first needed, by client credentials over mutual TLS, and kept for its (issuer, client,
resource, scopes, own certificate): a renewed certificate gets a token of its own, because the old one is bound to the
old certificate (RFC 8705 section 3). It is renewed before it expires, kept while it is valid when the server is down,
and never used afterwards.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Generator, Iterable

import httpx

from trust.clock import Clock, wall_clock
from trust.credentials import CredentialSource
from trust.errors import (
    ConfigurationError,
    OriginRefused,
)
from trust.identity import AgentID
from trust.oauth.client.asks import Ask, Token, ask_for
from trust.oauth.client.authority import Authority
from trust.oauth.metadata import (
    check_issuer,
    origin_of,
)

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # b64token, RFC 6750 section 2.1
_INVALID_TOKEN = re.compile(r"""\berror\s*=\s*"?invalid_token\b""", re.IGNORECASE)


class BearerAuth(httpx.Auth):
    """Puts the current token of one request for tokens into requests to the hosts it is for. Async clients only.

    A 401 `invalid_token` drops the token; the request is sent once more with a new one where its body can be. With a
    signer, only a signed 401 comes here whose signed body says the same: where it is a gate's, its request was not
    executed, and cannot be (`trust.gate`). An application that acts on a request must not answer so.
    """

    def __init__(self, authority: Authority, ask: Ask, origins: frozenset[str]) -> None:
        self._authority = authority
        self._ask = ask
        self._origins = origins

    async def token(self) -> Token:
        """A token that is valid now.

        Raises:
            TokenRequestError: none can be had, by the leaf that says why.
            TransportError, PeerError: from the TLS transport, about the authorization server.
        """
        return await self._authority.token(self._ask)

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        if request.url.scheme != "https" or origin_of(request.url) not in self._origins:
            raise OriginRefused(
                "token is not for this host",
                got=f"{request.url.scheme}://{request.url.netloc.decode('ascii')}",
                expected=" or ".join(sorted(self._origins)),
                do="make a token source for it, or leave its requests without one",
            )
        token = await self.token()
        request.headers["Authorization"] = f"Bearer {token.value}"
        response = yield request
        # After a redirect it may be another host that answers; what that says of our token means nothing.
        url = response.request.url
        ours = url.scheme == "https" and origin_of(url) in self._origins
        if not ours or not _token_was_refused(response):
            return
        if not self._authority.drop(self._ask, token):
            return
        # A body that was streamed from an iterator is gone; bytes can be sent again.
        if isinstance(request.stream, httpx.ByteStream):
            request.headers["Authorization"] = f"Bearer {(await self.token()).value}"
            yield request

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        raise ConfigurationError("token source in a synchronous client", expected="httpx.AsyncClient")


class TokenSource(BearerAuth):
    """Tokens that an agent gets for itself, and the way to those that it gets on behalf of others.

    Belongs to the event loop of its `http` client.

    Args:
        issuer: the authorization server, exactly as its metadata names it. It is configured, never read from a card.
        resource: the audience of the tokens (RFC 8707), such as the SPIFFE ID of the agent to be called.
        scopes: all that are asked for; a server that grants fewer is an error.
        http: a client with mutual TLS to the authorization server.
        source: our credentials; only the certificate's thumbprint and SPIFFE ID are read.
        origins: the https origins that may see the tokens; that of `resource` itself where it is an https URL.
        client_id: our OAuth name; by default our SPIFFE ID.
        token_endpoint: where it is not on the issuer's own origin, or the server has no metadata.
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
        token_endpoint: str | None = None,
        clock: Clock = wall_clock,
    ) -> None:
        authority = Authority(
            issuer=check_issuer(issuer),
            http=http,
            source=source,
            client_id=client_id or str(source.current().agent_id),
            token_endpoint=token_endpoint,
            clock=clock,
        )
        super().__init__(authority, ask_for(resource, scopes), _origins(resource, origins))

    def on_behalf_of(
        self, subject_token: str, *, resource: AgentID | str, scopes: Iterable[str], origins: Iterable[str] = ()
    ) -> BearerAuth:
        """As this source, for tokens that are exchanged from a caller's token (RFC 8693).

        Args:
            subject_token: the token that we were called with, such as `caller.access_token`.
            resource, scopes, origins: as for the source; the scopes must be covered by those of `subject_token`.
        """
        return BearerAuth(self._authority, ask_for(resource, scopes, subject_token), _origins(resource, origins))

    async def exchange(self, subject_token: str, *, resource: AgentID | str, scopes: Iterable[str]) -> Token:
        """Exchange a caller's token for one that we hold for another resource. Errors as `token`."""
        return await self._authority.token(ask_for(resource, scopes, subject_token))


def _token_was_refused(response: httpx.Response) -> bool:
    """RFC 6750 section 3.1: 401 with `error="invalid_token"` in a Bearer challenge."""
    return response.status_code == httpx.codes.UNAUTHORIZED and any(
        challenge.lower().lstrip().startswith("bearer") and _INVALID_TOKEN.search(challenge)
        for challenge in response.headers.get_list("www-authenticate")
    )


def _origins(agent: AgentID | str, origins: Iterable[str]) -> frozenset[str]:
    resource = str(agent)
    found = {origin_of(origin) for origin in ([origins] if isinstance(origins, str) else origins)}
    if resource.startswith("https:"):
        found.add(origin_of(resource))
    if not found:
        raise ConfigurationError("no origins", expected="the https origins that may see the tokens")
    return frozenset(found)
