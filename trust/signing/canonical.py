"""RFC 8785, the JSON Canonicalization Scheme: one value, one sequence of bytes, so that a signature can cover it.

Two inputs that a reader could tell apart must never have one canonical form, so the parser is strict
(`json_text`). The numbers of RFC 8785 are IEEE 754 doubles: an integer that no double holds is refused, not rounded.
"""

from __future__ import annotations

import math
import re
from json.encoder import encode_basestring
from typing import Any

from trust import json_text
from trust.errors import CanonicalizationError
from trust.json_text import MAX_INTEGER, NotStrictJson

MAX_BYTES = 16 << 20  # of JSON text: a message with a large inline file
MAX_DEPTH = 128  # of objects and arrays; far beyond any A2A message, far within every parser's stack


def canonicalize(data: bytes) -> bytes:
    """Return the RFC 8785 form of a JSON text.

    The result is a fixed point, with one exception that follows from the rules for numbers: a *float* in
    [2^53, 1e21), such as 1e20, is written as an integer, which is then refused as input.

    Not checked: what the value means.

    Args:
        data: JSON in UTF-8, at most `MAX_BYTES` long and `MAX_DEPTH` deep.

    Raises:
        CanonicalizationError: not JSON, or JSON that parsers read differently: duplicate members, NaN, Infinity,
            1e400, lone surrogates, a byte order mark, integers beyond 2^53 - 1, invalid UTF-8, trailing text.
    """
    if not isinstance(data, bytes):
        raise CanonicalizationError("JSON text", got=type(data).__name__, expected="bytes")
    try:
        value = json_text.parse(data, max_bytes=MAX_BYTES, max_depth=MAX_DEPTH)
    except NotStrictJson as error:
        raise CanonicalizationError("not canonicalizable", got=error, expected="strict JSON (RFC 7493)") from None
    text = _write_fast(value) if json_text.orjson is not None else None
    return canonicalize_value(value) if text is None else text


def canonicalize_value(value: Any) -> bytes:
    """Return the RFC 8785 form of a value made of dict, list or tuple, str, int, float, bool and None.

    Raises:
        CanonicalizationError: another type, a member name that is not a str, or what `canonicalize` refuses.
    """
    parts: list[str] = []
    _write(value, parts, MAX_DEPTH)
    try:
        return "".join(parts).encode()
    except UnicodeEncodeError:
        raise CanonicalizationError("not canonicalizable", got="a lone surrogate") from None


def _write_fast(value: Any) -> bytes | None:
    """As `canonicalize_value`, by orjson, where its output is known to be RFC 8785; None where it may not be.

    orjson writes other bytes than ECMAScript only for doubles that are integers, that are at least 1e16, or in
    [1e-6, 1e-5); and it sorts by UTF-8 instead of UTF-16, which differs only where U+E000 to U+FFFF meets a
    character beyond U+FFFF.

    Args:
        value: out of `json_text.parse`: orjson would write NaN as null, and a UUID as a string.
    """
    text: bytes = json_text.orjson.dumps(value, option=json_text.orjson.OPT_SORT_KEYS)
    if _may_differ(text) and _may_differ(outside_strings(text)):
        return None
    if not text.isascii() and (b"\xee" in text or b"\xef" in text) and any(lead in text for lead in _BEYOND_FFFF):
        return None
    return text


def _may_differ(text: bytes) -> bool:
    """Whether one of those doubles may be in this compact JSON; False is certain, True may be the text of a string."""
    return bool(_INTEGRAL.search(text) or _SMALL.search(text) or (b"+" in text and b"e+" in text))


# Not one pattern: each is found by its constant beginning, which is many times faster.
_INTEGRAL = re.compile(rb"\.0(?:[,\]}]|\Z)")
_SMALL = re.compile(rb"e-6(?:[,\]}]|\Z)")


def outside_strings(text: bytes) -> bytes:
    """What of a JSON text is not a string: punctuation, numbers, literals and white space."""
    return b"".join(text.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])


_BEYOND_FFFF = tuple(bytes([lead]) for lead in range(0xF0, 0xF5))  # how such characters begin in UTF-8


def _write(value: Any, parts: list[str], levels: int) -> None:
    """Append the canonical form of `value`; `levels` of objects and arrays may still follow."""
    if isinstance(value, str):
        parts.append(encode_basestring(value))  # RFC 8785 section 3.2.2.2 has exactly the escapes of this function
    elif value is None:
        parts.append("null")
    elif isinstance(value, bool):
        parts.append("true" if value else "false")
    elif isinstance(value, int):
        if not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise CanonicalizationError("not canonicalizable", got="an integer beyond 2^53 - 1", do="send it as text")
        parts.append(int.__repr__(value))
    elif isinstance(value, float):
        parts.append(_number(value))
    elif isinstance(value, dict | list | tuple):
        if levels == 0:
            raise CanonicalizationError("nested too deeply", expected=f"at most {MAX_DEPTH} levels")
        if isinstance(value, dict):
            _write_object(value, parts, levels - 1)
        else:
            _write_array(value, parts, levels - 1)
    else:
        raise CanonicalizationError("not canonicalizable", got=type(value).__name__, expected="a JSON value")


def _write_object(members: dict[Any, Any], parts: list[str], levels: int) -> None:
    try:
        names = sorted(members, key=_utf16)
    except (AttributeError, TypeError):
        raise CanonicalizationError("not canonicalizable", expected="a str for every member name") from None
    except UnicodeEncodeError:
        raise CanonicalizationError("not canonicalizable", got="a lone surrogate") from None
    separator = "{"
    for name in names:
        parts += (separator, encode_basestring(name), ":")
        _write(members[name], parts, levels)
        separator = ","
    parts.append("}" if names else "{}")


def _write_array(items: list[Any] | tuple[Any, ...], parts: list[str], levels: int) -> None:
    separator = "["
    for item in items:
        parts.append(separator)
        _write(item, parts, levels)
        separator = ","
    parts.append("]" if items else "[]")


def _utf16(name: str) -> bytes:
    return name.encode("utf-16-be")  # RFC 8785 section 3.2.3: members are sorted by UTF-16 code units


def _number(value: float) -> str:
    """ECMAScript's Number.prototype.toString, ECMA-262 section 6.1.6.1.20; Python finds the same shortest digits."""
    if not math.isfinite(value):
        raise CanonicalizationError("not canonicalizable", got=value, expected="a finite number")
    if value == 0:
        return "0"  # minus zero too
    sign = "-" if value < 0 else ""
    mantissa, _, exponent_text = float.__repr__(abs(value)).partition("e")
    if not exponent_text:  # Python writes [1e-4, 1e16) without an exponent, as ECMAScript does
        return sign + mantissa.removesuffix(".0")
    exponent = int(exponent_text)
    digits = mantissa.replace(".", "")
    if 0 < exponent < 21:
        return sign + digits.ljust(exponent + 1, "0")
    if -7 < exponent < 0:
        return f"{sign}0.{'0' * (-exponent - 1)}{digits}"
    return f"{sign}{mantissa}e{exponent:+d}"
