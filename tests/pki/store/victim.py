"""A process that makes processes to be killed: everything is imported once, and each victim is a fork of that.

Commands on stdin: `create WHERE`; `run WHERE FOLDER` (issue, revoke, rotate and back up until killed); `issue WHERE N`
(N certificates, then end). Each victim says on stdout what was acknowledged, one line each, and `gone PID` follows it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from pki import keys, profiles
from pki.errors import PKIError, StateChanged
from pki.ledger import Head, sign_head
from pki.policy import Approved
from pki.profiles import Issuer
from pki.records import Issue, IssuerRecord, Record, Settings, State
from pki.store import Store, backup
from tests.pki.conftest import DOMAIN, NOW
from trust.identity import AgentID

ID = f"spiffe://{DOMAIN}/billing"
ROOT_KEY, LEAF_KEY = keys.generate(), keys.generate().public_key()
_serial = x509.random_serial_number


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())  # in one piece, whoever else writes


@dataclass(frozen=True, kw_only=True)
class CA:
    issuer: Issuer
    key: keys.ec.EllipticCurvePrivateKey
    row: IssuerRecord
    record: Record


def ca(kind: str, certificate: x509.Certificate, key: keys.ec.EllipticCurvePrivateKey, parent: str, state: State) -> CA:
    issuer = Issuer.of(certificate)
    record = Record.of(certificate, kind=kind, issuer=parent or issuer.key_id, spiffe_id=f"spiffe://{DOMAIN}")
    row = IssuerRecord(
        key_id=issuer.key_id,
        kind=kind,
        parent=record.issuer,
        state=state,
        since=NOW,
        serial=record.serial,
        der=record.der,
    )
    return CA(issuer=issuer, key=key, row=row, record=record)


ROOT = ca(
    "root",
    keys.sign(
        profiles.root(trust_domain=DOMAIN, public_key=ROOT_KEY.public_key(), serial=_serial(), now=NOW), ROOT_KEY
    ),
    ROOT_KEY,
    "",
    State.ACTIVE,
)


def intermediate(state: State) -> CA:
    key = keys.generate()
    builder = profiles.intermediate(
        trust_domain=DOMAIN, public_key=key.public_key(), issuer=ROOT.issuer, serial=_serial(), now=NOW
    )
    return ca("intermediate", keys.sign(builder, ROOT_KEY), key, ROOT.issuer.key_id, state)


def sealed(head: Head) -> str:
    return sign_head(head, ROOT_KEY, ROOT.issuer.key_id)


def leaf(under: CA) -> Record:
    content = Approved(
        agent_id=AgentID.parse(ID),
        public_key=LEAF_KEY,
        dns_names=(),
        ip_addresses=(),
        lifetime=profiles.NO_REVOCATION_UP_TO * 2,
    )
    unsigned = profiles.agent(content, issuer=under.issuer, serial=_serial(), now=NOW)
    certificate, _ = keys.sign_agent(unsigned, under.key)
    return Record.of(certificate, kind="agent", issuer=under.issuer.key_id, spiffe_id=ID)


def rotate(store: Store) -> CA:
    """A new intermediate, active at once; all in one transaction, once, whoever else does it."""
    while True:
        new = intermediate(State.ACTIVE)
        known = store.issuers()
        active = [one.key_id for one in known if one.kind == "intermediate" and one.state is State.ACTIVE]
        try:
            store.change_issuers(
                add=[(new.row, new.record)],
                states=dict.fromkeys(active, State.RETIRING),
                expect={one.key_id: one.state for one in known},
                now=NOW,
            )
        except StateChanged:
            continue
        say("rotated", new.row.key_id)
        say("issued", f"{new.record.serial:x}")
        return new


def run(where: str, folder: str) -> None:
    store = Store.open(where)
    store.seal = sealed
    current = [rotate(store)]
    issued: list[int] = []

    def keep_issuing() -> None:
        while True:
            record = leaf(current[0])
            store.issue(Issue(record=record, now=NOW))
            say("issued", f"{record.serial:x}")
            issued.append(record.serial)

    for _ in range(3):
        threading.Thread(target=keep_issuing, daemon=True).start()
    turn = 0
    while True:
        while len(issued) < 2:
            time.sleep(0.001)
        serial = issued.pop(0)
        store.revoke([serial], reason=x509.ReasonFlags.superseded, now=NOW)
        say("revoked", f"{serial:x}")
        turn += 1
        if turn % 3 == 1:
            target = Path(folder, f"backup-{os.getpid()}-{turn}")
            backup(store, target)
            say("backup", target)
        if turn % 3 == 2:
            current[0] = rotate(store)


def issue(where: str, number: str) -> None:
    store = Store.open(where)
    store.seal = sealed
    under = rotate(store)

    def some() -> None:
        for _ in range(int(number) // 4):
            record = leaf(under)
            store.issue(Issue(record=record, now=NOW))
            say("issued", f"{record.serial:x}")

    threads = [threading.Thread(target=some) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()


def create(where: str) -> None:
    first = intermediate(State.ACTIVE)
    records = [ROOT.record, first.record]
    Store.create(where, Settings(trust_domain=DOMAIN), [ROOT.row, first.row], records, now=NOW, seal=sealed)


def fork(what: Callable[..., None], *given: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        what(*given)
        status = 0
    except PKIError as error:
        say("failed", type(error).__name__, error)
    finally:
        os._exit(status)


def main() -> None:
    for line in sys.stdin:
        verb, *given = line.split()
        if verb == "create":
            create(*given)
            say("created")
        elif verb == "wait":
            while True:
                try:
                    pid, _ = os.wait()
                except ChildProcessError:
                    break
                say("gone", pid)
            say("all gone")
        else:
            say("pid", fork({"run": run, "issue": issue}[verb], *given))


if __name__ == "__main__":
    main()
