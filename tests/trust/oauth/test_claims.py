from __future__ import annotations

import pytest

from tests.trust.oauth.test_tokens import ISSUER, KEY, NOW, PEER, token
from trust.errors import TokenExpired, TokenIssuerWrong, TokenNotBound
from trust.oauth.claims import ALGORITHMS, act_of, claimed_issuer, verified_token
from trust.oauth.keys import StaticKeys, public_jwks
from trust.oauth.metadata import APPROVED
from trust.oauth.tokens import TokenValidator

KEYS = StaticKeys(public_jwks([KEY]))


def test_a_verified_token_may_be_anyones_and_of_any_time() -> None:
    """Which is why only `TokenValidator` lets somebody in."""
    text = token(aud="somebody else", exp=2, iat=1)
    found = verified_token(text, issuer=ISSUER, keys=KEYS, now=NOW)
    assert (found.token.audience, found.expires, found.kid) == (("somebody else",), 2, KEY.kid)
    with pytest.raises(TokenExpired):
        TokenValidator(issuer=ISSUER, audience="somebody else", keys=KEYS).validate(text, peer=PEER, now=NOW)


def test_what_a_token_is_bound_to() -> None:
    found = verified_token(token(), issuer=ISSUER, keys=KEYS, now=NOW).token
    assert (found.thumbprint, found.key_thumbprint) == (PEER.thumbprint, "")
    found = verified_token(token(cnf={"jkt": "k", "other": 1}), issuer=ISSUER, keys=KEYS, now=NOW).token
    assert (found.thumbprint, found.key_thumbprint) == ("", "k")
    with pytest.raises(TokenNotBound):
        verified_token(token(cnf={"jwk": {}}), issuer=ISSUER, keys=KEYS, now=NOW)


def test_the_holder_is_the_actor_where_there_is_one() -> None:
    assert verified_token(token(), issuer=ISSUER, keys=KEYS, now=NOW).token.holder == "spiffe://fleet.example/planner"
    act = {"sub": "b", "act": {"sub": "a"}}
    assert verified_token(token(act=act), issuer=ISSUER, keys=KEYS, now=NOW).token.holder == "b"


@pytest.mark.parametrize("actors", [(), ("a",), ("c", "b", "a")])
def test_the_actors_are_written_as_they_are_read(actors: tuple[str, ...]) -> None:
    assert verified_token(token(**act_of(actors)), issuer=ISSUER, keys=KEYS, now=NOW).token.actors == actors


@pytest.mark.parametrize(("acr", "approved"), [(APPROVED, True), ("1", False), ([APPROVED], False), (None, False)])
def test_a_person_has_approved_it_where_it_says_exactly_so(acr: object, approved: bool) -> None:
    assert verified_token(token(acr=acr), issuer=ISSUER, keys=KEYS, now=NOW).token.approved is approved


def test_the_issuer_that_a_token_claims() -> None:
    assert claimed_issuer(token(iss="anyone"), ALGORITHMS) == "anyone"
    with pytest.raises(TokenIssuerWrong):
        claimed_issuer(token(iss=None), ALGORITHMS)
