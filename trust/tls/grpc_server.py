"""A gRPC server that knows which agent calls. With `trust.tls.grpc_channel`, what needs grpcio (the extra `grpc`).

grpcio does TLS itself and lets no Python code into its handshake, so the peer of each call is judged before a handler
sees it. `grpc.aio` only, which is what a2a-sdk serves and calls with.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import inspect
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from trust.audit import AuditSink
from trust.authorize import Authorizer
from trust.bundles import BundleSource, RevocationLists, RevocationSource, TrustBundles
from trust.certificates import Certificate
from trust.clock import Clock, wall_clock
from trust.credentials import Credentials, CredentialSource
from trust.errors import ConfigurationError, NoPeerCertificate, PeerNotAllowed, TooManyCalls, TrustError
from trust.identity import AgentID, PeerIdentity
from trust.peers import PeerVerifier

HANDSHAKE_MILLISECONDS = 10_000  # the same as for HTTP
MAX_CALLS = 1000  # at once, for one server; further ones are answered with RESOURCE_EXHAUSTED

MAX_CALLS_OF_CONNECTION = 100
MAX_CALLS_OF_AGENT = 200  # at once, over all of its connections, so that none of them takes the places of all others
MESSAGE_SECONDS = 30.0  # for the message of a call to come, as for a request body over HTTP

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")
_CODES = {
    PeerNotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    TooManyCalls: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_peer: ContextVar[PeerIdentity] = ContextVar("a2a_trust_grpc_peer")

logger = logging.getLogger("a2a_trust.tls")


def grpc_server(
    address: str,
    *,
    source: CredentialSource,
    bundles: BundleSource,
    authorize: Authorizer,
    crls: RevocationSource = RevocationLists(),  # noqa: B008 - immutable
    audit: AuditSink | None = None,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    options: Sequence[tuple[str, Any]] = (),
    clock: Clock = wall_clock,
) -> tuple[grpc.aio.Server, int]:
    """A server, not yet started, whose methods only verified agents reach, and the port that it listens on.

    To be called in the event loop that it will serve in. `peer_of_call()` is the caller, in the handlers. Each call is
    judged when it comes, and again for each message of a stream: with the roots, the revocation lists and the rule of
    that moment. A refused one ends with UNAUTHENTICATED or PERMISSION_DENIED, one that is too many (of its agent, or in
    all) with RESOURCE_EXHAUSTED. A new connection is shown the certificate that is current then.

    Not done in the handshake, for grpcio does it: a client without a certificate of one of the trusted roots (of any
    domain) is refused there, but which agent it is, revocation, and that domains do not vouch for each other, is looked
    at when it makes a call, before its message is read (at most 4 MiB, or as `options` say).
    Post-quantum: CAs with ML-DSA-44 keys will do; with ML-DSA-65 or -87 a client's chain is longer than grpcio's
    handshake can take. Keys of agents are P-256, P-384 or RSA. TLS 1.2 is possible with clients that know nothing
    newer, and sessions may be resumed. Connections are not counted. A stream that carries no message is not ended.
    Handlers that read and write with the methods of the context, and not as iterators, are judged once.

    Args:
        address: "host:port"; port 0 picks a free one.
        source: our certificate and key; the key is handed to grpcio in memory, unencrypted.
        bundles, authorize, crls, clock: as for `server_context`.
        audit: gets an event "call" for each one that is refused.
        interceptors: further ones. Their handlers run for judged calls only; `intercept_service` itself comes before.
        options: further channel arguments of grpcio.

    Raises:
        ConfigurationError: the address is taken, or the credentials or roots cannot be used.
    """
    server = grpc.aio.server(
        interceptors=[_Judge(bundles, authorize, crls, audit, clock), *interceptors],
        options=[
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_MILLISECONDS),
            ("grpc.max_concurrent_streams", MAX_CALLS_OF_CONNECTION),
            ("grpc.so_reuseport", 0),  # else another process could take a share of the connections
            *options,
        ],
        maximum_concurrent_rpcs=MAX_CALLS,
    )
    try:
        port = server.add_secure_port(address, _Presented(source, bundles).credentials())
    except (RuntimeError, ValueError):
        raise ConfigurationError(
            f"cannot listen on {address}", do="choose another address, and look at credentials and bundles"
        ) from None
    return server, port


def peer_of_call() -> PeerIdentity:
    """Who made the call that is being served, in a handler of `grpc_server`.

    Raises:
        NoPeerCertificate: there is no such call here.
    """
    peer = _peer.get(None)
    if peer is None:
        raise NoPeerCertificate("no call of a verified peer", expected="a handler of a server made with grpc_server")
    return peer


def pem_pair(credentials: Credentials) -> tuple[bytes, bytes]:
    """Key and chain, as grpcio takes them.

    Raises:
        ConfigurationError: a key of a kind that grpcio's TLS (BoringSSL) does not do.
    """
    if not isinstance(credentials.private_key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey)):
        raise ConfigurationError(
            "grpcio cannot use this key",
            got=type(credentials.private_key).__name__,
            expected="P-256, P-384 or RSA",
            do="get a certificate for such a key",
        )
    return credentials.key_pem(), credentials.chain_pem


class _Presented:
    """What grpcio presents, and whom it lets through: asked for again at each connection, from threads of its own."""

    def __init__(self, source: CredentialSource, bundles: BundleSource) -> None:
        self._source = source
        self._bundles = bundles
        self._given: tuple[Credentials, TrustBundles] | None = None

    def credentials(self) -> grpc.ServerCredentials:
        first = self._configuration()
        # The stubs do not know that None is an answer.
        return grpc.dynamic_ssl_server_credentials(
            first,
            self.changed,  # type: ignore[arg-type]
            require_client_authentication=True,
        )

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """None for what grpcio has already, and where there is nothing better: every call is judged by what is current
        in any case."""
        given = self._given
        try:
            if given is not None and self._source.current() is given[0] and self._bundles.current() is given[1]:
                return None
            return self._configuration()
        except Exception as error:  # a source's, whatever it is: grpcio calls from C, and would refuse everybody
            logger.error("gRPC goes on with the certificates that it has: %s", error)
            return None

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        credentials, bundles = self._source.current(), self._bundles.current()
        roots = list(_usable(bundles, credentials))
        if not roots:  # for grpcio that would mean that no certificate is asked for
            raise ConfigurationError("no roots to trust", expected="a bundle with at least one root")
        made = grpc.ssl_server_certificate_configuration(
            [pem_pair(credentials)],
            root_certificates=b"".join(root.public_bytes(Encoding.PEM) for root in roots),
        )
        self._given = credentials, bundles
        return made


def _usable(bundles: TrustBundles, credentials: Credentials) -> Iterator[x509.Certificate]:
    """Our own roots first, and none of another domain that would take their place.

    grpcio has one list for all domains, drops all that comes after a root which it cannot read, and finds an issuer by
    its name.
    """
    own = credentials.agent_id.trust_domain
    ours = {certificate.subject for certificate in credentials.chain[1:]}
    for domain in sorted(bundles.by_domain, key=lambda name: name != own):
        for root in bundles.by_domain[domain].roots:
            try:
                name = Certificate.read(root.public_bytes(Encoding.DER)).subject
            except TrustError as error:
                logger.error("a root of %s is left out for gRPC: %s", domain, error)
                continue
            if domain == own:
                ours.add(name)
            elif name in ours:
                logger.error("a root of %s is left out for gRPC: it has the name of a CA of ours", domain)
                continue
            yield root


class _Judge(grpc.aio.ServerInterceptor):
    """Comes first, and lets no call through to a handler whose peer is not verified and allowed."""

    def __init__(
        self,
        bundles: BundleSource,
        authorize: Authorizer,
        crls: RevocationSource,
        audit: AuditSink | None,
        clock: Clock,
    ) -> None:
        self._verifier = PeerVerifier(bundles, crls)
        self._authorize = authorize
        self._audit = audit
        self._clock = clock
        self._calls: Counter[AgentID] = Counter()  # that are under way

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        method = handler_call_details.method
        try:
            handler = await continuation(handler_call_details)
            return handler and self._guarded(handler, method)  # None: UNIMPLEMENTED
        except Exception:  # of the application, or no async function: grpcio would send its text to the caller
            logger.exception("gRPC method %s cannot be served", method)
            return self._guarded(grpc.unary_unary_rpc_method_handler(_fail), method)

    def _guarded(self, handler: Any, method: str) -> Any:
        taken = "stream" if handler.request_streaming else "unary"
        given = "stream" if handler.response_streaming else "unary"
        inner = self._judged(getattr(handler, f"{taken}_{given}"), method, handler.request_streaming)
        # Also a method of one message is served as one of many: grpcio would wait for the message, and keep a place
        # for the call, before it asks anybody.
        make = getattr(grpc, f"stream_{given}_rpc_method_handler")
        return make(inner, _reader(handler.request_deserializer), _writer(handler.response_serializer))

    def _judged(self, inner: Callable[..., Any], method: str, request_streaming: bool) -> Callable[..., Any]:
        async def taken(messages: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            if request_streaming:
                return self._each(messages, context, method)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MESSAGE_SECONDS):
                    async for message in messages:
                        return message
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "invalid_request")

        if inspect.isasyncgenfunction(inner):

            async def stream(messages: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
                await self._admit(context, method, begins=True)
                async with (
                    _untold(context, method),
                    contextlib.aclosing(inner(await taken(messages, context), context)) as answers,
                ):
                    async for answer in answers:
                        await self._admit(context, method)
                        yield answer

            return stream
        if inspect.iscoroutinefunction(inner):

            async def once(messages: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
                await self._admit(context, method, begins=True)
                async with _untold(context, method):
                    return await inner(await taken(messages, context), context)

            return once
        raise ConfigurationError("gRPC handler", got=type(inner).__name__, expected="an async function")

    async def _each(self, messages: Any, context: Any, method: str) -> AsyncIterator[Any]:
        async for message in messages:
            await self._admit(context, method)
            yield message

    async def _admit(self, context: grpc.aio.ServicerContext[Any, Any], method: str, *, begins: bool = False) -> None:
        """Whoever comes back from here is verified and allowed now, and has a place for the call that begins."""
        try:
            peer = self._verifier.verify(_presented(context), now=self._clock(), usage="client")
            self._authorize.check(peer.agent_id)
            if begins:
                self._begin(peer.agent_id, context)
            _peer.set(peer)
            return
        except TrustError as error:
            refusal = error
        except Exception as error:  # a defect or an outage on our side must refuse, never accept
            refusal = TrustError("peer could not be judged", got=type(error).__name__)
            logger.exception("a gRPC peer could not be judged")
        if self._audit is not None:
            try:
                self._audit.record(
                    event="call",
                    decision="deny",
                    check=refusal.check,
                    peer=context.peer(),
                    target=method,
                    reason=str(refusal),
                )
            except Exception:  # it stays refused
                logger.exception("a refused gRPC call could not be recorded")
        await context.abort(_CODES.get(type(refusal), grpc.StatusCode.UNAUTHENTICATED), refusal.code)

    def _begin(self, agent: AgentID, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        if self._calls[agent] >= MAX_CALLS_OF_AGENT:
            raise TooManyCalls(
                "agent has too many calls",
                got=agent,
                expected=f"at most {MAX_CALLS_OF_AGENT} at once",
                do="let it end calls before it begins others",
            )

        def ended(_: object) -> None:
            self._calls[agent] -= 1
            if not self._calls[agent]:
                del self._calls[agent]

        self._calls[agent] += 1
        context.add_done_callback(ended)  # type: ignore[arg-type]  # the stubs want a class that does not exist


class _Unreadable(Exception):
    """A message of the caller's that is none of this method."""


