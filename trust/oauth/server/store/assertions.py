"""Which assertions of other authorization servers were used, so that each is used once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from trust.errors import AssertionUsed
from trust.oauth.server.store.schema import ASSERTIONS, seconds_of

PURGE_BATCH = 16  # expired rows that each insertion removes: more than the one it adds, so the table shrinks
# After its end by the clock of one server: by that of another one, with the same database, it may not have ended.
KEPT_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedAssertion:
    """An assertion, by what its issuer has signed. Its text would be no name for it: signatures are malleable."""

    issuer: str
    token_id: str  # `jti`
    expires_at: datetime


def use_assertion(connection: sa.Connection, assertion: UsedAssertion, *, now: datetime) -> None:
    """Remember an assertion until after its end, in the transaction that records the token that is issued for it.

    Raises:
        AssertionUsed: it was used before, by whichever process of this server. The transaction must not go on.
    """
    # No issuer has a line break, so no two pairs have one name; and neither length nor content is an attacker's.
    name = hashlib.sha256(f"{assertion.issuer}\n{assertion.token_id}".encode()).hexdigest()
    ended = sa.select(ASSERTIONS.c.name).where(ASSERTIONS.c.expires_at < seconds_of(now) - KEPT_SECONDS)
    # What another transaction is busy with goes another time.
    expired = ended.limit(PURGE_BATCH).with_for_update(skip_locked=True)
    connection.execute(sa.delete(ASSERTIONS).where(ASSERTIONS.c.name.in_(expired)))
    try:
        connection.execute(sa.insert(ASSERTIONS).values(name=name, expires_at=seconds_of(assertion.expires_at)))
    except sa.exc.IntegrityError:
        raise AssertionUsed("assertion was used before", got=assertion.token_id, do="ask for a new one") from None
