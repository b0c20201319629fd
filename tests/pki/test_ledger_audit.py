"""What the audit of a ledger takes for granted, and what it does not mistake for damage.

What it must find is in `tests/attacks/test_ledger.py`.
"""

from __future__ import annotations

import re
import sqlite3
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding

from pki import CertificateAuthority, keys, ledger, table_audit
from pki.errors import AuthorityDamaged
from pki.ledger_audit import audit
from pki.records import LedgerRow, Record, State
from pki.store import DATABASE_FILE
from tests.pki.books import AGENT, DOMAIN, ISSUER, ISSUER_RECORD, KEYS, NOW, ROOT_KEY, Books, agent, ca, founded

ENDED = NOW + timedelta(days=30)  # long after the end of every certificate here
PRUNED = ENDED + timedelta(days=7)  # when lists need not name anything any more that ended before
RETIRED = replace(ISSUER, state=State.RETIRING)


def test_an_empty_ledger_is_a_ledger() -> None:
    report = audit(Books(), keys={})
    assert (report.size, report.sealed, report.problems) == (0, 0, ())


def test_a_new_ca() -> None:
    report = audit(founded(), keys=KEYS)
    assert (report.size, report.sealed, report.problems) == (4, 4, ())


def test_unsigned_heads_are_no_damage_and_seal_nothing() -> None:
    made = founded()
    made.append(ledger.entry_for_unban(AGENT, NOW), signer=None)
    report = audit(made, keys=KEYS)
    assert (report.size, report.sealed, report.problems) == (5, 4, ())


def test_any_kept_head_will_do() -> None:
    made = founded()
    for serial in range(16, 21):
        made.issue(agent(serial))
    for head in made.sealed:
        assert audit(made, keys=KEYS, head=head.jws).problems == ()


def test_a_state_is_the_last_one_that_was_written() -> None:
    made = founded()
    made.append(ledger.entry_for_ban(AGENT, NOW), ledger.entry_for_policy("a", NOW))
    made.append(ledger.entry_for_unban(AGENT, NOW), ledger.entry_for_policy("b", NOW))
    made.policy = "b"
    retiring = replace(ISSUER, state=State.RETIRING, since=NOW + timedelta(hours=1))
    made.append(ledger.entry_for_issuer(retiring))
    made.cas[1] = retiring
    assert audit(made, keys=KEYS).problems == ()


def test_an_ocsp_certificate_names_no_agent() -> None:
    made = founded()
    record = agent(0x30)
    made.issue(Record.of(record.certificate, kind="ocsp", issuer=ISSUER.key_id, spiffe_id=f"spiffe://{DOMAIN}"))
    assert audit(made, keys=KEYS).problems == ()


def test_a_certificate_without_any_name_is_named() -> None:
    made = founded()
    name = x509.Name([])
    bare = x509.CertificateBuilder(name, name, ROOT_KEY.public_key(), 5, NOW, ENDED)
    certificate = keys.sign(bare, ROOT_KEY)
    made.issue(Record.of(certificate, kind="agent", issuer=ISSUER.parent, spiffe_id=AGENT))
    (problem,) = audit(made, keys=KEYS).problems
    assert problem == f"certificate 5 of {AGENT} has a row that differs from the certificate"


def test_a_certificate_with_another_kind_of_signature_is_named() -> None:
    made = founded()
    name = x509.Name([])
    bare = x509.CertificateBuilder(name, name, ROOT_KEY.public_key(), 5, NOW, ENDED)
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(AGENT)])
    certificate = bare.add_extension(san, critical=True).sign(ed25519.Ed25519PrivateKey.generate(), None)
    made.issue(Record.of(certificate, kind="agent", issuer=ISSUER.key_id, spiffe_id=AGENT))
    (problem,) = audit(made, keys=KEYS).problems
    assert problem == f"certificate 5 of {AGENT} was not signed by its CA, {ISSUER.key_id}"


# Pruning.


