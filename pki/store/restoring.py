"""A CA brought back from its backup: verified as a whole first, then put in its place in one step."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import Connection, delete, select, update

from pki import keys, ledger_audit
from pki.errors import AuthorityDamaged, AuthorityExists, BackupRefused, DatabaseLocked, LedgerDamaged, StoreError
from pki.ledger import Head, claimed_head
from pki.store import rows
from pki.store.backup import (
    BackupReport,
    copy_rows,
    database_at,
    flush,
    partial,
    remove_left_over,
    reported,
    root_fingerprints,
)
from pki.store.creation import (
    JOURNEY,
    check_version,
    found_version,
    make_tables,
    occupied,
    private_file,
    put,
    remove_sqlite,
    sqlite_files,
)
from pki.store.database import Database, Location, intact, locate, own_errors, sqlite_file
from pki.store.lists import MARGIN
from pki.store.reading import Snapshot
from pki.store.schema import DATA, crls, pending_keys, settings, tokens, version
from pki.store.upgrading import upgrade_at
from trust.clock import shown
from trust.credentials import sync_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # asked for before each use


def restore(
    source: str | os.PathLike[str],
    where: str | os.PathLike[str],
    *,
    password: str | None,
    replace: bool = False,
    head: str | None = None,
) -> BackupReport:
    """Bring a CA back from a backup, after its ledger and its keys have been verified.

    Numbers that verifiers compare (of revocation lists, of the bundle) go on from the time in seconds, because some
    were used after the backup was made. One-time tokens are left out, for the same reason.

    Not verified, but said in the report: that it is the CA that you mean (compare the roots, or give a `head`), and how
    old it is. Keys that are offline or on a token are not opened.

    Args:
        source: made by `backup`, by this release or an earlier one. It is only read.
        where: the CA to be: a folder or a database.
        password: of the keys; None: verify everything but that they can be opened.
        replace: put it in the place of a CA that is there. No other program may use that one, if it is SQLite. It must
            be the same one: of the same trust domain, and with a root in common. One that cannot be read is replaced.
        head: a signed head of the ledger that was kept elsewhere: what it commits to must be in the backup.

    Raises:
        BackupRefused: it is no backup, or what it says is not what was once written. Nothing has changed then.
        AuthorityExists: there is a CA, and it is not to be replaced.
        WrongPassword: the password does not open the keys, or there is none for keys of the first release.
        DatabaseLocked: another program uses the CA that is to be replaced.
    """
    backed_up, location = Path(source), locate(where)
    if not backed_up.is_file():
        raise BackupRefused(f"no backup at {backed_up}", expected="a file that `a2a-pki backup` has made")
    if not replace and (there := _there(location)) is not None:
        raise _exists(there)
    if replace:
        _is_a_file(location)
    former = _former(location) if replace else None
    try:
        with _scratch(location) as (copy, fresh):
            shutil.copyfile(backed_up, copy)
            report = _rebuilt(sqlite_file(copy), sqlite_file(fresh), password, backed_up, former, head)
            if location.file is None:
                _into_postgresql(fresh, location, replace)
            else:
                _into_file(fresh, location.file, replace)
    except OSError as error:
        raise BackupRefused(f"cannot restore {location}", got=error.strerror, expected="a place for it") from None
    return report


def _is_a_file(location: Location) -> None:
    """A link would be replaced and what it leads to left as it is, with the keys of before."""
    file = location.file
    if file is not None and os.path.lexists(file) and (file.is_symlink() or not file.is_file()):
        got = "a symbolic link" if file.is_symlink() else "something else"
        raise BackupRefused(f"cannot replace {file}", got=got, expected="a file", do="move it away")


@contextmanager
def _scratch(location: Location) -> Iterator[tuple[Path, Path]]:
    """Two files to work in, that nobody else may read: keys will be in them.

    Beside the database that is made, where the next backup or restore removes what a killed program has left.
    """
    if location.file is None:
        with tempfile.TemporaryDirectory(prefix="a2a-pki-") as folder:
            yield _private(Path(folder, "copy")), _private(Path(folder, "fresh"))
        return
    folder_is_new = not location.file.parent.exists()
    location.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    copy, fresh = partial(location.file), partial(location.file)
    try:
        with _alone(location.file.parent) as alone:
            remove_left_over(location.file, at_once=alone)
            yield _private(copy), _private(fresh)
    finally:
        remove_sqlite(copy)
        remove_sqlite(fresh)
        if folder_is_new:
            with suppress(OSError):  # it holds the restored CA, or is gone already
                location.file.parent.rmdir()


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether no other program restores into that folder: what looks like a restore's was left by a killed one then."""
    if fcntl is None:
        yield False
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            raise BackupRefused(f"a restore into {folder} is under way", expected="one at a time") from None
        except OSError:  # a file system without such locks
            alone = False
        yield alone
    finally:
        os.close(opened)


