"""Clients from two places as one list: those that are declared, and those that were registered by command.

Neither place wins. Who is in both, or contradicts the other place, gets nothing until one of them is gone; who is
disabled in the database is refused, wherever the registration is.
"""

from __future__ import annotations

import logging
import os
import threading
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from trust.errors import ConfigurationError
from trust.files import WatchedFile
from trust.oauth.calendars import calendars_of
from trust.oauth.scopes import Catalogue
from trust.oauth.server.clients import BROKEN, RULES, Client, ClientPattern, ClientRegistry, SecretDigest, client_of
from trust.oauth.server.store.clients import ClientTable, Registered
from trust.sources import Source

MAX_FILE_BYTES = 4 << 20  # of a file of clients: some ten thousand

logger = logging.getLogger("a2a_trust.oauth")


class WatchedClients:
    """The clients in a TOML file: a `Source` that follows it. A file that is broken or gone leaves the last good list.

    So does one with other rules (`trust.oauth.server.rules`) than it had at first: those are read once, and a client
    that was written with them in mind must not be there without them.

    Attributes:
        problem: what is wrong with the file now, in one line; None when nothing is.

    Raises:
        ConfigurationError: as `ClientRegistry.load`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._rules: Mapping[str, object] | None = None
        self._file = WatchedFile(Path(path), lambda text: self._read(text, str(path)), limit=MAX_FILE_BYTES)

    def current(self) -> ClientRegistry:
        return self._file.current()

    @property
    def problem(self) -> str | None:
        return self._file.problem

    def _read(self, text: bytes, name: str) -> ClientRegistry:
        registry = ClientRegistry.from_toml(text, name)
        document = tomllib.loads(text.decode())
        if never := registry.never(calendars_of(document.get("calendar", []))):
            raise ConfigurationError(f"{name}: {never[0]}", do="declare it, or mend the scope")
        rules = {member: document.get(member) for member in RULES}
        if self._rules is None:
            self._rules = rules
        if rules != self._rules:
            changed = ", ".join(member for member in RULES if rules[member] != self._rules[member])
            raise ConfigurationError(
                f"{name}: rules have changed", got=changed, expected="those of the start", do="restart the server"
            )
        return registry


class Registrations:
    """The list that a server goes by: a `Source` whose `current` asks the database, and so blocks.

    It is asked at every request, so that what one process changes holds in all of them at once.
    """

    def __init__(
        self,
        declared: Source[ClientRegistry],
        table: ClientTable,
        *,
        catalogue: Catalogue | None = None,
        calendars: Collection[str] = (),
    ) -> None:
        self._declared = declared
        self._table = table
        self._catalogue = catalogue
        self._calendars = calendars
        self._lock = threading.Lock()
        self._known: tuple[ClientRegistry, int, ClientRegistry] | None = None
        self._said: frozenset[str] = frozenset()

    def current(self) -> ClientRegistry:
        declared, changes = self._declared.current(), self._table.changes()
        known = self._known
        if known is not None and known[0] is declared and known[1] == changes:
            return known[2]
        with self._lock:
            known = self._known
            if known is None or known[0] is not declared or known[1] != changes:
                self._known = known = (declared, changes, self._joined(declared))
            return known[2]

    def _joined(self, declared: ClientRegistry) -> ClientRegistry:
        rows = self._table.all()
        clients, broken = registered_clients(rows)
        joined, contradictions = declared.joined(clients, [row.name for row in rows if row.disabled], broken)
        problems = [f"client {name}: {BROKEN}" for name in broken] + contradictions
        notes = [f"client registration to look at: {note}" for note in joined.notes(self._catalogue)]
        notes += [f"client registration to look at: {line}" for line in joined.never(self._calendars)]
        for line in (*problems, *notes):
            if line not in self._said:  # once, and not with every change of another client
                logger.warning("%s", line)
        self._said = frozenset((*problems, *notes))
        return joined


def registered_clients(rows: Iterable[Registered]) -> tuple[list[Client | ClientPattern], list[str]]:
    """The clients of the rows, and the names of those whose rows say nothing that can be used."""
    clients, broken = [], []
    for row in rows:
        if row.rights is None:
            continue
        try:
            client = client_of({**row.rights, "agent_id": row.name})
        except ConfigurationError:
            broken.append(row.name)
            continue
        if row.needs_secret:
            if isinstance(client, ClientPattern):  # `register` makes none
                broken.append(row.name)
                continue
            client = replace(client, secrets=tuple(SecretDigest(digest=d, ends_at=end) for d, end in row.secrets))
        clients.append(client)
    return clients, broken


def register(
    table: ClientTable, name: str, rights: Mapping[str, Any], *, digest: bytes | None, now: datetime
) -> Client | ClientPattern:
    """Register a client in the database; it goes together with all others there.

    Args:
        name: its SPIFFE ID, or a pattern.
        rights: the other members of a table of `clients`, but no `client_id`.
        digest: of its first secret, if it needs one.

    Raises:
        ConfigurationError: it does not, or no token could be issued for it.
    """
    client = client_of({**rights, "agent_id": name})
    if "client_id" in rights:
        raise ConfigurationError(f"client {name}: client_id", got=rights["client_id"], expected="none: its SPIFFE ID")
    if digest is not None and isinstance(client, ClientPattern):
        raise ConfigurationError(f"client {name}", got="a secret for many agents", expected="one agent")

    def check(rows: Sequence[Registered]) -> None:
        ClientRegistry([*registered_clients(rows)[0], client])

    table.add(client.client_id, rights, digest=digest, now=now, check=check)
    return client
