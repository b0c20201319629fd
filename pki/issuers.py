"""The CAs of this authority as one process sees them now: which one issues, by which policy, and with which key.

Another process may rotate, or replace the policy, at any time, so what is remembered here is read again after a second.
The store has the last word: it refuses, in the same transaction, what a revoked CA has signed meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from pki import keys, pkcs11, rotation
from pki.errors import (
    AuthorityDamaged,
    AuthorityNotValid,
    LedgerDamaged,
    NotErased,
    PasswordChanged,
    UnknownName,
    WrongPassword,
)
from pki.keys import KeyPair, Signer, locked, make_key
from pki.ledger import Head, sign_head
from pki.profiles import Issuer
from pki.records import IssuerRecord, PendingKey, State
from pki.rules import Rules
from pki.store import Store

READ_AGAIN_SECONDS = 1.0
BELIEVED_SECONDS = 5.0  # nobody goes by a view that could not be read again for longer, however busy the CA is


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What was read at one moment."""

    records: tuple[IssuerRecord, ...]  # oldest first
    root: Issuer  # the one that signs intermediates
    intermediate: Issuer | None  # the one that issues; None after it was revoked, until another one is made
    policy: str | None
    rules: Rules | None

    @property
    def issuing(self) -> Issuer:
        if self.intermediate is None:
            raise AuthorityNotValid(
                "no intermediate CA is active", expected="one that may issue", do=rotation.to_replace(self.records)
            )
        return self.intermediate

    def record(self, key_id: str) -> IssuerRecord:
        """One of the CAs.

        Raises:
            UnknownName: there is none with that key identifier.
        """
        for record in self.records:
            if record.key_id == key_id:
                return record
        raise UnknownName("CA", got=key_id, expected="the key identifier of a CA of this authority")


