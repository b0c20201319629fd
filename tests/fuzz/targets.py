"""What is fuzzed: bytes go in, and a `Difference` is raised where we accept what others do not, or read it differently.

Anything else that is raised is a mistake, too: a verifier refuses with its own errors and no others.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from unittest import mock

import rfc8785
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from jwcrypto import jws as other
from jwcrypto.common import JWException
from jwcrypto.jwk import JWK

from tests.interop.oracle import Oracle
from trust import json_text
from trust.errors import CanonicalizationError, SignatureError, SignatureWrong
from trust.signing import algorithms, jws
from trust.signing.canonical import canonicalize

TYPE = "a2a-req+jws"
PAYLOAD = b'{"pay":100}'
CHOICES = 8  # bytes before the header's text
ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493


class Difference(AssertionError):
    """Two readers of one text disagree."""


class Key(NamedTuple):
    alg: str
    private: Any
    public: Any
    size: int  # bytes of r and of s; 0 where it is not ECDSA
    accepted: tuple[str, ...]  # names of the algorithm that are good with it


def _key(alg: str, private: Any, size: int = 0, accepted: tuple[str, ...] = ()) -> Key:
    return Key(alg, private, private.public_key(), size, accepted or (alg,))


_ED25519 = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\1")
# Always the same, for what was found to be found again; RSA keys cannot be had from a number.
KEYS = (
    _key("ES256", ec.derive_private_key(7515, ec.SECP256R1()), 32),
    _key("ES384", ec.derive_private_key(7515, ec.SECP384R1()), 48),
    _key("Ed25519", _ED25519, accepted=("Ed25519", "EdDSA")),
    _key("EdDSA", _ED25519),
    _key("PS256", rsa.generate_private_key(65537, 2048)),
)
_PSS = padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256.digest_size)


def _numbers(change: Callable[[int, int, int], tuple[int, int]]) -> Callable[[bytes, Key], bytes]:
    """A change of the two numbers of an ECDSA signature, which gets (r, s, order); what does not fit is left."""

    def changed(raw: bytes, key: Key) -> bytes:
        if not key.size:
            return raw
        r, s = change(*_halves(raw), key.private.curve.group_order)
        fits = max(r, s).bit_length() <= 8 * key.size
        return r.to_bytes(key.size) + s.to_bytes(key.size) if fits else raw

    return changed


def _halves(raw: bytes) -> tuple[int, int]:
    return int.from_bytes(raw[: len(raw) // 2]), int.from_bytes(raw[len(raw) // 2 :])


def _beyond(raw: bytes, key: Key) -> bytes:
    """With s + L for s, the same number to a careless verifier of Ed25519 (RFC 8032 section 5.1.7)."""
    if key.private is not _ED25519:
        return raw
    return raw[:32] + (int.from_bytes(raw[32:], "little") + ED25519_ORDER).to_bytes(32, "little")


TWISTS: tuple[Callable[[bytes, Key], bytes], ...] = (
    lambda raw, key: raw,
    _numbers(lambda r, s, order: (r, order - s)),
    _numbers(lambda r, s, order: (0, s)),
    _numbers(lambda r, s, order: (r, 0)),
    _numbers(lambda r, s, order: (order, order)),
    _numbers(lambda r, s, order: (r + order, s)),
    _numbers(lambda r, s, order: (r, s + order)),
    _numbers(lambda r, s, order: (s, r)),
    lambda raw, key: encode_dss_signature(*_halves(raw)),
    _beyond,
    lambda raw, key: raw[:-1],
    lambda raw, key: raw + b"\0",
    lambda raw, key: b"\0" + raw[: len(raw) // 2] + b"\0" + raw[len(raw) // 2 :],
    lambda raw, key: bytes(len(raw)),
    lambda raw, key: b"",
)


class Verdict(NamedTuple):
    ours: type[SignatureError] | None
    jwcrypto: bool | None  # None where it was not asked
    jose: bool | None


def jws_target(data: bytes, node: Oracle | None) -> Verdict:
    """A JWS of this header, well signed; then its signature or its text is changed, as the first bytes say."""
    choices = data[:CHOICES].ljust(CHOICES, b"\0")
    key = KEYS[choices[0] % len(KEYS)]
    detached = bool(choices[1] & 1)
    protected = jws.encode(data[CHOICES:])
    signed = f"{protected}.{jws.encode(PAYLOAD)}"
    raw = TWISTS[choices[2] % len(TWISTS)](_sign(key, signed.encode()), key)
    text = f"{protected}.{'' if detached else jws.encode(PAYLOAD)}.{jws.encode(raw)}"
    text = _edited(text, choices[3], int.from_bytes(choices[4:6]), chr(choices[6]))
    # The others know no detached form: the payload is put back.
    whole = text.replace("..", f".{jws.encode(PAYLOAD)}.") if detached and text.count(".") == 2 else text
    return _judged(text, whole, detached, key, node)


def _judged(text: str, whole: str, detached: bool, key: Key, node: Oracle | None) -> Verdict:
    found = _ours(text, detached, key)
    by_jwcrypto = _jwcrypto(whole, key)
    by_jose = None if node is None else _jose(whole, key, node)
    ours = None if isinstance(found, SignatureError) else found
    for name, theirs in (("jwcrypto", by_jwcrypto), ("jose", by_jose)):
        if theirs is None:
            continue
        if ours is not None and theirs != ours:
            raise Difference(f"{name} has {theirs}, we have {ours} for {text}")
        if type(found) is SignatureWrong and theirs:
            raise Difference(f"{name} finds right what we find wrong: {text}")
    return Verdict(
        type(found) if isinstance(found, SignatureError) else None,
        None if by_jwcrypto is None else bool(by_jwcrypto),
        None if by_jose is None else bool(by_jose),
    )


Read = tuple[Mapping[str, Any], bytes]  # the header and the payload, as one reader has them


def _ours(text: str, detached: bool, key: Key) -> Read | SignatureError:
    try:
        if detached:
            arguments = {"key": key.public, "algorithms": (key.alg,), "typ": TYPE}
            return jws.verify_detached(text, PAYLOAD, **arguments), PAYLOAD
        parsed = jws.parse_compact(text, algorithms=(key.alg,), typ=TYPE, understood=("a2a",))
        return parsed.header, parsed.verify(key.public)
    except SignatureError as error:
        return error


def _jwcrypto(whole: str, key: Key) -> Read | tuple[()] | None:
    if key.alg == "Ed25519":
        return None  # it has the algorithm by its older name alone
    registry = {"a2a": other.JWSEHeaderParameter("a2a", False, True, None)}  # type: ignore[attr-defined]  # not in its stubs
    found = other.JWS(header_registry=registry)
    found.allowed_algs = [key.alg]
    try:
        found.deserialize(whole, JWK.from_pyca(key.public))
    except (JWException, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return ()
    return (found.jose_header, found.payload) if found.is_valid else ()


def _jose(whole: str, key: Key, node: Oracle) -> Read | tuple[()]:
    public = JWK.from_pyca(key.public).export_public(as_dict=True)
    answer = node.ask(key=public, alg=key.alg, algorithms=key.accepted, token=whole)
    return () if "error" in answer else (answer["header"], jws.decode(answer["payload"]))


def _sign(key: Key, data: bytes) -> bytes:
    if key.alg == "PS256":
        signature: bytes = key.private.sign(data, _PSS, hashes.SHA256())
        return signature
    return algorithms.signer(key.private)[1](data)


def _edited(text: str, how: int, at: int, character: str) -> str:
    at %= len(text)
    match how % 8:  # most texts are left as they were signed
        case 1:
            return text[:at] + character + text[at:]
        case 2:
            return text[:at] + character + text[at + 1 :]
        case 3:
            return text[:at] + text[at + 1 :]
    return text


def canonical_target(data: bytes, node: Oracle | None) -> bytes | None:
    """The canonical form of these bytes is the same from every writer, with orjson and without; None if refused."""
    text = _canonical(data)
    with mock.patch.object(json_text, "orjson", None):
        slowly = _canonical(data)
    if text != slowly:
        raise Difference(f"{text!r} with orjson, {slowly!r} without")
    if text is None:
        return None
    try:
        answers = {"rfc8785": rfc8785.dumps(json.loads(data))}
    except (rfc8785.CanonicalizationError, ValueError) as error:
        raise Difference(f"{error} to rfc8785, {text!r} by us") from None
    if node is not None:
        answers["ECMAScript"] = node.ask(json=data.decode()).get("canonical", "").encode()
    for name, theirs in answers.items():
        if theirs != text:
            raise Difference(f"{theirs!r} by {name}, {text!r} by us")
    # Its one exception: floats from 2^53 on are written as integers, which are refused.
    if _canonical(text) not in (text, None):
        raise Difference(f"{text!r} is no fixed point")
    return text


def _canonical(data: bytes) -> bytes | None:
    try:
        return canonicalize(data)
    except CanonicalizationError:
        return None


TARGETS: Mapping[str, Callable[[bytes, Oracle | None], object]] = {"jws": jws_target, "canonical": canonical_target}

_HEADERS = (
    b'{"alg":"ES256","typ":"a2a-req+jws"}',
    b'{"alg":"ES256","typ":"a2a-req+jws","crit":["a2a"],"a2a":{"v":1}}',
    b'{ "typ" : "a2a-req+jws", "alg":"ES\\u003256", "x":[1.5e3,true,null,"\\u00e9"] }',
)
SEEDS: Mapping[str, tuple[bytes, ...]] = {
    "jws": tuple(
        bytes([number, number, twist]).ljust(CHOICES, b"\0") + header.replace(b"ES256", key.alg.encode())
        for number, key in enumerate(KEYS)
        for twist, header in enumerate(_HEADERS)
    ),
    "canonical": (
        b'{"b":[1,2.50,1e21,1E-7,0.000001,-0,9007199254740991],"a":{"\\u20ac":"\\ud83d\\ude00"}}',
        b' [ "\\u000f\\n\\"\\\\", true , null , {} , [] , 123456789012345680000.0 ] ',
        '{"\ufb33":1,"\U0001f600":2,"é":3,"\\r":4}'.encode(),
    ),
}
_MEMBERS = ("alg", "typ", "crit", "a2a", "b64", "jwk", "jku", "x5u", "kid", "x5c", "zip", "x", "__proto__")
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 0.5, 1e-6, 1.0, 1e16, 2**53, 2**53 + 1, -0.0, float("nan"), float("inf")),
    *("", "é", "\u2028", "\x00", "\ud800", "\ufb33", "\U0001f600", "a2a", TYPE, "JWT", "none", "HS256", "EdDSA"),
    *([], ["a2a"], ["b64"], ["a2a", "x"], ["a2a", "a2a"], [None], {}, {"v": 1}),
    *(key.alg for key in KEYS),
)
_SPACES = ((",", ":"), (", ", ": "), (" ,\n", "\t:"))
_PIECES = (*'{}[]",:\\ 0e.-\n', "\\u0061", ".0", "e-6", "1e400", '"x":1,', "\ufeff", "=", "+", "/")


def mutated(name: str, data: bytes, chance: random.Random) -> bytes:
    """Other bytes for a target, near these: what a fuzzer that knows nothing of JSON and choices takes long to find."""
    head = CHOICES if name == "jws" else 0
    choices, text = bytearray(data[:head].ljust(head, b"\0")), data[head:]
    if head and chance.random() < 0.3:
        choices[chance.randrange(head)] = chance.randrange(256)
    elif head and chance.random() < 0.3:
        choices[3:7] = bytes([chance.randrange(1, 4), *chance.randbytes(2), ord(chance.choice("A_=+/. \n"))])
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        text = chance.choice(SEEDS[name])[head:]
        value = json.loads(text)
    if isinstance(value, dict) and chance.random() < 0.7:
        value[chance.choice(_MEMBERS)] = chance.choice(_VALUES)
        if chance.random() < 0.2:
            del value[chance.choice(list(value))]
    made = json.dumps(value, ensure_ascii=chance.random() < 0.5, separators=chance.choice(_SPACES))
    if chance.random() < 0.3:
        at = chance.randrange(len(made))
        made = made[:at] + chance.choice(_PIECES) + made[at + chance.randrange(3) :]
    return bytes(choices) + made.encode(errors="surrogatepass")
