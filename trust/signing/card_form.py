"""The form of an A2A 1.0 Agent Card, and how much of it the SDKs' signatures cover.

The SDKs do not sign the document that is served. They read it into protobuf, which drops members that they do not know,
null and most defaults, then delete empty strings, lists and objects however deep, and sign the RFC 8785 form of the
rest. What they drop can be added to a signed card or be taken out of it: `{"mtls": {"mtlsSecurityScheme": {}}}`, say,
or a requirement without scopes.

So a card is signed here only in a form of which nothing is dropped (`prepare`); its direct RFC 8785 form, that of the
specification (section 8.4.1) and that of the SDKs are then the same bytes. And of a card that others have signed it can
be said what their form leaves out (`covered`).

Pure, and without protobuf.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from trust import json_text
from trust.errors import CanonicalizationError, CardMalformed
from trust.json_text import NotStrictJson
from trust.signing.canonical import canonicalize_value
from trust.signing.schema import ONE_OF, SCHEMA

MAX_CARD_BYTES = 256 << 10  # of JSON text: a hundred skills with long descriptions
MAX_CARD_DEPTH = 32  # of objects and lists; a card without `params` has 8
MAX_LEFT_OUT = 100  # members outside a signature that are still named one by one
MAX_SHOWN_NAME = 64  # characters of a member's name in a path: whoever made the card also chose its names

MTLS_DESCRIPTION = "TLS client certificate with one SPIFFE ID (X.509-SVID)."
MTLS_ROLE = "spiffe"  # OpenAPI lets a requirement name roles where its scheme has no scopes


class Finding(NamedTuple):
    """Something in a card that a signature would not hold, or that A2A does not allow."""

    path: str
    problem: str
    mended: str  # what `prepare` did about it; empty where only its author can


def read(card: bytes | Mapping[str, Any]) -> dict[str, Any]:
    """The card as a value of its own, out of strict JSON.

    Args:
        card: the document as it was received. Of a value that somebody else parsed, duplicate members are gone unseen.

    Raises:
        CardMalformed: not a JSON object in strict JSON, or too large or deep.
    """
    try:
        text = card if isinstance(card, bytes) else canonicalize_value(card)
        value = json_text.parse(text, max_bytes=MAX_CARD_BYTES, max_depth=MAX_CARD_DEPTH)
    except (NotStrictJson, CanonicalizationError) as error:
        raise CardMalformed("Agent Card", got=error, expected="strict JSON (RFC 7493)") from None
    if not isinstance(value, dict):
        raise CardMalformed("Agent Card", got=type(value).__name__, expected="a JSON object")
    return value


def covered(card: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What of a card (without its `signatures`) the SDKs' form keeps, and the path of each member that it leaves out.

    Raises:
        CardMalformed: a known member is of another type, two alternatives are there at once, too much is left out, or
            a scheme or scope is called `__proto__`.
    """
    left_out: list[str] = []
    form = _kept("AgentCard", card, "", left_out)
    return ({} if form is _NOTHING else form), tuple(left_out)


