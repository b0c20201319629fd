"""The certificate authority: one database, and the things it does.

The root signs the intermediate, the intermediate signs agents, and each signs its own revocation lists. This file is
an edge: it reads the clock, draws serial numbers and writes; what is allowed and what it looks like is decided in
`pki.policy`, `pki.enrolment` and `pki.profiles`, and when which CA signs in `pki.rotation`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from datetime import datetime
from pathlib import Path
from types import TracebackType

from cryptography import x509

from pki import ceremony, founding, health, policy
from pki.errors import (
    ReasonRefused,
    WrongPassword,
)
from pki.health import HealthCheck
from pki.issuance import Issued as Issued
from pki.issuance import parsed
from pki.issuers import Issuers
from pki.keys import make_key
from pki.oversight import Oversight
from pki.pkcs11 import TokenUri
from pki.records import Record, Settings
from pki.rotation import Action, Step
from pki.rules import Rules
from pki.store import Store
from pki.succession import Succession
from trust import identity
from trust.clock import Clock, utc, wall_clock
from trust.identity import AgentID


class CertificateAuthority(Oversight):
    """The CA of one trust domain; `create` and `open` are the only doors. Safe for threads and several processes."""

    def __init__(
        self, store: Store, issuers: Issuers, settings: Settings, *, clock: Clock, serials: Callable[[], int]
    ) -> None:
        super().__init__(store, issuers, settings, clock=clock, serials=serials)
        self._succession = Succession(store, issuers, settings, serials=serials)

    @classmethod
    def create(
        cls,
        where: str | os.PathLike[str],
        *,
        trust_domain: str,
        password: str,
        now: datetime | None = None,
        name_constraint: bool = False,
        crl_base_url: str | None = None,
        public_url: str | None = None,
        key_store: str | None = None,
        pin: str | None = None,
        clock: Clock = wall_clock,
        serials: Callable[[], int] = x509.random_serial_number,
    ) -> CertificateAuthority:
        """Make a CA: a root, an intermediate, and their database. All of it appears at once, or nothing.

        Args:
            where: a folder that does not exist (its parents are made), or `postgresql://...`.
            trust_domain: the SPIFFE trust domain, such as "fleet.example".
            password: opens the private keys from now on.
            now: when it is made; the clock's time when left out.
            name_constraint: intermediates carry a URI name constraint for the domain.
            crl_base_url: where the revocation lists will be served; certificates point below it.
            public_url: where the plain-HTTP side of the CA service will be reached; certificates then name their
                lists, the OCSP responder and their issuer's certificate below it.
            key_store: a PKCS#11 URI (`pkcs11:token=...`): keys are made on that token and never leave it.
            pin: of that token.
            clock: what time it is, asked whenever a method gets no `now`.
            serials: where serial numbers come from; a test may count, everybody else draws them at random.

        Raises:
            AuthorityExists: there is something at that place.
            IdentityError: the trust domain is malformed.
            WrongPassword: the password is empty, or the PIN wrong.
            PolicyRefused: a URL is not one, or the trust domain cannot be a name constraint.
            KeyStoreError: the token cannot be used.
            PKIError: the folder cannot be written, or the database cannot be used.
        """
        if founding.is_folder(where):
            founding.vacant(where)
        settings = Settings(
            trust_domain=identity.trust_domain(trust_domain),
            crl_base_url=None if crl_base_url is None else policy.crl_base_url(crl_base_url),
            public_url=None if public_url is None else policy.public_url(public_url),
            name_constraint=name_constraint,
        )
        if not password:
            raise WrongPassword("password of the new CA", got="nothing", expected="at least one character")
        known = founding.found(
            where,
            settings,
            make_key=lambda: make_key(key_store, password, pin),
            now=utc(clock() if now is None else now),
            serials=serials,
        )
        store = Store.open(where)
        modules = [] if key_store is None else [TokenUri.parse(key_store).module_path]
        issuers = Issuers(store, settings.trust_domain, password=password, pin=pin, modules=modules, known=known)
        return cls(store, issuers, settings, clock=clock, serials=serials)

    @classmethod
    def open(
        cls,
        where: str | os.PathLike[str],
        *,
        password: str | None = None,
        pin: str | None = None,
        modules: Collection[str] = (),
        clock: Clock = wall_clock,
        serials: Callable[[], int] = x509.random_serial_number,
    ) -> CertificateAuthority:
        """Open a CA that `create` made. Without its password it answers questions, revokes, and signs nothing.

        Args:
            pin: of the PKCS#11 token that holds the keys.
            modules: paths of the PKCS#11 modules that may be loaded: code in this process, which the database cannot
                name alone.

        Raises:
            AuthorityMissing: there is no CA.
            WrongPassword: the password, or the PIN, does not open the signing key.
            AuthorityDamaged: the key is not the one of the certificate.
            KeyStoreError: its token cannot be used, or its module was not named.
            SchemaOutdated: an earlier version made it; `a2a-pki upgrade` brings it up to date.
            StoreError: the database cannot be used.
        """
        store = Store.open(where)
        try:
            settings = store.settings()
            issuers = Issuers(store, settings.trust_domain, password=password, pin=pin, modules=modules, known={})
            ca = cls(store, issuers, settings, clock=clock, serials=serials)
            # At once, so that a wrong password is told now and not at the first request.
            issuers.open_signing_key()
            return ca
        except BaseException:  # an interrupt, too
            store.close()
            raise

    def close(self) -> None:
        self._store.close()

    def __enter__(self) -> CertificateAuthority:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def settings(self) -> Settings:
        return self._settings

    @property
    def root(self) -> x509.Certificate:
        """The root that signs intermediates now."""
        return self._issuers.view().root.certificate

    @property
    def intermediate(self) -> x509.Certificate:
        """The intermediate that signs agents now.

        Raises:
            AuthorityNotValid: the last one was revoked, and there is no other yet.
        """
        return self._issuers.view().issuing.certificate

    # Revocation.

    def revoke(
        self,
        serial: int,
        reason: x509.ReasonFlags | str = x509.ReasonFlags.unspecified,
        now: datetime | None = None,
    ) -> Record:
        """Revoke a certificate for good; the next list has it. Doing it twice keeps the first reason and date.

        An intermediate issues nothing from then on; `taint` replaces it as well, where the root is not offline. A
        certificate of an hour or less says that no list is needed (RFC 9608): verifiers may take it to its end.

        Raises:
            UnknownSerial: this CA has made no such certificate.
            ReasonRefused: the reason is not one, or the certificate is a root, which no list can revoke.
        """
        moment = self._moment(now)
        flag = policy.revocation_reason(reason)
        record = self.find(serial)
        if record.kind == "root":
            raise ReasonRefused(
                "the root cannot be revoked", expected="another certificate", do="taint it, and it will be replaced"
            )
        if record.kind == "intermediate":
            return self._succession.revoke(serial, flag, moment)
        (revoked,) = self._store.revoke([serial], reason=flag, now=moment)
        return revoked

    def revoke_agent(
        self,
        agent_id: AgentID | str,
        reason: x509.ReasonFlags | str = x509.ReasonFlags.unspecified,
        *,
        ban: bool = False,
        now: datetime | None = None,
    ) -> list[Record]:
        """Revoke every certificate of an agent that has not ended; with `ban`, it gets no other.

        Without a ban, an agent that holds a token, or asks somebody who issues, gets a new certificate.

        Raises:
            IDRefused, IdentityError: not an ID of this trust domain.
            ReasonRefused: as `revoke`.
        """
        moment = self._moment(now)
        flag = policy.revocation_reason(reason)
        name = self._own(agent_id)
        if ban:  # first, so that nothing is issued after the list was made
            self._store.ban(name, moment)
        done: list[Record] = []
        # Until there is none left: a renewal may have been under way.
        while found := self._store.records(spiffe_id=name, ends_after=moment, revoked=False):
            done += self._store.revoke([record.serial for record in found], reason=flag, now=moment)
        return done

    def ban(self, agent_id: AgentID | str, now: datetime | None = None) -> None:
        """From now on nothing is issued for that ID, by token, renewal or by hand. What was issued stays good."""
        self._store.ban(self._own(agent_id), self._moment(now))

    def unban(self, agent_id: AgentID | str, now: datetime | None = None) -> bool:
        """Lift a ban; False: there was none."""
        return self._store.unban(self._own(agent_id), self._moment(now))

    def bans(self) -> list[tuple[str, datetime]]:
        """The banned IDs, and since when."""
        return self._store.bans()

    # Rotation.

    def plan(self, now: datetime | None = None) -> tuple[Step, ...]:
        """What happens to the CAs and when; what is due already comes first."""
        return self._succession.plan(self._moment(now))

    def ceremonies(self, now: datetime | None = None) -> tuple[Step, ...]:
        """What is due and waits for a person, because a root key is offline."""
        moment = self._moment(now)
        return tuple(step for step in self.plan(moment) if step.action is Action.CEREMONY and step.at <= moment)

    def rotate(self, now: datetime | None = None, *, kind: str | None = None, force: bool = False) -> tuple[Step, ...]:
        """Do what is due, and return what was done. To be called often, by as many instances as there are.

        Args:
            kind: only "root" or only "intermediate".
            force: do not wait for the schedule: a new CA is prepared, and becomes active by a later call. An
                intermediate does so when its revocation lists have been published for a refresh hint, or at once where
                none can issue now; a root, when it has been in the bundle for five, and then an intermediate of its own
                is prepared. Nobody who has the bundle and the lists of before refuses anything.

        Raises:
            WrongPassword: something is due, and the CA was opened without its password.
            KeyStoreError: something is forced that an offline root would have to sign.
            StoreError: the database cannot be used.
        """
        return self._succession.rotate(self._moment(now), kind=kind, force=force)

    def taint(self, key_id: str, now: datetime | None = None) -> tuple[Step, ...]:
        """The private key of one of the CAs may be in other hands.

        An **intermediate** is revoked at once, and another one issues when this returns. What it signed is refused by
        whoever reads the root's revocation list; `renewal_info` says "at once" for all of it, and `renew` knows the
        genuine ones by their thumbprint.

        A **root** cannot be revoked: that is what its place in the bundle means. Taking it out while every chain ends
        in it would cut off the whole domain, and putting a new one in does nothing until verifiers have heard of it. So
        it goes in two steps, as with SPIRE (taint, then revoke). The first call prepares a new root. It becomes
        active when it has been in the bundle for five refresh hints, a new intermediate another one later, and then
        everything below the tainted one is to be renewed at once; `rotate` does that, on any instance. The second call,
        when renewals have gone through, takes the tainted root out of the bundle; whoever missed it enrols again. Until
        then a forger with its key is believed: how long to wait is the operator's choice, and the plan says what
        happens without one. A prepared root, which nobody needs yet, leaves at the first call.

        Raises:
            UnknownName: there is no such CA.
            WrongPassword: it is revoked, but a new one cannot be made without the password.
            StoreError: the database cannot be used.
        """
        return self._succession.taint(key_id, self._moment(now))

    def prune(self, now: datetime | None = None) -> int:
        """Forget what nobody can need any more: certificates of retired CAs that ended long ago, expired tokens."""
        count = self._store.prune(issuer=None, now=self._moment(now))
        self._issuers.read()
        return count

    # The ceremony with an offline root (`pki.ceremony`).

    def request_intermediate(self, now: datetime | None = None) -> bytes:
        """The request (PEM) for an intermediate, to be taken to where the root is. The key stays here, unused.

        Asked again before the certificate is there, it is the same request.
        """
        return self._succession.request_intermediate(self._moment(now))

    def accept_intermediate(self, pem: bytes, now: datetime | None = None) -> tuple[Step, ...]:
        """Take the certificate that the offline root has made, and go on as `rotate` does.

        Raises:
            AuthorityNotValid: no request is open, or the certificate is not valid now.
            AuthorityDamaged: it is not what this CA would have made for its key with that root.
            StateChanged: the CAs changed at the same moment.
        """
        return self._succession.accept_intermediate(pem, self._moment(now))

    def export_root(self, target: Path, password: str, now: datetime | None = None) -> None:
        """Move the root key into a file of its own, encrypted. The database has it no more; backups may still.

        The file is on the disk, and has been read again, before the key is removed. An interrupted export is done
        again. Before it goes, the root signs a revocation list that lasts as long as the intermediate, because it
        cannot sign one every day; the ceremony for the next intermediate makes the next list.

        Args:
            password: of the file; it may be another one than the CA's.

        Raises:
            AuthorityExists: there is a file already.
            KeyStoreError: the root key is on a token, which it never leaves, or it is offline already.
            WrongPassword: the CA was opened without its password, or the new one is empty.
            PKIError: the file cannot be written.
        """
        moment = self._moment(now)
        view = self._issuers.read()
        root, end = view.root, (view.intermediate or view.root).not_after
        signer = self._issuers.signer(root.key_id)
        ceremony.write_root(target, root.certificate, signer, self._settings, password)
        self.revocations.sign_for_long(root.key_id, signer, lifetime=end - moment, now=moment)
        self._store.forget_key(root.key_id)
        self._issuers.forget(root.key_id)
        self._issuers.read()

    # The policy, the password, health.

    def policy_text(self) -> str | None:
        """The policy file as it was given; None: there is none, and whoever may issue issues anything."""
        return self._store.policy_text()

    def set_policy(self, text: str, now: datetime | None = None) -> None:
        """Replace the policy file. Every instance follows within a second.

        Raises:
            PolicyMalformed: it cannot be understood in full; the one before stays.
        """
        Rules.parse(text, self.trust_domain)
        self._store.set_policy(text, self._moment(now))
        self._issuers.read()

    def change_password(self, password: str) -> int:
        """Encrypt every private key in the database with another password: all of them in one transaction.

        Not changed: PINs of tokens, the file of an offline root, and keys in backups that were made before; those the
        old password still opens. Another process that has the CA open goes on with the keys that it has opened, and
        cannot make new ones until it is started again with the new password.

        Returns:
            how many keys there are.

        Raises:
            WrongPassword: the CA was opened without its password, or the new one is empty.
            StateChanged: a CA was made at the same moment; do it again.
            NotErased: they are changed; another program reads the database, whose log still holds the old encryption.
            StoreError: nothing has changed; or, where a server is lost while it commits, that is not known.
        """
        return self._issuers.change_password(password)

    def health(self, now: datetime | None = None) -> tuple[HealthCheck, ...]:
        """What is well and what is not, each in a line for people; all of it is asked now."""
        moment = self._moment(now)
        return health.checks(self._store, self.revocations, lambda: self.plan(moment), moment)

    def _own(self, agent_id: AgentID | str) -> str:
        agent_id = parsed(agent_id)
        policy.inside(agent_id, self.trust_domain)
        return str(agent_id)
