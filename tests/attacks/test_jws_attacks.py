"""Attacks on a detached JWS: one valid message, one mutation a row, and the error that stops it.

Rows marked `jwcrypto` are accepted by jwcrypto, a careful general library: that is why the strict parser exists.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwcrypto import jwk
from jwcrypto import jws as jwcrypto_jws

from trust.errors import (
    AlgorithmRefused,
    CriticalHeaderRefused,
    HeaderMalformed,
    KeyMismatch,
    SignatureMalformed,
    SignatureTooLarge,
    SignatureWrong,
    TypeWrong,
)
from trust.signing import jws

KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
ED = ed25519.Ed25519PrivateKey.generate()
RSA = rsa.generate_private_key(65537, 2048)
PAYLOAD = b'{"pay":100}'
ORDER = ec.SECP256R1.group_order
PEM = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
DEFAULT: Any = object()


@dataclass
class Message:
    """A valid message in its parts; an attack changes some of them before or after it is signed."""

    header: dict[str, Any] = field(
        default_factory=lambda: {"alg": "ES256", "typ": "a2a-req+jws", "crit": ["a2a"], "a2a": {"v": 1}}
    )
    header_text: bytes | None = None  # instead of `header`
    protected: str | None = None  # instead of base64url(header_text)
    sign: Callable[[bytes], bytes] = lambda data: es256(KEY, data)
    change_signature: Callable[[bytes], bytes] = lambda raw: raw
    signature: Callable[[str], str] = lambda text: text
    middle: str = ""
    whole: Callable[[str], Any] = lambda text: text
    payload: bytes = PAYLOAD
    key: Any = DEFAULT
    algorithms: tuple[str, ...] = ("ES256",)

    def build(self) -> Any:
        protected, signature = self.parts()
        return self.whole(f"{protected}.{self.middle}.{signature}")

    def parts(self) -> tuple[str, str]:
        text = self.header_text if self.header_text is not None else json.dumps(self.header).encode()
        protected = self.protected if self.protected is not None else jws.encode(text)
        raw = self.change_signature(self.sign(f"{protected}.{jws.encode(PAYLOAD)}".encode()))
        return protected, self.signature(jws.encode(raw))

    def verify(self) -> dict[str, Any]:
        key = KEY.public_key() if self.key is DEFAULT else self.key
        return jws.verify_detached(self.build(), self.payload, key=key, algorithms=self.algorithms, typ="a2a-req+jws")


def es256(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """By `cryptography` alone, so that the tables do not depend on our own signer."""
    size = (key.key_size + 7) // 8
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256() if size == 32 else hashes.SHA384())))
    return r.to_bytes(size) + s.to_bytes(size)


def header(**changes: Any) -> dict[str, Any]:
    members = {**Message().header, **changes}
    return {name: value for name, value in members.items() if value is not DEFAULT}


def text(inside: str) -> bytes:
    return ('{"alg":"ES256","typ":"a2a-req+jws","crit":["a2a"],"a2a":{"v":1}' + inside + "}").encode()


def rs(r: int, s: int) -> Callable[[bytes], bytes]:
    return lambda _: r.to_bytes(32) + s.to_bytes(32)


def der(raw: bytes) -> bytes:
    return encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))


def loose_bits(encoded: str) -> str:
    """The same bytes in another spelling: 64 bytes end in four bits that decoders throw away."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return encoded[:-1] + alphabet[alphabet.index(encoded[-1]) + 1]


def json_serialisation(token: str) -> str:
    protected, _, signature = token.split(".")
    return json.dumps({"protected": protected, "signature": signature, "payload": jws.encode(PAYLOAD)})


