"""Our own keys."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jwcrypto.jwk import JWK

from trust.errors import ConfigurationError, CredentialsError, WrongPassword
from trust.oauth.keys import SigningKey, StaticKeys, public_jwks

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("private_key", "alg"),
    [
        (ec.generate_private_key(ec.SECP256R1()), "ES256"),
        (ec.generate_private_key(ec.SECP384R1()), "ES384"),
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
    ],
    ids=["P-256", "P-384", "Ed25519"],
)
def test_signing_key_round_trip(private_key: Any, alg: str) -> None:
    key = SigningKey.of(private_key)
    assert key.alg == alg
    again = SigningKey.from_pem(key.to_pem(b"secret"), b"secret")
    assert (again.kid, again.alg, again.public_jwk) == (key.kid, key.alg, key.public_jwk)
    found = StaticKeys(public_jwks([key])).find(key.kid, alg, now=NOW)
    assert found == private_key.public_key()


def test_the_key_id_is_the_rfc_7638_thumbprint() -> None:
    public = JWK(  # the key of RFC 8037 appendix A.3, with its thumbprint there
        kty="OKP", crv="Ed25519", x="11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        d="nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
    )  # fmt: skip
    key = SigningKey.from_pem(public.export_to_pem(private_key=True, password=None), None)
    assert key.kid == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_what_is_published_holds_no_private_part() -> None:
    keys = [SigningKey.generate(), SigningKey.of(ed25519.Ed25519PrivateKey.generate())]
    published = public_jwks(keys)
    assert [k["kid"] for k in published["keys"]] == [k.kid for k in keys]
    assert not {"d", "k", "p", "q"} & {name for k in published["keys"] for name in k}
    assert {k["use"] for k in published["keys"]} == {"sig"}
    assert "private_key" not in repr(keys[0])


@pytest.mark.parametrize(
    "private_key",
    [ec.generate_private_key(ec.SECP521R1()), ec.generate_private_key(ec.SECP224R1()),
     rsa.generate_private_key(65537, 2048),
     ed448.Ed448PrivateKey.generate()],
    ids=["P-521", "P-224", "RSA", "Ed448"],
)  # fmt: skip
def test_other_keys_do_not_sign(private_key: Any) -> None:
    with pytest.raises(ConfigurationError):
        SigningKey.of(private_key)


def test_pem_errors() -> None:
    key = SigningKey.generate()
    clear = key.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    locked = key.to_pem(b"secret")
    assert b"ENCRYPTED" in locked
    assert SigningKey.from_pem(clear, None).kid == key.kid
    for pem, password in [(locked, None), (locked, b"wrong"), (clear, b"secret")]:
        with pytest.raises(WrongPassword):
            SigningKey.from_pem(pem, password)
    for pem, password in [(b"no key", None), (b"no key", b"secret"), (locked[:100] + locked[120:], b"secret")]:
        with pytest.raises(CredentialsError) as caught:
            SigningKey.from_pem(pem, password)
        assert type(caught.value) is CredentialsError
    with pytest.raises(ConfigurationError):
        key.to_pem(b"")
