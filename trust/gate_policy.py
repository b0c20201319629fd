"""What the gate judges by: what really arrived, and every decision that the operator has made."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from trust.authorize import Authorizer, a_rule
from trust.errors import ConfigurationError, must_be, must_have
from trust.extension import Signatures
from trust.identity import AgentID, PeerIdentity
from trust.oauth import dpop
from trust.oauth.calendars import Calendar, check_calendars
from trust.oauth.claims import AccessToken
from trust.oauth.operations import SkillScopes
from trust.oauth.policy import Permit
from trust.oauth.scopes import Catalogue, check_rules
from trust.oauth.tokens import Binding
from trust.peers import PeerVerifier
from trust.replay import ReplayGuard


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


class TokenRules(Protocol):
    """What is asked about tokens: `TokenValidator`, or `TokenValidators` where there are several issuers."""

    @property
    def issuers(self) -> tuple[str, ...]: ...

    @property
    def audience(self) -> str: ...

    @property
    def bindings(self) -> frozenset[Binding]: ...

    async def prepare(self, token: str, *, now: datetime) -> None: ...

    def validate(
        self, token: str, *, peer: PeerIdentity | None, now: datetime, proof: dpop.Proof | None
    ) -> AccessToken: ...

    async def check_denylist(self, issuer: str, token_id: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePolicy:
    """Every decision that the gate needs, made once by the operator.

    Args:
        verifier: trust bundles and revocation lists, for check 1 and for signers that are not the peer.
        authorize: which agents may call at all.
        tokens: issuers, audience, keys and bindings of access tokens.
        audience: our own SPIFFE ID, or our origin URL outside any trust domain: the `aud` of messages to us.
        signatures: "required" refuses unsigned requests; "optional" accepts them, and still refuses bad signatures, and
            requests that name the extension for signed messages but lost theirs on the way.
        replay: remembers messages, and the proofs of tokens.
        scope: what a request needs: one scope for all (or several, space-delimited), a `SkillScopes` for A2A's
            operations and the agent's skills, or a function of the request. It must decide by `facts.path`, which is
            what the application routes by; `facts.url` can spell one path in many ways.
        relays: for each peer that forwards messages of others, or requests with their tokens (DPoP): whose. Without an
            entry a peer speaks for itself only.
        catalogue: the declared scope hierarchy.
        calendars: the named calendars of time scopes.
        approvals: what needs a scope that meets one of these, directly or through the catalogue, needs a token that a
            person has approved (RFC 9470), whatever the authorization server's own rules are. How long ago is bounded
            by the token's lifetime.
        permit: a policy for what scopes cannot say, asked where they suffice (`trust.oauth.policy`).

    Raises:
        ConfigurationError: `authorize` is no rule; a key of `relays` is not an AgentID, or its value no rule; `scope`,
            or one of `approvals`, is no scope, or a time scope; or another type, such as a file's name for a policy.
    """

    verifier: PeerVerifier
    authorize: Authorizer
    tokens: TokenRules
    audience: AgentID | str
    signatures: Signatures
    replay: ReplayGuard
    scope: str | SkillScopes | Callable[[RequestFacts], str]
    relays: Mapping[AgentID, Authorizer] = field(default_factory=dict)
    catalogue: Catalogue | None = None
    calendars: Mapping[str, Calendar] = field(default_factory=dict)
    approvals: Collection[str] = ()
    permit: Permit | None = None

    def __post_init__(self) -> None:
        a_rule(self.authorize)
        must_have("tokens", self.tokens, "check_denylist", expected="a TokenValidator")
        must_have("replay", self.replay, "remember", expected="a replay guard", do="use one of trust.replay")
        if isinstance(self.scope, str):
            check_rules(self.scope.split(" "), "gate's scope")
        elif not isinstance(self.scope, SkillScopes):
            must_have("scope", self.scope, "__call__", expected="one scope, a SkillScopes or a function")
        if self.catalogue is not None:
            must_be("catalogue", self.catalogue, Catalogue, expected="a Catalogue", do="use Catalogue({...})")
        check_calendars(self.calendars)
        must_be("approvals", self.approvals, Collection, expected="a collection of scopes")
        check_rules(self.approvals, "approvals")
        object.__setattr__(self, "approvals", tuple(self.approvals))
        if self.permit is not None:
            must_have("permit", self.permit, "check", expected="a policy", do="use CedarPolicy.load(path)")
        must_be("relays", self.relays, Mapping, expected="{peer: rule}")
        for relay, rule in self.relays.items():
            a_rule(rule)
            if not isinstance(relay, AgentID):  # another key would never match, and the relay be refused for ever
                raise ConfigurationError("relay", got=relay, expected="an AgentID", do="use AgentID.parse")