ATTACKS: list[tuple[str, Message, type[Exception]]] = [
    # (0) size and parts
    ("too large", Message(header=header(x="x" * 8000)), SignatureTooLarge),
    ("empty", Message(whole=lambda t: ""), SignatureMalformed),
    ("two parts", Message(whole=lambda t: t.replace("..", ".")), SignatureMalformed),
    ("four parts", Message(whole=lambda t: t + "."), SignatureMalformed),
    ("five parts, as a JWE", Message(whole=lambda t: t + ".AA.AA"), SignatureMalformed),
    ("payload in the middle", Message(middle=jws.encode(PAYLOAD)), SignatureMalformed),
    ("another payload in the middle", Message(middle=jws.encode(b'{"pay":1}')), SignatureMalformed),
    ("space in the middle", Message(middle=" "), SignatureMalformed),
    ("JSON serialisation", Message(whole=json_serialisation), SignatureMalformed),
    ("bytes", Message(whole=str.encode), SignatureMalformed),
    ("None", Message(whole=lambda t: None), SignatureMalformed),
    ("space before", Message(whole=lambda t: " " + t), SignatureMalformed),
    ("newline after", Message(whole=lambda t: t + "\n"), SignatureMalformed),
    ("NUL after", Message(whole=lambda t: t + "\0"), SignatureMalformed),
    ("non-ASCII digit", Message(whole=lambda t: t + "\u0660"), SignatureMalformed),
    ("lone surrogate", Message(whole=lambda t: t + "\ud800"), SignatureMalformed),
    # (1) base64url
    ("signature padded", Message(signature=lambda s: s + "=="), SignatureMalformed),
    ("signature with white space", Message(signature=lambda s: s[:9] + " " + s[9:]), SignatureMalformed),
    ("signature with a foreign character", Message(signature=lambda s: s[:9] + "!" + s[9:]), SignatureMalformed),
    (
        "signature in plain base64",
        Message(change_signature=lambda _: b"\xff" * 64, signature=lambda s: s.replace("_", "/")),
        SignatureMalformed,
    ),
    ("signature with loose bits", Message(signature=loose_bits), SignatureMalformed),
    ("signature of a length that base64 cannot have", Message(signature=lambda s: s + "AAA"), SignatureMalformed),
    ("header padded", Message(protected=jws.encode(text("")) + "="), SignatureMalformed),
    ("header with white space", Message(protected=jws.encode(text("")) + "\n"), SignatureMalformed),
    ("header empty", Message(protected=""), HeaderMalformed),
    # (1) the header's JSON
    ("alg twice", Message(header_text=text(',"alg":"ES256"')), HeaderMalformed),
    ("alg twice, none first", Message(header_text=b'{"alg":"none",' + text("")[1:]), HeaderMalformed),
    ("alg twice, escaped", Message(header_text=text(',"\\u0061lg":"ES256"')), HeaderMalformed),
    ("a2a twice", Message(header_text=text(',"a2a":{"v":2}')), HeaderMalformed),
    ("member of a2a twice", Message(header_text=text(',"x":{"aud":1,"aud":2}')), HeaderMalformed),
    ("crit twice", Message(header_text=text(',"crit":["a2a"]')), HeaderMalformed),
    ("NaN", Message(header_text=text(',"x":NaN')), HeaderMalformed),
    ("Infinity", Message(header_text=text(',"x":-Infinity')), HeaderMalformed),
    ("1e400", Message(header_text=text(',"x":1e400')), HeaderMalformed),
    ("2^53 + 1", Message(header_text=text(',"x":9007199254740993')), HeaderMalformed),
    ("lone surrogate in the header", Message(header_text=text(',"x":"\\ud800"')), HeaderMalformed),
    ("not UTF-8", Message(header_text=text(',"x":"') + b'\xff"}'), HeaderMalformed),
    ("UTF-16", Message(header_text=text("").decode().encode("utf-16")), HeaderMalformed),
    ("byte order mark", Message(header_text=b"\xef\xbb\xbf" + text("")), HeaderMalformed),
    ("deep", Message(header_text=text(',"x":' + "[" * 40 + "]" * 40)), HeaderMalformed),
    ("very deep", Message(header_text=text(',"x":' + "[" * 2900 + "]" * 2900)), HeaderMalformed),
    ("array", Message(header_text=b"[" + text("") + b"]"), HeaderMalformed),
    ("string", Message(header_text=b'"alg"'), HeaderMalformed),
    ("null", Message(header_text=b"null"), HeaderMalformed),
    ("trailing text", Message(header_text=text("") + b"{}"), HeaderMalformed),
    ("trailing comma", Message(header_text=text("")[:-1] + b",}"), HeaderMalformed),
    # (2) typ
    ("no typ", Message(header=header(typ=DEFAULT)), TypeWrong),
    ("typ of a response", Message(header=header(typ="a2a-res+jws")), TypeWrong),
    ("typ of a token", Message(header=header(typ="at+jwt")), TypeWrong),
    ("typ in upper case", Message(header=header(typ="A2A-REQ+JWS")), TypeWrong),
    ("typ with application/", Message(header=header(typ="application/a2a-req+jws")), TypeWrong),
    ("typ as a list", Message(header=header(typ=["a2a-req+jws"])), TypeWrong),
    ("typ null", Message(header=header(typ=None)), TypeWrong),
    # (2) alg
    ("no alg", Message(header=header(alg=DEFAULT)), AlgorithmRefused),
    ("alg none", Message(header=header(alg="none"), change_signature=lambda _: b""), AlgorithmRefused),
    (
        "alg none, allowed by mistake",
        Message(header=header(alg="none"), change_signature=lambda _: b"", algorithms=("none",)),
        AlgorithmRefused,
    ),
    ("alg NONE", Message(header=header(alg="NonE"), change_signature=lambda _: b""), AlgorithmRefused),
    ("alg empty", Message(header=header(alg="")), AlgorithmRefused),
    ("alg in lower case", Message(header=header(alg="es256")), AlgorithmRefused),
    ("alg null", Message(header=header(alg=None)), AlgorithmRefused),
    ("alg as a list", Message(header=header(alg=["ES256"])), AlgorithmRefused),
    ("alg as an object", Message(header=header(alg={})), AlgorithmRefused),
    (
        "HS256 with the public key as secret",
        Message(header=header(alg="HS256"), sign=lambda d: hmac.digest(PEM, d, hashlib.sha256)),
        AlgorithmRefused,
    ),
    (
        "HS256, allowed by mistake",
        Message(
            header=header(alg="HS256"),
            sign=lambda d: hmac.digest(PEM, d, hashlib.sha256),
            key=PEM,
            algorithms=("HS256",),
        ),
        AlgorithmRefused,
    ),
    (
        "RS256, allowed by mistake",
        Message(
            header=header(alg="RS256"),
            sign=lambda d: RSA.sign(d, padding.PKCS1v15(), hashes.SHA256()),
            key=RSA.public_key(),
            algorithms=("RS256",),
        ),
        AlgorithmRefused,
    ),
    (
        "ES384 where only ES256 is allowed",
        Message(header=header(alg="ES384"), sign=lambda d: es256(P384, d), key=P384.public_key()),
        AlgorithmRefused,
    ),
    ("no algorithm allowed", Message(algorithms=()), AlgorithmRefused),
    # (2) keys in the header
    (
        "jwk",
        Message(
            header=header(jwk=json.loads(jwk.JWK.from_pyca(OTHER.public_key()).export())),
            sign=lambda d: es256(OTHER, d),
        ),
        HeaderMalformed,
    ),
    ("jku", Message(header=header(jku="https://evil.example/jwks")), HeaderMalformed),
    ("x5u", Message(header=header(x5u="https://evil.example/chain")), HeaderMalformed),
    # (2) crit
    ("crit with an unknown name", Message(header=header(crit=["a2a", "exp"], exp=1)), CriticalHeaderRefused),
    ("crit empty", Message(header=header(crit=[])), CriticalHeaderRefused),
    ("crit a string", Message(header=header(crit="a2a")), CriticalHeaderRefused),
    ("crit an object", Message(header=header(crit={"a2a": 1})), CriticalHeaderRefused),
    ("crit null", Message(header=header(crit=None)), CriticalHeaderRefused),
    ("crit with a number", Message(header=header(crit=["a2a", 1])), CriticalHeaderRefused),
    ("crit with a list", Message(header=header(crit=[["a2a"]])), CriticalHeaderRefused),
    ("crit with a name twice", Message(header=header(crit=["a2a", "a2a"])), CriticalHeaderRefused),
    ("crit names what is absent", Message(header=header(a2a=DEFAULT)), CriticalHeaderRefused),
    ("crit names alg", Message(header=header(crit=["a2a", "alg"])), CriticalHeaderRefused),
    ("crit names crit", Message(header=header(crit=["crit"])), CriticalHeaderRefused),
    ("b64 false in crit", Message(header=header(crit=["a2a", "b64"], b64=False)), CriticalHeaderRefused),
    ("b64 false without crit", Message(header=header(b64=False)), CriticalHeaderRefused),
    ("b64 true", Message(header=header(b64=True)), CriticalHeaderRefused),
    # (4) the key
    ("P-384 key", Message(key=P384.public_key()), KeyMismatch),
    ("Ed25519 key", Message(key=ED.public_key()), KeyMismatch),
    ("RSA key", Message(key=RSA.public_key()), KeyMismatch),
    ("private key", Message(key=KEY), KeyMismatch),
    ("key as PEM", Message(key=PEM), KeyMismatch),
    ("no key", Message(key=None), KeyMismatch),
    ("EdDSA with an EC key", Message(header=header(alg="EdDSA"), algorithms=("Ed25519",)), KeyMismatch),
    ("ES384 with a P-256 key", Message(header=header(alg="ES384"), algorithms=("ES384",)), KeyMismatch),
    ("PS256 with an EC key", Message(header=header(alg="PS256"), algorithms=("PS256",)), KeyMismatch),
    # (4) the length
    ("signature empty", Message(change_signature=lambda _: b""), SignatureMalformed),
    ("signature one byte short", Message(change_signature=lambda raw: raw[:-1]), SignatureMalformed),
    ("signature one byte long", Message(change_signature=lambda raw: raw + b"\0"), SignatureMalformed),
    (
        "signature with zeros before s",
        Message(change_signature=lambda raw: raw[:32] + b"\0\0" + raw[32:]),
        SignatureMalformed,
    ),
    (
        "signature with zeros before both",
        Message(change_signature=lambda raw: b"\0" + raw[:32] + b"\0" + raw[32:]),
        SignatureMalformed,
    ),
    ("signature in DER", Message(change_signature=der), SignatureMalformed),
    (
        "Ed25519 signature too long",
        Message(
            header=header(alg="Ed25519"),
            sign=ED.sign,
            change_signature=lambda r: r + b"\0",
            key=ED.public_key(),
            algorithms=("Ed25519",),
        ),
        SignatureMalformed,
    ),
    # (5) the value
    ("r = s = 0", Message(change_signature=rs(0, 0)), SignatureWrong),
    ("r = 0", Message(change_signature=rs(0, 1)), SignatureWrong),
    ("s = 0", Message(change_signature=rs(1, 0)), SignatureWrong),
    ("r = n", Message(change_signature=rs(ORDER, 1)), SignatureWrong),
    ("s = n", Message(change_signature=rs(1, ORDER)), SignatureWrong),
    ("r = s = n", Message(change_signature=rs(ORDER, ORDER)), SignatureWrong),
    ("all ones", Message(change_signature=lambda raw: b"\xff" * 64), SignatureWrong),
    ("one bit of r", Message(change_signature=lambda raw: bytes([raw[0] ^ 1]) + raw[1:]), SignatureWrong),
    ("one bit of s", Message(change_signature=lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])), SignatureWrong),
    ("r and s exchanged", Message(change_signature=lambda raw: raw[32:] + raw[:32]), SignatureWrong),
    ("another key", Message(key=OTHER.public_key()), SignatureWrong),
    ("signed by another", Message(sign=lambda data: es256(OTHER, data)), SignatureWrong),
    ("one byte of the payload", Message(payload=b'{"pay":900}'), SignatureWrong),
    ("payload longer", Message(payload=PAYLOAD + b" "), SignatureWrong),
    ("payload empty", Message(payload=b""), SignatureWrong),
    (
        "signature over the payload without its base64url",
        Message(sign=lambda data: es256(KEY, data.split(b".")[0] + b"." + PAYLOAD)),
        SignatureWrong,
    ),
    ("signature over the payload alone", Message(sign=lambda data: es256(KEY, PAYLOAD)), SignatureWrong),
    (
        "Ed25519 wrong",
        Message(
            header=header(alg="Ed25519"),
            sign=ED.sign,
            key=ed25519.Ed25519PrivateKey.generate().public_key(),
            algorithms=("Ed25519",),
        ),
        SignatureWrong,
    ),
]


