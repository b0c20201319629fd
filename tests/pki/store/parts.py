"""A store in a test: real keys and certificates, on every database that there is, and hands to break it with."""

from __future__ import annotations

import itertools
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from sqlalchemy import create_engine, make_url

from pki import keys, ledger, ledger_audit, list_profiles, profiles
from pki.ledger import Head, sign_head
from pki.policy import Approved
from pki.profiles import Issuer, RevokedSerial
from pki.records import Issue, IssuerRecord, Record, Settings, State
from pki.store import DATABASE_FILE, Store, rows
from tests.pki.conftest import DOMAIN, NOW
from trust.identity import AgentID

DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
PASSWORD = "correct horse"
SETTINGS = Settings(trust_domain=DOMAIN, crl_base_url=None, public_url="http://ca.fleet.example", name_constraint=True)
AGENT = f"spiffe://{DOMAIN}/billing"
LEAF_KEY = keys.generate().public_key()  # whose key a certificate certifies does not matter here
SERVER = "A2A_TRUST_POSTGRESQL"
_serials = itertools.count(2**158)


@dataclass(frozen=True, kw_only=True)
class CA:
    """One CA: its key, its certificate, its rows."""

    key: keys.ec.EllipticCurvePrivateKey
    issuer: Issuer
    row: IssuerRecord
    record: Record


def root(state: State = State.ACTIVE, lifetime: timedelta = 3650 * DAY) -> CA:
    key = keys.generate()
    builder = profiles.root(
        trust_domain=DOMAIN, public_key=key.public_key(), serial=next(_serials), now=NOW, lifetime=lifetime
    )
    return _ca(key, keys.sign(builder, key), "root", None, state)


def intermediate(parent: CA, state: State = State.ACTIVE, lifetime: timedelta = 90 * DAY) -> CA:
    key = keys.generate()
    builder = profiles.intermediate(
        trust_domain=DOMAIN,
        public_key=key.public_key(),
        issuer=parent.issuer,
        serial=next(_serials),
        now=NOW,
        lifetime=lifetime,
    )
    return _ca(key, keys.sign(builder, parent.key), "intermediate", parent, state)


def _ca(
    key: keys.ec.EllipticCurvePrivateKey, certificate: x509.Certificate, kind: str, parent: CA | None, state: State
) -> CA:
    issuer = Issuer.of(certificate)
    above = parent.issuer.key_id if parent else issuer.key_id
    pem = keys.write(key, PASSWORD)
    record = Record.of(certificate, kind=kind, issuer=above, spiffe_id=f"spiffe://{DOMAIN}")
    row = IssuerRecord(
        key_id=issuer.key_id,
        kind=kind,
        parent=above,
        state=state,
        since=NOW,
        serial=record.serial,
        der=record.der,
        key_pem=pem,
    )
    return CA(key=key, issuer=issuer, row=row, record=record)


ROOT = root()
CA1 = intermediate(ROOT)


def leaf(
    ca: CA = CA1, *, spiffe_id: str = AGENT, serial: int | None = None, lifetime: timedelta = DAY, shard: int = 0
) -> Record:
    content = Approved(
        agent_id=AgentID.parse(spiffe_id), public_key=LEAF_KEY, dns_names=(), ip_addresses=(), lifetime=lifetime
    )
    unsigned = profiles.agent(content, issuer=ca.issuer, serial=serial or next(_serials), now=NOW)
    certificate, _ = keys.sign_agent(unsigned, ca.key)
    return Record.of(certificate, kind="agent", issuer=ca.issuer.key_id, spiffe_id=spiffe_id, shard=shard)


def fake(serial: int, **changes: object) -> Record:
    """A row like another, for tests that need many and look into none of their certificates."""
    same: dict[str, object] = {"kind": "agent", "issuer": CA1.issuer.key_id, "spiffe_id": AGENT, "serial": serial}
    return replace(ROOT.record, **{**same, "thumbprint": f"print {serial}", **changes})  # type: ignore[arg-type]


def seal(head: Head) -> str:
    return sign_head(head, CA1.key, CA1.issuer.key_id)


def create(where: str | Path) -> None:
    Store.create(where, SETTINGS, [ROOT.row, CA1.row], [ROOT.record, CA1.record], now=NOW, seal=seal)


def opened(where: str | Path) -> Store:
    """The store, with the key that signs its heads."""
    store = Store.open(where)
    store.seal = seal
    return store


def sign_first(where: str | Path) -> None:
    """Sign the one head that an upgrade has made, as it does where the keys are beside the database."""
    store = Store.open(where)
    head = store.head()
    assert head is not None
    text = seal(Head(trust_domain=DOMAIN, size=head.size, root=head.root, time=head.time))
    store.close()
    sql(where, f"UPDATE heads SET jws = '{text}'")


def issue(store: Store, *records: Record) -> None:
    for record in records:
        store.issue(Issue(record=record, now=NOW))


def problems(store: Store) -> tuple[str, ...]:
    """What an audit finds wrong with the whole of it."""
    public = {one.key_id: one.certificate.public_key() for one in store.issuers()}
    with store.snapshot() as books:
        return ledger_audit.audit(books, keys=public).problems  # type: ignore[arg-type]


def crl(
    store: Store, *, ca: CA = CA1, shard: int = 0, fresh: bool = True, now: object = NOW
) -> x509.CertificateRevocationList:
    def make(number: int, revoked: list[RevokedSerial]) -> x509.CertificateRevocationList:
        return keys.sign_crl(
            list_profiles.revocation_list(revoked, issuer=ca.issuer, number=number, now=now),  # type: ignore[arg-type]
            ca.key,
        )

    return store.crl(ca.issuer.key_id, shard, now=now, fresh=lambda _: fresh, make=make)  # type: ignore[arg-type]


def number(item: x509.CertificateRevocationList) -> int:
    return item.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def intrude(folder: Path, position: int = 10_000) -> IssuerRecord:
    """What somebody does who can write the database and has no key of the CA: a root of his own, and its entry."""
    record = root(State.PREPARED).row
    entry, row = ledger.entry_for_issuer(record).encode(), rows.issuer_row(record, position)
    with closing(sqlite3.connect(folder / DATABASE_FILE)) as database, database:
        database.execute("INSERT INTO ledger VALUES (?, ?, ?)", (position, entry, ledger.leaf_hash(entry)))
        marks = ", ".join("?" * len(row))
        database.execute(f"INSERT INTO issuers ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))
    return record


def sql(where: str | Path, *statements: str) -> None:
    """What somebody does to the database who is not the store."""
    text = str(where)
    if "://" not in text:
        connection = sqlite3.connect(Path(text) / DATABASE_FILE)
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()
        return
    engine = create_engine(make_url(text))
    with engine.begin() as alchemy:
        for statement in statements:
            alchemy.exec_driver_sql(statement)
    engine.dispose()


@contextmanager
def postgresql() -> Iterator[str]:
    """The URL of a new, empty database on the server that the tests may use; dropped afterwards."""
    server = os.environ.get(SERVER)
    if server is None:
        reason = f"{SERVER} names no PostgreSQL server on which databases may be made"
        if os.environ.get("A2A_TRUST_CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    url = make_url(server).set(drivername="postgresql+psycopg")
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    name = f"a2a_{secrets.token_hex(8)}"
    try:
        with admin.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        yield url.set(database=name).render_as_string(hide_password=False)
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        admin.dispose()
