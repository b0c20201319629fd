"""One strict profile of JWS (RFC 7515): compact, `b64` true, algorithms from the verifier, nothing lenient.

General JOSE libraries accept padded and non-canonical base64url, duplicate header members, signatures of a wrong
length, an empty `crit`, and keys that the header brings along. Each of these is a second spelling of a message or a
way to choose the verifier's rules, so this parser refuses them; the signatures themselves are by `cryptography`.

Steps of a verifier, in this order (the numbers of the wire format; each function names the ones it does):

    (0) size, exactly three parts, the middle one empty where the payload is detached
    (1) strict base64url; the header is a JSON object in strict UTF-8 without duplicate members, bounded in depth
    (2) `typ` is the expected one, `alg` is allowed, no header member brings a key, `crit` is understood and present
    (3) the certificate of the signer (`trust.signing.envelope`)
    (4) the key is of the type and curve of `alg`; the signature has exactly its length
    (5) the signature verifies

What remains malleable: ECDSA signatures (r, s) and (r, n - s) both verify, here as everywhere. Nothing may be keyed
by a signature or by the text of a JWS; replay keys are made from the signed (iss, aud, jti).
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from trust.errors import (
    AlgorithmRefused,
    ConfigurationError,
    CriticalHeaderRefused,
    HeaderMalformed,
    SignatureMalformed,
    SignatureTooLarge,
    TypeWrong,
)
from trust.json_text import NotStrictJson, parse, write
from trust.signing import algorithms as signatures

MAX_DETACHED_BYTES = 8192  # it travels in one header line, and nginx's buffer for a line is 8 KiB
MAX_BODY_BYTES = 64 << 10  # inside JSON: an ML-DSA-65 signature with two certificates of ML-DSA-87 CAs is 30 KiB
MAX_COMPACT_BYTES = 8000  # a token travels in such a line, too, after "Authorization: Bearer "
KEPT_HEADERS = 128  # of compact JWS: a few for each issuer; 1 MiB, or 16 of senders who fill theirs with brackets
MAX_JSON_BYTES = 256 << 10  # of `strict_json`: a JWKS with many certificates
MAX_JSON_DEPTH = 32  # of headers, claims, JWKS and metadata: none needs more than eight

# What RFC 7515 and RFC 7518 define themselves must not be in `crit` (RFC 7515 section 4.1.11).
_REGISTERED = frozenset({"alg", "jku", "jwk", "kid", "x5u", "x5c", "x5t", "x5t#S256", "typ", "cty", "crit"})
_BRINGS_A_KEY = frozenset({"jku", "x5u", "jwk"})  # whoever made the JWS must not choose the key it is verified with


class Parsed(NamedTuple):
    """A JWS whose header passed steps (0) to (2). Its signature has not been verified: nothing in it is true yet.

    A tuple, because every signature is parsed on its way and a frozen dataclass takes six times as long to make.
    """

    header: dict[str, Any]
    alg: str
    payload: bytes  # of a compact JWS, unverified: believe only what `verify` returns
    signature: bytes
    protected: bytes  # the header's base64url, as received
    encoded_payload: bytes  # the payload's

    def __repr__(self) -> str:  # neither content nor signatures belong into a log
        return f"Parsed(header={self.header!r}, alg={self.alg!r})"

    def verify(self, key: object) -> bytes:
        """Steps (4) and (5) of a compact JWS: return the verified payload.

        Raises:
            KeyMismatch: the key is not of the type or curve of `alg`.
            SignatureMalformed: the signature has not the exact length for `alg`.
            SignatureWrong: it does not verify.
        """
        # As received: `payload` is decoded strictly, so these are the bytes that `verify_payload` would make of it.
        signatures.verify(self.alg, key, self.signature, b".".join((self.protected, self.encoded_payload)))
        return self.payload

    def verify_payload(self, key: object, payload: bytes) -> bytes:
        """As `verify`, for a payload that travelled elsewhere (RFC 7515 appendix F)."""
        signatures.verify(self.alg, key, self.signature, _signing_input(self.protected, payload))
        return payload


def sign_detached(payload: bytes, *, key: object, header: Mapping[str, Any], in_body: bool = False) -> str:
    """Return `protected..signature` over the payload (RFC 7515 appendix F). ES256 and ES384 are deterministic.

    Args:
        payload: the exact bytes.
        key: a private key: EC P-256 or P-384, or Ed25519; in the body also ML-DSA-44 or -65.
        header: the protected header. `alg` may be left out; it follows from the key.
        in_body: it travels inside JSON, where 64 KiB are allowed; otherwise in a header line of 8 KiB.

    Raises:
        ConfigurationError: a key that cannot sign here, another key's `alg`, or a header that verifiers refuse.
    """
    protected, _, signature = _sign(payload, key, header, in_body)
    return _within(b"%b..%b" % (protected, signature), _limit(in_body))


def sign_compact(
    payload: bytes,
    *,
    key: object,
    header: Mapping[str, Any],
    passed_over: Collection[str] = (),
    max_bytes: int = MAX_COMPACT_BYTES,
) -> str:
    """As `sign_detached`, with the payload inside: `protected.payload.signature`, as access tokens are.

    Args:
        passed_over, max_bytes: as `parse_compact` of its verifiers has them.
    """
    _, signing_input, signature = _sign(payload, key, header, in_body=False, passed_over=passed_over)
    return _within(b"%b.%b" % (signing_input, signature), max_bytes)


def verify_detached(
    jws: str,
    payload: bytes,
    *,
    key: object,
    algorithms: Collection[str],
    typ: str | tuple[str, ...],
    understood: Collection[str] = ("a2a",),
    in_body: bool = False,
) -> dict[str, Any]:
    """Verify a detached JWS over `payload` and return its header: steps (0) to (2), (4) and (5).

    Not checked: whose key it is, what the members of the header mean (`x5c`, `kid`, `a2a` and so on), time, replay.

    Args:
        jws: `protected..signature`.
        payload: the exact bytes that were signed; the payload is never taken from the JWS.
        key: the public key: EC P-256 or P-384, Ed25519, RSA for PS256, or ML-DSA-44 or -65.
        algorithms: which `alg` are allowed: ES256, ES384, Ed25519, PS256; in the body also ML-DSA-44 and ML-DSA-65.
            `EdDSA`, the older name, is read as Ed25519 and allowed where either name is listed.
        typ: the one expected `typ`, or several that are equally good.
        understood: the extension names that may be in `crit`; a `crit` with any other name is refused.
        in_body: it travelled inside JSON, as `sign_detached` has it.

    Raises:
        SignatureError: its leaf classes name the step that failed.
        TypeError: an argument of a wrong type other than `jws`.
    """
    parsed = parse_detached(jws, algorithms=algorithms, typ=typ, understood=understood, in_body=in_body)
    parsed.verify_payload(key, payload)
    return parsed.header


def parse_detached(
    jws: str,
    *,
    algorithms: Collection[str],
    typ: str | tuple[str, ...],
    understood: Collection[str] = ("a2a",),
    passed_over: Collection[str] = (),
    in_body: bool = False,
) -> Parsed:
    """Steps (0) to (2) for a detached JWS; `Parsed.verify_payload` does the rest. Arguments as `verify_detached`.

    Args:
        passed_over: which of `jku`, `x5u` and `jwk` may stand in the header, where other verifiers need them. Whoever
            allows one must not look at it.
    """
    protected, middle, signature = _parts(jws, _limit(in_body))
    if middle:
        raise SignatureMalformed("payload inside a detached JWS", expected="an empty second part")
    _check_names(algorithms, understood)
    raw_signature = decode(signature)
    readable = signatures.READABLE_IN_BODY if in_body else signatures.READABLE
    header, alg = _header(protected, algorithms, typ, understood, passed_over, readable)
    return Parsed(header, alg, b"", raw_signature, protected, b"")


def parse_compact(
    token: str,
    *,
    algorithms: Collection[str],
    typ: str | tuple[str, ...],
    understood: Collection[str] = (),
    passed_over: Collection[str] = (),
    max_bytes: int = MAX_COMPACT_BYTES,
) -> Parsed:
    """Steps (0) to (2) for a JWS with its payload inside; `Parsed.verify` does the rest.

    Arguments as `parse_detached`; only here may `algorithms` also name RS256. The payload is not decoded before the
    header is allowed.

    Args:
        max_bytes: of the whole, where it is a document that does not travel in a header line.
    """
    protected, middle, signature = _parts(token, max_bytes)
    if len(protected) > MAX_COMPACT_BYTES:  # of the largest document, too: headers are remembered
        raise SignatureTooLarge(
            "JWS header is too large", got=f"{len(protected)} characters", expected=f"at most {MAX_COMPACT_BYTES}"
        )
    _check_names(algorithms, understood)
    raw_signature = decode(signature)
    known, alg = _header_of_compact(protected, tuple(algorithms), typ, tuple(understood), tuple(passed_over))
    # A copy, so that nobody changes what is remembered. Only now is the payload worth decoding.
    return Parsed({**known}, alg, decode(middle) if middle else b"", raw_signature, protected, middle)


def strict_json(data: bytes) -> Any:
    """The value of a JSON text without duplicate members, NaN, lone surrogates or integers beyond 2^53 - 1.

    Raises:
        HeaderMalformed: not such a text, or larger than `MAX_JSON_BYTES`, or deeper than `MAX_JSON_DEPTH`.
    """
    try:
        return parse(data, max_bytes=MAX_JSON_BYTES, max_depth=MAX_JSON_DEPTH)
    except NotStrictJson as error:
        raise HeaderMalformed("not strict JSON", got=error) from None


def encode(data: bytes) -> str:
    """Base64url without padding. RFC 7515 section 2."""
    return _encode(data).decode()


def decode(text: str | bytes) -> bytes:
    """The bytes of a base64url text that is exactly what `encode` makes of them.

    Padding, the characters of other alphabets, white space and bits that are thrown away would each give one value
    a second spelling.

    Raises:
        SignatureMalformed: any other text.
    """
    try:
        raw = text.encode("ascii") if isinstance(text, str) else text
        plain = raw.translate(_FROM_URL) + _PADDING[len(raw) % 4]
        data = a2b_base64(plain)
    except ValueError:  # binascii.Error and UnicodeEncodeError
        raise SignatureMalformed("base64url", expected="RFC 7515 section 2: no padding, no other alphabet") from None
    if b2a_base64(data, newline=False) != plain:
        raise SignatureMalformed("base64url", expected="the one canonical encoding (RFC 4648 section 3.5)")
    return data


def _encode(data: bytes) -> bytes:
    # Few bytes of JSON become one of the two: finding them takes a fifth of the time that a translation takes.
    return b2a_base64(data, newline=False).replace(b"+", b"-").replace(b"/", b"_").rstrip(b"=")


# What base64url has not, its own sign for padding among it, becomes what no encoder of base64 writes.
_FROM_URL = bytes.maketrans(b"-_+/=", b"+/---")
_PADDING = (b"", b"===", b"==", b"=")  # by length modulo 4; no text of base64 has a remainder of 1


def _parts(jws: object, limit: int) -> list[bytes]:
    # (0) Before anything is decoded.
    if not isinstance(jws, str):
        raise SignatureMalformed("JWS", got=type(jws).__name__, expected="a str")
    if len(jws) > limit:
        raise SignatureTooLarge("JWS is too large", got=f"{len(jws)} characters", expected=f"at most {limit}")
    try:
        parts = jws.encode("ascii").split(b".")
    except UnicodeEncodeError:
        raise SignatureMalformed("JWS", got="characters outside ASCII", expected="base64url and dots") from None
    if len(parts) != 3:
        raise SignatureMalformed("JWS", got=f"{len(parts)} parts", expected="three, in compact serialisation")
    return parts


def _header(
    protected: bytes,
    algorithms: Collection[str],
    typ: str | tuple[str, ...],
    understood: Collection[str],
    passed_over: Collection[str],
    readable: Collection[str],
) -> tuple[dict[str, Any], str]:
    """The header and its `alg`: the part of step (1) that is about it, and step (2)."""
    # (1)
    header = strict_json(decode(protected))
    if header.__class__ is not dict:
        raise HeaderMalformed("JWS header", got=type(header).__name__, expected="a JSON object")
    # (2)
    found = header.get("typ")
    if not (found == typ if isinstance(typ, str) else isinstance(found, str) and found in typ):
        raise TypeWrong("typ of the JWS", got=found, expected=typ if isinstance(typ, str) else " or ".join(typ))
    alg = header.get("alg")
    if not isinstance(alg, str) or alg not in readable or not _allowed(alg, algorithms):
        here = sorted(name for name in algorithms if name in readable)
        raise AlgorithmRefused(
            "alg of the JWS", got=alg, expected=" or ".join(here) or "one for a header line: ML-DSA is only inside JSON"
        )
    _check_members(header, understood, passed_over)
    return header, alg


# All tokens of one issuer, and all proofs of one key, have the same header. Remembered by its text and by what was
# asked of it; what was refused is not remembered.
@lru_cache(maxsize=KEPT_HEADERS)
def _header_of_compact(
    protected: bytes,
    algorithms: tuple[str, ...],
    typ: str | tuple[str, ...],
    understood: tuple[str, ...],
    passed_over: tuple[str, ...],
) -> tuple[dict[str, Any], str]:
    return _header(protected, algorithms, typ, understood, passed_over, signatures.READABLE_IN_TOKENS)


def _check_names(algorithms: Collection[str], understood: Collection[str]) -> None:
    # A str is a collection of its substrings: "S256" in "ES256" is true.
    if isinstance(algorithms, str) or isinstance(understood, str):
        raise TypeError("algorithms and understood are collections of names, not one str")


def _allowed(alg: str, algorithms: Collection[str]) -> bool:
    return alg in algorithms or (alg == "EdDSA" and "Ed25519" in algorithms)


def _check_members(header: Mapping[str, Any], understood: Collection[str], passed_over: Collection[str] = ()) -> None:
    if not _BRINGS_A_KEY.isdisjoint(header) and not _BRINGS_A_KEY.intersection(header).issubset(passed_over):
        raise HeaderMalformed("JWS brings its own key", expected="no jku, x5u or jwk")
    if "b64" in header:
        # RFC 7797: a verifier that overlooks it verifies other bytes than the signer meant.
        raise CriticalHeaderRefused("b64 in the header", expected="the default, base64url of the payload")
    if "crit" not in header:
        return
    crit = header["crit"]
    if not isinstance(crit, list) or not crit:
        raise CriticalHeaderRefused("crit", got=crit, expected="a list of one name or more (RFC 7515 section 4.1.11)")
    seen = []
    for name in crit:
        if not isinstance(name, str) or name in seen:
            raise CriticalHeaderRefused("crit", got=crit, expected="names, and each of them once")
        if name not in understood or name in _REGISTERED:
            raise CriticalHeaderRefused("crit", got=name, expected=" or ".join(understood) or "no crit at all")
        if name not in header:
            raise CriticalHeaderRefused("crit names what is not in the header", got=name)
        seen.append(name)


def _sign(
    payload: bytes, key: object, header: Mapping[str, Any], in_body: bool, passed_over: Collection[str] = ()
) -> tuple[bytes, bytes, bytes]:
    """The base64url of the header, the signing input, and the base64url of the signature."""
    alg, sign = signatures.signer(key, in_body=in_body)
    complete = {"alg": alg, **header}
    if complete["alg"] != alg:
        raise ConfigurationError("alg in the header", got=complete["alg"], expected=alg, do="leave it out")
    try:
        _check_members(complete, complete, passed_over)
        protected = _encode(write(complete))
    except (CriticalHeaderRefused, HeaderMalformed, ValueError, TypeError) as error:
        raise ConfigurationError("no verifier would accept this header", got=error) from None
    signing_input = _signing_input(protected, payload)
    return protected, signing_input, _encode(sign(signing_input))


def _signing_input(protected: bytes, payload: bytes) -> bytes:
    if not isinstance(payload, bytes):  # a str or a bytearray could become other bytes later
        raise TypeError(f"payload is {type(payload).__name__}, expected bytes")
    return b".".join((protected, _encode(payload)))


def _limit(in_body: bool) -> int:
    return MAX_BODY_BYTES if in_body else MAX_DETACHED_BYTES


def _within(jws: bytes, limit: int) -> str:
    if len(jws) > limit:
        raise ConfigurationError("JWS would be too large", got=f"{len(jws)} characters", expected=f"at most {limit}")
    return jws.decode("ascii")