class Issuers:
    """The CAs and their keys; safe for threads."""

    def __init__(
        self,
        store: Store,
        trust_domain: str,
        *,
        password: str | None,
        pin: str | None,
        modules: Collection[str],
        known: dict[str, Signer],
    ) -> None:
        """
        Args:
            modules: PKCS#11 modules that the operator has named; the database names no other.
            known: keys that are open already, by key identifier.
        """
        self._store = store
        self._trust_domain = trust_domain
        self._password = password
        self._pin = pin
        self._modules = modules
        self._signers = known
        # By key identifier: what was found out about a row, for as long as it is the one that was read.
        self._known_keys: dict[str, tuple[IssuerRecord, ec.EllipticCurvePublicKey]] = {}
        self._opening = threading.Lock()
        self._reading = threading.Lock()
        self._read_at = 0.0
        self._failure: Exception | None = None
        self._failed_at = 0.0
        self._view = self._read(None)
        # What was opened, as it was encrypted then: where it is encrypted anew, there is another password.
        self._opened = {record.key_id: record.key_pem for record in self._view.records if record.key_id in known}
        store.seal = self._seal if self.unlocked else None
        store.guard.key_of = self._believed if self.unlocked else None

    @property
    def unlocked(self) -> bool:
        """Whether there is anything to open keys with. A CA without it answers, revokes, and signs nothing."""
        return self._password is not None or self._pin is not None

    def open_signing_key(self) -> None:
        """Open the key that issues, if there is anything to open it with.

        Raises:
            WrongPassword, KeyStoreError, AuthorityDamaged: as `signer`.
        """
        if self.unlocked and self._view.intermediate is not None:
            self.signer(self._view.intermediate.key_id)

    def view(self) -> View:
        """What the store said at most a second ago, or a moment longer while another thread is reading.

        Raises:
            PolicyMalformed, AuthorityDamaged, StoreError: it cannot be read. From five seconds on everybody is told,
                and not only the one who tried: a policy that this program does not understand might forbid it all.
        """
        age = time.monotonic() - self._read_at
        if age < READ_AGAIN_SECONDS:
            return self._view
        if age >= BELIEVED_SECONDS:
            return self._read_by_anybody()
        # One thread reads; the others go on with what they know, as they would have a moment earlier.
        if self._reading.acquire(blocking=False):
            try:
                self._view = self._read(self._view)
            finally:
                self._reading.release()
        return self._view

    def _read_by_anybody(self) -> View:
        with self._reading:
            if time.monotonic() - self._read_at < READ_AGAIN_SECONDS:
                return self._view
            if self._failure is not None and time.monotonic() - self._failed_at < READ_AGAIN_SECONDS:
                raise self._failure  # once a second: a database that does not answer takes its time each time
            try:
                self._view = self._read(self._view)
            except Exception as error:
                self._failure, self._failed_at = error, time.monotonic()
                raise
            self._failure = None
            return self._view

    def read(self) -> View:
        """What the store says now."""
        with self._reading:
            self._view = self._read(self._view)
            return self._view

    def signer(self, key_id: str) -> Signer:
        """The key of a CA, opened when it is first needed: scrypt takes a moment, and a root signs once a day.

        Raises:
            UnknownName: there is no such CA.
            WrongPassword: the CA was opened without its password or PIN, or they are wrong; PasswordChanged: by now.
            KeyStoreError: the key is offline, or its token cannot be used.
            AuthorityDamaged: it is the key of another CA.
        """
        signer = self._signers.get(key_id)
        if signer is None:
            with self._opening:  # once, however many ask
                signer = self._signers.get(key_id)
                if signer is None:
                    signer = self._signers[key_id] = self._open(self.record(key_id))
        return signer

    def record(self, key_id: str) -> IssuerRecord:
        """One of the CAs, also one that was made a moment ago. Raises `UnknownName`."""
        try:
            return self._view.record(key_id)
        except UnknownName:
            return self.read().record(key_id)

    def vouching(self, key_id: str) -> ec.EllipticCurvePublicKey | None:
        """The key of a CA of ours that is not revoked, by which tokens are verified; None: there is none.

        Raises:
            WrongPassword, KeyStoreError, AuthorityDamaged, StoreError: it cannot be told.
        """
        if not self.unlocked:
            raise locked()
        try:
            if self.record(key_id).state is not State.REVOKED:
                return self._believed(key_id)
        except (UnknownName, LedgerDamaged):
            pass
        return None

    def change_password(self, password: str) -> int:
        """Encrypt every key of the database with another password, all at once; returns how many there are.

        Raises:
            WrongPassword: the one before does not open all of them, or the new one is empty.
            StateChanged: a CA was made meanwhile.
            NotErased: the keys have the new password; their old encryption is still in the database's log.
        """
        pending = self._store.pending_key()
        kept: list[IssuerRecord | PendingKey] = [*self._store.issuers(), *([] if pending is None else [pending])]
        changed: dict[bytes, bytes] = {}
        for one in kept:
            if one.key_pem is not None:
                if self._password is None:
                    raise locked()
                changed[one.key_pem] = keys.write(keys.read(one.key_pem, self._password), password)
        try:
            self._store.replace_keys(changed)
        except NotErased:
            self._follow(password, changed)
            raise
        self._follow(password, changed)
        self.read()
        return len(changed)

    def _follow(self, password: str, changed: Mapping[bytes, bytes]) -> None:
        self._password = password
        self._opened = {key_id: pem and changed.get(pem, pem) for key_id, pem in self._opened.items()}

    def new_key(self, beside: IssuerRecord) -> KeyPair:
        """A new key where the key of another CA is kept: on the same token, or encrypted with the CA's password.

        Raises:
            WrongPassword: there is nothing to protect it with, or the password was changed by another process.
            KeyStoreError: the token cannot be used.
        """
        if beside.key_uri is None:
            if beside.key_pem is not None:  # the password may have been changed since it was given to this process
                self._open(beside)
            return make_key(None, self._password, self._pin)
        where = replace(pkcs11.TokenUri.parse(pkcs11.named(beside.key_uri, self._modules)), object=None, id=None)
        return make_key(str(where), self._password, self._pin)

    def open_pending(self, pending: PendingKey) -> None:
        """See that the key which waits for its certificate is this CA's, and the one of its request.

        Raises:
            WrongPassword, KeyStoreError, AuthorityDamaged: as `keys.open_pending`.
        """
        if pending.key_pem is not None and self._password is None:
            raise locked()
        with self._told_of_a_change():
            keys.open_pending(pending, password=self._password, pin=self._pin, modules=self._modules)

    def keep(self, key_id: str, signer: Signer) -> None:
        """Remember a key that is open already: of a CA that is being made."""
        self._signers.setdefault(key_id, signer)

    def open(self, record: IssuerRecord) -> None:
        """Open the key of a CA that is about to be added."""
        self.keep(record.key_id, self._open(record))

    def forget(self, key_id: str) -> None:
        """Drop a key that has left this CA."""
        self._signers.pop(key_id, None)
        self._known_keys.pop(key_id, None)

    def _open(self, record: IssuerRecord) -> Signer:
        if record.key_pem is not None and self._password is None:
            raise locked()
        with self._told_of_a_change():
            signer = keys.open_signer(record, password=self._password, pin=self._pin, modules=self._modules)
        self._opened[record.key_id] = record.key_pem
        return signer

    @contextmanager
    def _told_of_a_change(self) -> Iterator[None]:
        """A password that was right when this process was started is not called wrong."""
        try:
            yield
        except WrongPassword:
            for record in self._view.records:
                opened = self._opened.get(record.key_id)
                if opened is not None and record.key_pem is not None and record.key_pem != opened:
                    raise PasswordChanged(
                        "password of the CA was changed",
                        got="the one of before",
                        expected="the new one",
                        do="start this program (`a2a-pki serve`) again with it",
                    ) from None
            raise

    def _read(self, last: View | None) -> View:
        # Before the reading and not after it: what changes meanwhile is seen a second from now.
        moment = time.monotonic()
        records, text = tuple(self._store.issuers()), self._store.policy_text()
        if last is None or records != last.records or text != last.policy:
            last = self._understood(records, text, last)
        self._read_at = moment
        return last

    def _understood(self, records: tuple[IssuerRecord, ...], text: str | None, last: View | None) -> View:
        root = rotation.signing_root(records)
        if root is None:
            raise AuthorityDamaged("CA", got="no root certificate", expected="one", do="restore a backup")
        for record in records:
            if not record.online:
                self.forget(record.key_id)  # another process has exported it: it is offline for this one, too
        active = rotation.newest(records, "intermediate", State.ACTIVE)
        if last is not None and text == last.policy:
            rules = last.rules
        else:
            rules = None if text is None else Rules.parse(text, self._trust_domain)
        return View(
            records=records,
            root=Issuer.of(root.certificate),
            intermediate=None if active is None else Issuer.of(active.certificate),
            policy=text,
            rules=rules,
        )

    def _seal(self, head: Head) -> str:
        """Sign a tree head. Called inside a transaction, so it reads and opens nothing.

        With the key that issues. Where there is none, because it was revoked, with that of any other CA that is open: a
        new one has to come into the ledger under a signed head.
        """
        view = self._view
        issuing = view.intermediate.key_id if view.intermediate is not None else None
        known = {record.key_id: record for record in view.records}
        others = [key_id for key_id in list(self._signers) if key_id != issuing]
        for key_id in others if issuing is None else [issuing]:
            signer = self._signers.get(key_id)
            if signer is not None and (key_id not in known or known[key_id].state is not State.REVOKED):
                return sign_head(head, signer, key_id)
        raise locked()

    def _believed(self, key_id: str) -> ec.EllipticCurvePublicKey:
        """The key of a CA that is ours: its private key opens, or it has signed the certificate of one whose does.

        That its row says so is not enough: whoever can write the database can write rows.
        """
        try:
            record = self.record(key_id)
        except UnknownName as error:
            raise _stranger(key_id) from error
        known = self._known_keys.get(key_id)
        if known is not None and known[0] is record:
            return known[1]
        certificate = record.certificate
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise _stranger(key_id)
        if record.online:
            try:
                self.signer(key_id)
            except PasswordChanged as error:
                raise LedgerDamaged("the ledger is not signed over", got=f"{error}") from error
            except WrongPassword as error:
                raise _stranger(key_id) from error
            self._known_keys[key_id] = record, key
            return key
        for below in self._view.records:
            if below.parent == key_id and below.online:
                try:
                    below.certificate.verify_directly_issued_by(certificate)
                    self.signer(below.key_id)
                except (InvalidSignature, ValueError, TypeError, WrongPassword):
                    continue
                return key
        raise _stranger(key_id)


def _stranger(key_id: str) -> LedgerDamaged:
    return LedgerDamaged(
        "the ledger is not signed over",
        got=f"a last head by CA {key_id}",
        expected="one by a CA whose key is ours",
        do="run `a2a-pki ledger verify`, and restore a backup",
    )
