from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from a2a.client.card_resolver import parse_agent_card
from a2a.compat.v0_3.types import AgentCard as AgentCard03
from a2a.types import AgentCard
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from trust import extension
from trust.errors import CardRefused, ConfigurationError
from trust.oauth.cards import (
    CardPolicy,
    CardRequirements,
    check_card,
    policies_of,
    read_card,
    secured,
)

ISSUER = "https://auth.fleet.example"
POLICY = CardPolicy(issuer=ISSUER, scopes={"agent:execute": "Give the agent work.", "agent:read": ""})
PLAIN: dict[str, Any] = {
    "name": "billing",
    "description": "Bills.",
    "version": "1.0.0",
    "supportedInterfaces": [
        {"url": "https://billing.fleet.example/a2a", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}
    ],
}
CARD: dict[str, Any] = secured(PLAIN, POLICY)


def test_the_sdk_keeps_every_byte_of_what_is_written() -> None:
    message = json_format.ParseDict(CARD, AgentCard())
    assert json_format.MessageToDict(message) == CARD
    assert message.security_schemes["oauth2"].oauth2_security_scheme.flows.client_credentials.token_url == (
        "https://auth.fleet.example/token"
    )
    assert list(message.security_requirements[0].schemes["oauth2"].list) == ["agent:execute", "agent:read"]


def test_nothing_in_it_is_empty_so_that_no_canonical_form_can_drop_it() -> None:
    def walk(value: Any) -> None:
        assert value not in ("", [], {}), CARD
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            walk(inner)

    walk(CARD)


def test_what_is_written_is_what_is_read() -> None:
    assert read_card(json.loads(json.dumps(CARD))) == CardRequirements(
        servers=(
            (
                "https://auth.fleet.example/token",
                "https://auth.fleet.example/.well-known/oauth-authorization-server",
            ),
        ),
        scopes=("agent:execute", "agent:read"),
        skills={},
        mtls=True,
        signatures_required=True,
        interface_urls=("https://billing.fleet.example/a2a",),
    )
    assert check_card(read_card(CARD), issuers=["https://other.example", ISSUER]) == ISSUER


def test_optional_signatures_are_offered_and_not_required() -> None:
    card = secured(PLAIN, CardPolicy(issuer=ISSUER, scopes={"agent:read": "Read."}, signatures="optional"))
    (entry,) = card["capabilities"]["extensions"]
    assert entry["uri"] == extension.URI and "required" not in entry
    assert json_format.MessageToDict(json_format.ParseDict(card, AgentCard())) == card
    assert check_card(read_card(card), issuers=[ISSUER], signatures=False) == ISSUER
    with pytest.raises(CardRefused, match="signed"):
        check_card(read_card(card), issuers=[ISSUER])


SKILLED: dict[str, Any] = {
    **PLAIN,
    "capabilities": {"streaming": True, "extensions": [{"uri": "urn:example:other"}, {"uri": extension.URI}]},
    "skills": [
        {"id": "bill", "name": "Bill", "description": "Bills.", "tags": ["t"], "securityRequirements": [{}]},
        {"id": "pay", "name": "Pay", "description": "Pays.", "tags": ["t"]},
    ],
}
SKILLS = {"bill": ("agent:execute", "bill:write"), "pay": ("agent:execute", "pay:write")}
EACH = CardPolicy(issuer=ISSUER, scopes={"agent:execute": "Work.", "bill:write": "", "pay:write": ""}, skills=SKILLS)


def test_each_skill_says_what_it_needs() -> None:
    card = secured(SKILLED, EACH)
    assert json_format.MessageToDict(json_format.ParseDict(card, AgentCard())) == card
    assert card["capabilities"]["streaming"] is True  # and what else the card had stays
    assert [e["uri"] for e in card["capabilities"]["extensions"]] == ["urn:example:other", extension.URI]
    read = read_card(card)
    assert read.skills == SKILLS
    assert read.scopes_for("pay") == SKILLS["pay"]
    assert read.scopes_for("other") == read.scopes == ("agent:execute", "bill:write", "pay:write")
    assert check_card(read, issuers=[ISSUER]) == ISSUER
    assert read_card(secured(card, POLICY)).skills == {}  # what a card said before is not what it says now