def test_what_was_pruned_is_not_missed() -> None:
    made = founded()
    made.issue(agent(16), agent(17))
    made.append(ledger.entry_for_revocation(agent(16), reason=x509.ReasonFlags.superseded, now=NOW))
    made.certificates, made.cas = made.certificates[:2], [made.cas[0], RETIRED]
    made.append(
        ledger.entry_for_issuer(RETIRED),
        ledger.entry_for_pruning(ISSUER.key_id, before=ENDED, removed=2, now=PRUNED),
    )
    assert audit(made, keys=KEYS).problems == ()


def test_a_ca_that_is_gone_leaves_its_heads_good() -> None:
    """Its key is in the ledger; what is under a head of a CA that is still there counts as sealed."""
    made = founded()
    made.issue(agent(16))
    kept = made.sealed[-1].jws
    new_key = keys.generate()
    issuer, record = ca("intermediate", 3, new_key)
    made.cas.append(issuer)
    made.certificates.append(record)
    made.append(*(ledger.entry_for_record(record), ledger.entry_for_issuer(issuer), ledger.entry_for_issuer(RETIRED)))
    made.certificates = [one for one in made.certificates if one.serial not in (16, ISSUER.serial)]
    made.cas.remove(ISSUER)
    made.append(
        ledger.entry_for_pruning(ISSUER.key_id, before=ENDED, removed=1, now=PRUNED),
        ledger.entry_for_retirement(ISSUER, PRUNED),
        signer=None,
    )
    known = {one: key for one, key in KEYS.items() if one != ISSUER.key_id}
    report = audit(made, keys=known | {issuer.key_id: new_key.public_key()}, head=kept)
    assert (report.sealed, report.problems) == (0, ()), "nothing but old heads yet"
    made.seal(new_key)
    made.sealed[-2:] = made.sealed[-1:]  # as the store does it: one head for each size
    report = audit(made, keys=known | {issuer.key_id: new_key.public_key()}, head=kept)
    assert (report.sealed, report.problems) == (report.size, ())


def test_a_ca_does_not_go_without_a_word() -> None:
    made = founded()
    made.certificates.remove(ISSUER_RECORD)
    made.cas.remove(ISSUER)
    made.append(ledger.entry_for_pruning(ISSUER_RECORD.issuer, before=NOW, removed=1, now=NOW))
    problems = audit(made, keys=KEYS).problems
    assert [problem.split(" (")[0] for problem in problems] == [
        "entry 4 of the ledger",
        "entry 2 of the ledger",
        f"CA {ISSUER.key_id} was removed",
    ]


# While the CA goes on.


@dataclass
class Busy(Books):
    """Somebody writes at the moment when the ledger has been read, and again when the tables have been."""

    first: Callable[[], None] | None = None
    second: Callable[[], None] | None = None
    reads: list[int] = field(default_factory=list)

    def each_record(self) -> Iterator[Record]:
        if self.first is not None:
            self.first()
        return super().each_record()

    def ledger_rows(self, start: int = 0) -> Iterator[LedgerRow]:
        self.reads.append(start)
        if len(self.reads) == 2 and self.second is not None:
            self.second()
        return super().ledger_rows(start)


def busy() -> Busy:
    made = founded()
    made.issue(agent(16), agent(17), agent(18))
    return Busy(cas=made.cas, certificates=made.certificates, rows=made.rows, sealed=made.sealed)


def writing(made: Busy, serial: int) -> Callable[[], None]:
    """Issue, revoke, ban, prune, change a CA and the policy."""

    def write() -> None:
        made.issue(agent(serial))
        revoked = made.certificates[3]
        made.certificates[3] = replace(revoked, revoked_at=NOW, reason=x509.ReasonFlags.unspecified)
        made.append(ledger.entry_for_revocation(revoked, reason=x509.ReasonFlags.unspecified, now=NOW))
        gone = len(made.certificates[2:])
        del made.certificates[2:]
        made.cas[1] = RETIRED
        made.append(
            ledger.entry_for_issuer(RETIRED),
            ledger.entry_for_pruning(ISSUER.key_id, before=ENDED, removed=gone, now=PRUNED),
        )
        made.banned[AGENT] = NOW
        made.policy = "new"
        made.append(
            ledger.entry_for_ban(AGENT, NOW),
            ledger.entry_for_policy("new", NOW),
        )

    return write


