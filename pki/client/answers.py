"""What the CA service answers, judged before anything of ours is replaced by it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from pki.errors import AnswerRefused, ClockSkewed
from trust.bundles import TrustBundle, TrustBundles
from trust.clock import shown
from trust.credentials import Credentials
from trust.errors import CertificateExpired, CertificateNotYetValid, HandshakeRefused, TrustError
from trust.identity import AgentID, PeerIdentity
from trust.peers import MAX_CERTIFICATES, verify_peer
from trust.private_keys import PrivateKey

MAX_LIFETIME = timedelta(days=7)  # of an agent's certificate, whatever the CA would give; SPIFFE's are short-lived
BACKDATE = timedelta(minutes=1)  # so long before they are made do the CA's certificates begin
CLOCK_SAYS = "this machine's clock says"
SKEW_WORTH_SAYING = timedelta(seconds=30)  # a Date header counts whole seconds, and a network takes some


def accept(
    certificates: Iterable[x509.Certificate],
    *,
    key: PrivateKey,
    bundle: TrustBundle,
    agent_id: AgentID | None,
    now: datetime,
) -> Credentials:
    """The credentials that an answer gives us.

    (1) Exactly one of the certificates is for our key.
    (2) It is for the ID that we asked for; where we asked for none, for one of this trust domain.
    (3) It leads to a root of the bundle, and is good as client and as server: the whole of `verify_peer`.
    (4) It lives no longer than an agent's certificate may.

    Not checked: revocation.

    Args:
        certificates: of the answer, in any order, and issuers from elsewhere; none of them is trusted for being there.

    Raises:
        AnswerRefused: by (1), (2) and (4).
        PeerError: by (3), from the leaf class that says why.
    """
    # (1)
    der = {c.public_bytes(Encoding.DER): c for c in certificates}
    ours = [c for c in der.values() if _is_for(c, key)]
    if len(ours) != 1:
        raise AnswerRefused("answer of the CA service", got=f"{len(ours)} certificates for our key", expected="one")
    leaf = ours[0]
    # (2) and (3). The order does not matter but for the bound: the issuers of the leaf come before their own.
    issuers = [c for c in der.values() if c is not leaf and c.subject != c.issuer]
    issuers.sort(key=lambda c: c.subject != leaf.issuer)
    chain = [c.public_bytes(Encoding.DER) for c in (leaf, *issuers)][:MAX_CERTIFICATES]
    trusted = TrustBundles.of(bundle)
    verify_peer(chain, bundles=trusted, now=now, usage="server")
    peer = verify_peer(chain, bundles=trusted, now=now, usage="client")
    if agent_id is not None and peer.agent_id != agent_id:
        raise AnswerRefused("certificate is another agent's", got=peer.agent_id, expected=str(agent_id))
    # (4)
    life = peer.not_after - peer.not_before
    if life > MAX_LIFETIME:
        raise AnswerRefused(
            "certificate lives too long", got=f"{life.days} days", expected=f"at most {MAX_LIFETIME.days} days"
        )
    return Credentials.of(tuple(x509.load_der_x509_certificate(c) for c in peer.chain), key)


def newer_bundle(known: TrustBundle, offered: TrustBundle, sender: PeerIdentity | None, now: datetime) -> TrustBundle:
    """The bundle to trust from now on: the offered one if it is newer, else the very one we have.

    A sequence never goes back (SPIFFE Trust Domain and Bundle section 4.1.1), so an old document, perhaps with a root
    that was taken out since, changes nothing. How far it goes is the CA's to say. Whoever spoke for the CA once, with a
    key of its that nobody had revoked yet, can have put a root of theirs under a sequence which the CA never reaches:
    such an agent is enrolled again, and takes over what was pinned then.

    Raises:
        PeerError: the service that sent it is not to be trusted by it. Either it is not what that service meant to say,
            or we would never hear from it again.
    """
    if offered.sequence <= known.sequence:
        return known
    if sender is not None:
        verify_peer(list(sender.chain), bundles=TrustBundles.of(offered), now=now, usage="server")
    return offered


def check_clocks(ours: datetime, theirs: datetime | None) -> None:
    """Return where a certificate that is issued now would be valid by our clock.

    Else each attempt would make the CA issue one more that we cannot use, and burn a token.

    Args:
        theirs: the CA's clock, by an answer of the verified service.

    Raises:
        ClockSkewed: ours is too far behind.
    """
    if theirs is None or theirs - ours <= BACKDATE:
        return
    raise ClockSkewed(
        "a new certificate would not be valid yet by this machine's clock",
        got=clocks(ours, theirs),
        do=f"the two are {_apart(theirs - ours)} apart: set the wrong one",
    )


def clocks(ours: datetime, theirs: datetime | None) -> str:
    """Both clocks, for people."""
    here = f"{CLOCK_SAYS} {shown(ours)}"
    if theirs is None:
        return f"{here}, the CA's is not known"
    return f"{here}, the CA's {shown(theirs)}"


def explained(error: TrustError, ours: datetime, theirs: datetime | None) -> TrustError:
    """The same error; or `ClockSkewed` with both clocks, where one of them may be why it happened."""
    if not concerns_time(error) or (theirs is not None and abs(theirs - ours) < SKEW_WORTH_SAYING):
        return error
    do = "look at the clocks"
    if theirs is not None:
        do = f"the two are {_apart(abs(theirs - ours))} apart: set the wrong one"
    return ClockSkewed(f"{error}; {clocks(ours, theirs)}", do=do)


def concerns_time(error: TrustError) -> bool:
    """Whether a wrong clock, ours or the service's, may be the reason.

    The alert that a server sends for a certificate that is not valid yet is also that for any other bad one.
    """
    if isinstance(error, HandshakeRefused):
        return error.by_verified_peer and any(
            alert in str(error) for alert in ("certificate_expired", "bad_certificate")
        )
    return isinstance(error, CertificateExpired | CertificateNotYetValid)


def _apart(skew: timedelta) -> str:
    seconds = int(skew.total_seconds())
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} seconds"


def _is_for(certificate: x509.Certificate, key: PrivateKey) -> bool:
    try:
        return certificate.public_key() == key.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return False
