"""One agent's credentials and trust, and the conversations with the CA service that replace them.

Nothing here decides when: that is `pki.client.renewal`. Every method is one attempt, which replaces everything or
nothing: the values that programs see change only after the new ones were judged and, with a folder, written.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from datetime import datetime, timedelta

from cryptography import x509

from pki import requests
from pki.client import answers, lists
from pki.client.est import Advice, Wire
from pki.client.folder import AgentFolder, Enrolment, token_digest
from pki.client.lists import KnownLists
from pki.client.talk import Talk
from pki.errors import AuthorityUnreachable, EnrolmentFailed
from trust import private_keys
from trust.bundles import TrustBundle, TrustBundles
from trust.clock import Clock, utc
from trust.credentials import Credentials
from trust.errors import BundleError, CredentialsError, HandshakeRefused, TrustError, UntrustedChain
from trust.private_keys import PrivateKey
from trust.sources import Live

logger = logging.getLogger("a2a_pki.client")


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
        self.crls = KnownLists(
            credentials.agent_id.trust_domain, files.crls() if files else None, required=lists.wanted(credentials)
        )
        self.skew: timedelta | None = None
        self.talk = Talk()
        self._files = files
        self._clock = clock
        self._state: object = None  # of the folder, at our last look
        self._enrolment = _enrolment(files)
        self._enrolling: tuple[str, PrivateKey] | None = None
        if self.bundle is None:
            raise BundleError(
                "trust bundles of the agent", got="none of its own domain", expected=credentials.agent_id.trust_domain
            )

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
        present = self.credentials.current()
        key = private_keys.successor(present.private_key)
        csr = requests.make(key, present.agent_id)

        async def ask() -> tuple[x509.Certificate, ...]:
            async with self._wire(present) as wire:
                with self._noted(wire):
                    issuers = await self._prepared(wire)
                    return (*await wire.simplereenroll(csr), *issuers)

        self._replace(self.talk.run(ask), key)

    def enrol_again(self, token: str) -> None:
        """As `renew`, for a one-time token instead of a certificate that the service no longer accepts."""
        key = self._enrolling_key(token)
        csr = requests.make(key, self.credentials.current().agent_id)

        async def ask() -> tuple[x509.Certificate, ...]:
            async with self._wire(None) as wire:
                with self._noted(wire):
                    issuers = await self._prepared(wire)
                    return (*await wire.simpleenroll(csr, token), *issuers)

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
        # An operator who enrolled again, with a token and a pin, decides what is trusted: whatever we were told before.
        enrolment = _enrolment(self._files)
        if enrolment != self._enrolment:
            self._enrolment = enrolment
            self.bundles.replace(bundles)
        else:
            self._take_bundles(bundles)
        self._state = state
        if credentials.thumbprint == present.thumbprint:
            return False
        self._take(credentials)
        return True

    # Trust.

    def refresh_bundle(self) -> bool:
        """Fetch the trust bundle; True where it is a new one.

        Asked without our certificate, so that an agent whose own has ended still learns of a new root.

        Raises:
            UntrustedChain: the service proves itself by a root that our bundle does not have.
            TrustError: by what else went wrong; everything is as it was.
        """
        known = self._own_bundle()

        async def ask() -> TrustBundle:
            async with self._wire(None) as wire:
                with self._noted(wire):
                    offered, sender = await wire.bundle(known.trust_domain)
            return answers.newer_bundle(known, offered, sender, self.now())

        bundle = self.talk.run(ask)
        if bundle is known:
            return False
        if self._files:
            with self._files.writing():
                self._files.save_bundle(bundle)
        self._take_bundles(TrustBundles({**self.bundles.current().by_domain, known.trust_domain: bundle}))
        return True

    def refresh_lists(self) -> None:
        """Fetch the revocation lists, from the CA service itself: it has them all, whether certificates name any.

        Raises:
            TrustError: some of them could not be had; those are as they were.
        """
        credentials, bundle = self.credentials.current(), self._own_bundle()

        async def ask() -> lists.Fetched:
            async with self._wire(None) as wire:
                with self._noted(wire):
                    return await lists.fetch(wire, self.crls, credentials=credentials, bundle=bundle, now=self.now())

        fetched = self.talk.run(ask)
        if self.crls.take(fetched.lists) and self._files:
            self._files.save_crls(fetched.lists.all())
        if fetched.problem is not None:
            raise fetched.problem

    def advice(self) -> Advice:
        """When the service would have us renew."""
        present = self.credentials.current()

        async def ask() -> Advice:
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

    def _own_bundle(self) -> TrustBundle:
        if (bundle := self.bundle) is None:  # a folder was replaced by one without our domain
            raise BundleError(
                "trust bundle of our own domain is gone", expected=self.credentials.current().agent_id.trust_domain
            )
        return bundle

    def _wire(self, source: Credentials | None) -> Wire:
        domain = self.credentials.current().agent_id.trust_domain
        self.crls.take(lists.settled(self.crls, self._own_bundle(), self.now()))
        listed = self.crls.listed if source is None else self.crls.listed_a_while
        return Wire.verified(self.url, domain, self.bundles, source, self._clock, listed)

    @contextlib.contextmanager
    def _noted(self, wire: Wire) -> Iterator[None]:
        """Learn the service's clock from what it says, and say what an unknown root means for us."""
        try:
            yield
        except UntrustedChain as error:
            raise UntrustedChain(
                "the CA service proves itself by a root that this agent does not know",
                got=error,
                expected="a root of its trust bundle",
                do="if the CA has changed its root while this agent was away, enrol again: with a new token, "
                "and with the new root's fingerprint from whoever runs the CA",
            ) from None
        finally:
            if wire.date is not None:
                self.skew = wire.date - self.now()

    async def _prepared(self, wire: Wire) -> tuple[x509.Certificate, ...]:
        """What has to be known before anything is asked for: that the answer can be used, and what leads to a root.

        The answer may hold the leaf alone (RFC 7030 section 4.2.3), and since our last renewal the CA may have changed
        its intermediate.
        """
        issuers = await wire.cacerts()
        answers.check_clocks(self.now(), wire.date)
        return issuers

    def _replace(self, certificates: tuple[x509.Certificate, ...], key: PrivateKey) -> None:
        present, bundle = self.credentials.current(), self._own_bundle()
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
        self.crls.require(lists.wanted(credentials))
        self.credentials.replace(credentials)

    def _take_bundles(self, bundles: TrustBundles) -> None:
        """Never an older bundle of our own domain, wherever it comes from."""
        domain = self.credentials.current().agent_id.trust_domain
        known, offered = self.bundle, bundles.by_domain.get(domain)
        if known is not None and (offered is None or offered.sequence < known.sequence):
            bundles = TrustBundles({**bundles.by_domain, domain: known})
        if bundles.to_json() != self.bundles.current().to_json():
            self.bundles.replace(bundles)

    def _enrolling_key(self, token: str) -> PrivateKey:
        """One key a token, kept until an answer comes, so that a lost answer is had by asking again."""
        digest = token_digest(token)
        if self._enrolling is None or self._enrolling[0] != digest:
            key = self._files.enrolling_key(digest) if self._files else None
            if key is None:
                key = private_keys.successor(self.credentials.current().private_key)
                if self._files:
                    self._files.keep_enrolling_key(digest, key)
            self._enrolling = digest, key
        return self._enrolling[1]

    def _forget_enrolling(self) -> None:
        self._enrolling = None
        if self._files:
            self._files.drop_enrolling_keys()


def _enrolment(files: AgentFolder | None) -> Enrolment | None:
    try:
        return files.enrolment() if files else None
    except CredentialsError:  # damaged: nobody's word
        return None


def is_refusal(error: TrustError) -> bool:
    """Whether the service knows us and says no, so that asking again will hardly change anything.

    An alert counts when it came from a server that had proved to be the CA's. One from before that is nobody's word,
    and must not make an agent give up for longer than a broken network does.
    """
    if isinstance(error, HandshakeRefused):
        return error.by_verified_peer and " alert " in str(error) and "internal_error" not in str(error)
    return isinstance(error, EnrolmentFailed)
