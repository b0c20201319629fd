"""Agent Cards between us and @a2a-js/sdk: each verifies what the other signs, over the same bytes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jwcrypto.jwk import JWK

from tests.cards import BILLING, CARD, HOST, URL, agent_of, changed, sdk_signed, text, verified, without, x5c
from tests.interop.programs import needs
from tests.trust.oauth.test_cards import EACH, SKILLED, skilled_of_0_3
from tests.trust.signing.test_card_form import cards, of_the_sdk
from trust.errors import CardAsksForLess, CardMalformed, CardNotCovered, CardOfAnother, SignatureWrong
from trust.oauth.cards import read_card, secured
from trust.signing.canonical import canonicalize_value
from trust.signing.card_form import covered
from trust.signing.cards import sign_card

pytestmark = [pytest.mark.slow, needs("node", "npm")]

Ask = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def ask(js: Path) -> Ask:
    """Answers of the SDK to many questions in one process."""

    def questions(*asked: dict[str, Any]) -> list[dict[str, Any]]:
        command = ["node", js / "cards.mjs"]
        done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        answers: list[dict[str, Any]] = json.loads(done.stdout)
        assert len(answers) == len(asked)
        return answers

    return questions


def jwk(key: Any, private: bool = False) -> dict[str, Any]:
    made = JWK.from_pyca(key)
    members: dict[str, Any] = made.export_private(as_dict=True) if private else made.export_public(as_dict=True)
    return members


NEWER = secured(SKILLED, EACH)
AGENTS = {
    "ES256": BILLING,
    "ES384": agent_of("/billing", HOST, key=ec.generate_private_key(ec.SECP384R1())),
    "Ed25519": agent_of("/billing", HOST, key=ed25519.Ed25519PrivateKey.generate()),
}


def verify(card: dict[str, Any], agent: Any = BILLING, alg: str = "ES256") -> dict[str, Any]:
    return {"do": "verify", "card": card, "key": jwk(agent.private_key.public_key()), "alg": alg}


def sign(card: dict[str, Any], agent: Any = BILLING, alg: str = "ES256", **header: Any) -> dict[str, Any]:
    protected = {"alg": alg, "typ": "JOSE", "kid": "key-1", **x5c(agent), **header}
    return {"do": "sign", "card": card, "key": jwk(agent.private_key, private=True), "header": protected}


def read(card: dict[str, Any]) -> dict[str, Any]:
    return {"do": "read", "card": card}


def test_our_cards_verify_there(ask: Ask) -> None:
    ours = {alg: sign_card(CARD, credentials=agent).card for alg, agent in AGENTS.items()}
    answers = ask(*(verify(card, AGENTS[alg], alg) for alg, card in ours.items()))
    assert answers == [{"ok": True}] * 3
    (changed_one,) = ask(verify(changed(ours["ES256"], name="mallory")))
    assert "error" in changed_one


def test_their_cards_verify_here(ask: Ask) -> None:
    answers = ask(*(sign(CARD, agent, alg, jku="https://x.example") for alg, agent in AGENTS.items()))
    for alg, answer in zip(AGENTS, answers, strict=True):
        assert verified(text(answer["ok"]), agent=URL).card == CARD, alg
        with pytest.raises(SignatureWrong):
            verified(text(changed(answer["ok"], name="mallory")))
        with pytest.raises(CardOfAnother):
            verified(text(answer["ok"]), agent="https://mallory.example")


def test_cards_of_the_two_sdks_verify_in_each_other(ask: Ask) -> None:
    """Which is what makes ours a third implementation, and not a second."""
    assert ask(verify(sdk_signed(CARD))) == [{"ok": True}]


def test_the_same_bytes(ask: Ask) -> None:
    signed = sign_card(CARD, credentials=BILLING).card
    (answer,) = ask({"do": "canonical", "card": signed})
    assert answer["ok"].encode() == canonicalize_value(CARD) == of_the_sdk(CARD)


@given(st.lists(cards, min_size=40, max_size=40))
@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_is_covered_is_what_they_sign(ask: Ask, many: list[dict[str, Any]]) -> None:
    answers = ask(*({"do": "canonical", "card": card} for card in many))
    for card, answer in zip(many, answers, strict=True):
        assert answer["ok"].encode() == canonicalize_value(covered(card)[0])


def test_their_verifier_lets_through_what_ours_does_not(ask: Ask) -> None:
    bare = changed(
        securitySchemes={**CARD["securitySchemes"], "mtls": {"mtlsSecurityScheme": {}}},
        securityRequirements=[{"schemes": {"oauth2": {"list": ["agent:execute"]}, "mtls": {"list": []}}}],
    )
    (signed,) = (answer["ok"] for answer in ask(sign(bare)))
    stripped = without(without(signed, "securitySchemes", "mtls"), "securityRequirements", 0, "schemes", "mtls")
    unknown = changed(signed, endpoint="https://mallory.example")
    hidden = json.loads(json.dumps(sign_card(CARD, credentials=BILLING).card))
    hidden["securitySchemes"]["__proto__"] = {"mtlsSecurityScheme": {"description": "x"}}
    documents = {"bare": signed, "stripped": stripped, "unknown": unknown, "hidden": hidden}
    assert ask(*(verify(card) for card in documents.values())) == [{"ok": True}] * 4
    for name, error in [
        ("bare", CardNotCovered),
        ("stripped", CardAsksForLess),
        ("unknown", CardNotCovered),
        ("hidden", CardMalformed),
    ]:
        with pytest.raises(error) as caught:
            verified(text(documents[name]))
        assert type(caught.value) is error


def test_they_read_what_a_gate_requires(ask: Ask) -> None:
    """The older form as the newer one: no scope and no scheme is lost to a client of either."""
    older, newer = (answer["ok"] for answer in ask(read(secured(skilled_of_0_3(), EACH, form="0.3")), read(NEWER)))
    for card in (older, newer):
        assert card["securitySchemes"] == NEWER["securitySchemes"]
        assert card["securityRequirements"] == NEWER["securityRequirements"]
        required = [skill["securityRequirements"] for skill in NEWER["skills"]]
        assert [skill["securityRequirements"] for skill in card["skills"]] == required
        assert read_card(card) == read_card(NEWER)
