"""RFC 8785: its own vectors, the `rfc8785` package as an oracle, and everything that must be refused."""

from __future__ import annotations

import json
import random
import struct
from collections import OrderedDict
from enum import IntEnum, StrEnum
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from trust import json_text
from trust.errors import CanonicalizationError
from trust.signing.canonical import MAX_BYTES, MAX_DEPTH, canonicalize, canonicalize_value

PARSERS = ["orjson for all sizes", "orjson for none", "orjson not installed"]


def use(parser: str, patch: pytest.MonkeyPatch) -> None:
    assert json_text.orjson is not None, "the test extra installs orjson"
    match parser:
        case "orjson not installed":
            patch.setattr(json_text, "orjson", None)
        case "orjson for none":
            patch.setattr(json_text, "LARGE", MAX_BYTES)
        case _:
            patch.setattr(json_text, "LARGE", -1)


_NAMES = st.text("ab[ {", max_size=2)


@pytest.fixture(params=PARSERS)
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test that takes it runs with each way to parse: they must never differ."""
    use(request.param, monkeypatch)
    return str(request.param)


@pytest.mark.parametrize(
    ("bits", "text"),
    [  # RFC 8785 appendix B
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("8000000000000001", "-5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("ffefffffffffffff", "-1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"),
        ("c340000000000000", "-9007199254740992"),
        ("4430000000000000", "295147905179352830000"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"),
        ("44b52d02c7e14af7", "1.0000000000000001e+23"),
        ("444b1ae4d6e2ef4e", "999999999999999700000"),
        ("444b1ae4d6e2ef4f", "999999999999999900000"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555553", "333333333.3333332"),
        ("41b3de4355555554", "333333333.33333325"),
        ("41b3de4355555555", "333333333.3333333"),
        ("41b3de4355555556", "333333333.3333334"),
        ("41b3de4355555557", "333333333.33333343"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
        ("43143ff3c1cb0959", "1424953923781206.2"),
    ],
)
def test_numbers_of_appendix_b(bits: str, text: str, parser: str) -> None:
    number = struct.unpack(">d", bytes.fromhex(bits))[0]
    assert canonicalize_value(number) == text.encode()
    for carrier in ("[%s]", '{"a":%s}', "%s", "[%s,1]", '{"a": %s}'):
        written = carrier % repr(number)
        assert canonicalize(written.encode()) == (carrier.replace(" ", "") % text).encode()


@pytest.mark.parametrize("bits", ["7fffffffffffffff", "7ff0000000000000", "fff0000000000000"])
def test_appendix_b_refuses_what_is_not_a_number(bits: str) -> None:
    with pytest.raises(CanonicalizationError):
        canonicalize_value([struct.unpack(">d", bytes.fromhex(bits))[0]])


def test_example_of_section_3_2_2(parser: str) -> None:
    text = rb"""{
       "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
       "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
       "literals": [null, true, false]
     }"""
    assert (
        canonicalize(text)
        == (
            '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
            '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
        ).encode()
    )


def test_example_of_section_3_2_3(parser: str) -> None:
    text = rb"""{"\u20ac":"Euro Sign","\r":"Carriage Return","\ufb33":"Hebrew Letter Dalet With Dagesh","1":"One",
                 "\ud83d\ude00":"Emoji: Grinning Face","\u0080":"Control",
                 "\u00f6":"Latin Small Letter O With Diaeresis"}"""
    names = list(json.loads(canonicalize(text)))
    assert names == ["\r", "1", "\x80", "ö", "€", "😀", "\ufb33"]  # by UTF-16: the emoji before U+FB33


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{}{}",
        b"{} x",
        b"nul",
        b"[1,]",
        b'{"a":1,}',
        b"01",
        b"+1",
        b".5",
        b"1.",
        b"'a'",
        b"NaN",
        b"[NaN]",
        b"Infinity",
        b"-Infinity",
        b"1e400",
        b"[-1e400]",
        b'{"a":1,"a":1}',
        b'{"a":1,"a":2}',
        b'{"a": 1, "a": 1}',
        b'{"a":1,"\\u0061":1}',
        b'{"x":{"b":[{"a":1,"a":1}]}}',
        b'"\\ud800"',
        b'"\\uDFFF"',
        b'{"\\ud800":1}',
        b'{"a": "\\ud83d"}',
        b'"\xed\xa0\x80"',
        b'"\xff"',
        b"\xff",
        b'"\xc0\xaf"',
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b'"\x00"',
        b'"\n"',
        b'"\x1f"',
        b'"\\x41"',
        b'"\\u12"',
        b"9007199254740992",
        b"-9007199254740992",
        b"[9007199254740993]",
        b'{"a": 9007199254740993}',
        b"18446744073709551616",
        b"100000000000000000000",
        b"1" * 5000,
        b"[" * 129 + b"]" * 129,
        b'{"a":' * 129 + b"1" + b"}" * 129,
        b'{"a": ' * 129 + b"1" + b"}" * 129,
        b"[" * 100_000 + b"]" * 100_000,
        b"\x0c1",
        b"1\xc2\xa0",
        b"// c\n1",
    ],
)
def test_refuses_what_parsers_read_differently(text: bytes, parser: str) -> None:
    with pytest.raises(CanonicalizationError) as caught:
        canonicalize(text)
    assert type(caught.value) is CanonicalizationError
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        b"9007199254740991",
        b"-9007199254740991",
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH,
        b"[" + b"[]," * 500 + b"[]]",
        b'"' + b"[" * 500 + b'"',
        b"null",
        b"true",
        b'""',
        b"[]",
        b"{}",
        b'"\x7f"',
    ],
)
def test_accepts_up_to_the_limits_unchanged(text: bytes, parser: str) -> None:
    assert canonicalize(text) == text


def test_size_limit(parser: str) -> None:
    assert canonicalize(b'"' + b"a" * (MAX_BYTES - 2) + b'"')
    with pytest.raises(CanonicalizationError):
        canonicalize(b'"' + b"a" * (MAX_BYTES - 1) + b'"')


@pytest.mark.parametrize("argument", ["{}", bytearray(b"{}"), memoryview(b"{}"), None, {}])
def test_only_bytes_are_json_text(argument: Any) -> None:
    with pytest.raises(CanonicalizationError):
        canonicalize(argument)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [  # each the kind of text on which orjson alone would write something else
        (b"[1.0]", b"[1]"),
        (b"1.0", b"1"),
        (b'{"b":1.0}', b'{"b":1}'),
        (b"[-0.0,1]", b"[0,1]"),
        (b"-0", b"0"),
        (b"1e16", b"10000000000000000"),
        (b"1e-6", b"0.000001"),
        (b"1.5e-6", b"0.0000015"),
        (b"1e-5", b"0.00001"),
        (b"1e-7", b"1e-7"),
        (b"1e21", b"1e+21"),
        (b"1e-400", b"0"),
        ('{"\uffff":1,"\U00010000":2}'.encode(), '{"\U00010000":2,"\uffff":1}'.encode()),
        ('{"\ue000":1,"😀":2}'.encode(), '{"😀":2,"\ue000":1}'.encode()),
        (b'["v1.0,e+,e-6"]', b'["v1.0,e+,e-6"]'),
        (b'["1.0","\\"",".0]"]', b'["1.0","\\"",".0]"]'),
        (b'["\\\\",1.0]', b'["\\\\",1]'),
        (b'["\\/"]', b'["/"]'),
    ],
)
def test_texts_on_which_the_fast_path_must_stand_back(text: bytes, canonical: bytes, parser: str) -> None:
    assert canonicalize(text) == canonical


@pytest.mark.parametrize(
    "value",
    [
        {1: "a"},
        {None: 1},
        {"a": 1, 2: 3},
        {1, 2},
        b"bytes",
        object(),
        float("nan"),
        float("inf"),
        2**53,
        -(2**53),
        "\ud800",
        {"\udfff": 1},
        1j,
    ],
)
def test_values_that_json_cannot_hold(value: Any) -> None:
    with pytest.raises(CanonicalizationError):
        canonicalize_value(value)


def test_values_of_subclasses_are_written_as_what_they_are() -> None:
    class Colour(StrEnum):
        RED = "red"

    class Number(IntEnum):
        ONE = 1

    value = OrderedDict([("b", (Number.ONE, Colour.RED)), (Colour.RED, True)])
    assert canonicalize_value(value) == b'{"b":[1,"red"],"red":true}'


def test_a_value_that_contains_itself_is_too_deep() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(CanonicalizationError):
        canonicalize_value(value)


def test_a_member_name_that_orjson_exchanged_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """orjson caches names by an unseeded 64-bit hash: two names with one hash could be read as one another."""

    class Lying:
        OPT_SORT_KEYS, OPT_STRICT_INTEGER = json_text.orjson.OPT_SORT_KEYS, json_text.orjson.OPT_STRICT_INTEGER
        dumps = staticmethod(json_text.orjson.dumps)
        real = staticmethod(json_text.orjson.loads)

        @classmethod
        def loads(cls, data: bytes) -> Any:
            return cls.real(data.replace(b'"role"', b'"evil"'))

    monkeypatch.setattr(json_text, "orjson", Lying)
    monkeypatch.setattr(json_text, "LARGE", -1)
    assert canonicalize(b'{"role":"user"}') == b'{"role":"user"}'
    assert canonicalize(b'{"role" : "user"}') == b'{"role":"user"}'


@given(
    st.recursive(
        st.just(1) | st.just("[{\n  "), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner)
    ),
    st.integers(1, 8),
)
def test_depth_is_bounded_the_same_whether_it_is_estimated_or_counted(value: Any, limit: int) -> None:
    def depth(value: Any) -> int:
        if isinstance(value, dict):
            value = list(value.values())
        return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0

    value = [value]
    assert json_text._too_deep(value, limit) is (depth(value) > limit)
    if json_text._shallow(value, limit):
        assert depth(value) <= limit


def test_the_depth_of_wide_documents_is_bounded_too() -> None:
    wide, deep = b"[" + b"[]," * 500, b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1)
    assert canonicalize(wide + deep + b"]") == wide + deep + b"]"
    for deeper in (b"[" + deep + b"]", b'[{"a":' * 200 + b"1" + b"}]" * 200):
        with pytest.raises(CanonicalizationError):
            canonicalize(wide + deeper + b"]")


@pytest.mark.parametrize(
    "text",
    [
        b"[1 2]",
        b"1 2",
        b"[tr ue]",
        b"[- 1]",
        b"[1. 5]",
        b"[1 e5]",
        b'["\\ n"]',
        b'["\\u 0041"]',
        b"{} {}",
        b'"" ""',
        b"[] 1",
    ],
)
def test_white_space_inside_of_a_token_is_not_ignored(text: bytes, parser: str) -> None:
    with pytest.raises(CanonicalizationError):
        canonicalize(text)


@pytest.mark.parametrize(
    "text", [b' { " a" : [ 1 ,\t" b " ] , "c" : { } }\r\n', b'{\n  " a": [\n    1,\n    " b "\n  ],"c":{}\n}']
)
def test_white_space_between_tokens_is_and_inside_of_strings_is_not(text: bytes, parser: str) -> None:
    assert canonicalize(text) == b'{" a":[1," b "],"c":{}}'


# The alphabet is chosen so that whatever the two paths do differently comes up often.
_CHARACTERS = [
    *'abc"\\/{}[]:,.0e+-6 \n\t\x00\x1f\x7f',
    "é",
    "\u2028",
    "\ud7ff",
    "\ue000",
    "\ufb33",
    "\uffff",
    "😀",
    "𐀀",
]
_FLOATS = st.floats(allow_nan=False, allow_infinity=False) | st.builds(
    lambda digits, exponent: float(f"{digits}e{exponent}"), st.integers(-99999, 99999), st.integers(-12, 25)
)
_TEXTS = st.lists(st.sampled_from(_CHARACTERS), max_size=8).map("".join) | st.text(
    st.characters(exclude_categories=["Cs"])
)
_SCALARS = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | _FLOATS | _TEXTS
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(_TEXTS, inner, max_size=5), max_leaves=20
)


@given(_VALUES, st.booleans(), st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:\r")]))
@settings(max_examples=500)
def test_equals_the_oracle(value: Any, ascii_only: bool, separators: tuple[str, str]) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, separators=separators).encode()
    expected = rfc8785.dumps(value)
    assert canonicalize_value(value) == expected
    for parser in PARSERS:
        with pytest.MonkeyPatch.context() as patch:
            use(parser, patch)
            assert canonicalize(text) == expected


@pytest.mark.parametrize(("seed", "documents"), [(8785, 20_000), pytest.param(7493, 130_000, marks=pytest.mark.slow)])
def test_equals_the_oracle_on_many_documents(seed: int, documents: int) -> None:
    chance = random.Random(seed)
    separators = [(",", ":"), (", ", ": ")]
    for _ in range(documents):
        value = _document(chance, 3)
        text = json.dumps(value, ensure_ascii=chance.random() < 0.3, separators=chance.choice(separators)).encode()
        with pytest.MonkeyPatch.context() as patch:
            use(chance.choice(PARSERS), patch)
            assert canonicalize(text) == rfc8785.dumps(value), text


def _document(chance: random.Random, levels: int) -> Any:
    kind = chance.random() if levels else 1.0
    if kind < 0.35:
        return {_text(chance): _document(chance, levels - 1) for _ in range(chance.randint(0, 4))}
    if kind < 0.6:
        return [_document(chance, levels - 1) for _ in range(chance.randint(0, 4))]
    match chance.randrange(6):
        case 0:
            return chance.randint(-(2**53) + 1, 2**53 - 1)
        case 1:
            return float(f"{chance.randint(-99999, 99999)}e{chance.randint(-12, 25)}")
        case 2:
            number = struct.unpack(">d", chance.randbytes(8))[0]
            return number if number - number == 0 else 0.0  # not NaN, not infinite
        case 3:
            return chance.choice([True, False, None])
        case _:
            return _text(chance)


def _text(chance: random.Random) -> str:
    return "".join(chance.choices(_CHARACTERS, k=chance.randint(0, 5)))


@given(
    st.binary(max_size=60)
    | st.lists(st.sampled_from([b"{", b"}", b"[", b"]", b'"', b":", b",", b"1", b"\\", b"e", b" "])).map(b"".join)
)
@settings(max_examples=500)
def test_arbitrary_bytes_are_canonicalised_or_refused(data: bytes) -> None:
    results = []
    for parser in PARSERS:
        with pytest.MonkeyPatch.context() as patch:
            use(parser, patch)
            try:
                results.append(canonicalize(data))
            except CanonicalizationError:
                results.append(None)
    assert len(set(results)) == 1
    if results[0] is not None:
        assert json.loads(results[0]) == json.loads(data)


@given(_VALUES)
@settings(max_examples=200)
def test_the_canonical_form_is_a_fixed_point(value: Any) -> None:
    canonical = canonicalize_value(value)
    try:
        again = canonicalize(canonical)
    except CanonicalizationError as error:
        assert "2^53" in str(error)  # a float such as 1e20, which is written as an integer
        return
    assert again == canonical
