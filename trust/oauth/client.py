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

import asyncio
import logging
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import httpx

from trust.clock import Clock, wall_clock
from trust.credentials import CredentialSource
from trust.errors import (
    AuthorizationServerUnavailable,
    ConfigurationError,
    HeaderMalformed,
    MetadataRefused,
    OriginRefused,
    ScopeNotGranted,
    TokenRequestError,
    TokenRequestRefused,
    TokenResponseRefused,
)
from trust.identity import AgentID
from trust.oauth.clients import is_resource
from trust.oauth.metadata import (
    ACCESS_TOKEN_TYPE,
    CLIENT_CREDENTIALS,
    TOKEN_EXCHANGE,
    check_issuer,
    metadata_url,
    origin_of,
)
from trust.oauth.scopes import parse_scope_list
from trust.signing.jws import MAX_COMPACT_BYTES, strict_json

FETCH_SECONDS = 10.0  # of one exchange with the authorization server, body included; a slow one is a down one
MAX_BODY_BYTES = 64 << 10  # metadata of large servers is a few kilobytes, a token answer less
MAX_EXPIRES_IN = 24 * 3600  # seconds; a longer promise is a mistake or a lie
METADATA_LIFETIME = timedelta(hours=1)
REFRESH_MARGIN = timedelta(seconds=60)  # a token is renewed this long before its end, or at 4/5 of a short life
REFRESH_REST = timedelta(seconds=5)  # between two attempts to renew while the old token is still good
CACHE_SIZE = 1024  # tokens; an agent in the middle of a chain holds one for each caller it acts for

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # b64token, RFC 6750 section 2.1
_INVALID_TOKEN = re.compile(r"""\berror\s*=\s*"?invalid_token\b""", re.IGNORECASE)

