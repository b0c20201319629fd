"""An agent's first certificate, for a one-time token: the key is made here and never leaves.

Whoever sends a token to the wrong server has given it away, so the server proves first that it is the CA's: by a chain
to the one root whose fingerprint came with the token.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pki import requests
from pki.client import answers
from pki.client.est import Wire, service_url
from pki.client.folder import AgentFolder, Enrolment, token_digest
from pki.client.talk import talk
from pki.errors import AnswerRefused, EnrolmentFailed, EnrolmentTokenMalformed, PinMismatch
from trust import identity, private_keys
from trust.bundles import TrustBundle, TrustBundles
from trust.certificates import Certificate
from trust.clock import Clock, utc, wall_clock
from trust.credentials import Credentials
from trust.errors import CredentialsError, IdentityError, PeerError, TrustError, WrongPassword
from trust.identity import AgentID, fingerprint
from trust.peers import verify_peer
from trust.private_keys import PrivateKey

MAX_TOKEN_BYTES = 512  # ours have 94

_PIN = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)
_TOKEN = re.compile(r"[\x21-\x7e]+", re.ASCII)


def enrol(
    url: str,
    *,
    root_fingerprint: str,
    token: str,
    folder: str | os.PathLike[str],
    agent_id: AgentID | str | None = None,
    password: str | bytes | None = None,
    key_type: str = "P-256",
    clock: Clock = wall_clock,
) -> Credentials:
    """Get credentials for a one-time token, and write them into a folder as `a2a-pki issue` does.

    1. The CA certificates are fetched over TLS that proves nothing; the root with the pinned fingerprint is taken.
    2. The service is connected to again, and must prove with that root that it is `spiffe://DOMAIN/a2a-pki/server`.
    3. A key is made, and is on the disk before anything is asked for.
    4. The token is sent. The answer is judged (`answers.accept`) before any file is replaced.

    Interrupted anywhere, with the answer lost or the machine gone, the same call goes on from there: the service
    gives the same key the same certificate for the same token, and a call that was complete says so again.

    Not done: revocation of the service's certificate is not checked; we have no lists yet.

    Args:
        url: of the CA service, https.
        root_fingerprint: "sha256:" and the SHA-256 of the root certificate (DER) in hex, with or without colons.
        token: as `a2a-pki token` printed it.
        folder: is made if it is not there. Credentials of the same agent in it are replaced; of another never.
        agent_id: whose certificate it must be; None to take the agent that the token is for.
        password: encrypts the key on the disk.
        key_type: of the new key, one of `private_keys.KINDS`; a key that an interrupted call has made is used as it is.
            Renewals keep to a post-quantum one.
        clock: returns the aware time now.

    Raises:
        PinMismatch: the service has no root with that fingerprint, or the fingerprint is malformed.
        PeerError: the service does not prove that it is this root's CA service.
        EnrolmentTokenMalformed: no such token exists.
        EnrolmentFailed: the service refuses, and says why: token used, expired, unknown, for another agent.
        ClockSkewed: something is not valid by our clock, or was not by the service's; both are shown.
        AuthorityUnreachable: there is no answer. AnswerRefused: it is not that of a CA service.
        CredentialsError: the folder cannot be used.
    """
    enrolment = Enrolment(url=service_url(url), root_fingerprint=_pin(root_fingerprint), token_digest=_digest(token))
    wanted = AgentID.parse(agent_id) if isinstance(agent_id, str) else agent_id
    files = AgentFolder(folder, password)
    complete = _already(files, enrolment, wanted, utc(clock())) is not None
    service = None if complete else talk(lambda: _find(enrolment))
    files.make()
    try:
        with files.writing():
            return _complete(files, service, enrolment, token, wanted, key_type, clock)
    except TrustError:
        files.unmake()
        raise


def _complete(
    files: AgentFolder,
    service: _Service | None,
    enrolment: Enrolment,
    token: str,
    wanted: AgentID | None,
    key_type: str,
    clock: Clock,
) -> Credentials:
    """Steps 3 and 4, while nobody else writes here."""
    # Asked again: another process may have been faster with the same command.
    if (done := _already(files, enrolment, wanted, utc(clock()))) is not None:
        if files.enrolling_key(enrolment.token_digest) is not None:
            files.save(done)  # interrupted in its last steps, of which the key's final name is one
        files.save_enrolment(enrolment)
        files.drop_enrolling_keys()
        return done
    found = service or talk(lambda: _find(enrolment))
    key = files.enrolling_key(enrolment.token_digest)
    if key is None:
        key = private_keys.generate(key_type)
        files.keep_enrolling_key(enrolment.token_digest, key)
    try:
        credentials, bundle = talk(lambda: _ask(found, enrolment, token, key, wanted, clock))
    except EnrolmentFailed:
        files.drop_enrolling_keys()  # an answer came, and it was no
        raise
    _check_room(files, credentials.agent_id)
    files.save_bundle(bundle)
    files.save(credentials)
    files.save_enrolment(enrolment)
    files.drop_enrolling_keys()
    return credentials


@dataclass(frozen=True, slots=True, kw_only=True)
class _Service:
    """What is known of the service before it has proved anything but that it has the pinned root's certificate."""

    root: x509.Certificate = field(repr=False)
    trust_domain: str
    date: datetime | None

    @property
    def bundle(self) -> TrustBundle:
        return TrustBundle(trust_domain=self.trust_domain, roots=(self.root,))


