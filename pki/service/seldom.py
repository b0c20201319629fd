"""Refusals that strangers can have for nothing do not fill the trail."""

from __future__ import annotations

from trust.audit import AuditSink, Decision
from trust.seldom import Seldom

# Refusals of strangers who have shown nothing, and take no more than a packet each. Enrolments are bounded by address,
# and handshakes by the server of `trust.tls`.
_CHEAP = ("ocsp",)


class SparingAudit:
    """An audit sink that writes every decision but those refusals which are to be had without limit.

    Of each kind of these there are sixty a minute; the next one that is written says how many were `omitted`.
    """

    def __init__(self, sink: AuditSink) -> None:
        self._sink = sink
        self._seldom = {event: Seldom() for event in _CHEAP}

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
        seldom = self._seldom.get(event) if decision == "deny" else None
        if seldom is not None:
            if not seldom.says():
                return
            if omitted := seldom.missed():
                facts["omitted"] = omitted
        self._sink.record(
            event=event, decision=decision, check=check, peer=peer, subject=subject, target=target, **facts
        )
