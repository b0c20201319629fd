"""Who signs requests and verifies answers: with the current credentials, the clock, and whom we believe."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trust.authorize import Authorizer, exactly
from trust.bundles import BundleSource, RevocationLists, RevocationSource
from trust.clock import Clock, wall_clock
from trust.credentials import CredentialSource, check_source
from trust.errors import BindingMismatch, ConfigurationError
from trust.extension import check_declared
from trust.identity import AgentID, PeerIdentity
from trust.peers import PeerVerifier
from trust.signing.algorithms import signer as signature_algorithm
from trust.signing.envelope import VerifiedMessage
from trust.signing.exchange import SignedRequest, sign_request, verify_response
from trust.signing.streams import StreamVerifier
from trust.signing.targets import origin_of, target_uri


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
        chain: put our certificates into each request, for agents that are reached through a proxy that ends TLS. Theirs
            then come with the answer.
        received: called with each verified answer, and with each verified event of a stream and its end, before the
            caller of the client has it: for evidence. What it raises, the caller gets.

    Raises:
        ConfigurationError: no audience, an origin that is none, or no `signers` for a URL.
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
        received: Callable[[VerifiedMessage], object] = lambda message: None,
        clock: Clock = wall_clock,
    ) -> None:
        check_source(source)
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
        self._received = received
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
        again: SignedRequest | None = None,
    ) -> SignedRequest:
        """Sign one request; as `sign_request`.

        Args:
            again: what this one stands for: it gets that one's `jti` and time, so no receiver acts on both.

        Raises:
            ConfigurationError: the URL's origin has no audience, or its request cannot be signed.
        """
        return sign_request(
            self._source.current(),
            method=method,
            url=url,
            body=body,
            audience=self._audience_of(url),
            now=again.signed_at if again else self._clock(),
            jti=again.jti if again else new_message_id(),
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
        message = verify_response(
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
        self._received(message)
        return message

    def stream(
        self, *, request: SignedRequest, status: int, content_type: str, resumes: str | None, peer: PeerIdentity | None
    ) -> StreamVerifier:
        """For the event stream that answers a request that this signer signed; as `StreamVerifier`."""
        return StreamVerifier(
            request=request,
            status=status,
            content_type=content_type,
            resumes=resumes,
            audience=self._source.current().agent_id,
            signers=self._signers,
            verifier=self._verifier,
            peer=peer,
        )

    def read(self, stream: StreamVerifier, chunk: bytes) -> Iterator[bytes]:
        """The verified events in the next chunk of a stream, as `StreamVerifier.verify`; for its end an empty text."""
        for message, text in stream.verify(chunk, now=self._clock()):
            self._received(message)
            yield text

    def check_card(self, card: Mapping[str, Any]) -> None:
        """Whether the agent of a verified card says that it takes signatures like ours. Asked before anything is sent.

        Raises:
            SignaturesNotOffered: it does not declare the extension, or not our algorithm.
        """
        algorithm, _ = signature_algorithm(self._source.current().private_key)
        check_declared(card, algorithm)

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
    if agent.startswith("spiffe:"):
        return AgentID.parse(agent)
    if "://" not in agent:
        expected = "a SPIFFE ID, or the origin of an agent outside any trust domain"
        raise ConfigurationError("audience of the signer", got=agent, expected=expected)
    return _origin(agent)
