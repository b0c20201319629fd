"""The one page where the three proofs are joined: channel, authority, message. One identity, or no entry.

`judge` runs seven checks in this order, and the first that fails decides:

    (1) peer       the chain that the channel proved still verifies now, and its agent is allowed trust/peers.py
    (2) token      a valid access token, for us, in time, not revoked                             trust/oauth/tokens.py
    (3) binding    that token is bound to the certificate of (1), or to the key of a proof        trust/oauth/tokens.py
                   and the peer of (1) may forward its holder's requests                          trust/oauth/dpop.py
    (4) signature  the body, its type, method, target and receiver are what the signer signed     trust/signing/http.py
    (5) signer     the signer is the peer of (1), or an origin that this peer may relay for
    (6) replay     this message was never received before                                         trust/replay/
    (7) scope      the token grants what this request needs, now, and no policy forbids it        trust/oauth/scopes.py

A request has one signed answer. A refusal may be signed only where check 6 has remembered the request, so that it can
never be executed afterwards, and one that was executed is never refused under a signature: whoever sees a signed
refusal may ask again. For a token that was refused the checks 4 to 6 are made after it; whatever they find, the token
decides. Where they fail, the refusal goes out unsigned. A DPoP proof is verified before the token, and remembered after
it: where both are wrong, the proof decides.

Where a proxy ends TLS, the peer is that proxy. A token that is bound to a key alone (DPoP) is then its holder's, and
so must be the signature; the proxy needs an entry in `relays` for that agent. A proof is about method and target alone,
and the host of the target is the word of whoever sends it: where signatures are optional, the proxy is believed for the
rest of an unsigned request, and can take one whose token is for several resources to another of them.

Nothing here does IO: what the checks need from outside (keys of the issuer) has been fetched by `trust.middleware`,
which also sees to it that a replay guard that waits for its store holds up nobody else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import product

from trust.asgi import Headers
from trust.authorize import Authorizer
from trust.errors import (
    ApprovalMissing,
    BindingMismatch,
    ConfigurationError,
    IdentityError,
    InsufficientScope,
    NoPeerCertificate,
    PeerNotAllowed,
    ScopeMalformed,
    SignatureMissing,
    SignerMismatch,
    TokenRelayRefused,
    TrustError,
)
from trust.extension import ALGORITHMS, URI, named
from trust.gate_policy import GatePolicy, RequestFacts
from trust.identity import AgentID, Caller, PeerIdentity
from trust.oauth import dpop
from trust.oauth.calendars import TIME_PREFIX, unknown_calendars
from trust.oauth.claims import AccessToken
from trust.oauth.metadata import APPROVED
from trust.oauth.operations import SKILL_MEMBER, Operation, SkillScopes
from trust.oauth.policy import REQUEST, Question, ask
from trust.oauth.presented import Presented, presented_token
from trust.oauth.scopes import parse_scope_list, satisfies, touches
from trust.signing.envelope import VerifiedMessage
from trust.signing.http import HEADER, authenticate_request, content_type_of, signature_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The caller, and the signed request that an answer must be bound to (None where it was not signed).

    `issuer` is of the token; `operation` is what it asks for, where the policy's scope is a `SkillScopes`; `approved`,
    that a person has approved the token.
    """

    caller: Caller
    message: VerifiedMessage | None
    issuer: str
    operation: Operation | None = None
    approved: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The error of the check that failed, and the request that the refusal may be signed for: authentic, remembered."""

    error: TrustError
    message: VerifiedMessage | None


def may_speak(peer: PeerIdentity | None, headers: Headers, policy: GatePolicy) -> str:
    """The caller's token, where there is somebody who may call and a token at all.

    Asked before a body is read or a key fetched: nothing is spent on strangers. It proves nothing that `admit` does
    not prove again, with the checks in their order.

    Raises:
        NoPeerCertificate, PeerNotAllowed, TokenMissing, TokenRequestMalformed, TokenWithoutProof, ProofMalformed: as
            `admit`.
    """
    if peer is None:
        raise NoPeerCertificate("caller has no certificate", expected="an agent's certificate")
    policy.authorize.check(peer.agent_id)
    return _presented(headers, policy).token


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
            # (2) token and (3) binding: `validate` compares `cnf` with this very peer and this very proof.
            presented = _presented(facts.headers, policy)
            proof = _proof(presented, facts)
            token = policy.tokens.validate(presented.token, peer=peer, now=facts.now, proof=proof)
            holder = _holder(token, peer.agent_id, policy.relays)
            if proof is not None:
                proof.remember(policy.replay, now=facts.now)
        except TrustError:
            with suppress(TrustError):  # the token's error is the one that decides
                message = _received(facts, policy, peer, None)
            raise
        # (4) signature, (5) signer, (6) replay
        message = _received(facts, policy, peer, holder)
        # (7) scope
        operation = _check_scope(token, facts, policy)
        caller = _caller(peer, token, presented.token, message)
        for question in _questions(caller, holder, operation, facts, policy):
            ask(policy.permit, question)
    except TrustError as error:
        return Refusal(error=error, message=message)
    return Admission(caller=caller, message=message, issuer=token.issuer, operation=operation, approved=token.approved)


def _presented(headers: Headers, policy: GatePolicy) -> Presented:
    return presented_token(
        [value for name, value in headers if name == b"authorization"],
        proofs=[value for name, value in headers if name == b"dpop"],
        dpop="dpop" in policy.tokens.bindings,
    )


def _proof(presented: Presented, facts: RequestFacts) -> dpop.Proof | None:
    """Of check 3: what the caller's key has signed, where the token came by the scheme `DPoP`."""
    if presented.proof is None:
        return None
    return dpop.verify_proof(presented.proof, method=facts.method, url=facts.url, now=facts.now, token=presented.token)


