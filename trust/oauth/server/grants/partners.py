"""Other authorization servers whose word counts here: each is declared, and for no more than what it is declared for.

A client of a partner's trust domain brings an assertion of that partner, and gets a token of ours for it
(`trust.oauth.server.grants.assertions`). The TOML file of the clients holds the partners, too:

    [[partner]]
    issuer = "https://auth.partner.example"
    jwks_uri = "https://auth.partner.example/jwks"
    agent_id = "spiffe://partner.example/authority"     # who serves the keys; left out: a server of the web's PKI
    trust_domains = ["partner.example"]                 # whose subjects and actors it may speak for
    scopes = ["read:ledger.*"]                          # the most that it may bring
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import httpx

from trust.errors import ConfigurationError, IdentityError, ScopeMalformed
from trust.identity import AgentID, trust_domain
from trust.oauth.keys import KeySource
from trust.oauth.metadata import check_endpoint, check_issuer
from trust.oauth.scopes import parse

MAX_PARTNERS = 64  # a server that knows more is a hub, and wants a program that declares them


@dataclass(frozen=True, slots=True, kw_only=True)
class PartnerIssuer:
    """One other authorization server, and what it may say here.

    Args:
        issuer: its `iss`, exactly.
        keys: its public keys.
        trust_domains: whose agents it may name, as subject and as actor. Our own is never among them where it should
            not speak for our agents.
        scopes: the most that its assertions may bring, whatever they say; the client's registration comes on top.
        agent_id: who serves its keys; None for a server of the web's PKI. Only for `notes`: `keys` has verified it.

    Raises:
        ConfigurationError: (or its IdentityError) a malformed value, no trust domain or no scope.
    """

    issuer: str
    keys: KeySource = field(repr=False, compare=False)
    trust_domains: tuple[str, ...]
    scopes: tuple[str, ...]
    agent_id: AgentID | None = None

    def __post_init__(self) -> None:
        check_issuer(self.issuer)
        if not self.trust_domains or not self.scopes:
            raise ConfigurationError(
                f"partner {self.issuer}", got="no trust domain or no scope", expected="at least one of each"
            )
        try:
            for domain in self.trust_domains:
                trust_domain(domain)
            for scope in self.scopes:
                parse(scope)
        except (IdentityError, ScopeMalformed) as error:
            raise ConfigurationError(f"partner {self.issuer}: {error}") from None

    def notes(self, domain: str = "") -> list[str]:
        """What an operator should look at twice: right where one trust domain has two servers, and nowhere else.

        Args:
            domain: our own trust domain, where it is known.
        """
        found = []
        if domain in self.trust_domains:
            found.append(f"it may speak for the agents of {domain}, which is our own trust domain")
        if self.agent_id is not None and self.agent_id.trust_domain not in self.trust_domains:
            theirs = ", ".join(self.trust_domains)
            found.append(f"its keys are served by an agent of {self.agent_id.trust_domain}, and it speaks for {theirs}")
        return [f"partner {self.issuer}: {note}" for note in found]


class Partners:
    """All partners of one authorization server. Also a `Source` of itself, for a list that never changes."""

    def __init__(self, partners: Iterable[PartnerIssuer] = ()) -> None:
        """Raises:
        ConfigurationError: an issuer twice.
        """
        self._by_issuer: dict[str, PartnerIssuer] = {}
        for partner in partners:
            if partner.issuer in self._by_issuer:
                raise ConfigurationError("partner is declared twice", got=partner.issuer, expected="each issuer once")
            self._by_issuer[partner.issuer] = partner

    def find(self, issuer: str) -> PartnerIssuer | None:
        return self._by_issuer.get(issuer)

    def notes(self, domain: str = "") -> list[str]:
        """As `PartnerIssuer.notes`, of all of them."""
        return [note for partner in self._by_issuer.values() for note in partner.notes(domain)]

    def current(self) -> Partners:
        return self


FetchClient = Callable[[str, AgentID | None], httpx.AsyncClient]
_Keys = Callable[[str, AgentID | None], KeySource]


def partners_of(tables: object, name: str, keys: _Keys | None) -> Partners:
    """The partners that `[[partner]]` tables of a TOML file declare, as in this module's docstring.

    Args:
        tables: what the parsed file has under `partner`; an empty list for none.
        name: of the file.
        keys: makes the source of keys at a URL that the agent serves, or a server of the web's PKI where it is None.
            None where keys cannot be fetched: then there must be no partner.

    Raises:
        ConfigurationError: (or its IdentityError) not such tables, unknown or missing members, values as in
            `PartnerIssuer`, an issuer twice, or a partner and no `keys`.
    """
    if not isinstance(tables, list) or len(tables) > MAX_PARTNERS or not all(isinstance(t, dict) for t in tables):
        raise ConfigurationError(f"{name}: partner", expected=f"at most {MAX_PARTNERS} [[partner]] tables")
    if tables and keys is None:
        raise ConfigurationError(f"{name} has a partner", expected="none, where keys cannot be fetched")
    return Partners(_partner(table, number, keys) for number, table in enumerate(tables, 1) if keys is not None)


_REQUIRED = {"issuer": str, "jwks_uri": str, "trust_domains": list, "scopes": list}


def _partner(table: Mapping[str, object], number: int, keys: _Keys) -> PartnerIssuer:
    name = f"partner {table.get('issuer', number)}"
    members = _REQUIRED.keys() | {"agent_id"}
    if unknown := table.keys() - members:
        expected = "some of " + ", ".join(sorted(members))
        raise ConfigurationError(f"{name}: unknown members", got=", ".join(sorted(unknown)), expected=expected)
    for member, kind in _REQUIRED.items():
        value = table.get(member)
        if not isinstance(value, kind) or (isinstance(value, list) and not all(isinstance(v, str) for v in value)):
            expected = "a string" if kind is str else "a list of strings"
            raise ConfigurationError(f"{name}: {member}", got=value, expected=expected)
    try:
        agent_id = AgentID.parse(table["agent_id"]) if "agent_id" in table else None  # type: ignore[arg-type]  # parse refuses other types
    except IdentityError as error:
        raise ConfigurationError(f"{name}: agent_id: {error}") from None
    try:
        url = check_endpoint(str(table["jwks_uri"]))
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: jwks_uri: {error}") from None
    return PartnerIssuer(
        issuer=str(table["issuer"]),
        keys=keys(url, agent_id),
        trust_domains=tuple(table["trust_domains"]),  # type: ignore[arg-type]  # a list of strings: seen above
        scopes=tuple(table["scopes"]),  # type: ignore[arg-type]
        agent_id=agent_id,
    )