def test_a_caller_needs_a_token_of_one_of_several_servers() -> None:
    other = dataclasses.replace(EACH, issuer="https://login.example", token_url="https://login.example/oauth/token")
    read = read_card(secured(SKILLED, EACH, other))
    assert [token_url for token_url, _ in read.servers] == [f"{ISSUER}/token", "https://login.example/oauth/token"]
    assert check_card(read, issuers=["https://login.example"]) == "https://login.example"
    assert check_card(read, issuers=[ISSUER]) == ISSUER
    with pytest.raises(CardRefused, match="not ours"):
        check_card(read, issuers=["https://third.example"])


def skilled_of_0_3() -> dict[str, Any]:
    """`SKILLED` as its agent would write it for A2A 0.3."""
    base = {**SKILLED, "protocolVersion": "0.3.0", "url": "https://billing.fleet.example/a2a"}
    base |= {"defaultInputModes": ["text/plain"], "defaultOutputModes": ["text/plain"]}
    base.pop("supportedInterfaces")
    base["skills"] = [{n: v for n, v in skill.items() if n != "securityRequirements"} for skill in base["skills"]]
    return base


def test_the_older_form_says_the_same() -> None:
    """Of A2A 0.3: the SDK's own types of 0.3 keep every byte, and what it makes of them is the newer form."""
    older = secured(skilled_of_0_3(), EACH, form="0.3")
    assert AgentCard03.model_validate(older).model_dump(mode="json", by_alias=True, exclude_none=True) == {
        **older,
        "preferredTransport": "JSONRPC",  # the default of 0.3
    }
    assert older["securitySchemes"]["mtls"]["type"] == "mutualTLS"
    assert older["security"] == [{"oauth2": ["agent:execute", "bill:write", "pay:write"], "mtls": ["spiffe"]}]
    assert older["skills"][1]["security"] == [{"oauth2": ["agent:execute", "pay:write"], "mtls": ["spiffe"]}]
    read = json_format.MessageToDict(parse_agent_card(copy.deepcopy(older)))
    newer = secured(SKILLED, EACH)
    for member in ("securitySchemes", "securityRequirements"):
        assert read[member] == newer[member]
    assert [s["securityRequirements"] for s in read["skills"]] == [s["securityRequirements"] for s in newer["skills"]]


def gate_settings(**changes: Any) -> dict[str, Any]:
    settings = {"issuers": [ISSUER], "scope": "agent:read", "signatures": "required", "bindings": ["certificate"]}
    return {**settings, "descriptions": {}, "token_urls": {}, **changes}


