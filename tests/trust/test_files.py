"""Sources that watch files: every way in which others replace them, and every way in which they can be broken."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.forge import Forge
from trust import files
from trust.agent import agent_client, serving
from trust.authorize import members_of
from trust.bundles import RevocationLists, TrustBundle, TrustBundles
from trust.credentials import Credentials, read_bounded
from trust.errors import BundleError, ConfigurationError, CredentialsError, IdentityError, TrustError, WrongPassword
from trust.files import WatchedBundles, WatchedCredentials, WatchedRevocationLists

FLEET, OTHER = Forge("fleet.example"), Forge("other.example")
FIRST, SECOND, THIRD = FLEET.leaf("/first"), FLEET.leaf("/second"), FLEET.leaf("/third")


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every question is a look; how often is tested below."""
    monkeypatch.setattr(files, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(files, "SETTLE_SECONDS", 0.0)


def settled(source: Any) -> Any:
    """What a source says once a change has settled: it is found at one look and believed at the next."""
    source.current()
    return source.current()


def write_pair(folder: Path, credentials: Credentials, chain: str, key: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / chain).write_bytes(credentials.chain_pem)
    (folder / key).write_bytes(credentials.key_pem())


def pem(*roots: Any) -> bytes:
    return b"".join(root.public_bytes(Encoding.PEM) for root in roots)


# Credentials, as others write them


NAMES = {
    "ours": ("chain.pem", "key.pem"),
    "SPIRE's spiffe-helper": ("svid.pem", "svid_key.pem"),
    "cert-manager": ("tls.crt", "tls.key"),
}


@pytest.mark.parametrize("writer", NAMES)
def test_a_folder_of_each_writer_is_followed(writer: str, tmp_path: Path) -> None:
    write_pair(tmp_path, FIRST, *NAMES[writer])
    source = WatchedCredentials(tmp_path)
    assert source.current().thumbprint == FIRST.thumbprint
    write_pair(tmp_path, SECOND, *NAMES[writer])
    assert settled(source).thumbprint == SECOND.thumbprint
    assert source.current().private_key.private_numbers() == SECOND.private_key.private_numbers()  # type: ignore[union-attr]
    assert source.problem is None


def test_names_are_given_where_the_writer_has_others(tmp_path: Path) -> None:
    """As `step ca certificate` has them: any names, and a key in the older SEC1 form."""
    sec1 = FIRST.private_key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    (tmp_path / "agent.crt").write_bytes(FIRST.chain_pem)
    (tmp_path / "agent.key").write_bytes(sec1)
    source = WatchedCredentials(str(tmp_path / "agent.crt"), key=str(tmp_path / "agent.key"))
    assert source.current().thumbprint == FIRST.thumbprint
    write_pair(tmp_path, SECOND, "agent.crt", "agent.key")
    assert settled(source).thumbprint == SECOND.thumbprint


def test_chain_and_key_in_one_file(tmp_path: Path) -> None:
    file = tmp_path / "agent.pem"
    file.write_bytes(FIRST.chain_pem + FIRST.key_pem())
    source = WatchedCredentials(file)
    file.write_bytes(SECOND.chain_pem + SECOND.key_pem())
    assert settled(source).thumbprint == SECOND.thumbprint


def test_a_key_elsewhere(tmp_path: Path) -> None:
    write_pair(tmp_path / "a", FIRST, "chain.pem", "unused")
    (tmp_path / "key").write_bytes(FIRST.key_pem())
    assert WatchedCredentials(tmp_path / "a", key=tmp_path / "key").current().thumbprint == FIRST.thumbprint


def test_a_password_opens_every_key_to_come(tmp_path: Path) -> None:
    FIRST.save(tmp_path, "secret")
    source = WatchedCredentials(tmp_path, password="secret")
    SECOND.save(tmp_path, "secret")
    assert settled(source).thumbprint == SECOND.thumbprint
    THIRD.save(tmp_path, "another password")
    assert settled(source).thumbprint == SECOND.thumbprint
    assert source.problem is not None and "cannot be decrypted" in source.problem
    assert "secret" not in source.problem and "another" not in source.problem


def test_an_interrupted_save_of_ours_is_understood(tmp_path: Path) -> None:
    """The new chain is there, its key still under the temporary name."""
    FIRST.save(tmp_path)
    source = WatchedCredentials(tmp_path)
    (tmp_path / "key.pem.new").write_bytes(SECOND.key_pem())
    assert settled(source).thumbprint == FIRST.thumbprint
    assert source.problem is None
    (tmp_path / "chain.pem").write_bytes(SECOND.chain_pem)
    assert settled(source).thumbprint == SECOND.thumbprint


def test_what_was_changed_while_nobody_asked_is_in_use_at_the_first_question(tmp_path: Path) -> None:
    """Authority that was taken away long ago is not there for one more request."""
    file = tmp_path / "clients"
    file.write_bytes(b"planner billing")
    watched = files.WatchedFile(file, lambda content: content)
    assert watched.current() == b"planner billing"
    file.write_bytes(b"planner")
    long_ago = time.time() - 10
    os.utime(file, (long_ago, long_ago))
    time.sleep(files.SETTLED_NS / 1e9 + 0.1)  # nothing sets back when the file system says that it was changed
    assert watched.current() == b"planner"


def test_what_is_being_written_while_it_is_read_is_not_taken_for_what_was_written_long_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "clients"
    file.write_bytes(b"planner")
    watched = files.WatchedFile(file, lambda content: content)
    file.write_bytes(b"planner billing")
    time.sleep(files.SETTLED_NS / 1e9 + 0.1)

    def reading(path: Path, limit: int) -> bytes:
        path.write_bytes(b"bill")  # the first half of what another program is writing
        return read_bounded(path, limit)

    monkeypatch.setattr(files, "read_bounded", reading)
    assert watched.current() == b"planner"


def test_several_chains_in_one_folder_are_not_guessed_between(tmp_path: Path) -> None:
    for chain, key in NAMES.values():
        write_pair(tmp_path, FIRST, chain, key)
    with pytest.raises(CredentialsError, match=r"holds several chains: got chain\.pem and svid\.pem and tls\.crt"):
        WatchedCredentials(tmp_path)
    assert WatchedCredentials(tmp_path / "svid.pem", key=tmp_path / "svid_key.pem").problem is None


# Ways of replacing a file


def rename(file: Path, data: bytes) -> None:
    new = file.with_name("new")
    new.write_bytes(data)
    new.replace(file)


def rename_with_old_times(file: Path, data: bytes) -> None:
    """As a restored backup: the new file has an older mtime than the one it replaces."""
    new = file.with_name("new")
    new.write_bytes(data)
    os.utime(new, (1_000_000_000, 1_000_000_000))
    new.replace(file)


def rewrite_in_place(file: Path, data: bytes) -> None:
    file.write_bytes(data)


def rewrite_with_the_same_times(file: Path, data: bytes) -> None:
    """The same inode and mtime, as within one tick of a coarse file system."""
    before = file.stat()
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def remove_and_make(file: Path, data: bytes) -> None:
    file.unlink()
    file.write_bytes(data)


WAYS = [rename, rename_with_old_times, rewrite_in_place, rewrite_with_the_same_times, remove_and_make]


@pytest.mark.parametrize("replace", WAYS)
@pytest.mark.parametrize("old", [False, True], ids=["just written", "written long ago"])
def test_every_way_of_replacing_a_file_is_noticed(
    replace: Callable[[Path, bytes], None], old: bool, tmp_path: Path
) -> None:
    file = tmp_path / "agent.pem"
    file.write_bytes(FIRST.chain_pem + FIRST.key_pem())
    if old:
        os.utime(file, (1_500_000_000, 1_500_000_000))
    source = WatchedCredentials(file)
    before = source.current()
    assert settled(source) is before
    for credentials in (SECOND, THIRD, FIRST):
        replace(file, credentials.chain_pem + credentials.key_pem())
        assert settled(source).thumbprint == credentials.thumbprint
        same = source.current()
        assert settled(source) is same


def test_a_change_without_any_sign_is_noticed_in_a_fresh_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writes within one tick of the clock, of one size: stat() says the same for both."""
    file = tmp_path / "fleet.pem"
    file.write_bytes(pem(FLEET.root))
    sign = files._sign(file)
    monkeypatch.setattr(files, "_sign", lambda path: sign)
    source = WatchedBundles({"fleet.example": file})
    file.write_bytes(pem(OTHER.root))
    assert settled(source).by_domain["fleet.example"].roots == (OTHER.root,)


def test_a_file_that_was_written_long_ago_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "fleet.pem"
    file.write_bytes(pem(FLEET.root))
    sign = files._sign(file)
    long_ago = time.time_ns() - 10 * files.TICK_NS
    monkeypatch.setattr(files, "_sign", lambda path: (*sign[:3], long_ago, long_ago))
    source = WatchedBundles({"fleet.example": file})
    settled(source)
    reads: list[Path] = []
    real = files.read_bounded
    monkeypatch.setattr(files, "read_bounded", lambda path, limit: reads.append(path) or real(path, limit))
    for _ in range(5):
        source.current()
    assert reads == []


def test_symbolic_links_that_kubernetes_swaps(tmp_path: Path) -> None:
    """A mounted secret: tls.crt -> ..data/tls.crt, ..data -> ..2026_1, and the middle link is replaced in one step."""

    def publish(name: str, credentials: Credentials) -> None:
        write_pair(tmp_path / name, credentials, "tls.crt", "tls.key")
        (tmp_path / name / "ca.crt").write_bytes(pem(FLEET.root))
        (tmp_path / "..data_tmp").symlink_to(name)
        (tmp_path / "..data_tmp").replace(tmp_path / "..data")

    publish("..2026_1", FIRST)
    for file in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / file).symlink_to(Path("..data") / file)
    source = WatchedCredentials(tmp_path)
    bundles = WatchedBundles({"fleet.example": tmp_path / "ca.crt"})
    before = bundles.current()
    publish("..2026_2", SECOND)
    shutil.rmtree(tmp_path / "..2026_1")
    assert settled(source).thumbprint == SECOND.thumbprint
    assert settled(bundles) is before  # the same content in another file is no change


# Broken files


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "removed": (lambda folder: (folder / "chain.pem").unlink(), "cannot read"),
    "key removed": (lambda folder: (folder / "key.pem").unlink(), "cannot read"),
    "empty": (lambda folder: (folder / "chain.pem").write_bytes(b""), "chain is not readable"),
    "cut in the leaf": (lambda folder: (folder / "chain.pem").write_bytes(SECOND.chain_pem[:200]), "not readable"),
    "half a pair": (lambda folder: (folder / "chain.pem").write_bytes(SECOND.chain_pem), "belongs to another"),
    "key is rubbish": (lambda folder: (folder / "key.pem").write_bytes(b"rubbish"), "key is not readable"),
    "too large": (lambda folder: (folder / "chain.pem").write_bytes(b"x" * (files.MAX_FILE_BYTES + 1)), "too large"),
    "a folder": (lambda folder: ((folder / "key.pem").unlink(), (folder / "key.pem").mkdir()), "cannot read"),
    "no agent": (
        lambda folder: write_pair(folder, FLEET.leaf(sans=None), "chain.pem", "key.pem"),
        "certificate names no agent",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_changes_nothing_and_is_told_once(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_pair(tmp_path, FIRST, "chain.pem", "key.pem")
    source = WatchedCredentials(tmp_path)
    before = source.current()
    break_it, words = BROKEN[name]
    break_it(tmp_path)
    source.current()
    assert source.problem is None  # it may be in the middle of being written
    for _ in range(5):
        assert source.current() is before
    assert source.problem is not None and words in source.problem and "\n" not in source.problem
    assert str(tmp_path) in source.problem and "PRIVATE" not in source.problem
    assert len(caplog.records) == 1
    shutil.rmtree(tmp_path)
    write_pair(tmp_path, SECOND, "chain.pem", "key.pem")
    assert settled(source).thumbprint == SECOND.thumbprint
    assert source.problem is None
    assert "readable again" in caplog.records[-1].getMessage() and len(caplog.records) == 2


def test_what_is_as_before_after_a_problem_is_the_same_object(tmp_path: Path) -> None:
    write_pair(tmp_path, FIRST, "chain.pem", "key.pem")
    source = WatchedCredentials(tmp_path)
    before = source.current()
    (tmp_path / "chain.pem").unlink()
    assert settled(source) is before and source.problem is not None
    (tmp_path / "chain.pem").write_bytes(FIRST.chain_pem)
    assert settled(source) is before and source.problem is None


def test_a_chain_that_is_still_being_written_is_not_taken(tmp_path: Path) -> None:
    """The key was written first, and of the chain there is the leaf only: a pair that fits, and that nobody trusts."""
    write_pair(tmp_path, FIRST, "chain.pem", "key.pem")
    source = WatchedCredentials(tmp_path)
    before = source.current()
    (tmp_path / "key.pem").write_bytes(SECOND.key_pem())
    with (tmp_path / "chain.pem").open("wb") as file:
        file.write(pem(SECOND.chain[0]))
        file.flush()
        assert source.current() is before
        file.write(pem(SECOND.chain[1]))
    assert source.current() is before
    assert source.current().chain == SECOND.chain


def test_a_defect_of_a_parser_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path, FIRST, "chain.pem", "key.pem")
    source = WatchedCredentials(tmp_path)

    def defect(*_: object) -> None:
        raise RuntimeError("the content of a key")

    with monkeypatch.context() as patch:
        patch.setattr(files.Credentials, "from_pem", defect)
        (tmp_path / "chain.pem").write_bytes(SECOND.chain_pem)
        assert settled(source).thumbprint == FIRST.thumbprint
    assert source.problem is not None and source.problem.endswith("cannot be read: RuntimeError")


@pytest.mark.parametrize("kind", [PermissionError, OSError])
def test_a_file_that_becomes_readable_without_a_sign(
    kind: type[OSError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rights of the folder, a mount that came back: stat() of the file itself says the same as before."""
    write_pair(tmp_path, FIRST, "chain.pem", "key.pem")
    for name in ("chain.pem", "key.pem"):
        os.utime(tmp_path / name, (1_000_000_000, 1_000_000_000))
    monkeypatch.setattr(files, "TICK_NS", 0)
    source = WatchedCredentials(tmp_path)

    def refused(path: Path, limit: int) -> bytes:
        raise CredentialsError(f"cannot read {path}", got="no rights")

    write_pair(tmp_path, SECOND, "chain.pem", "key.pem")
    with monkeypatch.context() as patch:
        patch.setattr(files, "read_bounded", refused)
        assert settled(source).thumbprint == FIRST.thumbprint
        assert source.problem is not None
    assert settled(source).thumbprint == SECOND.thumbprint and source.problem is None


# The first load


FIRST_LOADS: list[tuple[str, Callable[[Path], object], type[TrustError]]] = [
    ("no folder", lambda p: WatchedCredentials(p / "nowhere"), CredentialsError),
    ("an empty folder", lambda p: WatchedCredentials(p), CredentialsError),
    ("an encrypted key", lambda p: (FIRST.save(p, "secret"), WatchedCredentials(p)), WrongPassword),
    ("no bundle map", lambda p: WatchedBundles(p / "bundle.json"), BundleError),
    ("no bundle of a domain", lambda p: WatchedBundles({"fleet.example": p / "ca.crt"}), BundleError),
    ("no domain", lambda p: WatchedBundles({}), BundleError),
    ("no domain's name", lambda p: WatchedBundles({"Fleet": p / "ca.crt"}), IdentityError),
    ("no CRL", lambda p: WatchedRevocationLists(p / "a.crl"), BundleError),
]


@pytest.mark.parametrize(("name", "make", "expected"), FIRST_LOADS, ids=[row[0] for row in FIRST_LOADS])
def test_a_first_load_that_fails_is_raised(
    name: str, make: Callable[[Path], object], expected: type[TrustError], tmp_path: Path
) -> None:
    with pytest.raises(TrustError) as caught:
        make(tmp_path)
    assert type(caught.value) is expected


def test_files_that_are_being_written_at_the_start_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pair(tmp_path, FIRST, "chain.pem", "key.pem")
    (tmp_path / "chain.pem").write_bytes(SECOND.chain_pem)
    monkeypatch.setattr(files.time, "sleep", lambda _: (tmp_path / "key.pem").write_bytes(SECOND.key_pem()))
    assert WatchedCredentials(tmp_path).current().thumbprint == SECOND.thumbprint


def test_files_that_never_stop_changing_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bundle.json"
    file.write_text("{")
    monkeypatch.setattr(files.time, "sleep", lambda _: file.write_bytes(file.read_bytes() + b" "))
    with pytest.raises(ConfigurationError, match="do not stop changing"):
        WatchedBundles(file)


# Bundles


def test_a_bundle_map_is_followed(tmp_path: Path) -> None:
    file = tmp_path / "bundle.json"
    file.write_text(FLEET.bundles.to_json())
    source = WatchedBundles(file)
    assert source.current() == FLEET.bundles
    both = TrustBundles.of(FLEET.bundle, OTHER.bundle)
    file.write_text(both.to_json())
    assert settled(source) == both
    file.write_text(both.to_json()[:-20])
    assert settled(source) == both
    assert source.problem is not None and source.problem.startswith(str(file))


def test_a_file_for_each_domain(tmp_path: Path) -> None:
    """SPIRE's svid_bundle.pem and cert-manager's ca.crt name no domain; a SPIFFE bundle document does not either."""
    svid_bundle, document = tmp_path / "svid_bundle.pem", tmp_path / "other.json"
    svid_bundle.write_bytes(pem(FLEET.root))
    document.write_text(OTHER.bundle.to_json())
    source = WatchedBundles({"fleet.example": svid_bundle, "other.example": document})
    assert source.current() == TrustBundles.of(FLEET.bundle, OTHER.bundle)
    before = source.current()
    assert settled(source) is before
    svid_bundle.write_bytes(pem(FLEET.root, FLEET.intermediate))
    after = settled(source)
    assert after.by_domain["fleet.example"].roots == (FLEET.root, FLEET.intermediate)
    assert after.by_domain["other.example"] is before.by_domain["other.example"]


def test_one_broken_file_does_not_hold_up_the_others(tmp_path: Path) -> None:
    fleet, other = tmp_path / "fleet.pem", tmp_path / "other.pem"
    fleet.write_bytes(pem(FLEET.root))
    other.write_bytes(pem(OTHER.root))
    source = WatchedBundles({"fleet.example": fleet, "other.example": other})
    fleet.unlink()
    other.write_bytes(pem(OTHER.root, OTHER.intermediate))
    after = settled(source).by_domain
    assert after["fleet.example"].roots == (FLEET.root,)
    assert len(after["other.example"].roots) == 2
    assert source.problem is not None and "fleet.pem" in source.problem and "other.pem" not in source.problem
    other.write_bytes(b"")
    settled(source)
    assert source.problem is not None and "fleet.pem" in source.problem and "other.pem" in source.problem


def test_an_empty_document_takes_trust_away_and_an_empty_file_does_not(tmp_path: Path) -> None:
    file = tmp_path / "fleet.json"
    file.write_text(FLEET.bundle.to_json())
    source = WatchedBundles({"fleet.example": file})
    file.write_text("")
    assert settled(source).by_domain["fleet.example"].roots == (FLEET.root,)
    file.write_text('{"keys": []}')
    assert settled(source).by_domain["fleet.example"].roots == ()


def test_the_operator_may_go_back(tmp_path: Path) -> None:
    file = tmp_path / "fleet.json"
    file.write_text(TrustBundle(trust_domain="a", roots=(FLEET.root, OTHER.root), sequence=9).to_json())
    source = WatchedBundles({"fleet.example": file})
    file.write_text(TrustBundle(trust_domain="a", roots=(FLEET.root,), sequence=8).to_json())
    assert settled(source).by_domain["fleet.example"].sequence == 8


# Revocation lists


def test_revocation_lists_are_followed_each_by_itself(tmp_path: Path) -> None:
    paths = [tmp_path / "agents.crl", tmp_path / "cas.crl"]

    def publish(lists: RevocationLists) -> None:
        for path, crl in zip(paths, lists.crls, strict=True):
            path.write_bytes(crl.public_bytes(Encoding.DER))

    publish(FLEET.crls())
    source = WatchedRevocationLists(*paths)
    before = source.current()
    assert len(before.crls) == 2 and settled(source) is before
    paths[0].write_bytes(FLEET.crls(FIRST).crls[0].public_bytes(Encoding.PEM))
    after = settled(source)
    assert after.crls[0].get_revoked_certificate_by_serial_number(FIRST.certificate.serial_number) is not None
    assert after.crls[1] is before.crls[1]  # its index need not be made again
    paths[0].write_bytes(b"rubbish")
    assert settled(source) is after
    assert source.problem is not None and "agents.crl" in source.problem


def test_no_revocation_lists(tmp_path: Path) -> None:
    source = WatchedRevocationLists()
    assert source.current() == RevocationLists() and source.current() is source.current() and source.problem is None


# How often, and from how many threads


def test_files_are_looked_at_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOOK_SECONDS", 1.0)
    monkeypatch.setattr(files, "SETTLE_SECONDS", 0.2)
    now = 100.0
    looks: list[float] = []
    monkeypatch.setattr(files.time, "monotonic", lambda: now)
    write_pair(tmp_path, FIRST, "chain.pem", "key.pem")
    source = WatchedCredentials(tmp_path)
    look = source._watch._look
    monkeypatch.setattr(source._watch, "_look", lambda: (looks.append(now), look())[1])
    for tenth in range(40):
        now = 100.0 + tenth / 10
        source.current()
        source.current()
    assert len(looks) == 4
    write_pair(tmp_path, SECOND, "chain.pem", "key.pem")
    now = looks[-1] + 1.0
    assert source.current().thumbprint == FIRST.thumbprint
    now += 0.1
    assert source.current().thumbprint == FIRST.thumbprint
    now += 0.11
    assert source.current().thumbprint == SECOND.thumbprint


def test_one_thread_looks_and_the_others_do_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path, FIRST, "chain.pem", "key.pem")
    source = WatchedCredentials(tmp_path)
    looking, go_on = threading.Event(), threading.Event()

    def slow(path: Path) -> None:
        looking.set()
        assert go_on.wait(10)

    monkeypatch.setattr(files, "_sign", slow)
    looker = threading.Thread(target=source.current)
    looker.start()
    assert looking.wait(10)
    assert source.current().thumbprint == FIRST.thumbprint
    assert looker.is_alive()
    go_on.set()
    looker.join()


