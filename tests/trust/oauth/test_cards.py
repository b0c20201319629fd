from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
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
    read_card,
    security_members,
)

ISSUER = "https://auth.fleet.example"
POLICY = CardPolicy(issuer=ISSUER, scopes={"agent:execute": "Give the agent work.", "agent:read": ""})
CARD: dict[str, Any] = {
    "name": "billing",
    "description": "Bills.",
    "version": "1.0.0",
    "supportedInterfaces": [
        {"url": "https://billing.fleet.example/a2a", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}
    ],
    **security_members(POLICY),
}


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
        token_url="https://auth.fleet.example/token",
        metadata_url="https://auth.fleet.example/.well-known/oauth-authorization-server",
        scopes=("agent:execute", "agent:read"),
        mtls=True,
        signatures_required=True,
        interface_urls=("https://billing.fleet.example/a2a",),
    )
    assert check_card(read_card(CARD), issuers=["https://other.example", ISSUER]) == ISSUER


def test_optional_signatures_are_offered_and_not_required() -> None:
    members = security_members(CardPolicy(issuer=ISSUER, scopes={"agent:read": "Read."}, signatures="optional"))
    (entry,) = members["capabilities"]["extensions"]
    assert entry["uri"] == extension.URI and "required" not in entry
    card = {**CARD, **members}
    assert json_format.MessageToDict(json_format.ParseDict(card, AgentCard())) == card
    assert check_card(read_card(card), issuers=[ISSUER], signatures=False) == ISSUER
    with pytest.raises(CardRefused, match="signed"):
        check_card(read_card(card), issuers=[ISSUER])


def test_an_issuer_with_a_path_has_its_metadata_before_the_path() -> None:
    issuer = "https://login.example:8443/tenant/"
    card = {**CARD, **security_members(CardPolicy(issuer=issuer, scopes={"agent:read": "Read."}))}
    read = read_card(card)
    assert read.metadata_url == "https://login.example:8443/.well-known/oauth-authorization-server/tenant"
    assert read.token_url == "https://login.example:8443/tenant/token"
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
        security_members(CardPolicy(issuer="https://evil.example", scopes={"agent:execute": "x"}))
    ),
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
