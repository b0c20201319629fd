"""The whole CA elsewhere: its database on a server, with two instances; its keys on a token."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from pki import CertificateAuthority, Issued, PKIError, issuers, keys, rotation
from pki.errors import (
    AgentBanned,
    AuthorityExists,
    EnrolmentTokenUsed,
    KeyStoreError,
    LedgerDamaged,
    NotErased,
    PasswordChanged,
    PolicyMalformed,
    StateChanged,
    WrongPassword,
)
from pki.keys import KeyPair
from pki.profiles import Issuer
from pki.records import State
from pki.rotation import Action
from pki.store import DATABASE_FILE, database
from tests.pki.conftest import AGENT, DOMAIN, PASSWORD, Clock
from tests.pki.judges import request
from tests.pki.softhsm import MODULE, PIN, SO_PIN, needs_softhsm
from tests.pki.store import parts
from tests.pki.store.parts import intrude

# A database on a server.


@pytest.fixture
def server() -> Iterator[str]:
    with parts.postgresql() as url:
        yield url


def test_two_instances_on_one_server(server: str, clock: Clock) -> None:
    created = CertificateAuthority.create(
        server, trust_domain=DOMAIN, password=PASSWORD, now=clock(), clock=clock, crl_base_url="http://pki.example/crl"
    )
    with created as first, CertificateAuthority.open(server, password=PASSWORD, clock=clock) as second:
        with pytest.raises(AuthorityExists):
            CertificateAuthority.create(server, trust_domain=DOMAIN, password=PASSWORD)
        instances = (first, second)
        data = request()
        with ThreadPoolExecutor(8) as pool:
            issued = list(pool.map(lambda number: instances[number % 2].issue(data, AGENT).serial, range(80)))
        assert sorted(issued) == sorted(r.serial for r in second.certificates(kind="agent"))

        # A token is burnt once, a rotation is done once, a ban holds everywhere.
        token = first.create_token(AGENT).text
        barrier = threading.Barrier(8)

        def enrol(number: int) -> Issued | type[BaseException]:
            barrier.wait()
            try:
                return instances[number % 2].enrol(request(), token)
            except PKIError as error:
                return type(error)

        def rotate(number: int) -> list[Action]:
            barrier.wait()
            return [step.action for step in instances[number % 2].rotate(kind="intermediate")]

        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(enrol, range(8)))
        assert results.count(EnrolmentTokenUsed) == 7
        clock.now = rotation.activate_at(first.issuers()[1])
        with ThreadPoolExecutor(8) as pool:
            done = [action for actions in pool.map(rotate, range(8)) for action in actions]
        assert done == [Action.PREPARE]
        clock.forward(rotation.LISTED)
        with ThreadPoolExecutor(8) as pool:
            assert [action for actions in pool.map(rotate, range(8)) for action in actions] == [Action.ACTIVATE]
        assert first.intermediate == second.intermediate
        first.ban(AGENT)
        with pytest.raises(AgentBanned):
            second.issue(data, AGENT)
        assert second.bundle() == first.bundle()
        assert len(second.crl().crls) == 4
        assert second.audit_ledger(first.ledger_head()).problems == ()
        assert all(check.ok for check in second.health())


# Keys on a token. In a process of its own: the module reads once where its tokens are.

_ON_TOKEN = """
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from pki import CertificateAuthority
from pki.errors import KeyStoreError, WrongPassword

folder, store, pin, csr = sys.argv[1:]
now = datetime.now(UTC)
with CertificateAuthority.create(folder, trust_domain="fleet.example", password="x", key_store=store, pin=pin) as ca:
    assert all(r.key_pem is None and r.key_uri.startswith("pkcs11:") for r in ca.issuers())
    ca.issue(bytes.fromhex(csr), "spiffe://fleet.example/billing")
    assert all(check.ok for check in ca.health()), ca.health()
    try:
        ca.export_root(Path(folder) / "root.pem", "x")
    except KeyStoreError:
        pass
    else:
        raise AssertionError("a key left its token")

