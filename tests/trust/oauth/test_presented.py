from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trust.errors import ProofMalformed, TokenError, TokenMissing, TokenRequestMalformed, TokenWithoutProof
from trust.oauth.presented import presented_token


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (["Bearer a.b.c"], "a.b.c"),
        ([b"Bearer a.b.c"], "a.b.c"),
        (["bearer a.b.c"], "a.b.c"),
        (["BEARER   a.b.c=="], "a.b.c=="),
        (["Bearer -._~+/09azAZ"], "-._~+/09azAZ"),
        ([], TokenMissing),
        ([""], TokenMissing),
        (["Basic dXNlcjpwYXNz"], TokenMissing),
        (["DPoP a.b.c"], TokenMissing),
        (["Bearera.b.c"], TokenMissing),
        ([" Bearer a.b.c"], TokenMissing),
        (["Bearer\ta.b.c"], TokenMissing),
        (["B\u0130earer a"], TokenMissing),
        (["Bearer"], TokenRequestMalformed),
        (["Bearer "], TokenRequestMalformed),
        (["Bearer a.b.c "], TokenRequestMalformed),
        (["Bearer a.b.c\n"], TokenRequestMalformed),
        (["Bearer a b"], TokenRequestMalformed),
        (["Bearer a.b.c, Bearer d.e.f"], TokenRequestMalformed),
        (["Bearer a=b"], TokenRequestMalformed),
        (["Bearer =="], TokenRequestMalformed),
        (["Bearer a\u00e9"], TokenRequestMalformed),
        ([b"Bearer a\xff"], TokenRequestMalformed),
        (['Bearer "a.b.c"'], TokenRequestMalformed),
        (["Bearer a.b.c", "Bearer a.b.c"], TokenRequestMalformed),
        (["Basic dXNlcjpwYXNz", "Bearer a.b.c"], TokenRequestMalformed),
    ],
)
def test_bearer_token(headers: list[str | bytes], expected: Any) -> None:
    if isinstance(expected, str):
        assert presented_token(headers).token == expected
        return
    with pytest.raises(TokenError) as caught:
        presented_token(headers)
    assert type(caught.value) is expected


@given(st.text(max_size=40) | st.builds("Bearer {}".format, st.text(max_size=40)))
def test_bearer_token_never_fails_otherwise(value: str) -> None:
    try:
        found = presented_token([value]).token
    except TokenError:
        return
    assert found
    assert value.lower().startswith("bearer ")
    assert value.endswith(found)


DPOP: dict[str, tuple[list[str | bytes], list[str | bytes], bool, Any]] = {
    "a proof": (["DPoP a.b.c"], ["d.e.f"], True, ("a.b.c", "d.e.f")),
    "in bytes, lower case": ([b"dpop a.b.c"], [b"d.e.f"], True, ("a.b.c", "d.e.f")),
    "bearer, where proofs are taken": (["Bearer a.b.c"], [], True, ("a.b.c", None)),
    "bearer beside a proof": (["Bearer a.b.c"], ["d.e.f"], True, ("a.b.c", None)),
    "where proofs are not taken": (["DPoP a.b.c"], ["d.e.f"], False, TokenMissing),
    "no proof": (["DPoP a.b.c"], [], True, TokenWithoutProof),
    "two proofs": (["DPoP a.b.c"], ["d.e.f", "d.e.f"], True, ProofMalformed),
    "no token": (["DPoP"], ["d.e.f"], True, TokenRequestMalformed),
    "two tokens": (["DPoP a.b.c", "Bearer a.b.c"], ["d.e.f"], True, TokenRequestMalformed),
    "no header but the proof": ([], ["d.e.f"], True, TokenMissing),
}


@pytest.mark.parametrize("name", DPOP)
def test_a_token_with_a_proof(name: str) -> None:
    authorization, proofs, dpop, expected = DPOP[name]
    if isinstance(expected, tuple):
        found = presented_token(authorization, proofs=proofs, dpop=dpop)
        assert found == expected
        assert "a.b.c" not in repr(found)
        return
    with pytest.raises(TokenError) as caught:
        presented_token(authorization, proofs=proofs, dpop=dpop)
    assert type(caught.value) is expected
