"""Issuing: for whoever holds a grant, or a certificate of this CA that is to be renewed; `pki.tokens` adds a third way.

Each way ends in the same two steps. The policy approves the content; then a certificate is signed and stored, with
whatever must be true at that very moment, in one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pki import keys, policy, profiles, renewal, requests
from pki.errors import AuthorityNotValid
from pki.group import GroupCommit
from pki.issuers import Issuers, View
from pki.policy import Approved
from pki.profiles import Urls
from pki.records import Issue, Record, Settings, TokenUse
from pki.renewal import RenewalInfo
from pki.rules import Rules
from pki.steps import PAUSE, Find, Steps, together
from pki.store import Store
from trust import identity
from trust.clock import Clock, utc
from trust.credentials import Credentials
from trust.identity import AgentID
from trust.private_keys import PrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate that was made, and is already on the CA's disk."""

    agent_id: AgentID
    serial: int
    thumbprint: str  # x5t#S256 of the leaf
    not_before: datetime
    not_after: datetime
    der: bytes = field(repr=False)  # the leaf
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


class Issuance:
    """The part of a `CertificateAuthority` that issues."""

    def __init__(
        self, store: Store, issuers: Issuers, settings: Settings, *, clock: Clock, serials: Callable[[], int]
    ) -> None:
        self._store = store
        self._issuers = issuers
        self._settings = settings
        self._clock = clock
        self._serials = serials
        self._urls = Urls.of(settings)
        # Of those who have one each: what waits in several threads is done together, too.
        self._callers: GroupCommit[Steps[Issued], Issued] = GroupCommit(self.together)

    @property
    def trust_domain(self) -> str:
        return self._settings.trust_domain

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

        Calling this *is* the grant, within the rules of the CA's policy file: who may have `agent_id` is decided
        before. Nothing of the request survives but its key; one that asks for another ID is refused.

        Args:
            csr: PKCS#10, DER or PEM.
            agent_id: the SPIFFE ID to certify.
            dns_names, ip_addresses: further names, for TLS clients that do not know SPIFFE.
            lifetime: from now; at most 7 days, and never beyond the CA's own end.

        Returns:
            the certificate and its chain, after the database has it on disk.

        Raises:
            RequestRefused: too large, malformed, a key of another kind, or possession not proven.
            PolicyRefused: an ID, name, key or lifetime that this CA does not issue, or a banned ID.
            IdentityError: the ID is malformed.
            AuthorityNotValid: the intermediate is not valid now, or revoked.
            WrongPassword: the CA was opened without its password.
            StoreError: the certificate could not be stored, and so was not made.
        """
        steps = self.issuing(csr, agent_id, dns_names=dns_names, ip_addresses=ip_addresses, lifetime=lifetime, now=now)
        return self._callers.submit(steps)

    def issuing(
        self,
        csr: bytes,
        agent_id: AgentID | str,
        *,
        dns_names: Collection[str] = (),
        ip_addresses: Collection[str | policy.IPAddress] = (),
        lifetime: timedelta = policy.DEFAULT_LIFETIME,
        now: datetime | None = None,
    ) -> Steps[Issued]:
        """The steps of `issue`, for `together`."""
        granted = parsed(agent_id)
        request = requests.parse(csr)
        yield PAUSE
        approve = self._approving(request, granted, dns_names, ip_addresses, lifetime)
        return (yield from self._making(approve, now=self._moment(now)))

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
        agent_id = parsed(agent_id)
        key = keys.generate()
        issued = self.issue(
            requests.make(key, agent_id),
            agent_id,
            dns_names=dns_names,
            ip_addresses=ip_addresses,
            lifetime=lifetime,
            now=now,
        )
        return issued.credentials(key)

    def service_credentials(
        self,
        dns_names: Collection[str] = (),
        ip_addresses: Collection[str | policy.IPAddress] = (),
        *,
        lifetime: timedelta = policy.DEFAULT_LIFETIME,
        now: datetime | None = None,
    ) -> Credentials:
        """The CA service's own: `spiffe://TRUST-DOMAIN/a2a-pki/server`, an ID that no agent can get.

        Raises:
            NameRefused, LifetimeRefused: as `issue`.
            AuthorityNotValid, WrongPassword, StoreError: as `issue`.
        """
        key = keys.generate()

        def approve(_: Rules | None) -> Approved:
            return policy.approve_own(
                key.public_key(),
                "server",
                trust_domain=self.trust_domain,
                dns_names=dns_names,
                ip_addresses=ip_addresses,
                lifetime=lifetime,
            )

        return self._callers.submit(self._making(approve, now=self._moment(now))).credentials(key)

    # Renewal.

    def renew(self, csr: bytes, presented: bytes, *, now: datetime | None = None) -> Issued:
        """Make the successor of a certificate: same ID, same names, same lifetime; the key may be a new one.

        Only what this CA has stored is renewed, found by its thumbprint. A certificate that somebody made with a stolen
        key of an intermediate chains to the root and is not there; one of ours whose intermediate was revoked since is
        there, and its holder must not be locked out.

        Not checked here: that the caller holds the key of `presented`; the TLS handshake has proven it.

        Args:
            presented: the leaf, DER, as the TLS connection presented it.

        Raises:
            NotIssuedHere, CertificateAlreadyRevoked, CertificateAlreadyExpired: what was presented.
            AuthorityDamaged: its row in the database says something else than the certificate.
            RequestRefused, PolicyRefused, AuthorityNotValid, WrongPassword, StoreError: as `issue`.
        """
        return self._callers.submit(self.renewing(csr, presented, now=now))

    def renewing(self, csr: bytes, presented: bytes, *, now: datetime | None = None) -> Steps[Issued]:
        """The steps of `renew`, for `together`."""
        moment = self._moment(now)
        found = yield Find(thumbprint=identity.thumbprint(presented))
        record, certificate = renewal.check(found, now=moment)
        names = renewal.names(certificate)
        yield PAUSE
        request = requests.parse(csr)
        yield PAUSE
        lifetime = renewal.lifetime(record)
        agent_id = AgentID.parse(record.spiffe_id)
        approve = self._approving(request, agent_id, names.dns_names, names.ip_addresses, lifetime)
        return (yield from self._making(approve, now=moment, renews=record.serial))

    def renewal_info(self, presented: bytes, now: datetime | None = None) -> RenewalInfo:
        """When the holder of a certificate should renew it: at two thirds of its life, or at once.

        Raises:
            NotIssuedHere, AuthorityDamaged, CertificateAlreadyRevoked, CertificateAlreadyExpired: it cannot be renewed.
        """
        record, _ = renewal.check(self._presented(presented), now=self._moment(now))
        return renewal.info(record, self._issuers.view().records)

    # How a certificate is made.

    def together(self, many: Sequence[Steps[Issued]]) -> list[Issued | Exception]:
        """Take the steps of many callers, and store what they make in one transaction: one wait for the disk.

        Returns:
            for each the certificate, or what `issue`, `enrol` or `renew` would have raised.
        """
        return together(many, self._store)

    def _making(
        self,
        approve: Callable[[Rules | None], Approved],
        *,
        now: datetime,
        burns: TokenUse | None = None,
        renews: int | None = None,
    ) -> Steps[Issued]:
        view = self._issuers.view()
        try:
            return (yield from self._signing(view, approve(view.rules), now, burns, renews))
        except AuthorityNotValid:
            # Another process may have rotated since we looked.
            newer = self._issuers.read()
            if newer.intermediate is None or newer.intermediate == view.intermediate:
                raise
            return (yield from self._signing(newer, approve(newer.rules), now, burns, renews))

    def _signing(
        self, view: View, approved: Approved, now: datetime, burns: TokenUse | None, renews: int | None
    ) -> Steps[Issued]:
        issuer = view.issuing
        signer = self._issuers.signer(issuer.key_id)
        issuer.check_valid("intermediate CA", now)
        yield PAUSE
        shard = self._store.shard() if self._urls.crl_base else 0
        serial = self._serials() if burns is None else burns.serial
        unsigned = profiles.agent(approved, issuer=issuer, serial=serial, now=now, urls=self._urls, shard=shard)
        yield PAUSE
        leaf, encoded = keys.sign_agent(unsigned, signer)
        yield PAUSE
        record = Record(
            serial=serial,
            kind="agent",
            issuer=issuer.key_id,
            spiffe_id=str(approved.agent_id),
            thumbprint=identity.thumbprint(encoded),
            not_before=unsigned.not_before,
            not_after=unsigned.not_after,
            der=encoded,
            shard=shard,
        )
        yield Issue(record=record, now=now, burns=burns, renews=renews)
        return issued_as(record, approved.agent_id, leaf, issuer.certificate)

    def _approving(
        self,
        request: requests.Request,
        agent_id: AgentID,
        dns_names: Collection[str],
        ip_addresses: Collection[str | policy.IPAddress],
        lifetime: timedelta,
    ) -> Callable[[Rules | None], Approved]:
        """What is left to be asked of the policy, by its rules of that moment."""
        return lambda rules: policy.approve(
            request,
            agent_id,
            trust_domain=self.trust_domain,
            dns_names=dns_names,
            ip_addresses=ip_addresses,
            lifetime=lifetime,
            rules=rules,
        )

    def _presented(self, der: bytes) -> Record | None:
        return self._store.find_thumbprint(identity.thumbprint(der))

    def _moment(self, now: datetime | None) -> datetime:
        return utc(self._clock() if now is None else now)


def issued_as(record: Record, agent_id: AgentID, leaf: x509.Certificate, issuer: x509.Certificate) -> Issued:
    return Issued(
        agent_id=agent_id,
        serial=record.serial,
        thumbprint=record.thumbprint,
        not_before=record.not_before,
        not_after=record.not_after,
        der=record.der,
        chain=(leaf, issuer),
    )


def parsed(agent_id: AgentID | str) -> AgentID:
    return agent_id if isinstance(agent_id, AgentID) else AgentID.parse(agent_id)
