"""What a restore leaves behind, and what it must not bring back; the way there and back is in `test_backup`."""

from __future__ import annotations

import sqlite3
import stat
import tempfile
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import pytest
from cryptography import x509

from pki.errors import BackupRefused, PKIError
from pki.store import DATABASE_FILE, Store, backup, restore, restoring
from tests.pki.conftest import NOW
from tests.pki.judges import listing
from tests.pki.store import parts
from tests.pki.store.parts import PASSWORD, crl, issue, leaf, problems
from tests.pki.store.test_backup import everything, fill


@pytest.fixture
def saved(folder: Path, tmp_path: Path) -> Path:
    store = parts.opened(folder)
    fill(store)
    store.close()
    backup(folder, tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the system would put temporary files."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


STALE = [
    "UPDATE crls SET stale = 1, der = CAST('junk' AS BLOB)",
    "UPDATE crls SET stale = 1, issuer = (SELECT key_id FROM issuers WHERE kind = 'root')",
    "UPDATE crls SET stale = 1, number = number - 1",
]


@pytest.mark.parametrize("statement", STALE, ids=["junk", "of another CA", "counted back"])
def test_a_list_that_is_stale_has_to_be_ours_all_the_same(statement: str, saved: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(saved)) as plain, plain:
        assert plain.execute(statement).rowcount == 1
    with pytest.raises(PKIError, match=r"revocation list [0-9a-f]{40}\.crl ") as caught:
        restore(saved, tmp_path / "target", password=PASSWORD)
    assert type(caught.value) is BackupRefused
    assert not (tmp_path / "target").exists()


def test_a_list_that_became_stale_comes_back(folder: Path, tmp_path: Path) -> None:
    store = parts.opened(folder)
    record = leaf()
    issue(store, record)
    before = parts.number(crl(store))
    store.revoke([record.serial], reason=x509.ReasonFlags.superseded, now=NOW)
    store.close()
    backup(folder, tmp_path / "saved")
    for _ in range(2):  # the second time, as it was restored
        restore(tmp_path / "saved", folder, password=PASSWORD, replace=True)
        backup(folder, tmp_path / "again")
        (tmp_path / "again").replace(tmp_path / "saved")
    store = parts.opened(folder)
    assert parts.number(crl(store)) > before
    assert problems(store) == ()
    store.close()


@pytest.mark.parametrize("end", [SystemExit, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("there", [True, False], ids=["in the place of a CA", "a new one"])
def test_a_restore_that_is_ended_leaves_nothing(
    end: type[BaseException],
    there: bool,
    folder: Path,
    saved: Path,
    tmp_path: Path,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No copy of the keys is anywhere: neither in the folder of temporary files, nor beside the CA."""
    seen: list[Path] = []

    def ended(copy: object, fresh: object, *_: object) -> NoReturn:
        for location in (copy, fresh):
            assert isinstance(location, restoring.Location)
            assert location.file is not None and stat.S_IMODE(location.file.stat().st_mode) == 0o600
            location.file.with_name(location.file.name + "-wal").touch()
            seen.append(location.file)
        raise end

    monkeypatch.setattr(restoring, "_rebuilt", ended)
    target = folder if there else tmp_path / "target"
    with pytest.raises(BackupRefused if end is OSError else end):
        restore(saved, target, password=PASSWORD, replace=there)
    assert [path.parent for path in seen] == [target] * 2, "on the disk where the CA is, and nowhere else"
    assert listing(temporary) == []
    assert listing(folder) == [DATABASE_FILE]
    assert there or not target.exists()


def test_nothing_is_left_of_a_restore_into_postgresql(saved: Path, temporary: Path, postgresql: str) -> None:
    restore(saved, postgresql, password=PASSWORD)
    assert listing(temporary) == []


@pytest.mark.parametrize("end", [SystemExit, KeyboardInterrupt])
def test_a_signal_between_two_renames_puts_the_old_ca_back(
    end: type[BaseException], folder: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = parts.opened(folder)
    issue(store, leaf())
    before = everything(store)
    store.close()
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise end
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(end):
        restore(saved, folder, password=PASSWORD, replace=True)
    monkeypatch.undo()
    store = Store.open(folder)
    assert everything(store) == before
    store.close()
    assert listing(folder) == [DATABASE_FILE]
