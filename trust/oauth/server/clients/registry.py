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
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from datetime import timedelta

from trust.errors import ConfigurationError, IdentityError
from trust.identity import AgentID
from trust.oauth.calendars import unknown_calendars
from trust.oauth.scopes import Catalogue
from trust.oauth.server.clients.client import DEFAULT_LIFETIME, Client, ClientPattern
from trust.oauth.server.clients.patterns import AgentPattern
from trust.oauth.tokens import MAX_LIFETIME

# Why nobody is found.
NOT_REGISTERED, DISABLED, BROKEN = "no such client", "disabled", "what the database says of it cannot be used"


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
        self._refused: dict[str, str] = {}  # names, and patterns as they are written, with the reason
        self._stopped: list[tuple[AgentPattern, str]] = []  # all of whose agents are refused, with the reason
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

    def joined(
        self, others: Iterable[Client | ClientPattern], disabled: Iterable[str], broken: Iterable[str] = ()
    ) -> tuple[ClientRegistry, list[str]]:
        """This list and another one, without those who are disabled; and what is wrong with the two together.

        What contradicts is refused, and neither list wins: an agent that is in both gets nothing.

        Args:
            disabled: names of clients and agents, and patterns: those disable every agent that they name, also one
                that is registered by itself.
            broken: the same, of those whose registration cannot be used.
        """
        both, problems = ClientRegistry(()), []
        for mine in self._entries():
            both._add(mine)
        for other in others:
            if problem := both._add(other):
                problems.append(f"{problem}; it is refused until one of them is gone")
                reason = f"{problem.failed}, in the file and in the database"
                both._refused[other.client_id] = reason
                if isinstance(other, ClientPattern):
                    both._keep(other)  # an agent that two patterns name is refused
                else:
                    both._refused[str(other.agent_id)] = reason
        for names, reason in ((disabled, DISABLED), (broken, BROKEN)):
            for name in names:
                both._refused[name] = reason
                with contextlib.suppress(IdentityError):  # most are names, and no patterns
                    both._stopped.append((AgentPattern.parse(name), reason))
        return both, problems

    def find(self, client_id: str) -> Client | None:
        """The client of that name; None for one that is disabled, or that two registrations speak of."""
        found = self._look_up(client_id)
        return found if isinstance(found, Client) else None

    def why_not(self, client_id: str) -> str:
        """Why `find` has none of that name, for the operator; empty where it has one."""
        found = self._look_up(client_id)
        return found if isinstance(found, str) else ""

    def notes(self, catalogue: Catalogue | None = None) -> list[str]:
        """What an operator should look at twice, such as wildcards; allowed, but never silently."""
        return [note for entry in self._entries() for note in entry.notes(catalogue)]

    def never(self, calendars: Collection[str]) -> list[str]:
        """Which scopes nobody will ever get, because the server has no calendar of that name; each in one line."""
        return [
            f"{entry.client_id}: {text}: no [[calendar]] of that name"
            for entry in self._entries()
            for text in unknown_calendars((*entry.scopes, *entry.exchange_scopes, *entry.assertion_scopes), calendars)
        ]

    def current(self) -> ClientRegistry:
        return self

    @property
    def is_empty(self) -> bool:
        return not (self._by_client_id or self._patterns)

    def _entries(self) -> Iterable[Client | ClientPattern]:
        yield from self._by_client_id.values()
        for patterns in self._patterns.values():
            yield from patterns

    def _look_up(self, client_id: str) -> Client | str:
        """The client, or why there is none."""
        client = self._by_client_id.get(client_id) or self._of_a_pattern(client_id)
        if isinstance(client, str):
            return client
        for name in (client.client_id, str(client.agent_id)):
            if name in self._refused:
                return self._refused[name]
        return next((reason for pattern, reason in self._stopped if pattern.matches(client.agent_id)), client)

    def _of_a_pattern(self, client_id: str) -> Client | str:
        try:
            agent = AgentID.parse(client_id)
        except IdentityError:
            return NOT_REGISTERED
        found = [p for p in self._patterns.get(agent.trust_domain, ()) if p.pattern.matches(agent)]
        # One that is registered by itself may have another client_id, or be disabled: no pattern is a way around that.
        if agent in self._agents:
            return "registered by another client_id than its SPIFFE ID"
        if len(found) > 1:
            return f"two patterns are this agent: {found[0].client_id} and {found[1].client_id}"
        if not found:
            return NOT_REGISTERED
        if found[0].client_id in self._refused:
            return self._refused[found[0].client_id]
        try:
            return found[0].client(agent)
        except ConfigurationError as error:
            return str(error)

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


def clients_of(tables: object, name: str) -> ClientRegistry:
    """The clients that `[[client]]` tables of a TOML file declare, as in this module's docstring.

    Args:
        tables: what the parsed file has under `client`; an empty list where it has none: its last client may be gone,
            and others are registered by command.
        name: of the file.

    Raises:
        ConfigurationError: not such tables, unknown or missing members, or values that `Client` and `ClientRegistry` do
            not take.
    """
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigurationError(f"{name}: client", expected="[[client]] tables")
    return ClientRegistry(client_of(table, number) for number, table in enumerate(tables, 1))


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
