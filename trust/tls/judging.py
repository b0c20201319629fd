"""By what the peer of a connection is judged: in the handshake, and again for as long as the connection is open."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from cryptography import x509

from trust.authorize import Authorizer
from trust.bundles import BundleSource, RevocationLists, RevocationSource, TrustBundles
from trust.identity import PeerIdentity
from trust.peers import PeerVerifier
from trust.tls.connection import Connection, as_trust_error
from trust.tls.snapshot import Snapshot

if TYPE_CHECKING:
    from trust.tls.engine import TrustContext

# A verdict on an open connection is good for this long, as long as no source has another value: what it cannot see is
# an authorizer that changed its mind by itself, and a revocation list that nobody replaced in time.
VERDICT_LIFETIME = timedelta(seconds=60)


@dataclass(frozen=True, slots=True, eq=False)
class Trust:
    """Whom we trust and who may connect, replaced as a whole. Its identity is the generation of the trust."""

    bundles: BundleSource
    crls: RevocationSource
    authorize: Authorizer
    verifier: PeerVerifier


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What a peer was judged by, and until when that is good if none of it changes."""

    trust: Trust
    bundles: TrustBundles
    crls: RevocationLists
    until: datetime

    def holds(self, trust: Trust, now: datetime) -> bool:
        return (
            self.trust is trust
            and self.bundles is trust.bundles.current()
            and self.crls is trust.crls.current()
            and now <= self.until
        )


class Judged(Connection):
    """A connection that is judged by its context's trust: the one of the moment, at the end as at the start."""

    def __init__(
        self, context: TrustContext, snapshot: Snapshot, rule: Authorizer | None = None, **options: Any
    ) -> None:
        self._context = context
        self._rule = rule
        self._judged_by: Verdict | None = None
        self._ends: datetime | None = None  # of the first certificate of its chain that ends
        super().__init__(snapshot, self._ask, **options)

    def assert_identified(self) -> None:
        super().assert_identified()
        # The trust was reloaded in the middle of this handshake, perhaps too early for the sweep to see the peer.
        if self.peer is not None and (self._judged_by is None or self._judged_by.trust is not self._context.trust):
            self.judge_again()

    def recheck(self) -> None:
        peer, verdict = self.peer, self._judged_by
        if peer is None or verdict is None or self.distrusted:
            return
        try:
            if not verdict.holds(self._context.trust, self._context.now()):
                self._ask(list(peer.chain))
        except BaseException as error:  # a defect or an outage on our side must refuse, never accept
            self.distrust(as_trust_error(error))
            if not isinstance(error, Exception):  # a library in Rust that panics, or an interrupt
                raise

    def _ask(self, chain: list[bytes]) -> PeerIdentity:
        trust, now = self._context.trust, self._context.now()
        # The values are read before they are used: one that changes in between is noticed at the next check.
        bundles, crls = trust.bundles.current(), trust.crls.current()
        peer = self._context.judge(chain, trust)
        if self._rule is not None:
            self._rule.check(peer.agent_id)
        if self._ends is None:
            self._ends = min(x509.load_der_x509_certificate(der).not_valid_after_utc for der in peer.chain)
        self._judged_by = Verdict(trust, bundles, crls, min(now + VERDICT_LIFETIME, self._ends))
        return peer
