"""Tokens bound to a key, from the token endpoint: what is issued, and what is refused. RFC 9449 section 5."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, cast

import pytest

from tests.authority import BILLING, ISSUER, LEDGER, PLANNER, Authority, ask, exchange
from trust.errors import GrantProofRefused, TokenNotBound
from trust.oauth.dpop import make_proof, verify_proof
from trust.oauth.keys import SigningKey, StaticKeys, public_jwks
from trust.oauth.metadata import JWT_TYPE
from trust.oauth.server.grants import Grant, bound_to_key
from trust.oauth.tokens import TokenValidator

KEY = SigningKey.generate()
ENDPOINT = f"{ISSUER}/token"


def proof(authority: Authority, **changes: Any) -> str:
    made = {"method": "POST", "url": ENDPOINT, "now": authority.clock.now, "jti": "p", **changes}
    return make_proof(KEY, **made)


def post(authority: Authority, agent: str, form: dict[str, str], *proofs: str) -> Any:
    return asyncio.run(authority.post(agent, form, headers=[("DPoP", value) for value in proofs]))


def validator(authority: Authority, audience: str) -> TokenValidator:
    keys = StaticKeys(public_jwks([authority.key]))
    return TokenValidator(issuer=ISSUER, audience=audience, keys=keys, bindings=["dpop"])


def test_a_token_that_is_bound_to_the_key_of_a_proof_and_to_nothing_else(authority: Authority) -> None:
    answer = post(authority, PLANNER, ask(), proof(authority))
    assert (answer.status_code, answer.json()["token_type"]) == (200, "DPoP")
    token, now = answer.json()["access_token"], authority.clock.now
    sent = make_proof(KEY, method="GET", url="https://b.example/", now=now, jti="q", token=token)
    shown = verify_proof(sent, method="GET", url="https://b.example/", now=now, token=token)
    access = validator(authority, BILLING).validate(token, peer=None, now=now, proof=shown)
    assert access.claims["cnf"] == {"jkt": KEY.kid}
    with pytest.raises(TokenNotBound):  # who takes certificates alone does not take it
        authority.validate(token, audience=BILLING, holder=PLANNER)


def test_an_exchanged_token_is_bound_as_its_new_holder_asks(authority: Authority) -> None:
    """Whatever the token before was bound to."""
    first = post(authority, PLANNER, ask(), proof(authority)).json()["access_token"]
    exchanged = post(authority, BILLING, exchange(first)).json()
    assert exchanged["token_type"] == "Bearer"
    assert authority.validate(exchanged["access_token"], audience=LEDGER, holder=BILLING).key_thumbprint == ""
    assert post(authority, BILLING, exchange(first), proof(authority)).json()["token_type"] == "DPoP"


REFUSED: dict[str, tuple[Any, str]] = {
    "two proofs": (lambda a: (proof(a), proof(a, jti="q")), "2 headers"),
    "no proof": (lambda a: ("x",), "proof.malformed"),
    "for another method": (lambda a: (proof(a, method="GET"),), "proof.request"),
    "for another endpoint": (lambda a: (proof(a, url=f"{ISSUER}/introspect"),), "proof.request"),
    "for another server": (lambda a: (proof(a, url="https://auth.partner.example/token"),), "proof.request"),
    "for a host that is no name": (lambda a: (proof(a, url="https://xn--a/token"),), "proof.request"),
    "too old": (lambda a: (proof(a, now=a.clock.now - timedelta(seconds=60)),), "proof.time"),
    "from the future": (lambda a: (proof(a, now=a.clock.now + timedelta(seconds=11)),), "proof.time"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, authority: Authority) -> None:
    proofs, found = REFUSED[name]
    answer = post(authority, PLANNER, ask(), *proofs(authority))
    assert (answer.status_code, answer.json()) == (400, {"error": "invalid_dpop_proof"})
    assert authority.trail.last["check"] == "grant.proof"
    assert f"got {found}" in authority.trail.last["reason"]


def test_a_proof_is_no_way_to_authenticate(authority: Authority) -> None:
    answer = asyncio.run(authority.post(None, ask(), headers={"DPoP": proof(authority)}))
    assert (answer.status_code, answer.json()) == (401, {"error": "invalid_client"})


def test_what_is_no_access_token_is_bound_to_no_key(authority: Authority) -> None:
    """An assertion for another authorization server is bound to the certificate that asks there."""
    assertion = Grant(claims={}, issued=cast(Any, None), scope="", expires_in=60, token_type=JWT_TYPE)
    with pytest.raises(GrantProofRefused):
        bound_to_key(assertion, [proof(authority)], issuer=ISSUER, now=authority.clock.now)
