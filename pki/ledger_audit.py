"""Does the CA's database still say what was written? Every row of it against the ledger, and the ledger against itself.

What is found, and named:

    (1) an entry of the ledger that was altered, removed or inserted: its hash, its position, its text
    (2) a ledger that was rewritten consistently, entry and hash: at the first signed head that does not agree, so
        between that head and the one before
    (3) a signed head that this CA did not sign, or that is not about this ledger
    (4) a ledger that is shorter, or another one, than a head that was kept elsewhere says; only this finds what
        somebody did who holds the CA's key
    (5) a certificate whose row is not the one its entry was made of, has no entry, or is gone and was not pruned
    (6) a certificate that its CA did not sign, or whose row says something else than the certificate
    (7) a revocation, a ban, a CA or a policy that differs from the last entry about it
    (8) an entry that only a CA with its key writes, and that no signed head covers; a ledger without any signed head
    (9) a head by a CA that was revoked before it, or that no head of another CA of ours has introduced
    (10) a pruning of what lists still have to name, of a CA that may issue, or of another number of certificates;
         the removal of a CA that has not ended
    (11) a CA that was revoked and is not any more, or whose certificate is revoked and which goes on
    (12) settings other than those that a signed head commits to, and a bundle's sequence number that went back
    (13) a one-time token that no CA has made, or made like that, or that was used and does not look it
    (14) a revocation list that its CA did not sign, with a number that went back, or that lacks a revocation
    (15) an order of certificates, revocations or CAs that is not the ledger's
    (16) where the caller has the fingerprint of a root: that no signed head is by a CA below it

What is written while the audit runs is not mistaken for damage: the ledger is read before the tables and its new end
after them, and the tables may be as any entry of that end says. What has a table of many rows is compared in
`pki.table_audit`, and what is kept in few rows in `pki.state_audit`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from pki.errors import AuthorityDamaged, LedgerDamaged
from pki.ledger import (
    Entry,
    Frontier,
    Head,
    claimed_head,
    head_signer,
    leaf_hash,
    needs_key,
    verify_head,
)
from pki.profiles import CRL_RETENTION
from pki.records import LedgerRow, SealedHead
from pki.state_audit import FewRows, StateAudit
from pki.table_audit import Findings, TableAudit, Tables, key_of, verify_certificate
from trust.clock import shown
from trust.errors import SignatureError
from trust.identity import fingerprint
from trust.signing import jws

_KEPT = "tree head kept elsewhere"
_HOLDER = "only a CA with its key writes that, and it signs"
NAMED = 3  # of the entries of a rewritten part, so that the line stays readable


class Books(Tables, FewRows, Protocol):
    """What is audited: a `pki.store.Store`, or one moment of it."""

    def heads(self) -> Iterator[SealedHead]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerReport:
    """What an audit found. Nothing is wrong exactly when `problems` is empty."""

    size: int  # entries
    sealed: int  # how many of them a good signed head commits to; what follows could still be rewritten unseen
    problems: tuple[str, ...]


def audit(
    books: Books,
    *,
    keys: Mapping[str, ec.EllipticCurvePublicKey],
    head: str | None = None,
    root: str | None = None,
    upgraded: bool = False,
) -> LedgerReport:
    """Compare everything with everything, as the head of this file lists it.

    Not checked, without `root`: that `keys` are the CA's; a database that was replaced as a whole, keys and all, is
    found by a `head` or a `root` that was kept elsewhere, and by nothing else. Not found either: a token that was
    cancelled and is there again, and a revocation list that is not there any more.

    Args:
        keys: the public keys of the CAs by key id. Certificates and heads are verified with these and no others.
        head: a signed tree head that was kept elsewhere.
        root: the fingerprint (`sha256:...`) of the root that signs now, or signed when the CA last wrote something.
        upgraded: an upgrade has just made the ledger, so that nothing of it is signed yet.

    Raises:
        PKIError: the database cannot be read at all.
    """
    with closing(sqlite3.connect("")) as scratch:  # a file without a name, gone when it is closed
        return _Audit(books, keys, scratch, head, root, upgraded).run()


class _Audit:
    def __init__(
        self,
        books: Books,
        keys: Mapping[str, ec.EllipticCurvePublicKey],
        scratch: sqlite3.Connection,
        head: str | None,
        root: str | None,
        upgraded: bool,
    ) -> None:
        self._upgraded = upgraded
        self._books = books
        self._keys = keys
        self._findings = Findings()
        self._problem = self._findings.add
        self._tables = TableAudit(books, keys, scratch, self._findings)
        self._state = StateAudit(books, keys, self._problem)
        self._domain = books.settings().trust_domain
        # The ledger, as far as it has been read, and the next head to compare with it.
        self._size = 0
        self._tree = Frontier()
        self._heads = books.heads()
        self._head = next(self._heads, None)
        self._agreed = 0  # size of the last head that agreed
        self._lost = False  # a rewritten part has been named, and no head has told how the tree should be behind it
        self._sealed = 0
        self._declared: dict[str, ec.EllipticCurvePublicKey] = {}  # the keys of CAs whose rows may have been pruned
        # Who may sign heads: CAs that a signed head covers, and those that their parent, one of these, has certified.
        self._introduced: set[str] = set()
        self._announced: set[str] = set()
        self._states: dict[str, str] = {}
        self._revoked: dict[str, int] = {}  # CA to the position of the entry that revoked it
        self._ca_serials: dict[str, str] = {}
        self._signed = False  # whether there is any good signed head
        # Entries that need a key and that no signed head covers yet: the first, and how many.
        self._loose: list[tuple[int, str]] = []
        self._loose_count = 0
        self._kept, self._kept_text = self._claimed(head), head
        self._root, self._below = root, self._below_root(root)
        self._anchored = False  # whether a CA below that root has signed a head

    def run(self) -> LedgerReport:
        try:
            self._read_ledger()
            known = self._size
            self._tables.read_certificates()
            self._state.read()
            self._read_ledger()
            self._tables.compare(known)
            self._tables.check_tokens(known)
            self._tables.check_lists(known)
            self._state.compare()
            self._check_end()
            self._check_signed()
            if self._kept_text is not None:  # not before: the ledger knows the keys of CAs that are no more
                self._verified(self._kept_text, _KEPT)
        except AuthorityDamaged as error:
            self._problem(f"the audit ends after {self._findings.last}, because a row cannot be read: {error}")
        return LedgerReport(size=self._size, sealed=self._sealed, problems=self._findings.all())

    # The ledger against itself: (1) to (4).

    def _read_ledger(self) -> None:
        self._pass_heads()
        for row in self._books.ledger_rows(self._size):
            if row.position < self._size:
                self._problem(f"there is an entry of the ledger at position {row.position}, where none can be")
                continue
            if row.position != self._size:
                self._problem(f"entries {self._size} to {row.position - 1} of the ledger are missing")
                self._size = row.position
                self._pass_heads()
            self._read_entry(row)
            self._findings.last = f"entry {row.position} of the ledger"
            self._tree = self._tree.extended([row.leaf])
            self._size += 1
            self._pass_heads()

    def _read_entry(self, row: LedgerRow) -> None:
        try:
            entry = Entry.decode(row.entry)
        except LedgerDamaged as error:
            self._problem(f"entry {row.position} of the ledger: {error}")
            return
        if leaf_hash(row.entry) != row.leaf:
            self._problem(f"entry {row.position} of the ledger is not what its hash was made of: {entry.describe()}")
        self._state.follow(row.position, entry, row.entry)
        serial, facts = key_of(entry.serial), entry.facts
        if needs_key(entry):
            self._loose = self._loose or [(row.position, entry.describe())]
            self._loose_count += 1
        match entry.kind:
            case "issued":
                about = (facts["issuer"], facts["shard"], facts["not_after"], facts["role"])
                if not self._tables.note("issued", serial, row.position, leaf_hash(row.entry), *about):
                    self._problem(f"entry {row.position} of the ledger: {entry.describe()}, for the second time")
            case "revoked":
                self._tables.note("revoked", serial, row.position, f"{int(entry.time.timestamp())} {facts['reason']}")
            case "pruned":
                self._check_pruned(row.position, entry)
            case "retired":
                before = int((entry.time - CRL_RETENTION).timestamp())
                if not self._tables.is_ended_ca(serial, before):
                    self._problem(f"entry {row.position} of the ledger ({entry.describe()}): no CA that has ended")
                self._tables.note("retired", serial, row.position, before)
                self._states.pop(str(facts["key_id"]), None)
            case "issuer":
                self._follow(row.position, entry)
                self._declare(facts)

    def _check_pruned(self, position: int, entry: Entry) -> None:
        issuer, before = str(entry.facts["issuer"]), int(entry.facts["before"])
        if self._states.get(issuer) not in ("retiring", "revoked"):
            self._problem(f"entry {position} of the ledger ({entry.describe()}): that CA could still issue")
        elif before > int((entry.time - CRL_RETENTION).timestamp()):
            self._problem(f"entry {position} of the ledger ({entry.describe()}): lists still had to name some of it")
        else:
            self._tables.note("pruned", position, issuer, before, entry.facts["removed"])

    def _follow(self, position: int, entry: Entry) -> None:
        """The states of a CA, in their order."""
        key_id, state = str(entry.facts["key_id"]), str(entry.facts["state"])
        if self._states.get(key_id) == "revoked" and state != "revoked":
            self._problem(f"entry {position} of the ledger ({entry.describe()}): that CA was revoked, and is {state}")
        if state == "revoked":
            self._revoked.setdefault(key_id, position)
        self._states[key_id] = state
        self._ca_serials[key_id] = key_of(entry.serial) or ""
        if key_id not in self._introduced:
            self._announced.add(key_id)

    def _declare(self, facts: Mapping[str, str | int]) -> None:
        with suppress(ValueError, UnsupportedAlgorithm, SignatureError):
            key = load_der_public_key(jws.decode(str(facts["spki"])))
            if isinstance(key, ec.EllipticCurvePublicKey):
                self._declared[str(facts["key_id"])] = key

    def _pass_heads(self) -> None:
        """Compare with every head of at most the present size."""
        while self._head is not None and self._head.size <= self._size:
            self._check_head(self._head)
            self._head = next(self._heads, None)
        if self._kept is not None and self._kept.size == self._size and self._tree.size == self._size:
            if self._kept.root != self._tree.root():
                self._problem(
                    f"the first {self._size} entries of the ledger are not those that the tree head kept elsewhere "
                    f"commits to: history was rewritten after {shown(self._kept.time)}"
                )
            self._kept = None

    def _check_head(self, head: SealedHead) -> None:
        if head.size < 1:
            self._problem(f"there is a tree head at {head.size}, where none can be")
            return
        signed = None if head.jws is None else self._verified(head.jws, f"tree head at {head.size}")
        if signed is not None and (signed.size, signed.root, signed.time) != (head.size, head.root, head.time):
            self._problem(f"tree head at {head.size}: the row differs from what was signed")
            if signed.size != head.size:
                return
        root = head.root if signed is None else signed.root
        if self._tree.size == self._size == head.size and self._tree.root() == root:
            self._agreed, self._lost = head.size, False
            if head.jws is None:
                self._report_loose()
            elif signed is None:
                self._covered()  # the head is a problem by itself
            elif self._is_introduced(head_signer(head.jws), head.size):
                self._signed = True
                self._covered()
                self._anchored |= head_signer(head.jws) in self._below
                self._state.follow_head(signed)
                self._introduced |= self._announced
                self._announced = set()
                if head_signer(head.jws) in self._keys:
                    self._sealed = head.size
            return
        self._covered()
        if not self._lost:
            self._problem(
                f"entries {self._agreed} to {head.size - 1} of the ledger are not those that the tree head at "
                f"{head.size} commits to: {self._named(self._agreed, head.size)}"
            )
        # What follows is compared with the tree as it was signed, so that a second rewritten part is found, too.
        try:
            tree = Frontier.from_bytes(head.frontier)
        except LedgerDamaged:
            tree = Frontier()
        self._lost = not (tree.size == head.size == self._size and tree.root() == root)
        if not self._lost:
            self._tree, self._agreed = tree, head.size

    def _is_introduced(self, kid: str, size: int) -> bool:
        """Whether that CA may sign a head. The CAs of the first head introduce themselves."""
        if kid in self._introduced or (not self._introduced and kid in self._announced):
            return True
        record = next((one for one in self._books.issuers() if one.key_id == kid), None)
        if record is None:
            return False  # pruned since: the next head of a CA that was known must cover it
        parent = self._keys.get(record.parent)
        if kid in self._announced and record.parent in self._introduced and parent is not None:
            with suppress(InvalidSignature, UnsupportedAlgorithm, AuthorityDamaged):
                verify_certificate(record.certificate, parent)
                return True
        self._problem(f"tree head at {size}: by CA {kid}, about which there is nothing under a head of another CA")
        self._covered()
        return False

    def _report_loose(self) -> None:
        if self._loose and not (self._upgraded and not self._signed):
            position, says = self._loose[0]
            more = f" (and {self._loose_count - 1} more such entries)" if self._loose_count > 1 else ""
            self._problem(f"entry {position} of the ledger ({says}) is under no signed head: {_HOLDER}{more}")
            self._covered()

    def _covered(self) -> None:
        self._loose, self._loose_count = [], 0

    def _check_signed(self) -> None:
        """(8) and (11), at the end."""
        newer = [head for head in self._books.heads() if head.size == self._size] if self._loose else []
        for head in newer:  # written while the audit ran
            self._check_head(head)
        self._report_loose()
        if self._size and not self._signed and not self._findings.problems and not self._upgraded:
            self._problem(f"no signed head commits to any of the {self._size} entries of the ledger")
        for key_id, serial in self._ca_serials.items():
            if self._tables.is_revoked(serial) and self._states.get(key_id, "revoked") != "revoked":
                self._problem(f"CA {key_id} goes on, and its certificate is revoked")
        if self._root is not None and not self._anchored:
            self._problem(
                f"no tree head is signed by a CA below the root {self._root}: this is the ledger of another CA"
            )

    def _claimed(self, text: str | None) -> Head | None:
        try:
            return None if text is None else claimed_head(text)
        except LedgerDamaged:
            return None  # it will not be verified either

    def _verified(self, text: str, what: str) -> Head | None:
        try:
            kid = head_signer(text)
            key = self._keys.get(kid) or self._declared.get(kid)
            if key is None:
                raise LedgerDamaged("signed by an unknown CA", got=kid, expected="a CA of this database")
            head = verify_head(text, key)
            if head.trust_domain != self._domain:
                raise LedgerDamaged("another trust domain", got=head.trust_domain, expected=self._domain)
            if kid in self._revoked and self._revoked[kid] < head.size:
                raise LedgerDamaged(
                    "signed by a CA that was revoked before",
                    got=f"CA {kid}, revoked by entry {self._revoked[kid]}",
                    expected=f"a CA of the time of entry {head.size - 1}",
                )
        except LedgerDamaged as error:
            self._problem(f"{what}: {error}")
            return None
        return head

    def _check_end(self) -> None:
        beyond = 0
        while self._head is not None:
            if self._head.size > self._size:
                self._read_ledger()  # a head that was written a moment ago came with its entries
            if self._head is not None and self._head.size > self._size:
                beyond = self._head.size
                self._head = next(self._heads, None)
        if beyond:
            self._problem(
                f"entries {self._size} to {beyond - 1} of the ledger are missing: there is a tree head at {beyond}"
            )
        if self._kept is not None:
            self._problem(
                f"the tree head kept elsewhere is about {self._kept.size} entries, and the ledger has {self._size}: "
                "its end, or what stood there, was removed"
            )

    def _named(self, start: int, end: int) -> str:
        names = []
        for row in islice(self._books.ledger_rows(start), NAMED):
            if row.position < end:
                with suppress(LedgerDamaged):
                    names.append(Entry.decode(row.entry).describe())
        return "; ".join(names) + ("; and others" if end - start > NAMED else "")

    def _below_root(self, root: str | None) -> frozenset[str]:
        """The CAs that a pinned root vouches for: itself, and those whose certificates it has signed."""
        issuers = [] if root is None else self._books.issuers()
        pinned = [one for one in issuers if one.kind == "root" and fingerprint(one.der) == root]
        found = {one.key_id for one in pinned}
        for issuer in issuers:
            for above in pinned:
                with suppress(InvalidSignature, UnsupportedAlgorithm, AuthorityDamaged, KeyError):
                    verify_certificate(issuer.certificate, self._keys[above.key_id])
                    found.add(issuer.key_id)
        return frozenset(found)
