"""Clients from two places as one list: those that are declared, and those that were registered by command.

Neither place wins. Who is in both, or contradicts the other place, gets nothing until one of them is gone; who is
disabled in the database is refused, wherever the registration is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from trust.errors import ConfigurationError
from trust.oauth.scopes import Catalogue
from trust.oauth.server.clients import BROKEN, Client, ClientPattern, ClientRegistry, SecretDigest, client_of
from trust.oauth.server.store.clients import ClientTable, Registered
from trust.sources import Source

logger = logging.getLogger("a2a_trust.oauth")


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