logger = logging.getLogger("a2a_trust.oauth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """An access token as this side knows it: opaque, with what the server said about it."""

    value: str = field(repr=False)
    scopes: tuple[str, ...]
    asked_at: datetime
    expires_at: datetime
    refresh_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ask:
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


class BearerAuth(httpx.Auth):
    """Puts the current token of one request for tokens into requests to the hosts it is for. Async clients only.

    A 401 `invalid_token` drops the token; the request is sent once more with a new one where its body can be. With a
    signer, only a signed 401 comes here whose signed body says the same: where it is a gate's, its request was not
    executed, and cannot be (`trust.gate`). An application that acts on a request must not answer so.
    """

    def __init__(self, authority: _Authority, ask: _Ask, origins: frozenset[str]) -> None:
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
        authority = _Authority(
            issuer=check_issuer(issuer),
            http=http,
            source=source,
            client_id=client_id or str(source.current().agent_id),
            token_endpoint=token_endpoint,
            clock=clock,
        )
        super().__init__(authority, _ask(resource, scopes), _origins(resource, origins))

    def on_behalf_of(
        self, subject_token: str, *, resource: AgentID | str, scopes: Iterable[str], origins: Iterable[str] = ()
    ) -> BearerAuth:
        """As this source, for tokens that are exchanged from a caller's token (RFC 8693).

        Args:
            subject_token: the token that we were called with, such as `caller.access_token`.
            resource, scopes, origins: as for the source; the scopes must be covered by those of `subject_token`.
        """
        return BearerAuth(self._authority, _ask(resource, scopes, subject_token), _origins(resource, origins))

    async def exchange(self, subject_token: str, *, resource: AgentID | str, scopes: Iterable[str]) -> Token:
        """Exchange a caller's token for one that we hold for another resource. Errors as `token`."""
        return await self._authority.token(_ask(resource, scopes, subject_token))


class _Authority:
    """One authorization server, as one client of it: discovery, requests and the cache of tokens."""

    def __init__(
        self,
        *,
        issuer: str,
        http: httpx.AsyncClient,
        source: CredentialSource,
        client_id: str,
        token_endpoint: str | None,
        clock: Clock,
    ) -> None:
        self._issuer = issuer
        self._http = http
        self._source = source
        self._client_id = client_id
        self._clock = clock
        self._configured_endpoint = token_endpoint
        if token_endpoint is not None:
            origin_of(token_endpoint)
        self._endpoint: tuple[str, datetime] | None = None
        self._tokens: OrderedDict[tuple[_Ask, str], Token] = OrderedDict()
        self._flights: dict[tuple[_Ask, str], asyncio.Task[Token]] = {}

    async def token(self, ask: _Ask) -> Token:
        key = (ask, self._source.current().thumbprint)
        token, now = self._tokens.get(key), self._clock()
        if token is None or now >= token.expires_at:
            # Shielded: when one of many waiting callers is cancelled, the others still get their token.
            return await asyncio.shield(self._flight(key))
        self._tokens.move_to_end(key)
        if now >= token.refresh_at:
            # The old token is good: nobody waits for the new one, and a server that is down hurts nobody yet.
            self._tokens[key] = replace(token, refresh_at=now + REFRESH_REST)
            self._flight(key)
        return token

    def drop(self, ask: _Ask, token: Token) -> bool:
        """Forget a token that a resource refused; True where another one may do better.

        A token that is a few seconds old is kept: a resource that refuses that would refuse the next one, too, and must
        not turn each of our calls into a request for a token.
        """
        key = (ask, self._source.current().thumbprint)
        kept = self._tokens.get(key)
        if kept is not None and kept.value == token.value:
            if self._clock() < token.asked_at + REFRESH_REST:
                return False
            del self._tokens[key]
        return True

    def _flight(self, key: tuple[_Ask, str]) -> asyncio.Task[Token]:
        """The one fetch that is under way for a key, started where there is none."""
        task = self._flights.get(key)
        if task is None:
            task = self._flights[key] = asyncio.create_task(self._fetch(key))
            task.add_done_callback(lambda done: self._landed(key, done))
        return task

    def _landed(self, key: tuple[_Ask, str], task: asyncio.Task[Token]) -> None:
        del self._flights[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("no new token from %s: %s: %s", self._issuer, type(error).__name__, error)

    async def _fetch(self, key: tuple[_Ask, str]) -> Token:
        ask, _ = key
        endpoint = await self._token_endpoint()
        asked_at = self._clock()  # the lifetime counts from before the question: never longer than the server meant
        status, members = await self._send("POST", endpoint, TokenResponseRefused, ask.form(self._client_id))
        if status != httpx.codes.OK:
            code = members.get("error")
            if not isinstance(code, str) or len(code) > 64:
                raise TokenResponseRefused("token request failed without an error code", got=f"status {status}")
            raise TokenRequestRefused("authorization server refused the token", error=code, got=code)
        token = _read_token(members, ask, asked_at)
        self._tokens[key] = token
        self._tokens.move_to_end(key)
        if len(self._tokens) > CACHE_SIZE:
            self._tokens.popitem(last=False)
        return token

    async def _token_endpoint(self) -> str:
        if self._configured_endpoint is not None:
            return self._configured_endpoint
        if self._endpoint is None or self._clock() >= self._endpoint[1]:
            status, members = await self._send("GET", metadata_url(self._issuer), MetadataRefused)
            if status != httpx.codes.OK:
                raise MetadataRefused("authorization server has no metadata", got=f"status {status}")
            self._endpoint = (_read_metadata(members, self._issuer), self._clock() + METADATA_LIFETIME)
        return self._endpoint[0]

    async def _send(
        self, method: str, url: str, malformed: type[TokenRequestError], form: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, object]]:
        """One exchange: status and JSON object. Nothing that the server sends can be larger or slower than allowed."""
        # `auth=None`: the client's own auth may be this very source. Redirects could hand the subject token to
        # another host; a compressed answer could be larger than anyone counted.
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        body = bytearray()
        try:
            async with (
                asyncio.timeout(FETCH_SECONDS),
                self._http.stream(
                    method, url, data=form, headers=headers, auth=None, follow_redirects=False, timeout=FETCH_SECONDS
                ) as response,
            ):
                status = response.status_code
                if status >= 500 or status == httpx.codes.TOO_MANY_REQUESTS:
                    raise AuthorizationServerUnavailable("authorization server is in trouble", got=f"status {status}")
                content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
                if content_type != "application/json" or status < 200 or 300 <= status < 400:
                    raise malformed("answer", got=f"status {status}, {content_type or 'no type'}", expected="JSON")
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise malformed("answer is compressed", expected="what was asked for: no encoding")
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        raise malformed("answer is too large", expected=f"at most {MAX_BODY_BYTES} bytes")
        except (httpx.HTTPError, TimeoutError) as error:
            raise AuthorizationServerUnavailable(
                "authorization server cannot be reached", got=type(error).__name__, do=f"look at {self._issuer}"
            ) from error
        try:
            members = strict_json(bytes(body))
        except HeaderMalformed:
            members = None
        if not isinstance(members, dict):
            raise malformed("answer", got="something else", expected="one strict JSON object")
        return status, members


def _read_metadata(members: Mapping[str, object], issuer: str) -> str:
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


def _read_token(members: Mapping[str, object], ask: _Ask, asked_at: datetime) -> Token:
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


def _token_was_refused(response: httpx.Response) -> bool:
    """RFC 6750 section 3.1: 401 with `error="invalid_token"` in a Bearer challenge."""
    return response.status_code == httpx.codes.UNAUTHORIZED and any(
        challenge.lower().lstrip().startswith("bearer") and _INVALID_TOKEN.search(challenge)
        for challenge in response.headers.get_list("www-authenticate")
    )


def _ask(agent: AgentID | str, scopes: Iterable[str], subject_token: str | None = None) -> _Ask:
    resource = str(agent)
    if not is_resource(resource):
        raise ConfigurationError("resource", got=resource, expected="an absolute URI without fragment (RFC 8707)")
    wanted = parse_scope_list(scopes if isinstance(scopes, str) else " ".join(scopes))
    if not wanted:
        raise ConfigurationError("no scopes", expected="at least one: a token that may nothing is of no use")
    return _Ask(resource=resource, scopes=wanted, subject_token=subject_token)


def _origins(agent: AgentID | str, origins: Iterable[str]) -> frozenset[str]:
    resource = str(agent)
    found = {origin_of(origin) for origin in ([origins] if isinstance(origins, str) else origins)}
    if resource.startswith("https:"):
        found.add(origin_of(resource))
    if not found:
        raise ConfigurationError("no origins", expected="the https origins that may see the tokens")
    return frozenset(found)