@pytest.mark.parametrize("moment", ["first", "second"])
def test_what_is_written_meanwhile_is_no_damage(moment: str) -> None:
    made = busy()
    setattr(made, moment, writing(made, 32))
    report = audit(made, keys=KEYS)
    assert report.problems == ()
    assert report.size == len(made.rows) == report.size


def test_what_is_removed_meanwhile_is_damage() -> None:
    made = busy()
    made.first = made.certificates.clear
    assert len(audit(made, keys=KEYS).problems) == 5


# Limits.


def test_a_row_that_cannot_be_read_ends_the_audit_with_a_problem() -> None:
    class Torn(Books):
        def each_record(self) -> Iterator[Record]:
            raise AuthorityDamaged("CA database is damaged", got="a time beyond all calendars")
            yield

    made = founded()
    torn = Torn(cas=made.cas, rows=made.rows, sealed=made.sealed)
    (problem,) = audit(torn, keys=KEYS).problems
    assert problem.startswith("the audit ends after entry 3 of the ledger, because a row cannot be read: CA database")


def test_problems_beyond_counting_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_audit, "MAX_PROBLEMS", 2)
    made = founded()
    made.certificates += [agent(serial) for serial in range(16, 21)]
    problems = audit(made, keys=KEYS).problems
    assert len(problems) == 3
    assert problems[-1] == "and 3 more"


def test_a_rewritten_part_names_some_of_its_entries() -> None:
    made = founded()
    made.issue(*(agent(serial) for serial in range(16, 24)))
    row = made.rows[9]
    data = row.entry.replace(b'"shard":0', b'"shard":1')
    made.rows[9] = replace(row, entry=data, leaf=ledger.leaf_hash(data))
    problem = audit(made, keys=KEYS).problems[0]
    assert problem.startswith("entries 4 to 11 of the ledger are not those that the tree head at 12 commits to: ")
    assert problem.count(AGENT) == 3
    assert problem.endswith("; and others")


def test_without_a_good_frontier_only_the_first_rewritten_part_is_named() -> None:
    made = founded()
    for serial in range(16, 21):
        made.issue(agent(serial))
    for position in (4, 6):
        row = made.rows[position]
        data = row.entry.replace(b'"shard":0', b'"shard":1')
        made.rows[position] = replace(row, entry=data, leaf=ledger.leaf_hash(data))
    made.sealed = [replace(head, frontier=b"") for head in made.sealed]
    (problem,) = [problem for problem in audit(made, keys=KEYS).problems if "commits to" in problem]
    assert problem.startswith("entries 4 to 4 of the ledger are not those that the tree head at 5 commits to: ")


def test_memory_does_not_grow_with_the_ledger() -> None:
    """Whatever has to be compared waits on disk: ten times as many entries, and as little memory."""

    class Long(Books):
        length = 0

        def ledger_rows(self, start: int = 0) -> Iterator[LedgerRow]:
            yield from super().ledger_rows(start)
            for position in range(max(start, 4), self.length):
                data = one.replace(b"%040x" % 0, b"%040x" % position)
                yield LedgerRow(position=position, entry=data, leaf=ledger.leaf_hash(data))

    one = ledger.entry_for_record(replace(agent(16), serial=0)).encode()
    made = founded()
    long = Long(cas=made.cas, certificates=made.certificates, rows=made.rows, sealed=made.sealed)
    peaks = []
    for length in (table_audit.MAX_PROBLEMS + 500, 10 * table_audit.MAX_PROBLEMS):
        long.length = length
        tracemalloc.start()
        try:
            report = audit(long, keys=KEYS)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert report.size == length
        assert (
            report.problems[-1] == f"and {length - 4 + 1 - table_audit.MAX_PROBLEMS} more"
        )  # and that no head is signed
    assert peaks[1] < peaks[0] + (256 << 10)


