"""Attacks on signed Agent Cards: each is first let through by a2a-sdk's own verifier, and then refused by ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from a2a.client.card_resolver import parse_agent_card
from a2a.utils.signing import InvalidSignaturesError, create_agent_card_signer
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.cards import (
    BILLING,
    CARD,
    FORGE,
    HOST,
    URL,
    agent_of,
    changed,
    sdk_signed,
    sdk_verifies,
    text,
    verified,
    without,
    x5c,
)
from tests.forge import NOW, Forge
from trust.errors import (
    AlgorithmRefused,
    CardAsksForLess,
    CardMalformed,
    CardNotCovered,
    CardOfAnother,
    CertificateExpired,
    CertificateRevoked,
    CriticalHeaderRefused,
    HeaderMalformed,
    SignatureError,
    SignatureMalformed,
    SignatureMissing,
    SignatureWrong,
    SignerUnknown,
    TypeWrong,
    UnknownTrustDomain,
    WrongExtendedKeyUsage,
)
from trust.peers import PeerVerifier
from trust.signing import algorithms, jws
from trust.signing.canonical import canonicalize_value
from trust.signing.cards import MAX_SIGNATURES, sign_card

OURS = sign_card(CARD, credentials=BILLING).card
MALLORY = agent_of("/mallory", "mallory.fleet.example")
FOREIGN = agent_of("/billing", HOST, forge=Forge("evil.example"))
CLIENT = agent_of("/billing", HOST, eku=[ExtendedKeyUsageOID.CLIENT_AUTH])
STRANGER = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)
SECRET = "a secret that the two sides share, of 32 bytes or more"
OLD = agent_of("/billing", HOST, not_before=NOW - timedelta(hours=9), not_after=NOW - timedelta(hours=1))

SCHEMES = CARD["securitySchemes"]
BARE_MTLS = {"mtlsSecurityScheme": {}}


def requiring(**alternative: list[str]) -> list[dict[str, Any]]:
    return [{"schemes": {name: {"list": scopes} for name, scopes in alternative.items()}}]


# As an agent would write it who reads the specification: nothing in it is wrong.
BARE = changed(
    securitySchemes={"oauth2": SCHEMES["oauth2"], "mtls": BARE_MTLS},
    securityRequirements=requiring(oauth2=["agent:execute"], mtls=[]),
)
DESCRIBED = changed(BARE, securitySchemes=SCHEMES)
WITH_ROLE = changed(BARE, securityRequirements=requiring(oauth2=["agent:execute"], mtls=["spiffe"]))
WITH_BEARER = changed(
    securitySchemes={**SCHEMES, "bearer": {"httpAuthSecurityScheme": {"scheme": "Bearer"}}},
    securityRequirements=requiring(mtls=["spiffe"], bearer=[]),
)
del WITH_BEARER["securitySchemes"]["oauth2"]


def by_sdk(card: Mapping[str, Any], credentials: Any = BILLING, **header: Any) -> dict[str, Any]:
    """Signed by a2a-sdk with the header that our verifier wants: only the form is the SDK's."""
    return sdk_signed(card, credentials.private_key, **{**x5c(credentials), **header})


def respelled(protected: bytes, card: Mapping[str, Any] = CARD) -> dict[str, Any]:
    """Signed, with this text of a header."""
    encoded = jws.encode(protected)
    _, sign = algorithms.signer(BILLING.private_key)
    signature = jws.encode(sign(f"{encoded}.{jws.encode(canonicalize_value(card))}".encode()))
    return {**card, "signatures": [{"protected": encoded, "signature": signature}]}


HEADER = {"alg": "ES256", "typ": "JOSE", "kid": "key-1", **x5c(BILLING)}


def entry(card: Mapping[str, Any], **members: Any) -> dict[str, Any]:
    """With other members in its first signature."""
    first, *others = card["signatures"]
    return {**card, "signatures": [{**first, **members}, *others]}


@dataclass(frozen=True, kw_only=True)
class Attack:
    document: bytes
    refused: type[Exception]
    by_sdk: dict[str, Any] = field(default_factory=dict)  # what its verifier is configured with
    ours: dict[str, Any] = field(default_factory=dict)


def attack(document: bytes | Mapping[str, Any], refused: type[Exception], **settings: Any) -> Attack:
    raw = document if isinstance(document, bytes) else text(document)
    sdk = {"key": settings.pop("sdk_key")} if "sdk_key" in settings else {}
    sdk |= {name: settings.pop(name) for name in ("algorithms", "provider") if name in settings}
    if "ours_algorithms" in settings:
        settings["algorithms"] = settings.pop("ours_algorithms")
    return Attack(document=raw, refused=refused, by_sdk=sdk, ours=settings)


