from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS

from trust.errors import (
    ConfigurationError,
    ProofError,
    ProofForAnotherRequest,
    ProofMalformed,
    ProofReplayed,
    ReplayGuardFull,
)
from trust.oauth.dpop import MAX_AGE_SECONDS, Proof, make_proof, verify_proof
from trust.oauth.keys import SigningKey
from trust.replay import MemoryReplayGuard
from trust.signing import jws

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
T = int(NOW.timestamp())
URL = "https://billing.fleet.example/a2a?tenant=1"
TOKEN = "a.b.c"
KEY = SigningKey.generate()


@pytest.mark.parametrize(
    "private_key",
    [KEY.private_key, ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()],
    ids=["ES256", "ES384", "Ed25519"],
)
def test_a_proof_that_is_made_is_verified(private_key: Any) -> None:
    key = SigningKey.of(private_key)
    for token in (TOKEN, ""):
        proof = make_proof(key, method="POST", url=URL, now=NOW, jti="p-1", token=token)
        found = verify_proof(proof, method="POST", url=URL, now=NOW, token=token)
        assert found == Proof(thumbprint=key.kid, proof_id="p-1", issued_at=T)


def test_what_a_proof_says_by_jwcrypto() -> None:
    proof = make_proof(KEY, method="POST", url=URL, now=NOW, jti="p-1", token=TOKEN)
    parsed = JWS()
    parsed.deserialize(proof)
    header = parsed.jose_header
    assert {name: header[name] for name in ("typ", "alg")} == {"typ": "dpop+jwt", "alg": "ES256"}
    assert set(header["jwk"]) == {"kty", "crv", "x", "y"}  # and nothing private
    key = JWK(**header["jwk"])
    assert key.thumbprint() == KEY.kid
    parsed.verify(key)
    assert json.loads(parsed.payload) == {
        "jti": "p-1",
        "htm": "POST",
        "htu": "https://billing.fleet.example/a2a",
        "iat": T,
        "ath": jws.encode(hashlib.sha256(TOKEN.encode()).digest()),
    }


@pytest.mark.parametrize(
    ("private_key", "alg"),
    [
        (ec.generate_private_key(ec.SECP256R1()), "ES256"),
        (rsa.generate_private_key(65537, 2048), "PS256"),
        (ed25519.Ed25519PrivateKey.generate(), "EdDSA"),
    ],
    ids=["ES256", "PS256", "EdDSA"],
)
def test_proofs_that_pyjwt_made(private_key: Any, alg: str) -> None:
    key = JWK.from_pyca(private_key)
    claims = {"jti": "p", "htm": "GET", "htu": "https://billing.fleet.example/a2a", "iat": T}
    header = {"typ": "dpop+jwt", "jwk": key.export_public(as_dict=True)}
    made = jwt.encode(claims, private_key, alg, headers=header)
    found = verify_proof(made, method="GET", url=URL, now=NOW)
    assert found.thumbprint == key.thumbprint()


def test_the_example_of_rfc_9449() -> None:
    """Section 4.2, figure 2; and 6.1, figure 8 for the thumbprint of its key."""
    proof = (
        "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0Rs"
        "cEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2"
        "In19.eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2Vu"
        "IiwiaWF0IjoxNTYyMjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3"
        "Lg"
    )
    now = datetime.fromtimestamp(1562262616, UTC)
    found = verify_proof(proof, method="POST", url="https://server.example.com/token", now=now)
    assert found.thumbprint == "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
    assert found.proof_id == "-BwC3ESc6acc2lTc"


@pytest.mark.parametrize(
    ("made_for", "received_as"),
    [
        ("https://h.example/a?x=1#f", "https://h.example/a?y=2"),
        ("HTTPS://H.EXAMPLE/a", "https://h.example/a"),
        ("https://h.example:443/a", "https://h.example/a"),
        ("https://h.example", "https://h.example/"),
        ("https://h.example/%7Eu/%2f", "https://h.example/~u/%2F"),
        ("https://[::1]:8443/a", "https://[::1]:8443/a"),
    ],
)
def test_one_url_in_two_spellings(made_for: str, received_as: str) -> None:
    for a, b in ((made_for, received_as), (received_as, made_for)):
        verify_proof(make_proof(KEY, method="GET", url=a, now=NOW, jti="p"), method="GET", url=b, now=NOW)


@pytest.mark.parametrize(
    "other",
    [
        "http://h.example/a/b",
        "https://h.example:8443/a/b",
        "https://h.example.evil/a/b",
        "https://h.example/a/b/",
        "https://h.example/a/B",
        "https://h.example/a%2Fb",
        "https://h.example/a//b",
        "https://h.example/a",
    ],
)
def test_urls_that_are_not_one(other: str) -> None:
    proof = make_proof(KEY, method="GET", url="https://h.example/a/b", now=NOW, jti="p")
    with pytest.raises(ProofForAnotherRequest):
        verify_proof(proof, method="GET", url=other, now=NOW)


@pytest.mark.parametrize("url", ["", "/a", "ftp://h/a", "https://", "https://u:p@h/a", "https://h:x/", "\ud800"])
def test_no_proof_is_made_for_what_is_no_request(url: str) -> None:
    with pytest.raises(ConfigurationError):
        make_proof(KEY, method="GET", url=url, now=NOW, jti="p")


def test_a_proof_is_received_once() -> None:
    guard = MemoryReplayGuard(started_at=NOW - timedelta(minutes=1), capacity=3)
    proof = Proof(thumbprint=KEY.kid, proof_id="p", issued_at=T)
    proof.remember(guard, now=NOW)
    last = NOW + timedelta(seconds=MAX_AGE_SECONDS - 1)
    for now in (NOW, last):
        with pytest.raises(ProofReplayed) as caught:
            proof.remember(guard, now=now)
        assert (caught.value.status, caught.value.code) == (401, "invalid_dpop_proof")
    Proof(thumbprint="another", proof_id="p", issued_at=T).remember(guard, now=NOW)  # anyone may choose any name
    Proof(thumbprint=KEY.kid, proof_id="q", issued_at=T).remember(guard, now=NOW)
    with pytest.raises(ReplayGuardFull):
        Proof(thumbprint=KEY.kid, proof_id="r", issued_at=T).remember(guard, now=NOW)


def test_the_longest_proof() -> None:
    proof = make_proof(KEY, method="GET", url=URL, now=NOW, jti="p" * 256)
    assert verify_proof(proof, method="GET", url=URL, now=NOW).proof_id == "p" * 256
    with pytest.raises(ProofMalformed):
        verify_proof(make_proof(KEY, method="GET", url=URL, now=NOW, jti="p" * 257), method="GET", url=URL, now=NOW)


VALID = make_proof(KEY, method="POST", url=URL, now=NOW, jti="p-1", token=TOKEN)


@given(st.integers(0, len(VALID) - 1), st.characters(max_codepoint=0x17F))
def test_no_altered_proof_is_accepted(place: int, character: str) -> None:
    altered = VALID[:place] + character + VALID[place + 1 :]
    if altered != VALID:
        with pytest.raises(ProofError):
            verify_proof(altered, method="POST", url=URL, now=NOW, token=TOKEN)


@given(st.text(max_size=60))
def test_a_url_never_fails_otherwise(url: str) -> None:
    for text in (url, f"https://h.example/{url}"):
        try:
            proof = make_proof(KEY, method="GET", url=text, now=NOW, jti="p")
        except ConfigurationError:
            continue
        assert verify_proof(proof, method="GET", url=text, now=NOW).proof_id == "p"
