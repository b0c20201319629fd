"""The signed list of revoked tokens: what is signed is what is read, within the bounds. Attacks: tests/attacks."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from tests.forge import NOW
from trust.errors import DenylistTooLarge
from trust.oauth.denylist import document
from trust.oauth.denylist.document import LIST_SECONDS, MAX_ENTRIES, RevokedTokens, key_id, sign_list, verified_list
from trust.oauth.keys import SigningKey, StaticKeys, public_jwks
from trust.private_keys import ClassicalKey

ISSUER = "https://auth.fleet.example"
SECONDS = int(NOW.timestamp())
LIST = RevokedTokens(
    issuer=ISSUER, sequence=7, issued_at=SECONDS, expires_at=SECONDS + LIST_SECONDS, tokens={"a": SECONDS + 600}
)


KEYS: dict[str, ClassicalKey] = {
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
}


@pytest.mark.parametrize("private_key", KEYS.values(), ids=KEYS)
def test_what_is_signed_is_what_is_read(private_key: ClassicalKey) -> None:
    key = SigningKey.of(private_key)
    text = sign_list(LIST, key)
    assert key_id(text) == key.kid
    assert verified_list(text, issuer=ISSUER, keys=StaticKeys(public_jwks([key])), now=NOW) == LIST
    assert "tokens" not in repr(LIST)


def test_the_largest_list_is_taken_and_one_more_entry_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    key = SigningKey.generate()
    keys = StaticKeys(public_jwks([key]))
    full = replace(LIST, tokens={f"{n:032}": SECONDS + 600 for n in range(MAX_ENTRIES)})
    text = sign_list(full, key)
    assert len(text) < document.MAX_LIST_BYTES
    assert len(verified_list(text, issuer=ISSUER, keys=keys, now=NOW).tokens) == MAX_ENTRIES
    one_more = replace(full, tokens={**full.tokens, "x": SECONDS})
    with pytest.raises(DenylistTooLarge):
        sign_list(one_more, key)
    with monkeypatch.context() as changed:
        changed.setattr(document, "MAX_ENTRIES", MAX_ENTRIES + 1)
        text = sign_list(one_more, key)
    with pytest.raises(DenylistTooLarge):
        verified_list(text, issuer=ISSUER, keys=keys, now=NOW)


def test_a_list_lasts_from_ten_seconds_before_it_was_signed_to_its_end() -> None:
    key = SigningKey.generate()
    text, keys = sign_list(LIST, key), StaticKeys(public_jwks([key]))
    for seconds in (-10, 0, LIST_SECONDS - 1):
        assert verified_list(text, issuer=ISSUER, keys=keys, now=NOW + timedelta(seconds=seconds)) == LIST
