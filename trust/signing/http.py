"""Signed HTTP. The functions for one exchange are those of `trust.signing.exchange`; the edge for clients is here.

`MessageSigner` signs requests and verifies answers with the current credentials, the clock and fresh identifiers;
`SigningTransport` puts it around any `httpx` transport.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import httpx

from trust.authorize import Authorizer, exactly
from trust.bundles import BundleSource, RevocationLists, RevocationSource
from trust.clock import Clock, wall_clock
from trust.credentials import CredentialSource
from trust.errors import (
    BindingMismatch,
    ConfigurationError,
    ResponseMismatch,
    ResponseNotSigned,
    ResponseTooLarge,
    SignatureMissing,
)
from trust.identity import AgentID, PeerIdentity
from trust.peers import PeerVerifier
from trust.signing.envelope import VerifiedMessage
from trust.signing.exchange import (
    HEADER,
    RequestReference,
    SignedRequest,
    authenticate_request,
    content_type_of,
    origin_of,
    reference_of,
    sign_request,
    sign_response,
    signature_of,
    target_uri,
    verify_request,
    verify_response,
)

__all__ = [
    "HEADER",
    "MAX_RESPONSE_BYTES",
    "MessageSigner",
    "RequestReference",
    "SignedRequest",
    "SigningTransport",
    "VerifiedMessage",
    "authenticate_request",
    "content_type_of",
    "new_message_id",
    "reference_of",
    "sign_request",
    "sign_response",
    "signature_of",
    "target_uri",
    "verify_request",
    "verify_response",
]

MAX_RESPONSE_BYTES = 16 << 20  # held in memory until it is verified; a message with a large inline file


def new_message_id() -> str:
    """A fresh `jti`: 128 random bits in base64url."""
    return secrets.token_urlsafe(16)


class MessageSigner:
    """Signs requests as us, and verifies that their answers are the addressed agent's.

    Args:
        source: our credentials; renewed ones are used from the next request on.
        audience: the agent that is called: its SPIFFE ID, or the origin URL of an agent outside any trust domain. For
            a client of several agents: the audience of each origin. A request to any other origin is refused, for it
            would be sent unsigned, or signed for somebody else.
        bundles, crls: whom we trust to answer, and what is revoked.
        signers: which agents may answer. By default exactly the addressed one; required where an audience is a URL.
        chain: put our certificates into each request, for agents that are reached through a TLS proxy.
    """

    def __init__(
        self,
        source: CredentialSource,
        *,
        audience: AgentID | str | Mapping[str, AgentID | str],
        bundles: BundleSource,
        crls: RevocationSource | None = None,
        signers: Authorizer | None = None,
        chain: bool = False,
        clock: Clock = wall_clock,
    ) -> None:
        self._source = source
        self._everywhere: AgentID | str | None = None
        self._by_origin: dict[str, AgentID | str] = {}
        if isinstance(audience, Mapping):
            self._by_origin = {_origin(url): _audience(agent) for url, agent in audience.items()}
        else:
            self._everywhere = _audience(audience)
        agents = self._by_origin.values() if self._everywhere is None else [self._everywhere]
        if not agents:
            raise ConfigurationError("signer has no audience", expected="at least one origin and its agent")
        if signers is None and not all(isinstance(agent, AgentID) for agent in agents):
            raise ConfigurationError("signers", expected="who may answer for a URL", do="pass signers=exactly(...)")
        self._signers = signers or exactly(*map(str, agents))
        self._verifier = PeerVerifier(bundles, RevocationLists() if crls is None else crls)
        self._chain = chain
        self._clock = clock

    def sign(
        self,
        *,
        method: str,
        url: str,
        body: bytes,
        content_type: str = "",
        version: str = "",
        extensions: tuple[str, ...] = (),
    ) -> SignedRequest:
        """Sign one request; as `sign_request`.

        Raises:
            ConfigurationError: the URL's origin has no audience, or its request cannot be signed.
        """
        return sign_request(
            self._source.current(),
            method=method,
            url=url,
            body=body,
            audience=self._audience_of(url),
            now=self._clock(),
            jti=new_message_id(),
            content_type=content_type,
            version=version,
            extensions=extensions,
            chain=self._chain,
        )

    def verify(
        self,
        jws: str,
        *,
        request: SignedRequest,
        status: int,
        body: bytes,
        peer: PeerIdentity | None,
        content_type: str = "",
    ) -> VerifiedMessage:
        """Verify the answer to a request that this signer signed; as `verify_response`."""
        return verify_response(
            jws,
            request=request,
            status=status,
            body=body,
            audience=self._source.current().agent_id,
            signers=self._signers,
            verifier=self._verifier,
            peer=peer,
            now=self._clock(),
            content_type=content_type,
        )

    def names(self, origin: str) -> bool:
        """Whether the audiences name this origin, so that a request there is to be signed whoever answers."""
        return _origin(origin) in self._by_origin

    def _audience_of(self, url: str) -> AgentID | str:
        if self._everywhere is not None:
            return self._everywhere
        origin = _origin(url, whole=False)
        if origin not in self._by_origin:
            raise ConfigurationError(
                "request to an origin without an audience",
                got=origin,
                expected=" or ".join(self._by_origin),
                do="add the agent's SPIFFE ID to the audiences of the signer",
            )
        return self._by_origin[origin]


class SigningTransport(httpx.AsyncBaseTransport):
    """Signs every request of an `httpx.AsyncClient`, and lets no answer through that is not signed for it.

    The answer's bytes are verified as they came over the wire, before anything decodes or parses them, and handed on
    unchanged. Signed requests ask for `identity`, so that no proxy compresses the answer on its way.

    Not done: event streams. Their answer to a signed request is an error, as is every unsigned answer; so is one
    larger than `MAX_RESPONSE_BYTES`.

    Raises (from the client's calls):
        ResponseNotSigned: the answer has no signature; its status is in the message.
        SignatureError, PeerError: the answer's signature or signer, by the check that failed.
        ConfigurationError: the request cannot be signed; it was not sent.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport, signer: MessageSigner) -> None:
        self._inner = inner
        self._signer = signer

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        signed, response = await self._exchange(request, body)
        if response.status_code == 401 and _signed_by_another(signed, response):
            # Our certificate was renewed after the request was signed and before it found a connection. The server
            # knows the signer by the certificate of the connection, and so refused, as its signed answer says, before
            # anybody acted on the request: it is signed and sent once more.
            await response.aclose()
            _, response = await self._exchange(request, body)
        return response

    async def _exchange(self, request: httpx.Request, body: bytes) -> tuple[SignedRequest, httpx.Response]:
        # From the raw parts: exactly what goes over the wire.
        url = request.url.scheme.encode() + b"://" + request.url.netloc + request.url.raw_path
        signed = self._signer.sign(
            method=request.method,
            url=url.decode("latin-1"),
            body=body,
            content_type=content_type_of(request.headers.raw, ConfigurationError),
            version=request.headers.get("a2a-version", ""),
            # By its name of A2A 0.3 too: whoever still reads that one must not be told what nobody signed.
            extensions=tuple(
                uri
                for name in ("a2a-extensions", "x-a2a-extensions")
                for uri in request.headers.get_list(name, split_commas=True)
                if uri
            ),
        )
        request.headers[HEADER] = signed.jws  # replaces what a redirect or a retry brought along
        request.headers["accept-encoding"] = "identity"
        response = await self._inner.handle_async_request(request)
        try:
            content = await self._verified(response, signed)
        finally:
            await response.aclose()
        return signed, httpx.Response(
            response.status_code,
            headers=response.headers,
            stream=httpx.ByteStream(content),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _verified(self, response: httpx.Response, signed: SignedRequest) -> bytes:
        if response.headers.get("content-type", "").partition(";")[0].strip().lower() == "text/event-stream":
            raise ResponseNotSigned(
                "answer is an event stream",
                got=f"status {response.status_code}",
                expected="one signed answer: events of a stream are not signed yet",
                do="call the non-streaming method, or without a signer",
            )
        if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
            # Decoding would give the caller other bytes than the signed ones, and more than the limit allows.
            raise ResponseMismatch("answer is encoded", got=encoding, expected="identity, as was asked for")
        try:
            jws = signature_of(response.headers.raw)
        except SignatureMissing:
            raise ResponseNotSigned(
                "answer is not signed",
                got=f"status {response.status_code}",
                expected=f"a {HEADER} header",
                do="look at the server's log: it refused before it knew the request, or a proxy answered",
            ) from None
        content = bytearray()
        async for chunk in response.stream:  # type: ignore[union-attr]
            content += chunk
            if len(content) > MAX_RESPONSE_BYTES:
                raise ResponseTooLarge("answer is too large to verify", expected=f"at most {MAX_RESPONSE_BYTES} bytes")
        message = self._signer.verify(
            jws,
            request=signed,
            status=response.status_code,
            body=bytes(content),
            peer=_peer(response),
            content_type=content_type_of(response.headers.raw, ResponseMismatch),
        )
        return message.payload


def _peer(response: httpx.Response) -> PeerIdentity | None:
    """The other end of the connection that the answer came from, where the transport below is one of `trust.tls`."""
    stream = response.extensions.get("network_stream")
    # Those of `trust.tls` keep it; a TLS object forgets its peer when the connection fails.
    kept = stream.get_extra_info("peer") if stream is not None else None
    peer = kept or getattr(_connection(response), "peer", None)
    return peer if isinstance(peer, PeerIdentity) else None


def _signed_by_another(signed: SignedRequest, response: httpx.Response) -> bool:
    """Whether the connection presented another certificate than the one whose key signed the request."""
    presented = getattr(_connection(response), "presented", None)
    return isinstance(presented, str) and presented != signed.signer


def _connection(response: httpx.Response) -> object:
    stream = response.extensions.get("network_stream")
    return stream.get_extra_info("ssl_object") if stream is not None else None


def _origin(url: str, *, whole: bool = True) -> str:
    try:
        origin = origin_of(url)
    except BindingMismatch as error:
        raise ConfigurationError(str(error)) from None
    if whole and target_uri(url) != f"{origin}/":
        raise ConfigurationError("origin", got=url, expected="scheme, host and port, without a path")
    return origin


def _audience(agent: AgentID | str) -> AgentID | str:
    if isinstance(agent, AgentID):
        return agent
    return AgentID.parse(agent) if agent.startswith("spiffe:") else _origin(agent)
