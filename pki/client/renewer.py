"""One agent's credentials and trust, and the conversations with the CA service that replace them.

Nothing here decides when: that is `pki.client.renewal`. Every method is one attempt, which replaces everything or
nothing: the values that programs see change only after the new ones were judged and, with a folder, written.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from pki.client import answers
from pki.client.est import Clock, RenewalInfo, Wire
from pki.client.folder import AgentFolder, token_digest
from pki.client.talk import Talk
from pki.errors import AnswerRefused, AuthorityUnreachable, EnrolmentFailed
from trust.bundles import RevocationLists, TrustBundle, TrustBundles
from trust.credentials import Credentials
from trust.errors import BundleError, CredentialsError, HandshakeRefused, RevocationUnknown, TrustError
from trust.identity import utc
from trust.sources import Live

MAX_SHARDS = 4096  # of one CA; a shard has 65,536 certificates

logger = logging.getLogger("a2a_pki.client")

_LIST_FILE = re.compile(r"/([0-9a-f]{40})(?:-([1-9][0-9]{0,8}))?\.crl$", re.ASCII)


class Lists:
    """The revocation lists known now, as a `Source`. Fails closed: not knowing them yet is no reason to let pass."""

    def __init__(self) -> None:
        self.value: RevocationLists | None = RevocationLists()

    def current(self) -> RevocationLists:
        """Raises: RevocationUnknown: our certificates name revocation lists, and none has been fetched so far."""
        if (value := self.value) is None:
            raise RevocationUnknown("revocation lists are not known yet", do="wait for the CA service to be reached")
        return value


class Renewer:
    """The values, and how each is replaced.

    Attributes:
        credentials, bundles, crls: sources for everything that follows them.
        skew: how far the service's clock was ahead of ours when it last answered.
    """

    def __init__(
        self, url: str, credentials: Credentials, bundles: TrustBundles, files: AgentFolder | None, clock: Clock
    ) -> None:
        self.url = url
        self.credentials = Live(credentials)
        self.bundles = Live(bundles)
        self.crls = Lists()
        self.skew: timedelta | None = None
        self.talk = Talk()
        self._files = files
        self._clock = clock
        self._state: object = None  # of the folder, at our last look
        self._enrolling: tuple[str, ec.EllipticCurvePrivateKey] | None = None
        if self.bundle is None:
            raise BundleError(
                "trust bundles of the agent", got="none of its own domain", expected=credentials.agent_id.trust_domain
            )
        if _names_lists(credentials):
            self.crls.value = files.crls() if files else None

    def now(self) -> datetime:
        return utc(self._clock())

    @property
    def bundle(self) -> TrustBundle | None:
        """That of our own domain."""
        return self.bundles.current().by_domain.get(self.credentials.current().agent_id.trust_domain)

    # Credentials.

    def renew(self) -> None:
        """Follow up our certificate with another for a new key. The old pair is good until the new one is in place.

        Raises:
            TrustError: by what went wrong; everything is as it was.
        """
        present, key = self.credentials.current(), ec.generate_private_key(ec.SECP256R1())
        csr = answers.request(key, present.agent_id)

        async def ask() -> tuple[x509.Certificate, ...]:
            async with self._wire(present) as wire:
                with self._noted(wire):
                    return await self._with_issuers(wire, await wire.simplereenroll(csr))

        self._replace(self.talk.run(ask), key)

    def enrol_again(self, token: str) -> None:
        """As `renew`, for a one-time token instead of a certificate that the service no longer accepts."""
        key = self._enrolling_key(token)
        csr = answers.request(key, self.credentials.current().agent_id)

        async def ask() -> tuple[x509.Certificate, ...]:
            async with self._wire(None) as wire:
                with self._noted(wire):
                    return await self._with_issuers(wire, await wire.simpleenroll(csr, token))

        try:
            self._replace(self.talk.run(ask), key)
        except EnrolmentFailed:
            self._forget_enrolling()
            raise
        self._forget_enrolling()

    def follow(self) -> bool:
        """Take over what somebody else has put into the folder; True where that is something new.

        What cannot be used, damaged or half-written, is left alone; our next renewal replaces it.

        Raises:
            CredentialsError: they are another agent's; we keep what we have.
        """
        if self._files is None or (state := self._files.state()) == self._state or state is None:
            return False
        try:
            credentials, bundles = self._files.credentials(), self._files.bundles()
        except (CredentialsError, BundleError) as error:
            logger.debug("%s: %s", self._files.path, error)
            return False
        present = self.credentials.current()
        if credentials.agent_id != present.agent_id:
            raise CredentialsError(
                f"{self._files.path} holds another agent's credentials now",
                got=credentials.agent_id,
                expected=str(present.agent_id),
                do="restart this program if it should be that agent",
            )
        self._take_bundles(bundles)
        self._state = state
        if credentials.thumbprint == present.thumbprint:
            return False
        self._take(credentials)
        return True

    # Trust.

    def refresh_trust(self) -> bool:
        """Fetch bundle and revocation lists; True where the bundle is a new one.

        Asked without our certificate, so that an agent whose own has ended still learns of a new root.
        """
        credentials, known = self.credentials.current(), self.bundle
        domain = credentials.agent_id.trust_domain
        if known is None:  # a folder was replaced by one without our domain
            raise BundleError("trust bundle of our own domain is gone", expected=domain)
        wanted = _names_lists(credentials)

        async def ask() -> tuple[TrustBundle, RevocationLists | None]:
            async with self._wire(None) as wire:
                with self._noted(wire):
                    offered, sender = await wire.bundle(domain)
                    newest = answers.newer_bundle(known, offered, sender, self.now())
                    return newest, await self._lists(wire, credentials) if wanted else None

        bundle, lists = self.talk.run(ask)
        if lists is not None and lists is not self.crls.value:
            if self._files:
                self._files.save_crls(lists)
            self.crls.value = lists
        if bundle is known:
            return False
        if self._files:
            with self._files.writing():
                self._files.save_bundle(bundle)
        self._take_bundles(TrustBundles({**self.bundles.current().by_domain, domain: bundle}))
        return True

    def advice(self) -> RenewalInfo:
        """When the service would have us renew."""
        present = self.credentials.current()

        async def ask() -> RenewalInfo:
            async with self._wire(present) as wire:
                with self._noted(wire):
                    return await wire.renewal_info()

        return self.talk.run(ask)

    def look_at_clock(self) -> None:
        """Ask for the service's clock where TLS got nowhere: its word for people, over TLS that proves nothing."""

        async def ask() -> None:
            async with Wire.unverified(self.url) as wire:
                with self._noted(wire):
                    await wire.cacerts()

        with contextlib.suppress(AuthorityUnreachable):
            self.talk.run(ask)

    # Helpers.

    def _wire(self, source: Credentials | None) -> Wire:
        domain = self.credentials.current().agent_id.trust_domain
        return Wire.verified(self.url, domain, self.bundles, source, self._clock)

    @contextlib.contextmanager
    def _noted(self, wire: Wire) -> Iterator[None]:
        try:
            yield
        finally:
            if wire.date is not None:
                self.skew = wire.date - self.now()

    async def _with_issuers(
        self, wire: Wire, certificates: tuple[x509.Certificate, ...]
    ) -> tuple[x509.Certificate, ...]:
        """The answer, and all that may lead to a root: it may hold the leaf alone (RFC 7030 section 4.2.3), and
        since our last renewal the CA may have changed its intermediate."""
        bundle = self.bundle
        candidates = (*certificates, *self.credentials.current().chain[1:])
        known = {c.subject for c in (*candidates, *(bundle.roots if bundle else ()))}
        if all(c.issuer in known for c in certificates):
            return candidates
        return (*candidates, *await wire.cacerts())

    def _replace(self, certificates: tuple[x509.Certificate, ...], key: ec.EllipticCurvePrivateKey) -> None:
        present, bundle = self.credentials.current(), self.bundle
        if bundle is None:
            raise BundleError("trust bundle of our own domain is gone", expected=present.agent_id.trust_domain)
        new = answers.accept(certificates, key=key, bundle=bundle, agent_id=present.agent_id, now=self.now())
        if self._files:
            found: Credentials | None = None
            with self._files.writing():
                # Somebody may have enrolled in the meantime: theirs is what the operator wants now. What is there and
                # cannot be used is worth nothing.
                with contextlib.suppress(CredentialsError):
                    found = self._files.credentials()
                if found is not None and found.thumbprint != present.thumbprint:
                    self._state = None
                    self.follow()
                    return
                self._files.save(new)
        self._take(new)

    def _take(self, credentials: Credentials) -> None:
        if not _names_lists(credentials):
            self.crls.value = RevocationLists()
        elif self.crls.value is not None and not self.crls.value.crls:
            self.crls.value = None
        self.credentials.replace(credentials)

    def _take_bundles(self, bundles: TrustBundles) -> None:
        """Never an older bundle of our own domain, wherever it comes from."""
        domain = self.credentials.current().agent_id.trust_domain
        known, offered = self.bundle, bundles.by_domain.get(domain)
        if known is not None and (offered is None or offered.sequence < known.sequence):
            bundles = TrustBundles({**bundles.by_domain, domain: known})
        if bundles.to_json() != self.bundles.current().to_json():
            self.bundles.replace(bundles)

    async def _lists(self, wire: Wire, credentials: Credentials) -> RevocationLists:
        """The lists of every CA of the service, shard by shard. Those that have not changed stay the same objects."""
        known = {crl.public_bytes(Encoding.DER): crl for crl in (self.crls.value or RevocationLists()).crls}
        fetched: dict[str, x509.CertificateRevocationList] = {}
        named = _named_shard(credentials)
        for authority in await wire.cacerts():
            key_id = _key_id(authority)
            # The service forgets the shards whose certificates have all expired. Those that it still has begin
            # anywhere, and certificates get theirs one after the other: so, from our own in both directions.
            start = named[1] if named and named[0] == key_id else 0
            for shards in (range(start, start + MAX_SHARDS), range(start - 1, -1, -1), range(min(start, 1))):
                for shard in shards:
                    name = f"{key_id}-{shard}.crl" if shard else f"{key_id}.crl"
                    if name in fetched:
                        break
                    crl = await wire.crl(name)
                    if crl is None:
                        break
                    fetched[name] = known.get(crl.public_bytes(Encoding.DER), crl)
        if not fetched:  # no lists at all would mean that nobody asks for any
            raise AnswerRefused("revocation lists", got="none", expected="those that our certificates name")
        present = self.crls.value
        if present is not None and [*map(id, present.crls)] == [*map(id, fetched.values())]:
            return present
        return RevocationLists.of(fetched.values())

    def _enrolling_key(self, token: str) -> ec.EllipticCurvePrivateKey:
        """One key a token, kept until an answer comes, so that a lost answer is had by asking again."""
        digest = token_digest(token)
        if self._enrolling is None or self._enrolling[0] != digest:
            key = self._files.enrolling_key(digest) if self._files else None
            if key is None:
                key = ec.generate_private_key(ec.SECP256R1())
                if self._files:
                    self._files.keep_enrolling_key(digest, key)
            self._enrolling = digest, key
        return self._enrolling[1]

    def _forget_enrolling(self) -> None:
        self._enrolling = None
        if self._files:
            self._files.drop_enrolling_keys()


def _names_lists(credentials: Credentials) -> bool:
    """Whether a certificate of the chain says where its revocation list is."""
    return any(_list_url(certificate) for certificate in credentials.chain)


def _list_url(certificate: x509.Certificate) -> str:
    with contextlib.suppress(x509.ExtensionNotFound):
        for point in certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value:
            for name in point.full_name or ():
                return str(name.value)
    return ""


def _named_shard(credentials: Credentials) -> tuple[str, int] | None:
    """The CA and the shard of our own certificate's list, by the name of its file."""
    file = _LIST_FILE.search(_list_url(credentials.certificate))
    return None if file is None else (file[1], int(file[2] or 0))


def _key_id(authority: x509.Certificate) -> str:
    try:
        ski = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except (x509.ExtensionNotFound, ValueError):
        raise AnswerRefused("CA certificate", got="no key identifier") from None
    return ski.digest.hex()


def is_refusal(error: TrustError) -> bool:
    """Whether the service knows us and says no, so that asking again will hardly change anything."""
    alert = isinstance(error, HandshakeRefused) and " alert " in str(error) and "internal_error" not in str(error)
    return alert or isinstance(error, EnrolmentFailed)
