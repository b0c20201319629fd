"""An agent's chain and key: in memory, in files, and refused where they do not belong together."""

from __future__ import annotations

import itertools
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from tests.forge import Forge
from trust.credentials import (
    CHAIN_FILE,
    KEY_FILE,
    MAX_FILE_BYTES,
    NEW_KEY_FILE,
    Credentials,
    read_bounded,
    write_atomically,
)
from trust.errors import CredentialsError, WrongPassword

FORGE = Forge()
MINE = FORGE.leaf()
OTHERS = FORGE.leaf("/other")
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX file modes")


def test_chain_and_key_are_joined() -> None:
    joined = Credentials.of(MINE.chain, MINE.private_key)
    assert joined == MINE
    assert joined.certificate is MINE.chain[0]
    assert joined.chain_der == [c.public_bytes(Encoding.DER) for c in MINE.chain]
    assert joined.current() is joined
    assert "key=" not in repr(joined) and "chain=" not in repr(joined)


def test_ed25519() -> None:
    agent = FORGE.leaf(key=ed25519.Ed25519PrivateKey.generate())
    again = Credentials.from_pem(agent.chain_pem, agent.key_pem("password"), "password")
    assert again.thumbprint == agent.thumbprint


@pytest.mark.parametrize(
    ("chain", "key", "message"),
    [
        ((), MINE.private_key, "no certificate"),
        (MINE.chain, OTHERS.private_key, "belongs to another"),
        (MINE.chain[::-1], MINE.private_key, "belongs to another"),
        (MINE.chain, ed25519.Ed25519PrivateKey.generate(), "belongs to another"),
        (MINE.chain, MINE.private_key.public_key(), "expected an EC, Ed25519 or ML-DSA key"),
        (FORGE.leaf(key=(key := rsa.generate_private_key(65537, 2048))).chain, key, "got RSAPrivateKey"),
        (FORGE.leaf(sans=None, key=MINE.private_key).chain, MINE.private_key, "names no agent"),
    ],
    ids=["no chain", "another key", "leaf not first", "another kind", "a public key", "RSA", "no SPIFFE ID"],
)
def test_parts_that_do_not_belong_together(chain: tuple[x509.Certificate, ...], key: object, message: str) -> None:
    with pytest.raises(CredentialsError, match=message):
        Credentials.of(chain, key)  # type: ignore[arg-type]


def test_a_certificate_whose_key_cannot_be_read() -> None:
    point = MINE.private_key.public_key().public_bytes(Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    off_curve = MINE.chain_der[0].replace(point, point[:-1] + bytes([point[-1] ^ 1]))
    with pytest.raises(CredentialsError, match="belongs to another"):
        Credentials.of((x509.load_der_x509_certificate(off_curve),), MINE.private_key)


# Files


@pytest.mark.parametrize("password", [None, "correct horse", b"battery staple"])
def test_saved_and_loaded(tmp_path: Path, password: str | bytes | None) -> None:
    folder = tmp_path / "agents" / "billing"
    MINE.save(folder, password)
    loaded = Credentials.load(folder, password)
    assert loaded.chain == MINE.chain
    assert loaded.thumbprint == MINE.thumbprint
    assert loaded.key_pem() == MINE.key_pem()
    assert (b"ENCRYPTED" in (folder / KEY_FILE).read_bytes()) == (password is not None)
    assert sorted(p.name for p in folder.iterdir()) == [CHAIN_FILE, KEY_FILE]


@posix
def test_the_key_is_its_owners_alone(tmp_path: Path) -> None:
    MINE.save(tmp_path / "a")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "a" / KEY_FILE).stat().st_mode) == 0o600
    (tmp_path / "a" / KEY_FILE).chmod(0o644)  # an older file with too wide a mode is replaced, not filled
    MINE.save(tmp_path / "a")
    assert stat.S_IMODE((tmp_path / "a" / KEY_FILE).stat().st_mode) == 0o600


