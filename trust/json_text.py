"""Strict JSON: one text, one meaning. Whatever two parsers could read differently is refused.

The standard library's parser alone accepts NaN, 1e400, duplicate members, huge integers and lone surrogates. Hooks can
refuse them, slowly. Where orjson is installed, the value is instead written out again by it and compared with the
input: nothing of the above comes back as it was.

orjson's own parser is faster still, and is only ever believed where the comparison is byte for byte. orjson 3.13 keeps
the member names that it has seen in a cache keyed by an unseeded 64-bit hash and does not compare the names themselves,
so whoever finds two names with one hash could have one read as the other. It is used for large texts only: a signature
that is verified after it takes about 12 us longer than one that is verified after the standard library's parser.
"""

from __future__ import annotations

import importlib
import json
import math
from typing import Any, NoReturn

orjson: Any
try:
    orjson = importlib.import_module("orjson")
except ImportError:  # the extra "fast" is not installed; everything works, more slowly
    orjson = None

MAX_INTEGER = 2**53 - 1  # RFC 7493 section 2.2: beyond it, two integers are one IEEE 754 double
INDENTED = 128 << 10  # bytes of text; of depth 128, it is 16 MiB when indented
LARGE = 768  # bytes: most headers and claims are smaller, most documents are not
MAX_INTEGER_CHARACTERS = 17  # of a sign and sixteen digits; JSON has no leading zeros


class NotStrictJson(ValueError):
    """The text is not JSON, or JSON that two parsers could read differently; the message says why."""


def parse(data: bytes, *, max_bytes: int, max_depth: int) -> Any:
    """Return the value of a JSON text (RFC 8259, with the limits of RFC 7493), read strictly.

    Args:
        data: the UTF-8 text, at most `max_bytes` long.
        max_depth: of objects and arrays inside one another; `[]` has depth 1.

    Raises:
        NotStrictJson: too large or deep, not UTF-8, a byte order mark, a duplicate member, NaN or Infinity, a number
            beyond the doubles, an integer beyond 2^53 - 1, a lone surrogate, or anything after the value.
    """
    if len(data) > max_bytes:
        raise NotStrictJson(f"{len(data)} bytes, more than {max_bytes}")
    value = None
    if orjson is not None:
        if len(data) > LARGE and b'": ' not in data[:LARGE]:  # with white space it would be read in vain
            value = _parse_compact(data)
        if value is None:
            value = _parse_compared(data)
    if value is None:
        value = _parse_any(data)
    # Counting brackets inside strings too gives an upper bound, and most texts stay below it.
    if (
        data.count(b"{") + data.count(b"[") > max_depth
        and not (len(data) <= INDENTED and _shallow(value, max_depth))
        and _too_deep(value, max_depth)
    ):
        raise NotStrictJson(f"more than {max_depth} levels")
    return value


def write(value: Any) -> bytes:
    """The compact JSON text of a value, its members in the order they have.

    Raises:
        ValueError, TypeError: NaN, Infinity, or what is not JSON.
    """
    if orjson is not None:
        text: bytes = orjson.dumps(value, option=orjson.OPT_STRICT_INTEGER)
        if b"null" not in text:  # orjson writes NaN as null
            return text
    return _ENCODER.encode(value).encode()


def _parse_compact(data: bytes) -> Any:
    """The value of a text without white space or needless escapes, as machines write it; None for every other text."""
    try:
        value = orjson.loads(data)
        return value if orjson.dumps(value, option=orjson.OPT_STRICT_INTEGER) == data else None
    except (ValueError, TypeError):
        return None


def _parse_compared(data: bytes) -> Any:
    """The value of a text without needless escapes, with white space or without; None for every other text.

    The standard library finds tokens, strings and structure correctly, so white space within strings need not be
    compared again. What it reads too generously has fewer members when written again (duplicates), or other
    characters (NaN, Infinity and 1e400 become null), or cannot be written (integers, surrogates).
    """
    try:
        source = data.decode()
        value, end = _PLAIN_DECODER.raw_decode(source)
        if source[end:].strip(" \t\r\n"):
            return None
        text: bytes = orjson.dumps(value, option=orjson.OPT_STRICT_INTEGER)
    except (ValueError, TypeError, RecursionError):
        return None
    if text == data or text.translate(None, _WHITE_SPACE) == data.translate(None, _WHITE_SPACE):
        return value
    return None


def _parse_any(data: bytes) -> Any:
    try:
        text = data.decode()
        if text.startswith("\ufeff"):
            raise NotStrictJson("a byte order mark")
        value = _DECODER.decode(text)
        if "\\ud" in text or "\\uD" in text:  # the only spelling of a surrogate that UTF-8 lets through
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise NotStrictJson("not UTF-8") from None
    except UnicodeEncodeError:
        raise NotStrictJson("a lone surrogate") from None
    except RecursionError:
        raise NotStrictJson("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise NotStrictJson(f"{error.msg} at character {error.pos}") from None
    return value


def _shallow(value: Any, max_depth: int) -> bool:
    """Whether it is certain, and quickly so, that no object or array is deeper.

    What an object or array holds is indented by two spaces more than itself, and no string holds a line break.
    """
    if orjson is None:
        return False
    try:
        return b"\n" + b"  " * max_depth not in orjson.dumps(value, option=orjson.OPT_INDENT_2)
    except TypeError:  # too deep for orjson, at about 250
        return False


def _too_deep(value: Any, max_depth: int) -> bool:
    level = [value]
    for _ in range(max_depth):
        level = [
            item
            for container in level
            for item in (container.values() if type(container) is dict else container)
            if type(item) in _CONTAINERS
        ]
        if not level:
            return False
    return True


_CONTAINERS = frozenset({dict, list})


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise NotStrictJson("a duplicate member")
    return members


def _integer(digits: str) -> int:
    number = int(digits) if len(digits) <= MAX_INTEGER_CHARACTERS else MAX_INTEGER + 1
    if not -MAX_INTEGER <= number <= MAX_INTEGER:
        raise NotStrictJson("an integer beyond 2^53 - 1")
    return number


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise NotStrictJson("a number beyond the doubles")
    return number


def _constant(name: str) -> NoReturn:
    raise NotStrictJson(f"{name} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_members, parse_int=_integer, parse_float=_finite, parse_constant=_constant
)
_PLAIN_DECODER = json.JSONDecoder()
_WHITE_SPACE = b" \t\r\n"  # RFC 8259 section 2
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
