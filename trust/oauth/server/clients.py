"""Who may ask the authorization server for tokens, and for which: a declared list, in TOML or in Python.

A client authenticates by the one SPIFFE ID in its certificate (RFC 8705 section 2.1.2, `tls_client_auth_san_uri`);
there is no other subject field to match. A secret is never enough, and may be asked for besides (`registrations`).

    [[client]]
    client_id = "spiffe://fleet.example/billing"        # by default the SPIFFE ID
    agent_id = "spiffe://fleet.example/billing"
    scopes = ["read:rates"]                             # for itself (client credentials)
    exchange_scopes = ["read:ledger.*"]                 # for others, whose tokens it exchanges
    resources = ["spiffe://fleet.example/ledger"]       # whom its tokens may be for
    assertion_audiences = ["https://auth.partner.example"]  # servers that it may take its callers' authority to
    lifetime_seconds = 600

    [[client]]
    agent_id = "spiffe://fleet.example/workers/*"       # many agents: `patterns`; each is a client by its own SPIFFE ID
    scopes = ["read:rates"]
    resources = ["spiffe://fleet.example/billing"]
"""

from __future__ import annotations

import contextlib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path

from trust.credentials import read_bounded
from trust.errors import ConfigurationError, IdentityError, ScopeMalformed
from trust.identity import AgentID
from trust.oauth.metadata import check_issuer, is_resource
from trust.oauth.scopes import Catalogue, broad, delegate_scope, parse
from trust.oauth.server.client_secrets import SecretDigest
from trust.oauth.server.patterns import AgentPattern
from trust.oauth.tokens import MAX_LIFETIME

RULES = ("policy", "includes", "calendar", "approval")  # of the file: for `rules`
_OTHERS = ("partner", *RULES)
DEFAULT_LIFETIME = timedelta(minutes=10)

