"""Who may ask the authorization server for tokens, and for which: a declared list, in TOML or in Python.

A client authenticates by the one SPIFFE ID in its certificate (RFC 8705 section 2.1.2, `tls_client_auth_san_uri`);
there is no other subject field to match and no secret to steal.

    [[client]]
    client_id = "spiffe://fleet.example/billing"        # by default the SPIFFE ID
    agent_id = "spiffe://fleet.example/billing"
    scopes = ["read:rates"]                             # for itself (client credentials)
    exchange_scopes = ["read:ledger.*"]                 # for others, whose tokens it exchanges
    resources = ["spiffe://fleet.example/ledger"]       # whom its tokens may be for
    lifetime_seconds = 600
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path

from trust.credentials import read_bounded
from trust.errors import ConfigurationError, IdentityError, ScopeMalformed
from trust.identity import AgentID
from trust.oauth.metadata import is_resource
from trust.oauth.scopes import Scope, parse
from trust.oauth.tokens import MAX_LIFETIME

DEFAULT_LIFETIME = timedelta(minutes=10)

_CLIENT_ID = re.compile(r"[\x21-\x7e]{1,2048}")  # RFC 6749 appendix A.1, without the space


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One agent that may ask for tokens.

    Args:
        agent_id: the SPIFFE ID of its certificate.
        client_id: its OAuth name; by default the SPIFFE ID.
        scopes: what it may have for itself, by client credentials.
        exchange_scopes: what it may have on behalf of others, by token exchange; never more than their token grants.
        resources: the audiences that its tokens may be for: SPIFFE IDs or absolute URIs without fragment (RFC 8707).
        audiences: the names under which it is itself the audience of tokens; it can exchange only those that were
            sent to it. By default its SPIFFE ID.
        lifetime: of its tokens, at most 30 minutes; the cap of its parent, time scopes and certificate come on top.

    Raises:
        ConfigurationError: a value that no token could be issued for.
    """

    agent_id: AgentID
    client_id: str = ""
    scopes: tuple[str, ...] = ()
    exchange_scopes: tuple[str, ...] = ()
    resources: tuple[str, ...]
    audiences: tuple[str, ...] = ()
    lifetime: timedelta = DEFAULT_LIFETIME
    notes: tuple[str, ...] = field(init=False, compare=False)  # what an operator should look at twice

    def __post_init__(self) -> None:
        if not self.client_id:
            object.__setattr__(self, "client_id", str(self.agent_id))
        if not self.audiences:
            object.__setattr__(self, "audiences", (str(self.agent_id),))
        if not _CLIENT_ID.fullmatch(self.client_id):
            raise self._wrong("client_id", self.client_id, "1-2048 printable ASCII characters without spaces")
        if not self.scopes and not self.exchange_scopes:
            raise self._wrong("scopes", "none", "at least one in scopes or exchange_scopes")
        if not self.resources:
            raise self._wrong("resources", "none", "at least one resource")
        for uri in (*self.resources, *self.audiences):
            if not is_resource(uri):
                raise self._wrong("resource", uri, "an absolute URI without fragment")
        if not timedelta(0) < self.lifetime <= MAX_LIFETIME:
            raise self._wrong("lifetime", self.lifetime, f"more than 0 and at most {MAX_LIFETIME}")
        if self.exchange_scopes:
            self._scope(f"delegate:{self.delegate_name}")  # otherwise no caller could ever consent
        object.__setattr__(self, "notes", tuple(self._broad_grants()))

    @property
    def delegate_name(self) -> str:
        """The X of `delegate:X`: the path of the SPIFFE ID, so `spiffe://fleet.example/eu/billing` is `eu/billing`."""
        return self.agent_id.path[1:]

    def _broad_grants(self) -> list[str]:
        granted = [("scopes", s) for s in self.scopes] + [("exchange_scopes", s) for s in self.exchange_scopes]
        return [
            f"{self.client_id}: {member} holds the wildcard {text}"
            for member, text in granted
            if self._scope(text).has_wildcard
        ]

    def _scope(self, text: str) -> Scope:
        try:
            return parse(text)
        except ScopeMalformed as error:
            raise ConfigurationError(f"client {self.client_id}: {error}") from None

    def _wrong(self, what: str, got: object, expected: str) -> ConfigurationError:
        return ConfigurationError(f"client {self.client_id}: {what}", got=got, expected=expected)


class ClientRegistry:
    """All clients of one authorization server. Also a `Source` of itself, for a list that never changes."""

    def __init__(self, clients: tuple[Client, ...]) -> None:
        self._by_client_id: dict[str, Client] = {}
        agents: set[AgentID] = set()
        names: set[str] = set()
        for client in clients:
            if client.client_id in self._by_client_id or client.agent_id in agents:
                raise ConfigurationError("client is registered twice", got=client.client_id, expected="each agent once")
            # Otherwise `delegate:billing` would mean the billing agents of two trust domains at once.
            if client.exchange_scopes and client.delegate_name in names:
                raise ConfigurationError(
                    "two clients that exchange tokens have one name",
                    got=f"delegate:{client.delegate_name}",
                    expected="different paths in their SPIFFE IDs",
                )
            self._by_client_id[client.client_id] = client
            agents.add(client.agent_id)
            names.update([client.delegate_name] if client.exchange_scopes else [])
        if not clients:
            raise ConfigurationError("no clients", expected="at least one client")

    @classmethod
    def of(cls, *clients: Client) -> ClientRegistry:
        """A registry of these clients.

        Raises:
            ConfigurationError: none, one twice, or two that share a name for delegation.
        """
        return cls(clients)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ClientRegistry:
        """Read a TOML file of `[[client]]` tables, as in this module's docstring.

        Raises:
            ConfigurationError: (or its CredentialsError) unreadable, unknown members, or values as in `Client`.
        """
        try:
            document = tomllib.loads(read_bounded(Path(path)).decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path} is not TOML", got=error, expected="[[client]] tables") from None
        tables = document.pop("client", None)
        if document or not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
            raise ConfigurationError(f"{path}", got=", ".join(document) or "no client", expected="[[client]] tables")
        return cls(tuple(_client(table, number) for number, table in enumerate(tables, 1)))

    def find(self, client_id: str) -> Client | None:
        return self._by_client_id.get(client_id)

    @property
    def notes(self) -> tuple[str, ...]:
        """What an operator should look at twice, such as wildcards; allowed, but never silently."""
        return tuple(note for client in self._by_client_id.values() for note in client.notes)

    def current(self) -> ClientRegistry:
        return self


_TEXTS = ("scopes", "exchange_scopes", "resources", "audiences")
_MEMBERS = {f.name for f in fields(Client) if f.init} - {"lifetime"} | {"lifetime_seconds"}


def _client(table: dict[str, object], number: int) -> Client:
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
    client_id = table.get("client_id", "")
    if not isinstance(client_id, str):
        raise ConfigurationError(f"client {name}: client_id", got=client_id, expected="a string")
    try:
        agent_id = AgentID.parse(table.get("agent_id"))  # type: ignore[arg-type]  # parse refuses other types
    except IdentityError as error:
        raise ConfigurationError(f"client {name}: agent_id: {error}") from None
    return Client(
        agent_id=agent_id,
        client_id=client_id,
        scopes=texts["scopes"],
        exchange_scopes=texts["exchange_scopes"],
        resources=texts["resources"],
        audiences=texts["audiences"],
        lifetime=timedelta(seconds=seconds),
    )
