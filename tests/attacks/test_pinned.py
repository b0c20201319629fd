"""Attacks on signatures by pinned keys, of messages and of cards: one valid one, one mutation a row, and its error."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from jwcrypto.jwk import JWK

from tests.cards import CARD, URL, changed
from tests.cards import verified as verified_card
from tests.forge import HOUR, NOW, Forge
from trust.authorize import Authorizer, exactly
from trust.errors import (
    AlgorithmRefused,
    AudienceMismatch,
    AuthorUnclear,
    BindingMismatch,
    CardMalformed,
    CardOfAnother,
    ConfigurationError,
    HeaderMalformed,
    IdentityError,
    KeysUnavailable,
    MessageExpired,
    PeerNotAllowed,
    Replayed,
    SignatureMalformed,
    SignatureTooLarge,
    SignatureWrong,
    SignerUnknown,
    TrustError,
)
from trust.oauth.keys import RemoteKeys, StaticKeys
from trust.peers import PeerVerifier
from trust.replay import MemoryReplayGuard
from trust.signing import algorithms, jws
from trust.signing.canonical import canonicalize_value
from trust.signing.envelope import DEFAULT_ALGORITHMS, VerifiedMessage
from trust.signing.messages import EXTENSION, verify_message
from trust.signing.pinned import PinnedAgents
from trust.signing.proto_json import canonical_form

FORGE = Forge()
OURS = FORGE.leaf("/planner")
PARTNER, OTHER, AWAY = (f"spiffe://{name}.example/agent" for name in ("partner", "other", "away"))
KEY, OTHERS, STRANGER, TWICE, EXPOSED, SECOND = (ec.generate_private_key(ec.SECP256R1()) for _ in range(6))
ED, PQ = ed25519.Ed25519PrivateKey.generate(), mldsa.MLDSA44PrivateKey.generate()
RSA = rsa.generate_private_key(65537, 2048)
IAT = int(NOW.timestamp())
MESSAGE: dict[str, Any] = {"messageId": "m-1", "role": "ROLE_USER", "parts": [{"text": "pay"}]}
CLAIMS: dict[str, Any] = {
    "v": 1,
    "iss": PARTNER,
    "aud": str(OURS.agent_id),
    "iat": IAT,
    "exp": IAT + 60,
    "jti": "0123456789abcdefABCDEF",
    "kind": "Message",
}
ABSENT: Any = object()


def jwk(key: Any, kid: str, **changes: Any) -> dict[str, Any]:
    return {**JWK.from_pyca(key.public_key()).export_public(as_dict=True), "kid": kid, **changes}


def pinned(*entries: dict[str, Any]) -> StaticKeys:
    return StaticKeys({"keys": list(entries)})


PARTNERS = pinned(
    jwk(KEY, "k-1"),
    jwk(ED, "k-ed", alg="EdDSA"),
    jwk(PQ, "k-pq"),
    jwk(RSA, "k-rsa"),
    jwk(TWICE, "twice"),
    jwk(KEY, "twice"),
    jwk(EXPOSED, "exposed", d=JWK.from_pyca(EXPOSED).export_private(as_dict=True)["d"]),
    jwk(SECOND, "for encryption", use="enc"),
    {**jwk(mldsa.MLDSA44PrivateKey.generate(), "k-pq with its seed"), "priv": "AAAA"},
    jwk(EXPOSED, "exposed elsewhere"),
    {name: value for name, value in jwk(PQ, "k-pq without alg").items() if name != "alg"},
    jwk(mldsa.MLDSA87PrivateKey.generate(), "k-87"),
)
AGENTS = PinnedAgents(
    {
        PARTNER: PARTNERS,
        OTHER: pinned(jwk(OTHERS, "k-1"), jwk(OTHERS, "k-other")),
        AWAY: RemoteKeys("https://away.example/jwks", httpx.AsyncClient()),  # never fetched: nothing is open
    }
)


def detached(
    payload: bytes, header: dict[str, Any], key: Any, respell: Callable[[bytes], bytes] = lambda text: text
) -> dict[str, str]:
    """Signed by hand: what our own signer would refuse to sign, too."""
    alg, sign = algorithms.signer(key, in_body=True) if key is not RSA else ("PS256", lambda _: bytes(256))
    members = {name: value for name, value in {"alg": alg, **header}.items() if value is not ABSENT}
    protected = jws.encode(respell(json.dumps(members).encode()))
    return {"protected": protected, "signature": jws.encode(sign(f"{protected}.{jws.encode(payload)}".encode()))}


@dataclass(frozen=True)
class Message:
    header: dict[str, Any] = field(default_factory=dict)  # changes
    claims: dict[str, Any] = field(default_factory=dict)  # changes
    key: Any = KEY
    respell: Callable[[bytes], bytes] = lambda text: text
    change: Callable[[dict[str, Any]], None] = lambda message: None
    beside: tuple[dict[str, str], ...] = ()  # other signatures
    verifier: PinnedAgents | PeerVerifier = AGENTS
    signers: Authorizer = field(default_factory=lambda: exactly(PARTNER, OTHER, AWAY))
    algorithms: tuple[str, ...] = DEFAULT_ALGORITHMS
    later: int = 0  # seconds
    times: int = 1

    def verify(self) -> VerifiedMessage:
        claims = {name: value for name, value in {**CLAIMS, **self.claims}.items() if value is not ABSENT}
        header = {"typ": "a2a-msg+jws", "crit": ["a2a"], "kid": "k-1", "a2a": claims, **self.header}
        entry = detached(canonical_form("Message", MESSAGE), header, self.key, self.respell)
        message = json.loads(json.dumps({**MESSAGE, "metadata": {EXTENSION: {"signatures": [entry, *self.beside]}}}))
        self.change(message)
        guard = MemoryReplayGuard(started_at=NOW - HOUR)
        for _ in range(self.times):
            verified = verify_message(
                message,
                "Message",
                audience=OURS.agent_id,
                verifier=self.verifier,
                now=NOW + self.later * HOUR / 3600,
                signers=self.signers,
                replay=guard,
                algorithms=self.algorithms,
            )
        return verified


X5C = {"x5c": [base64.b64encode(der).decode() for der in OURS.chain_der]}
OPTED_IN = (*DEFAULT_ALGORITHMS, "ML-DSA-44", "ML-DSA-65")

ATTACKS: list[tuple[str, Message, type[TrustError]]] = [
    # The key.
    ("by a stranger's key", Message(key=STRANGER), SignatureWrong),
    ("by another partner's key", Message(key=OTHERS), SignatureWrong),
    ("by another partner's key, and named so", Message(key=OTHERS, header={"kid": "k-other"}), SignerUnknown),
    ("in another partner's name", Message(claims={"iss": OTHER}), SignatureWrong),
    ("in another partner's name, by a kid of ours", Message(key=SECOND, claims={"iss": OTHER}), SignatureWrong),
    ("an unknown kid", Message(header={"kid": "k-9"}), SignerUnknown),
    ("kid in capitals", Message(header={"kid": "K-1"}), SignerUnknown),
    ("a kid that two keys have", Message(key=TWICE, header={"kid": "twice"}), SignerUnknown),
    ("a key whose private half is published", Message(key=EXPOSED, header={"kid": "exposed"}), SignerUnknown),
    ("one published by another kid", Message(key=EXPOSED, header={"kid": "exposed elsewhere"}), SignerUnknown),
    ("a key for encryption", Message(key=SECOND, header={"kid": "for encryption"}), SignerUnknown),
    ("no kid", Message(header={"kid": ABSENT}), HeaderMalformed),
    ("empty kid", Message(header={"kid": ""}), HeaderMalformed),
    ("kid a number", Message(header={"kid": 1}), HeaderMalformed),
    ("kid a list", Message(header={"kid": ["k-1"]}), HeaderMalformed),
    ("kid that fills a log", Message(header={"kid": "k" * 257}), HeaderMalformed),
    ("kid twice", Message(respell=lambda t: t[:-1] + b',"kid":"k-1"}'), HeaderMalformed),
    ("jku beside a good kid", Message(header={"jku": "https://partner.example/jwks"}), HeaderMalformed),
    ("jwk beside a good kid", Message(header={"jwk": jwk(STRANGER, "k-1")}), HeaderMalformed),
    ("x5u beside a good kid", Message(header={"x5u": "https://partner.example/chain"}), HeaderMalformed),
    ("a certificate beside a good kid", Message(header={"x5t#S256": OURS.thumbprint, **X5C}), HeaderMalformed),
    ("a thumbprint beside a good kid", Message(header={"x5t#S256": OURS.thumbprint}), HeaderMalformed),
    ("a chain beside a good kid", Message(header=X5C), HeaderMalformed),
    ("a certificate for a key", Message(header={"kid": ABSENT, "x5t#S256": OURS.thumbprint, **X5C}), HeaderMalformed),
    ("a key for a certificate", Message(verifier=PeerVerifier(FORGE.bundles)), SignerUnknown),
    ("keys at a URL that nobody has fetched", Message(claims={"iss": AWAY}), KeysUnavailable),
    # The algorithm.
    ("alg none", Message(header={"alg": "none"}), AlgorithmRefused),
    ("alg HS256", Message(header={"alg": "HS256"}), AlgorithmRefused),
    ("alg of another curve", Message(header={"alg": "ES384"}), SignerUnknown),
    ("the other name of the key's alg", Message(key=ED, header={"kid": "k-ed"}), SignerUnknown),
    ("an RSA key, which nobody allowed", Message(key=RSA, header={"kid": "k-rsa"}), AlgorithmRefused),
    ("ML-DSA, which nobody allowed", Message(key=PQ, header={"kid": "k-pq"}), AlgorithmRefused),
    (
        "ML-DSA-44 as ML-DSA-65",
        Message(key=PQ, header={"kid": "k-pq", "alg": "ML-DSA-65"}, algorithms=OPTED_IN),
        SignerUnknown,
    ),
    ("ML-DSA by its seed", Message(key=PQ, header={"kid": "k-pq with its seed"}, algorithms=OPTED_IN), SignerUnknown),
    ("ML-DSA, no alg", Message(key=PQ, header={"kid": "k-pq without alg"}, algorithms=OPTED_IN), SignerUnknown),
    (
        "ML-DSA-87",
        Message(header={"kid": "k-87", "alg": "ML-DSA-87"}, algorithms=(*OPTED_IN, "ML-DSA-87")),
        AlgorithmRefused,
    ),
    ("ES256 with the kid of ML-DSA", Message(header={"kid": "k-pq"}, algorithms=OPTED_IN), SignerUnknown),
    # Who says it, to whom, and when.
    ("nobody's name", Message(claims={"iss": "spiffe://partner.example/unknown"}), SignerUnknown),
    ("no name", Message(claims={"iss": ABSENT}), HeaderMalformed),
    ("a name that is no SPIFFE ID", Message(claims={"iss": "https://partner.example"}), HeaderMalformed),
    ("a name in capitals", Message(claims={"iss": PARTNER.replace("partner", "Partner")}), HeaderMalformed),
    ("a number for a name", Message(claims={"iss": 1}), HeaderMalformed),
    ("a2a a string", Message(header={"a2a": "v1"}), HeaderMalformed),
    ("a2a a list", Message(header={"a2a": [{"iss": PARTNER}]}), HeaderMalformed),
    ("not an allowed author", Message(signers=exactly(OTHER)), PeerNotAllowed),
    ("for another agent", Message(claims={"aud": OTHER}), AudienceMismatch),
    ("of another kind", Message(claims={"kind": "Task"}), BindingMismatch),
    ("expired", Message(later=60), MessageExpired),
    ("twice", Message(times=2), Replayed),
    # The carriage.
    ("text changed", Message(change=lambda m: m["parts"][0].update(text="PAY")), SignatureWrong),
    ("larger than a body has", Message(header={"x": "x" * jws.MAX_BODY_BYTES}), SignatureTooLarge),
    (
        "cut",
        Message(change=lambda m: m["metadata"][EXTENSION]["signatures"][0].update(signature="AAAA")),
        SignatureMalformed,
    ),
    (
        "two by the author's keys",
        Message(
            beside=(
                detached(
                    canonical_form("Message", MESSAGE),
                    {"typ": "a2a-msg+jws", "crit": ["a2a"], "kid": "k-2", "a2a": CLAIMS},
                    SECOND,
                ),
            )
        ),
        AuthorUnclear,
    ),
]


@pytest.mark.parametrize(("message", "error"), [row[1:] for row in ATTACKS], ids=[row[0] for row in ATTACKS])
def test_attack_on_a_message(message: Message, error: type[TrustError]) -> None:
    with pytest.raises(error) as caught:
        message.verify()
    assert type(caught.value) is error


def test_the_message_that_the_attacks_change_is_valid_and_so_are_its_honest_variants() -> None:
    for message in (
        Message(),
        Message(key=OTHERS, claims={"iss": OTHER}),
        Message(key=OTHERS, claims={"iss": OTHER}, header={"kid": "k-other"}),
        Message(key=ED, header={"kid": "k-ed", "alg": "EdDSA"}),
        Message(key=PQ, header={"kid": "k-pq"}, algorithms=OPTED_IN),
        Message(header={"x": "x" * 9000}),  # more than a header line has
    ):
        verified = message.verify()
        assert str(verified.signer.agent_id) == {**CLAIMS, **message.claims}["iss"]
        assert verified.payload == canonical_form("Message", MESSAGE)


def a_card(key: Any = KEY, card: dict[str, Any] = CARD, **header: Any) -> dict[str, Any]:
    entry = detached(canonicalize_value(card), {"typ": "JOSE", "kid": "k-1", **header}, key)
    return {**card, "signatures": [entry]}


CARD_ATTACKS: dict[str, tuple[dict[str, Any], type[TrustError]]] = {
    "by a stranger's key": (a_card(STRANGER), SignatureWrong),
    "an unknown kid": (a_card(kid="k-9"), SignerUnknown),
    "a kid that two keys have": (a_card(TWICE, kid="twice"), SignerUnknown),
    "a key whose private half is published": (a_card(EXPOSED, kid="exposed"), SignerUnknown),
    "a chain for a key": (a_card(STRANGER, **{"x5t#S256": OURS.thumbprint, **X5C}), SignatureWrong),
    "a key of the signer's own": (a_card(STRANGER, jwk=jwk(STRANGER, "k-1")), HeaderMalformed),
    "keys from the signer's jku": (a_card(STRANGER, jku="https://mallory.example/jwks"), SignatureWrong),
    "ML-DSA, which nobody allowed": (a_card(PQ, kid="k-pq"), AlgorithmRefused),
    "changed": ({**a_card(), "name": "mallory"}, SignatureWrong),
    "of another host": (
        a_card(card=changed(supportedInterfaces=[{**CARD["supportedInterfaces"][0], "url": "https://m.example/"}])),
        CardOfAnother,
    ),
    "larger than a card has": (changed(a_card(), description="x" * (256 << 10)), CardMalformed),
}


@pytest.mark.parametrize("name", CARD_ATTACKS)
def test_attack_on_a_card(name: str) -> None:
    card, error = CARD_ATTACKS[name]
    with pytest.raises(error) as caught:
        verified_card(card, keys=PARTNERS, agent=URL)
    assert type(caught.value) is error


def test_the_card_that_the_attacks_change_is_valid_and_so_are_its_honest_variants() -> None:
    assert verified_card(a_card(), keys=PARTNERS, agent=URL).signer is None
    assert verified_card(a_card(jku="https://mallory.example/jwks"), keys=PARTNERS, agent=URL).card == CARD
    post_quantum = verified_card(a_card(PQ, kid="k-pq"), keys=PARTNERS, agent=URL, algorithms=OPTED_IN)
    assert (post_quantum.card, post_quantum.kid) == (CARD, "k-pq")


@pytest.mark.parametrize(
    ("agents", "error"),
    [
        ({}, ConfigurationError),
        ({"partner": PARTNERS}, IdentityError),
        ({"spiffe://partner.example": PARTNERS}, IdentityError),
        ({PARTNER: PARTNERS, OURS.agent_id.parse(PARTNER): PARTNERS}, ConfigurationError),
    ],
    ids=["nobody", "no ID", "a whole domain", "one agent twice"],
)
def test_what_cannot_be_pinned(agents: Any, error: type[TrustError]) -> None:
    with pytest.raises(error) as caught:
        PinnedAgents(agents)
    assert type(caught.value) is error
