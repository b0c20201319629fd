"""An event stream of 10,000 events: one event beside the bare signature, and beside a signed answer of its own.

An event is 1 KiB, as a status update with a few sentences is.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from tests.benchmarks.harness import Row
from tests.event_streams import BILLING, PLANNER, RECEIVED, REQUEST, VERIFIER, event, signer, verifier
from tests.forge import NOW
from trust.authorize import exactly
from trust.signing import jws
from trust.signing.http import new_message_id, sign_response, verify_response

EVENTS = 10_000
ROUNDS = 5  # of 2,000: sides take turns, and the least disturbed round of each counts
TEXT = '{"jsonrpc":"2.0","id":"1","result":{"statusUpdate":{"status":{"message":{"parts":[{"text":"%s"}]}}}}}'
DATA = TEXT % ("word " * 186)
EVENT = event(DATA)
FACTS: dict[str, Any] = {"credentials": BILLING, "chain": False, "now": NOW}


def rows() -> list[Row]:
    key: Any = BILLING.private_key
    public = key.public_key()
    deterministic, ecdsa = ec.ECDSA(hashes.SHA256(), deterministic_signing=True), ec.ECDSA(hashes.SHA256())
    frame = signer().sign(EVENT, **FACTS).decode()
    compact = frame.split('":"')[1].partition('"')[0]
    data = f"{compact.split('.')[0]}.{jws.encode(DATA.encode())}".encode()
    der = key.sign(data, deterministic)
    answer: dict[str, Any] = {"status": 200, "body": DATA.encode(), "now": NOW}
    answered = sign_response(BILLING, **answer, request=RECEIVED, jti=new_message_id())
    reader: dict[str, Any] = {
        "request": REQUEST,
        "audience": PLANNER.agent_id,
        "signers": exactly(BILLING.agent_id),
        "verifier": VERIFIER,
        "peer": VERIFIER.verify(BILLING.chain_der, now=NOW, usage="server"),
    }
    signing, sending, verifying = signer(), signer(), verifier()
    wire = iter([sending.sign(EVENT, **FACTS) for _ in range(EVENTS)])

    def verify() -> None:
        for _ in verifying.verify(next(wire), now=NOW):
            pass

    sides = {
        "sign": lambda: signing.sign(EVENT, **FACTS),
        "raw sign": lambda: key.sign(data, deterministic),
        "sign an answer": lambda: sign_response(BILLING, **answer, request=RECEIVED, jti=new_message_id()),
        "verify": verify,
        "raw verify": lambda: public.verify(der, data, ecdsa),
        "verify an answer": lambda: verify_response(answered, **answer, **reader),
    }
    spent = {name: float("inf") for name in sides}
    for _ in range(ROUNDS):
        for name, call in sides.items():
            spent[name] = min(spent[name], _each(call))
    return [
        Row(name=f"{verb} an event", ours=spent[verb], peer_name=name, peer=spent[other], goal=goal)
        for verb in ("sign", "verify")
        for name, other, goal in (
            ("raw primitive", f"raw {verb}", "-"),
            ("a signed answer", f"{verb} an answer", "<= 1.5x"),
        )
    ] + [_memory()]


def _each(call: Callable[[], object]) -> float:
    number = EVENTS // ROUNDS
    start = time.process_time()
    for _ in range(number):
        call()
    return (time.process_time() - start) / number


def _memory() -> Row:
    """What both ends hold more after 1,000 events than after 100."""
    signing, verifying = signer(), verifier()

    def held(count: int) -> int:
        for _ in range(count):
            for _ in verifying.verify(signing.sign(EVENT, **FACTS), now=NOW):
                pass
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        early, late = held(100), held(900)
    finally:
        tracemalloc.stop()
    more = max(late - early, 0)
    return Row(
        name="900 more events held", ours=more, peer_name="one event", peer=len(EVENT), goal="<= 5x", unit="bytes"
    )
