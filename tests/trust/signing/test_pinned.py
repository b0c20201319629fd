"""Messages by partners whose keys are pinned: as JWKs, or at a URL that the configuration names."""

from __future__ import annotations

import asyncio
import json
import ssl
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa
from cryptography.hazmat.primitives.serialization import Encoding
from jwcrypto import jws as jwcrypto_jws
from jwcrypto.jwk import JWK

from tests.a2a_objects import EXAMPLES
from tests.endpoints import WEB, Endpoint, over_web
from tests.forge import NOW, Forge
from trust.authorize import exactly
from trust.errors import AuthorUnclear, ConfigurationError, KeysUnavailable, SignerUnknown
from trust.identity import AgentID
from trust.oauth.keys import RemoteKeys, StaticKeys, remote
from trust.oauth.keys.remote import FAILURE_REST, FRESH
from trust.peers import PeerVerifier
from trust.signing.envelope import DEFAULT_ALGORITHMS, VerifiedMessage
from trust.signing.http import new_message_id
from trust.signing.messages import EXTENSION, authenticate_message, sign_message
from trust.signing.pinned import PinnedAgents, PinnedSigner
from trust.signing.proto_json import KINDS, Kind, canonical_form

FORGE = Forge()
BILLING = FORGE.leaf("/billing")
RELAY = FORGE.leaf("/relay")
PARTNER = AgentID.parse("spiffe://partner.example/planner")
OTHER = AgentID.parse("spiffe://other.example/planner")
KEYS = {
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    "ML-DSA-44": mldsa.MLDSA44PrivateKey.generate(),
    "ML-DSA-65": mldsa.MLDSA65PrivateKey.generate(),
}
KEY = KEYS["ES256"]
ALL = (*DEFAULT_ALGORITHMS, "ML-DSA-44", "ML-DSA-65")


def jwks(**keys: Any) -> dict[str, Any]:
    return {
        "keys": [
            {**JWK.from_pyca(key.public_key()).export_public(as_dict=True), "kid": kid} for kid, key in keys.items()
        ]
    }


def signed_elsewhere(
    key: Any = KEY,
    alg: str = "ES256",
    kid: str = "k",
    kind: Kind = "Message",
    issuer: AgentID = PARTNER,
    message: dict[str, Any] | None = None,
    now: datetime = NOW,
) -> dict[str, Any]:
    """By another library, from what the wire format says. Signatures that are there already stay."""
    value = json.loads(json.dumps(EXAMPLES[kind] if message is None else message))
    beside = value.get("metadata", {}).pop(EXTENSION, {"signatures": []})["signatures"]
    payload = canonical_form(kind, value)
    header = {
        "alg": alg,
        "typ": "a2a-msg+jws",
        "crit": ["a2a"],
        "kid": kid,
        "a2a": {
            "v": 1,
            "iss": str(issuer),
            "aud": str(BILLING.agent_id),
            "iat": int(now.timestamp()),
            "exp": int(now.timestamp()) + 60,
            "jti": new_message_id(),
            "kind": kind,
        },
    }
    signer = jwcrypto_jws.JWS(
        payload, header_registry={"a2a": jwcrypto_jws.JWSEHeaderParameter("a2a", False, True, None)}
    )
    signer.allowed_algs = [alg]
    signer.add_signature(JWK.from_pyca(key), protected=json.dumps(header))
    protected, _, signature = signer.serialize(compact=True).split(".")
    signed = json.loads(payload)
    entries = [*beside, {"protected": protected, "signature": signature}]
    signed.setdefault("metadata", {})[EXTENSION] = {"signatures": entries}
    return signed


def authenticate(message: Any, kind: Kind = "Message", **changes: Any) -> VerifiedMessage:
    settings: dict[str, Any] = {
        "audience": BILLING.agent_id,
        "verifier": PinnedAgents({PARTNER: StaticKeys(jwks(k=KEY))}),
        "now": NOW,
        "signers": exactly(PARTNER),
        **changes,
    }
    return authenticate_message(message, kind, **settings)


@pytest.mark.parametrize("alg", KEYS)
def test_what_another_library_signs_verifies_with_the_pinned_key(alg: str) -> None:
    verifier = PinnedAgents({str(PARTNER): StaticKeys(jwks(k=KEYS[alg]))})
    verified = authenticate(signed_elsewhere(KEYS[alg], alg), verifier=verifier, algorithms=ALL)
    assert isinstance(verified.signer, PinnedSigner)
    assert (verified.signer.agent_id, verified.signer.kid) == (PARTNER, "k")
    assert verified.signer.public_key == KEYS[alg].public_key()
    assert verified.header["alg"] == alg


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind: Kind) -> None:
    verified = authenticate(json.dumps(signed_elsewhere(kind=kind)).encode(), kind)
    assert verified.payload == canonical_form(kind, EXAMPLES[kind])


