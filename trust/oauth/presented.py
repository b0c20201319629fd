"""The access token that came with a request, and the proof beside it: what its headers say, and nothing more."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from trust.errors import ProofMalformed, TokenMissing, TokenRequestMalformed, TokenWithoutProof

_AUTHORIZATION = re.compile(r"([A-Za-z]+)(?: +([A-Za-z0-9._~+/-]+=*))?")  # RFC 6750 section 2.1, the token optional


class Presented(NamedTuple):
    """What a caller brought. Nothing in it has been verified."""

    token: str
    proof: str | None  # of the `DPoP` header, where the token came by that scheme

    def __repr__(self) -> str:  # neither belongs into a log
        return f"Presented({'DPoP' if self.proof else 'Bearer'})"


def presented_token(
    authorization: Sequence[str | bytes], *, proofs: Sequence[str | bytes] = (), dpop: bool = False
) -> Presented:
    """The token of a request.

    Not checked: anything about the token itself but its characters.

    Args:
        authorization: the values of all `Authorization` headers of the request. Tokens in the body or the query are
            never looked at (RFC 9700 section 4.3.2).
        proofs: the values of all `DPoP` headers. Beside `Bearer` they are not looked at.
        dpop: whether the scheme `DPoP` is taken (RFC 9449 section 7.1).

    Raises:
        TokenMissing: no such header, or another scheme.
        TokenRequestMalformed: several headers, or not a scheme and one token (RFC 6750 section 2.1).
        TokenWithoutProof, ProofMalformed: the scheme is `DPoP`, and there is no proof, or several.
    """
    expected = "Authorization: Bearer <token>" + (" or DPoP <token>" if dpop else "")
    if not authorization:
        raise TokenMissing("no access token", expected=expected)
    if len(authorization) > 1:
        # Two readers of one request must not see two callers.
        raise TokenRequestMalformed("Authorization", got=f"{len(authorization)} headers", expected="exactly one")
    value = _text(authorization[0])
    scheme = value.partition(" ")[0].lower()
    if scheme != "bearer" and not (dpop and scheme == "dpop"):
        raise TokenMissing("no access token", got="another scheme", expected=expected)
    match = _AUTHORIZATION.fullmatch(value)
    if not match or not match[2]:
        raise TokenRequestMalformed("Authorization", expected="the scheme, a space and one token")
    if scheme == "bearer":
        return Presented(match[2], None)
    if not proofs:
        raise TokenWithoutProof("token came without a proof of its key", expected="a DPoP header")
    if len(proofs) > 1:  # RFC 9449 section 4.3, check 1
        raise ProofMalformed("DPoP", got=f"{len(proofs)} headers", expected="exactly one")
    return Presented(match[2], _text(proofs[0]))


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
