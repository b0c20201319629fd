"""Enrolment: one-time tokens are made, and used up by the agents that bring them. `pki.enrolment` says when."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pki import enrolment, policy, requests
from pki.enrolment import EnrolmentToken
from pki.errors import AgentBanned, EnrolmentRefused, EnrolmentTokenUsed
from pki.issuance import Issuance, Issued, issued_as, parsed
from pki.records import State, TokenRecord, TokenUse
from pki.requests import PublicKey
from pki.steps import PAUSE, FindToken, Steps
from trust.identity import AgentID


class Tokens(Issuance):
    """The part of a `CertificateAuthority` that enrols."""

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
        """Whether this CA has made that token, and it lives. One look in an index, and nothing is changed.

        Also one that was used: whoever lost the answer asks again, with the same key. Not checked: its seal.
        """
        try:
            presented = enrolment.parse(token)
            enrolment.check(presented, self._store.token(presented.id), now=self._moment(now))
        except EnrolmentRefused:
            return False
        return True

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
        return self._callers.submit(self.enrolling(csr, token, now=now))

    def enrolling(self, csr: bytes, token: str, *, now: datetime | None = None) -> Steps[Issued]:
        """The steps of `enrol`, for `together`."""
        moment = self._moment(now)
        # The token before the request: who has none learns nothing, and costs no signature check.
        presented = enrolment.parse(token)
        grant = enrolment.check(presented, (yield FindToken(id=presented.id)), now=moment)
        enrolment.check_seal(grant, self._issuers.vouching)
        yield PAUSE
        request = requests.parse(csr)
        yield PAUSE
        digest = key_digest(request.public_key)
        agent_id = AgentID.parse(grant.spiffe_id)
        approve = self._approving(request, agent_id, grant.dns_names, (), grant.lifetime)
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

    def _again(self, grant: TokenRecord, now: datetime) -> Issued:
        """The certificate that a token was burnt for, for the same key once more, if it is still good."""
        record = None if grant.serial is None else self._store.find(grant.serial)
        if record is None or record.status(now) != "valid" or self._store.is_banned(record.spiffe_id):
            raise enrolment.used(grant)
        certificate = record.genuine()
        issuer = self._issuers.record(record.issuer)
        if issuer.state is State.REVOKED:  # nobody would accept it, and whoever has that CA's key could have made it
            raise enrolment.used(grant)
        return issued_as(record, AgentID.parse(record.spiffe_id), certificate, issuer.certificate)


def key_digest(key: PublicKey) -> bytes:
    """What tells one agent's key from another's: SHA-256 of its SubjectPublicKeyInfo."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
