"""Part of the audit of a ledger (`pki.ledger_audit`): what is kept in few rows, against the last entries about it.

CAs, bans, the policy, and the settings with the number of the bundle, which have no entries and stand under heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from pki.errors import AuthorityDamaged
from pki.ledger import Entry, Head, entry_for_issuer, policy_digest, settings_digest
from pki.records import IssuerRecord, Settings


class FewRows(Protocol):
    """What is compared with the ledger here."""

    def settings(self) -> Settings: ...
    def bundle_sequence(self) -> int: ...
    def policy_text(self) -> str | None: ...
    def issuers(self) -> list[IssuerRecord]: ...
    def bans(self) -> list[tuple[str, datetime]]: ...


class StateAudit:
    """`follow` every entry, `read` the rows, follow what was written meanwhile, `compare`."""

    def __init__(
        self, books: FewRows, keys: Mapping[str, ec.EllipticCurvePublicKey], problem: Callable[[str], None]
    ) -> None:
        self._books = books
        self._keys = keys
        self._problem = problem
        # What may be the right state: what the last entry from before the rows were read says, or any later one.
        self._said: dict[str, dict[str, list[object]]] = {"ban of": {}, "CA": {}, "policy": {}}
        self._found: dict[str, dict[str, object]] | None = None
        self._issuers: Sequence[IssuerRecord] = ()
        self._sequence = 0
        self._first: dict[str, int] = {}  # CA to the position of its first entry
        # What signed heads say about what has no entry: the last settings, the largest number.
        self._settings: tuple[int, bytes] | None = None
        self._bundle = 0

    def follow(self, position: int, entry: Entry, encoded: bytes) -> None:
        facts = entry.facts
        match entry.kind:
            case "banned":
                self._note("ban of", entry.spiffe_id, int(entry.time.timestamp()))
            case "unbanned":
                self._note("ban of", entry.spiffe_id, None)
            case "policy":
                self._note("policy", "", facts["sha256"])
            case "issuer":
                self._note("CA", facts["key_id"], encoded)
                self._first.setdefault(str(facts["key_id"]), position)
            case "retired":
                self._note("CA", facts["key_id"], None)

    def follow_head(self, head: Head) -> None:
        """One that is signed, and agrees with the ledger."""
        self._bundle = max(self._bundle, head.bundle or 0)
        if head.settings is not None:
            self._settings = head.size, head.settings

    def read(self) -> None:
        """The rows as they are now."""
        policy, self._issuers = self._books.policy_text(), self._books.issuers()
        self._sequence = self._books.bundle_sequence()
        self._found = {
            "ban of": {spiffe_id: int(since.timestamp()) for spiffe_id, since in self._books.bans()},
            "CA": {issuer.key_id: self._row(issuer) for issuer in self._issuers},
            "policy": {} if policy is None else {"": policy_digest(policy)},
        }

    def compare(self) -> None:
        assert self._found is not None, "read first"  # noqa: S101 - or all would look well
        for what, found in self._found.items():
            for name in sorted(self._said[what].keys() | found.keys()):
                self._compare_row(f"{what} {name}".rstrip(), self._said[what].get(name, [None]), found.get(name))
        if self._settings is not None and settings_digest(self._books.settings()) != self._settings[1]:
            self._problem(f"the settings of the CA are not those that the tree head at {self._settings[0]} commits to")
        if self._sequence < self._bundle:
            self._problem(f"the trust bundle has sequence number {self._sequence}, and had {self._bundle} before")
        for issuer in self._issuers:
            if issuer.position is not None and self._first.get(issuer.key_id, issuer.position) != issuer.position:
                self._problem(f"CA {issuer.key_id} is at another place in the order than its first entry")

    def _compare_row(self, name: str, expected: list[object], state: object) -> None:
        if state in expected:
            return
        if state is None:
            happened = "was removed"
        else:
            happened = "was inserted" if expected == [None] else "differs from the last entry about it"
        self._problem(f"{name} {happened}")

    def _note(self, what: str, name: object, state: object) -> None:
        said = self._said[what]
        if self._found is None:
            said[str(name)] = [state]
        else:
            said.setdefault(str(name), [None]).append(state)

    def _row(self, issuer: IssuerRecord) -> bytes:
        """What the ledger should say about a CA; nothing that it ever says, where its row is damaged."""
        try:
            if self._keys.get(issuer.key_id) == issuer.certificate.public_key():
                return entry_for_issuer(issuer).encode()
            self._problem(f"CA {issuer.key_id} has another public key than expected")
        except AuthorityDamaged as error:
            self._problem(f"CA {issuer.key_id}: {error}")
        return b""
