"""Issuing: for whoever holds a grant, a one-time token, or a certificate of this CA that is to be renewed.

Each way ends in the same two steps. The policy approves the content; then a certificate is signed and stored, with
whatever must be true at that very moment, in one transaction.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pki import enrolment, keys, policy, profiles, renewal, requests
from pki.enrolment import EnrolmentToken
from pki.errors import AgentBanned, AuthorityNotValid, EnrolmentRefused, EnrolmentTokenUsed
from pki.issuers import Issuers, View
from pki.policy import Approved
from pki.profiles import Urls
from pki.records import Issue, Record, Settings, State, TokenRecord, TokenUse
from pki.renewal import RenewalInfo
from pki.requests import PublicKey
from pki.rules import Rules
from pki.steps import Find, FindToken, Steps, alone, together
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
        return alone(steps, self._store)

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

        def approve(rules: Rules | None) -> Approved:
            return self._approve(request, granted, dns_names, ip_addresses, lifetime, rules)

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

        return alone(self._making(approve, now=self._moment(now)), self._store).credentials(key)

    # Enrolment.

    def create_token(
        self,
        agent_id: AgentID | str,
        *,
        dns_names: Collection[str] = (),
        lifetime: timedelta = policy.DEFAULT_LIFETIME,
        valid_for: timedelta = enrolment.DEFAULT_VALIDITY,
        now: datetime | None = None,
    ) -> EnrolmentToken:
        """Make a one-time token: whoever presents it first gets a certificate for that ID and those names.

        What the policy would refuse whatever the key is refused here already, and asked again when the token is used.

        Args:
            lifetime: of the certificate.
            valid_for: how long the token is good, at most a day.

        Raises:
            PolicyRefused: an ID, name or lifetime that this CA does not issue, or a banned ID.
            IdentityError: the ID is malformed.
            AuthorityNotValid, WrongPassword: as `issue`; a token is signed, or whoever can write rows could make one.
            StoreError: it could not be stored.
        """
        moment = self._moment(now)
        agent_id = parsed(agent_id)
        valid_for = enrolment.validity(valid_for)
        rules = self._issuers.read().rules
        names = enrolment.grantable(
            agent_id, trust_domain=self.trust_domain, dns_names=dns_names, lifetime=lifetime, rules=rules
        )
        if self._store.is_banned(str(agent_id)):
            raise AgentBanned(f"{agent_id} is banned", expected="an ID that is not", do="lift the ban first")
        text = enrolment.spell(secrets.token_bytes(enrolment.ID_BYTES), secrets.token_bytes(enrolment.SECRET_BYTES))
        made = enrolment.parse(text)
        # Rounded up: a token of a second that is made late in a second would be born expired.
        expires_at = (moment + valid_for + timedelta(microseconds=999_999)).replace(microsecond=0)
        record = TokenRecord(
            id=made.id,
            digest=made.digest,
            spiffe_id=str(agent_id),
            dns_names=names,
            lifetime=lifetime,
            created_at=moment,
            expires_at=expires_at,
        )
        key_id = self._issuers.view().issuing.key_id
        self._store.add_token(replace(record, seal=enrolment.seal(record, self._issuers.signer(key_id), key_id)))
        return EnrolmentToken(text=text, id=made.id, agent_id=agent_id, expires_at=expires_at)

    def tokens(self, now: datetime | None = None) -> list[TokenRecord]:
        """The tokens that have not expired, used or not, oldest first. Their secrets are nowhere."""
        return self._store.tokens(self._moment(now))

    def cancel_token(self, token_id: str) -> bool:
        """Make an unused token useless; False: there is none with that ID."""
        return self._store.cancel_token(token_id)

    def is_good_token(self, token: str, *, now: datetime | None = None) -> bool:
        """Whether a token looks like one that `enrol` would take now. One look in an index, and nothing is changed.

        Not checked: its seal.
        """
        try:
            presented = enrolment.parse(token)
            grant = enrolment.check(presented, self._store.token(presented.id), now=self._moment(now))
        except EnrolmentRefused:
            return False
        return grant.used_by is None

    def enrol(self, csr: bytes, token: str, *, now: datetime | None = None) -> Issued:
        """Make the certificate that a token was made for, and burn the token, both at once or neither.

        Whoever lost the answer may ask again with the same key while the token lives, and gets the same certificate.

        Raises:
            EnrolmentRefused: the token is malformed, unknown, expired, forged in the database, or was used for
                another key. None of these repeats the token.
            RequestRefused: as `issue`.
            PolicyRefused: the request asks for another ID than the token's, or the policy refuses it now.
            AuthorityNotValid, WrongPassword, StoreError: as `issue`.
        """
        return alone(self.enrolling(csr, token, now=now), self._store)

    def enrolling(self, csr: bytes, token: str, *, now: datetime | None = None) -> Steps[Issued]:
        """The steps of `enrol`, for `together`."""
        moment = self._moment(now)
        # The token before the request: who has none learns nothing, and costs no signature check.
        presented = enrolment.parse(token)
        grant = enrolment.check(presented, (yield FindToken(id=presented.id)), now=moment)
        enrolment.check_seal(grant, self._issuers.vouching)
        request = requests.parse(csr)
        digest = key_digest(request.public_key)
        agent_id = AgentID.parse(grant.spiffe_id)

        def approve(rules: Rules | None) -> Approved:
            return self._approve(request, agent_id, grant.dns_names, (), grant.lifetime, rules)

        if grant.used_by is None:
            use = TokenUse(id=grant.id, key_digest=digest, serial=enrolment.serial(grant.digest))
            try:
                return (yield from self._making(approve, now=moment, burns=use))
            except EnrolmentTokenUsed:
                # Somebody was faster, perhaps the same agent, which had given up waiting and asked again.
                grant = enrolment.check(presented, (yield FindToken(id=presented.id)), now=moment)
        enrolment.check_unused(grant, key_digest=digest)
        approve(self._issuers.view().rules)
        return self._again(grant, moment)

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
            RequestRefused, PolicyRefused, AuthorityNotValid, WrongPassword, StoreError: as `issue`.
        """
        return alone(self.renewing(csr, presented, now=now), self._store)

    def renewing(self, csr: bytes, presented: bytes, *, now: datetime | None = None) -> Steps[Issued]:
        """The steps of `renew`, for `together`."""
        moment = self._moment(now)
        record = renewal.check((yield Find(thumbprint=identity.thumbprint(presented))), now=moment)
        request = requests.parse(csr)
        names = renewal.names(record.certificate)
        lifetime = renewal.lifetime(record)
        agent_id = AgentID.parse(record.spiffe_id)

        def approve(rules: Rules | None) -> Approved:
            return self._approve(request, agent_id, names.dns_names, names.ip_addresses, lifetime, rules)

        return (yield from self._making(approve, now=moment, renews=record.serial))

    def renewal_info(self, presented: bytes, now: datetime | None = None) -> RenewalInfo:
        """When the holder of a certificate should renew it: at two thirds of its life, or at once.

        Raises:
            NotIssuedHere, CertificateAlreadyRevoked, CertificateAlreadyExpired: it cannot be renewed.
        """
        record = renewal.check(self._presented(presented), now=self._moment(now))
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
        shard = self._store.shard() if self._urls.crl_base else 0
        serial = self._serials() if burns is None else burns.serial
        builder = profiles.agent(approved, issuer=issuer, serial=serial, now=now, urls=self._urls, shard=shard)
        leaf = keys.sign(builder, signer)
        record = Record.of(leaf, kind="agent", issuer=issuer.key_id, spiffe_id=str(approved.agent_id), shard=shard)
        yield Issue(record=record, now=now, burns=burns, renews=renews)
        return _issued(record, approved.agent_id, leaf, issuer.certificate)

    def _approve(
        self,
        request: requests.Request,
        agent_id: AgentID,
        dns_names: Collection[str],
        ip_addresses: Collection[str | policy.IPAddress],
        lifetime: timedelta,
        rules: Rules | None,
    ) -> Approved:
        return policy.approve(
            request,
            agent_id,
            trust_domain=self.trust_domain,
            dns_names=dns_names,
            ip_addresses=ip_addresses,
            lifetime=lifetime,
            rules=rules,
        )

    def _again(self, grant: TokenRecord, now: datetime) -> Issued:
        """The certificate that a token was burnt for, for the same key once more, if it is still good."""
        record = None if grant.serial is None else self._store.find(grant.serial)
        if record is None or record.status(now) != "valid" or self._store.is_banned(record.spiffe_id):
            raise enrolment.used(grant)
        issuer = self._issuers.record(record.issuer)
        if issuer.state is State.REVOKED:  # nobody would accept it, and whoever has that CA's key could have made it
            raise enrolment.used(grant)
        return _issued(record, AgentID.parse(record.spiffe_id), record.certificate, issuer.certificate)

    def _presented(self, der: bytes) -> Record | None:
        return self._store.find_thumbprint(identity.thumbprint(der))

    def _moment(self, now: datetime | None) -> datetime:
        return utc(self._clock() if now is None else now)


def key_digest(key: PublicKey) -> bytes:
    """What tells one agent's key from another's: SHA-256 of its SubjectPublicKeyInfo."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def _issued(record: Record, agent_id: AgentID, leaf: x509.Certificate, issuer: x509.Certificate) -> Issued:
    return Issued(
        agent_id=agent_id,
        serial=record.serial,
        thumbprint=record.thumbprint,
        not_before=record.not_before,
        not_after=record.not_after,
        chain=(leaf, issuer),
    )


def parsed(agent_id: AgentID | str) -> AgentID:
    return agent_id if isinstance(agent_id, AgentID) else AgentID.parse(agent_id)