# A CA's own database.

SECOND = "(SELECT position FROM certificates WHERE spiffe_id LIKE '%/agent1')"
TAMPERED: list[tuple[str, str, str]] = [
    ("nothing", "SELECT 1", ""),
    (
        "certificate altered",
        f"UPDATE certificates SET shard = 7 WHERE position = {SECOND}",
        r"entry 5 of the ledger \(issued certificate \w+ of spiffe://fleet.example/agent1\): the row .* differs",
    ),
    (
        "certificate removed",
        f"DELETE FROM certificates WHERE position = {SECOND}",
        r"entry 5 of the ledger \(issued certificate \w+ of spiffe://fleet.example/agent1\): the row .* was removed",
    ),
    (
        "revocation removed",
        "UPDATE certificates SET revoked_at = NULL, reason = NULL, revoked_position = NULL",
        r"entry 7 of the ledger \(revoked certificate \w+ of .*/agent0\): the revocation was removed",
    ),
    (
        "revocation inserted",
        f"UPDATE certificates SET revoked_at = 1, reason = 'superseded' WHERE position = {SECOND}",
        r"certificate \w+ of spiffe://fleet.example/agent1 is revoked, and the ledger has no entry about it",
    ),
    (
        "entry altered",
        "UPDATE ledger SET entry = CAST(replace(entry, 'superseded', 'unspecified') AS BLOB) WHERE position = 7",
        r"entry 7 of the ledger is not what its hash was made of: revoked certificate \w+ of spiffe://.*/agent0",
    ),
    ("entry removed", "DELETE FROM ledger WHERE position = 5", "entries 5 to 5 of the ledger are missing"),
    (
        "end of the ledger removed",
        "DELETE FROM ledger WHERE position = 8",
        "entries 8 to 8 .*: there is a tree head at 9",
    ),
    ("ban lifted", "DELETE FROM bans", "ban of spiffe://fleet.example/bad was removed"),
    (
        "CA altered",
        "UPDATE issuers SET since = since - 1 WHERE kind = 'intermediate'",
        "CA .* differs from the last entry about",
    ),
    (
        "unreadable entry",
        "UPDATE ledger SET entry = 'text' WHERE position = 7",
        "the audit ends after entry 6 of the ledger, because a row cannot be read",
    ),
    (
        "unreadable certificate",
        f"UPDATE certificates SET not_after = 1 << 60 WHERE position = {SECOND}",
        r"the audit ends after certificate \w+ of spiffe://fleet.example/agent0, because a row cannot be read",
    ),
]


@pytest.mark.parametrize(("sql", "expected"), [row[1:] for row in TAMPERED], ids=[row[0] for row in TAMPERED])
def test_what_is_altered_in_the_database_of_a_ca_is_named(
    sql: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = keys.generate()
    csr = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, hashes.SHA256())
    with CertificateAuthority.create(tmp_path / "ca", trust_domain=DOMAIN, password="password") as authority:
        issued = [
            authority.issue(csr.public_bytes(Encoding.DER), f"spiffe://{DOMAIN}/agent{number}") for number in range(3)
        ]
        authority.revoke(issued[0].serial, x509.ReasonFlags.superseded)
        authority.ban(f"spiffe://{DOMAIN}/bad")
        kept = authority.ledger_head()
    with closing(sqlite3.connect(tmp_path / "ca" / DATABASE_FILE)) as database, database:
        database.execute(sql)
    database.close()
    with CertificateAuthority.open(tmp_path / "ca") as authority:
        report = authority.audit_ledger(kept)
    assert bool(report.problems) is bool(expected), report.problems
    assert not expected or any(re.search(expected, problem) for problem in report.problems), report.problems
