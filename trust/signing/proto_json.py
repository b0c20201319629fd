"""The one JSON form of an A2A 1.0 object that every SDK gives back as it got it: what a signature inside JSON covers.

SDKs read such an object into protobuf and write it again as ProtoJSON. That drops members that they do not know and
fields that have their default, moves timestamps to UTC, pads base64, and makes 5 into 5.0. So the form has

- no field with its default (the empty string or list, false, the UNSPECIFIED of an enumeration, null), and no empty
  `metadata` of the object itself, for that is where the signatures travel. A default *within* `content`, such as the
  text "", has a meaning, and stays; so do empty objects anywhere else;
- timestamps in UTC with `Z` and 0, 3, 6 or 9 digits after the point; base64 of the standard alphabet, padded;
- RFC 8785 for the rest: the order of members, white space, escapes, 5 and 5.0.

Other spellings are brought into the form. What an SDK would *lose* or refuse is refused here, by the signer and by the
verifier alike, so that nothing of an object is outside its signature: members that A2A 1.0 does not have (snake_case
spellings among them), values of another type, enumerations as numbers, `data: null` (gone in JavaScript), a part with
two contents, integral numbers beyond 2^53 - 1 (rounded, or written in digits that others refuse), and more than
`MAX_DEPTH` levels (protobuf has 100, and takes three for an object of a Struct).

Pure, and without protobuf.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any, Literal

from trust import json_text
from trust.errors import MessageNotPortable
from trust.json_text import NotStrictJson
from trust.signing.canonical import MAX_BYTES, canonicalize
from trust.signing.schema import ENUMERATIONS, ONE_OF, SCHEMA

Kind = Literal["Message", "Artifact", "Task", "TaskStatusUpdateEvent", "TaskArtifactUpdateEvent"]
KINDS: tuple[Kind, ...] = ("Message", "Artifact", "Task", "TaskStatusUpdateEvent", "TaskArtifactUpdateEvent")
MAX_DEPTH = 32  # of objects and lists: three protobuf levels each, and a request or an answer around them, are < 100


def canonical_form(kind: Kind, value: Any) -> bytes:
    """The canonical bytes of an A2A object; a fixed point.

    Not checked: that the fields which A2A requires are there, or make sense.

    Args:
        kind: which object it is: an object does not say it itself.
        value: out of `json_text.parse`.

    Raises:
        MessageNotPortable: it would not survive an SDK, as the module says.
        CanonicalizationError: it is larger than 16 MiB or deeper than 128 levels.
    """
    normal = _object(kind, value, kind)
    if not normal.get("metadata", True):
        del normal["metadata"]
    text = canonicalize(json_text.write(normal))
    try:  # A double such as 1e20 is only now an integer.
        json_text.parse(text, max_bytes=MAX_BYTES, max_depth=MAX_DEPTH)
    except NotStrictJson as error:
        raise MessageNotPortable(f"{kind} would not survive", got=error, expected="what every SDK keeps") from None
    return text


def _object(kind: str, value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where, value, "an object")
    fields = SCHEMA[kind]
    normal: dict[str, Any] = {}
    for name, item in value.items():
        if name not in fields:
            raise MessageNotPortable(
                "member that A2A 1.0 does not have",
                got=f"{where}.{name}",
                expected=f"only the fields of {kind}, in lowerCamelCase",
                do="put it into metadata",
            )
        if item is None and name != "data":
            continue  # ProtoJSON: null is the default
        field = _field(fields[name])
        item = field.read(item, f"{where}.{name}")
        if item != field.default:
            normal[name] = item
    contents = ONE_OF.get(kind)
    if contents and len(contents & normal.keys()) > 1:
        raise MessageNotPortable("several contents in one", got=where, expected="one of " + ", ".join(sorted(contents)))
    return normal


def _wrong(where: str, value: object, expected: str) -> MessageNotPortable:
    return MessageNotPortable(where, got=type(value).__name__, expected=expected)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(where, value, "a string")
    return value


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(where, value, "true or false")
    return value


def _struct(value: object, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(where, value, "an object")
    return value


def _data(value: object, where: str) -> Any:
    if value is None:
        raise _wrong(where, value, "a value that is not null")
    return value


def _base64(value: object, where: str) -> str:
    text = _text(value, where)
    plain = text.rstrip("=").translate(_FROM_URL)
    try:
        padded = b64encode(b64decode(plain + "=" * (-len(plain) % 4), validate=True)).decode()
    except ValueError:  # binascii.Error, and text outside ASCII
        padded = ""
    if padded.rstrip("=") != plain:  # bits that a decoder throws away, too
        raise MessageNotPortable(where, got="another text", expected="base64 (RFC 4648 section 4 or 5)")
    return padded


_FROM_URL = str.maketrans("-_", "+/")


def _time(value: object, where: str) -> str:
    match = _RFC3339.fullmatch(_text(value, where))
    try:
        if match is None:
            raise ValueError
        moment = datetime.fromisoformat(f"{match['seconds']}{match['zone']}").astimezone(UTC)
    except (ValueError, OverflowError):  # no such day; before year 1 or after 9999, in UTC
        raise MessageNotPortable(where, got=value, expected="a time of RFC 3339, with its zone") from None
    fraction = (match["fraction"] or "").rstrip("0")
    fraction = fraction.ljust(-(-len(fraction) // 3) * 3, "0")
    return f"{moment.year:04}{moment:-%m-%dT%H:%M:%S}{'.' * bool(fraction)}{fraction}Z"


_RFC3339 = re.compile(  # not hour 24, which newer Pythons read
    r"(?P<seconds>\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):\d\d:\d\d)(?:\.(?P<fraction>\d{1,9}))?(?P<zone>Z|[+-]\d\d:\d\d)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class _Field:
    read: Callable[[Any, str], Any]  # the value in the form, from the value and the path that leads to it
    default: Any  # left out; None where even a default is kept


@cache
def _field(kind: str) -> _Field:
    """How a member of this kind (as `schema` has it) is read, and what of it is left out."""
    name = kind.rstrip("!?")
    if name.endswith("[]"):
        return _Field(partial(_list, _field(name[:-2]).read), [])
    if name in SCHEMA:
        return _Field(partial(_object, name), None)
    if name in ENUMERATIONS:
        return _Field(partial(_name, ENUMERATIONS[name]), ENUMERATIONS[name][0])
    read, default = _OF_PROTOBUF[name]
    return _Field(read, None if kind.endswith("?") else default)


def _list(read: Callable[[Any, str], Any], value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong(where, value, "a list")
    return [read(item, f"{where}[{position}]") for position, item in enumerate(value)]


def _name(known: tuple[str, ...], value: object, where: str) -> str:
    if value not in known:
        raise MessageNotPortable(where, got=value, expected=f"a name such as {known[-1]}")
    return str(value)


_OF_PROTOBUF: Mapping[str, tuple[Callable[[Any, str], Any], Any]] = {
    "string": (_text, ""),
    "bytes": (_base64, ""),
    "bool": (_flag, False),
    "Struct": (_struct, None),
    "Value": (_data, None),
    "Timestamp": (_time, None),
}
