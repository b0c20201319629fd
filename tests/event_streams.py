"""One signed event stream, frame by frame, with every part of it open to mutation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from tests.forge import NOW, Forge
from trust.authorize import exactly
from trust.credentials import Credentials
from trust.peers import PeerVerifier
from trust.signing import envelope
from trust.signing.envelope import Binding, VerifiedMessage
from trust.signing.exchange import SignedRequest, authenticate_request, sign_request
from trust.signing.http import new_message_id
from trust.signing.streams import EVENT_TYPE, LIFETIME, StreamSigner, StreamVerifier

FORGE = Forge()
PLANNER = FORGE.leaf("/planner")
BILLING = FORGE.leaf("/billing")
REPORTS = FORGE.leaf("/reports")
VERIFIER = PeerVerifier(FORGE.bundles)
URL = "https://billing.example/a2a"
TYPE = "text/event-stream"
EVENTS = [f'{{"jsonrpc":"2.0","id":"1","result":{{"n":{n},"text":"Grüße"}}}}' for n in range(4)]


def ask(audience: Any = BILLING.agent_id) -> tuple[SignedRequest, VerifiedMessage]:
    """A request, as its sender and as its receiver have it."""
    target: dict[str, Any] = {"method": "POST", "url": URL, "body": b"{}"}
    signed = sign_request(PLANNER, **target, audience=audience, now=NOW, jti=new_message_id())
    peer = VERIFIER.verify(PLANNER.chain_der, now=NOW, usage="client")
    received = authenticate_request(signed.jws, **target, audience=audience, verifier=VERIFIER, peer=peer, now=NOW)
    return signed, received


REQUEST, RECEIVED = ask()


def signer(**changes: Any) -> StreamSigner:
    facts: dict[str, Any] = {
        "request": RECEIVED,
        "status": 200,
        "content_type": TYPE,
        "stream_id": new_message_id(),
        "resumes": None,
        **changes,
    }
    return StreamSigner(**facts)


def event(data: str, *lines: str) -> bytes:
    return "".join(f"{line}\n" for line in (*lines, f"data: {data}", "")).encode()


def frames(
    *events: str | bytes,
    stream: StreamSigner | None = None,
    by: Credentials = BILLING,
    chain: bool = False,
    now: datetime = NOW,
) -> list[bytes]:
    """What goes over the wire: one frame for each event, and the end."""
    stream = stream or signer()
    facts: dict[str, Any] = {"credentials": by, "chain": chain, "now": now}
    sent = [item if isinstance(item, bytes) else event(item) for item in events or EVENTS]
    return [*(stream.sign(item, **facts) for item in sent), stream.end(**facts)]


def verifier(**changes: Any) -> StreamVerifier:
    facts: dict[str, Any] = {
        "request": REQUEST,
        "status": 200,
        "content_type": TYPE,
        "resumes": None,
        "audience": PLANNER.agent_id,
        "signers": exactly(BILLING.agent_id),
        "verifier": VERIFIER,
        "peer": VERIFIER.verify(BILLING.chain_der, now=NOW, usage="server"),
        **changes,
    }
    return StreamVerifier(**facts)


def read(
    chunks: Iterable[bytes], by: StreamVerifier | None = None, now: datetime = NOW
) -> list[tuple[VerifiedMessage, bytes]]:
    """Everything that a reader gets, to the end of the stream."""
    by = by or verifier()
    got = [item for chunk in chunks for item in by.verify(chunk, now=now)]
    by.finish()
    return got


def crafted(
    payload: str | None,
    members: dict[str, Any],
    *,
    jti: str,
    by: Credentials = BILLING,
    typ: str = EVENT_TYPE,
    audience: Any = PLANNER.agent_id,
) -> bytes:
    """A frame that our own signer does not make: any members of `a2a`, over any payload; None is an end."""
    claims = {"st": 200, "req": {"jti": REQUEST.jti, "s256": REQUEST.digest}, **members}
    binding = Binding(typ=typ, members=claims, content_type=TYPE, mismatch=envelope.SignatureError)
    jws = envelope.sign(
        b"" if payload is None else payload.encode(),
        credentials=by,
        binding=binding,
        audience=audience,
        now=NOW,
        jti=jti,
        lifetime=LIFETIME,
        chain=True,
    )
    if payload is None:
        return f": {EVENT_TYPE} {jws}\n\n".encode()
    opening = json.dumps({"metadata": {"urn:a2a-trust:message-signature:v1": jws}}, separators=(",", ":"))
    return event(f"{opening[:-1]},{payload[1:]}")
