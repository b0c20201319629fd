"""The whole gate beside its cryptography alone: one signature verified, and one made for the answer.

The token is known, as it is with every request of a client but its first; audit is not part of it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from tests.benchmarks.harness import Row, medians
from tests.forge import NOW
from tests.world import BODY, World
from trust.gate import admit
from trust.gate_policy import RequestFacts
from trust.replay import MemoryReplayGuard
from trust.signing.http import new_message_id, sign_response

REQUESTS = 200  # distinct; a new guard takes over when all have been received


def rows() -> list[Row]:
    world = World()
    token = world.token()
    requests = [world.request(token=token) for _ in range(REQUESTS)]
    prepared = world.policy()
    state: dict[str, Any] = {"next": 0, "policy": prepared}

    def request() -> RequestFacts:
        if state["next"] == REQUESTS:
            guard = MemoryReplayGuard(started_at=NOW - timedelta(minutes=1))
            state.update(next=0, policy=_with_guard(world, prepared, guard))
        state["next"] += 1
        facts: RequestFacts = requests[state["next"] - 1]
        return facts

    def admitted() -> object:
        facts = request()
        return admit(facts, state["policy"])

    def answered() -> object:
        facts = request()
        admission = admit(facts, state["policy"])
        assert admission.message is not None
        return sign_response(
            world.billing, request=admission.message, status=200, body=BODY, now=NOW, jti=new_message_id()
        )

    data = b"x" * 600  # about what is signed: the header and a body of 90 bytes
    private: Any = world.billing.private_key
    public = private.public_key()
    signing, verifying = ec.ECDSA(hashes.SHA256(), deterministic_signing=True), ec.ECDSA(hashes.SHA256())
    signature = private.sign(data, verifying)

    def raw_verify() -> None:
        public.verify(signature, data, verifying)

    def raw_both() -> None:
        public.verify(signature, data, verifying)
        private.sign(data, signing)

    gate, both, verify, verify_and_sign = medians(admitted, answered, raw_verify, raw_both)
    return [
        Row(name="gate, a signed request", ours=gate, peer_name="raw verify", peer=verify, goal="-"),
        Row(
            name="gate and signed answer",
            ours=both,
            peer_name="raw verify + sign",
            peer=verify_and_sign,
            goal="<= 1.5x",
        ),
    ]


def _with_guard(world: World, policy: Any, guard: MemoryReplayGuard) -> Any:
    return world.policy(verifier=policy.verifier, tokens=policy.tokens, replay=guard)