def test_all_threads_get_the_same_object(tmp_path: Path) -> None:
    paths = {"fleet.example": tmp_path / "fleet.pem", "other.example": tmp_path / "other.pem"}
    for path in paths.values():
        path.write_bytes(pem(FLEET.root))
    source = WatchedBundles(paths)
    stop = threading.Event()
    seen: list[list[TrustBundles]] = [[] for _ in range(4)]

    def ask(mine: list[TrustBundles]) -> None:
        while not stop.is_set():
            value = source.current()
            if not mine or mine[-1] is not value:
                mine.append(value)

    threads = [threading.Thread(target=ask, args=(mine,)) for mine in seen]
    for thread in threads:
        thread.start()
    for number in range(10):
        paths["fleet.example"].write_bytes(pem(OTHER.root if number % 2 else FLEET.root, FLEET.root))
        time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join()
    final = settled(source)
    for mine in seen:
        assert len({id(value) for value in mine}) == len(mine)  # nobody went back to a value from before
    assert final.by_domain["fleet.example"].roots == (OTHER.root, FLEET.root)


# In use


def test_a_server_and_its_clients_follow_their_files_under_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Certificates, keys and roots are replaced again and again, the CA behind them too, and not one call fails."""
    monkeypatch.setattr(files, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(files, "SETTLE_SECONDS", 0.02)
    fleet = [FLEET, Forge("fleet.example")]  # the CA before and after a rotation
    folders = {"server": tmp_path / "server", "client": tmp_path / "client"}
    roots = tmp_path / "svid_bundle.pem"
    names: set[str] = set()

    def publish(number: int) -> None:
        forge = fleet[number >= 3]
        for name, folder in folders.items():
            write_pair(folder, forge.leaf(f"/{name}"), "svid.pem", "svid_key.pem")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        names.add(scope["extensions"]["a2a-trust.peer"].thumbprint)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    async def main() -> None:
        publish(0)
        roots.write_bytes(pem(fleet[0].root, fleet[1].root))
        common: dict[str, Any] = {
            "bundles": WatchedBundles({"fleet.example": roots}),
            "authorize": members_of("fleet.example"),
        }
        server_source = WatchedCredentials(folders["server"])
        client_source = WatchedCredentials(folders["client"])
        servers: set[str] = set()
        answered = 0
        stop = False

        async with (
            serving(app, source=server_source, lifespan="off", **common) as server,
            agent_client(source=client_source, **common) as client,
        ):

            async def call() -> None:
                nonlocal answered
                while not stop:
                    response = await client.get(server.url)
                    assert response.text == "ok"
                    servers.add(server_source.current().thumbprint)
                    answered += 1

            async with asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(call())
                for number in range(6):
                    if number:
                        publish(number)
                        roots.write_bytes(pem(fleet[0].root, fleet[1].root) + b"\n" * number)
                    async with asyncio.timeout(20):
                        while len(names) <= number or len(servers) <= number:  # both are in use
                            await asyncio.sleep(0.02)
                stop = True
        assert answered > 10
        assert len(names) == 6 and len(servers) == 6

    asyncio.run(main())
