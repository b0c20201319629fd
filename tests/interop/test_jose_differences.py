"""Our strict JWS beside two general libraries, jwcrypto and Node's jose: whatever we accept, they accept.

Where one of them accepts what we refuse, a row of the table says why.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from jwcrypto import jws as other
from jwcrypto.common import JWException
from jwcrypto.jwk import JWK

from tests.attacks.test_jws_attacks import der, loose_bits
from tests.fuzz.targets import SEEDS, TARGETS, Verdict, mutated
from tests.interop.oracle import Oracle, oracle
from tests.interop.programs import needs
from trust.errors import (
    AlgorithmRefused,
    CriticalHeaderRefused,
    HeaderMalformed,
    SignatureError,
    SignatureMalformed,
    SignatureTooLarge,
    SignatureWrong,
    TypeWrong,
)
from trust.signing import algorithms, jws

pytestmark = [pytest.mark.slow, needs("node", "npm")]

KEY = ec.derive_private_key(7515, ec.SECP256R1())  # always the same, for the table to be the same
ORDER = ec.SECP256R1.group_order
PAYLOAD = b'{"pay":100}'
HEADER = '{"alg":"ES256","typ":"a2a-req+jws","crit":["a2a"],"a2a":{"v":1}}'
FUZZED = 600  # for each target


def token(
    header: str | bytes = HEADER,
    *,
    protected: str = "",
    respell: Callable[[str], str] = lambda text: text,
    signature: Callable[[bytes], bytes] = lambda raw: raw,
    spelled: Callable[[str], str] = lambda text: text,
    key: Any = KEY,
) -> str:
    """A compact JWS whose signature is over just this text, unless what is changed is the signature."""
    protected = protected or respell(jws.encode(header.encode() if isinstance(header, str) else header))
    data = f"{protected}.{jws.encode(PAYLOAD)}"
    return f"{data}.{spelled(jws.encode(signature(algorithms.signer(key)[1](data.encode()))))}"


def header(**changes: Any) -> str:
    members = {**json.loads(HEADER), **changes}
    return json.dumps({name: value for name, value in members.items() if value is not ...}, separators=(",", ":"))


def also(text: str) -> str:
    """Another member, as it is spelled, at the end of the header."""
    return HEADER[:-1] + "," + text + "}"


def twin(raw: bytes) -> bytes:
    return raw[:32] + (ORDER - int.from_bytes(raw[32:])).to_bytes(32)


def short(raw: bytes) -> bytes:
    """As numbers are written where nobody says how long they are."""
    return raw[:32].lstrip(b"\0") + raw[32:]


def with_a_short_number() -> str:
    """A header that the signature of begins with a zero byte: one in 256."""
    for n in range(10_000):
        text = header(n=n)
        if jws.decode(token(text).rpartition(".")[2])[0] == 0:
            return text
    raise AssertionError


class Row(NamedTuple):
    token: str
    ours: type[SignatureError] | None
    jwcrypto: bool
    jose: bool
    why: str = ""


BOTH, NEITHER = (True, True), (False, False)
SHORT = with_a_short_number()
ROWS: dict[str, Row] = {
    # The same everywhere.
    "valid": Row(token(), None, *BOTH),
    "spelled with white space and escapes": Row(token(also(' "\\u0078" : "\\u00e9" ')), None, *BOTH),
    "no crit": Row(token(header(crit=..., a2a=...)), None, *BOTH),
    "high s": Row(token(signature=twin), None, *BOTH, "why nothing is keyed by a signature"),
    "another key": Row(token(key=ec.generate_private_key(ec.SECP256R1())), SignatureWrong, *NEITHER),
    "alg none": Row(token(header(alg="none")), AlgorithmRefused, *NEITHER),
    "alg HS256": Row(token(header(alg="HS256")), AlgorithmRefused, *NEITHER),
    "no alg": Row(token(header(alg=...)), AlgorithmRefused, *NEITHER),
    "unknown crit": Row(token(header(crit=["a2a", "b"], b=1)), CriticalHeaderRefused, *NEITHER),
    "crit of what is absent": Row(token(header(a2a=...)), CriticalHeaderRefused, *NEITHER),
    "signature in DER": Row(token(signature=der), SignatureMalformed, *NEITHER),
    "r begins with zeros": Row(token(SHORT), None, *BOTH),
    "zeros for a signature": Row(token(signature=lambda _: bytes(64)), SignatureWrong, *NEITHER),
    "no signature": Row(token(signature=lambda _: b""), SignatureMalformed, *NEITHER),
    "four parts": Row(token() + ".", SignatureMalformed, *NEITHER),
    "header is a list": Row(token("[]"), HeaderMalformed, *NEITHER),
    "header is not UTF-8": Row(token(HEADER.encode()[:-1] + b',"x":"\xff"}'), HeaderMalformed, *NEITHER),
    # The kind of a message is our rule; general libraries leave it to the application.
    "no typ": Row(token(header(typ=...)), TypeWrong, *BOTH, "one kind of message must not stand for another"),
    "another typ": Row(token(header(typ="JWT")), TypeWrong, *BOTH, "the same"),
    # The signer must not choose the key, even where the verifier happens not to look.
    "jku": Row(token(header(jku="https://a.example")), HeaderMalformed, *BOTH, "nobody downstream may follow it"),
    "x5u": Row(token(header(x5u="https://a.example")), HeaderMalformed, *BOTH, "the same"),
    "jwk": Row(token(header(jwk={"kty": "EC"})), HeaderMalformed, *BOTH, "the same"),
    # Two readings of one text.
    "member twice": Row(
        token(also('"a2a":{"v":2}')), HeaderMalformed, True, True, "parsers take the first or the last"
    ),
    "NaN": Row(token(also('"x":NaN')), HeaderMalformed, True, False, "not JSON"),
    "2^53 + 1": Row(token(also('"x":9007199254740993')), HeaderMalformed, *BOTH, "read as another number elsewhere"),
    "1e400": Row(token(also('"x":1e400')), HeaderMalformed, *BOTH, "infinite in one language, an error in the next"),
    "lone surrogate": Row(token(also('"x":"\\ud800"')), HeaderMalformed, *BOTH, "no text; replaced by some"),
    "deep": Row(token(also('"x":' + "[" * 40 + "]" * 40)), HeaderMalformed, *BOTH, "a bound on work and stack"),
    "large": Row(token(header(x="x" * 8000)), SignatureTooLarge, *BOTH, "a header line has 8 KiB"),
    # Second spellings of the same bytes.
    "r without its zeros": Row(
        token(SHORT, signature=short), SignatureMalformed, True, False, "RFC 7518 section 3.4: 32 bytes each"
    ),
    "signature padded": Row(token(spelled=lambda s: s + "=="), SignatureMalformed, True, True, "base64url has none"),
    "loose bits": Row(token(spelled=loose_bits), SignatureMalformed, True, True, "bits that decoders throw away"),
    "plain base64": Row(
        token(spelled=lambda s: s.replace("-", "+").replace("_", "/")), SignatureMalformed, True, False, "two alphabets"
    ),
    "white space": Row(
        token(spelled=lambda s: s[:9] + " " + s[9:]), SignatureMalformed, False, True, "RFC 7515 section 2"
    ),
    # Lists of critical names that say nothing, or too much.
    "crit empty": Row(token(header(crit=[])), CriticalHeaderRefused, True, False, "RFC 7515 section 4.1.11"),
    "crit names alg": Row(token(header(crit=["alg"])), CriticalHeaderRefused, True, False, "the same"),
    "crit twice": Row(token(header(crit=["a2a", "a2a"])), CriticalHeaderRefused, True, True, "the same: each once"),
    "b64 true": Row(
        token(header(b64=True, crit=["a2a", "b64"])), CriticalHeaderRefused, True, True, "the default needs no member"
    ),
}


def ours(text: str) -> SignatureError | None:
    try:
        parsed = jws.parse_compact(text, algorithms=["ES256"], typ="a2a-req+jws", understood=("a2a",))
        assert parsed.verify(KEY.public_key()) == PAYLOAD
    except SignatureError as error:
        return error
    return None


def jwcrypto_accepts(text: str) -> bool:
    found = other.JWS(header_registry={"a2a": other.JWSEHeaderParameter("a2a", False, True, None)})
    found.allowed_algs = ["ES256"]
    try:
        found.deserialize(text, JWK.from_pyca(KEY.public_key()))
    except (JWException, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return False
    return bool(found.is_valid) and found.payload == PAYLOAD


def jose_accepts(text: str, node: Oracle) -> bool:
    public = JWK.from_pyca(KEY.public_key()).export_public(as_dict=True)
    return "error" not in node.ask(key=public, alg="ES256", algorithms=["ES256"], token=text)


@pytest.fixture(scope="module")
def node(js: Path) -> Iterator[Oracle]:
    with oracle(js) as asked:
        yield asked


def test_every_difference_is_in_the_table(node: Oracle) -> None:
    found = {}
    for name, row in ROWS.items():
        error = ours(row.token)
        found[name] = row._replace(
            ours=None if error is None else type(error),
            jwcrypto=jwcrypto_accepts(row.token),
            jose=jose_accepts(row.token, node),
        )
    assert {n: r[1:4] for n, r in found.items()} == {n: r[1:4] for n, r in ROWS.items()}
    for row in ROWS.values():
        assert row.ours is not None or (row.jwcrypto and row.jose)  # whatever we accept, they accept
        assert row.ours is None or row.why or not (row.jwcrypto or row.jose)  # and the rest is explained


_SEEDS = st.sampled_from(range(2**32))


@pytest.mark.parametrize("target", ["jws", "canonical"])
@given(seeds=st.lists(_SEEDS, min_size=1, max_size=4), start=_SEEDS)
@settings(max_examples=FUZZED, deadline=None, derandomize=True)
def test_whatever_we_accept_they_read_as_we_do(target: str, seeds: list[int], start: int, node: Oracle) -> None:
    """What `python -m tests.fuzz` does for as long as one likes; every kind of refusal is one of the table's."""
    data = SEEDS[target][start % len(SEEDS[target])]
    for seed in seeds:
        data = mutated(target, data, random.Random(seed))
    verdict = TARGETS[target](data, node)
    if isinstance(verdict, Verdict) and verdict.ours is not None:
        explained = [row for row in ROWS.values() if row.ours is verdict.ours]
        assert not verdict.jwcrypto or any(row.jwcrypto for row in explained), data
        assert not verdict.jose or any(row.jose for row in explained), data
