"""Agent Cards: ours verify in a2a-sdk and here, those of a2a-sdk verify here, and only for the agent that is meant."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from a2a.client import A2ACardResolver
from a2a.client.card_resolver import parse_agent_card
from a2a.server.routes import create_agent_card_routes
from a2a.utils.signing import _canonicalize_agent_card
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.applications import Starlette

from tests.cards import (
    BILLING,
    CARD,
    FORGE,
    HOST,
    KEYS,
    URL,
    agent_of,
    changed,
    sdk_signed,
    sdk_verifies,
    text,
    verified,
    x5c,
)
from tests.endpoints import WEB, over_web
from tests.forge import NOW
from trust.agent import agent_client, serving
from trust.authorize import exactly
from trust.errors import (
    CardAsksForLess,
    CardMalformed,
    CardNotCovered,
    CardOfAnother,
    CertificateExpired,
    ConfigurationError,
    IdentityError,
    KeysUnavailable,
    SignatureMissing,
    SignerUnknown,
)
from trust.identity import AgentID
from trust.oauth.keys import RemoteKeys, SigningKey, StaticKeys, public_jwks
from trust.signing import jws
from trust.signing.canonical import canonicalize_value
from trust.signing.card_form import MAX_CARD_BYTES
from trust.signing.cards import lint_card, sign_card, verifier_for_a2a

PARTNER = SigningKey.generate()
PINNED = StaticKeys(public_jwks([PARTNER]))
HERE = agent_of("/served", "localhost", HOST)  # its names in TLS, and in the card


@pytest.mark.parametrize(
    ("key", "alg"),
    [
        (ec.generate_private_key(ec.SECP256R1()), "ES256"),
        (ec.generate_private_key(ec.SECP384R1()), "ES384"),
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
    ],
    ids=["ES256", "ES384", "Ed25519"],
)
def test_what_is_signed_here_verifies_here(key: Any, alg: str) -> None:
    agent = agent_of("/billing", HOST, key=key)
    signed = sign_card(CARD, credentials=agent)
    assert signed.changes == ()
    assert json.loads(signed.text) == signed.card
    (signature,) = signed.card["signatures"]
    header = json.loads(jws.decode(signature["protected"]))
    assert header == {"alg": alg, "typ": "JOSE", "kid": agent.thumbprint, **x5c(agent)}
    for who in (agent.agent_id, URL):
        result = verified(signed.text, agent=who)
        assert (result.card, result.kid, result.uncovered) == (CARD, agent.thumbprint, ())
        assert result.signer is not None
        assert result.signer.agent_id == agent.agent_id
    assert verified(signed.card).card == CARD
    if alg != "Ed25519":  # PyJWT knows only the older name of the algorithm
        sdk_verifies(signed.text, key.public_key(), (alg,))


def test_the_bytes_that_are_signed_are_the_same_in_the_sdk() -> None:
    signed = sign_card(CARD, credentials=BILLING)
    canonical = canonicalize_value(changed(signed.card, signatures=None))
    assert _canonicalize_agent_card(parse_agent_card(json.loads(signed.text))).encode() == canonical
    assert sign_card(CARD, credentials=BILLING) == signed  # deterministic


def test_what_the_sdk_signs_verifies_here() -> None:
    with_chain = sdk_signed(CARD, **x5c(BILLING), jku="https://billing.fleet.example/jwks.json")
    assert verified(text(with_chain)).card == CARD
    signed = sdk_signed(CARD, PARTNER.private_key, kid=PARTNER.kid)
    result = verified(text(signed), keys=PINNED)
    assert (result.card, result.kid, result.signer) == (CARD, PARTNER.kid, None)
    assert "signer" not in repr(result)


def test_members_that_only_the_form_of_the_sdk_leaves_out_are_reported() -> None:
    card = changed(iconUrl="", provider={"organization": "Fleet", "url": "", "owner": "unknown"})
    signed = sdk_signed(card, **x5c(BILLING))
    with pytest.raises(CardNotCovered, match=r"provider\.owner"):
        verified(text(signed))
    result = verified(text(signed), sdk_form=True)
    assert result.uncovered == ("provider.url", "provider.owner", "iconUrl")
    assert result.card == changed(provider={"organization": "Fleet"})


def test_a_signature_over_the_document_covers_all_of_it() -> None:
    """Others may sign what the SDKs would leave out, and then nothing of it can be taken away."""
    card = changed(securitySchemes={"mtls": {"mtlsSecurityScheme": {}}}, note={"": []}, iconUrl=None)
    card["securityRequirements"] = [{"schemes": {"mtls": {"list": []}}}]
    header = {"typ": "JOSE", "kid": "k", **x5c(BILLING)}
    protected, _, signature = jws.sign_detached(canonicalize_value(card), key=BILLING.private_key, header=header).split(
        "."
    )
    signed = {**card, "signatures": [{"protected": protected, "signature": signature, "header": None}]}
    assert verified(text(signed)).card == card
    unprotected = {**card, "signatures": [{**signed["signatures"][0], "header": {"note": "unsigned"}}]}
    assert verified(text(unprotected)).card == card


def test_signing_says_what_it_changed() -> None:
    signed = sign_card(changed(iconUrl="", capabilities={}), credentials=BILLING)
    assert {finding.path for finding in signed.changes} == {"iconUrl", "capabilities"}
    assert verified(signed.text, agent=BILLING.agent_id).card == changed(capabilities={"streaming": False})


@pytest.mark.parametrize(
    "card",
    [
        changed(securityScheme={}),
        changed(skills=[]),
        changed(supportedInterfaces=[{**CARD["supportedInterfaces"][0], "url": "http://billing.fleet.example"}]),
        changed(securityRequirements=[{"schemes": {"mtls": {"list": ["spiffe"]}}}]),
        changed(securitySchemes={"mtls": CARD["securitySchemes"]["mtls"]}),
        changed(supportedInterfaces=[{**CARD["supportedInterfaces"][0], "url": "https://xn--a/"}]),
        changed(description="x" * (MAX_CARD_BYTES - 1500)),
    ],
    ids=["unknown member", "empty", "no TLS", "scheme required nowhere", "scheme missing", "no host", "large"],
)
def test_what_no_verifier_would_accept_is_not_signed(card: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        sign_card(card, credentials=BILLING)


@pytest.mark.parametrize("number", ["1e16", "9007199254740992.0", "1e20"])
def test_a_number_that_is_too_large_once_it_is_written_is_not_signed(number: str) -> None:
    """RFC 8785 writes these without a fraction; a verifier then has an integer that not every reader can hold."""
    document = text(CARD).replace(b'"ratio": 0.5', f'"ratio": {number}'.encode())
    assert document != text(CARD)
    with pytest.raises(ConfigurationError, match="no verifier would accept this card"):
        sign_card(document, credentials=BILLING)
    (finding,) = lint_card(document)
    assert not finding.mended and "would be refused" in finding.problem
    accepted = sign_card(text(CARD).replace(b'"ratio": 0.5', b'"ratio": 1e15'), credentials=BILLING)
    assert verified(accepted.text).card["capabilities"]["extensions"][0]["params"]["ratio"] == 10**15


def test_what_can_be_taken_out_of_a_card_of_the_sdk_unseen() -> None:
    """What `verify_card` says that it does not check; such a card is not signed here."""
    key = {"apiKeySecurityScheme": {"location": "header", "name": "k"}}
    mtls = {"list": ["spiffe"]}
    card = changed(
        securitySchemes={**CARD["securitySchemes"], "key": key},
        securityRequirements=[{"schemes": {**CARD["securityRequirements"][0]["schemes"], "key": {"list": []}}}],
        skills=[{**CARD["skills"][0], "securityRequirements": [{"schemes": {"mtls": mtls, "key": {"list": ["x"]}}}]}],
    )
    signed = sdk_signed(card, **x5c(BILLING))
    with pytest.raises(CardNotCovered):
        verified(text(signed))
    stripped = changed(signed, securityRequirements=CARD["securityRequirements"])
    assert verified(text(stripped)).uncovered == ()
    with pytest.raises(ConfigurationError, match=r"securityRequirements\[0\]\.schemes\.key"):
        sign_card(card, credentials=BILLING)

    bare = changed(
        securitySchemes={**CARD["securitySchemes"], "mtls": {"mtlsSecurityScheme": {}}},
        securityRequirements=[{"schemes": {"oauth2": {"list": ["agent:execute"]}, "mtls": {"list": []}}}],
    )
    stripped = changed(
        sdk_signed(bare, **x5c(BILLING)),
        securitySchemes={"oauth2": CARD["securitySchemes"]["oauth2"]},
        securityRequirements=[{"schemes": {"oauth2": {"list": ["agent:execute"]}}}],
    )
    with pytest.raises(CardAsksForLess):
        verified(text(stripped))
    assert verified(text(stripped), mtls=False).uncovered == ()


def test_who_signs() -> None:
    for nobody in ([], [BILLING] * 9):
        with pytest.raises(ConfigurationError):
            sign_card(CARD, credentials=nobody)
    post_quantum = agent_of("/billing", HOST, key=mldsa.MLDSA87PrivateKey.generate())
    with pytest.raises(ConfigurationError, match="ML-DSA-44 or -65"):
        sign_card(CARD, credentials=post_quantum)
    with pytest.raises(CardMalformed):
        sign_card(b"[]", credentials=BILLING)


def test_rotation() -> None:
    """Signed by the old key and the new one: it verifies until the last of them has expired."""
    old = agent_of("/billing", HOST, not_after=NOW + timedelta(hours=1))
    new = agent_of("/billing", HOST, not_after=NOW + timedelta(hours=9))
    signed = sign_card(CARD, credentials=[old, new])
    assert len(signed.card["signatures"]) == 2
    assert verified(signed.card).kid == old.thumbprint
    assert verified(signed.card, now=NOW + timedelta(hours=2)).kid == new.thumbprint
    with pytest.raises(CertificateExpired):
        verified(signed.card, now=NOW + timedelta(hours=10))
    assert len(sign_card(signed.card, credentials=new).card["signatures"]) == 1


@pytest.mark.parametrize(
    "agent", ["http://billing.fleet.example", "billing", "https://u@billing.fleet.example", "https://xn--a/", "", None]
)
def test_an_agent_is_an_id_or_an_https_url(agent: Any) -> None:
    with pytest.raises(ConfigurationError):
        verified(CARD, agent=agent)


def test_time_has_a_zone() -> None:
    with pytest.raises(IdentityError):
        verified(CARD, now=NOW.replace(tzinfo=None))


def test_pinned_keys_speak_for_the_origin_that_they_are_pinned_for() -> None:
    signed = text(sdk_signed(CARD, PARTNER.private_key, kid=PARTNER.kid))
    for agent in (URL, f"https://{HOST}:443/elsewhere", AgentID.parse("spiffe://partner.example/billing")):
        assert verified(signed, keys=PINNED, agent=agent).card == CARD
    for agent in ("https://mallory.example", f"https://{HOST}:8443", f"https://x.{HOST}"):
        with pytest.raises(CardOfAnother):
            verified(signed, keys=PINNED, agent=agent)
    for unknown in (SigningKey.generate(), BILLING):
        kid = getattr(unknown, "kid", "none")
        with pytest.raises(SignerUnknown):
            verified(text(sdk_signed(CARD, unknown.private_key, kid=kid)), keys=PINNED)


def test_keys_from_a_url_that_the_configuration_names(tmp_path: Path) -> None:
    async def jwks(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"application/jwk-set+json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(public_jwks([PARTNER])).encode()})

    async def main() -> None:
        context = ssl.create_default_context(cadata=WEB.bundle.roots[0].public_bytes(Encoding.PEM).decode())
        async with over_web(jwks, tmp_path) as url, httpx.AsyncClient(verify=context) as http:
            keys = RemoteKeys(url, http)
            signed = text(sdk_signed(CARD, PARTNER.private_key, kid=PARTNER.kid))
            with pytest.raises(KeysUnavailable):
                verified(signed, keys=keys, agent=URL)
            await keys.prepare(None, now=NOW)
            assert verified(signed, keys=keys, agent=URL).kid == PARTNER.kid

    asyncio.run(main())


@asynccontextmanager
async def served(card: dict[str, Any]) -> AsyncIterator[tuple[str, httpx.AsyncClient]]:
    """The card at an agent that a2a-sdk serves over mTLS, and a client of it."""
    app = Starlette(routes=create_agent_card_routes(parse_agent_card(card)))
    async with (
        serving(app, source=HERE, bundles=FORGE.bundles, authorize=exactly(BILLING.agent_id), lifespan="off") as server,
        agent_client(source=BILLING, bundles=FORGE.bundles, authorize=exactly(HERE.agent_id)) as http,
    ):
        yield server.url, http


def test_as_the_signature_verifier_of_the_sdk() -> None:
    hook = {"keys": KEYS, "clock": lambda: NOW}
    good = verifier_for_a2a(agent=HERE.agent_id, **hook)  # type: ignore[arg-type]
    other = verifier_for_a2a(agent=BILLING.agent_id, **hook)  # type: ignore[arg-type]

    async def main() -> None:
        signed = sign_card(CARD, credentials=HERE)
        async with served(json.loads(signed.text)) as (url, http):
            resolver = A2ACardResolver(http, url)
            assert (await resolver.get_agent_card(signature_verifier=good)).name == "billing"
            with pytest.raises(CardOfAnother):
                await resolver.get_agent_card(signature_verifier=other)
            # What the SDK serves of a card that is signed here is the document that was signed.
            document = (await http.get(f"{url}/.well-known/agent-card.json")).content
            assert verified(document, agent=HERE.agent_id).card == CARD
        async with served(changed(CARD)) as (url, http):
            with pytest.raises(SignatureMissing):
                await A2ACardResolver(http, url).get_agent_card(signature_verifier=good)
        bare = changed(securitySchemes={**CARD["securitySchemes"], "mtls": {"mtlsSecurityScheme": {}}})
        async with served(sdk_signed(bare, HERE.private_key, **x5c(HERE))) as (url, http):
            with pytest.raises(CardNotCovered):
                await A2ACardResolver(http, url).get_agent_card(signature_verifier=good)

    asyncio.run(main())


def test_lint() -> None:
    assert lint_card(CARD) == []
    assert lint_card(sign_card(CARD, credentials=BILLING).card) == []
    with_a_token = changed(
        securityRequirements=[{"schemes": {"oauth2": {"list": ["agent:execute"]}}}],
        securitySchemes={"oauth2": CARD["securitySchemes"]["oauth2"]},
    )
    open_to_all = sign_card(with_a_token, credentials=BILLING).card
    assert lint_card(open_to_all) and lint_card(open_to_all, mtls=False) == []
    findings = lint_card(
        changed(
            iconUrl="",
            skills=[],
            supportedInterfaces=[{**CARD["supportedInterfaces"][0], "url": "http://a.example"}],
            securityRequirements=[{"schemes": {"oauth2": {"list": ["agent:execute"]}}}],
        )
    )
    assert [(finding.path, bool(finding.mended)) for finding in findings] == [
        ("iconUrl", True),
        ("skills", False),
        ("card", False),
        ("card", False),
    ]
