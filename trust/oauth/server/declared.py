"""What the file of an authorization server declares: its clients, its partners, and what holds for all clients.

The file is TOML; `clients.registry`, `grants.partners` and `rules` show its tables. It is taken whole or not at all:
one that is broken in any part, or gone, leaves the last good declaration.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Generic, TypeVar

from trust.errors import ConfigurationError
from trust.files import WatchedFile
from trust.identity import AgentID
from trust.oauth.keys import KeySource, RemoteKeys
from trust.oauth.server.clients import ClientRegistry, clients_of
from trust.oauth.server.grants import FetchClient, Partners, partners_of
from trust.oauth.server.rules import RULES, Rules, rules_of
from trust.sources import Source

MAX_FILE_BYTES = 4 << 20  # some ten thousand clients

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """One reading of the file."""

    clients: ClientRegistry
    partners: Partners
    rules: Rules


class DeclaredFile:
    """The file, followed: what is written to it is in use about a second later, with no restart.

    Rules are those of the start: a file with others is held back as a whole, for a client that was written with them in
    mind must not be there without them.

    Args:
        path: of the file.
        http: makes the client that fetches a partner's keys from a URL: mutual TLS with the agent that the table
            names, or the web's PKI where it names none. It is called once for each; what it makes belongs to the event
            loop of the server. None where there is no such client: then the file must have no partner.

    Attributes:
        rules: of the start.
        clients, partners: a `Source` of each, for `create_app`; what they have now is of one reading.
        problem: what was wrong with the file at the last look, in one line; None when nothing was. Whoever asks for a
            part, or for `notes`, looks.

    Raises:
        ConfigurationError: (or its CredentialsError) unreadable, too large, no TOML, unknown or missing members, values
            as `Client`, `PartnerIssuer` and `Rules` do not take them, a scope of a calendar that is not there, or a
            partner and no `http`.
    """

    def __init__(self, path: str | os.PathLike[str], http: FetchClient | None) -> None:
        self._path = Path(path)
        # Kept when the file changes: keys that are known outlast a partner that is away.
        self._keys = None if http is None else cache(partial(_keys, http))
        self._first: tuple[Mapping[str, object], Rules] | None = None  # the tables of the rules, and what they say
        self._file = WatchedFile(self._path, self._read, limit=MAX_FILE_BYTES)
        self.rules = self._file.current().rules
        self.clients: Source[ClientRegistry] = _Part(self._file, lambda read: read.clients)
        self.partners: Source[Partners] = _Part(self._file, lambda read: read.partners)

    @property
    def problem(self) -> str | None:
        return self._file.problem

    def notes(self, domain: str = "") -> list[str]:
        """What an operator should look at twice in the file as it is now; looks at it.

        Args:
            domain: our own trust domain, where it is known.
        """
        read = self._file.current()
        nobody = f"{self._path} declares no client: only those that were registered by command get tokens"
        return [nobody] * read.clients.is_empty + read.partners.notes(domain)

    def _read(self, text: bytes) -> Declaration:
        """One reading, whole.

        1. it is TOML, without members that nobody knows
        2. its clients
        3. its rules, which stay those of the first reading; no client has a scope that they keep from everybody
        4. its partners
        """
        # 1.
        name = str(self._path)
        if not text.strip():  # an editor has begun to write it: who is declared must not be nobody meanwhile
            raise ConfigurationError(f"{name} is empty", expected="[[client]] tables, or a comment where there is none")
        try:
            document = tomllib.loads(text.decode())
        except (ValueError, RecursionError) as error:  # numbers and depths without end are none of TOML's errors
            raise ConfigurationError(f"{name} is not TOML", got=error, expected="[[client]] tables") from None
        if any("policy" in table for table in _tables(document)):  # TOML takes it for a member of the table above it
            raise ConfigurationError(f"{name}: policy belongs at the top", expected="before the first table")
        if unknown := [member for member in document if member not in ("client", "partner", *RULES)]:
            raise ConfigurationError(
                f"{name}: unknown members",
                got=", ".join(unknown),
                expected="[[client]], [[partner]], [[calendar]], [includes], [approval], policy",
            )
        # 2.
        clients = clients_of(document.get("client", []), name)
        # 3.
        tables = {member: document.get(member) for member in RULES}
        first, rules = self._first or (tables, rules_of(document, self._path))
        if tables != first:
            changed = ", ".join(member for member in RULES if tables[member] != first[member])
            raise ConfigurationError(
                f"{name}: rules have changed", got=changed, expected="those of the start", do="restart the server"
            )
        if never := clients.never(rules.calendars):
            raise ConfigurationError(f"{name}: {never[0]}", do="declare it, or mend the scope")
        # 4.
        partners = partners_of(document.get("partner", []), name, self._keys)
        self._first = first, rules
        return Declaration(clients=clients, partners=partners, rules=rules)


class _Part(Generic[T]):
    """One part of the declaration, as a `Source`."""

    def __init__(self, whole: Source[Declaration], part: Callable[[Declaration], T]) -> None:
        self._whole, self._part = whole, part

    def current(self) -> T:
        return self._part(self._whole.current())


def _keys(http: FetchClient, url: str, agent: AgentID | None) -> KeySource:
    return RemoteKeys(url, http(url, agent))


def _tables(document: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """Of a TOML file: those that are there once, and those that are there several times."""
    for value in document.values():
        for table in value if isinstance(value, list) else [value]:
            if isinstance(table, dict):
                yield table
