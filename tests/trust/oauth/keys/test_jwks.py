"""What of an issuer's key set is used."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa, x25519
from jwcrypto.jwk import JWK

from trust.errors import ConfigurationError, TokenKeyUnknown
from trust.oauth.keys import StaticKeys
from trust.oauth.keys.jwks import MAX_KEYS

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
ALGORITHMS = ("ES256", "ES384", "PS256", "RS256", "Ed25519", "EdDSA", "ML-DSA-44", "ML-DSA-65")
RSA = rsa.generate_private_key(65537, 2048)


def jwk(key: Any, **members: Any) -> dict[str, Any]:
    return {**JWK.from_pyca(key.public_key()).export_public(as_dict=True), "kid": "k", **members}


def private_jwk(key: Any) -> dict[str, Any]:
    return {**JWK.from_pyca(key).export_private(as_dict=True), "kid": "k"}


P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
ED = ed25519.Ed25519PrivateKey.generate()
ML_DSA = mldsa.MLDSA44PrivateKey.generate()


@pytest.mark.parametrize(
    ("entry", "algorithms"),
    [
        (jwk(P256), ["ES256"]),
        (jwk(P256, alg="ES256", use="sig", key_ops=["verify"]), ["ES256"]),
        (jwk(P256, key_ops=["sign", "verify"], x5c=["AAAA"], unknown={"deep": []}), ["ES256"]),
        (jwk(P384), ["ES384"]),
        (jwk(ED), ["Ed25519", "EdDSA"]),
        (jwk(ED, alg="EdDSA"), ["EdDSA"]),
        (jwk(ED, alg="Ed25519"), ["Ed25519"]),
        (jwk(RSA), ["PS256", "RS256"]),
        (jwk(RSA, alg="PS256"), ["PS256"]),
        (jwk(RSA, alg="RS256"), ["RS256"]),
        (jwk(ML_DSA), ["ML-DSA-44"]),
        (jwk(mldsa.MLDSA65PrivateKey.from_seed_bytes(bytes(32))), ["ML-DSA-65"]),
    ],
)
def test_a_key_is_for_its_algorithm_only(entry: dict[str, Any], algorithms: list[str]) -> None:
    keys = StaticKeys({"keys": [entry]})
    for alg in (*ALGORITHMS, "RS512", "HS256", "ML-DSA-87", "none", ""):
        if alg in algorithms:
            assert keys.find("k", alg, now=NOW) is keys.find("k", alg, now=NOW)
        else:
            with pytest.raises(TokenKeyUnknown):
                keys.find("k", alg, now=NOW)
    with pytest.raises(TokenKeyUnknown):
        keys.find("other", algorithms[0], now=NOW)
    asyncio.run(keys.prepare("other", now=NOW))


UNUSABLE: dict[str, Any] = {
    "symmetric": {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "kid": "k"},
    "symmetric, named ES256": {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "kid": "k", "alg": "ES256"},
    "private EC": private_jwk(P256),
    "private RSA": private_jwk(RSA),
    "private OKP": private_jwk(ED),
    "public with k": jwk(P256, k="AAAA"),
    "for encryption": jwk(P256, use="enc"),
    "use is null": jwk(P256, use=None),
    "operations without verify": jwk(P256, key_ops=["encrypt"]),
    "operations as text": jwk(P256, key_ops="verify"),
    "other algorithm": jwk(P256, alg="ES384"),
    "HMAC algorithm": jwk(P256, alg="HS256"),
    "RSA with another hash": jwk(RSA, alg="RS512"),
    "RSA for encryption": jwk(RSA, alg="RSA-OAEP-256"),
    "algorithm is a list": jwk(P256, alg=["ES256"]),
    "no key ID": {k: v for k, v in jwk(P256).items() if k != "kid"},
    "empty key ID": jwk(P256, kid=""),
    "number as key ID": jwk(P256, kid=7),
    "endless key ID": jwk(P256, kid="k" * 257),
    "unknown type": jwk(P256, kty="XX"),
    "type is a list": jwk(P256, kty=["EC"]),
    "no type": {k: v for k, v in jwk(P256).items() if k != "kty"},
    "other curve": jwk(ec.generate_private_key(ec.SECP521R1())),
    "secp256k1": jwk(ec.generate_private_key(ec.SECP256K1())),
    "agreement key": jwk(x25519.X25519PrivateKey.generate()),
    "curve of another type": jwk(P256, crv="X25519"),
    "curve is missing": {k: v for k, v in jwk(P256).items() if k != "crv"},
    "x is missing": {k: v for k, v in jwk(P256).items() if k != "x"},
    "x is a number": jwk(P256, x=7),
    "x is empty": jwk(P256, x=""),
    "point off the curve": jwk(P256, x=jwk(P256)["y"], y=jwk(P256)["x"]),
    "point of the other curve": jwk(P384, crv="P-256"),
    "not base64url": jwk(P256, x="*"),
    "short Ed25519": jwk(ED, x="AAAA"),
    "RSA of 1024 bits": jwk(rsa.generate_private_key(65537, 1024)),
    "RSA of 16384 bits": jwk(RSA, n="_" * 2731),
    "RSA with an even exponent": jwk(RSA, e="Ag"),
    "RSA without e": {k: v for k, v in jwk(RSA).items() if k != "e"},
    "private ML-DSA": private_jwk(ML_DSA),
    "ML-DSA-87": jwk(mldsa.MLDSA87PrivateKey.from_seed_bytes(bytes(32))),
    "ML-DSA without alg": {k: v for k, v in jwk(ML_DSA).items() if k != "alg"},
    "ML-DSA named ES256": jwk(ML_DSA, alg="ES256"),
    "ML-DSA named by the other size": jwk(ML_DSA, alg="ML-DSA-65"),
    "ML-DSA, short": jwk(ML_DSA, pub="AAAA"),
    "ML-DSA without pub": {k: v for k, v in jwk(ML_DSA).items() if k != "pub"},
    "not an object": "k",
    "null": None,
}  # fmt: skip


@pytest.mark.parametrize("entry", UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_entries_are_passed_over(entry: Any) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    keys = StaticKeys({"keys": [entry, jwk(other, kid="good")]})
    assert keys.find("good", "ES256", now=NOW) == other.public_key()
    for alg in (*ALGORITHMS, "RS512", "HS256", "ML-DSA-87"):
        with pytest.raises(TokenKeyUnknown):
            keys.find("k", alg, now=NOW)
    with pytest.raises(ConfigurationError):
        StaticKeys({"keys": [entry]})


@pytest.mark.parametrize(
    "entry",
    [
        private_jwk(P256),
        {**private_jwk(P256), "kid": "another"},
        {**private_jwk(P256), "kid": None},
        {**private_jwk(P256), "kid": "another", "use": "enc", "alg": "ECDH-ES"},
        private_jwk(P384),
        {"kty": "EC", "d": "AAAA", "kid": "k"},
    ],
    ids=["the same entry", "by another kid", "by no kid", "for encryption", "another key by its kid", "half of one"],
)
def test_a_key_is_everyones_whose_private_half_is_in_the_set(entry: dict[str, Any]) -> None:
    for entries in ([jwk(P256), entry], [entry, jwk(P256)]):
        keys = StaticKeys({"keys": [*entries, jwk(ED, kid="good")]})
        assert keys.find("good", "EdDSA", now=NOW) == ED.public_key()
        with pytest.raises(TokenKeyUnknown):
            keys.find("k", "ES256", now=NOW)


def test_a_key_id_that_occurs_twice_names_no_key() -> None:
    keys = StaticKeys({"keys": [jwk(P256), jwk(P384), jwk(ED, kid="good")]})
    assert keys.find("good", "EdDSA", now=NOW) == ED.public_key()
    for alg in ("ES256", "ES384"):
        with pytest.raises(TokenKeyUnknown):
            keys.find("k", alg, now=NOW)


@pytest.mark.parametrize("document", [{}, {"keys": {}}, {"keys": []}, [], {"keys": [jwk(P256)] * (MAX_KEYS + 1)}])
def test_not_a_jwks(document: Any) -> None:
    with pytest.raises(ConfigurationError):
        StaticKeys(document)
