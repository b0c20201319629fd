"""ML-DSA signatures: of agents with such certificates, inside JSON alone, and only where a verifier asks for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, mldsa
from jwcrypto import jws as jwcrypto_jws
from jwcrypto.jwk import JWK

from pki import CertificateAuthority, requests
from tests.a2a_objects import EXAMPLES
from tests.cards import CARD, HOST, agent_of, verified
from tests.forge import Forge
from trust.authorize import exactly
from trust.bundles import TrustBundles
from trust.clock import wall_clock
from trust.credentials import Credentials
from trust.errors import (
    AlgorithmRefused,
    ConfigurationError,
    KeyMismatch,
    SignatureMalformed,
    SignatureTooLarge,
    SignatureWrong,
    TrustError,
)
from trust.identity import AgentID
from trust.oauth.keys import SigningKey
from trust.peers import PeerVerifier
from trust.private_keys import generate
from trust.signing import jws
from trust.signing.cards import sign_card
from trust.signing.envelope import DEFAULT_ALGORITHMS
from trust.signing.evidence import verify_evidence
from trust.signing.http import authenticate_request, new_message_id, sign_request
from trust.signing.messages import authenticate_message, sign_message
from trust.signing.proto_json import canonical_form

DOMAIN = "fleet.example"
KINDS = ("ML-DSA-44", "ML-DSA-65")
OPTED_IN = (*DEFAULT_ALGORITHMS, *KINDS)
POLICY = '[[allow]]\nids = ["/**"]\nkeys = ["P-256", "ML-DSA-44", "ML-DSA-65"]\n'
PAYLOAD = b'{"pay":100}'
KEYS = {kind: generate(kind) for kind in KINDS}
P256 = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CertificateAuthority]:
    """Ours, whose policy allows such keys. Its own are elliptic curves."""
    folder = tmp_path_factory.mktemp("ca") / "ca"
    with CertificateAuthority.create(folder, trust_domain=DOMAIN, password="pw") as authority:
        authority.set_policy(POLICY)
        yield authority


def agent(ca: CertificateAuthority, path: str, kind: str) -> Credentials:
    key, agent_id = KEYS.get(kind) or generate(kind), AgentID.parse(f"spiffe://{DOMAIN}{path}")
    return Credentials.of(ca.issue(requests.make(key, agent_id), agent_id).chain, key)


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_and_its_evidence_by_agents_of_our_ca(ca: CertificateAuthority, kind: str) -> None:
    author, receiver = agent(ca, "/planner", kind), agent(ca, "/billing", kind)
    bundles = TrustBundles.of(ca.bundle())
    verifier, now = PeerVerifier(bundles), wall_clock()
    signed = sign_message(
        EXAMPLES["Message"],
        "Message",
        credentials=author,
        audience=receiver.agent_id,
        now=now,
        jti=new_message_id(),
    )
    expected: dict[str, Any] = {
        "audience": receiver.agent_id,
        "verifier": verifier,
        "now": now,
        "signers": exactly(author.agent_id),
    }
    with pytest.raises(AlgorithmRefused):
        authenticate_message(signed, "Message", **expected)
    message = authenticate_message(signed, "Message", **expected, algorithms=OPTED_IN)
    assert (message.header["alg"], message.signer.agent_id) == (kind, author.agent_id)
    assert message.payload == canonical_form("Message", EXAMPLES["Message"])

    evidence = message.evidence(credentials=receiver, verifier=verifier, jti=new_message_id())
    with pytest.raises(AlgorithmRefused):
        verify_evidence(evidence, bundles, at=now)
    assert verify_evidence(evidence, bundles, at=now, algorithms=OPTED_IN).receiver.agent_id == receiver.agent_id


def test_chains_of_the_largest_keys_have_room() -> None:
    forge = Forge(make_key=mldsa.MLDSA87PrivateKey.generate)
    author = forge.leaf("/planner", key=KEYS["ML-DSA-65"])
    signed = sign_message(
        EXAMPLES["Message"],
        "Message",
        credentials=author,
        audience="https://billing.example",
        now=forge.now,
        jti=new_message_id(),
    )
    message = authenticate_message(
        signed,
        "Message",
        audience="https://billing.example",
        verifier=PeerVerifier(forge.bundles),
        now=forge.now,
        signers=exactly(author.agent_id),
        algorithms=OPTED_IN,
    )
    assert jws.MAX_DETACHED_BYTES < len(message.jws) < jws.MAX_BODY_BYTES / 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_by_such_a_key_and_for_those_who_cannot_read_it_by_another(kind: str) -> None:
    billing = agent_of("/billing", HOST, key=KEYS[kind])
    document = sign_card(CARD, credentials=billing).text
    with pytest.raises(AlgorithmRefused):
        verified(document)
    assert verified(document, algorithms=OPTED_IN).kid == billing.thumbprint
    with pytest.raises(SignatureWrong):
        verified(document.replace(b'"name":"billing"', b'"name":"Billing"'), algorithms=OPTED_IN)
    classical = agent_of("/billing", HOST)
    both = sign_card(CARD, credentials=[billing, classical]).text
    assert verified(both).kid == classical.thumbprint
    assert verified(both, algorithms=KINDS).kid == billing.thumbprint


@pytest.mark.parametrize("kind", KINDS)
def test_another_library_reads_and_writes_the_same(kind: str) -> None:
    """jwcrypto: the form of RFC 9964. Both leave the arithmetic to OpenSSL; `tests.interop.test_ml_dsa` has another."""
    key, public = KEYS[kind], KEYS[kind].public_key()
    protected, _, signature = jws.sign_detached(PAYLOAD, key=key, header={"typ": "t"}, in_body=True).split(".")
    other = jwcrypto_jws.JWS()
    other.allowed_algs = [kind]
    other.deserialize(f"{protected}.{jws.encode(PAYLOAD)}.{signature}", JWK.from_pyca(public))
    assert other.payload == PAYLOAD

    other = jwcrypto_jws.JWS(PAYLOAD)
    other.allowed_algs = [kind]
    other.add_signature(JWK.from_pyca(key), protected=json.dumps({"alg": kind, "typ": "t"}))
    protected, _, signature = other.serialize(compact=True).split(".")
    token = f"{protected}..{signature}"
    header = jws.verify_detached(token, PAYLOAD, key=public, algorithms=[kind], typ="t", in_body=True)
    assert header == {"alg": kind, "typ": "t"}


def token(kind: str, *, key: Any = None, change: Any = lambda raw: raw, **header: Any) -> str:
    """Signed by `cryptography` alone."""
    protected = jws.encode(json.dumps({"alg": kind, "typ": "t", **header}).encode())
    raw = (key or KEYS[kind]).sign(f"{protected}.{jws.encode(PAYLOAD)}".encode())
    return f"{protected}..{jws.encode(change(raw))}"


def flipped(raw: bytes) -> bytes:
    return raw[:100] + bytes([raw[100] ^ 1]) + raw[101:]


REFUSED: dict[str, tuple[str, dict[str, Any], type[TrustError]]] = {
    "one bit": (token("ML-DSA-44", change=flipped), {}, SignatureWrong),
    "by another key": (token("ML-DSA-44", key=generate("ML-DSA-44")), {}, SignatureWrong),
    "with a context": (
        token("ML-DSA-44", key=type("", (), {"sign": lambda _, data: KEYS["ML-DSA-44"].sign(data, b"x")})()),  # type: ignore[call-arg]
        {},
        SignatureWrong,
    ),
    "a byte short": (token("ML-DSA-44", change=lambda raw: raw[:-1]), {}, SignatureMalformed),
    "a byte long": (token("ML-DSA-44", change=lambda raw: raw + b"\0"), {}, SignatureMalformed),
    "empty": (token("ML-DSA-44", change=lambda raw: b""), {}, SignatureMalformed),
    "44 as 65": (token("ML-DSA-65", key=KEYS["ML-DSA-44"]), {}, KeyMismatch),
    "65 with the key of 44": (token("ML-DSA-65"), {}, KeyMismatch),
    "with an elliptic curve's key": (token("ML-DSA-44"), {"key": P256.public_key()}, KeyMismatch),
    "with the private key": (token("ML-DSA-44"), {"key": KEYS["ML-DSA-44"]}, KeyMismatch),
    "ES256 with the key": (token("ML-DSA-44", alg="ES256", change=lambda raw: raw[:64]), {}, KeyMismatch),
    "not asked for": (token("ML-DSA-44"), {"algorithms": DEFAULT_ALGORITHMS}, AlgorithmRefused),
    "the other one asked for": (token("ML-DSA-44"), {"algorithms": ["ML-DSA-65"]}, AlgorithmRefused),
    "in lower case": (token("ML-DSA-44", alg="ml-dsa-44"), {}, AlgorithmRefused),
    "ML-DSA-87": (token("ML-DSA-87", key=generate("ML-DSA-87")), {"algorithms": ["ML-DSA-87"]}, AlgorithmRefused),
    "in a header line": (token("ML-DSA-44"), {"in_body": False}, AlgorithmRefused),
    "in a header line, with a chain": (token("ML-DSA-44", x5c=["A" * 5000]), {"in_body": False}, SignatureTooLarge),
    "larger than a body has": (token("ML-DSA-44", x5c=["A" * 50_000]), {}, SignatureTooLarge),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    text, changes, error = REFUSED[name]
    settings = {"key": KEYS["ML-DSA-44"].public_key(), "algorithms": OPTED_IN, "typ": "t", "in_body": True, **changes}
    with pytest.raises(error) as caught:
        jws.verify_detached(text, PAYLOAD, **settings)
    assert type(caught.value) is error


def test_what_the_rows_change_verifies() -> None:
    for kind, key in KEYS.items():
        settings: dict[str, Any] = {"key": key.public_key(), "algorithms": OPTED_IN, "typ": "t", "in_body": True}
        assert jws.verify_detached(token(kind), PAYLOAD, **settings)["alg"] == kind


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_a_header_line_is_signed_with_it(kind: str) -> None:
    forge = Forge()
    planner, billing = forge.leaf("/planner", key=KEYS[kind]), forge.leaf("/billing")
    request: dict[str, Any] = {"method": "POST", "url": "https://billing.example/", "body": PAYLOAD}
    with pytest.raises(ConfigurationError, match=r"MLDSA..PrivateKey.* no header line"):
        sign_request(planner, **request, audience=billing.agent_id, now=forge.now, jti=new_message_id())
    for sign in (jws.sign_detached, jws.sign_compact):
        with pytest.raises(ConfigurationError):
            sign(PAYLOAD, key=KEYS[kind], header={"typ": "t"})
    with pytest.raises(ConfigurationError):
        SigningKey.of(KEYS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_a_header_line_is_verified_with_it(kind: str) -> None:
    forge = Forge()
    planner, billing = forge.leaf("/planner", key=KEYS[kind]), forge.leaf("/billing")
    classical = forge.leaf("/planner")
    request: dict[str, Any] = {"method": "POST", "url": "https://billing.example/", "body": PAYLOAD}
    good = sign_request(classical, **request, audience=billing.agent_id, now=forge.now, jti=new_message_id()).jws
    header = json.loads(jws.decode(good.split(".")[0]))
    header |= {"alg": kind, "x5t#S256": planner.thumbprint}
    text = jws.sign_detached(PAYLOAD, key=KEYS[kind], header=header, in_body=True)
    peer = PeerVerifier(forge.bundles).verify(planner.chain_der, now=forge.now, usage="client")
    assert len(text) < jws.MAX_DETACHED_BYTES  # it is not the size
    with pytest.raises(AlgorithmRefused):
        authenticate_request(
            text,
            **request,
            audience=billing.agent_id,
            verifier=PeerVerifier(forge.bundles),
            peer=peer,
            now=forge.now,
            algorithms=OPTED_IN,
        )


def test_keys_that_sign_nowhere() -> None:
    for key in (generate("ML-DSA-87"), ec.generate_private_key(ec.SECP521R1()), KEYS["ML-DSA-44"].public_key(), None):
        with pytest.raises(ConfigurationError):
            jws.sign_detached(PAYLOAD, key=key, header={"typ": "t"}, in_body=True)
