"""Clients that were registered by command, the digests of their secrets, and who is disabled.

Every change is one transaction that no token is recorded in the midst of (`CLIENT_CHANGES`): whoever is disabled holds
no token afterwards, and gets none, from whichever process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from trust.errors import ClientNotRegistered, ConfigurationError, IdentityError
from trust.identity import AgentID
from trust.oauth.server.clients import AgentPattern
from trust.oauth.server.store.decisions import Operator, note
from trust.oauth.server.store.disabled import is_within
from trust.oauth.server.store.schema import CLIENT_CHANGES, CLIENT_SECRETS, CLIENTS, TOKENS, seconds_of, time_of
from trust.oauth.server.store.tokens import KEPT_SECONDS, revoke_chosen

_HOLDERS = (TOKENS.c.client_id, TOKENS.c.agent_id)  # an agent may be disabled by either name of it

HOLDERS_AT_ONCE = 500  # of tokens that are revoked together; a database takes only so many names in one statement
MAX_CLIENTS = 10_000  # of one server, and of the names that are disabled: as many agents are a pattern


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """One row. Without rights, it only says that somebody who is registered elsewhere is disabled."""

    name: str  # client_id, or a pattern
    rights: Mapping[str, Any] | None
    needs_secret: bool
    secrets: tuple[tuple[bytes, datetime | None], ...] = field(default=(), repr=False)  # digests, and their ends
    disabled: bool
    changed_at: datetime


class ClientTable:
    """Clients. Thread-safe; every method blocks, so call it from a worker thread."""

    def __init__(self, engine: sa.Engine, by: Operator | None = None) -> None:
        self._engine = engine
        self._by = by

    def changes(self) -> int:
        """How many there were so far: when it has grown, `all` says something else."""
        with self._engine.connect() as connection:
            return int(connection.execute(sa.select(CLIENT_CHANGES.c.number)).scalar_one())

    def all(self) -> tuple[Registered, ...]:
        """Every row, by name. Ask for `changes` first: what comes in between is then in here already."""
        with self._engine.connect() as connection:
            return tuple(_read(connection))

    def add(
        self,
        name: str,
        rights: Mapping[str, Any],
        *,
        digest: bytes | None,
        now: datetime,
        check: Callable[[Sequence[Registered]], None],
    ) -> None:
        """Register a client.

        Args:
            digest: of its first secret; None where it needs none.
            check: raises when it does not go together with those that there are.

        Raises:
            ConfigurationError: it is there already, or there are too many.
        """
        with self._changing() as connection:
            rows = list(_read(connection))
            if any(row.name == name for row in rows):
                raise ConfigurationError(
                    f"client {name}", got="one of that name", expected="a new one", do="enable it, or remove it first"
                )
            if len(rows) >= MAX_CLIENTS:
                raise ConfigurationError(
                    "clients", got=len(rows), expected=f"at most {MAX_CLIENTS}", do="use a pattern"
                )
            check(rows)
            row = {"name": name, "rights": json.dumps(dict(rights)), "disabled": False, "changed_at": seconds_of(now)}
            connection.execute(sa.insert(CLIENTS).values(needs_secret=digest is not None, **row))
            if digest is not None:
                connection.execute(sa.insert(CLIENT_SECRETS).values(digest=digest.hex(), name=name))
            told = {k: " ".join(v) if isinstance(v, list) else v for k, v in rights.items()}
            # Its own scopes by the name of which the trail cuts nothing.
            told["scope"] = told.pop("scopes", "")
            note(connection, self._by, "client add", name, **told)

    def disable(self, name: str, *, now: datetime) -> int:
        """Refuse a client, or all that a pattern names, from now on, wherever it is registered, and revoke its tokens.

        Returns how many were revoked, with those that others have exchanged from them.

        Raises:
            IdentityError: it looks like a SPIFFE ID or a pattern, and is none; or it can be nobody's.
            ConfigurationError: there are too many.
        """
        if "*" in name:
            AgentPattern.parse(name)
        elif name.startswith("spiffe:"):  # misspelt, it would be nobody's, and the agent that is meant would go on
            AgentID.parse(name)
        elif not name or not name.isprintable():
            raise IdentityError("name of a client", got=name, expected="its SPIFFE ID, or its client_id")
        with self._changing() as connection:
            values = {"disabled": True, "changed_at": seconds_of(now)}
            if not connection.execute(sa.update(CLIENTS).values(values).where(CLIENTS.c.name == name)).rowcount:
                if connection.execute(sa.select(sa.func.count()).select_from(CLIENTS)).scalar_one() >= MAX_CLIENTS:
                    raise ConfigurationError("clients", got=MAX_CLIENTS, expected="fewer", do="remove some first")
                connection.execute(sa.insert(CLIENTS).values(name=name, needs_secret=False, **values))
            # By another clock, a server's or an agent's, one may live that has ended by ours.
            living = (TOKENS.c.expires_at > seconds_of(now) - KEPT_SECONDS,)
            holders = [name]
            if "*" in name:
                found = connection.execute(sa.select(*_HOLDERS).distinct().where(*living)).all()
                holders = sorted({one for row in found for one in row if one is not None and is_within(one, name)})
            # Nobody gets a token meanwhile, and each look goes through all tokens: so for many at a time.
            parts = [holders[n : n + HOLDERS_AT_ONCE] for n in range(0, len(holders), HOLDERS_AT_ONCE)]
            held = [sa.or_(*(column.in_(part) for column in _HOLDERS)) for part in parts]
            revoked = sum(revoke_chosen(connection, *living, by_it) for by_it in held)
            note(connection, self._by, "client disable", name, revoked=revoked)
            return revoked

    def enable(self, name: str, *, now: datetime) -> None:
        """Take a `disable` back; its revoked tokens stay revoked.

        Raises:
            ClientNotRegistered: nobody of that name is disabled.
        """
        with self._changing() as connection:
            disabled = (CLIENTS.c.name == name, CLIENTS.c.disabled)
            gone = connection.execute(sa.delete(CLIENTS).where(*disabled, CLIENTS.c.rights.is_(None))).rowcount
            values = {"disabled": False, "changed_at": seconds_of(now)}
            if not gone and not connection.execute(sa.update(CLIENTS).values(values).where(*disabled)).rowcount:
                raise ClientNotRegistered(f"client {name}", got="none of that name", expected="one that is disabled")
            note(connection, self._by, "client enable", name)

    def remove(self, name: str) -> None:
        """Forget a client that is disabled, and its secrets.

        Raises:
            ClientNotRegistered: none of that name is registered here and disabled.
        """
        with self._changing() as connection:
            chosen = sa.delete(CLIENTS).where(
                CLIENTS.c.name == name, CLIENTS.c.disabled, sa.not_(CLIENTS.c.rights.is_(None))
            )
            if not connection.execute(chosen).rowcount:
                # Its tokens have to die first, which `disable` sees to.
                enabled = (CLIENTS.c.name == name, sa.not_(CLIENTS.c.disabled))
                is_enabled = connection.execute(sa.select(CLIENTS.c.name).where(*enabled)).first() is not None
                raise ClientNotRegistered(
                    f"client {name}",
                    got="an enabled one" if is_enabled else "none that was registered by command",
                    expected="a registered one that is disabled",
                    do="disable it first" if is_enabled else "see `client list`",
                )
            connection.execute(sa.delete(CLIENT_SECRETS).where(CLIENT_SECRETS.c.name == name))
            note(connection, self._by, "client remove", name)

    def rotate_secret(self, name: str, digest: bytes, *, overlap: timedelta, now: datetime) -> None:
        """Give a client a new secret. The one before counts for `overlap` more, and all others end.

        Raises:
            ClientNotRegistered: no client of that name that needs a secret.
        """
        with self._changing() as connection:
            needs_one = sa.select(CLIENTS.c.name).where(CLIENTS.c.name == name, CLIENTS.c.needs_secret)
            if connection.execute(needs_one).first() is None:
                raise ClientNotRegistered(
                    f"client {name}",
                    got="none that needs a secret",
                    expected="one",
                    do="register it with --needs-secret",
                )
            of_it = CLIENT_SECRETS.c.name == name
            # At most two at a time: what was ending ends now.
            connection.execute(sa.delete(CLIENT_SECRETS).where(of_it, sa.not_(CLIENT_SECRETS.c.ends_at.is_(None))))
            if overlap > timedelta(0):
                connection.execute(sa.update(CLIENT_SECRETS).values(ends_at=seconds_of(now + overlap)).where(of_it))
            else:
                connection.execute(sa.delete(CLIENT_SECRETS).where(of_it))
            connection.execute(sa.insert(CLIENT_SECRETS).values(digest=digest.hex(), name=name))
            connection.execute(sa.update(CLIENTS).values(changed_at=seconds_of(now)).where(CLIENTS.c.name == name))
            note(connection, self._by, "client rotate-secret", name, old_ends_at=(now + overlap).isoformat())

    @contextmanager
    def _changing(self) -> Iterator[sa.Connection]:
        with self._engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                # In one queue with those who record tokens. For the row alone these would let one another in before us,
                # and a client that asks without end could not be disabled.
                connection.execute(sa.text(f"LOCK TABLE {CLIENT_CHANGES.name} IN EXCLUSIVE MODE"))
            # First, so that changes, and the tokens that are being recorded, wait for one another.
            connection.execute(sa.update(CLIENT_CHANGES).values(number=CLIENT_CHANGES.c.number + 1))
            yield connection


def _read(connection: sa.Connection) -> Iterator[Registered]:
    secrets: dict[str, list[tuple[bytes, datetime | None]]] = {}
    for row in connection.execute(sa.select(CLIENT_SECRETS)):
        ends_at = None if row.ends_at is None else _time(row.ends_at)
        secrets.setdefault(row.name, []).append((_digest(row.digest), ends_at))
    for row in connection.execute(sa.select(CLIENTS).order_by(CLIENTS.c.name)):
        yield Registered(
            name=row.name,
            rights=None if row.rights is None else _rights(row.rights),
            needs_secret=row.needs_secret,
            secrets=tuple(secrets.get(row.name, ())),
            disabled=row.disabled,
            changed_at=_time(row.changed_at),
        )


# One row that is damaged must not stop the clients of all others: what it says is such that it gets nothing.
def _rights(text: str) -> Mapping[str, Any]:
    try:
        rights = json.loads(text)
    except (ValueError, RecursionError):
        rights = None
    return rights if isinstance(rights, dict) else {"damaged": True}


def _digest(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


def _time(seconds: int) -> datetime:
    try:
        return time_of(seconds)
    except (ValueError, OverflowError, OSError):
        return time_of(0)