@pytest.mark.parametrize(
    "refused",
    [
        lambda: secured(SKILLED),
        lambda: secured(SKILLED, EACH, POLICY),
        lambda: secured(SKILLED, EACH, form="0.2"),  # type: ignore[arg-type]
        lambda: secured(PLAIN, EACH),
        lambda: secured({**SKILLED, "skills": SKILLED["skills"][:1]}, EACH),
        lambda: secured({**SKILLED, "skills": [*SKILLED["skills"], {"id": "third"}]}, EACH),
        lambda: policies_of(**gate_settings(scope=lambda facts: "agent:read")),
        lambda: policies_of(**gate_settings(descriptions={"agent:write": "Not of this gate."})),
        lambda: policies_of(**gate_settings(token_urls={"https://other.example": "https://other.example/token"})),
    ],
    ids=[
        "no policy",
        "different policies",
        "no such form",
        "no skills in the card",
        "a skill less",
        "a skill more",
        "a function",
        "a description too many",
        "a server too many",
    ],
)
def test_a_card_that_would_not_be_true_is_not_written(refused: Callable[[], Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        refused()
    assert type(caught.value) is ConfigurationError


def test_tokens_that_are_bound_to_a_key_are_described_so() -> None:
    (policy,) = policies_of(**gate_settings(bindings=["dpop"], descriptions={"agent:read": "Read."}))
    scheme = secured(PLAIN, policy)["securitySchemes"]["oauth2"]["oauth2SecurityScheme"]
    assert "DPoP" in scheme["description"] and "certificate" not in scheme["description"]
    assert scheme["flows"]["clientCredentials"]["scopes"] == {"agent:read": "Read."}


def test_an_issuer_with_a_path_has_its_metadata_before_the_path() -> None:
    issuer = "https://login.example:8443/tenant/"
    read = read_card(secured(PLAIN, CardPolicy(issuer=issuer, scopes={"agent:read": "Read."})))
    assert read.servers == (
        (
            "https://login.example:8443/tenant/token",
            "https://login.example:8443/.well-known/oauth-authorization-server/tenant",
        ),
    )
    assert check_card(read, issuers=[issuer]) == issuer


def test_a_card_without_a_metadata_url_is_judged_by_its_token_url() -> None:
    card = copy.deepcopy(CARD)
    del card["securitySchemes"]["oauth2"]["oauth2SecurityScheme"]["oauth2MetadataUrl"]
    assert check_card(read_card(card), issuers=[ISSUER]) == ISSUER
    with pytest.raises(CardRefused, match="not ours"):
        check_card(read_card(card), issuers=["https://other.example"])


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": "http://auth.fleet.example"},
        {"issuer": "https://auth.fleet.example?x"},
        {"issuer": "auth"},
        {"token_url": "http://auth.fleet.example/token"},
        {"scopes": {}},
        {"scopes": {"agent": "not a scope"}},
        {"skills": {"s": ()}},
        {"skills": {"s": ("agent",)}},
        {"signatures": "sometimes"},
        {"signatures": False},
    ],
    ids=str,
)
def test_a_policy_that_no_card_can_be_made_from(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        CardPolicy(**{"issuer": ISSUER, "scopes": {"agent:read": "Read."}, **change})


Mutation = Callable[[dict[str, Any]], Any]


def _oauth2(card: dict[str, Any]) -> dict[str, Any]:
    scheme: dict[str, Any] = card["securitySchemes"]["oauth2"]["oauth2SecurityScheme"]
    return scheme


def _required(card: dict[str, Any]) -> dict[str, Any]:
    schemes: dict[str, Any] = card["securityRequirements"][0]["schemes"]
    return schemes


ATTACKS: dict[str, Mutation] = {
    "mtls requirement removed": lambda c: _required(c).pop("mtls"),
    "mtls scheme removed": lambda c: c["securitySchemes"].pop("mtls"),
    "mtls scheme replaced": lambda c: c["securitySchemes"].update(
        mtls={"apiKeySecurityScheme": {"name": "k", "location": "header"}}
    ),
    "alternative without mtls": lambda c: c["securityRequirements"].append(
        {"schemes": {"oauth2": {"list": ["agent:execute"]}}}
    ),
    "alternative without anything": lambda c: c["securityRequirements"].append({"schemes": {}}),
    "empty alternative": lambda c: c["securityRequirements"].append({}),
    "no requirements": lambda c: c.pop("securityRequirements"),
    "oauth2 requirement removed": lambda c: _required(c).pop("oauth2"),
    "oauth2 scheme removed": lambda c: c["securitySchemes"].pop("oauth2"),
    "no schemes": lambda c: c.pop("securitySchemes"),
    "scheme of two kinds": lambda c: c["securitySchemes"]["oauth2"].update(mtlsSecurityScheme={"description": "x"}),
    "scheme of no kind": lambda c: c["securitySchemes"].update(oauth2={}),
    "scheme is text": lambda c: c["securitySchemes"].update(oauth2={"oauth2SecurityScheme": "x"}),
    "scheme in the old shape": lambda c: c["securitySchemes"].update(oauth2={"type": "oauth2", "flows": {}}),
    "implicit flow only": lambda c: _oauth2(c).update(flows={"implicit": {"authorizationUrl": "https://a.example"}}),
    "token url elsewhere": lambda c: _oauth2(c)["flows"]["clientCredentials"].update(tokenUrl="https://evil.example/t"),
    "token url in the clear": lambda c: _oauth2(c)["flows"]["clientCredentials"].update(tokenUrl="http://auth.example"),
    "token url missing": lambda c: _oauth2(c)["flows"]["clientCredentials"].pop("tokenUrl"),
    "metadata elsewhere": lambda c: _oauth2(c).update(
        oauth2MetadataUrl="https://evil.example/.well-known/oauth-authorization-server"
    ),
    "metadata is a list": lambda c: _oauth2(c).update(oauth2MetadataUrl=[]),
    "metadata of another tenant": lambda c: _oauth2(c).update(
        oauth2MetadataUrl="https://auth.fleet.example/.well-known/oauth-authorization-server/evil"
    ),
    "whole server replaced": lambda c: c.update(
        secured(c, CardPolicy(issuer="https://evil.example", scopes={"agent:execute": "x"}))
    ),
    "skill without mtls": lambda c: c.update(
        skills=[{"id": "s", "securityRequirements": [{"schemes": {"oauth2": {"list": ["agent:execute"]}}}]}]
    ),
    "skill with an alternative without anything": lambda c: c.update(
        skills=[{"id": "s", "securityRequirements": [*c["securityRequirements"], {"schemes": {}}]}]
    ),
    "skill with tokens of another server": lambda c: (
        c["securitySchemes"].update(oauth3=c["securitySchemes"]["oauth2"]),
        c.update(
            skills=[
                {
                    "id": "s",
                    "securityRequirements": [{"schemes": {"oauth3": {"list": ["a:b"]}, "mtls": {"list": ["spiffe"]}}}],
                }
            ]
        ),
    ),
    "skill without a name": lambda c: c.update(skills=[{"securityRequirements": c["securityRequirements"]}]),
    "skills are names": lambda c: c.update(skills=["s"]),
    "signatures no longer required": lambda c: c["capabilities"]["extensions"][0].update(required=False),
    "signatures required by text": lambda c: c["capabilities"]["extensions"][0].update(required="true"),
    "signature extension removed": lambda c: c["capabilities"].update(extensions=[]),
    "another extension": lambda c: c["capabilities"]["extensions"][0].update(uri=extension.URI + "2"),
    "capabilities removed": lambda c: c.pop("capabilities"),
    "interface in the clear": lambda c: c["supportedInterfaces"][0].update(url="http://billing.fleet.example/a2a"),
    "interface at a host that is no IDN": lambda c: c["supportedInterfaces"][0].update(url="https://xn--a/"),
    "token url at a host that is no IDN": lambda c: _oauth2(c)["flows"]["clientCredentials"].update(
        tokenUrl="https://xn--a/token"
    ),
    "no interface": lambda c: c.pop("supportedInterfaces"),
    "interface without url": lambda c: c["supportedInterfaces"][0].pop("url"),
    "interfaces are text": lambda c: c.update(supportedInterfaces="https://billing.fleet.example"),
    "scopes are text": lambda c: _required(c).update(oauth2={"list": "agent:execute"}),
    "scopes with quotes": lambda c: _required(c).update(oauth2={"list": ['a"b']}),
    "requirement is a list": lambda c: _required(c).update(oauth2=["agent:execute"]),
    "too many requirements": lambda c: c.update(securityRequirements=c["securityRequirements"] * 65),
    "too many schemes": lambda c: c["securitySchemes"].update({f"m{n}": {"mtlsSecurityScheme": {}} for n in range(64)}),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_card_that_asks_for_less_or_for_elsewhere_is_refused(attack: str) -> None:
    card = copy.deepcopy(CARD)
    ATTACKS[attack](card)
    assert card != CARD
    with pytest.raises(CardRefused) as caught:
        check_card(read_card(card), issuers=[ISSUER])
    assert type(caught.value) is CardRefused


def test_a_card_of_the_sdk_is_none() -> None:
    with pytest.raises(ConfigurationError, match=r"got AgentCard, expected a dict, such as MessageToDict\(card\)"):
        secured(AgentCard(name="billing"))  # type: ignore[arg-type]


def test_no_configured_issuer_trusts_no_card() -> None:
    with pytest.raises(CardRefused, match="not ours"):
        check_card(read_card(CARD), issuers=[])


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(CARD)), JSON)
def test_reading_raises_nothing_but_card_refused(member: str, value: Any) -> None:
    with contextlib.suppress(CardRefused):
        read_card({**CARD, member: value})