def _private(path: Path) -> Path:
    private_file(path)
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class _Former:
    """What is to be known of the CA that is replaced."""

    trust_domain: str
    roots: frozenset[str]
    number: int  # the largest that it has used for a list
    sequence: int  # of its bundle


def _former(location: Location) -> _Former | None:
    """None: there is none, or it cannot be read."""
    if location.file is not None and not location.file.is_file():
        return None
    try:
        with database_at(location) as database, database.snapshot() as connection, own_errors():
            if found_version(connection) in (None, JOURNEY):
                return None
            books = Snapshot(connection)
            numbers = [number for (number,) in connection.execute(select(crls.c.number)) if type(number) is int]
            return _Former(
                trust_domain=books.settings().trust_domain,
                roots=frozenset(root_fingerprints(books)),
                number=max([0, *numbers]),
                sequence=books.bundle_sequence(),
            )
    except DatabaseLocked:
        raise
    except (StoreError, AuthorityDamaged):
        return None


def _rebuilt(
    copy: Location, fresh: Location, password: str | None, name: Path, former: _Former | None, head: str | None
) -> BackupReport:
    """Make a new database of the rows of the backup, verify all of it, and make it ready to go on.

    Of the rows, because a database can hold more than rows: a trigger would work for whoever had put it in.
    """
    try:
        with database_at(copy) as old:
            with old.read() as connection:
                known = found_version(connection)
            if known is None:
                raise BackupRefused(f"{name} is no backup of a CA", expected="a file that `a2a-pki backup` has made")
            _plain_tables(old)
            upgrade_at(copy, now=datetime.now(UTC), password=password, beside=False)
            with old.snapshot() as reading, database_at(fresh) as new, new.write() as connection:
                make_tables(connection)
                copied = copy_rows(reading, connection)
        with database_at(fresh) as new:
            with new.snapshot() as connection:
                books = Snapshot(connection)
                _same(books, former, name)
                _parse_all(connection)
                public, opened = _public_keys(books, password)
                newer = _newer(head, copied["ledger"])
                kept = None if newer else head  # what it is about is not in the backup: the rest is audited
                found = ledger_audit.audit(books, keys=public, head=kept, upgraded=known == JOURNEY)
                report = reported(books, copied, opened)
            if found.problems:
                more = f" (and {len(found.problems) - 1} more)" if len(found.problems) > 1 else ""
                raise BackupRefused(
                    f"{name} is damaged", got=found.problems[0] + more, expected="what was once written"
                )
            if newer is not None:
                raise BackupRefused(
                    f"{name} is older than the head",
                    got=f"a ledger of {copied['ledger']} entries",
                    expected=f"the {newer.size} that the head of {shown(newer.time)} is about",
                    do="take a newer backup, or leave out --head: what was issued and revoked since is lost then",
                )
            with new.write() as connection:
                _go_on(connection, former)
    except (StoreError, AuthorityDamaged, LedgerDamaged) as error:
        # Its own line says what was got and expected.
        raise BackupRefused(f"{name} is no good backup ({error})", do="take another one") from None
    flush(fresh.file)
    return report


def _newer(head: str | None, size: int) -> Head | None:
    """The head, if it says that it is about more than the backup holds; it is refused in any case then."""
    if head is None:
        return None
    try:
        claimed = claimed_head(head)
    except LedgerDamaged:
        return None  # the audit says so
    return claimed if claimed.size > size else None


def _plain_tables(database: Database) -> None:
    """The backup is tables that we know, and nothing that computes what is read from it."""
    known = {table.name for table in DATA} | {version.name, "revocations"}  # the last: of the first release
    with database.driver() as plain:
        found = plain.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    for kind, name, text in found:
        strange = kind == "table" and name not in known and not name.startswith("sqlite_")
        if kind == "view" or strange or "VIRTUAL TABLE" in str(text).upper():
            raise BackupRefused("backup of a CA", got=f"{kind} {name}", expected="the tables of a CA, and no others")


def _same(books: Snapshot, former: _Former | None, name: Path) -> None:
    if former is None:
        return
    domain = books.settings().trust_domain
    if domain != former.trust_domain:
        raise BackupRefused(f"{name} is of another CA", got=domain, expected=f"{former.trust_domain}, which is there")
    if former.roots.isdisjoint(root_fingerprints(books)):
        raise BackupRefused(
            f"{name} is of another CA",
            got=f"roots {', '.join(root_fingerprints(books))}",
            expected=f"one of {', '.join(sorted(former.roots))}, which are there",
        )


