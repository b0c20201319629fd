"""The certificate authority: a folder with two encrypted keys and a database, and the few things it does.

The root signs the intermediate, the intermediate signs agents, and each signs its own revocation list. This file is
an edge: it reads the clock, draws serial numbers and writes; what is allowed and what it looks like is decided in
`pki.policy` and `pki.profiles`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from pki import founding, keys, policy, profiles, requests
from pki.errors import (
    AuthorityDamaged,
    AuthorityNotValid,
    ReasonRefused,
    UnknownSerial,
    WrongPassword,
)
from pki.founding import INTERMEDIATE_KEY_FILE, ROOT_KEY_FILE
from pki.profiles import Issuer, RevokedSerial
from pki.store import Record, Settings, Store
from trust import identity
from trust.bundles import RevocationLists, TrustBundle
from trust.credentials import Credentials
from trust.identity import AgentID, utc
from trust.private_keys import PrivateKey

Clock = Callable[[], datetime]


def _system_clock() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate that was made, and is already on the CA's disk."""

    agent_id: AgentID
    serial: int
    thumbprint: str  # x5t#S256 of the leaf
    not_before: datetime
    not_after: datetime
    chain: tuple[x509.Certificate, ...] = field(repr=False)  # leaf first, the root left out

    @property
    def certificate(self) -> x509.Certificate:
        return self.chain[0]

    @property
    def chain_pem(self) -> bytes:
        return b"".join(c.public_bytes(Encoding.PEM) for c in self.chain)

    def credentials(self, private_key: PrivateKey) -> Credentials:
        """Join the chain with the key that it was made for."""
        return Credentials.of(self.chain, private_key)


