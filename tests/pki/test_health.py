"""What health says: all is well, or what is not and what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pki import CertificateAuthority, HealthCheck, profiles, rotation
from pki.store import DATABASE_FILE, lists
from tests.pki.conftest import AGENT, PASSWORD, Clock
from tests.pki.judges import request

SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NAMES = ["clock", "store", "intermediate", "root", "revocation lists", "ledger"]


def ill(ca: CertificateAuthority) -> list[HealthCheck]:
    checks = ca.health()
    assert [check.name for check in checks] == NAMES
    return [check for check in checks if not check.ok]


def test_a_new_ca_is_well(ca: CertificateAuthority) -> None:
    assert ill(ca) == []
    ca.issue(request(), AGENT)
    assert ill(ca) == []


def test_the_clock_is_behind(ca: CertificateAuthority, clock: Clock) -> None:
    ca.issue(request(), AGENT)
    clock.forward(-MINUTE)
    assert ill(ca) == [], "as much as certificates are made to bear"
    clock.forward(-SECOND)
    late, *others = ill(ca)
    assert late.name == "clock"
    assert "set the clock" in late.says
    assert {check.name for check in others} == {"intermediate", "root"}, "not valid yet"
    assert all("valid from" in check.says for check in others)


def test_a_rotation_is_overdue(ca: CertificateAuthority, clock: Clock) -> None:
    clock.now = rotation.prepare_at(ca.issuers()[1]) + HOUR
    assert ill(ca) == []
    clock.forward(SECOND)
    (late,) = ill(ca)
    assert late.name == "intermediate"
    assert "overdue" in late.says
    ca.rotate()
    assert ill(ca) == []


def test_the_root_is_overdue(ca: CertificateAuthority, clock: Clock) -> None:
    clock.now = rotation.prepare_at(ca.issuers()[0]) - DAY
    ca.rotate()
    clock.forward(DAY + HOUR + SECOND)
    (late,) = ill(ca)
    assert late.name == "root"
    assert "overdue" in late.says


def test_the_intermediate_has_ended(ca: CertificateAuthority, clock: Clock) -> None:
    clock.now = ca.intermediate.not_valid_after_utc
    (dead,) = ill(ca)
    assert (dead.name, "valid from" in dead.says) == ("intermediate", True)


def test_there_is_no_intermediate(ca: CertificateAuthority) -> None:
    ca.revoke(ca.intermediate.serial_number)
    (gone,) = [check for check in ill(ca) if check.name == "intermediate"]
    assert "a2a-pki rotate" in gone.says
    ca.rotate()
    assert ill(ca) == []


def test_a_root_that_waits_for_its_successor(ca: CertificateAuthority, clock: Clock) -> None:
    ca.taint(next(r.key_id for r in ca.issuers() if r.kind == "root"))
    (gone,) = ill(ca)
    assert gone.name == "root"
    clock.forward(rotation.OVERLAP)
    ca.rotate()
    assert ill(ca) == []


def test_the_database_is_locked(folder: Path, locked: Callable[[], None], clock: Clock) -> None:
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as ca:
        ca.crl()
        ca.ledger_head()
        locked()
        (stuck,) = ill(ca)
        assert stuck.name == "store"
        assert "locked" in stuck.says


def test_lists_that_cannot_be_made_and_a_ledger_that_cannot_be_sealed(folder: Path, clock: Clock) -> None:
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as ca:
        serial = ca.issue(request(), AGENT).serial
        ca.crl()
    with CertificateAuthority.open(folder, clock=clock) as ca:
        assert ill(ca) == []
        ca.revoke(serial)
        listed, ledger = ill(ca)
        assert (listed.name, ledger.name) == ("revocation lists", "ledger")
        assert listed.says.startswith("no current revocation list ")
        assert listed.says.endswith(".crl: `a2a-pki crl` or `a2a-pki serve` makes one")
        assert "not signed" in ledger.says
        assert len(ca.published_lists()) == 1, "the one that has to be made anew is left out"
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as ca:
        assert ill(ca) == []


def test_without_the_password_what_counts_is_what_was_made(folder: Path, clock: Clock) -> None:
    def says(ca: CertificateAuthority) -> tuple[bool, str]:
        (check,) = [check for check in ca.health() if check.name == "revocation lists"]
        return check.ok, check.says

    with CertificateAuthority.open(folder, clock=clock) as ca:
        ok, line = says(ca)
        assert ok and "none yet, and nobody misses one: `a2a-pki crl`" in line
        assert ca.published_lists() == (), "asking has made none"
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as ca:
        ca.crl()
    with CertificateAuthority.open(folder, clock=clock) as ca:
        assert says(ca) == (True, "2 current")
        clock.forward(profiles.CRL_LIFETIME - 2 * MINUTE)
        assert says(ca) == (True, "2 current"), "the next ones are due, and these are good"
        clock.forward(2 * MINUTE)
        ok, line = says(ca)
        assert not ok and "no current revocation list" in line and " and 1 more: `a2a-pki crl`" in line


def test_lists_are_read_once_for_each_change(folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service asks every three seconds, and a list may have megabytes."""
    read: list[int] = []
    loaded = lists._loaded

    def counted(der: bytes, fresh: lists.Fresh) -> Any:
        read.append(len(der))
        return loaded(der, fresh)

    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as ca:
        serial = ca.issue(request(), AGENT).serial
        ca.crl()
        monkeypatch.setattr(lists, "_loaded", counted)
        for _ in range(3):
            assert ill(ca) == []
        assert read == []
        with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as other:
            other.revoke(serial)
            other.crl()
            read.clear()
        for _ in range(3):
            assert ill(ca) == []
        assert len(read) == 1, "the one that another process has made"
        assert [len(crl) for crl in ca.crl().crls] == [0, 1]


def test_a_database_that_was_tampered_with(ca: CertificateAuthority, folder: Path) -> None:
    ca.issue(request(), AGENT)
    with closing(sqlite3.connect(folder / DATABASE_FILE)) as connection:
        connection.execute("DELETE FROM settings")
        connection.commit()
    checks = {check.name: check for check in ill(ca)}
    assert "damaged" in checks["store"].says
    assert "damaged" in checks["intermediate"].says


def test_published_lists(ca: CertificateAuthority, clock: Clock) -> None:
    assert ca.published_lists() == ()
    serial = ca.issue(request(), AGENT).serial
    ca.revoke(serial)
    ca.crl()
    of_root, of_intermediate = ca.published_lists()
    assert (of_root.revoked, of_intermediate.revoked) == (0, 1)
    assert of_intermediate.file_name == f"{of_intermediate.issuer}.crl"
    assert of_intermediate.next_update - of_intermediate.this_update == profiles.CRL_LIFETIME
    clock.forward(2 * DAY)
    assert ca.published_lists() == (of_root, of_intermediate), "as they were last made, current or not"
