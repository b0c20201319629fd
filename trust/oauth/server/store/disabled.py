"""Who is disabled, for the transactions that record a token."""

from __future__ import annotations

from collections.abc import Set

import sqlalchemy as sa

from trust.errors import IdentityError
from trust.identity import AgentID
from trust.oauth.server.patterns import AgentPattern
from trust.oauth.server.store.schema import CLIENT_CHANGES, CLIENTS


def disabled_of(connection: sa.Connection, client_ids: Set[str]) -> frozenset[str]:
    """Those of the clients that are disabled, in the transaction that records tokens of theirs.

    Whoever was disabled since it was authenticated is among them, and gets none.
    """
    # A shared lock, where the database has them; SQLite has let us write, and so nobody else does.
    connection.execute(sa.select(CLIENT_CHANGES.c.number).with_for_update(read=True))
    chosen = sa.or_(CLIENTS.c.name.in_(sorted(client_ids)), _IS_PATTERN)
    names = connection.execute(sa.select(CLIENTS.c.name).where(CLIENTS.c.disabled, chosen)).scalars().all()
    return frozenset(c for c in client_ids if any(name == c or is_within(c, name) for name in names))


_IS_PATTERN = CLIENTS.c.name.contains("*", autoescape=True)


def is_within(client_id: str, pattern: str) -> bool:
    try:
        return AgentPattern.parse(pattern).matches(AgentID.parse(client_id))
    except IdentityError:
        return False