for modules in ([], ["/tmp/evil.so"]):
    try:
        CertificateAuthority.open(folder, pin=pin, modules=modules)
    except KeyStoreError as error:
        assert "from the database, expected one that you have named" in str(error)
    else:
        raise AssertionError("a module was loaded that nobody has named")

with CertificateAuthority.open(folder, pin=pin, modules=[store.partition("module-path=")[2]]) as ca:
    old = ca.intermediate
    ca.rotate(kind="intermediate", force=True)
    ca.rotate(now + timedelta(minutes=10))
    assert ca.intermediate != old
    ca.rotate(kind="root", force=True)
    uris = {r.key_uri for r in ca.issuers()}
    assert len(uris) == 4 and None not in uris, "each key beside the others, with a name of its own"
    ca.issue(bytes.fromhex(csr), "spiffe://fleet.example/billing")
    ca.crl()
    assert ca.audit_ledger(ca.ledger_head()).problems == ()

with CertificateAuthority.open(folder) as ca:
    try:
        ca.issue(bytes.fromhex(csr), "spiffe://fleet.example/billing")
    except WrongPassword:
        print("done")
"""


@needs_softhsm
def test_a_ca_with_its_keys_on_a_token(tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    configuration = tmp_path / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {tmp_path / 'tokens'}\nobjectstore.backend = file\n")
    environment = {**os.environ, "SOFTHSM2_CONF": str(configuration), "PYTHONPATH": str(Path.cwd())}
    make = ["softhsm2-util", "--init-token", "--free", "--label", "ca", "--pin", PIN, "--so-pin", SO_PIN]
    subprocess.run(make, env=environment, check=True, capture_output=True, timeout=30)
    store = f"pkcs11:token=ca?module-path={MODULE}"
    result = subprocess.run(
        [sys.executable, "-c", _ON_TOKEN, str(tmp_path / "ca"), store, PIN, request().hex()],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (result.stdout, result.returncode) == ("done\n", 0), result.stderr


def test_the_database_cannot_name_a_module(folder: Path) -> None:
    """Whoever writes there would have code of his own run in the CA, with the PIN. It is not even looked at."""
    with closing(sqlite3.connect(folder / DATABASE_FILE)) as connection:
        uri = "pkcs11:token=t;object=o?module-path=/tmp/evil.so"
        connection.execute("UPDATE issuers SET key_pem = NULL, key_uri = ?", (uri,))
        connection.commit()
    with pytest.raises(PKIError, match=r"got /tmp/evil\.so, from the database.*A2A_PKI_PKCS11_MODULE") as caught:
        CertificateAuthority.open(folder, password=PASSWORD, pin=PIN, modules=[str(MODULE)])
    assert type(caught.value) is KeyStoreError


# A key that left while another process had it open.


def test_a_root_that_was_exported_by_another_process_is_offline_here_too(
    ca: CertificateAuthority, folder: Path, tmp_path: Path, clock: Clock
) -> None:
    ca.rotate(kind="intermediate", force=True)  # it has the root key open now
    clock.forward(rotation.LISTED)
    ca.rotate()
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as other:
        other.export_root(tmp_path / "root.pem", "y")
    clock.forward(timedelta(seconds=1))
    with pytest.raises(PKIError) as caught:
        ca.rotate(kind="intermediate", force=True)
    assert type(caught.value) is KeyStoreError


def test_a_key_is_opened_once_however_many_need_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    with CertificateAuthority.open(folder, password=PASSWORD) as ca:
        from pki import keys

        real = keys.open_signer
        monkeypatch.setattr(
            keys, "open_signer", lambda record, **named: opened.append(record.key_id) or real(record, **named)
        )
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: ca.crl(), range(8)))
        assert opened == [next(r.key_id for r in ca.issuers() if r.kind == "root")]


# A view that cannot be read again.


def test_whose_key_has_left_is_believed_no_longer(folder: Path, clock: Clock) -> None:
    """What was found out about a CA holds for the row that it was found out from."""
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as ca:
        key_id = ca._issuers.view().issuing.key_id
        assert ca._issuers.vouching(key_id) == ca._issuers.vouching(key_id) == ca.intermediate.public_key()
        with closing(sqlite3.connect(folder / DATABASE_FILE)) as database, database:
            database.execute("UPDATE issuers SET key_pem = NULL WHERE key_id = ?", (key_id,))
        ca._issuers.read()
        assert ca._issuers.vouching(key_id) is None


def test_a_policy_that_is_not_understood_stops_everybody_within_seconds(
    ca: CertificateAuthority, folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not only the thread that happens to read: the others would go on by a policy that was replaced."""
    monkeypatch.setattr(issuers, "READ_AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(issuers, "BELIEVED_SECONDS", 0.2)
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as other:
        other._store.set_policy('[[allow]]\nids = ["/x"]\nof_a_later_version = true\n', clock())
        time.sleep(0.3)
        with ThreadPoolExecutor(8) as pool:
            refused = list(pool.map(lambda _: _refusal(ca), range(64)))
        assert set(refused) == {PolicyMalformed}
        other.set_policy('[[allow]]\nids = ["/**"]\n')
        time.sleep(0.1)
        ca.issue_credentials(AGENT)


def _refusal(ca: CertificateAuthority) -> type[BaseException] | None:
    try:
        ca.issue_credentials(AGENT)
    except PKIError as error:
        return type(error)
    return None


# The password.

NEW = "battery staple"


def opens(where: Path, password: str) -> list[bool]:
    """Which of the keys in the database a password opens."""
    found = []
    with CertificateAuthority.open(where) as ca:
        pending = ca._store.pending_key()
        for kept in (*ca.issuers(), *([] if pending is None else [pending])):
            try:
                keys.read(kept.key_pem or b"", password)
                found.append(True)
            except WrongPassword:
                found.append(False)
    return found


def test_the_password_of_every_key_is_changed_at_once(folder: Path, clock: Clock) -> None:
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as ca:
        ca.rotate(kind="root", force=True)
        ca.request_intermediate()
        before = [issuer.key_pem or b"" for issuer in ca.issuers()]
        assert ca.change_password(NEW) == 4
        assert ca.rotate(kind="intermediate", force=True), "it goes on"
        ca.issue(request(), AGENT)
    assert opens(folder, NEW) == [True] * 5
    assert opens(folder, PASSWORD) == [False] * 5
    data = b"".join(path.read_bytes() for path in folder.iterdir())
    assert not any(pem in data for pem in before), "nor are they left in free pages, or in a log"
    with CertificateAuthority.open(folder, password=NEW, clock=clock) as ca:
        assert ca.audit_ledger().problems == ()


CHANGES: list[tuple[str, str | None, str, type[PKIError]]] = [
    ("locked", None, NEW, WrongPassword),
    ("to nothing", PASSWORD, "", WrongPassword),
]


@pytest.mark.parametrize(("old", "new", "expected"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES])
def test_a_password_that_is_not_changed(old: str | None, new: str, expected: type[PKIError], folder: Path) -> None:
    with CertificateAuthority.open(folder, password=old) as ca, pytest.raises(PKIError) as caught:
        ca.change_password(new)
    assert type(caught.value) is expected
    assert opens(folder, PASSWORD) == [True, True]


def test_a_password_that_is_changed_while_somebody_reads(
    folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is changed, and this process goes on with it; what is said is that the old encryption is still to be read."""
    monkeypatch.setattr(database, "BUSY_TIMEOUT", timedelta(milliseconds=100))
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as ca:
        with closing(sqlite3.connect(folder / DATABASE_FILE, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM settings").fetchall()
            with pytest.raises(PKIError, match="it is done, but what was there before is still in the log") as caught:
                ca.change_password(NEW)
            assert type(caught.value) is NotErased
        assert opens(folder, NEW) == [True, True]
        assert ca.rotate(kind="intermediate", force=True), "it makes keys, with the new password"
    assert opens(folder, NEW) == [True, True, True]


def test_a_ca_that_is_made_meanwhile_stops_the_change(
    folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as ca,
        CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as other,
    ):
        real = ca._store.replace_keys

        def late(changed: dict[bytes, bytes]) -> None:
            other.rotate(kind="root", force=True)
            real(changed)

        monkeypatch.setattr(ca._store, "replace_keys", late)
        with pytest.raises(PKIError) as caught:
            ca.change_password(NEW)
        assert type(caught.value) is StateChanged
    assert opens(folder, PASSWORD) == [True] * 3


def test_who_has_the_old_password_makes_no_key_with_it(folder: Path, clock: Clock) -> None:
    """A service that runs while the password is changed issues on, and says what to do when it has to rotate."""
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as running:
        with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as ca:
            ca.change_password(NEW)
        running.issue(request(), AGENT)
        with pytest.raises(PKIError) as caught:
            running.rotate(kind="intermediate", force=True)
        assert type(caught.value) is PasswordChanged
        with CertificateAuthority.open(folder, password=NEW, clock=clock) as ca:
            ca.rotate(kind="intermediate", force=True)
            clock.forward(rotation.LISTED)
            ca.rotate(kind="intermediate", force=True)  # its key signs the heads of the ledger now
            ca.issue(request(), AGENT)
        clock.forward(timedelta(days=1))
        time.sleep(issuers.READ_AGAIN_SECONDS)
        ill = {check.name: check.says for check in running.health() if not check.ok}
        assert "revocation lists" in ill
        with pytest.raises(LedgerDamaged) as damaged:  # as whoever has to sign over its head meets it
            running._issuers._believed(Issuer.of(running.intermediate).key_id)
        for says in (*ill.values(), str(damaged.value)):
            assert "password of the CA was changed: got the one of before, expected the new one; start this" in says
            assert "restore" not in says
    assert opens(folder, NEW) == [True, True, True]


def test_whoever_has_changed_the_password_twice_is_told_of_neither(folder: Path, clock: Clock) -> None:
    """Its own changes are not those of somebody else; a wrong password of a new process is called so."""
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as ca:
        ca.change_password(NEW)
        ca.change_password(PASSWORD)
        ca.rotate(kind="intermediate", force=True)
        with pytest.raises(PKIError) as caught:
            CertificateAuthority.open(folder, password=NEW)
        assert type(caught.value) is WrongPassword
        with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as other:
            other.change_password(NEW)
        with pytest.raises(PKIError) as caught:
            ca.rotate(kind="root", force=True)
        assert type(caught.value) is PasswordChanged


CHANGING = """
import sys
from pki import CertificateAuthority
from trust import private_keys
private_keys.SCRYPT_N, private_keys.SCRYPT_P = 2**10, 1
words = ["correct horse", "battery staple"]
with CertificateAuthority.open(sys.argv[1], password=words[int(sys.argv[2])]) as ca:
    for turn in range(1, 10_000):
        ca.change_password(words[(int(sys.argv[2]) + turn) % 2])
        print("changed", flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_killed_in_the_middle_of_a_change_one_of_the_two_opens_everything(folder: Path) -> None:
    chance = random.Random(7)
    now = 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", CHANGING, str(folder), str(now)], stdout=subprocess.PIPE, text=True
        ) as changing:
            assert changing.stdout is not None
            for _ in range(2):
                assert changing.stdout.readline() == "changed\n"
            time.sleep(chance.uniform(0, 0.2))
            changing.kill()
        found = opens(folder, PASSWORD), opens(folder, NEW)
        assert found in (([True, True], [False, False]), ([False, False], [True, True]))
        now = found.index([True, True])


@pytest.mark.parametrize("position", [-1, 10_000])
def test_a_root_that_was_put_into_the_database_is_not_published(tmp_path: Path, position: int) -> None:
    """By somebody without the CA's keys, at a place of the ledger where it has none."""
    with CertificateAuthority.create(tmp_path / "ca", trust_domain=DOMAIN, password=PASSWORD) as ca:
        ca.issue_credentials(AGENT)
        intrude(tmp_path / "ca", position)
        genuine = (ca.root, ca.intermediate)
        assert ca.bundle().roots == (ca.root,)
        assert ca.ca_certificates() == genuine
    with CertificateAuthority.open(tmp_path / "ca", password=PASSWORD) as ca:
        assert len(ca.issuers()) == 3
        assert ca.bundle().roots == (ca.root,)
        assert ca.ca_certificates() == genuine
        assert ca.audit_ledger().problems


def test_cas_that_were_revoked_are_not_published_again_by_their_rows(tmp_path: Path, clock: Clock) -> None:
    """By somebody without the CA's keys, but with that of a root that leaked."""
    folder = tmp_path / "ca"
    with CertificateAuthority.create(folder, trust_domain=DOMAIN, password=PASSWORD, now=clock(), clock=clock) as ca:
        leaked = {issuer.key_id: issuer.certificate for issuer in ca.issuers()}
        ca.taint(next(issuer.key_id for issuer in ca.issuers() if issuer.kind == "root"))
        while any(issuer.state is not State.REVOKED for issuer in ca.issuers() if issuer.key_id in leaked):
            clock.forward(timedelta(hours=1))
            ca.rotate()
            if ca.root not in leaked.values():
                for issuer in ca.issuers():
                    if issuer.key_id in leaked and issuer.state is not State.REVOKED:
                        ca.taint(issuer.key_id)
        genuine = ca.bundle().roots, ca.ca_certificates()
        assert not set(leaked.values()) & set(genuine[1])
        with closing(sqlite3.connect(folder / DATABASE_FILE)) as plain, plain:
            plain.execute("UPDATE issuers SET state = 'retiring' WHERE state = 'revoked'")
            plain.execute("UPDATE certificates SET revoked_at = NULL, reason = NULL, revoked_position = NULL")
            plain.execute("UPDATE settings SET bundle_sequence = bundle_sequence + 1")
        assert (ca.bundle().roots, ca.ca_certificates()) == genuine
    with CertificateAuthority.open(folder, password=PASSWORD, clock=clock) as ca:
        assert (ca.bundle().roots, ca.ca_certificates()) == genuine
        ca.issue_credentials(AGENT)
        assert (ca.bundle().roots, ca.ca_certificates()) == genuine
        assert ca.audit_ledger().problems


@pytest.mark.parametrize("number", [-1, 2**53, 2**63 - 1])
def test_a_number_of_the_bundle_that_nobody_counted_to_is_not_signed(tmp_path: Path, number: int) -> None:
    with CertificateAuthority.create(tmp_path / "ca", trust_domain=DOMAIN, password=PASSWORD) as ca:
        right = ca.bundle().sequence
    database = tmp_path / "ca" / DATABASE_FILE
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE settings SET bundle_sequence = ?", (number,))
    with CertificateAuthority.open(tmp_path / "ca", password=PASSWORD) as ca, pytest.raises(LedgerDamaged):
        ca.issue_credentials(AGENT)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE settings SET bundle_sequence = ?", (right,))
    with CertificateAuthority.open(tmp_path / "ca", password=PASSWORD) as ca:
        ca.issue_credentials(AGENT)  # nothing was lost
        assert ca.audit_ledger().problems == ()


@pytest.mark.parametrize("makes", ["rotation", "taint", "ceremony"])
def test_a_password_that_is_changed_while_a_key_is_made_stops_the_key(
    makes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the keys of one CA would open with two passwords, and no command would help."""
    where, new = tmp_path / "ca", "another one"
    with CertificateAuthority.create(where, trust_domain=DOMAIN, password=PASSWORD) as ca:
        real = issuers.make_key

        def meanwhile(*arguments: object) -> KeyPair:
            made = real(*arguments)  # type: ignore[arg-type]
            with CertificateAuthority.open(where, password=PASSWORD) as other:
                other.change_password(new)
            return made

        monkeypatch.setattr(issuers, "make_key", meanwhile)
        with contextlib.suppress(PKIError):
            if makes == "rotation":
                ca.rotate(kind="intermediate", force=True)
            elif makes == "taint":
                ca.taint(ca.issuers()[1].key_id)
            else:
                ca.request_intermediate()
        monkeypatch.undo()
    with CertificateAuthority.open(where, password=new) as ca:
        assert ca.change_password(PASSWORD) >= 2, "one password opens every key"
        assert ca.audit_ledger().problems == ()