def _holder(token: AccessToken, peer: AgentID, relays: Mapping[AgentID, Authorizer]) -> AgentID | None:
    """Of check 3: whose token it is where no certificate says so, and that the peer may forward for that agent."""
    if token.thumbprint:  # the peer's own: `validate` has compared
        return None
    with suppress(IdentityError, PeerNotAllowed):
        holder = AgentID.parse(token.holder)
        if holder == peer:
            return holder
        if peer in relays:
            relays[peer].check(holder)
            return holder
    raise TokenRelayRefused(
        "token is of another agent than the one that sent it",
        got=token.holder,
        expected=str(peer),
        do="configure the sender as a relay if it may forward this agent's requests",
    )


def _received(
    facts: RequestFacts, policy: GatePolicy, peer: PeerIdentity, holder: AgentID | None
) -> VerifiedMessage | None:
    """Checks 4 to 6; None where the request is not signed and need not be."""
    message = _message(facts, policy, peer)
    if message is not None:
        _check_signer(message.signer.agent_id, peer.agent_id, holder, policy.relays)
        # Only what is authentic and allowed is remembered, so nobody else can burn an identifier.
        message.remember(policy.replay)
    return message


def _check_scope(token: AccessToken, facts: RequestFacts, policy: GatePolicy) -> Operation | None:
    """Check 7, the policy's `permit` apart."""
    operation, needed_by = None, "the request"
    if isinstance(policy.scope, SkillScopes):
        operation = policy.scope.operation(method=facts.method, path=facts.path, body=facts.body)
        required = policy.scope.required(operation)
        if policy.scope.names_no_skill(operation):
            needed_by = f"a message without {SKILL_MEMBER} in its metadata"
    else:
        required = policy.scope if isinstance(policy.scope, str) else policy.scope(facts)
    try:
        check_granted(
            required,
            policy,
            scopes=token.scopes,
            issued_at=token.issued_at,
            approved=token.approved,
            now=facts.now,
            needed_by=needed_by,
        )
    except ScopeMalformed as error:  # `required` is ours: a mistake of the configuration, and no reason to let pass
        raise ConfigurationError(f"gate's scope: {error}") from None
    return operation


def check_granted(
    required: str,
    policy: GatePolicy,
    *,
    scopes: tuple[str, ...],
    issued_at: datetime,
    approved: bool,
    now: datetime,
    needed_by: str = "the request",
) -> None:
    """That a token grants these scopes now, and that a person has approved it where they need that.

    Args:
        scopes, issued_at, approved: of the token.
        needed_by: what needs them, for the reason in the trail.

    Raises:
        InsufficientScope, ApprovalMissing: it does not.
        ScopeMalformed: `required` is not what `satisfies` takes.
    """
    if not satisfies(scopes, required, policy.catalogue, issued_at=issued_at, now=now, calendars=policy.calendars):
        caveats = [scope for scope in scopes if scope.startswith(TIME_PREFIX)]
        others = [scope for scope in scopes if scope not in caveats]
        if satisfies(others, required, policy.catalogue, issued_at=issued_at, now=now):
            raise _not_now(required, caveats, policy)
        raise InsufficientScope(
            f"token does not grant what {needed_by} needs",
            required=required,
            got=" ".join(scopes) or "no scope",
            expected=required,
            do="ask the authorization server for it",
        )
    if not approved and touches(policy.approvals, parse_scope_list(required), policy.catalogue):
        raise ApprovalMissing(
            "no person has approved what the token grants",
            required=required,
            expected=f"a token with acr {APPROVED}",
            do="ask the authorization server with acr_values",
        )


def _not_now(required: str, caveats: list[str], policy: GatePolicy) -> InsufficientScope:
    """What is wrong where only the time scopes of a token do not allow it."""
    if unknown := unknown_calendars(caveats, policy.calendars):
        names = ", ".join(text.removeprefix(TIME_PREFIX) for text in unknown)
        return InsufficientScope(
            f"this gate has no calendar {names}", required=required, do="declare what it means: Gate(calendars=...)"
        )
    return InsufficientScope(
        "hours of the token are over", required=required, got=" ".join(caveats), do="ask again when they begin anew"
    )


def _questions(
    caller: Caller, holder: AgentID | None, operation: Operation | None, facts: RequestFacts, policy: GatePolicy
) -> Iterator[Question]:
    """One for all that the request may come to, and for all whose it is; each must be allowed.

    Whom a policy forbids something does not get it by way of a relay.
    """
    agents = dict.fromkeys((caller.agent_id, holder or caller.agent_id, caller.signer or caller.agent_id))
    acts: list[tuple[str, str | None]] = [(REQUEST, None)]
    if operation is not None and isinstance(policy.scope, SkillScopes):
        acts = policy.scope.acts(operation)
    for agent, (action, skill) in product(agents, acts):
        yield Question(
            agent=agent,
            action=action,
            resource=str(policy.audience),
            scopes=caller.scopes,
            subject=caller.subject,
            client=caller.client_id,
            actors=caller.actors,
            now=facts.now,
            skill=skill,
            path=facts.path,
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


def _check_signer(signer: AgentID, peer: AgentID, holder: AgentID | None, relays: Mapping[AgentID, Authorizer]) -> None:
    """Check 5. A message of A that comes through B's channel is accepted only if B was configured to relay A.

    Where the token is A's, and not B's, nobody else's message comes with it.
    """
    if signer == (holder or peer):
        return
    with suppress(PeerNotAllowed):
        if peer in relays and holder is None:
            relays[peer].check(signer)
            return
    raise SignerMismatch(
        "message is signed by another agent than the one that sent it",
        got=signer,
        expected=str(holder or peer),
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
