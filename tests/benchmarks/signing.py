"""Signed requests, messages inside JSON and evidence, beside their cryptography alone; chains of certificates; JCS."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import rfc8785
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from tests.benchmarks.harness import Row, compare, medians
from tests.forge import Forge
from trust.authorize import exactly
from trust.peers import PeerVerifier
from trust.signing import jws
from trust.signing.canonical import canonicalize
from trust.signing.evidence import make_evidence, verify_evidence
from trust.signing.http import authenticate_request, new_message_id, sign_request
from trust.signing.messages import authenticate_message, sign_message

PAYLOAD = b"x" * 1024


def rows() -> list[Row]:
    return [*_signed(), *_canonical()]


def _signed() -> list[Row]:
    """Whole signed things: claims, certificate, chain, binding, time. What was seen before is left to the guard."""
    now = datetime.now(UTC)
    forge = Forge()
    planner, billing = forge.leaf("/planner"), forge.leaf("/billing")
    chain, verifier, strangers = planner.chain_der, PeerVerifier(forge.bundles), PeerVerifier(forge.bundles)
    peer = verifier.verify(chain, now=now, usage="client")
    target: dict[str, Any] = {"method": "POST", "url": "https://billing.example/a2a", "body": PAYLOAD, "version": "1.0"}
    jti, audience, signers = new_message_id(), billing.agent_id, exactly(planner.agent_id)
    token = sign_request(planner, **target, audience=audience, now=now, jti=jti).jws
    message = {"messageId": "1", "role": "ROLE_USER", "parts": [{"text": "x" * 900}]}
    text = json.dumps(
        sign_message(message, "Message", credentials=planner, audience=audience, now=now, jti=jti)
    ).encode()

    def request() -> Any:
        return authenticate_request(token, **target, audience=audience, verifier=verifier, peer=peer, now=now)

    def read() -> object:
        return authenticate_message(text, "Message", audience=audience, verifier=verifier, now=now, signers=signers)

    def first_contact() -> object:
        strangers._snapshot.paths.clear()
        return strangers.verify(chain, now=now, usage="client")

    received = request()
    bundle = make_evidence(received, credentials=billing, verifier=verifier, jti=jti)
    ours: dict[str, Callable[[], object]] = {
        "sign a request": lambda: sign_request(planner, **target, audience=audience, now=now, jti=jti),
        "verify a request": request,
        "sign a message": lambda: sign_message(
            message, "Message", credentials=planner, audience=audience, now=now, jti=jti
        ),
        "verify a message": read,
        "make evidence": lambda: make_evidence(received, credentials=billing, verifier=verifier, jti=jti),
        "verify evidence": lambda: verify_evidence(bundle, forge.bundles, at=now),
        "a chain, known": lambda: verifier.verify(chain, now=now, usage="client"),
        "a chain, first contact": first_contact,
    }
    raw_sign, raw_verify, *seconds = medians(*_raw(planner, token), *ours.values())
    return [
        Row(
            name=f"{what}, 1 KiB" if "chain" not in what else what,
            ours=figure,
            peer_name="raw sign" if what.startswith(("sign", "make")) else "raw verify",
            peer=raw_sign if what.startswith(("sign", "make")) else raw_verify,
            goal="-",
        )
        for what, figure in zip(ours, seconds, strict=True)
    ]


def _raw(signer: Any, token: str) -> tuple[Callable[[], object], Callable[[], object]]:
    data = f"{token.split('.')[0]}.{jws.encode(PAYLOAD)}".encode()
    deterministic, ecdsa = ec.ECDSA(hashes.SHA256(), deterministic_signing=True), ec.ECDSA(hashes.SHA256())
    key = signer.private_key
    public, der = key.public_key(), key.sign(data, deterministic)
    return lambda: key.sign(data, deterministic), lambda: public.verify(der, data, ecdsa)


def _canonical() -> list[Row]:
    result = []
    for label, size in (("1 KiB", 1 << 10), ("64 KiB", 64 << 10)):
        document = _document(size)
        for style, separators in (("compact", (",", ":")), ("spaced", (", ", ": "))):
            text = json.dumps(document, ensure_ascii=False, separators=separators).encode()
            assert canonicalize(text) == rfc8785.dumps(document)
            row = compare(
                f"RFC 8785, {label}, {style}",
                lambda text=text: canonicalize(text),  # type: ignore[misc]
                "rfc8785",
                lambda text=text: rfc8785.dumps(json.loads(text)),  # type: ignore[misc]
                "<= 0.125x" if style == "compact" else "< 1x",
            )
            result.append(row)
    return result


def _document(size: int) -> dict[str, Any]:
    """An A2A message of about `size` bytes: texts with line breaks and quotes, numbers, some of it not ASCII."""
    parts: list[dict[str, Any]] = []
    message = {
        "kind": "message",
        "role": "ROLE_USER",
        "messageId": "5f0c2a9e-6abc-4c1f-9d53-0d7a1c2b3e4f",
        "parts": parts,
    }
    while len(json.dumps(message, ensure_ascii=False).encode()) < size:
        number = len(parts)
        text = f'Pay invoice {number} of the "fleet" budget\nbefore Friday, in €, please.'
        data = {"amount": 100.25 + number, "items": [number, number * 2], "currency": "EUR", "urgent": number % 2 == 0}
        parts.append({"text": text, "mediaType": "text/plain", "data": data})
    return message
