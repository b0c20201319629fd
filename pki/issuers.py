"""The CAs of this authority as one process sees them now: which one issues, by which policy, and with which key.

Another process may rotate, or replace the policy, at any time, so what is remembered here is read again after a second.
The store has the last word: it refuses, in the same transaction, what a revoked CA has signed meanwhile.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace

from pki import keys, pkcs11, rotation
from pki.errors import AuthorityDamaged, AuthorityNotValid, UnknownName, WrongPassword
from pki.founding import KeyPair
from pki.keys import Signer
from pki.ledger import Head, sign_head
from pki.policy import Rules
from pki.profiles import Issuer
from pki.records import IssuerRecord, State
from pki.store import Store

READ_AGAIN_SECONDS = 1.0


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
                "no intermediate CA is active", expected="one that may issue", do="run `a2a-pki rotate`"
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
        self, store: Store, trust_domain: str, *, password: str | None, pin: str | None, known: dict[str, Signer]
    ) -> None:
        """`known`: keys that are open already, by key identifier."""
        self._store = store
        self._trust_domain = trust_domain
        self._password = password
        self._pin = pin
        self._signers = known
        self._opening = threading.Lock()
        self._reading = threading.Lock()
        self._read_at = 0.0
        self._view = self._read(None)
        store.seal = self._seal if self.unlocked else None

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
        """What the store said at most a second ago."""
        if time.monotonic() - self._read_at < READ_AGAIN_SECONDS:
            return self._view
        # One thread reads; the others go on with what they know, as they would have a moment earlier.
        if self._reading.acquire(blocking=False):
            try:
                self._view = self._read(self._view)
            finally:
                self._reading.release()
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
            WrongPassword: the CA was opened without its password or PIN, or they are wrong.
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

    def new_key(self, beside: IssuerRecord) -> KeyPair:
        """A new key where the key of another CA is kept: on the same token, or encrypted with the CA's password.

        Raises:
            WrongPassword: there is nothing to protect it with.
            KeyStoreError: the token cannot be used.
        """
        if beside.key_uri is None:
            return make_key(None, self._password, self._pin)
        where = replace(pkcs11.TokenUri.parse(beside.key_uri), object=None, id=None)
        return make_key(str(where), self._password, self._pin)

    def forget(self, key_id: str) -> None:
        """Drop a key that has left this CA."""
        self._signers.pop(key_id, None)

    def _open(self, record: IssuerRecord) -> Signer:
        if record.key_pem is not None and self._password is None:
            raise _locked()
        return keys.open_signer(record, password=self._password, pin=self._pin)

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
            if record.key_pem is None and record.key_uri is None:
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
        """Sign a tree head with the key that issues. Called inside a transaction, so it reads and opens nothing.

        What it raises leaves the head unsigned; the next signed one covers the same entries.
        """
        key_id = self._view.issuing.key_id
        signer = self._signers.get(key_id)
        if signer is None:
            raise _locked()
        return sign_head(head, signer, key_id)


def make_key(key_store: str | None, password: str | None, pin: str | None) -> KeyPair:
    """A new CA key: on a token, where `key_store` names one, or here, and then encrypted with the password."""
    if key_store is not None:
        on_token = pkcs11.generate_on_token(key_store, pin)
        return KeyPair(signer=on_token, uri=on_token.uri)
    if password is None:
        raise _locked()
    key = keys.generate()
    return KeyPair(signer=key, pem=keys.write(key, password))


def _locked() -> WrongPassword:
    return WrongPassword("CA is locked", got="no password", expected="the password of `a2a-pki init`")