_CLIENT_ID = re.compile(r"[\x21-\x7e]{1,2048}")  # RFC 6749 appendix A.1, without the space


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What a client may have.

    Args:
        scopes: for itself, by client credentials.
        exchange_scopes: on behalf of others, by token exchange; never more than their token grants.
        resources: the audiences that its tokens may be for: SPIFFE IDs or absolute URIs without fragment (RFC 8707).
        audiences: the names under which it is itself the audience of tokens; it can exchange only those that were
            sent to it. By default its SPIFFE ID.
        assertion_audiences: the issuers of other trust domains that it may take a caller's authority to (identity
            chaining); it needs `exchange_scopes`, too.
        assertion_scopes: of an agent of another trust domain: what it may have here by an assertion of its own server,
            for those that the assertion speaks for.
        lifetime: of its tokens, at most 30 minutes; the cap of its parent, time scopes and certificate come on top.
    """

    scopes: tuple[str, ...] = ()
    exchange_scopes: tuple[str, ...] = ()
    resources: tuple[str, ...]
    audiences: tuple[str, ...] = ()
    assertion_audiences: tuple[str, ...] = ()
    assertion_scopes: tuple[str, ...] = ()
    lifetime: timedelta = DEFAULT_LIFETIME


@dataclass(frozen=True, slots=True, kw_only=True)
class Client(Rights):
    """One agent that may ask for tokens.

    Args:
        agent_id: the SPIFFE ID of its certificate.
        client_id: its OAuth name; by default the SPIFFE ID.
        secrets: of which it has to give one beside its certificate; an empty list, and it is never authenticated. None
            where it has no second factor, and then it must not come with one.
        scopes and all others: its `Rights`.

    Raises:
        ConfigurationError: a value that no token could be issued for.
    """

    agent_id: AgentID
    client_id: str = ""
    secrets: tuple[SecretDigest, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.client_id:
            object.__setattr__(self, "client_id", str(self.agent_id))
        if not self.audiences:
            object.__setattr__(self, "audiences", (str(self.agent_id),))
        if not _CLIENT_ID.fullmatch(self.client_id):
            raise self._wrong("client_id", self.client_id, "1-2048 printable ASCII characters without spaces")
        if not self.scopes and not self.exchange_scopes and not self.assertion_scopes:
            raise self._wrong("scopes", "none", "at least one in scopes, exchange_scopes or assertion_scopes")
        if not self.resources and not self.assertion_audiences:
            raise self._wrong("resources", "none", "at least one resource")
        for issuer in self.assertion_audiences:
            check_issuer(issuer)
        if self.assertion_audiences and not self.exchange_scopes:
            raise self._wrong("assertion_audiences", "no exchange_scopes", "some: an assertion is for somebody else")
        for uri in (*self.resources, *self.audiences):
            if not is_resource(uri):
                raise self._wrong("resource", uri, "an absolute URI without fragment")
        if not timedelta(0) < self.lifetime <= MAX_LIFETIME:
            raise self._wrong("lifetime", self.lifetime, f"more than 0 and at most {MAX_LIFETIME}")
        # Of the last one: otherwise no caller could ever consent.
        own_name = [delegate_scope(self.agent_id)] if self.exchange_scopes else []
        for text in (*self.scopes, *self.exchange_scopes, *self.assertion_scopes, *own_name):
            try:
                parse(text)
            except ScopeMalformed as error:
                raise ConfigurationError(f"client {self.client_id}: {error}") from None

    @property
    def path(self) -> tuple[str, ...]:
        """Of its SPIFFE ID: by that it is named in `delegate:eu/billing`."""
        return tuple(self.agent_id.path[1:].split("/"))

    def notes(self, catalogue: Catalogue | None = None) -> list[str]:
        """What an operator should look at twice before granting it."""
        return [
            f"{self.client_id}: {member}: {line}"
            for member in ("scopes", "exchange_scopes", "assertion_scopes")
            for line in broad(getattr(self, member), catalogue)
        ]

    def _wrong(self, what: str, got: object, expected: str) -> ConfigurationError:
        return ConfigurationError(f"client {self.client_id}: {what}", got=got, expected=expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPattern(Rights):
    """Many agents with the same rights. Each is a client by its own SPIFFE ID, and has no second factor.

    Raises:
        ConfigurationError: as `Client`.
    """

    pattern: AgentPattern

    def __post_init__(self) -> None:
        self._client(self.pattern.example, self.client_id)

    @property
    def client_id(self) -> str:
        """Its name in a list; no agent's."""
        return str(self.pattern)

    @property
    def path(self) -> tuple[str, ...]:
        return self.pattern.segments

    def client(self, agent: AgentID) -> Client:
        """The client that one of these agents is.

        Raises:
            ConfigurationError: its SPIFFE ID has no `delegate:X`, which exchanging clients need.
        """
        return self._client(agent, str(agent))

    def notes(self, catalogue: Catalogue | None = None) -> list[str]:
        every = [f"{self.client_id}: is every agent of {self.pattern.trust_domain}"]
        found = self._client(self.pattern.example, self.client_id).notes(catalogue)
        return (every if self.pattern.is_whole_domain else []) + found

    def _client(self, agent: AgentID, client_id: str) -> Client:
        rights = {f.name: getattr(self, f.name) for f in fields(Rights)}
        return Client(agent_id=agent, client_id=client_id, **rights)


