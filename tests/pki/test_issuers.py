"""The whole CA elsewhere: its database on a server, with two instances; its keys on a token."""

from __future__ import annotations

import os
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

from pki import CertificateAuthority, Issued, PKIError, issuers, rotation
from pki.errors import AgentBanned, AuthorityExists, EnrolmentTokenUsed, KeyStoreError, PolicyMalformed
from pki.rotation import Action
from pki.store import DATABASE_FILE
from tests.pki.conftest import AGENT, DOMAIN, PASSWORD, Clock
from tests.pki.judges import request
from tests.pki.softhsm import MODULE, PIN, SO_PIN, needs_softhsm
from tests.pki.store import parts

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
