"""What is new about a new CA, whatever the database was before."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from pki import CertificateAuthority
from pki.errors import DuplicateCertificate
from pki.records import State
from pki.store import backup, restore
from tests.pki.conftest import PASSWORD, Clock


def _active(ca: CertificateAuthority, kind: str = "intermediate") -> str:
    return next(one.key_id for one in ca.issuers() if one.kind == kind and one.state is State.ACTIVE)


def _next(folder: Path, clock: Clock, kind: str) -> x509.Certificate:
    """The CA that follows, as it was made."""
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as ca:
        if kind == "tainted":
            ca.taint(_active(ca))
        else:
            assert ca.rotate(kind=kind, force=True)
        return ca.issuers()[-1].certificate


@pytest.mark.parametrize("kind", ["tainted", "intermediate", "root"])
def test_no_ca_has_the_serial_number_of_one_that_was_made_after_the_backup(
    kind: str, folder: Path, clock: Clock, tmp_path: Path
) -> None:
    """Its name is the same as well: revoked, it would take the other one with it (RFC 5280 section 4.1.2.2)."""
    backup(folder, tmp_path / "saved")
    made = [_next(folder, clock, kind)]
    for _ in range(2):
        restore(tmp_path / "saved", folder, password=PASSWORD, replace=True)
        made.append(_next(folder, clock, kind))
    assert len({one.issuer.public_bytes() for one in made}) == (3 if kind == "root" else 1)
    assert len({one.serial_number for one in made}) == 3


def test_a_serial_number_that_was_used_makes_no_ca(folder: Path, clock: Clock) -> None:
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as ca:
        used = ca.intermediate.serial_number
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock, serials=lambda: used) as ca:
        with pytest.raises(DuplicateCertificate):
            ca.rotate(kind="intermediate", force=True)
        assert len(ca.issuers()) == 2
        # What protects others does not wait for a better one.
        old = _active(ca)
        with pytest.raises(DuplicateCertificate):
            ca.taint(old)
        assert next(one.state for one in ca.issuers() if one.key_id == old) is State.REVOKED