@contextlib.asynccontextmanager
async def _untold(context: grpc.aio.ServicerContext[Any, Any], method: str) -> AsyncIterator[None]:
    """What a handler fails with is for our log: grpcio would send its text to the caller."""
    try:
        yield
    except grpc.aio.AbortError:  # the handler's own answer, or ours
        raise
    except _Unreadable:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "invalid_request")
    except Exception:
        logger.exception("gRPC method %s failed", method)
        if not context.done():  # after an answer nothing more is sent
            # A status that the handler has set is one that it wants the caller to see.
            chosen = context.code()
            await context.abort(chosen or grpc.StatusCode.INTERNAL, context.details() if chosen else "server_error")


async def _fail(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await context.abort(grpc.StatusCode.INTERNAL, "server_error")


def _reader(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    def read(message: bytes) -> Any:
        try:
            return deserializer(message)  # type: ignore[misc]
        except Exception as error:  # protobuf's, or whatever the application reads with
            raise _Unreadable from error

    return deserializer and read


def _writer(serializer: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    """grpcio writes after the handler, and sends the text of what that fails with."""

    def write(answer: Any) -> bytes:
        try:
            return serializer(answer)  # type: ignore[misc]
        except Exception:
            logger.exception("gRPC answer cannot be written")
            raise ValueError("answer") from None

    return serializer and write


def _presented(context: grpc.aio.ServicerContext[Any, Any]) -> list[bytes]:
    """The chain, the leaf first. grpcio gives the leaf, and the other certificates (with OpenSSL: all of them)."""
    properties = context.auth_context()
    leaf = _der(properties.get("x509_pem_cert", ()))
    rest = _der(properties.get("x509_pem_cert_chain", ()))
    if len(leaf) != 1:
        raise NoPeerCertificate("peer presented no certificate", expected="an agent certificate")
    return leaf + [der for der in rest if der != leaf[0]]


def _der(pem: Any) -> list[bytes]:
    return [base64.b64decode(text) for block in pem for text in _PEM.findall(block)]
