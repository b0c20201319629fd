"""What somebody writes into the database of a CA, without its keys, is found by an audit and named.

Certificates, revocations and CAs are in `tests/attacks/test_ledger.py` and `test_ledger_audit.py`.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from pki import CertificateAuthority, revocation
from pki.errors import LedgerDamaged, PKIError
from pki.records import State
from pki.store import DATABASE_FILE, backup, restore
from tests.pki.conftest import AGENT, DOMAIN, NOW, PASSWORD, Clock
from tests.pki.judges import request
from trust.identity import fingerprint

HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A CA with tokens, used and not, with lists, a delta, a second root in its bundle: never written to."""
    folder = tmp_path_factory.mktemp("filled") / "ca"
    clock = Clock(NOW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(revocation, "DELTA_FROM", 1)
        made = CertificateAuthority.create(
            folder,
            trust_domain=DOMAIN,
            password=PASSWORD,
            now=NOW,
            clock=clock,
            public_url="http://pki.fleet.example",
            crl_base_url="http://pki.fleet.example/crl",
        )
        with made as ca:
            first, second, _ = (ca.issue(request(), f"{AGENT}{number}") for number in range(3))
            ca.enrol(request(), ca.create_token(AGENT).text)
            ca.create_token(AGENT)
            ca.revoke(first.serial, x509.ReasonFlags.superseded)
            ca.revocations.published(NOW)
            _keep(folder)
            clock.forward(HOUR)
            ca.revoke(second.serial, x509.ReasonFlags.superseded)
            ca.revocations.published(clock())
            ca.rotate(kind="root", force=True)
            assert ca.audit_ledger().problems == ()
    yield folder


def _keep(folder: Path) -> None:
    """What the attacker has kept of the lists, to be put back later; outside of the CA's own tables."""
    with closing(sqlite3.connect(folder / DATABASE_FILE)) as plain:
        plain.executescript(f"ATTACH '{folder.parent / 'kept'}' AS kept; CREATE TABLE kept.crls AS SELECT * FROM crls")


NAMED = "revocation list [0-9a-f]{40}.*"
BACK = "DELETE FROM crls; INSERT INTO crls SELECT * FROM kept.crls"
AGENT2 = "WHERE spiffe_id LIKE '%/billing2'"
TAMPERED: list[tuple[str, str, str]] = [
    ("nothing", "SELECT 1", ""),
    # Tokens.
    (
        "token inserted",
        "INSERT INTO tokens SELECT 'abc', digest, spiffe_id, dns_names, lifetime, created_at, expires_at,"
        " NULL, NULL, NULL, seal FROM tokens WHERE used_at IS NULL",
        "enrolment token abc is in the database, and no CA has made it like that",
    ),
    (
        "token of another agent",
        f"UPDATE tokens SET spiffe_id = 'spiffe://{DOMAIN}/payroll'",
        "enrolment token .* is in the database, and no CA has made it like that",
    ),
    (
        "token made fresh",
        "UPDATE tokens SET used_at = NULL, used_by = NULL, serial = NULL",
        rf"entry \d+ of the ledger \(issued certificate .* of {AGENT}\): its token .* as if it were not used",
    ),
    ("token marked as used", "UPDATE tokens SET used_at = 1", "token .* looks as if it were used"),
    ("token used for another certificate", "UPDATE tokens SET serial = '1' WHERE used_at > 0", "token .* looks as if"),
    ("token unreadable", "UPDATE tokens SET dns_names = '{}'", "the audit ends after .*dns_names is no list"),
    # Settings, and the bundle.
    *(
        (f"settings, {column}", f"UPDATE settings SET {column} = {value}", "the settings of the CA are not those that")
        for column, value in (
            ("crl_base_url", "'http://evil.example/crl'"),
            ("crl_base_url", "NULL"),
            ("public_url", "'http://evil.example'"),
            ("name_constraint", "1"),
        )
    ),
    ("another trust domain", "UPDATE settings SET trust_domain = 'evil.example'", "tree head .* another trust domain"),
    (
        "bundle counted back",
        "UPDATE settings SET bundle_sequence = 1",
        "the trust bundle has sequence number 1, and had 2 before",
    ),
    # Revocation lists.
    ("list counted back", "UPDATE crls SET number = number - 1", f"{NAMED} has number [0-9]+, and was published as"),
    (
        "list counted back, and stale",
        "UPDATE crls SET number = number - 1, stale = 1",
        f"{NAMED} has number [0-9]+, and was published as number [0-9]+",
    ),
    ("list counted on", "UPDATE crls SET number = number + 1", f"{NAMED} is not the one that its CA has signed"),
    ("list of the past", BACK, f"{NAMED} lacks what was revoked since, and is not marked as stale"),
    (
        "list of the past, that says it is of now",
        BACK + "; UPDATE crls SET position = (SELECT max(size) FROM heads)",
        f"{NAMED} does not name [0-9a-f]+, which was revoked",
    ),
    (
        "list that knows of the future",
        "UPDATE crls SET position = 1000",
        f"{NAMED} is not the one that its CA has signed",
    ),
    (
        "list of before the revocations",
        "UPDATE crls SET position = 1",
        f"{NAMED} (names [0-9a-f]+, and the ledger has no such revocation|lacks what was revoked since)",
    ),
    ("list of another CA", "UPDATE crls SET der = (SELECT der FROM crls LIMIT 1)", f"{NAMED} was not signed by its"),
    (
        "list that is none, and stale",
        "UPDATE crls SET der = x'00', stale = 1",
        f"{NAMED} was not signed by its CA",
    ),
    (
        "list of another CA, and stale",
        "UPDATE crls SET der = (SELECT der FROM crls LIMIT 1), stale = 1, number = number + 100000",
        f"{NAMED} was not signed by its CA",
    ),
    ("list that is none", "UPDATE crls SET der = x'00'", f"{NAMED} was not signed by its CA"),
    ("list in another shard", "UPDATE crls SET shard = shard + 7", f"{NAMED} is not the one that its CA has signed"),
    (
        "list of a stranger",
        f"UPDATE crls SET issuer = '{'0' * 40}' WHERE delta_der IS NOT NULL",
        f"{NAMED} is of a CA that is not known",
    ),
    (
        "delta that is none",
        "UPDATE crls SET delta_der = x'00' WHERE delta_der IS NOT NULL",
        f"{NAMED} has a delta that its CA has not signed for it",
    ),
    (
        "delta that is the list",
        "UPDATE crls SET delta_der = der WHERE delta_der IS NOT NULL",
        f"{NAMED} has a delta that its CA has not signed for it",
    ),
    (
        "delta to another list",
        "UPDATE crls SET base_number = base_number + 1 WHERE delta_der IS NOT NULL",
        f"{NAMED} has a delta to number [0-9]+, and the row says [0-9]+",
    ),
    (
        "delta from a later place",
        "UPDATE crls SET base_position = position WHERE delta_der IS NOT NULL",
        f"{NAMED} names [0-9a-f]+, and the ledger has no such revocation",
    ),
    (
        "delta from an earlier place",
        "UPDATE crls SET base_position = 0 WHERE delta_der IS NOT NULL",
        f"{NAMED} does not name [0-9a-f]+, which was revoked",
    ),
    # The order.
    (
        "certificate at another place",
        f"UPDATE certificates SET position = 1000 {AGENT2}",
        r"entry \d+ .*/billing2\): the row of the certificate differs from this entry: it is at another place",
    ),
    (
        "revocation at another place",
        "UPDATE certificates SET revoked_position = 1 WHERE revoked_at IS NOT NULL",
        r"entry \d+ of the ledger \(revoked certificate .*: the revocation differs from this entry",
    ),
    (
        "revocation at no place",
        "UPDATE certificates SET revoked_position = NULL",
        r"entry \d+ of the ledger \(revoked certificate .*: the revocation differs from this entry",
    ),
    ("CA at another place", "UPDATE issuers SET position = 1000 - position", "CA [0-9a-f]{40} is at another place"),
]


@pytest.mark.parametrize(("sql", "expected"), [row[1:] for row in TAMPERED], ids=[row[0] for row in TAMPERED])
def test_what_is_altered_is_named(sql: str, expected: str, filled: Path, tmp_path: Path) -> None:
    shutil.copytree(filled.parent, tmp_path, dirs_exist_ok=True)
    with closing(sqlite3.connect(tmp_path / "ca" / DATABASE_FILE)) as plain:
        plain.executescript(f"ATTACH '{tmp_path / 'kept'}' AS kept; {sql}")
    with CertificateAuthority.open(tmp_path / "ca") as ca:
        problems = ca.audit_ledger().problems
    assert bool(problems) is bool(expected), problems
    assert not expected or any(re.search(f"^{expected}", problem) for problem in problems), problems


def test_settings_that_were_altered_are_not_signed_over(filled: Path, tmp_path: Path) -> None:
    """So the CA issues nothing that names a place of the attacker's."""
    folder = Path(shutil.copytree(filled, tmp_path / "ca"))
    with closing(sqlite3.connect(folder / DATABASE_FILE)) as plain:
        plain.executescript("UPDATE settings SET crl_base_url = 'http://evil.example'")
    with CertificateAuthority.open(folder, password=PASSWORD) as ca:
        with pytest.raises(PKIError, match="settings of the CA that are not those of the last head") as caught:
            ca.issue(request(), AGENT)
        assert type(caught.value) is LedgerDamaged
        # What protects others does not wait for that to be mended.
        active = next(one.key_id for one in ca.issuers() if one.kind == "intermediate")
        with pytest.raises(PKIError) as caught:
            ca.taint(active)
        assert type(caught.value) is LedgerDamaged
        assert ca._store.issuers()[1].state is State.REVOKED


def test_what_a_restore_has_counted_is_signed_by_the_next_head(filled: Path, tmp_path: Path) -> None:
    saved, folder = tmp_path / "saved", tmp_path / "ca"
    backup(filled, saved)
    restore(saved, folder, password=PASSWORD)
    with CertificateAuthority.open(folder, password=PASSWORD) as ca:
        assert ca.bundle().sequence > 1000
        ca.issue(request(), AGENT)
        assert ca.audit_ledger().problems == ()
    with closing(sqlite3.connect(folder / DATABASE_FILE)) as plain:
        plain.executescript("UPDATE settings SET bundle_sequence = 1000")
    with CertificateAuthority.open(folder) as ca:
        (problem,) = ca.audit_ledger().problems
    assert problem.startswith("the trust bundle has sequence number 1000, and had ")


# A database that was replaced as a whole, keys and all.


@pytest.fixture
def kept(filled: Path) -> tuple[str, str]:
    """What the operator has elsewhere: the fingerprint of the root, and a head."""
    with CertificateAuthority.open(filled, password=PASSWORD) as ca:
        return fingerprint(ca.issuers()[0].der), ca.ledger_head()


def another(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.create(tmp_path / "other", trust_domain=DOMAIN, password=PASSWORD, now=NOW)


def with_the_genuine_roots_certificate(ca: CertificateAuthority, filled: Path) -> None:
    """It is public, so a CA of the attacker's can have it in its tables."""
    with CertificateAuthority.open(filled) as genuine:
        root = genuine.issuers()[0]
        record = genuine.find(root.serial)
    ca._store.change_issuers(add=[(replace(root, state=State.PREPARED, key_pem=None), record)], now=NOW)


REPLACED: list[tuple[str, Callable[[CertificateAuthority, Path], None]]] = [
    ("by a CA of his own", lambda ca, filled: None),
    ("by one with the genuine root in its bundle", with_the_genuine_roots_certificate),
]


@pytest.mark.parametrize("change", [row[1] for row in REPLACED], ids=[row[0] for row in REPLACED])
def test_a_database_that_was_replaced_as_a_whole(
    change: Callable[[CertificateAuthority, Path], None], kept: tuple[str, str], filled: Path, tmp_path: Path
) -> None:
    root, head = kept
    with another(tmp_path) as ca:
        change(ca, filled)
        assert ca.audit_ledger().problems == (), "it agrees with itself"
        (problem,) = ca.audit_ledger(root=root).problems
        assert problem == f"no tree head is signed by a CA below the root {root}: this is the ledger of another CA"
        assert any("signed by an unknown CA" in problem for problem in ca.audit_ledger(head).problems)


def test_the_genuine_one_is_below_its_root(kept: tuple[str, str], filled: Path) -> None:
    root, head = kept
    with CertificateAuthority.open(filled) as ca:
        assert ca.audit_ledger(head, root=root).problems == ()
        prepared = fingerprint(ca.issuers()[-1].der)
        (problem,) = ca.audit_ledger(root=prepared).problems
        assert problem.startswith(f"no tree head is signed by a CA below the root {prepared}"), "it signs nothing yet"
