"""How a CA comes into being: whole or not at all."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pki import CertificateAuthority, founding, keys
from pki.errors import AuthorityExists, AuthorityMissing, PKIError, PolicyRefused, WrongPassword
from pki.store import DATABASE_FILE, Store
from tests.pki.conftest import DOMAIN, PASSWORD
from tests.pki.judges import listing
from trust.errors import IdentityError


def create(target: Path | str, **changes: object) -> CertificateAuthority:
    options: dict[str, object] = {"trust_domain": DOMAIN, "password": PASSWORD}
    return CertificateAuthority.create(target, **{**options, **changes})  # type: ignore[arg-type]


def test_what_is_in_the_folder(template: Path) -> None:
    assert listing(template) == [DATABASE_FILE]
    assert stat.S_IMODE((template / DATABASE_FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(template.stat().st_mode) == 0o700


def test_no_private_key_is_in_the_clear(template: Path) -> None:
    data = (template / DATABASE_FILE).read_bytes()
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in data
    assert b"BEGIN PRIVATE KEY" not in data
    assert b"BEGIN EC PRIVATE KEY" not in data
    store = Store.open(template)
    pems = [record.key_pem for record in store.issuers()]
    store.close()
    assert len(pems) == 2
    for pem in pems:
        assert pem is not None
        assert keys.read(pem, PASSWORD).private_numbers().private_value.to_bytes(32) not in data


def test_parents_are_made_and_nothing_is_left_beside(tmp_path: Path) -> None:
    with create(tmp_path / "a" / "b" / "ca", crl_base_url="http://pki.example/crl/", name_constraint=True) as ca:
        assert ca.trust_domain == DOMAIN
    assert listing(tmp_path / "a" / "b") == ["ca"]


@pytest.mark.parametrize("kind", ["CA", "empty folder", "file", "dangling link"])
def test_whatever_is_there_stays(kind: str, template: Path, tmp_path: Path) -> None:
    target = tmp_path / "ca"
    if kind == "CA":
        target = template
    elif kind == "empty folder":
        target.mkdir()
    elif kind == "file":
        target.write_text("mine")
    else:
        target.symlink_to(tmp_path / "nowhere")
    before = listing(target.parent), target.lstat()
    with pytest.raises(PKIError, match="exists already") as caught:
        create(target)
    assert type(caught.value) is AuthorityExists
    assert (listing(target.parent), target.lstat()) == before


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"trust_domain": "Fleet.Example"}, IdentityError),
        ({"trust_domain": "spiffe://fleet.example"}, IdentityError),
        ({"trust_domain": ""}, IdentityError),
        ({"password": ""}, WrongPassword),
        ({"crl_base_url": "ftp://pki.example"}, PolicyRefused),
        ({"public_url": "pki.example"}, PolicyRefused),
        ({"trust_domain": ".example", "name_constraint": True}, PolicyRefused),
        ({"trust_domain": "fleet.", "name_constraint": True}, PolicyRefused),
        ({"trust_domain": "fleet..example", "name_constraint": True}, PolicyRefused),
        ({"trust_domain": "10.0.0.1", "name_constraint": True}, PolicyRefused),
    ],
)
def test_wrong_arguments_leave_nothing(changes: dict[str, object], expected: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(expected) as caught:
        create(tmp_path / "ca", **changes)
    assert type(caught.value) is expected
    assert listing(tmp_path) == []


@pytest.mark.parametrize("stage", ["first key", "second key", "database", "rename"])
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_nothing(
    stage: str, interruption: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = keys.write
    written = []

    def write(*arguments: Any) -> bytes:
        if len(written) == ("first key", "second key").index(stage):
            raise interruption
        written.append(arguments)
        return real(*arguments)

    def interrupt(*_: object, **__: object) -> None:
        raise interruption

    if stage.endswith("key"):
        monkeypatch.setattr(keys, "write", write)
    elif stage == "database":
        monkeypatch.setattr(Store, "create", interrupt)
    else:
        monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(interruption):
        create(tmp_path / "ca")
    assert listing(tmp_path) == []


def test_a_power_cut_leaves_nothing_that_looks_like_a_ca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is gone before the rename: the name is free, and what is left is not at that name."""
    target = tmp_path / "ca"
    script = (
        "import os, pathlib\n"
        "from pki import CertificateAuthority\n"
        "pathlib.Path.rename = lambda *_: os._exit(9)\n"
        f"CertificateAuthority.create({str(target)!r}, trust_domain='fleet.example', password='x')\n"
    )
    assert _python(script) == 9
    assert not target.exists()
    assert all(name.startswith(".ca.") and name.endswith(".partial") for name in listing(tmp_path))
    create(target).close()


def _python(script: str) -> int:
    return subprocess.run([sys.executable, "-c", script], timeout=60).returncode


def test_somebody_who_was_faster_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "ca"
    real = Store.create

    def slow(*arguments: Any, **named: Any) -> None:
        target.mkdir()
        real(*arguments, **named)

    monkeypatch.setattr(Store, "create", slow)
    with pytest.raises(AuthorityExists):
        create(target)
    assert listing(tmp_path) == ["ca"]
    assert listing(target) == []


def test_a_place_where_nothing_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PKIError, match=r"cannot make .*ca: got ") as caught:
        create(tmp_path / "file" / "ca")
    assert type(caught.value) is PKIError


def test_the_folder_of_a_database_url(tmp_path: Path) -> None:
    assert founding.folder_of(f"sqlite:///{tmp_path}/{DATABASE_FILE}") == tmp_path
    assert founding.folder_of(str(tmp_path)) == founding.folder_of(tmp_path) == tmp_path


@pytest.mark.parametrize("url", ["postgresql://ca/db", "sqlite:///tmp/other.db", "sqlite://ca.db", "file:///ca.db"])
def test_urls_of_no_ca(url: str) -> None:
    with pytest.raises(PKIError) as caught:
        founding.folder_of(url)
    assert type(caught.value) is AuthorityMissing
