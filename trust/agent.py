"""The two verbs of a user: `serve` an agent, and make the client that calls one."""

from __future__ import annotations

import httpx

from trust.authorize import Authorizer
from trust.bundles import BundleSource, RevocationLists, RevocationSource
from trust.credentials import CredentialSource
from trust.oauth.client import BearerAuth
from trust.signing.http import MessageSigner, SigningTransport
from trust.tls.client import AgentTransport
from trust.tls.server import serve, serving, uvicorn_config

__all__ = ["agent_client", "serve", "serving", "uvicorn_config"]

# Connecting is a handshake on a warm network; reading waits for an agent that may think for a while.
TIMEOUT = httpx.Timeout(60.0, connect=10.0, pool=10.0)


def agent_client(
    *,
    source: CredentialSource | None,
    bundles: BundleSource,
    authorize: Authorizer,
    tokens: BearerAuth | None = None,
    signer: MessageSigner | None = None,
    crls: RevocationSource | None = None,
    timeout: httpx.Timeout = TIMEOUT,
) -> httpx.AsyncClient:
    """An `httpx.AsyncClient` that proves who we are and knows whom it talks to.

    Every connection is mutual TLS, and the server's SPIFFE ID passes `authorize` inside the handshake. With `tokens`
    each request carries an access token bound to our certificate. With `signer` each request is signed, and an answer
    without a valid signature for this very request is an error. a2a-sdk takes the client as it is:
    `ClientConfig(httpx_client=...)`.

    Not done: no redirect is followed, and no proxy or certificate setting is read from the environment.

    Args:
        source: our certificate and key; renewed ones are picked up by the next connection. None presents none: for
            what a server gives to anybody, such as its Agent Card or an enrolment.
        bundles: whom we trust, by trust domain.
        authorize: which agents may answer.
        tokens: where access tokens come from: a `TokenSource`, or its `on_behalf_of`; None where none are asked for.
        signer: signs requests and verifies answers; None for servers that sign nothing.
        crls: revocation lists for the server's certificate.
        timeout: of each phase of a request.

    Raises (from the client's calls):
        PeerError: the server's certificate, by the check that refused it.
        HandshakeRefused: the server refused ours, or that there is none.
        SignatureError, SignerMismatch: the answer.
        TokenRequestError: no token could be had.
    """
    transport: httpx.AsyncBaseTransport = AgentTransport(
        source, bundles, authorize, crls=RevocationLists() if crls is None else crls
    )
    if signer is not None:
        transport = SigningTransport(transport, signer)
    return httpx.AsyncClient(transport=transport, auth=tokens, timeout=timeout, trust_env=False)