def prepare(card: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """The card in the form that can be signed, and what was found in it.

    Defaults and empty members that mean the same when they are absent are taken out. An mTLS scheme without a
    description gets one, and a requirement of it without roles gets the role `spiffe`; a scope without a description
    gets its own name, and an agent without any capability says that it does not stream. Nothing else is changed.

    Not checked: URLs, and whether the security requirements make sense (`trust.signing.cards`).

    Args:
        card: without its `signatures`.

    Raises:
        CardMalformed: as `covered`.
    """
    covered(card)  # from here on, types are known
    findings: list[Finding] = []
    mended = _mended("AgentCard", card, "", findings)
    _mend_requirements(mended, findings)
    _, left_out = covered(mended)
    for path in left_out:
        name = path.rpartition(".")[2]
        problem = "is not of A2A 1.0, or empty: the SDKs' signatures leave it out"
        findings.append(Finding(path, "JavaScript drops it" if name == _PROTO else problem, ""))
    return mended, findings


_NOTHING: Any = object()
_PROTO = "__proto__"  # an object in JavaScript takes it for something else than a member


def _kept(kind: str, value: Any, path: str, left_out: list[str]) -> Any:
    """The SDKs' form of a value; `_NOTHING` where they drop it."""
    kind = kind.rstrip("!?")
    if kind.endswith("[]"):
        _expect(isinstance(value, list), path, value, "a list")
        items = [_Member("", f"{path}[{n}]", kind[:-2], item) for n, item in enumerate(value)]
        return [item for _, item in _kept_members(items, left_out)] or _NOTHING
    if kind == "string":
        _expect(isinstance(value, str), path, value, "a string")
        return value or _NOTHING
    if kind == "bool":
        _expect(isinstance(value, bool), path, value, "true or false")
        return value
    _expect(isinstance(value, Mapping), path, value, "an object")
    if kind == "Struct":
        return _kept_json(value, path, left_out)
    if kind.endswith("{}"):
        # Some verifiers would see this member and others would not: nobody calls a scheme or a scope so.
        if _PROTO in value:
            raise CardMalformed(path, got=_PROTO, expected="names that JavaScript keeps")
        members = [_Member(n, _join(path, n), kind[:-2], item) for n, item in value.items()]
    else:
        fields = SCHEMA[kind]
        if sum(value.get(name) is not None for name in ONE_OF.get(kind, ())) > 1:
            raise CardMalformed(path, got=" and ".join(value), expected="one alternative of A2A 1.0")
        members = [_Member(n, _join(path, n), _written(fields.get(n, ""), item), item) for n, item in value.items()]
    return dict(_kept_members(members, left_out)) or _NOTHING


class _Member(NamedTuple):
    name: str
    path: str
    kind: str  # empty where it is dropped whatever is in it
    value: Any


def _written(kind: str, value: Any) -> str:
    """The kind of a member that protobuf writes again; without `optional`, false is what is not written."""
    return "" if value is None or (kind == "bool" and value is False) else kind


def _kept_members(members: list[_Member], left_out: list[str]) -> list[tuple[str, Any]]:
    """Name and form of each member that is kept. Of one that is not, itself is named and nothing inside of it."""
    kept = []
    for member in members:
        before = len(left_out)
        form = _kept(member.kind, member.value, member.path, left_out) if member.kind else _NOTHING
        if form is _NOTHING:
            _leave_out(left_out, before, member.path)
        else:
            kept.append((member.name, form))
    return kept


def _kept_json(value: Any, path: str, left_out: list[str]) -> Any:
    """As `_kept`, of any JSON: null and what is empty goes."""
    if isinstance(value, Mapping):
        members = [(name, _join(path, name), item) for name, item in value.items()]
    elif isinstance(value, list):
        members = [("", f"{path}[{position}]", item) for position, item in enumerate(value)]
    else:
        return _NOTHING if value is None or value == "" else value
    kept = []
    for name, where, item in members:
        before = len(left_out)
        form = _NOTHING if name == _PROTO else _kept_json(item, where, left_out)
        if form is _NOTHING:
            _leave_out(left_out, before, where)
        else:
            kept.append((name, form))
    if not kept:
        return _NOTHING
    return dict(kept) if isinstance(value, Mapping) else [item for _, item in kept]


def _leave_out(left_out: list[str], before: int, path: str) -> None:
    del left_out[before:]
    left_out.append(path)
    if len(left_out) > MAX_LEFT_OUT:
        raise CardMalformed("card is empty or unknown in too many places", expected=f"at most {MAX_LEFT_OUT}")


def _join(path: str, name: str) -> str:
    shown = name if len(name) <= MAX_SHOWN_NAME else name[:MAX_SHOWN_NAME] + "..."
    return f"{path}.{shown}" if path else shown


def _expect(right: bool, path: str, value: Any, expected: str) -> None:
    if not right:
        raise CardMalformed(path or "Agent Card", got=type(value).__name__, expected=expected)


def _mended(kind: str, value: Any, path: str, findings: list[Finding]) -> Any:
    """A copy without members that mean the same when absent, with what can be said in their place."""
    kind = kind.rstrip("!?")
    if kind.endswith("[]"):
        return [_mended(kind[:-2], item, f"{path}[{position}]", findings) for position, item in enumerate(value)]
    if kind == "string{}":
        return {name: _description(name, item, _join(path, name), findings) for name, item in value.items()}
    if kind.endswith("{}"):
        return {name: _mended(kind[:-2], item, _join(path, name), findings) for name, item in value.items()}
    if kind not in SCHEMA:
        return value
    result = {}
    for name, item in value.items():
        spec, where = SCHEMA[kind].get(name), _join(path, name)
        if item is None or (spec is not None and not spec.endswith("!") and _means_absent(spec, item)):
            findings.append(Finding(where, "is empty, or the default", "left out"))
        else:
            result[name] = item if spec is None else _mended(spec, item, where, findings)
    if kind == "MutualTlsSecurityScheme" and not result:
        findings.append(Finding(path, "is empty: the SDKs' signatures leave the scheme out", "given a description"))
        result["description"] = MTLS_DESCRIPTION
    if kind == "AgentCapabilities" and not result:
        findings.append(Finding(path, "is empty: the SDKs' signatures leave it out", "says that it does not stream"))
        result["streaming"] = False
    for name, spec in SCHEMA[kind].items():
        if spec.endswith("!") and name not in result:
            findings.append(Finding(_join(path, name), "is required by A2A 1.0 and missing", ""))
    return result


def _means_absent(spec: str, item: Any) -> bool:
    if spec == "MutualTlsSecurityScheme":  # which kind of scheme it is, it says also when it is empty
        return False
    return item == "" or item == [] or item == {} or (spec == "bool" and item is False)


def _description(name: str, text: Any, path: str, findings: list[Finding]) -> Any:
    if text != "":
        return text
    findings.append(Finding(path, "is empty: the SDKs' signatures leave the scope out", "described by its name"))
    return name


def _mend_requirements(card: dict[str, Any], findings: list[Finding]) -> None:
    """Name a role wherever an mTLS scheme is required without one."""
    schemes = card.get("securitySchemes", {})
    for path, requirement in requirements(card):
        for name, scopes in requirement.items():
            if not scopes.get("list") and "mtlsSecurityScheme" in schemes.get(name, {}):
                problem = "has no scopes: the SDKs' signatures leave it out"
                findings.append(Finding(_join(path, name), problem, "given a role"))
                requirement[name] = {"list": [MTLS_ROLE]}


def requirements(card: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Path and schemes of each alternative in which the card, or one of its skills, can be called."""
    holders = [("", card), *((f"skills[{n}].", skill) for n, skill in enumerate(card.get("skills") or ()))]
    return [
        (f"{path}securityRequirements[{n}].schemes", alternative.get("schemes") or {})
        for path, holder in holders
        for n, alternative in enumerate(holder.get("securityRequirements") or ())
    ]