@pytest.mark.parametrize(("message", "error"), [row[1:] for row in ATTACKS], ids=[row[0] for row in ATTACKS])
def test_attack_on_a_detached_jws(message: Message, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        message.verify()
    assert type(caught.value) is error


def test_the_message_that_the_attacks_change_is_valid() -> None:
    assert Message().verify() == Message().header


def test_crit_is_optional_here_and_required_by_the_kinds_of_messages() -> None:
    assert Message(header=header(crit=DEFAULT, a2a=DEFAULT)).verify()


def test_a_header_spelled_with_white_space_and_escapes_is_the_same_header() -> None:
    assert Message(header_text=text(', "x" : "\\u00e9\\ud83d\\ude00"')).verify()["x"] == "é😀"


def _unprotected(message: Message) -> str:
    """alg outside the protected header: what is not signed decides how the signature is verified."""
    protected = jws.encode(b'{"typ":"a2a-req+jws"}')
    signature = jws.encode(es256(KEY, f"{protected}.{jws.encode(PAYLOAD)}".encode()))
    return json.dumps(
        {"protected": protected, "header": {"alg": "ES256"}, "payload": jws.encode(PAYLOAD), "signature": signature}
    )


def _as_json(message: Message) -> str:
    return json_serialisation(message.build())


def _one_of_two(message: Message) -> str:
    """A good signature makes up for one that is not."""
    protected, signature = message.parts()
    bad = {"protected": protected, "signature": jws.encode(bytes(64))}
    good = {"protected": protected, "signature": signature}
    return json.dumps({"payload": jws.encode(PAYLOAD), "signatures": [bad, good]})


def _not_encoded(message: Message) -> str:
    """Signed over the payload as it is: whoever looks at `b64` only where it is critical verifies other bytes."""
    protected = jws.encode(text(',"b64":false'))
    signature = es256(KEY, f"{protected}.".encode() + PAYLOAD)
    return f"{protected}.{jws.encode(PAYLOAD)}.{jws.encode(signature)}"


def _compact(message: Message) -> str:
    protected, signature = message.parts()
    return f"{protected}.{jws.encode(PAYLOAD)}.{signature}"


@pytest.mark.parametrize(
    ("message", "form", "error"),
    [
        (Message(header_text=text(',"alg":"ES256"')), _compact, HeaderMalformed),
        (Message(header=header(crit=[])), _compact, CriticalHeaderRefused),
        (Message(header=header(crit=["alg"])), _compact, CriticalHeaderRefused),
        (Message(signature=lambda s: s + "=="), _compact, SignatureMalformed),
        (Message(signature=loose_bits), _compact, SignatureMalformed),
        (Message(signature=lambda s: s[:9] + "!!!!" + s[9:]), _compact, SignatureMalformed),
        (Message(change_signature=lambda raw: b"\0" + raw[:32] + b"\0" + raw[32:]), _compact, SignatureMalformed),
        (Message(), _not_encoded, CriticalHeaderRefused),
        (Message(), _unprotected, SignatureMalformed),
        (Message(), _as_json, SignatureMalformed),
        (Message(), _one_of_two, SignatureMalformed),
    ],
    ids=[
        *("alg twice", "crit empty", "crit names alg", "padding", "loose bits", "foreign character", "wrong length"),
        *("b64 false, not critical", "unprotected alg", "JSON by guess", "one good signature among many"),
    ],
)
def test_jwcrypto_accepts_what_is_refused_here(
    message: Message, form: Callable[[Message], str], error: type[Exception]
) -> None:
    """The signature over the payload is good in each of them; what differs is who may respell or choose what."""
    token = form(message)
    other = jwcrypto_jws.JWS(header_registry={"a2a": jwcrypto_jws.JWSEHeaderParameter("a2a", False, True, None)})
    other.allowed_algs = ["ES256"]
    other.deserialize(token, jwk.JWK.from_pyca(KEY.public_key()))
    assert other.is_valid
    with pytest.raises(error) as caught:
        parsed = jws.parse_compact(token, algorithms=["ES256"], typ="a2a-req+jws", understood=("a2a",))
        parsed.verify(KEY.public_key())
    assert type(caught.value) is error
