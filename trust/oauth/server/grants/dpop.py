"""Tokens that are bound to a key of the client instead of its certificate: DPoP at the token endpoint. RFC 9449, 5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from trust.errors import GrantProofRefused, ProofError
from trust.oauth.dpop import verify_proof
from trust.oauth.metadata import ACCESS_TOKEN_TYPE
from trust.oauth.server.grants.grant import Grant


def bound_to_key(grant: Grant, proofs: Sequence[str], *, issuer: str, now: datetime) -> Grant:
    """The grant with its token bound to the key that a proof shows, and to no certificate: for use through a proxy.

    NOT checked: whether the proof was received before. The client is authenticated by its certificate, and whoever
    repeats the proof of another gets a token that only the other can use.

    Raises:
        GrantProofRefused: not one valid proof for the token endpoint; or what is granted is no access token.
    """
    if grant.token_type != ACCESS_TOKEN_TYPE:
        raise GrantProofRefused("proof of a key", got=f"one for {grant.token_type}", expected="no proof")
    if len(proofs) != 1:
        raise GrantProofRefused("DPoP", got=f"{len(proofs)} headers", expected="exactly one")
    try:
        proof = verify_proof(proofs[0], method="POST", url=f"{issuer.rstrip('/')}/token", now=now)
    except ProofError as error:
        raise GrantProofRefused(f"DPoP proof: {error}", got=error.check) from None
    return replace(grant, claims={**grant.claims, "cnf": {"jkt": proof.thumbprint}})
