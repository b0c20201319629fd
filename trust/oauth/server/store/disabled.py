"""Who is disabled, for the transactions that record a token."""

from __future__ import annotations

from collections.abc import Set

import sqlalchemy as sa

from trust.errors import IdentityError
from trust.identity import AgentID
from trust.oauth.server.clients import AgentPattern
from trust.oauth.server.store.schema import CLIENT_CHANGES, CLIENTS


def disabled_of(connection: sa.Connection, clients: Set[str]) -> frozenset[str]:
    """Those of the clients that are disabled, in the transaction that records tokens of theirs.

    Whoever was disabled since it was authenticated is among them, and gets none.

    Args:
        clients: by each of their names: `client_id`, SPIFFE ID.
    """
    # A shared lock, where the database has them; SQLite has let us write, and so nobody else does.
    connection.execute(sa.select(CLIENT_CHANGES.c.number).with_for_update(read=True))
    chosen = sa.or_(CLIENTS.c.name.in_(sorted(clients)), _IS_PATTERN)
    names = connection.execute(sa.select(CLIENTS.c.name).where(CLIENTS.c.disabled, chosen)).scalars().all()
    return frozenset(c for c in clients if any(name == c or is_within(c, name) for name in names))


_IS_PATTERN = CLIENTS.c.name.contains("*", autoescape=True)


def is_within(name: str, pattern: str) -> bool:
    try:
        return AgentPattern.parse(pattern).matches(AgentID.parse(name))
    except IdentityError:
        return False