class CertificateAuthority:
    """The CA of one trust domain; `create` and `open` are the only doors. Safe for threads and several processes."""

    def __init__(
        self,
        folder: Path,
        store: Store,
        *,
        password: str | None,
        clock: Clock,
        serials: Callable[[], int],
        signing_key: ec.EllipticCurvePrivateKey | None = None,
        root_key: ec.EllipticCurvePrivateKey | None = None,
    ) -> None:
        self._folder = folder
        self._store = store
        self._password = password
        self._clock = clock
        self._serials = serials
        self._settings = store.settings()
        self._root = self._newest("root")
        self._intermediate = self._newest("intermediate")
        # Opened with the password at once, so that a wrong one is told now and not at the first request.
        self._key = signing_key or (
            self._load(INTERMEDIATE_KEY_FILE, self._intermediate) if password is not None else None
        )
        # Opened when it is first needed: scrypt takes a moment, and the root signs once a day.
        self._root_key = root_key

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        *,
        trust_domain: str,
        password: str,
        now: datetime | None = None,
        name_constraint: bool = False,
        crl_base_url: str | None = None,
        clock: Clock = _system_clock,
        serials: Callable[[], int] = x509.random_serial_number,
    ) -> CertificateAuthority:
        """Make a CA in a new folder: a root, an intermediate, and a database. All of it appears at once, or nothing.

        Args:
            folder: must not exist; its parents are made. (Or `sqlite:///folder/ca.db`.)
            trust_domain: the SPIFFE trust domain, such as "fleet.example".
            password: opens both private keys from now on.
            now: when it is made; the clock's time when left out.
            name_constraint: the intermediate carries a URI name constraint for the domain.
            crl_base_url: where the revocation lists will be served; certificates point below it.
            clock: what time it is, asked whenever a method gets no `now`.
            serials: where serial numbers come from; a test may count, everybody else draws them at random.

        Raises:
            AuthorityExists: there is something at that path.
            IdentityError: the trust domain is malformed.
            WrongPassword: the password is empty.
            PolicyRefused: the URL is not one, or the trust domain cannot be a name constraint.
            PKIError: the folder cannot be written.
        """
        target = founding.vacant(folder)
        settings = Settings(
            trust_domain=identity.trust_domain(trust_domain),
            crl_base_url=None if crl_base_url is None else policy.crl_base_url(crl_base_url),
        )
        if not password:
            raise WrongPassword("password of the new CA", got="nothing", expected="at least one character")
        root_key, key = founding.found(
            target,
            settings,
            password=password,
            now=utc(clock() if now is None else now),
            serials=serials,
            name_constraint=name_constraint,
        )
        return cls(
            target,
            Store.open(target),
            password=password,
            clock=clock,
            serials=serials,
            signing_key=key,
            root_key=root_key,
        )

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        password: str | None = None,
        clock: Clock = _system_clock,
        serials: Callable[[], int] = x509.random_serial_number,
    ) -> CertificateAuthority:
        """Open a CA that `create` made. Without its password it answers questions, revokes, and signs nothing.

        Raises:
            AuthorityMissing: there is no CA in that folder.
            WrongPassword: the password does not open the signing key.
            AuthorityDamaged: the key is not the one of the certificate.
            StoreError: the database cannot be used.
        """
        path = founding.folder_of(folder)
        store = Store.open(path)
        try:
            return cls(path, store, password=password, clock=clock, serials=serials)
        except BaseException:
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
    def trust_domain(self) -> str:
        return self._settings.trust_domain

    @property
    def root(self) -> x509.Certificate:
        return self._root.certificate

    @property
    def intermediate(self) -> x509.Certificate:
        return self._intermediate.certificate

    def issue(
        self,
        csr: bytes,
        agent_id: AgentID | str,
        *,
        dns_names: Collection[str] = (),
        ip_addresses: Collection[str | policy.IPAddress] = (),
        lifetime: timedelta = policy.DEFAULT_LIFETIME,
        now: datetime | None = None,
    ) -> Issued:
        """Make a certificate for the holder of the request's key, as the agent that the caller names.

        Calling this *is* the grant: who may have `agent_id` is decided before. Nothing of the request survives but
        its key; one that asks for another ID is refused.

        Args:
            csr: PKCS#10, DER or PEM.
            agent_id: the SPIFFE ID to certify.
            dns_names, ip_addresses: further names, for TLS clients that do not know SPIFFE.
            lifetime: from now; at most 7 days, and never beyond the CA's own end.

        Returns:
            the certificate and its chain, after the database has it on disk.

        Raises:
            RequestRefused: too large, malformed, a key of another kind, or possession not proven.
            PolicyRefused: an ID, name or lifetime that this CA does not issue.
            IdentityError: the ID is malformed.
            AuthorityNotValid: the intermediate is not valid now, or revoked.
            WrongPassword: the CA was opened without its password.
            StoreError: the certificate could not be stored, and so was not made.
        """
        moment = self._moment(now)
        if not isinstance(agent_id, AgentID):
            agent_id = AgentID.parse(agent_id)
        approved = policy.approve(
            requests.parse(csr),
            agent_id,
            trust_domain=self.trust_domain,
            dns_names=dns_names,
            ip_addresses=ip_addresses,
            lifetime=lifetime,
        )
        key = self._signing_key()
        issuer = self._intermediate
        if not issuer.not_before <= moment < issuer.not_after:
            raise AuthorityNotValid(
                "intermediate CA is not valid now",
                got=moment.isoformat(),
                expected=f"a time from {issuer.not_before.isoformat()} to {issuer.not_after.isoformat()}",
                do="check the clock",
            )
        builder = profiles.agent(
            approved,
            issuer=issuer,
            serial=self._serials(),
            now=moment,
            crl_base_url=self._settings.crl_base_url,
        )
        leaf = keys.sign(builder, key)
        record = Record.of(leaf, kind="agent", issuer=issuer.key_id, spiffe_id=str(agent_id))
        self._store.add(record, issuer_serial=issuer.certificate.serial_number)
        return Issued(
            agent_id=agent_id,
            serial=record.serial,
            thumbprint=record.thumbprint,
            not_before=record.not_before,
            not_after=record.not_after,
            chain=(leaf, issuer.certificate),
        )

    def issue_credentials(
        self,
        agent_id: AgentID | str,
        *,
        dns_names: Collection[str] = (),
        ip_addresses: Collection[str | policy.IPAddress] = (),
        lifetime: timedelta = policy.DEFAULT_LIFETIME,
        now: datetime | None = None,
    ) -> Credentials:
        """As `issue`, for a new key made in this process. An agent elsewhere makes its own and sends a request."""
        agent_id = agent_id if isinstance(agent_id, AgentID) else AgentID.parse(agent_id)
        key = keys.generate()
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(agent_id))])
        csr = (
            x509.CertificateSigningRequestBuilder(x509.Name([]))
            .add_extension(names, critical=True)
            .sign(key, hashes.SHA256())
        )
        issued = self.issue(
            csr.public_bytes(Encoding.DER),
            agent_id,
            dns_names=dns_names,
            ip_addresses=ip_addresses,
            lifetime=lifetime,
            now=now,
        )
        return issued.credentials(key)

    def revoke(
        self,
        serial: int,
        reason: x509.ReasonFlags | str = x509.ReasonFlags.unspecified,
        now: datetime | None = None,
    ) -> Record:
        """Revoke a certificate for good; the next `crl` lists it. Doing it twice keeps the first reason and date.

        A certificate of an hour or less says that no list is needed (RFC 9608): verifiers may take it to its end.

        Raises:
            UnknownSerial: this CA has made no such certificate.
            ReasonRefused: the reason is not one, or the certificate is the root, which no list can revoke.
        """
        moment = self._moment(now)
        flag = policy.revocation_reason(reason)
        record = self.find(serial)
        if record.kind == "root":
            raise ReasonRefused(
                "the root cannot be revoked", expected="another certificate", do="take it out of the trust bundles"
            )
        self._store.revoke(record, reason=flag, now=moment)
        return self.find(serial)

    def find(self, serial: int) -> Record:
        """The certificate with that serial number.

        Raises:
            UnknownSerial: this CA has made no such certificate.
        """
        record = self._store.find(serial)
        if record is None:
            raise UnknownSerial("serial number", got=f"{serial:x}", expected="one that this CA has issued")
        return record

    def certificates(self, *, agent_id: AgentID | None = None, ends_after: datetime | None = None) -> list[Record]:
        """The certificates that this CA has made, oldest first: all, one agent's, those that end later."""
        return self._store.records(spiffe_id=None if agent_id is None else str(agent_id), ends_after=ends_after)

    def bundle(self) -> TrustBundle:
        """The roots of the trust domain, for everybody who is to trust its agents."""
        roots = tuple(record.certificate for record in self._store.records(kind="root"))
        # No root is ever forgotten, so their number only grows, as a sequence must.
        return TrustBundle(trust_domain=self.trust_domain, roots=roots, sequence=len(roots))

    def crl(self, now: datetime | None = None) -> RevocationLists:
        """The revocation lists of the intermediate and of the root, both current at `now`.

        Each lives 24 hours and is made anew at half its life or after a revocation, with the next number; until
        then the same one comes back, and no password is needed.
        """
        moment = self._moment(now)
        intermediate = self._crl(self._intermediate, self._signing_key, moment)
        root = self._crl(self._root, self._signing_root_key, moment)
        return RevocationLists.of([intermediate, root])

    def _crl(
        self, issuer: Issuer, signing_key: Callable[[], ec.EllipticCurvePrivateKey], now: datetime
    ) -> x509.CertificateRevocationList:
        def fresh(crl: x509.CertificateRevocationList) -> bool:
            if not crl.is_signature_valid(issuer.certificate.public_key()):  # type: ignore[arg-type]
                raise AuthorityDamaged("CA database is damaged", got="another revocation list", do="restore a backup")
            made = crl.last_update_utc
            return made <= now < made + profiles.CRL_LIFETIME / 2

        def make(number: int, revoked: list[RevokedSerial]) -> x509.CertificateRevocationList:
            return keys.sign_crl(
                profiles.revocation_list(revoked, issuer=issuer, number=number, now=now), signing_key()
            )

        return self._store.crl(issuer.key_id, now=now, fresh=fresh, make=make)

    def _moment(self, now: datetime | None) -> datetime:
        return utc(self._clock() if now is None else now)

    def _newest(self, kind: str) -> Issuer:
        records = self._store.records(kind=kind)
        if not records:
            raise AuthorityDamaged(f"CA in {self._folder}", got=f"no {kind} certificate", do="restore a backup")
        return Issuer.of(records[-1].certificate)

    def _signing_key(self) -> ec.EllipticCurvePrivateKey:
        if self._key is None:
            raise _no_password()
        return self._key

    def _signing_root_key(self) -> ec.EllipticCurvePrivateKey:
        if self._root_key is None:
            self._root_key = self._load(ROOT_KEY_FILE, self._root)
        return self._root_key

    def _load(self, name: str, issuer: Issuer) -> ec.EllipticCurvePrivateKey:
        if self._password is None:
            raise _no_password()
        key = keys.load(self._folder / name, self._password)
        if key.public_key() != issuer.certificate.public_key():
            raise AuthorityDamaged(
                f"{self._folder / name} is the key of another CA", expected="the key of the certificate in the database"
            )
        return key


def _no_password() -> WrongPassword:
    return WrongPassword("CA is locked", got="no password", expected="the password of `a2a-pki init`")