class ClientRegistry:
    """All clients of one authorization server. Also a `Source` of itself, for a list that never changes.

    An agent that is registered by itself is so before any pattern. Patterns that overlap are refused, so that no
    agent's rights depend on an order.
    """

    def __init__(self, clients: Iterable[Client | ClientPattern]) -> None:
        self._by_client_id: dict[str, Client] = {}
        self._agents: set[AgentID] = set()
        self._delegates: dict[tuple[str, ...], Client] = {}  # those that exchange tokens, by their path
        self._patterns: dict[str, list[ClientPattern]] = {}  # by their trust domain
        self._refused: set[str] = set()  # names, and patterns as they are written
        self._stopped: list[AgentPattern] = []  # all of whose agents are disabled
        for client in clients:
            if problem := self._add(client):
                raise problem

    @classmethod
    def of(cls, *clients: Client | ClientPattern) -> ClientRegistry:
        """A registry of these clients.

        Raises:
            ConfigurationError: none, one twice, patterns that overlap, or two that share a name for delegation.
        """
        if not clients:
            raise ConfigurationError("no clients", expected="at least one client")
        return cls(clients)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ClientRegistry:
        """Read a TOML file of `[[client]]` tables, as in this module's docstring.

        Raises:
            ConfigurationError: (or its CredentialsError) unreadable, unknown members, or values as in `Client`.
        """
        return cls.from_toml(read_bounded(Path(path)), str(path))

    @classmethod
    def from_toml(cls, text: bytes, name: str) -> ClientRegistry:
        """As `load`, of the content of the file `name`."""
        try:
            document = tomllib.loads(text.decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{name} is not TOML", got=error, expected="[[client]] tables") from None
        for member in _OTHERS:
            document.pop(member, None)
        tables = document.pop("client", None)
        if document or not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
            raise ConfigurationError(f"{name}", got=", ".join(document) or "no client", expected="[[client]] tables")
        return cls.of(*(client_of(table, number) for number, table in enumerate(tables, 1)))

    def joined(
        self, others: Iterable[Client | ClientPattern], disabled: Iterable[str]
    ) -> tuple[ClientRegistry, list[str]]:
        """This list and another one, without those who are disabled; and what is wrong with the two together.

        What contradicts is refused, and neither list wins: an agent that is in both gets nothing.

        Args:
            disabled: names of clients and agents, and patterns: those disable every agent that they name, also one
                that is registered by itself.
        """
        both, problems = ClientRegistry(()), []
        for mine in self._entries():
            both._add(mine)
        for other in others:
            if problem := both._add(other):
                problems.append(f"{problem}; it is refused until one of them is gone")
                both._refused.add(other.client_id)
                if isinstance(other, ClientPattern):
                    both._keep(other)  # an agent that two patterns name is refused
                else:
                    both._refused.add(str(other.agent_id))
        for name in disabled:
            both._refused.add(name)
            with contextlib.suppress(IdentityError):  # most are names, and no patterns
                both._stopped.append(AgentPattern.parse(name))
        return both, problems

    def find(self, client_id: str) -> Client | None:
        """The client of that name; None for one that is disabled, or that two registrations speak of."""
        client = self._by_client_id.get(client_id) or self._of_a_pattern(client_id)
        if client is None or client.client_id in self._refused or str(client.agent_id) in self._refused:
            return None
        if any(pattern.matches(client.agent_id) for pattern in self._stopped):
            return None
        return client

    def notes(self, catalogue: Catalogue | None = None) -> list[str]:
        """What an operator should look at twice, such as wildcards; allowed, but never silently."""
        return [note for entry in self._entries() for note in entry.notes(catalogue)]

    def current(self) -> ClientRegistry:
        return self

    def _entries(self) -> Iterable[Client | ClientPattern]:
        yield from self._by_client_id.values()
        for patterns in self._patterns.values():
            yield from patterns

    def _of_a_pattern(self, client_id: str) -> Client | None:
        try:
            agent = AgentID.parse(client_id)
        except IdentityError:
            return None
        found = [p for p in self._patterns.get(agent.trust_domain, ()) if p.pattern.matches(agent)]
        # One that is registered by itself may have another client_id, or be disabled: no pattern is a way around that.
        if agent in self._agents or len(found) != 1 or found[0].client_id in self._refused:
            return None
        try:
            return found[0].client(agent)
        except ConfigurationError:
            return None

    def _add(self, client: Client | ClientPattern) -> ConfigurationError | None:
        """Take it up, or say why not."""
        if isinstance(client, ClientPattern):
            for other in self._patterns.get(client.pattern.trust_domain, ()):
                if other.pattern.overlaps(client.pattern):
                    return ConfigurationError(
                        "two patterns can be the same agent",
                        got=f"{other.pattern} and {client.pattern}",
                        expected="patterns that do not overlap",
                    )
        elif client.client_id != str(client.agent_id) and (
            client.client_id.startswith("spiffe:") or "*" in client.client_id
        ):
            # Whoever disables that agent or those of that pattern, or looks for them in the audit trail, means others.
            return ConfigurationError(
                f"client_id of {client.agent_id}",
                got=client.client_id,
                expected="its SPIFFE ID, or a name that is no SPIFFE ID and no pattern",
            )
        elif client.client_id in self._by_client_id or client.agent_id in self._agents:
            return ConfigurationError("client is registered twice", got=client.client_id, expected="each agent once")
        if client.exchange_scopes and (namesake := self._namesake(client)):
            # Otherwise `delegate:billing` would mean the billing agents of two trust domains at once.
            return ConfigurationError(
                "two clients that exchange tokens have one name",
                got=f"{namesake} and {client.client_id}",
                expected="different paths in their SPIFFE IDs",
            )
        self._keep(client)
        return None

    def _keep(self, client: Client | ClientPattern) -> None:
        if isinstance(client, ClientPattern):
            self._patterns.setdefault(client.pattern.trust_domain, []).append(client)
            return
        self._by_client_id[client.client_id] = client
        self._agents.add(client.agent_id)
        if client.exchange_scopes:
            self._delegates[client.path] = client

    def _namesake(self, client: Client | ClientPattern) -> str | None:
        """Who has its name for delegation in another trust domain."""
        if isinstance(client, Client):
            if same := self._delegates.get(client.path):
                return same.client_id
            domain = client.agent_id.trust_domain
        else:
            domain = client.pattern.trust_domain
            for other in self._delegates.values():
                if other.agent_id.trust_domain != domain and client.pattern.shares_path(other.path):
                    return other.client_id
        for elsewhere, patterns in self._patterns.items():
            for other_pattern in patterns if elsewhere != domain else ():
                if other_pattern.exchange_scopes and other_pattern.pattern.shares_path(client.path):
                    return other_pattern.client_id
        return None


_TEXTS = ("scopes", "exchange_scopes", "resources", "audiences", "assertion_audiences", "assertion_scopes")
_MEMBERS = {f.name for f in fields(Client)} - {"lifetime", "secrets"} | {"lifetime_seconds"}


def client_of(table: Mapping[str, object], number: int = 1) -> Client | ClientPattern:
    """A client as a table of TOML, or an object of JSON.

    Raises:
        ConfigurationError: a member is missing, unknown or of another kind; or as in `Client`.
    """
    name = table.get("client_id") or table.get("agent_id") or number
    if unknown := table.keys() - _MEMBERS:
        # A misspelt limit must not be a limit that silently is not there.
        expected = "some of " + ", ".join(sorted(_MEMBERS))
        raise ConfigurationError(f"client {name}: unknown members", got=", ".join(sorted(unknown)), expected=expected)
    if "agent_id" not in table:
        raise ConfigurationError(f"client {name}: agent_id is missing", expected="its SPIFFE ID")
    texts: dict[str, tuple[str, ...]] = {}
    for member in _TEXTS:
        value = table.get(member, [])
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise ConfigurationError(f"client {name}: {member}", got=value, expected="a list of strings")
        texts[member] = tuple(value)
    seconds = table.get("lifetime_seconds", int(DEFAULT_LIFETIME.total_seconds()))
    longest = int(MAX_LIFETIME.total_seconds())
    if type(seconds) is not int or not 0 < seconds <= longest:
        raise ConfigurationError(f"client {name}: lifetime_seconds", got=seconds, expected=f"1 to {longest}")
    client_id, agent = table.get("client_id", ""), table["agent_id"]
    if not isinstance(client_id, str):
        raise ConfigurationError(f"client {name}: client_id", got=client_id, expected="a string")
    lifetime = timedelta(seconds=seconds)
    try:
        if isinstance(agent, str) and "*" in agent:
            if client_id:
                raise ConfigurationError(
                    f"client {name}: client_id", got="one for many agents", expected="none: their own SPIFFE IDs"
                )
            return ClientPattern(pattern=AgentPattern.parse(agent), lifetime=lifetime, **texts)
        agent_id = AgentID.parse(agent)  # type: ignore[arg-type]  # parse refuses other types
    except IdentityError as error:
        raise ConfigurationError(f"client {name}: agent_id: {error}") from None
    return Client(agent_id=agent_id, client_id=client_id, secrets=None, lifetime=lifetime, **texts)