async def _find(enrolment: Enrolment) -> _Service:
    """Step 1: the root with the pinned fingerprint, among what anybody may have sent."""
    async with Wire.unverified(enrolment.url) as wire:
        certificates = await wire.cacerts()
        date = wire.date
    sent = {fingerprint(c.public_bytes(Encoding.DER)): c for c in certificates}
    root = sent.get(enrolment.root_fingerprint)
    if root is None:
        roots = [pin for pin, c in sent.items() if c.subject == c.issuer]
        raise PinMismatch(
            "CA service has another root than the pinned one",
            got=" ".join(roots) or "no root",
            expected=enrolment.root_fingerprint,
            do="compare the fingerprint with that of `a2a-pki status` at the CA; if it is right, this is not your CA",
        )
    if root.subject != root.issuer:
        raise PinMismatch("the pinned certificate is not a root", got=root.subject.rfc4514_string())
    return _Service(root=root, trust_domain=_trust_domain(root), date=date)


async def _ask(
    service: _Service,
    enrolment: Enrolment,
    token: str,
    key: PrivateKey,
    wanted: AgentID | None,
    clock: Clock,
) -> tuple[Credentials, TrustBundle]:
    """Steps 2 and 4."""
    bundles = TrustBundles.of(service.bundle)
    wire = Wire.verified(enrolment.url, service.trust_domain, bundles, None, clock)
    try:
        async with wire:
            # Over the verified connection, so that the roots which come and go with a rotation are known, too.
            offered, _ = await wire.bundle(service.trust_domain)
            if service.root not in offered.roots:
                raise AnswerRefused(
                    "trust bundle of the CA service", got="the pinned root is not in it", do="pin the CA's current root"
                )
            # Those of step 1 were anybody's, and the CA may have changed its intermediate since. A token is burnt only
            # where its answer can be used.
            issuers = await wire.cacerts()
            answers.check_clocks(utc(clock()), wire.date)
            certificates = await wire.simpleenroll(requests.make(key, wanted), token)
        credentials = answers.accept(
            (*certificates, *issuers), key=key, bundle=offered, agent_id=wanted, now=utc(clock())
        )
    except TrustError as error:
        raise answers.explained(error, utc(clock()), wire.date or service.date) from None
    return credentials, offered


def _already(files: AgentFolder, enrolment: Enrolment, wanted: AgentID | None, now: datetime) -> Credentials | None:
    """The credentials in the folder, where this very enrolment was complete, or was but for its last steps."""
    if not files.path.is_dir():
        return None
    try:
        credentials, bundles = files.credentials(), files.bundles()
        key = files.enrolling_key(enrolment.token_digest)
        finished = key is not None and key.public_key() == credentials.private_key.public_key()
        if not finished and files.enrolment() != enrolment:
            return None
        verify_peer(credentials.chain_der, bundles=bundles, now=now, usage="client")
    except WrongPassword:
        raise
    except TrustError:  # none there, or none that is good now: there is something to enrol for
        return None
    roots = bundles.by_domain[credentials.agent_id.trust_domain].roots
    found = [fingerprint(root.public_bytes(Encoding.DER)) for root in roots]
    if wanted not in (None, credentials.agent_id) or enrolment.root_fingerprint not in found:
        return None
    return credentials


def _check_room(files: AgentFolder, agent_id: AgentID) -> None:
    try:
        present = files.credentials().agent_id
    except CredentialsError:
        return
    if present != agent_id:
        # The key stays where it is, so that the same command, run again, still gets this certificate.
        raise CredentialsError(
            f"{files.path} holds the credentials of another agent",
            got=present,
            expected=str(agent_id),
            do="move them away and run the same command again",
        )


def _pin(text: str) -> str:
    scheme, _, digits = text.strip().partition(":")
    pin = f"{scheme}:{digits.replace(':', '')}".lower()
    if not _PIN.fullmatch(pin):
        raise PinMismatch("root fingerprint", got=text, expected='"sha256:" and 64 hexadecimal digits')
    return pin


def _digest(token: str) -> str:
    if not _TOKEN.fullmatch(token) or len(token) > MAX_TOKEN_BYTES:
        # What it looks like is not shown: it may be a token and a line break.
        raise EnrolmentTokenMalformed("that is no token", expected="one line, as `a2a-pki token` printed it")
    return token_digest(token)


def _trust_domain(root: x509.Certificate) -> str:
    """The domain that a root of ours is for, by its SPIFFE ID without a path (X509-SVID section 3)."""
    try:
        uris = Certificate.read(root.public_bytes(Encoding.DER)).uris
        if len(uris) == 1 and uris[0].startswith("spiffe://"):
            return identity.trust_domain(uris[0].removeprefix("spiffe://"))
    except (IdentityError, PeerError):
        pass
    raise PinMismatch(
        "the pinned root names no trust domain", got=root.subject.rfc4514_string(), expected="a root of `a2a-pki`"
    )