def _parse_all(connection: Connection) -> None:
    """The rows that no audit looks at."""
    with intact():
        for row in connection.execute(select(pending_keys)).mappings():
            rows.pending_of(row)


def _go_on(connection: Connection, former: _Former | None) -> None:
    """What others have seen of the CA after the backup was made is not in it, and must not come again.

    Numbers of lists and of the bundle go on from the time in seconds: they were used neither here, nor there, nor after
    an earlier restore. A token that was used meanwhile would be good once more: there are none.
    """
    connection.execute(delete(tokens))
    now = int(time.time())
    sequence = connection.execute(select(settings.c.bundle_sequence)).scalar_one()
    numbers = connection.execute(select(crls.c.issuer, crls.c.shard, crls.c.number)).all()
    floor, floor_of_bundle = (now, now) if former is None else (max(now, former.number), max(now, former.sequence))
    most = now + int(MARGIN.total_seconds())
    # A list with the next number would not be signed.
    if max([sequence, *(number for *_, number in numbers)]) >= most:
        raise BackupRefused("numbers in the backup", got="one beyond all counting", expected=f"less than {most}")
    if max(floor, floor_of_bundle) >= most:
        raise BackupRefused(
            "numbers of the CA that is to be replaced",
            got="one beyond all counting",
            expected=f"less than {most}",
            do="move its database away, and restore without --replace",
        )
    for issuer, shard, number in numbers:
        values = {"number": max(number, floor) + 1, "stale": True, "base_at": 0, "delta_der": None}
        connection.execute(update(crls).where(crls.c.issuer == issuer, crls.c.shard == shard).values(**values))
    connection.execute(update(settings).values(bundle_sequence=max(sequence, floor_of_bundle) + 1))


def _into_file(building: Path, target: Path, replace: bool) -> None:
    if not replace:
        try:
            put(building, target)
        except FileExistsError:
            raise _exists(occupied(target) or target) from None
        return
    # SQLite finds a database's log by its name: the old log must not be there when the new database is. What is there
    # is kept aside, all of it, until the new database stands; a restore that is killed leaves it there.
    _end_use(target)
    aside = target.with_name(f"{target.name}.replaced-{secrets.token_hex(4)}")
    old = [name for name in sqlite_files(target) if name.exists()]
    if not old:
        building.rename(target)
        sync_folder(target.parent)
        return
    aside.mkdir(mode=0o700)
    try:
        for name in reversed(old):  # the log before the database: it is nothing without it
            name.rename(aside / name.name)
        building.rename(target)
    except BaseException:  # also an interrupt or a signal: half of it is worse than nothing
        for name in old:
            if (aside / name.name).exists():
                (aside / name.name).rename(name)
        aside.rmdir()
        raise
    sync_folder(target.parent)
    shutil.rmtree(aside)


def _end_use(target: Path) -> None:
    """Put the log of a sound database into it, which nobody else may use now; a damaged one stays as it is."""
    if not target.is_file():
        return
    try:
        with database_at(sqlite_file(target)) as database, database.driver() as plain:
            plain.execute("PRAGMA busy_timeout = 0")
            plain.execute("PRAGMA journal_mode = DELETE")  # refused while anybody else has it open
    except DatabaseLocked:
        raise
    except StoreError:
        return


def _into_postgresql(building: Path, location: Location, replace: bool) -> None:
    """In one transaction: until it is committed, the old CA stands, and afterwards the new one."""
    with (
        database_at(sqlite_file(building)) as source,
        source.snapshot() as reading,
        database_at(location) as target,
        target.write() as connection,
    ):
        if found_version(connection) is None:
            make_tables(connection)
        elif not replace:
            raise _exists(location)
        else:
            check_version(connection)
            for table in DATA:
                connection.execute(delete(table))
        copy_rows(reading, connection)


def _there(location: Location) -> Path | Location | None:
    if location.file is not None:
        return occupied(location.file)
    with database_at(location) as database, database.read() as connection:
        return None if found_version(connection) is None else location


def _public_keys(
    books: Snapshot, password: str | None
) -> tuple[Mapping[str, ec.EllipticCurvePublicKey], tuple[str, ...]]:
    """The keys of the CAs, and which of their private keys were opened: those in the backup, if there is a password."""
    found, opened = {}, []
    for issuer in books.issuers():
        if password is not None and issuer.key_pem is not None:
            keys.open_signer(issuer, password=password, pin=None)
            opened.append(issuer.key_id)
        public_key = issuer.certificate.public_key()
        if isinstance(public_key, ec.EllipticCurvePublicKey):
            found[issuer.key_id] = public_key
    return found, tuple(opened)


def _exists(there: Path | Location) -> AuthorityExists:
    return AuthorityExists(f"{there} exists already", expected="a new CA", do="choose another place, or --replace")