def test_one_file_with_both(tmp_path: Path) -> None:
    file = tmp_path / "agent.pem"
    for content in (MINE.chain_pem + MINE.key_pem(), MINE.key_pem() + MINE.chain_pem):
        file.write_bytes(content)
        assert Credentials.load(file).thumbprint == MINE.thumbprint


def test_a_key_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "certs.pem").write_bytes(MINE.chain_pem)
    (tmp_path / "secret.pem").write_bytes(MINE.key_pem())
    assert Credentials.load(tmp_path / "certs.pem", key=tmp_path / "secret.pem").thumbprint == MINE.thumbprint
    (tmp_path / CHAIN_FILE).write_bytes(MINE.chain_pem)
    assert Credentials.load(str(tmp_path), key=str(tmp_path / "secret.pem")).thumbprint == MINE.thumbprint


def test_a_password_for_a_key_that_needs_none() -> None:
    assert Credentials.from_pem(MINE.chain_pem, MINE.key_pem(), "unneeded").thumbprint == MINE.thumbprint


@pytest.mark.parametrize("password", [None, "", "wrong"])
def test_a_missing_or_wrong_password(password: str | None) -> None:
    with pytest.raises(WrongPassword):
        Credentials.from_pem(MINE.chain_pem, MINE.key_pem("right"), password)


def test_a_key_that_a_crash_left_under_its_temporary_name_survives_the_next_save(tmp_path: Path) -> None:
    first, second = FORGE.leaf("/billing"), FORGE.leaf("/billing")
    first.save(tmp_path)
    # As a crash between the chain and the rename leaves it: the live key has only its temporary name.
    first.save(tmp_path / "crashed")
    (tmp_path / "crashed" / "key.pem").rename(tmp_path / "crashed" / "key.pem.new")
    second.save(tmp_path / "other")
    (tmp_path / "other" / "key.pem").rename(tmp_path / "crashed" / "key.pem")
    folder = tmp_path / "crashed"
    assert Credentials.load(folder).thumbprint == first.thumbprint
    third = FORGE.leaf("/billing")
    with pytest.MonkeyPatch.context() as patch:
        # A second crash, as soon as the new key is written and before its chain.
        patch.setattr(Credentials, "chain_pem", property(lambda _: (_ for _ in ()).throw(KeyboardInterrupt)))
        with pytest.raises(KeyboardInterrupt):
            third.save(folder)
    assert Credentials.load(folder).thumbprint == first.thumbprint
    third.save(folder)
    assert Credentials.load(folder).thumbprint == third.thumbprint


def test_an_old_encrypted_pem() -> None:
    legacy = MINE.private_key.private_bytes(  # type: ignore[union-attr]
        Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.BestAvailableEncryption(b"right"),
    )
    assert Credentials.from_pem(MINE.chain_pem, legacy, "right").thumbprint == MINE.thumbprint
    with pytest.raises(WrongPassword):
        Credentials.from_pem(MINE.chain_pem, legacy)


RSA_KEY = rsa.generate_private_key(65537, 2048).private_bytes(
    Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
# An elliptic curve that OpenSSL knows and the parser does not: SM2, in PKCS#8.
SM2_KEY = b"""-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqBHM9VAYItBG0wawIBAQQgAQEBAQEBAQEBAQEB
AQEBAQEBAQEBAQEBAQEBAQEBAQGhRANCAAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==
-----END PRIVATE KEY-----
"""


@pytest.mark.parametrize("password", [None, "any"])
@pytest.mark.parametrize(
    "key_pem",
    [b"", b"rubbish", MINE.chain_pem, MINE.key_pem()[:-60], RSA_KEY, SM2_KEY],
    ids=["empty", "rubbish", "a certificate", "cut short", "RSA", "an unknown curve"],
)
def test_what_is_not_a_private_key_of_ours(key_pem: bytes, password: str | None) -> None:
    with pytest.raises(CredentialsError) as caught:
        Credentials.from_pem(MINE.chain_pem, key_pem, password)
    assert type(caught.value) is CredentialsError


@pytest.mark.parametrize("chain_pem", [b"", b"rubbish", MINE.key_pem(), MINE.chain_pem[:100]], ids=range(4))
def test_what_is_not_a_chain(chain_pem: bytes) -> None:
    with pytest.raises(CredentialsError, match="chain is not readable"):
        Credentials.from_pem(chain_pem, MINE.key_pem())


def test_no_secret_in_any_message() -> None:
    secret = "correct horse battery staple"
    with pytest.raises(WrongPassword) as caught:
        Credentials.from_pem(MINE.chain_pem, MINE.key_pem("right"), secret)
    assert secret not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="cannot read"):
        Credentials.load(tmp_path / "missing.pem")
    with pytest.raises(CredentialsError, match=CHAIN_FILE):
        Credentials.load(tmp_path)
    (tmp_path / CHAIN_FILE).write_bytes(MINE.chain_pem)
    with pytest.raises(CredentialsError, match=KEY_FILE):
        Credentials.load(tmp_path)


