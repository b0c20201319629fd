"""Who may be on the other end: a rule over SPIFFE IDs, given wherever a channel is opened or accepted.

A rule is a required argument everywhere. It refuses by raising `PeerNotAllowed`, so its result cannot be ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from trust.errors import ConfigurationError, PeerNotAllowed
from trust.identity import AgentID, trust_domain


class Authorizer(Protocol):
    def check(self, agent_id: AgentID) -> None:
        """Return for a peer that may connect; raise `PeerNotAllowed` for every other."""


def a_rule(given: Authorizer) -> Authorizer:
    """What was given as a rule, if it is one: told where a channel is made, and not to each peer.

    Raises:
        ConfigurationError: it is none.
    """
    if isinstance(given, type) or not callable(getattr(given, "check", None)):
        got = repr(given) if given is None or isinstance(given, str) else type(given).__name__
        raise ConfigurationError(
            "authorize", got=got, expected="a rule", do='use trust.exactly("spiffe://...") or trust.members_of(...)'
        )
    return given


@dataclass(frozen=True, slots=True)
class _Rule:
    """A predicate with the words that errors show."""

    allows: Callable[[AgentID], bool]
    description: str

    def check(self, agent_id: AgentID) -> None:
        if not self.allows(agent_id):
            raise PeerNotAllowed(
                "peer is not on the list",
                got=agent_id,
                expected=self.description,
                do="add it to the authorizer if it should be allowed",
            )

    def __str__(self) -> str:
        return self.description

    __repr__ = __str__


def exactly(*ids: str | AgentID) -> Authorizer:
    """Allow these SPIFFE IDs and no other."""
    wanted = frozenset(i if isinstance(i, AgentID) else AgentID.parse(i) for i in ids)
    if not wanted:
        raise ConfigurationError("empty allow-list", expected="at least one SPIFFE ID in exactly(...)")
    return _Rule(wanted.__contains__, " or ".join(sorted(map(str, wanted))))


def members_of(*trust_domains: str) -> Authorizer:
    """Allow every agent of these trust domains."""
    wanted = frozenset(trust_domain(d) for d in trust_domains)
    if not wanted:
        raise ConfigurationError("empty allow-list", expected="at least one trust domain in members_of(...)")
    return _Rule(lambda i: i.trust_domain in wanted, "a member of " + " or ".join(sorted(wanted)))


def any_of(*rules: Authorizer) -> Authorizer:
    """Allow what at least one of the rules allows."""
    if not rules:
        raise ConfigurationError("empty allow-list", expected="at least one rule in any_of(...)")
    for rule in rules:
        a_rule(rule)
    return _Rule(lambda i: any(allows(r, i) for r in rules), "any of (" + ", ".join(map(str, rules)) + ")")


def all_of(*rules: Authorizer) -> Authorizer:
    """Allow what every one of the rules allows."""
    if not rules:
        raise ConfigurationError("empty allow-list", expected="at least one rule in all_of(...)")
    for rule in rules:
        a_rule(rule)
    return _Rule(lambda i: all(allows(r, i) for r in rules), "all of (" + ", ".join(map(str, rules)) + ")")


def unsafe_allow_any_peer() -> Authorizer:
    """Allow every agent with a valid certificate of any trusted domain. Authorisation is then left to tokens alone."""
    return _Rule(lambda _: True, "any verified peer")


def allows(rule: Authorizer, agent_id: AgentID) -> bool:
    """Whether a rule allows a peer. Only for what is decided by it besides; who is to be refused, `check` refuses."""
    if isinstance(rule, _Rule):  # the same, without an error and its message for each no
        return rule.allows(agent_id)
    try:
        rule.check(agent_id)
    except PeerNotAllowed:
        return False
    return True
