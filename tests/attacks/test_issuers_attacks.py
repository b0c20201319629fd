"""Attacks on an agent that takes tokens of several issuers, and on one that takes RS256: no issuer speaks for another.

Both issuers name their key `k1`, so that nothing but the issuer tells the keys apart.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from tests.attacks.test_tokens_attacks import AUDIENCE, CLAIMS, GONE, NOW, PEER, RSA, T, b64, forge, jwk
from tests.forge import HOUR
from trust.errors import (
    AlgorithmRefused,
    TokenAlgorithmRefused,
    TokenClaimMissing,
    TokenError,
    TokenIssuerWrong,
    TokenKeyUnknown,
    TokenLifetimeTooLong,
    TokenMalformed,
    TokenRevoked,
    TokenSignatureWrong,
    TokenTypeWrong,
)
from trust.oauth.denylist import MemoryDenylist
from trust.oauth.keys import StaticKeys
from trust.oauth.tokens import TokenValidator, TokenValidators
from trust.signing import jws

HOME, PARTNER = "https://auth.fleet.example", "https://auth.partner.example"
HOMES, PARTNERS, ONLY_HOMES = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
SMALL = rsa.generate_private_key(65537, 1024)


def both() -> TokenValidators:
    home = {"keys": [{**jwk(HOMES), "kid": "k1"}, {**jwk(ONLY_HOMES), "kid": "k2"}, {**jwk(RSA), "kid": "k3"}]}
    partner = {"keys": [{**jwk(PARTNERS), "kid": "k1"}, {**jwk(RSA), "kid": "k3"}]}
    denied = MemoryDenylist()
    denied.deny(HOME, "revoked-at-home", expires_at=NOW + HOUR, now=NOW)
    return TokenValidators(
        TokenValidator(issuer=HOME, audience=AUDIENCE, keys=StaticKeys(home), unsafe_rs256=True, denylist=denied),
        TokenValidator(
            issuer=PARTNER,
            audience=AUDIENCE,
            keys=StaticKeys(partner),
            required_claims=["vetted"],
            max_lifetime=timedelta(minutes=5),
        ),
    )


def home(**changes: Any) -> str:
    return forge(**{"iss": HOME, "key": HOMES, **changes})


def partner(**changes: Any) -> str:
    return forge(**{"iss": PARTNER, "key": PARTNERS, "vetted": True, "exp": T + 300, **changes})


def rs256(make: Any, **changes: Any) -> str:
    return str(make(header={"alg": "RS256", "kid": "k3"}, key=RSA, **changes))


@dataclass(frozen=True)
class Attack:
    expected: type[TokenError]
    token: str


DUPLICATE = json.dumps({**CLAIMS, "iss": PARTNER}).encode()[:-1] + f',"iss":"{HOME}"}}'.encode()

ATTACKS = {
    "partner's key, home's name": Attack(TokenSignatureWrong, home(key=PARTNERS)),
    "home's key, partner's name": Attack(TokenSignatureWrong, partner(key=HOMES)),
    "name swapped in a valid token": Attack(
        TokenSignatureWrong, ".".join((home().split(".")[0], partner().split(".")[1], home().split(".")[2]))
    ),
    "key ID of home, partner's name": Attack(TokenKeyUnknown, partner(header={"kid": "k2"}, key=ONLY_HOMES)),
    "unknown issuer": Attack(TokenIssuerWrong, home(iss="https://evil.example")),
    "issuer with a slash": Attack(TokenIssuerWrong, home(iss=HOME + "/")),
    "issuer in another case": Attack(TokenIssuerWrong, home(iss=HOME.upper())),
    "issuer with a port": Attack(TokenIssuerWrong, home(iss=HOME + ":443")),
    "issuer as a prefix": Attack(TokenIssuerWrong, home(iss=HOME + ".evil.example")),
    "both issuers": Attack(TokenIssuerWrong, home(iss=[HOME, PARTNER])),
    "both issuers in one text": Attack(TokenIssuerWrong, home(iss=f"{HOME} {PARTNER}")),
    "no issuer": Attack(TokenIssuerWrong, home(iss=GONE)),
    "issuer named twice": Attack(TokenMalformed, forge(payload=DUPLICATE, key=HOMES)),
    "issuer in the header": Attack(TokenIssuerWrong, home(header={"iss": HOME}, iss=GONE)),
    "partner's token without what is required of it": Attack(TokenClaimMissing, partner(vetted=GONE)),
    "partner's token by home's longer limit": Attack(TokenLifetimeTooLong, partner(exp=T + 600)),
    "partner's RS256, which only home may": Attack(TokenAlgorithmRefused, rs256(partner)),
    "revoked": Attack(TokenRevoked, home(jti="revoked-at-home")),
    "an ID token of home's": Attack(TokenTypeWrong, home(header={"typ": "JWT"})),
    "payload is no JSON": Attack(TokenMalformed, forge(payload=b"{", key=HOMES)),
    "payload is a list": Attack(TokenMalformed, forge(payload=b"[]", key=HOMES)),
    "empty": Attack(TokenMalformed, ""),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_attack(attack: Attack) -> None:
    validators = both()
    for _ in range(2):  # what was refused once is not remembered as somebody's
        with pytest.raises(TokenError) as caught:
            validators.validate(attack.token, peer=PEER, now=NOW)
        assert type(caught.value) is attack.expected
        assert caught.value.status == 401


def test_what_is_right_passes() -> None:
    """Without this, a broken table would refuse everything for another reason."""
    validators = both()
    for _ in range(2):  # by its name, and then because it is known
        assert validators.validate(home(), peer=PEER, now=NOW).issuer == HOME
        assert validators.validate(partner(), peer=PEER, now=NOW).issuer == PARTNER
        assert validators.validate(rs256(home), peer=PEER, now=NOW).issuer == HOME
        # Another issuer's token of the same name is another token.
        assert validators.validate(partner(jti="revoked-at-home"), peer=PEER, now=NOW)


# RS256, for issuers that know no other.


def validate(text: str, entry: dict[str, Any], **options: Any) -> None:
    keys = StaticKeys({"keys": [entry, {**jwk(HOMES), "kid": "other"}]})
    TokenValidator(issuer=HOME, audience=AUDIENCE, keys=keys, **options).validate(text, peer=PEER, now=NOW)


def pkcs1(header: dict[str, Any], key: rsa.RSAPrivateKey = RSA) -> str:
    signed = f"{b64(json.dumps(header).encode())}.{b64(json.dumps({**CLAIMS, 'iss': HOME}).encode())}"
    return f"{signed}.{b64(key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


KEY = {**jwk(RSA), "kid": "k3"}
RS256 = {"alg": "RS256", "typ": "at+jwt", "kid": "k3"}
PS256_BY_NAME = {"alg": "PS256", "typ": "at+jwt", "kid": "k3"}

RSA_ATTACKS: dict[str, tuple[type[TokenError], str, dict[str, Any], dict[str, Any]]] = {
    "not asked for": (TokenAlgorithmRefused, pkcs1(RS256), KEY, {}),
    "a key of 1024 bits": (
        TokenKeyUnknown,
        pkcs1(RS256, SMALL),
        {**jwk(SMALL), "kid": "k3"},
        {"unsafe_rs256": True},
    ),
    "a key that is for PS256": (TokenKeyUnknown, pkcs1(RS256), {**KEY, "alg": "PS256"}, {"unsafe_rs256": True}),
    "called PS256": (TokenSignatureWrong, pkcs1(PS256_BY_NAME), KEY, {"unsafe_rs256": True}),
    "PSS called RS256": (
        TokenSignatureWrong,
        (lambda text: f"{b64(json.dumps(RS256).encode())}.{text.split('.', 1)[1]}")(
            home(header={"alg": "PS256", "kid": "k3"}, key=RSA)
        ),
        KEY,
        {"unsafe_rs256": True},
    ),
    "RS512": (TokenAlgorithmRefused, pkcs1({**RS256, "alg": "RS512"}), KEY, {"unsafe_rs256": True}),
    "with a key of another kind": (
        TokenKeyUnknown,
        pkcs1({**RS256, "kid": "other"}),
        KEY,
        {"unsafe_rs256": True},
    ),
}


@pytest.mark.parametrize("name", RSA_ATTACKS)
def test_rs256(name: str) -> None:
    expected, text, entry, options = RSA_ATTACKS[name]
    with pytest.raises(TokenError) as caught:
        validate(text, entry, **options)
    assert type(caught.value) is expected


def test_rs256_where_it_was_asked_for_and_only_in_tokens() -> None:
    for entry in (KEY, {**KEY, "alg": "RS256"}):
        validate(pkcs1(RS256), entry, unsafe_rs256=True)
        validate(home(), {**jwk(HOMES), "kid": "k1"}, unsafe_rs256=True)
    protected, payload, signature = pkcs1(RS256).split(".")
    with pytest.raises(AlgorithmRefused):  # a message is never signed so, whatever its verifier was told
        jws.verify_detached(
            f"{protected}..{signature}",
            jws.decode(payload),
            key=RSA.public_key(),
            algorithms=("RS256", "PS256"),
            typ="at+jwt",
        )
