"""The two verbs of a user: `serve` an agent, and make the client that calls one."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import httpx

from trust.authorize import Authorizer
from trust.bundles import BundleSource, RevocationLists, RevocationSource
from trust.credentials import CredentialSource
from trust.errors import ConfigurationError, WebhookRefused, must_be
from trust.oauth.client import BearerAuth
from trust.signing.http import MessageSigner, SigningTransport
from trust.signing.push import WEBHOOK_EXTENSION, PushSigningTransport
from trust.tls.client import AgentTransport
from trust.tls.destinations import Destinations, WebPKI, url_of, web_origins
from trust.tls.engine import PostQuantum
from trust.tls.server import serve, serving, uvicorn_config
from trust.tls.threads import BlockingTransport
from trust.tls.webhooks import WebhookTransport
from trust.tls.workers import serve_workers

if TYPE_CHECKING:
    import httpx2  # of an extra

__all__ = [
    "agent_client",
    "httpx2_agent_client",
    "push_client",
    "serve",
    "serve_workers",
    "serving",
    "sync_agent_client",
    "uvicorn_config",
]

# Connecting is a handshake on a warm network; reading waits for an agent that may think for a while.
TIMEOUT = httpx.Timeout(60.0, connect=10.0, pool=10.0)


def agent_client(
    *,
    source: CredentialSource | None,
    bundles: BundleSource,
    authorize: Authorizer | Destinations,
    tokens: BearerAuth | None = None,
    signer: MessageSigner | None = None,
    crls: RevocationSource | None = None,
    post_quantum: PostQuantum = "preferred",
    proxy: str | None = None,
    timeout: httpx.Timeout = TIMEOUT,
) -> httpx.AsyncClient:
    """An `httpx.AsyncClient` that proves who we are and knows whom it talks to.

    Every connection is mutual TLS, and the server's SPIFFE ID passes `authorize` inside the handshake. With `tokens`
    each request carries an access token bound to our certificate. With `signer` each request is signed, and an answer
    without a valid signature for this very request is an error. a2a-sdk takes the client as it is:
    `ClientConfig(httpx_client=...)`.

    Not done: no redirect is followed, and no proxy or certificate setting is read from the environment. HTTP/2: at 16
    concurrent calls httpx and `h2` over the same TLS spend 2.2 to 2.7 times the CPU of the connections here
    (`tests.benchmarks.transports`). It saves handshakes, which pays for a burst of calls by a new client (the first 16:
    26 ms of CPU against 44) or to a server far away: `httpx.AsyncClient(verify=client_context(source, bundles,
    authorize), http2=True, trust_env=False)`.

    Args:
        source: our certificate and key; renewed ones are picked up by the next connection. None presents none: for
            what a server gives to anybody, such as its Agent Card or an enrolment.
        bundles: whom we trust, by trust domain.
        authorize: which agents may answer: one rule for every server, or one for each origin, as in
            `{"https://billing.fleet.example": exactly("spiffe://fleet.example/billing")}`. With these, a request to
            any other origin is refused, and an agent that is allowed at one of them is not at another.
            `trust.WebPKI()` is the rule for a server outside any trust domain: it is known by its host name, and gets
            no certificate of ours.
        tokens: where access tokens come from: a `TokenSource`, or its `on_behalf_of`; None where none are asked for.
        signer: signs requests and verifies answers; None for servers that sign nothing. A web server learns from a
            signature who we are, so beside `WebPKI()` the signer has audiences by origin, and they name the web
            server's; for one that signs nothing make a client of its own.
        crls: revocation lists for the server's certificate.
        post_quantum: "required" refuses a server without a post-quantum key exchange.
        proxy: `http://[user:password@]host:port` of a proxy that opens a way with CONNECT; TLS is with the agent.
        timeout: of each phase of a request.

    Raises:
        ConfigurationError: an argument; or a web server is among the destinations that the signer does not name.

    Raises (from the client's calls):
        PeerError: the server's certificate, by the check that refused it.
        HandshakeRefused: the server refused ours, or that there is none.
        DestinationRefused: no rule for this origin.
        SignatureError, SignerMismatch: the answer.
        TokenRequestError: no token could be had.
    """
    _check_tokens(tokens)
    transport = _transport(source, bundles, authorize, signer, crls, post_quantum, proxy)
    return _Client(transport=transport, auth=tokens, timeout=timeout, trust_env=False)


def sync_agent_client(
    *,
    source: CredentialSource | None,
    bundles: BundleSource,
    authorize: Authorizer | Destinations,
    signer: MessageSigner | None = None,
    crls: RevocationSource | None = None,
    post_quantum: PostQuantum = "preferred",
    proxy: str | None = None,
    timeout: httpx.Timeout = TIMEOUT,
) -> httpx.Client:
    """As `agent_client`, for threads: an `httpx.Client` with the same arguments, checks and errors, but for `tokens`.

    Any number of threads may use it at once. A thread of its own carries the connections, until `close()`.

    Not done: access tokens. A `TokenSource` belongs to an event loop.
    """
    transport = _transport(source, bundles, authorize, signer, crls, post_quantum, proxy)
    return httpx.Client(transport=BlockingTransport(transport), timeout=timeout, trust_env=False)


def httpx2_agent_client(
    *,
    source: CredentialSource | None,
    bundles: BundleSource,
    authorize: Authorizer | Destinations,
    tokens: BearerAuth | None = None,
    signer: MessageSigner | None = None,
    crls: RevocationSource | None = None,
    post_quantum: PostQuantum = "preferred",
    proxy: str | None = None,
    timeout: httpx.Timeout | httpx2.Timeout = TIMEOUT,
) -> httpx2.AsyncClient:
    """As `agent_client`, for httpx2: an `httpx2.AsyncClient` with the same arguments, checks and errors.

    What httpx would raise is httpx2's error of the same name. One request alone gets other tokens by
    `auth=trust.tls.httpx2.Httpx2Auth(tokens)`. a2a-sdk expects httpx and its errors: give it `agent_client`.

    Raises:
        ConfigurationError: httpx2 is not installed; and from the client's calls as `agent_client`.
    """
    try:
        import httpx2

        from trust.tls.httpx2 import Httpx2Auth, Httpx2Transport
    except ImportError:
        raise ConfigurationError("this client needs httpx2", do="pip install 'a2a-trust[httpx2]'") from None
    _check_tokens(tokens)
    return httpx2.AsyncClient(
        transport=Httpx2Transport(_transport(source, bundles, authorize, signer, crls, post_quantum, proxy)),
        auth=None if tokens is None else Httpx2Auth(tokens),
        timeout=httpx2.Timeout(**timeout.as_dict()),
        trust_env=False,
    )


def push_client(
    *,
    source: CredentialSource,
    bundles: BundleSource,
    webhooks: Destinations,
    others: Authorizer | WebPKI | None,
    networks: Collection[str] = (),
    ports: Collection[int] = (443,),
    crls: RevocationSource | None = None,
) -> httpx.AsyncClient:
    """An `httpx.AsyncClient` that signs push notifications, and sends none to where a stranger should not point us.

    a2a-sdk takes it as it is: `BasePushNotificationSender(push_client(...), config_store)`. Each POST is signed for the
    URL of its webhook. A name is resolved once, every address that it has must be allowed, and the connection goes to
    one of these; no redirect is followed, and of an answer only the status is handed on.

    A signature says who we are, to web servers too. And whoever may name a webhook can have us POST to any path of an
    agent that we know, with our certificate: what acts on requests there has to ask for more than that (`Gate` does).

    Args:
        source: our certificate and key; renewed ones are picked up.
        bundles, crls: whom we trust to have a webhook, by trust domain, and what is revoked.
        webhooks: the rule of each origin that we know, as in
            `{"https://planner.fleet.example:8443": exactly("spiffe://fleet.example/planner")}`; `trust.WebPKI()` for
            web servers, which get no certificate of ours. These may be at any address and port.
        others: the rule of every other origin; None refuses them. These must be at public addresses.
        networks: addresses that are not public where `others` may be nevertheless, such as "10.8.0.0/16".
        ports: at which `others` must be.

    Raises:
        ConfigurationError: an argument; nothing could be reached; or the key of `source` signs nothing here (ML-DSA).

    Raises (from the client's calls; a2a-sdk logs it and goes on):
        WebhookRefused, AddressRefused, DestinationRefused: the URL, where it leads, and that it has no rule.
        PeerError, HandshakeRefused: as `agent_client`.
    """
    transport = WebhookTransport(
        source,
        bundles,
        known=webhooks,
        others=others,
        networks=networks,
        ports=ports,
        crls=RevocationLists() if crls is None else crls,
    )
    return _PushClient(transport=PushSigningTransport(transport, source), timeout=TIMEOUT, trust_env=False)


def _check_tokens(tokens: BearerAuth | None) -> None:
    if tokens is not None:
        must_be("tokens", tokens, httpx.Auth, expected="a TokenSource")


def _transport(
    source: CredentialSource | None,
    bundles: BundleSource,
    authorize: Authorizer | Destinations,
    signer: MessageSigner | None,
    crls: RevocationSource | None,
    post_quantum: PostQuantum,
    proxy: str | None,
) -> httpx.AsyncBaseTransport:
    transport = AgentTransport(
        source,
        bundles,
        authorize,
        crls=RevocationLists() if crls is None else crls,
        post_quantum=post_quantum,
        proxy=proxy,
    )
    if signer is None:
        return transport
    for origin in web_origins(authorize):
        if not signer.names(origin):
            raise ConfigurationError(
                "signed requests would tell a web server who we are",
                got=f"{origin} without an audience of its own",
                expected="a signer whose audiences name every web server",
                do="give it an audience by origin, or make another client for unsigned requests",
            )
    return SigningTransport(transport, signer)


class _Cookies(httpx.Cookies):
    """A third of what httpx does for a call is to look for cookies, and agents set none: looks where there are some."""

    def extract_cookies(self, response: httpx.Response) -> None:
        if "set-cookie" in response.headers:
            super().extract_cookies(response)


class _Client(httpx.AsyncClient):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._jar = _Cookies()

    def build_request(self, method: str, url: httpx.URL | str, **parts: Any) -> httpx.Request:
        return super().build_request(method, url_of(url) if isinstance(url, str) else url, **parts)

    @property
    def cookies(self) -> httpx.Cookies:
        return self._jar

    @cookies.setter
    def cookies(self, cookies: Any) -> None:
        self._jar = _Cookies(cookies)


class _PushClient(_Client):
    def build_request(self, method: str, url: httpx.URL | str, **parts: Any) -> httpx.Request:
        try:
            webhook = url_of(url) if isinstance(url, str) else url
            host = webhook.host  # httpx reads it only now; what `idna` and `str.encode` raise is a ValueError
        except (httpx.InvalidURL, ValueError) as error:
            raise WebhookRefused("webhook", got=error, expected="an https URL") from None
        if not host:
            raise WebhookRefused("webhook", got="no host", expected="an https URL")
        request = super().build_request(method, webhook, **parts)
        request.extensions = {**request.extensions, WEBHOOK_EXTENSION: str(url)}
        return request
