"""From the schema of an earlier release to this one's, in one transaction, by Alembic."""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, insert, inspect, select, update

from pki import keys
from pki.errors import AuthorityMissing, StoreError, WrongPassword
from pki.ledger import Head, sign_head
from pki.records import State
from pki.store import rows
from pki.store.creation import JOURNEY, OLDER, check_version, found_version, private_file, remove_sqlite, require
from pki.store.database import Database, Location, damaged, locate
from pki.store.reading import read_issuers
from pki.store.schema import REVISION, heads, settings, version
from trust.credentials import read_bounded, sync_folder

_MIGRATIONS = Path(__file__).parent / "migrations"
_KEY_FILES = {"root": "root-key.pem", "intermediate": "intermediate-key.pem"}  # beside a database of revision 0001
_MAX_KEY_BYTES = 16 << 10


def upgrade(
    where: str | os.PathLike[str], *, now: datetime | None = None, password: str | None = None
) -> tuple[str, str]:
    """Bring a CA's database to the schema of this release; returns the revisions before and after.

    A SQLite database is copied beside itself before (`ca.db.REVISION.backup`); of PostgreSQL, make a backup yourself.
    Key files of the first release are taken into the database as they are, encrypted, and removed after that. It had
    no ledger: the one that is made here vouches for what is found, whoever has written it.

    Args:
        now: of the ledger's first head; the clock's time when left out.
        password: of the CA's keys, to sign the first head. Needed for a database of the first release only.

    Raises:
        AuthorityMissing: there is no CA.
        WrongPassword: it does not open the signing key, or there is none; then nothing has changed.
        StoreError: a later release made the database, or it cannot be upgraded; then nothing has changed.
    """
    location = locate(where)
    require(location)
    return upgrade_at(location, now=datetime.now(UTC) if now is None else now, password=password)


def upgrade_at(location: Location, *, now: datetime, password: str | None, beside: bool = True) -> tuple[str, str]:
    """As `upgrade`; without `beside`, nothing beside the database is written or removed."""
    database = Database(location)
    try:
        with database.read() as connection:
            before = found_version(connection)
        if before is None:
            raise AuthorityMissing("no CA in this database", expected="its tables", do="make one with `a2a-pki init`")
        if before not in OLDER:
            with database.read() as connection:
                check_version(connection)
            if beside:
                _remove_keys(location)  # an upgrade that was interrupted after its commit
            return before, before
        if location.file is not None and beside:
            _copy(database, location.file.with_name(f"{location.file.name}.{before}.backup"))
        with database.write() as connection:
            if found_version(connection) == before:  # else somebody else was faster
                _run(connection, location, before, now)
                if before == JOURNEY:
                    _sign_first(connection, password)
        if beside:
            _remove_keys(location)
        return before, REVISION
    finally:
        database.close()


def migrate(connection: Connection, before: str | None, to: str, **given: Any) -> None:
    """Run the migrations from one revision to another, in the connection's transaction."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes.update(given)
    scripts = ScriptDirectory.from_config(config)
    if not inspect(connection).has_table(version.name):
        version.create(connection)
        if before is not None:  # the first release, which did not know Alembic
            connection.execute(insert(version).values(version_num=before))
    with EnvironmentContext(
        config, scripts, fn=lambda revision, _: scripts._upgrade_revs(to, revision), destination_rev=to
    ) as environment:
        environment.configure(connection=connection, transactional_ddl=True, version_table_pk=True)
        environment.run_migrations()


def _run(connection: Connection, location: Location, before: str, now: datetime) -> None:
    try:
        migrate(connection, before, REVISION, now=now, keys=_key_texts(location))
    except (ValueError, TypeError, OverflowError) as error:  # a row is not what that release wrote
        raise damaged(error) from None


def _sign_first(connection: Connection, password: str | None) -> None:
    """Sign the head over all that was migrated.

    In the migration's own transaction, and never later: a head without a signature that is found in a database may be
    anybody's who can write it.
    """
    found = connection.execute(select(heads)).mappings().first()
    active = [one for one in read_issuers(connection) if one.state is State.ACTIVE and one.key_pem]
    if found is None or not active:  # a CA without its keys makes nothing that would have to be signed over
        return
    if password is None:
        raise WrongPassword("password of the CA", got="none", expected="the one of its keys, to sign the ledger")
    issuer = max(active, key=lambda one: one.kind == "intermediate")
    last = rows.head_of(found)
    domain = connection.execute(select(settings.c.trust_domain)).scalar_one()
    head = Head(trust_domain=domain, size=last.size, root=last.root, time=last.time)
    signer = keys.open_signer(issuer, password=password, pin=None)
    connection.execute(update(heads).values(jws=sign_head(head, signer, issuer.key_id)))


def _key_texts(location: Location) -> dict[str, bytes]:
    return {kind: read_bounded(path, _MAX_KEY_BYTES) for kind, path in _key_files(location).items() if path.is_file()}


def _remove_keys(location: Location) -> None:
    found = [path for path in _key_files(location).values() if path.is_file()]
    for path in found:
        path.unlink()
    if found:
        sync_folder(found[0].parent)


def _key_files(location: Location) -> dict[str, Path]:
    if location.file is None:
        return {}
    return {kind: location.file.with_name(name) for kind, name in _KEY_FILES.items()}


def _copy(database: Database, target: Path) -> None:
    """A copy as it is, in the form of its release, for whoever wants to go back."""
    building = target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")
    try:
        private_file(building)
        with database.driver() as source:
            source.execute("VACUUM INTO ?", (str(building),))
        building.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise StoreError(f"cannot write {target}", got=error.strerror, expected="a place for a copy") from None
    finally:
        remove_sqlite(building)
