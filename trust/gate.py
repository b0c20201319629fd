"""The one page where the three proofs are joined: channel, authority, message. One identity, or no entry.

`judge` runs seven checks in this order, and the first that fails decides:

    (1) peer       the chain that the channel proved still verifies now, and its agent is allowed trust/peers.py
    (2) token      a valid access token, for us, in time, not revoked                             trust/oauth/tokens.py
    (3) binding    that token is bound to the certificate of (1)                                  trust/oauth/tokens.py
    (4) signature  the body, its type, method, target and receiver are what the signer signed     trust/signing/http.py
    (5) signer     the signer is the peer of (1), or an origin that this peer may relay for
    (6) replay     this message was never received before                                         trust/replay/
    (7) scope      the token grants what this request needs, now                                  trust/oauth/scopes.py

A request has one signed answer. A refusal may be signed only where check 6 has remembered the request, so that it can
never be executed afterwards, and one that was executed is never refused under a signature: whoever sees a signed
refusal may ask again. For a token that was refused the checks 4 to 6 are made after it; whatever they find, the token
decides. Where they fail, the refusal goes out unsigned.

Nothing here does IO: what the checks need from outside (keys of the issuer) has been fetched by `trust.middleware`,
which also sees to it that a replay guard that waits for its store holds up nobody else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from trust.authorize import Authorizer, a_rule
from trust.errors import (
    BindingMismatch,
    ConfigurationError,
    InsufficientScope,
    NoPeerCertificate,
    PeerNotAllowed,
    ScopeMalformed,
    SignatureMissing,
    SignerMismatch,
    TrustError,
)
from trust.extension import ALGORITHMS, URI, Signatures, named
from trust.identity import AgentID, Caller, PeerIdentity
from trust.oauth.scopes import Calendar, Catalogue, satisfies
from trust.oauth.tokens import AccessToken, TokenValidator, bearer_token
from trust.peers import PeerVerifier
from trust.replay import ReplayGuard
from trust.signing.envelope import VerifiedMessage
from trust.signing.http import HEADER, authenticate_request, content_type_of, signature_of


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFacts:
    """What really arrived: nothing in it has been believed yet."""

    peer_chain: tuple[bytes, ...]  # DER, leaf first; empty where the peer presented no certificate
    method: str
    url: str  # absolute, as the caller addressed it, with the query: what signatures are about
    path: str  # decoded, as the application routes it: what a scope function must decide by
    headers: tuple[tuple[bytes, bytes], ...] = field(repr=False)  # names in lower case, as ASGI has them
    body: bytes = field(repr=False)
    now: datetime

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]

    def line(self, name: bytes) -> str:
        """All values of a header as one comma-separated line (RFC 9110 section 5.2); empty when absent."""
        return ", ".join(value.strip(b" \t").decode("latin-1") for value in self.values(name))


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePolicy:
    """Every decision that the gate needs, made once by the operator.

    Args:
        verifier: trust bundles and revocation lists, for check 1 and for signers that are not the peer.
        authorize: which agents may call at all.
        tokens: issuer, audience and keys of access tokens.
        audience: our own SPIFFE ID, or our origin URL outside any trust domain: the `aud` of messages to us.
        signatures: "required" refuses unsigned requests; "optional" accepts them, and still refuses bad signatures, and
            requests that name the extension for signed messages but lost theirs on the way.
        replay: remembers messages.
        scope: what a request needs: one scope for all, or a function of the request. It must decide by `facts.path`,
            which is what the application routes by; `facts.url` can spell one path in many ways.
        relays: for each peer that forwards messages of others: whose. Without an entry a peer speaks for itself only.
        catalogue: the declared scope hierarchy.
        calendars: the named calendars of time scopes.

    Raises:
        ConfigurationError: `authorize` is no rule; a key of `relays` is not an AgentID, or its value no rule.
    """

    verifier: PeerVerifier
    authorize: Authorizer
    tokens: TokenValidator
    audience: AgentID | str
    signatures: Signatures
    replay: ReplayGuard
    scope: str | Callable[[RequestFacts], str]
    relays: Mapping[AgentID, Authorizer] = field(default_factory=dict)
    catalogue: Catalogue | None = None
    calendars: Mapping[str, Calendar] = field(default_factory=dict)

    def __post_init__(self) -> None:
        a_rule(self.authorize)
        for relay, rule in self.relays.items():
            a_rule(rule)
            if not isinstance(relay, AgentID):  # another key would never match, and the relay be refused for ever
                raise ConfigurationError("relay", got=relay, expected="an AgentID", do="use AgentID.parse")


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The caller, and the signed request that an answer must be bound to (None where it was not signed)."""

    caller: Caller
    message: VerifiedMessage | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The error of the check that failed, and the request that the refusal may be signed for: authentic, remembered."""

    error: TrustError
    message: VerifiedMessage | None


def may_speak(peer: PeerIdentity | None, authorization: list[bytes], policy: GatePolicy) -> str:
    """The caller's token, where there is somebody who may call and a token at all.

    Asked before a body is read or a key fetched: nothing is spent on strangers. It proves nothing that `admit` does
    not prove again, with the checks in their order.

    Raises:
        NoPeerCertificate, PeerNotAllowed, TokenMissing, TokenRequestMalformed, TokenMalformed: as `admit`.
    """
    if peer is None:
        raise NoPeerCertificate("caller has no certificate", expected="an agent's certificate")
    policy.authorize.check(peer.agent_id)
    return bearer_token(authorization)


def admit(facts: RequestFacts, policy: GatePolicy) -> Admission:
    """Run the seven checks of this module's docstring; as `judge`.

    Raises:
        TrustError: the error of the first check that failed; its `check` names it.
    """
    found = judge(facts, policy)
    if isinstance(found, Refusal):
        raise found.error
    return found


def judge(facts: RequestFacts, policy: GatePolicy) -> Admission | Refusal:
    """Run the seven checks of this module's docstring.

    Not checked: whether the application allows this caller this act on this object; that is the application's.
    """
    message: VerifiedMessage | None = None
    try:
        # (1) peer. Verified in the handshake already; a connection outlives certificates, CRLs and allow-lists.
        peer = policy.verifier.verify(facts.peer_chain, now=facts.now, usage="client")
        policy.authorize.check(peer.agent_id)
        try:
            # (2) token and (3) binding: `validate` compares `cnf.x5t#S256` with this very peer.
            bearer = bearer_token(facts.values(b"authorization"))
            token = policy.tokens.validate(bearer, peer=peer, now=facts.now)
        except TrustError:
            with suppress(TrustError):  # the token's error is the one that decides
                message = _received(facts, policy, peer)
            raise
        # (4) signature, (5) signer, (6) replay
        message = _received(facts, policy, peer)
        # (7) scope
        _check_scope(token, facts, policy)
    except TrustError as error:
        return Refusal(error=error, message=message)
    return Admission(caller=_caller(peer, token, bearer, message), message=message)


def _received(facts: RequestFacts, policy: GatePolicy, peer: PeerIdentity) -> VerifiedMessage | None:
    """Checks 4 to 6; None where the request is not signed and need not be."""
    message = _message(facts, policy, peer)
    if message is not None:
        _check_signer(message.signer.agent_id, peer.agent_id, policy.relays)
        # Only what is authentic and allowed is remembered, so nobody else can burn an identifier.
        message.remember(policy.replay)
    return message


def _check_scope(token: AccessToken, facts: RequestFacts, policy: GatePolicy) -> None:
    """Check 7."""
    required = policy.scope if isinstance(policy.scope, str) else policy.scope(facts)
    try:
        granted = satisfies(
            token.scopes,
            required,
            policy.catalogue,
            issued_at=token.issued_at,
            now=facts.now,
            calendars=policy.calendars,
        )
    except ScopeMalformed as error:  # `required` is ours: a mistake of the configuration, and no reason to let pass
        raise ConfigurationError(f"gate's scope: {error}") from None
    if not granted:
        raise InsufficientScope(
            "token does not grant what the request needs",
            required=required,
            got=" ".join(token.scopes) or "no scope",
            expected=required,
            do="ask the authorization server for it",
        )


def _message(facts: RequestFacts, policy: GatePolicy, peer: PeerIdentity) -> VerifiedMessage | None:
    """Check 4. An unsigned request passes only where the policy says that signatures are optional.

    One that names the extension was sent with a signature, or its sender takes itself for signing.
    """
    extensions = named(facts.headers)
    if not facts.values(HEADER.lower().encode()):
        if policy.signatures == "optional" and URI not in extensions:
            return None
        raise SignatureMissing("request is not signed", expected=f"a {HEADER} header")
    return authenticate_request(
        signature_of(facts.headers),
        method=facts.method,
        url=facts.url,
        body=facts.body,
        audience=policy.audience,
        verifier=policy.verifier,
        peer=peer,
        now=facts.now,
        content_type=content_type_of(facts.headers, BindingMismatch),
        version=facts.line(b"a2a-version"),
        extensions=extensions,
        algorithms=ALGORITHMS,
    )


def _check_signer(signer: AgentID, peer: AgentID, relays: Mapping[AgentID, Authorizer]) -> None:
    """Check 5. A message of A that comes through B's channel is accepted only if B was configured to relay A."""
    if signer == peer:
        return
    try:
        if peer in relays:
            relays[peer].check(signer)
            return
    except PeerNotAllowed:
        pass
    raise SignerMismatch(
        "message is signed by another agent than the one that sent it",
        got=signer,
        expected=str(peer),
        do="configure the sender as a relay if it may forward this agent's messages",
    )


def _caller(peer: PeerIdentity, token: AccessToken, bearer: str, message: VerifiedMessage | None) -> Caller:
    return Caller(
        peer=peer,
        subject=token.subject,
        actors=token.actors,
        client_id=token.client_id,
        scopes=token.scopes,
        token_id=token.token_id,
        issued_at=token.issued_at,
        expires_at=token.expires_at,
        access_token=bearer,
        signer=message.signer.agent_id if message else None,
        message_id=message.message_id if message else None,
    )
