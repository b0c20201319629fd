"""Refusals that strangers can have for nothing do not fill the trail."""

from __future__ import annotations

from collections import defaultdict

from trust.audit import AuditSink, Decision
from trust.seldom import Seldom

# What strangers are refused who have shown nothing, and take no more than a packet each. What an agent is refused is
# written each time: its peer is a SPIFFE ID. Handshakes are bounded by the server of `trust.tls`.
_CHEAP = ("ocsp", "enrol", "renew", "renewal-info")


class SparingAudit:
    """An audit sink that writes every decision but those refusals which strangers can have without limit.

    Of each kind of these there are sixty a minute; the next one that is written says how many were `omitted`.
    """

    def __init__(self, sink: AuditSink) -> None:
        self._sink = sink
        # By what was refused, or a flood of one kind would hide the others: that a token was used before, say.
        self._seldom: defaultdict[tuple[str, str], Seldom] = defaultdict(Seldom)

    def record(
        self,
        *,
        event: str,
        decision: Decision,
        check: str,
        peer: str = "",
        subject: str = "",
        target: str = "",
        **facts: str | int,
    ) -> None:
        if decision == "deny" and event in _CHEAP and not peer.startswith("spiffe://"):
            seldom = self._seldom[event, check]
            if not seldom.says():
                return
            if omitted := seldom.missed():
                facts["omitted"] = omitted
        self._sink.record(
            event=event, decision=decision, check=check, peer=peer, subject=subject, target=target, **facts
        )