def test_large_files_are_not_read(tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(b"x" * MAX_FILE_BYTES)
    assert len(read_bounded(file)) == MAX_FILE_BYTES
    file.write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    with pytest.raises(CredentialsError, match="too large"):
        read_bounded(file)


def test_a_write_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"old", mode=0o600)

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(CredentialsError, match="No space left"):
        write_atomically(file, b"new", mode=0o600)
    assert file.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_interrupted_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for place, name in ((os, "fsync"), (Path, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                write_atomically(tmp_path / "file", b"new", mode=0o600)
        assert list(tmp_path.iterdir()) == []


@posix
def test_the_new_name_is_on_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was synchronised under another name is lost with that name, unless its folder is as well."""
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synchronise(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def rename(path: Path, target: Path) -> None:
        events.append("rename")
        replace(path, target)

    monkeypatch.setattr(os, "fsync", synchronise)
    monkeypatch.setattr(Path, "replace", rename)
    write_atomically(tmp_path / "file", b"new", mode=0o600)
    assert events == ["file", "rename", "folder"]
    events.clear()
    MINE.save(tmp_path)
    assert events == ["file", "rename", "folder"] * 2 + ["rename", "folder"]


# A pair that is being replaced

RENEWED = FORGE.leaf()
TOUCHING = ((os, "open"), (os, "fsync"), (os, "close"), (Path, "replace"), (Path, "unlink"))


class Stop(BaseException):
    """The machine goes down: nobody handles this one."""


def stop_at(step: int, patch: pytest.MonkeyPatch, *, after: bool) -> None:
    """Let everything that touches the disk raise from the given step on; that one step may still be done."""
    count = itertools.count(1)

    def wrap(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            number = next(count)
            if number < step:
                return real(*arguments)
            if number == step and after:
                real(*arguments)
            raise Stop

        return call

    for place, name in TOUCHING:
        patch.setattr(place, name, wrap(getattr(place, name)))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("passwords", [(None, None), ("old", "new")], ids=["in the clear", "with another password"])
def test_a_crash_at_any_step_leaves_the_old_pair_or_the_new_one(
    after: bool, passwords: tuple[str | None, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = passwords
    outcomes = []
    for step in itertools.count(1):
        folder = tmp_path / str(step)
        MINE.save(folder, old)
        with monkeypatch.context() as patch:
            stop_at(step, patch, after=after)
            try:
                RENEWED.save(folder, new)
                finished = True
            except Stop:
                finished = False
        renewed = x509.load_pem_x509_certificates((folder / CHAIN_FILE).read_bytes())[0] == RENEWED.certificate
        expected, password = (RENEWED, new) if renewed else (MINE, old)
        loaded = Credentials.load(folder, password)
        assert (loaded.thumbprint, loaded.key_pem()) == (expected.thumbprint, expected.key_pem())
        outcomes.append(renewed)
        again = FORGE.leaf()
        again.save(folder)  # and the next renewal starts from there
        assert Credentials.load(folder).thumbprint == again.thumbprint
        assert not (folder / NEW_KEY_FILE).exists()
        if finished:
            break
    assert len(outcomes) > 10, "each of the files, names and folders was a step"
    assert outcomes == sorted(outcomes), "old until the one moment, and new from then on"
    assert not outcomes[0] and outcomes[-1]


@posix
@pytest.mark.parametrize("survived", range(4))
def test_a_killed_process_leaves_the_old_pair_or_the_new_one(survived: int, tmp_path: Path) -> None:
    """No handler runs: the process is gone after the given number of renames."""
    MINE.save(tmp_path)
    RENEWED.save(tmp_path / "renewed")
    script = (
        "import itertools, os, pathlib, signal, sys\n"
        "from trust import Credentials\n"
        "renewed, count, real = Credentials.load(sys.argv[2]), itertools.count(), pathlib.Path.replace\n"
        "def replace(path, target):\n"
        "    if next(count) == int(sys.argv[3]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(path, target)\n"
        "pathlib.Path.replace = replace\n"
        "renewed.save(sys.argv[1])\n"
    )
    arguments = [str(tmp_path), str(tmp_path / "renewed"), str(survived)]
    done = subprocess.run([sys.executable, "-c", script, *arguments], timeout=60)
    assert done.returncode == (0 if survived == 3 else -9)
    assert Credentials.load(tmp_path).thumbprint == (RENEWED if survived >= 2 else MINE).thumbprint


def test_whoever_reads_meanwhile_gets_a_pair(tmp_path: Path) -> None:
    MINE.save(tmp_path)
    pairs = {agent.thumbprint: agent for agent in (MINE, RENEWED)}
    stop = threading.Event()
    seen: set[str] = set()
    problems: list[Exception] = []

    def read() -> None:
        while not stop.is_set():
            try:
                loaded = Credentials.load(tmp_path)
                assert loaded.key_pem() == pairs[loaded.thumbprint].key_pem()
                seen.add(loaded.thumbprint)
            except Exception as error:
                problems.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(40):
            RENEWED.save(tmp_path)
            MINE.save(tmp_path)
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert problems == []
    assert seen == set(pairs)


def test_a_pair_that_changes_between_two_reads_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain of before with the key of after: the one moment at which neither key is the chain's."""
    MINE.save(tmp_path)
    real, saved = Path.open, []

    def slow(path: Path, mode: str = "r") -> object:
        if path.name == KEY_FILE and not saved:
            saved.append(True)
            RENEWED.save(tmp_path)
        return real(path, mode)

    monkeypatch.setattr(Path, "open", slow)
    assert Credentials.load(tmp_path).thumbprint == RENEWED.thumbprint


def test_keys_that_fit_no_chain_are_refused(tmp_path: Path) -> None:
    MINE.save(tmp_path)
    for name in (KEY_FILE, NEW_KEY_FILE):
        (tmp_path / name).write_bytes(OTHERS.key_pem())
    with pytest.raises(CredentialsError, match="belongs to another"):
        Credentials.load(tmp_path)


def test_a_key_that_is_named_is_the_only_one(tmp_path: Path) -> None:
    MINE.save(tmp_path)
    (tmp_path / NEW_KEY_FILE).write_bytes(MINE.key_pem())
    (tmp_path / KEY_FILE).write_bytes(OTHERS.key_pem())
    with pytest.raises(CredentialsError, match="belongs to another"):
        Credentials.load(tmp_path, key=tmp_path / KEY_FILE)


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CredentialsError, match="cannot create"):
        MINE.save(tmp_path / "file" / "sub")
    with pytest.raises(CredentialsError, match="cannot write"):
        write_atomically(tmp_path / "missing" / "file", b"", mode=0o600)
    (tmp_path / "folder" / KEY_FILE).mkdir(parents=True)
    with pytest.raises(CredentialsError, match="cannot write"):
        MINE.save(tmp_path / "folder")


def test_p384_keys_are_kept() -> None:
    agent = FORGE.leaf(key=ec.generate_private_key(ec.SECP384R1()))
    assert Credentials.from_pem(agent.chain_pem, agent.key_pem()).private_key.key_size == 384  # type: ignore[union-attr]
