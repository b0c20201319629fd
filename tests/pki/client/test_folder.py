"""The agent's folder: locks, and files that are not what we wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from pki.client import folder as module
from pki.client.folder import AgentFolder, Enrolment, FolderLock
from tests.pki import cpu
from tests.pki.client.fake import FORGE
from trust.bundles import RevocationLists
from trust.errors import CredentialsError


def test_a_lock_is_held_by_one_and_ends_with_it(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path / "lock"), FolderLock(tmp_path / "lock")
    assert first.acquire() and first.acquire()
    assert not second.acquire()
    first.release()
    first.release()
    assert second.acquire()
    second.release()


def test_a_lock_in_a_folder_that_was_replaced_is_none(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    first, second = FolderLock(home / "lock"), FolderLock(home / "lock")
    assert first.acquire()
    home.rename(tmp_path / "old")
    shutil.copytree(tmp_path / "old", home)
    assert second.acquire()
    assert not first.acquire()
    second.release()
    assert first.acquire()
    shutil.rmtree(home)
    with pytest.raises(CredentialsError):
        first.acquire()


def test_who_writes_for_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.2)
    files = AgentFolder(tmp_path)
    with files.writing(), pytest.raises(CredentialsError, match="in use"), files.writing():
        pytest.fail("two at once")
    with files.writing():
        pass


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        ({}, "is not enrolled: got no chain.pem; run `a2a-pki enrol`"),
        ({"chain.pem": FORGE.leaf().chain_pem}, "key.pem is missing; enrol again"),
        (
            {"chain.pem": b"x", "key.pem": FORGE.leaf().key_pem()},
            "chain.pem is damaged: got certificate chain is not readable",
        ),
        ({"chain.pem": FORGE.leaf().chain_pem, "key.pem": b"x"}, "key.pem is damaged: got"),
        ({"chain.pem": FORGE.leaf().chain_pem, "key.pem": FORGE.leaf().key_pem()}, "key.pem is damaged: got"),
    ],
    ids=["nothing", "no key", "no chain", "no key in it", "another key"],
)
def test_credentials_that_are_none_name_the_file(damage: dict[str, bytes], line: str, tmp_path: Path) -> None:
    for name, content in damage.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CredentialsError, match=line) as caught:
        AgentFolder(tmp_path).credentials()
    assert "enrol" in str(caught.value)


def test_a_key_that_is_damaged_or_of_another_kind_is_made_anew(tmp_path: Path) -> None:
    files = AgentFolder(tmp_path)
    assert files.enrolling_key("a" * 64) is None
    key = ec.generate_private_key(ec.SECP256R1())
    files.keep_enrolling_key("a" * 64, key)
    found = files.enrolling_key("a" * 64)
    assert found is not None and found.private_numbers() == key.private_numbers()
    assert files.enrolling_key("b" * 64) is None
    (file,) = tmp_path.glob("key.pem.enrolling-*")
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_bytes(b"rubbish")
    assert files.enrolling_key("a" * 64) is None
    files.drop_enrolling_keys()
    files.drop_enrolling_keys()
    assert list(tmp_path.iterdir()) == []


def test_a_key_under_a_password(tmp_path: Path) -> None:
    files = AgentFolder(tmp_path, "secret")
    files.keep_enrolling_key("a" * 64, ec.generate_private_key(ec.SECP256R1()))
    assert files.enrolling_key("a" * 64) is not None
    assert AgentFolder(tmp_path).enrolling_key("a" * 64) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"url": 1}', '{"url": "https://x", "token_digest": 1}', "[" * 9000])
def test_a_record_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "ca.json").write_text(text)
    with pytest.raises(CredentialsError, match="enrol again"):
        AgentFolder(tmp_path).enrolment()


def test_a_record(tmp_path: Path) -> None:
    files = AgentFolder(tmp_path)
    assert files.enrolment() is None
    files.save_enrolment(Enrolment(url="https://ca.example", root_fingerprint="sha256:00", token_digest="11"))
    assert files.enrolment() == Enrolment(url="https://ca.example", root_fingerprint="sha256:00", token_digest="11")


def test_revocation_lists_come_back(tmp_path: Path) -> None:
    files = AgentFolder(tmp_path)
    assert files.crls() is None
    lists = FORGE.crls(FORGE.leaf())
    files.save_crls(lists)
    found = files.crls()
    assert found is not None and [c.signature for c in found.crls] == [c.signature for c in lists.crls]
    for text in (b"", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"):
        (tmp_path / "crls.pem").write_bytes(text)
        assert files.crls() is None
    files.save_crls(RevocationLists())
    assert files.crls() is None


def test_lists_without_an_end_take_no_longer_than_others(tmp_path: Path) -> None:
    (tmp_path / "crls.pem").write_bytes(b"-----BEGIN X509 CRL-----a" * 100_000)
    with cpu.within(30):
        assert AgentFolder(tmp_path).crls() is None


def test_a_damaged_bundle_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text("{")
    assert AgentFolder(tmp_path).save_bundle(FORGE.bundle) == FORGE.bundles
    assert AgentFolder(tmp_path).bundles() == FORGE.bundles


def test_the_state_changes_with_every_file_that_counts(tmp_path: Path) -> None:
    files = AgentFolder(tmp_path)
    assert files.state() is None
    FORGE.leaf().save(tmp_path)
    first = files.state()
    assert first == files.state() is not None
    files.save_bundle(FORGE.bundle)
    second = files.state()
    FORGE.leaf().save(tmp_path)
    assert len({str(first), str(second), str(files.state())}) == 3