def test_keys_at_a_url_that_the_configuration_names(tmp_path: Path) -> None:
    """Fetched before, never because of a message; a new key is used once it is published, an old one until it goes."""
    new = ec.generate_private_key(ec.SECP256R1())

    async def main() -> None:
        endpoint = Endpoint(json.dumps(jwks(k=KEY)).encode())
        context = ssl.create_default_context(cadata=WEB.root.public_bytes(Encoding.PEM).decode())
        async with over_web(endpoint, tmp_path) as url, httpx.AsyncClient(verify=context) as http:
            agents = PinnedAgents({PARTNER: RemoteKeys(url, http), OTHER: RemoteKeys("https://localhost:1/jwks", http)})
            with pytest.raises(KeysUnavailable):
                authenticate(signed_elsewhere(), verifier=agents)
            assert endpoint.asked == []
            await agents.prepare(now=NOW)  # although the keys of the other one cannot be had
            assert authenticate(signed_elsewhere(), verifier=agents).signer.agent_id == PARTNER
            with pytest.raises(KeysUnavailable):
                authenticate(signed_elsewhere(issuer=OTHER), verifier=agents, signers=exactly(OTHER))
            with pytest.raises(SignerUnknown):
                authenticate(signed_elsewhere(new, kid="new"), verifier=agents)
            assert len(endpoint.asked) == 1
            endpoint.document = json.dumps(jwks(new=new)).encode()
            await agents.prepare(now=NOW + FRESH)  # starts a fetch, and nobody waits: the old keys are good still
            assert authenticate(signed_elsewhere(), verifier=agents).signer.agent_id == PARTNER
            async with asyncio.timeout(20):
                while len(endpoint.asked) < 2 or not known(agents, signed_elsewhere(new, kid="new")):
                    await asyncio.sleep(0.005)
            with pytest.raises(SignerUnknown):
                authenticate(signed_elsewhere(), verifier=agents)

    asyncio.run(main())


def known(agents: PinnedAgents, message: Any) -> bool:
    try:
        return authenticate(message, verifier=agents).signer.agent_id == PARTNER
    except SignerUnknown:
        return False


def test_nobody_waits_for_keys_that_could_not_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, asked, answer = Endpoint(json.dumps(jwks(k=KEY)).encode()), asyncio.Event(), asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        asked.set()
        await answer.wait()
        await endpoint(scope, receive, send)

    async def main() -> None:
        context = ssl.create_default_context(cadata=WEB.root.public_bytes(Encoding.PEM).decode())
        async with over_web(slow, tmp_path) as url, httpx.AsyncClient(verify=context, timeout=None) as http:
            agents = PinnedAgents({PARTNER: StaticKeys(jwks(k=KEY)), OTHER: RemoteKeys(url, http)})
            monkeypatch.setattr(remote, "FETCH_SECONDS", 0.2)
            await agents.prepare(now=NOW)
            monkeypatch.setattr(remote, "FETCH_SECONDS", 60)
            asked.clear()
            async with asyncio.timeout(20):
                for _ in range(3):
                    await agents.prepare(now=NOW + FAILURE_REST)
                await asked.wait()
                assert authenticate(signed_elsewhere(), verifier=agents).signer.agent_id == PARTNER
                with pytest.raises(KeysUnavailable):
                    authenticate(signed_elsewhere(issuer=OTHER), verifier=agents, signers=exactly(OTHER))
                answer.set()
                while agents._away:
                    await asyncio.sleep(0.01)
            verified = authenticate(signed_elsewhere(issuer=OTHER), verifier=agents, signers=exactly(OTHER))
            assert verified.signer.agent_id == OTHER
            answer.clear()
            asked.clear()
            async with asyncio.timeout(20):
                await agents.prepare(now=NOW + FAILURE_REST + FRESH)  # fetched again, and nobody waits
                await asked.wait()
                assert (
                    authenticate(
                        signed_elsewhere(issuer=OTHER), verifier=agents, signers=exactly(OTHER)
                    ).signer.agent_id
                    == OTHER
                )
                answer.set()

    asyncio.run(main())


def test_by_a_certificate_and_by_a_key_side_by_side() -> None:
    """Each verifier reads the signature that is made for it."""
    author = FORGE.leaf("/planner")
    ours = {"audience": BILLING.agent_id, "now": NOW, "jti": new_message_id()}
    signed = sign_message(EXAMPLES["Message"], "Message", credentials=author, **ours)  # type: ignore[arg-type]
    both = signed_elsewhere(issuer=author.agent_id, message=signed)
    assert len(both["metadata"][EXTENSION]["signatures"]) == 2
    either = exactly(author.agent_id)
    by_key = authenticate(both, verifier=PinnedAgents({author.agent_id: StaticKeys(jwks(k=KEY))}), signers=either)
    assert isinstance(by_key.signer, PinnedSigner)
    by_certificate = authenticate(both, verifier=PeerVerifier(FORGE.bundles), signers=either)
    assert by_certificate.signer.public_key == author.private_key.public_key()
    assert by_key.digest != by_certificate.digest
    with pytest.raises(AuthorUnclear):  # two of one kind
        authenticate(
            signed_elsewhere(issuer=author.agent_id, message=both),
            verifier=PinnedAgents({author.agent_id: StaticKeys(jwks(k=KEY))}),
            signers=either,
        )


def test_a_relay_with_a_certificate_passes_on_what_a_partner_signed() -> None:
    author = authenticate(signed := signed_elsewhere())
    relayed = sign_message(
        signed,
        "Message",
        credentials=RELAY,
        audience=BILLING.agent_id,
        now=NOW,
        jti=new_message_id(),
        relaying=author,
    )
    assert authenticate(relayed).jws == author.jws
    by_relay = authenticate(
        relayed, verifier=PeerVerifier(FORGE.bundles), signers=exactly(RELAY.agent_id), relayed=author
    )
    assert by_relay.signer.agent_id == RELAY.agent_id


def test_there_is_no_evidence_of_what_only_our_configuration_says() -> None:
    verified = authenticate(signed_elsewhere())
    with pytest.raises(ConfigurationError, match="pinned key"):
        verified.evidence(credentials=BILLING, verifier=PeerVerifier(FORGE.bundles), jti=new_message_id())


def test_how_a_signer_is_shown() -> None:
    assert repr(authenticate(signed_elsewhere()).signer) == f"PinnedSigner(agent_id={PARTNER!r}, kid='k')"
