"""The strict JWS profile: what we sign, others verify; what others sign strictly, we verify; RFC vectors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st
from jwcrypto import jwk as jwcrypto_jwk
from jwcrypto import jws as jwcrypto_jws

from trust import json_text
from trust.errors import (
    AlgorithmRefused,
    ConfigurationError,
    HeaderMalformed,
    KeyMismatch,
    SignatureError,
    SignatureMalformed,
    SignatureTooLarge,
    SignatureWrong,
    TrustError,
)
from trust.signing import algorithms, jws

P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
ED25519 = ed25519.Ed25519PrivateKey.generate()
RSA = rsa.generate_private_key(65537, 2048)
KEYS = [(P256, "ES256"), (P384, "ES384"), (ED25519, "Ed25519")]
HEADER = {"typ": "a2a-req+jws", "crit": ["a2a"], "a2a": {"v": 1}}
PAYLOAD = b'{"hello":"world"}'


def jwk(key: Any) -> jwcrypto_jwk.JWK:
    return jwcrypto_jwk.JWK.from_pyca(key)


@pytest.mark.parametrize(("key", "alg"), KEYS)
@pytest.mark.parametrize("payload", [b"", PAYLOAD, bytes(range(256))])
def test_what_is_signed_verifies_here_and_in_jwcrypto(key: Any, alg: str, payload: bytes) -> None:
    token = jws.sign_detached(payload, key=key, header=HEADER)
    header = jws.verify_detached(token, payload, key=key.public_key(), algorithms=[alg], typ="a2a-req+jws")
    assert header == {"alg": alg, **HEADER}

    protected, _, signature = token.split(".")
    other = jwcrypto_jws.JWS(header_registry={"a2a": jwcrypto_jws.JWSEHeaderParameter("a2a", False, True, None)})
    if alg == "Ed25519":  # jwcrypto knows the algorithm by its older name only
        key.public_key().verify(jws.decode(signature), f"{protected}.{jws.encode(payload)}".encode())
        return
    other.allowed_algs = [alg]
    other.deserialize(f"{protected}.{jws.encode(payload)}.{signature}", jwk(key.public_key()))
    assert other.is_valid
    assert other.payload == payload


@pytest.mark.parametrize(("key", "alg"), [(P256, "ES256"), (P384, "ES384"), (ED25519, "EdDSA"), (RSA, "PS256")])
def test_what_jwcrypto_signs_verifies(key: Any, alg: str) -> None:
    other = jwcrypto_jws.JWS(PAYLOAD)
    other.add_signature(jwk(key), protected=json.dumps({"alg": alg, "typ": "at+jwt"}))
    token = other.serialize(compact=True)
    parsed = jws.parse_compact(token, algorithms=[alg], typ=("at+jwt", "application/at+jwt"))
    assert (parsed.alg, parsed.header) == (alg, {"alg": alg, "typ": "at+jwt"})
    assert parsed.verify(key.public_key()) == PAYLOAD

    protected, _, signature = token.split(".")
    jws.verify_detached(f"{protected}..{signature}", PAYLOAD, key=key.public_key(), algorithms=[alg], typ="at+jwt")


@pytest.mark.parametrize("key", [P256, P384])
def test_ecdsa_is_deterministic(key: Any) -> None:
    first, second = (jws.sign_compact(PAYLOAD, key=key, header=HEADER) for _ in range(2))
    assert first == second
    assert jws.sign_compact(PAYLOAD + b" ", key=key, header=HEADER) != first


def test_vector_of_rfc_8037_a_4() -> None:
    key = ed25519.Ed25519PrivateKey.from_private_bytes(jws.decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"))
    data = b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc"
    signature = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
    assert jws.encode(algorithms.signer(key)[1](data)) == signature
    for alg in ("EdDSA", "Ed25519"):
        algorithms.verify(alg, key.public_key(), jws.decode(signature), data)


@pytest.mark.parametrize(
    ("in_header", "allowed", "accepted"),
    [
        ("EdDSA", ["EdDSA"], True),
        ("EdDSA", ["Ed25519"], True),  # the older name of the same thing
        ("Ed25519", ["Ed25519"], True),
        ("Ed25519", ["EdDSA"], False),
        ("EdDSA", ["ES256"], False),
    ],
)
def test_the_older_name_of_ed25519_is_read(in_header: str, allowed: list[str], accepted: bool) -> None:
    protected = jws.encode(json.dumps({"alg": in_header, "typ": "t"}).encode())
    signature = jws.encode(ED25519.sign(f"{protected}.{jws.encode(PAYLOAD)}".encode()))
    arguments: dict[str, Any] = {"key": ED25519.public_key(), "algorithms": allowed, "typ": "t"}
    if accepted:
        jws.verify_detached(f"{protected}..{signature}", PAYLOAD, **arguments)
    else:
        with pytest.raises(AlgorithmRefused):
            jws.verify_detached(f"{protected}..{signature}", PAYLOAD, **arguments)


def test_high_s_verifies_so_nothing_may_be_keyed_by_a_signature() -> None:
    token = jws.sign_detached(PAYLOAD, key=P256, header=HEADER)
    protected, _, signature = token.split(".")
    raw = jws.decode(signature)
    s = ec.SECP256R1.group_order - int.from_bytes(raw[32:])
    twin = f"{protected}..{jws.encode(raw[:32] + s.to_bytes(32))}"
    assert twin != token
    assert jws.verify_detached(twin, PAYLOAD, key=P256.public_key(), algorithms=["ES256"], typ="a2a-req+jws")


def test_the_payload_of_a_parsed_token_is_only_returned_by_verify_when_it_is_true() -> None:
    token = jws.sign_compact(PAYLOAD, key=P256, header={"typ": "at+jwt"})
    protected, _, signature = token.split(".")
    forged = jws.parse_compact(f"{protected}.{jws.encode(b'other')}.{signature}", algorithms=["ES256"], typ="at+jwt")
    assert forged.payload == b"other"
    with pytest.raises(SignatureWrong):
        forged.verify(P256.public_key())


def test_secrets_and_content_are_not_in_the_repr() -> None:
    token = jws.sign_compact(b"secret", key=P256, header={"typ": "at+jwt"})
    parsed = jws.parse_compact(token, algorithms=["ES256"], typ="at+jwt")
    assert "secret" not in repr(parsed)
    assert token.split(".")[2] not in repr(parsed)


@pytest.mark.parametrize(
    "header",
    [
        {"typ": "t", "alg": "ES384"},
        {"typ": "t", "alg": "none"},
        {"typ": "t", "alg": None},
        {"typ": "t", "crit": ["a2a"]},
        {"typ": "t", "crit": []},
        {"typ": "t", "crit": ["alg"]},
        {"typ": "t", "b64": False, "crit": ["b64"]},
        {"typ": "t", "jwk": {}},
        {"typ": "t", "jku": "https://evil"},
        {"typ": "t", "x5u": "https://evil"},
        {"typ": "t", "n": float("nan")},
        {"typ": "t", "o": object()},
        {"typ": "t", "x5c": ["A" * 9000]},
    ],
)
def test_nothing_is_signed_that_a_verifier_would_refuse(header: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        jws.sign_detached(PAYLOAD, key=P256, header=header)


def test_a_compact_jws_has_a_size_limit_too() -> None:
    with pytest.raises(ConfigurationError):
        jws.sign_compact(b"x" * 13_000, key=P256, header={"typ": "t"})


@pytest.mark.parametrize(
    "key",
    [RSA, ec.generate_private_key(ec.SECP521R1()), ed448.Ed448PrivateKey.generate(), P256.public_key(), b"key", None],
)
def test_keys_that_nothing_signs_with(key: Any) -> None:
    with pytest.raises(ConfigurationError):
        jws.sign_detached(PAYLOAD, key=key, header=HEADER)


@pytest.mark.parametrize("payload", ["text", bytearray(b"x"), None])
def test_payloads_are_bytes(payload: Any) -> None:
    with pytest.raises(TypeError):
        jws.sign_detached(payload, key=P256, header=HEADER)
    token = jws.sign_detached(PAYLOAD, key=P256, header=HEADER)
    with pytest.raises(TypeError):
        jws.verify_detached(token, payload, key=P256.public_key(), algorithms=["ES256"], typ="a2a-req+jws")


@pytest.mark.parametrize("argument", [{"algorithms": "ES256"}, {"understood": "a2a"}])
def test_a_str_is_not_a_collection_of_names(argument: dict[str, Any]) -> None:
    token = jws.sign_detached(PAYLOAD, key=P256, header=HEADER)
    arguments = {"key": P256.public_key(), "algorithms": ["ES256"], "typ": "a2a-req+jws", **argument}
    with pytest.raises(TypeError):
        jws.verify_detached(token, PAYLOAD, **arguments)


@pytest.mark.parametrize(
    ("text", "value"), [("", b""), ("AA", b"\0"), ("_-8", b"\xff\xef"), ("AAAA", b"\0\0\0"), ("Zm9v", b"foo")]
)
def test_base64url(text: str, value: bytes) -> None:
    assert jws.decode(text) == jws.decode(text.encode()) == value
    assert jws.encode(value) == text


@pytest.mark.parametrize(
    "text", ["A", "AA==", "AB", "AAB", "A+", "A/A", "A A", "AA\n", "\nAA", "A=AA", "Ä", "AA\x00", "AAAAA"]
)
def test_base64url_has_one_spelling(text: str) -> None:
    with pytest.raises(SignatureMalformed):
        jws.decode(text)


@given(st.binary(max_size=80))
def test_base64url_round_trip(data: bytes) -> None:
    assert jws.decode(jws.encode(data)) == data


@given(st.text("AaZz09-_+/= \n.", max_size=12))
def test_base64url_is_injective(text: str) -> None:
    try:
        data = jws.decode(text)
    except SignatureMalformed:
        return
    assert jws.encode(data) == text


def test_strict_json() -> None:
    assert jws.strict_json(b'{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    for bad in (b'{"a":1,"a":1}', b"NaN", b"[" * 33 + b"]" * 33, b'"' + b"a" * jws.MAX_JSON_BYTES + b'"', b"\xff"):
        with pytest.raises(HeaderMalformed):
            jws.strict_json(bad)
    assert jws.strict_json(b"[" * 32 + b"]" * 32)


_TOKEN = jws.sign_detached(PAYLOAD, key=P256, header=HEADER)


@given(st.data())
@settings(max_examples=800)
def test_no_mutation_of_a_signed_message_verifies(data: st.DataObject) -> None:
    """Whatever is changed, in the JWS or in the payload, is refused, and never with anything but a TrustError."""
    token, payload = _TOKEN, PAYLOAD
    at = data.draw(st.integers(0, len(token) - 1))
    what = data.draw(st.sampled_from(["replace", "insert", "delete", "truncate", "payload", "duplicate", "swap"]))
    character = data.draw(st.characters(max_codepoint=0x17F) | st.sampled_from("ABab01-_=.+/"))
    match what:
        case "replace":
            token = token[:at] + character + token[at + 1 :]
        case "insert":
            token = token[:at] + character + token[at:]
        case "delete":
            token = token[:at] + token[at + 1 :]
        case "truncate":
            token = token[:at]
        case "duplicate":
            token = token[:at] + token[: at + 1]
        case "swap":
            other = data.draw(st.integers(0, len(token) - 1))
            letters = list(token)
            letters[at], letters[other] = letters[other], letters[at]
            token = "".join(letters)
        case _:
            place = at % len(payload)
            payload = payload[:place] + bytes([payload[place] ^ data.draw(st.integers(0, 255))]) + payload[place + 1 :]
    if (token, payload) == (_TOKEN, PAYLOAD):
        return
    with pytest.raises(SignatureError):
        jws.verify_detached(token, payload, key=P256.public_key(), algorithms=["ES256"], typ="a2a-req+jws")


_MEMBER = st.sampled_from(["alg", "typ", "crit", "a2a", "b64", "jwk", "kid", "x"])
_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["ES256", "a2a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(_MEMBER, _ANY, max_size=6) | _ANY)
@settings(max_examples=300)
def test_arbitrary_headers_never_raise_anything_but_trust_errors(header: Any) -> None:
    """The signature is good, so that the header alone decides."""
    protected = jws.encode(json.dumps(header).encode())
    signature = jws.encode(algorithms.signer(P256)[1](f"{protected}.".encode()))
    try:
        result = jws.verify_detached(
            f"{protected}..{signature}", b"", key=P256.public_key(), algorithms=["ES256"], typ="a2a"
        )
    except TrustError:
        return
    assert (result["typ"], result["alg"]) == ("a2a", "ES256")
    assert "b64" not in result
    assert "jwk" not in result
    assert result.get("crit", ["a2a"]) == ["a2a"]


_SCALAR_BYTES = st.sampled_from([b"", b"\0", b"\0\0", b"\0\x80", b"\x7f", b"\x80", b"\xff"])


@given(st.sampled_from([32, 48]), st.tuples(_SCALAR_BYTES, _SCALAR_BYTES), st.binary(min_size=96, max_size=96))
@settings(max_examples=500)
def test_der_is_written_and_read_as_cryptography_does(size: int, heads: tuple[bytes, bytes], data: bytes) -> None:
    """Whatever the numbers begin with: zeros, which DER leaves out, and set first bits, before which it puts one."""
    r, s = (head + data[at : at + size - len(head)] for head, at in zip(heads, (0, 48), strict=True))
    if not int.from_bytes(r) or not int.from_bytes(s):
        return
    der = encode_dss_signature(int.from_bytes(r), int.from_bytes(s))
    assert algorithms._der(r, s) == der
    assert algorithms._raw(der, size) == r + s


@pytest.mark.parametrize(("key", "alg"), [(P256, "ES256"), (P384, "ES384")])
def test_numbers_outside_the_order_of_the_curve_are_no_signature(key: Any, alg: str) -> None:
    size, order = (key.key_size + 7) // 8, key.curve.group_order
    good = algorithms.signer(key)[1](b"data")
    r, s = int.from_bytes(good[:size]), int.from_bytes(good[size:])
    algorithms.verify(alg, key.public_key(), good, b"data")
    for bad in ((0, 0), (0, s), (r, 0), (order, s), (r, order), (2 ** (8 * size) - 1, s), (r + 1, s)):
        with pytest.raises(SignatureWrong):
            algorithms.verify(alg, key.public_key(), b"".join(n.to_bytes(size) for n in bad), b"data")


def test_short_numbers_verify() -> None:
    """One in 128 signatures has a zero byte at the start of r or s."""
    found = 0
    for n in range(2000):
        data = n.to_bytes(4)
        signature = algorithms.signer(P256)[1](data)
        if not signature[0] or not signature[32]:
            algorithms.verify("ES256", P256.public_key(), signature, data)
            found += 1
    assert found


def test_der_of_a_raw_signature_is_the_same_signature() -> None:
    """The helper of the attack tables: r || s is what RFC 7518 section 3.4 says, nothing of ours."""
    raw = jws.decode(_TOKEN.split(".")[2])
    der = encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))
    signed = f"{_TOKEN.split('.')[0]}.{jws.encode(PAYLOAD)}".encode()
    P256.public_key().verify(der, signed, ec.ECDSA(hashes.SHA256()))
    assert decode_dss_signature(der)[0] == int.from_bytes(raw[:32])


def test_ps256_needs_a_large_key_and_its_salt_length() -> None:
    data = b"data"
    for key, salt, error in (
        (rsa.generate_private_key(65537, 1024), 32, KeyMismatch),
        (RSA, 20, SignatureWrong),
        (RSA, 0, SignatureWrong),
    ):
        signature = key.sign(data, padding.PSS(padding.MGF1(hashes.SHA256()), salt), hashes.SHA256())
        with pytest.raises(error):
            algorithms.verify("PS256", key.public_key(), signature, data)


def test_size_limits_come_first() -> None:
    with pytest.raises(SignatureTooLarge):
        jws.parse_detached("!" * 8193, algorithms=["ES256"], typ="t")
    with pytest.raises(SignatureTooLarge):
        jws.parse_compact("!" * 16385, algorithms=["ES256"], typ="t")
    with pytest.raises(SignatureMalformed):
        jws.parse_detached("!" * 8192, algorithms=["ES256"], typ="t")


def test_everything_works_without_orjson(monkeypatch: pytest.MonkeyPatch) -> None:
    token = jws.sign_detached(PAYLOAD, key=P256, header=HEADER)
    monkeypatch.setattr(json_text, "orjson", None)
    assert jws.sign_detached(PAYLOAD, key=P256, header=HEADER) == token
    assert jws.verify_detached(token, PAYLOAD, key=P256.public_key(), algorithms=["ES256"], typ="a2a-req+jws")
    with pytest.raises(HeaderMalformed):
        jws.strict_json(b'{"a":1,"a":1}')
