"""The CA's memory: everything it has made and decided, in one database, with a ledger over all of it.

When a method that writes returns, what it wrote survives a crash of the process and of the machine, and the ledger's
entry for it stands in the same transaction. Safe for threads, and for several processes at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime

from cryptography import x509
from sqlalchemy import Connection, delete, insert, select, update

from pki import ledger
from pki.errors import DuplicateCertificate, PKIError, StateChanged, copied
from pki.records import Issue, IssuerRecord, PendingKey, Record, SealedHead, Settings, State, TokenRecord
from pki.store import changes, creation, lists, reading, rows
from pki.store.appending import Journal, Seal, seal_last
from pki.store.database import Database, intact, locate
from pki.store.guarding import Guard
from pki.store.issuing import issue
from pki.store.lists import Fresh, MakeDelta, MakeList
from pki.store.reading import Reads, Snapshot
from pki.store.schema import bans, issuers, pending_keys, settings, tokens

SHARD_BITS = 16  # 65,536 certificates share a revocation list: 3 MB if every one of them is revoked


class Store(Reads):
    """The database of one CA; `create` and `open` are the only doors."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # Signs tree heads; whoever has the CA's signing key sets it. Without it heads are written unsigned.
        self.seal: Seal | None = None
        settings = self.settings()
        self._trust_domain = settings.trust_domain
        self.guard = Guard(settings)
        self._covered: set[bytes] = set()
        self._size = self.ledger_size()

    @classmethod
    def create(
        cls,
        where: str | os.PathLike[str],
        settings: Settings,
        issuers: Sequence[IssuerRecord],
        records: Sequence[Record],
        *,
        now: datetime,
        seal: Seal | None = None,
    ) -> None:
        """Make the database of a new CA: all of it at once, or nothing.

        Args:
            seal: signs the first tree head. Without it nothing can be signed over it later, either.

        Raises:
            AuthorityExists: there is a CA in it already.
            StoreError: it cannot be made.
        """
        creation.create(locate(where), settings, issuers, records, now=now, seal=seal)

    @classmethod
    def open(cls, where: str | os.PathLike[str]) -> Store:
        """Open the database of a CA; one that is not there is not made.

        Raises:
            AuthorityMissing: there is none.
            SchemaOutdated: an earlier version of this program made it, and `upgrade` has not run.
            StoreError: it cannot be used, or a later version made it.
        """
        location = locate(where)
        creation.require(location)
        database = Database(location)
        try:
            with database.read() as connection:
                creation.check_version(connection)
            return cls(database)
        except BaseException:  # an interrupt, too
            database.close()
            raise

    def close(self) -> None:
        self._database.close()

    def _read(self) -> AbstractContextManager[Connection]:
        return self._database.read()

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """All that is asked of what it yields is answered as of one moment, whatever is written meanwhile."""
        with self._database.snapshot() as connection:
            yield Snapshot(connection)

    def check(self) -> None:
        """Write and read something that reaches the disk.

        Raises:
            StoreError: that is not possible now.
        """
        with self._database.write() as connection:
            connection.execute(update(settings).values(id=1))
        self.settings()

    def shard(self) -> int:
        """Which shard a certificate that is issued now belongs to."""
        return self._size >> SHARD_BITS

    def newest_shard(self) -> int:
        """As `shard`, once the other processes have been heard, that may have issued more than this one."""
        self._size = max(self._size, self.ledger_size())
        return self.shard()

    def issue(self, item: Issue) -> None:
        """Remember a certificate, durably, before anybody gets it.

        Raises:
            AuthorityNotValid: its issuer is unknown or revoked, perhaps by another process and a moment ago.
            AgentBanned: its ID is banned.
            CertificateAlreadyRevoked: the certificate that it renews is revoked, or not ours.
            EnrolmentTokenUnknown, EnrolmentTokenUsed: the token that it burns.
            DuplicateCertificate: the serial number or the certificate is there already.
        """
        (error,) = self._issue([item])
        if error is not None:
            raise error

    def issue_many(self, items: Sequence[Issue]) -> Sequence[Exception | None]:
        """As `issue`, for several: in one transaction, with the error or None of each."""
        try:
            return self._issue(items)
        except PKIError as error:
            return [copied(error) for _ in items]

    def _issue(self, items: Sequence[Issue]) -> Sequence[Exception | None]:
        try:
            with self._database.write() as connection:
                errors, size = issue(
                    connection, items, trust_domain=self._trust_domain, seal=self.seal, guard=self.guard
                )
                point = self.guard.pending
        except Exception as error:
            if isinstance(error, PKIError) and not isinstance(error, DuplicateCertificate):
                raise  # the database or the ledger: it is nobody's item
            # The others are not to suffer for it. Each is now told of its own transaction, and of nobody else's.
            return [error] if len(items) == 1 else [self._alone(item) for item in items]
        self.guard.committed(point)
        self._size = size
        return errors

    def _alone(self, item: Issue) -> Exception | None:
        try:
            return self._issue([item])[0]
        except Exception as error:
            return error

    def revoke(self, serials: Sequence[int], *, reason: x509.ReasonFlags, now: datetime) -> list[Record]:
        """Remember revocations; a first one stays, with its reason and date. Returns the records as they are now.

        The certificate of a CA takes the CA with it: from then on it is in state REVOKED, and issues nothing.

        Raises:
            UnknownSerial: one of them is none of ours; then none is revoked.
        """
        with self._write(now) as (connection, journal):
            return changes.revoke(connection, journal, serials, reason=reason, now=now)

    def ban(self, spiffe_id: str, now: datetime) -> bool:
        """From now on nothing is issued for that ID. False: that was so before."""
        with self._write(now) as (connection, journal):
            if connection.execute(select(bans).where(bans.c.spiffe_id == spiffe_id)).first() is not None:
                return False
            connection.execute(insert(bans).values(spiffe_id=spiffe_id, since=rows.seconds(now)))
            journal.add(ledger.entry_for_ban(spiffe_id, now))
            return True

    def unban(self, spiffe_id: str, now: datetime) -> bool:
        """Lift a ban. False: there was none."""
        with self._write(now) as (connection, journal):
            if connection.execute(delete(bans).where(bans.c.spiffe_id == spiffe_id)).rowcount == 0:
                return False
            journal.add(ledger.entry_for_unban(spiffe_id, now))
            return True

    def set_policy(self, text: str, now: datetime) -> None:
        """Replace the policy file. That it can be parsed is the caller's promise."""
        with self._write(now) as (connection, journal):
            connection.execute(update(settings).values(policy=text))
            journal.add(ledger.entry_for_policy(text, now))

    def add_token(self, token: TokenRecord) -> None:
        with self._database.write() as connection:
            connection.execute(insert(tokens).values(rows.token_row(token)))

    def cancel_token(self, token_id: str) -> bool:
        """Make an unused token useless; False: there is no such token, or it is used."""
        with self._database.write() as connection:
            gone = connection.execute(delete(tokens).where(tokens.c.id == token_id, tokens.c.used_at.is_(None)))
            return gone.rowcount == 1

    def add_pending_key(self, key: PendingKey, keys: Mapping[str, bytes | None] = {}) -> None:
        """Keep the key of an intermediate until its certificate comes back; `change_issuers` then takes it out.

        Raises:
            StateChanged: another key waits already, or the password was changed meanwhile (`keys`, as for
                `change_issuers`).
        """
        with self._database.write() as connection:
            changes.same_password(reading.read_issuers(connection), keys)
            if connection.execute(select(pending_keys.c.key_id)).first() is not None:
                raise StateChanged("request for an intermediate", got="one more", expected="one at a time")
            connection.execute(insert(pending_keys).values(rows.pending_row(key)))

    def forget_key(self, key_id: str) -> bool:
        """Take the private key of a CA out of the database; False: there was none.

        SQLite's file does not hold it any more after that. Backups that were made before do, and PostgreSQL's files
        may until it cleans them up.

        Raises:
            NotErased: the key is out, and somebody else reads the database, so that its log still holds it.
        """
        owned = issuers.c.key_pem.is_not(None) | issuers.c.key_uri.is_not(None)
        taken = update(issuers).where(issuers.c.key_id == key_id, owned).values(key_pem=None, key_uri=None)
        with self._database.overwriting() as connection:
            return connection.execute(taken).rowcount == 1

    def change_issuers(
        self,
        *,
        add: Sequence[tuple[IssuerRecord, Record]] = (),
        states: Mapping[str, State] = {},
        now: datetime,
        expect: Mapping[str, State] | None = None,
        keys: Mapping[str, bytes | None] = {},
        revoked: Sequence[int] = (),
        seal: Seal | None = None,
    ) -> None:
        """Add CAs, change states and revoke compromised CAs, all of it in one transaction.

        Args:
            add: new CAs, each with the record of its certificate.
            states: key id to the state from now on; REVOKED is for ever. (`revoke` also brings a CA there.)
            expect: all CAs, key id to state, as they must still be: of two instances that rotate, one does it. None:
                whatever they are.
            keys: key id to the encrypted private key that must still be there, so that new ones open with the same
                password.
            revoked: serial numbers of CAs whose keys are in other hands.
            seal: signs the tree head in the place of a CA that is revoked by this.

        Raises:
            StateChanged: a CA is unknown or has been revoked, or they are not as expected.
            DuplicateCertificate: a CA is there already.
        """
        with self._write(now, seal) as (connection, journal):
            changes.change_issuers(
                connection, journal, add=add, states=states, now=now, expect=expect, keys=keys, revoked=revoked
            )

    def replace_keys(self, keys: Mapping[bytes, bytes]) -> None:
        """Put other encryptions in the place of the CAs' private keys: all of them, or none.

        As with `forget_key`, SQLite's file does not hold the old ones any more; backups that were made before do.

        Args:
            keys: what is there now to what is to be there.

        Raises:
            StateChanged: there are other keys than these.
            NotErased: they are replaced, and somebody else reads the database, so that its log still holds the others.
        """
        with self._database.overwriting() as connection:
            for table in (issuers, pending_keys):
                for (old,) in connection.execute(select(table.c.key_pem).where(table.c.key_pem.is_not(None))).all():
                    if old not in keys:
                        raise StateChanged(
                            "keys of the CA", got="another one", expected="those of before", do="try again"
                        )
                    connection.execute(update(table).where(table.c.key_pem == old).values(key_pem=keys[old]))

    def crl(
        self, issuer: str, shard: int, *, now: datetime, fresh: Fresh, make: MakeList
    ) -> x509.CertificateRevocationList:
        """The revocation list of an issuer's shard: the stored one while it is `fresh`, or a new one.

        A new one, `make(number, revoked)`, is made inside the transaction, so that no revocation and no number is lost
        between two processes.
        """
        return lists.crl(self._database, issuer, shard, now=now, fresh=fresh, make=make)

    def crl_number(self, issuer: str, shard: int) -> int | None:
        """The number of the list that is stored; None: there is none, or something was revoked since it was made.

        Cheap, however long the list is: whoever holds the list of that number has the stored one.
        """
        return lists.current_number(self._database, issuer, shard)

    def delta(self, issuer: str, shard: int, *, fresh: Fresh, make: MakeDelta) -> x509.CertificateRevocationList | None:
        """What the newest list of the shard says more than the one that its holders may have kept for half a life.

        `make(number, base_number, revoked_since)`, with the number of the newest list (RFC 5280 section 5.2.4). The
        newest list itself is `crl`'s business; None: there is none yet.
        """
        return lists.delta(self._database, issuer, shard, fresh=fresh, make=make)

    def is_covered(self, issuer: IssuerRecord) -> bool:
        """Whether the ledger has that CA under a signed head, as that of every CA that was added with a key.

        A row that somebody has put into the database is not, and one of a CA that the ledger has revoked says so;
        what is under no signed head, or is back from its end, is not to be published.
        """
        with self._database.read() as connection:
            if issuer.state is not State.REVOKED and self.guard.is_gone(connection, issuer.key_id):
                return False
            if issuer.der not in self._covered:
                if not self.guard.covers(connection, issuer):
                    return False
                self._covered.add(issuer.der)
        return True

    def sealed_head(self) -> SealedHead | None:
        """The newest tree head, signed now if it was written without a key and there is one now.

        Raises:
            LedgerDamaged: there is something under it that a CA does not write without its key.
        """
        last = self.head()
        if last is None or last.jws is not None or self.seal is None:
            return last
        with self._database.write() as connection, intact():
            return seal_last(
                connection,
                trust_domain=self._trust_domain,
                seal=self.seal,
                guard=self.guard,
                now=datetime.now(UTC),
            )

    def prune(self, *, issuer: str | None, now: datetime) -> int:
        """Remove what nobody can need any more; returns how many certificates that were.

        That is: tokens that have expired, and of each CA that issues nothing any more (or the one given) the
        certificates that ended longer ago than a revocation list would name them; the CA itself goes with the last.

        Raises:
            StateChanged: the CA given is unknown, or may still issue.
        """
        with self._write(now) as (connection, journal):
            return changes.prune(connection, journal, issuer=issuer, now=now)

    @contextmanager
    def _write(self, now: datetime, seal: Seal | None = None) -> Iterator[tuple[Connection, Journal]]:
        """One transaction; what the block adds to the journal is appended to the ledger at its end."""
        with self._database.write() as connection:
            journal = Journal(connection, self.guard)
            yield connection, journal
            journal.write(trust_domain=self._trust_domain, now=now, seal=seal or self.seal)
            point = self.guard.pending
        self.guard.committed(point)
        self._size = journal.size
