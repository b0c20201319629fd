"""Attacks on proofs of possession (DPoP): one valid proof, one change a row; and on the gate that takes them.

The planner calls billing through a proxy that ends TLS, so the certificate of the connection is the proxy's, and the
planner's token is bound to a key.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwcrypto.jwk import JWK

from tests.attacks.test_tokens_attacks import b64, signature
from tests.forge import NOW
from tests.world import URL, World
from trust import errors
from trust.authorize import exactly
from trust.gate import Admission, Refusal, admit, judge
from trust.gate_policy import RequestFacts
from trust.oauth.dpop import make_proof, verify_proof
from trust.oauth.keys import SigningKey
from trust.oauth.policy import Question

W = World()
T = int(NOW.timestamp())
TOKEN = "a.b.c"
KEY, THIEF = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
RSA, WEAK = rsa.generate_private_key(65537, 2048), rsa.generate_private_key(65537, 1024)
GONE: Any = object()


def jwk(key: Any, *, private: bool = False) -> dict[str, Any]:
    made = JWK.from_pyca(key)
    return dict(made.export_private(as_dict=True) if private else made.export_public(as_dict=True))


def left(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not GONE}


def forge(*, header: dict[str, Any] | None = None, payload: bytes | None = None, key: Any = KEY, **claims: Any) -> str:
    """The valid proof with these members changed (GONE leaves one out), signed with `key`."""
    head = left({"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk(KEY), **(header or {})})
    body = {"jti": "p", "htm": "POST", "htu": URL.partition("?")[0], "iat": T, "ath": ath(TOKEN), **claims}
    signed = f"{b64(json.dumps(head).encode())}.{b64(payload or json.dumps(left(body)).encode())}"
    return f"{signed}.{b64(signature(head.get('alg'), signed.encode(), key))}"


def ath(token: str) -> str:
    return b64(hashlib.sha256(token.encode()).digest())


VALID = forge()
FIRST, SECOND, THIRD = VALID.split(".")

PROOFS: dict[str, tuple[type[errors.TrustError], Any]] = {
    "empty": (errors.ProofMalformed, ""),
    "two parts": (errors.ProofMalformed, f"{FIRST}.{SECOND}"),
    "two proofs in one line": (errors.ProofMalformed, f"{VALID}, {VALID}"),
    "padded": (errors.ProofMalformed, VALID + "=="),
    "too large": (errors.ProofMalformed, forge(padding="x" * 8000)),
    "typ of a token": (errors.ProofMalformed, forge(header={"typ": "at+jwt"})),
    "typ JWT": (errors.ProofMalformed, forge(header={"typ": "JWT"})),
    "no typ": (errors.ProofMalformed, forge(header={"typ": GONE})),
    "alg none": (errors.ProofAlgorithmRefused, forge(header={"alg": "none"}, key=b"")),
    "HS256 with the public key": (
        errors.ProofAlgorithmRefused,
        forge(header={"alg": "HS256"}, key=json.dumps(jwk(KEY)).encode()),
    ),
    "RS256": (errors.ProofAlgorithmRefused, forge(header={"alg": "RS256", "jwk": jwk(RSA)}, key=RSA)),
    "RSA of 1024 bits": (errors.ProofMalformed, forge(header={"alg": "PS256", "jwk": jwk(WEAK)}, key=WEAK)),
    "another curve's algorithm": (errors.ProofMalformed, forge(header={"alg": "ES384"})),
    "no key": (errors.ProofMalformed, forge(header={"jwk": GONE})),
    "key is a text": (errors.ProofMalformed, forge(header={"jwk": json.dumps(jwk(KEY))})),
    "key is a list": (errors.ProofMalformed, forge(header={"jwk": [jwk(KEY)]})),
    "private key": (errors.ProofMalformed, forge(header={"jwk": jwk(KEY, private=True)})),
    "symmetric key": (errors.ProofMalformed, forge(header={"jwk": {"kty": "oct", "k": "c2VjcmV0"}})),
    "key off the curve": (errors.ProofMalformed, forge(header={"jwk": {**jwk(KEY), "y": jwk(KEY)["x"]}})),
    "key for encryption": (errors.ProofMalformed, forge(header={"jwk": {**jwk(KEY), "use": "enc"}})),
    "address of a key": (errors.ProofMalformed, forge(header={"jku": "https://evil.example/jwks"})),
    "certificate's address": (errors.ProofMalformed, forge(header={"x5u": "https://evil.example/c"})),
    "crit": (errors.ProofMalformed, forge(header={"crit": ["exp"], "exp": 1})),
    "b64 false": (errors.ProofMalformed, forge(header={"crit": ["b64"], "b64": False})),
    "signed by another key": (errors.ProofSignatureWrong, forge(key=THIEF)),
    "key swapped": (errors.ProofSignatureWrong, forge(header={"jwk": jwk(THIEF)})),
    "claims of another proof": (errors.ProofSignatureWrong, f"{FIRST}.{forge(jti='q').split('.')[1]}.{THIRD}"),
    "short signature": (errors.ProofSignatureWrong, f"{FIRST}.{SECOND}.{b64(bytes(63))}"),
    "payload is no JSON": (errors.ProofMalformed, forge(payload=b"{")),
    "payload is a list": (errors.ProofMalformed, forge(payload=b"[]")),
    "htm twice": (errors.ProofMalformed, forge(payload=b'{"htm":"GET","htm":"POST"}')),
    **{f"no {name}": (errors.ProofMalformed, forge(**{name: GONE})) for name in ("jti", "htm", "htu", "iat")},
    **{f"{name} is a list": (errors.ProofMalformed, forge(**{name: ["x"]})) for name in ("jti", "htm", "htu", "iat")},
    **{f"{name} is empty": (errors.ProofMalformed, forge(**{name: ""})) for name in ("jti", "htm", "htu", "iat")},
    "iat is true": (errors.ProofMalformed, forge(iat=True)),
    "endless jti": (errors.ProofMalformed, forge(jti="x" * 257)),
    "another method": (errors.ProofForAnotherRequest, forge(htm="GET")),
    "method in lower case": (errors.ProofForAnotherRequest, forge(htm="post")),
    "another path": (errors.ProofForAnotherRequest, forge(htu="https://billing.fleet.example/admin")),
    "another host": (errors.ProofForAnotherRequest, forge(htu="https://archive.fleet.example/a2a/jsonrpc")),
    "http": (errors.ProofForAnotherRequest, forge(htu="http://billing.fleet.example/a2a/jsonrpc")),
    "a path alone": (errors.ProofForAnotherRequest, forge(htu="/a2a/jsonrpc")),
    "a user before the host": (errors.ProofForAnotherRequest, forge(htu="https://u@billing.fleet.example/a2a/jsonrpc")),
    "a host that is no name": (errors.ProofForAnotherRequest, forge(htu="https://xn--a/a2a/jsonrpc")),
    "a minute old": (errors.ProofTimeWrong, forge(iat=T - 60)),
    "from the future": (errors.ProofTimeWrong, forge(iat=T + 11)),
    "from the beginning": (errors.ProofTimeWrong, forge(iat=0)),
    "far in the future": (errors.ProofTimeWrong, forge(iat=1e300)),
    "for another token": (errors.ProofForAnotherToken, forge(ath=ath("d.e.f"))),
    "for no token": (errors.ProofForAnotherToken, forge(ath=GONE)),
    "hash in hexadecimal": (errors.ProofForAnotherToken, forge(ath=hashlib.sha256(TOKEN.encode()).hexdigest())),
    "the token itself": (errors.ProofForAnotherToken, forge(ath=TOKEN)),
}


@pytest.mark.parametrize("name", PROOFS)
def test_a_forged_proof(name: str) -> None:
    expected, proof = PROOFS[name]
    with pytest.raises(errors.ProofError) as caught:
        verify_proof(proof, method="POST", url=URL, now=NOW, token=TOKEN)
    assert type(caught.value) is expected
    assert (caught.value.status, caught.value.code) == (401, "invalid_dpop_proof")
    assert len(str(caught.value)) < 2000


def test_a_long_url_does_not_flood_the_log() -> None:
    with pytest.raises(errors.ProofForAnotherRequest) as caught:
        verify_proof(VALID, method="POST", url=URL.partition("?")[0] + "x" * 60_000, now=NOW, token=TOKEN)
    assert len(str(caught.value)) < 2000


def test_the_valid_proof_is_valid() -> None:
    for proof in (VALID, forge(iat=T - 59), forge(iat=T + 10), forge(nonce="x", exp=1)):
        assert verify_proof(proof, method="POST", url=URL, now=NOW, token=TOKEN).proof_id == "p"
    pss = forge(header={"alg": "PS256", "jwk": jwk(RSA)}, key=RSA)
    assert verify_proof(pss, method="POST", url=URL, now=NOW, token=TOKEN).thumbprint == JWK.from_pyca(RSA).thumbprint()


# Through the gate.

PLANNER, STRANGER = SigningKey.of(KEY), SigningKey.of(THIEF)
PROXY, AUDITOR = W.forge.leaf("/proxy"), W.forge.leaf("/auditor")
POLICY: dict[str, Any] = {
    "authorize": exactly(PROXY.agent_id, W.planner.agent_id),
    "relays": {PROXY.agent_id: exactly(W.planner.agent_id)},
    "tokens": W.validator(bindings=("certificate", "dpop")),
}


def bound(**changes: Any) -> str:
    return W.token(**{"cnf": {"jkt": PLANNER.kid}, **changes})


def proof_for(token: str, key: SigningKey = PLANNER, **changes: Any) -> str:
    made = {"method": "POST", "url": URL, "now": NOW, "jti": secrets.token_urlsafe(), "token": token, **changes}
    return make_proof(key, **made)


def request(
    token: str = "",
    *,
    scheme: str = "DPoP",
    proofs: tuple[str, ...] | None = None,
    signature: str | None = "",
    peer: Any = PROXY,
    **changes: Any,
) -> RequestFacts:
    """The planner's request, signed by it, with its token and a proof, over the proxy's channel."""
    token = token or bound()
    proofs = (proof_for(token),) if proofs is None else proofs
    signature = W.signature(chain=True) if signature == "" else signature
    facts = W.request(token=None, signature=signature, peer=peer, **changes)
    headers = [(b"authorization", f"{scheme} {token}".encode()), *((b"dpop", proof.encode()) for proof in proofs)]
    return replace(facts, headers=(*facts.headers, *headers))


Row = tuple[Callable[[], RequestFacts], dict[str, Any], type[errors.TrustError]]

GATE: dict[str, Row] = {
    "as a bearer token": (lambda: request(scheme="Bearer"), {}, errors.TokenWithoutProof),
    "as a bearer token without a proof": (lambda: request(scheme="Bearer", proofs=()), {}, errors.TokenWithoutProof),
    "no proof": (lambda: request(proofs=()), {}, errors.TokenWithoutProof),
    "two proofs": (
        lambda: (lambda token: request(token, proofs=(proof_for(token), proof_for(token))))(bound()),
        {},
        errors.ProofMalformed,
    ),
    "proof of the thief's key": (
        lambda: (lambda token: request(token, proofs=(proof_for(token, STRANGER),)))(bound()),
        {},
        errors.TokenBoundElsewhere,
    ),
    "proof of another of the planner's tokens": (
        lambda: request(proofs=(proof_for(bound()),)),
        {},
        errors.ProofForAnotherToken,
    ),
    "proof of another request": (
        lambda: (lambda token: request(token, proofs=(proof_for(token, url=URL.replace("a2a", "b")),)))(bound()),
        {},
        errors.ProofForAnotherRequest,
    ),
    "a proof of another request with a token that has expired: the proof decides": (
        lambda: (lambda token: request(token, proofs=(proof_for(token, url=URL.replace("a2a", "b")),)))(
            bound(exp=int(NOW.timestamp()))
        ),
        {},
        errors.ProofForAnotherRequest,
    ),
    "where proofs are not taken": (request, {"tokens": W.validator()}, errors.TokenMissing),
    "where proofs are not taken, as a bearer token": (
        lambda: request(scheme="Bearer"),
        {"tokens": W.validator()},
        errors.TokenNotBound,
    ),
    "a token of a certificate, with a proof": (
        lambda: request(W.token(PROXY, sub=str(W.planner.agent_id))),
        {},
        errors.TokenNotBound,
    ),
    "bound to both, over another's channel": (
        lambda: request(bound(cnf={"jkt": PLANNER.kid, "x5t#S256": W.planner.thumbprint})),
        {},
        errors.TokenBoundElsewhere,
    ),
    "a proxy that is no relay": (request, {"relays": {}}, errors.TokenRelayRefused),
    "a proxy that is another's relay": (
        request,
        {"relays": {PROXY.agent_id: exactly(AUDITOR.agent_id)}},
        errors.TokenRelayRefused,
    ),
    "another agent that is no proxy": (
        lambda: request(peer=AUDITOR),
        {"authorize": exactly(AUDITOR.agent_id)},
        errors.TokenRelayRefused,
    ),
    "a token whose actor the proxy may not forward": (
        lambda: request(bound(act={"sub": str(AUDITOR.agent_id)})),
        {},
        errors.TokenRelayRefused,
    ),
    "a token of somebody without a SPIFFE ID": (lambda: request(bound(sub="planner")), {}, errors.TokenRelayRefused),
    "no peer": (lambda: request(peer_chain=()), {}, errors.NoPeerCertificate),
    "signed by the proxy": (
        lambda: request(signature=W.signature(PROXY)),
        {},
        errors.SignerMismatch,
    ),
    "signed by another agent that the proxy may forward": (
        lambda: request(signature=W.signature(AUDITOR, chain=True)),
        {"relays": {PROXY.agent_id: exactly(W.planner.agent_id, AUDITOR.agent_id)}},
        errors.SignerMismatch,
    ),
    "not signed": (lambda: request(signature=None), {}, errors.SignatureMissing),
    "proof from before the receiver's start": (
        lambda: (lambda token: request(token, proofs=(proof_for(token, now=NOW - timedelta(seconds=30)),)))(bound()),
        {"replay": __import__("trust.replay").replay.MemoryReplayGuard(started_at=NOW)},
        errors.ProofReplayed,
    ),
}


@pytest.mark.parametrize("name", GATE)
def test_the_gate_refuses(name: str) -> None:
    facts, changes, expected = GATE[name]
    with pytest.raises(errors.TrustError) as caught:
        W.admit(facts(), **{**POLICY, **changes})
    assert type(caught.value) is expected


def test_the_gate_admits_what_is_right() -> None:
    token = bound()
    caller = W.admit(request(token), **POLICY).caller
    assert (caller.subject, caller.agent_id, caller.signer) == (
        str(W.planner.agent_id),
        PROXY.agent_id,
        W.planner.agent_id,
    )
    assert caller.access_token == token
    assert W.admit(request(scheme="dpop", signature=None), **{**POLICY, "signatures": "optional"})
    # Whoever has both a certificate and a key needs no proxy; nor does one who comes itself.
    assert W.admit(request(bound(cnf={"jkt": PLANNER.kid, "x5t#S256": W.planner.thumbprint}), peer=W.planner), **POLICY)
    assert W.admit(request(peer=W.planner), **POLICY)
    assert W.admit(W.request(), **POLICY)  # and the certificate alone is enough for the tokens that name it


def test_an_actor_is_the_holder_of_its_token() -> None:
    relays = {PROXY.agent_id: exactly(AUDITOR.agent_id)}
    delegated = bound(sub="somebody", act={"sub": str(AUDITOR.agent_id), "act": {"sub": str(W.planner.agent_id)}})
    facts = request(delegated, signature=W.signature(AUDITOR, chain=True))
    assert W.admit(facts, **{**POLICY, "relays": relays}).caller.actors[0] == str(AUDITOR.agent_id)


@pytest.mark.parametrize("forbidden", ["proxy", "planner"])
@pytest.mark.parametrize("own", ["a token of the planner", "a token of the proxy"])
def test_no_policy_is_evaded_by_way_of_a_relay(forbidden: str, own: str) -> None:
    """Neither may the planner do through the proxy what it may not, nor the proxy for others."""

    class Forbids:
        def check(self, question: Question) -> None:
            if question.agent.path == f"/{forbidden}":
                raise errors.PolicyDenied("forbidden", got=question.agent)

    facts = request() if own == "a token of the planner" else request(W.token(PROXY), scheme="Bearer", proofs=())
    assert W.admit(facts, **POLICY)
    with pytest.raises(errors.PolicyDenied):
        W.admit(facts, **POLICY, permit=Forbids())


def test_a_proof_is_good_once_whatever_else_changes() -> None:
    """A new signature, and even a new token's validity, does not make a proof new."""
    policy = W.policy(**POLICY)
    token = bound()
    proof = proof_for(token)
    admit(request(token, proofs=(proof,)), policy)
    for changes in ({}, {"now": NOW + timedelta(seconds=30)}):
        found = judge(request(token, proofs=(proof,), **changes), policy)
        assert isinstance(found, Refusal)
        assert type(found.error) is errors.ProofReplayed
    assert isinstance(judge(request(token), policy), Admission)


def test_only_what_is_right_uses_up_a_proof() -> None:
    """Whoever sees a proof without the token, or has another channel, cannot make it useless to its sender."""
    policy = W.policy(**POLICY)
    token = bound()
    proof = proof_for(token)
    expired = W.token(cnf={"jkt": PLANNER.kid}, iat=T - 600, exp=T - 1)
    for facts in (
        request(expired, proofs=(proof_for(expired, jti="x"),)),
        request(token, proofs=(proof,), peer=AUDITOR),
        request(token, scheme="Bearer", proofs=(proof,)),
    ):
        assert isinstance(judge(facts, policy), Refusal)
    assert isinstance(judge(request(token, proofs=(proof,)), policy), Admission)


def test_a_malleated_proof_is_the_same_proof() -> None:
    policy, token = W.policy(**POLICY), bound()
    proof = proof_for(token)
    signed, _, last = proof.rpartition(".")
    raw = base64.urlsafe_b64decode(last + "==")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    other = f"{signed}.{b64(raw[:32] + (order - int.from_bytes(raw[32:])).to_bytes(32))}"
    admit(request(token, proofs=(proof,)), policy)
    with pytest.raises(errors.ProofReplayed):
        admit(request(token, proofs=(other,)), policy)
