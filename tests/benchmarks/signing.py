"""Signing and verifying 1 KiB beside the raw primitive and jwcrypto; RFC 8785 beside the `rfc8785` package."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import rfc8785
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from jwcrypto import jwk
from jwcrypto import jws as jwcrypto_jws

from tests.benchmarks.harness import Row, compare
from tests.forge import Forge
from trust.peers import PeerVerifier
from trust.signing import jws
from trust.signing.canonical import canonicalize
from trust.signing.http import authenticate_request, new_message_id, sign_request

PAYLOAD = b"x" * 1024


def rows() -> list[Row]:
    return [*_signatures(), *_requests(), *_canonical()]


def _signatures() -> list[Row]:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    header = {"alg": "ES256", "typ": "a2a-req+jws", "crit": ["a2a"], "a2a": {"v": 1, "jti": new_message_id()}}
    token = jws.sign_detached(PAYLOAD, key=key, header=header)
    protected, _, signature = token.split(".")
    data = f"{protected}.{jws.encode(PAYLOAD)}".encode()
    deterministic, ecdsa = ec.ECDSA(hashes.SHA256(), deterministic_signing=True), ec.ECDSA(hashes.SHA256())
    der = key.sign(data, deterministic)
    private_jwk, public_jwk = jwk.JWK.from_pyca(key), jwk.JWK.from_pyca(public)
    compact = f"{protected}.{jws.encode(PAYLOAD)}.{signature}"
    header_text = json.dumps(header)
    registry = {"a2a": jwcrypto_jws.JWSEHeaderParameter("a2a", False, True, None)}  # type: ignore[attr-defined]

    def sign() -> str:
        return jws.sign_detached(PAYLOAD, key=key, header=header)

    def verify() -> dict[str, Any]:
        return jws.verify_detached(token, PAYLOAD, key=public, algorithms=("ES256",), typ="a2a-req+jws")

    def jwcrypto_sign() -> str:
        other = jwcrypto_jws.JWS(PAYLOAD, header_registry=registry)
        other.add_signature(private_jwk, protected=header_text)
        return str(other.serialize(compact=True))

    def jwcrypto_verify() -> None:
        other = jwcrypto_jws.JWS(header_registry=registry)
        other.deserialize(compact, public_jwk)

    return [
        compare("sign ES256, 1 KiB", sign, "raw primitive", lambda: key.sign(data, deterministic), "<= 1.4x"),
        compare("sign ES256, 1 KiB", sign, "jwcrypto", jwcrypto_sign, "< 1x"),
        compare("verify ES256, 1 KiB", verify, "raw primitive", lambda: public.verify(der, data, ecdsa), "<= 1.2x"),
        compare("verify ES256, 1 KiB", verify, "jwcrypto", jwcrypto_verify, "< 1x"),
    ]


def _requests() -> list[Row]:
    """A whole signed request: claims, certificate lookup, chain, binding, time."""
    now = datetime.now(UTC)
    forge = Forge()
    planner, billing = forge.leaf("/planner"), forge.leaf("/billing")
    verifier = PeerVerifier(forge.bundles)
    peer = verifier.verify(planner.chain_der, now=now, usage="client")
    target: dict[str, Any] = {"method": "POST", "url": "https://billing.example/a2a", "body": PAYLOAD, "version": "1.0"}
    jti = new_message_id()

    def sign() -> str:
        return sign_request(planner, **target, audience=billing.agent_id, now=now, jti=jti).jws

    token = sign()

    def verify() -> object:
        return authenticate_request(token, **target, audience=billing.agent_id, verifier=verifier, peer=peer, now=now)

    data = f"{token.split('.')[0]}.{jws.encode(PAYLOAD)}".encode()
    deterministic, ecdsa = ec.ECDSA(hashes.SHA256(), deterministic_signing=True), ec.ECDSA(hashes.SHA256())
    key: Any = planner.private_key
    public = key.public_key()
    der = key.sign(data, deterministic)
    return [
        compare("sign a request, 1 KiB", sign, "raw primitive", lambda: key.sign(data, deterministic), "-"),
        compare("verify a request, 1 KiB", verify, "raw primitive", lambda: public.verify(der, data, ecdsa), "-"),
    ]


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