ATTACKS: dict[str, Attack] = {
    # Downgrades: what the SDKs' form does not hold can be taken out, or is not signed from the start.
    "mTLS scheme that no signature covers": attack(by_sdk(BARE), CardNotCovered),
    "the same, where the SDKs' form is allowed": attack(by_sdk(BARE), CardNotCovered, sdk_form=True),
    "mTLS scheme and its requirement taken out": attack(
        without(without(by_sdk(BARE), "securitySchemes", "mtls"), "securityRequirements", 0, "schemes", "mtls"),
        CardAsksForLess,
    ),
    "mTLS scheme taken out": attack(without(by_sdk(WITH_ROLE), "securitySchemes", "mtls"), CardAsksForLess, mtls=False),
    "requirement without scopes that no signature covers": attack(by_sdk(DESCRIBED), CardNotCovered, sdk_form=True),
    "requirement without scopes taken out": attack(
        without(by_sdk(DESCRIBED), "securityRequirements", 0, "schemes", "mtls"), CardAsksForLess, mtls=False
    ),
    "bearer requirement without scopes taken out": attack(
        without(by_sdk(WITH_BEARER), "securityRequirements", 0, "schemes", "bearer"), CardAsksForLess
    ),
    "all requirements taken out": attack(
        without(by_sdk(changed(DESCRIBED, securityRequirements=requiring(mtls=[]))), "securityRequirements"),
        CardAsksForLess,
    ),
    "requirement of a skill taken out": attack(
        without(
            by_sdk(
                changed(
                    securitySchemes={**SCHEMES, "key": {"apiKeySecurityScheme": {"location": "header", "name": "k"}}},
                    skills=[{**CARD["skills"][0], "securityRequirements": requiring(mtls=["spiffe"], key=[])}],
                )
            ),
            *("skills", 0, "securityRequirements", 0, "schemes", "key"),
        ),
        CardAsksForLess,
    ),
    "alternative without mTLS": attack(
        by_sdk(changed(securityRequirements=[*CARD["securityRequirements"], *requiring(oauth2=["agent:execute"])])),
        CardAsksForLess,
    ),
    "skill without mTLS": attack(
        by_sdk(changed(skills=[{**CARD["skills"][0], "securityRequirements": requiring(oauth2=["agent:execute"])}])),
        CardAsksForLess,
    ),
    "scopes with empty descriptions, which come and go": attack(
        by_sdk(
            changed(
                securitySchemes={
                    **SCHEMES,
                    "oauth2": {
                        "oauth2SecurityScheme": {
                            "flows": {"clientCredentials": {"tokenUrl": "https://a.example", "scopes": {"x": ""}}}
                        }
                    },
                }
            )
        ),
        CardNotCovered,
        sdk_form=True,
    ),
    "mTLS scheme with a name that JavaScript drops": attack(
        by_sdk(
            changed(
                securitySchemes={**SCHEMES, "__proto__": SCHEMES["mtls"]},
                securityRequirements=requiring(oauth2=["agent:execute"], **{"__proto__": ["spiffe"]})
                + requiring(mtls=["spiffe"]),
            )
        ),
        CardMalformed,
    ),
    # What stands in the document beside what is signed.
    "unknown member": attack(changed(OURS, priority="use me first"), CardNotCovered),
    "unknown member of a skill": attack(
        changed(OURS, skills=[{**CARD["skills"][0], "endpoint": "https://mallory.example"}]), CardNotCovered
    ),
    "members of A2A 0.3": attack(changed(OURS, url="https://mallory.example/", preferredTransport="X"), CardNotCovered),
    "security of A2A 0.3": attack(changed(OURS, security=[]), CardNotCovered, sdk_form=True),
    "empty and default members": attack(
        changed(OURS, iconUrl="", capabilities={**CARD["capabilities"], "pushNotifications": None}), CardNotCovered
    ),
    "member twice": attack(b'{"name":"mallory",' + text(OURS)[1:], CardMalformed),
    "signatures twice": attack(b'{"signatures":[],' + text(OURS)[1:], CardMalformed),
    # A card that is somebody's, and not this agent's.
    "card of another agent": attack(
        sign_card(changed(), credentials=MALLORY).card, CardOfAnother, sdk_key=MALLORY.private_key.public_key()
    ),
    "card that another host replays": attack(OURS, CardOfAnother, agent="https://mallory.example/card.json"),
    "card that another agent replays": attack(OURS, CardOfAnother, agent=MALLORY.agent_id),
    "card that leads to another host": attack(
        by_sdk(
            changed(
                supportedInterfaces=[
                    *CARD["supportedInterfaces"],
                    {"url": "https://mallory.example/a2a", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"},
                ]
            )
        ),
        CardOfAnother,
        agent=URL,
    ),
    "same ID in another trust domain": attack(
        by_sdk(CARD, FOREIGN), UnknownTrustDomain, sdk_key=FOREIGN.private_key.public_key()
    ),
    "interface without TLS": attack(
        by_sdk(changed(supportedInterfaces=[{**CARD["supportedInterfaces"][0], "url": f"http://{HOST}/a2a"}])),
        CardMalformed,
    ),
    "interface at a host that no resolver would ask for": attack(
        by_sdk(changed(supportedInterfaces=[{**CARD["supportedInterfaces"][0], "url": "https://xn--a/"}])),
        CardMalformed,
    ),
    # The signer chooses.
    "keys from the signer's jku": attack(
        sdk_signed(CARD, STRANGER, jku="https://mallory.example/jwks.json"),
        SignerUnknown,
        provider=lambda kid, jku: STRANGER.public_key() if jku else None,
    ),
    "key in the header": attack(by_sdk(CARD, jwk={"kty": "EC"}), HeaderMalformed),
    "chain by URL": attack(by_sdk(CARD, x5u="https://mallory.example/chain.pem"), HeaderMalformed),
    "chain of another signer": attack(
        sdk_signed(CARD, STRANGER, **x5c(BILLING)), SignatureWrong, sdk_key=STRANGER.public_key()
    ),
    "thumbprint of another certificate": attack(by_sdk(CARD, **{"x5t#S256": MALLORY.thumbprint}), SignerUnknown),
    "HS256, which a2a-sdk signs with by default": attack(
        sdk_signed(CARD, SECRET, alg=None), AlgorithmRefused, sdk_key=SECRET, algorithms=("HS256",)
    ),
    "HS256, allowed by mistake": attack(
        sdk_signed(CARD, SECRET, alg="HS256"),
        AlgorithmRefused,
        sdk_key=SECRET,
        algorithms=("HS256",),
        ours_algorithms=("HS256", "ES256"),
    ),
    "RS256, allowed by mistake": attack(
        sdk_signed(CARD, RSA, alg="RS256"),
        AlgorithmRefused,
        sdk_key=RSA.public_key(),
        algorithms=("RS256",),
        ours_algorithms=("RS256", "ES256"),
    ),
    "typ of a token": attack(by_sdk(CARD, typ="JWT"), TypeWrong),
    "no key ID": attack(by_sdk(CARD, kid=None), HeaderMalformed),
    "empty key ID": attack(by_sdk(CARD, kid=""), HeaderMalformed),
    "key ID that fills a log": attack(by_sdk(CARD, kid="k" * 300), HeaderMalformed),
    "header member twice": attack(respelled(b'{"alg":"none",' + json.dumps(HEADER).encode()[1:]), HeaderMalformed),
    "unprotected header that says otherwise": attack(entry(OURS, header={"alg": "ES384"}), HeaderMalformed),
    "signature with padding": attack(
        entry(OURS, signature=OURS["signatures"][0]["signature"] + "=="), SignatureMalformed
    ),
    # Time, and amounts.
    "key of a client only": attack(
        by_sdk(CARD, CLIENT), WrongExtendedKeyUsage, sdk_key=CLIENT.private_key.public_key()
    ),
    "expired key": attack(by_sdk(CARD, OLD), CertificateExpired, sdk_key=OLD.private_key.public_key()),
    "key that has expired since": attack(OURS, CertificateExpired, now=NOW + timedelta(days=2)),
    "revoked key": attack(OURS, CertificateRevoked, keys=PeerVerifier(FORGE.bundles, FORGE.crls(BILLING))),
    "a heap of signatures": attack(changed(OURS, signatures=OURS["signatures"] * 5000), CardMalformed),
    "one signature too many": attack(
        changed(OURS, signatures=OURS["signatures"] * (MAX_SIGNATURES + 1)), CardMalformed
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_sdk_lets_it_through_and_we_do_not(name: str) -> None:
    attack = ATTACKS[name]
    sdk_verifies(attack.document, **attack.by_sdk)
    with pytest.raises(attack.refused) as caught:
        verified(attack.document, **attack.ours)
    assert type(caught.value) is attack.refused


def test_what_the_attacks_change_verifies() -> None:
    for document in (OURS, by_sdk(CARD), respelled(json.dumps(HEADER).encode())):
        sdk_verifies(text(document))
        assert verified(text(document)).card == CARD
    assert verified(text(by_sdk(WITH_BEARER | {"securityRequirements": requiring(mtls=["x"], bearer=["y"])}))).card


BOTH_REFUSE: dict[str, tuple[Callable[[], Mapping[str, Any]], type[SignatureError]]] = {
    "member changed": (lambda: changed(OURS, name="mallory"), SignatureWrong),
    "requirement changed": (
        lambda: changed(OURS, securityRequirements=requiring(oauth2=["agent:read"], mtls=["spiffe"])),
        SignatureWrong,
    ),
    "mTLS requirement taken out": (
        lambda: without(OURS, "securityRequirements", 0, "schemes", "mtls"),
        SignatureWrong,
    ),
    "mTLS scheme taken out": (lambda: without(OURS, "securitySchemes", "mtls"), SignatureWrong),
    "known member added": (lambda: changed(OURS, iconUrl="https://mallory.example/"), SignatureWrong),
    "critical extension": (
        lambda: respelled(json.dumps({**HEADER, "crit": ["a2a"], "a2a": {"v": 1}}).encode()),
        CriticalHeaderRefused,
    ),
    "no signatures": (lambda: without(OURS, "signatures"), SignatureMissing),
    "empty signatures": (lambda: changed(OURS, signatures=[]), SignatureMissing),
}


@pytest.mark.parametrize("name", BOTH_REFUSE)
def test_what_is_taken_out_of_our_cards_is_missed_by_everybody(name: str) -> None:
    make, error = BOTH_REFUSE[name]
    with pytest.raises(Exception, match="sign"):
        sdk_verifies(text(make()))
    with pytest.raises(error) as caught:
        verified(text(make()))
    assert type(caught.value) is error


def test_signatures_pile_up_in_the_sdk_and_not_here() -> None:
    message = parse_agent_card(changed())
    signer = create_agent_card_signer(BILLING.private_key, {"alg": "ES256", "kid": "k", "jku": None, "typ": "JOSE"})
    for _ in range(3):
        signer(message)
    assert len(message.signatures) == 3

    signed = sign_card(OURS, credentials=BILLING)
    assert signed.card == OURS
    assert len(sign_card(signed.card, credentials=[BILLING]).card["signatures"]) == 1


@pytest.mark.parametrize(
    ("forms", "error"),
    [
        ({"signatures": {}}, SignatureMissing),
        ({"signatures": "x"}, CardMalformed),
        ({"signatures": [1]}, HeaderMalformed),
        ({"signatures": [{}]}, HeaderMalformed),
        ({"signatures": [{**OURS["signatures"][0], "payload": "e30"}]}, HeaderMalformed),
        ({"signatures": [{**OURS["signatures"][0], "header": []}]}, HeaderMalformed),
        ({"signatures": [{**OURS["signatures"][0], "header": [1]}]}, HeaderMalformed),
        ({"signatures": [{"protected": "e30.e30", "signature": "AA"}]}, SignatureMalformed),
        ({"signatures": [{"protected": OURS["signatures"][0]["protected"], "signature": ""}]}, SignatureMalformed),
        ({"name": 5}, CardMalformed),
        ({"skills": [None]}, CardMalformed),
        ({"securitySchemes": {"x": None}}, CardMalformed),
        ({"securitySchemes": {"__proto__": 5}}, CardMalformed),
        ({"securitySchemes": {"__proto__": {"mtlsSecurityScheme": 5}}}, CardMalformed),
        ({"securityRequirements": [{"schemes": {"__proto__": 5}}]}, CardMalformed),
        ({"securitySchemes": {"x": {**BARE_MTLS, **SCHEMES["oauth2"]}}}, CardMalformed),
    ],
)
def test_other_shapes(forms: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        verified(text({**OURS, **forms}))
    assert type(caught.value) is error


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"null",
        b'"card"',
        b"{",
        b"\xff",
        b"[" * 10_000,
        b'{"a":' * 40 + b"1" + b"}" * 40,
        b'"' + b"a" * (256 << 10) + b'"',
    ],
    ids=["nothing", "list", "null", "text", "open", "not UTF-8", "very deep", "deep", "large"],
)
def test_no_card_at_all(document: bytes) -> None:
    with pytest.raises(CardMalformed):
        verified(document)


def test_many_empty_members_are_not_listed_without_end() -> None:
    many = {f"{'x' * 1000}{n}": "" for n in range(150)}
    with pytest.raises(CardMalformed) as caught:
        verified(text({**OURS, **many}))
    assert len(str(caught.value)) < 400


def test_one_good_signature_among_bad_ones_is_enough() -> None:
    bad = [sdk_signed(CARD, SECRET, alg="HS256"), by_sdk(CARD, OLD), sdk_signed(CARD, STRANGER)]
    signatures = [*(card["signatures"][0] for card in bad), *OURS["signatures"]]
    assert verified(text(changed(OURS, signatures=signatures))).kid == BILLING.thumbprint
    with pytest.raises(AlgorithmRefused):  # where none is good, the first one's error
        verified(text(changed(OURS, signatures=signatures[:-1])))


def test_the_verifier_of_the_sdk_raises_its_own_error_for_a_wrong_signature() -> None:
    """That is: the attacks above pass it because it accepts them, and not because it accepts everything."""
    with pytest.raises(InvalidSignaturesError):
        sdk_verifies(text(OURS), STRANGER.public_key())
