"""The form of a card: our forms against those that others compute."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from a2a.client.card_resolver import parse_agent_card
from a2a.types import AgentCard
from a2a.utils.signing import _canonicalize_agent_card
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.cards import CARD, changed
from tests.trust.signing.test_schema import is_required
from trust.errors import CardMalformed
from trust.signing.canonical import canonicalize_value
from trust.signing.card_form import MAX_LEFT_OUT, covered, prepare, read, requirements
from trust.signing.schema import ONE_OF, SCHEMA


def of_the_specification(card: dict[str, Any]) -> bytes:
    """Section 8.4.1, from the descriptors: REQUIRED members even if empty, `optional` ones where they are written."""

    def message(descriptor: Descriptor, value: dict[str, Any]) -> dict[str, Any]:
        result = {}
        for field in descriptor.fields:
            if field.json_name in value:
                item = one(field, value[field.json_name])
            elif is_required(field):
                item = [] if field.is_repeated else ""
            else:
                continue
            empty = item in ("", [], {}) or item is False
            if not empty or is_required(field) or field.has_presence:
                result[field.json_name] = item
        return result

    def one(field: FieldDescriptor, item: Any) -> Any:
        inner = field.message_type
        if inner is None or inner.name == "Struct":
            return item
        if inner.GetOptions().map_entry:
            value = inner.fields_by_name["value"]
            return {name: one(value, entry) for name, entry in item.items()}
        return [message(inner, entry) for entry in item] if field.is_repeated else message(inner, item)

    return canonicalize_value(message(AgentCard.DESCRIPTOR, {n: v for n, v in card.items() if n != "signatures"}))


def of_the_sdk(card: dict[str, Any]) -> bytes:
    return _canonicalize_agent_card(parse_agent_card(copy.deepcopy(card))).encode()


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
json_values = st.recursive(
    st.none() | st.booleans() | texts | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(-1e15, 1e15),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def values_of(kind: str, *, whole: bool = False) -> st.SearchStrategy[Any]:
    """What may stand where the schema has `kind`; with `whole` hardly anything that a signer refuses."""
    kind, least = kind.rstrip("!?"), int(whole)
    if kind == "Struct":
        return st.dictionaries(texts, json_values, max_size=2)
    if kind.endswith("[]"):
        return st.lists(values_of(kind[:-2], whole=whole), min_size=least, max_size=2)
    if kind.endswith("{}"):
        return st.dictionaries(texts, values_of(kind[:-2], whole=whole), min_size=least, max_size=2)
    if kind == "string":
        return texts.filter(bool) if whole else texts
    if kind == "bool":
        return st.booleans()
    members = {name: values_of(inner, whole=whole) for name, inner in SCHEMA[kind].items()}
    if kind in ONE_OF:
        choices = [st.fixed_dictionaries({name: inner}) for name, inner in members.items()]
        return st.one_of(*choices, *([] if whole else [st.just({})]))
    required = {name: members[name] for name, inner in SCHEMA[kind].items() if whole and inner.endswith("!")}
    known = st.fixed_dictionaries(required, optional={n: v for n, v in members.items() if n not in required})
    if whole:
        return known
    unknown = st.dictionaries(st.sampled_from(["x", "url_", "Name"]), json_values, max_size=1)
    return st.builds(lambda ours, other: {**other, **ours}, known, unknown)


cards = values_of("AgentCard")


@given(cards)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_what_is_covered_is_what_the_sdk_signs(card: dict[str, Any]) -> None:
    form, left_out = covered(card)
    message = ParseDict(copy.deepcopy(card), AgentCard(), ignore_unknown_fields=True)
    expected = _canonicalize_agent_card(message)
    assert canonicalize_value(form).decode() == (expected if expected != "null" else "{}")
    assert bool(left_out) == (canonicalize_value(form) != canonicalize_value(card))
    assert covered(form) == (form, ())


@given(values_of("AgentCard", whole=True))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_what_can_be_signed_has_one_form(card: dict[str, Any]) -> None:
    prepared, findings = prepare(changed(CARD, **card))
    assume(all(finding.mended for finding in findings))
    direct = canonicalize_value(prepared)
    assert of_the_specification(prepared) == of_the_sdk(prepared) == direct
    assert prepare(prepared) == (prepared, [])


def test_a_whole_card_has_one_form_and_needs_no_change() -> None:
    assert prepare(CARD) == (CARD, [])
    assert of_the_specification(CARD) == of_the_sdk(CARD) == canonicalize_value(CARD)
    assert MessageToDict(parse_agent_card(copy.deepcopy(CARD))) == json.loads(json.dumps(CARD))


REQUIREMENT = [{"schemes": {"mtls": {}, "oauth2": {"list": ["agent:execute"]}}}]


@pytest.mark.parametrize(
    ("change", "expected", "path"),
    [  # what is mended
        ({"iconUrl": ""}, {}, "iconUrl"),
        ({"documentationUrl": None, "provider": {}}, {"provider": None}, "provider"),
        ({"capabilities": {}}, {"capabilities": {"streaming": False}}, "capabilities"),
        ({"capabilities": {"extensions": []}}, {"capabilities": {"streaming": False}}, "capabilities"),
        (
            {"capabilities": {"streaming": True, "extensions": [{"uri": "urn:x", "required": False, "params": {}}]}},
            {"capabilities": {"streaming": True, "extensions": [{"uri": "urn:x"}]}},
            "capabilities.extensions[0].required",
        ),
        (
            {"securitySchemes": {**CARD["securitySchemes"], "mtls": {"mtlsSecurityScheme": {"description": ""}}}},
            {"securitySchemes": CARD["securitySchemes"]},
            "securitySchemes.mtls.mtlsSecurityScheme",
        ),
        ({"securityRequirements": REQUIREMENT}, {}, "securityRequirements[0].schemes.mtls"),
        (
            {"skills": [{**CARD["skills"][0], "examples": [], "securityRequirements": REQUIREMENT}]},
            {"skills": [{**CARD["skills"][0], "securityRequirements": CARD["securityRequirements"]}]},
            "skills[0].securityRequirements[0].schemes.mtls",
        ),
    ],
)
def test_what_is_mended(change: dict[str, Any], expected: dict[str, Any], path: str) -> None:
    prepared, findings = prepare({**CARD, **change})
    wanted = changed(CARD, **expected)
    if "securitySchemes" in change:
        wanted["securitySchemes"]["mtls"]["mtlsSecurityScheme"]["description"] = prepared["securitySchemes"]["mtls"][
            "mtlsSecurityScheme"
        ]["description"]
    assert prepared == wanted
    assert path in [finding.path for finding in findings]
    assert all(finding.mended for finding in findings)


def test_a_scope_is_described_by_its_name() -> None:
    card = copy.deepcopy(CARD)
    flow = card["securitySchemes"]["oauth2"]["oauth2SecurityScheme"]["flows"]["clientCredentials"]
    flow["scopes"]["agent:read"] = ""
    prepared, (finding,) = prepare(card)
    flow["scopes"]["agent:read"] = "agent:read"
    assert prepared == card
    assert finding.path == "securitySchemes.oauth2.oauth2SecurityScheme.flows.clientCredentials.scopes.agent:read"


@pytest.mark.parametrize(
    ("change", "path"),
    [  # only its author can mend it
        ({"description": ""}, "description"),
        ({"skills": []}, "skills"),
        ({"name": None}, "name"),
        ({"supportedInterfaces": [{"url": "https://a.example"}]}, "supportedInterfaces[0].protocolBinding"),
        ({"skills": [{**CARD["skills"][0], "tags": ["a", ""]}]}, "skills[0].tags[1]"),
        ({"securityScheme": {}}, "securityScheme"),
        ({"security_schemes": {}}, "security_schemes"),
        ({"url": "https://a.example"}, "url"),
        ({"securityRequirements": [*CARD["securityRequirements"], {}]}, "securityRequirements[1]"),
        ({"securityRequirements": [{"schemes": {}}]}, "securityRequirements"),
        ({"securityRequirements": [{"schemes": {"oauth2": {"list": []}}}]}, "securityRequirements"),
        (
            {"capabilities": {"extensions": [{"uri": "urn:x", "params": {"a": 1, "empty": [""]}}]}},
            "capabilities.extensions[0].params.empty",
        ),
        (
            {"capabilities": {"extensions": [{"uri": "urn:x", "params": {"a": {"__proto__": 1}}}]}},
            "capabilities.extensions[0].params",
        ),
    ],
)
def test_what_only_its_author_can_mend(change: dict[str, Any], path: str) -> None:
    _, findings = prepare({**CARD, **change})
    assert any(not finding.mended and finding.path.startswith(path) for finding in findings), findings


@pytest.mark.parametrize(
    "value", [5, None, "x", [1], {}, {"mtlsSecurityScheme": 5}, {"mtlsSecurityScheme": {}}], ids=str
)
@pytest.mark.parametrize("place", ["schemes", "requirement", "requirement of a skill", "scopes"])
def test_no_scheme_and_no_scope_has_a_name_that_javascript_drops(place: str, value: Any) -> None:
    card = copy.deepcopy(CARD)
    holder = {
        "schemes": card["securitySchemes"],
        "requirement": card["securityRequirements"][0]["schemes"],
        "requirement of a skill": (skill := {"schemes": {"mtls": {"list": ["spiffe"]}}})["schemes"],
        "scopes": card["securitySchemes"]["oauth2"]["oauth2SecurityScheme"]["flows"]["clientCredentials"]["scopes"],
    }[place]
    card["skills"][0]["securityRequirements"] = [skill]
    assert covered(card)[1] == ()
    holder["__proto__"] = value
    for reading in (covered, prepare):
        with pytest.raises(CardMalformed, match="__proto__"):
            reading(card)


@pytest.mark.parametrize("kind", ["OAuthFlows", "SecurityScheme"])
def test_two_alternatives_at_once(kind: str) -> None:
    """The SDK refuses such a card, too; a reader who does not could take either."""
    card = copy.deepcopy(CARD)
    scheme = card["securitySchemes"]["oauth2"]
    holder = scheme if kind == "SecurityScheme" else scheme["oauth2SecurityScheme"]["flows"]
    other = next(name for name in sorted(ONE_OF[kind]) if name not in holder)
    holder[other] = None
    assert covered(card)[1] == (
        f"securitySchemes.oauth2{'' if holder is scheme else '.oauth2SecurityScheme.flows'}.{other}",
    )
    holder[other] = {}
    with pytest.raises(CardMalformed, match="one alternative"):
        covered(card)
    with pytest.raises(ParseError):
        ParseDict(card, AgentCard())


def test_of_what_is_left_out_only_the_whole_is_named() -> None:
    card = changed(CARD, x={"y": {"z": ""}}, securitySchemes={"mtls": {"mtlsSecurityScheme": {}}}, skills=[{}])
    assert set(covered(card)[1]) == {"x", "securitySchemes", "skills"}


def test_false_is_written_where_it_may_be_absent() -> None:
    extension = {"uri": "urn:x", "required": False}
    form, left_out = covered({"capabilities": {"streaming": False, "extensions": [extension]}})
    assert form == {"capabilities": {"streaming": False, "extensions": [{"uri": "urn:x"}]}}
    assert left_out == ("capabilities.extensions[0].required",)


def test_names_in_paths_are_bounded_and_so_is_their_number() -> None:
    _, (path,) = covered({"x" * 1000: 1})
    assert len(path) < 100
    assert len(covered({f"x{n}": 1 for n in range(MAX_LEFT_OUT)})[1]) == MAX_LEFT_OUT
    with pytest.raises(CardMalformed):
        covered({f"x{n}": 1 for n in range(MAX_LEFT_OUT + 1)})


def test_reading() -> None:
    assert read(b'{"name": "a"}') == read({"name": "a"}) == {"name": "a"}
    value = {"params": [1.0, {"a": ()}]}
    assert read(value) == {"params": [1, {"a": []}]}
    assert read(value)["params"] is not value["params"]
    for wrong in ({"a": float("nan")}, {1: 2}, {"a": 1e20}, {"a": object()}):
        with pytest.raises(CardMalformed):
            read(wrong)


def test_requirements_of_a_card_and_of_its_skills() -> None:
    need = {"schemes": {"a": {"list": ["x"]}}}
    card = {"securityRequirements": [need], "skills": [{}, {"securityRequirements": [need, {}]}]}
    assert requirements(card) == [
        ("securityRequirements[0].schemes", need["schemes"]),
        ("skills[1].securityRequirements[0].schemes", need["schemes"]),
        ("skills[1].securityRequirements[1].schemes", {}),
    ]
    assert requirements({"securityRequirements": None, "skills": None}) == []
