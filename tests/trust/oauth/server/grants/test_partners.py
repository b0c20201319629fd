from __future__ import annotations

import tomllib
from typing import Any

import pytest

from trust.errors import ConfigurationError
from trust.identity import AgentID
from trust.oauth.keys import KeySource, SigningKey, StaticKeys, public_jwks
from trust.oauth.server.grants.partners import MAX_PARTNERS, PartnerIssuer, Partners, partners_of

PARTNER = {
    "issuer": '"https://auth.partner.example"',
    "jwks_uri": '"https://auth.partner.example/jwks"',
    "agent_id": '"spiffe://partner.example/authority"',
    "trust_domains": '["partner.example", "other.example"]',
    "scopes": '["read:ledger.*"]',
}
KEYS = StaticKeys(public_jwks([SigningKey.generate()]))


def table(**changes: str | None) -> str:
    members = {name: value for name, value in {**PARTNER, **changes}.items() if value is not None}
    return "[[partner]]\n" + "".join(f"{name} = {value}\n" for name, value in members.items())


def partner(**changes: Any) -> PartnerIssuer:
    wanted = {"issuer": "https://auth.partner.example", "keys": KEYS, "trust_domains": ("partner.example",)}
    return PartnerIssuer(**{**wanted, "scopes": ("read:x",), **changes})


class Keys:
    """What is asked to make the sources of keys."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, AgentID | None]] = []

    def __call__(self, url: str, agent: AgentID | None) -> KeySource:
        self.asked.append((url, agent))
        return KEYS


def read(text: str, keys: Keys | None) -> Partners:
    return partners_of(tomllib.loads(text).get("partner", []), "clients.toml", keys)


def test_what_the_tables_declare() -> None:
    keys = Keys()
    partners = read(table() + table(issuer='"https://second.example"', agent_id=None), keys)
    first, second = partners.find("https://auth.partner.example"), partners.find("https://second.example")
    assert first is not None
    assert second is not None
    assert (first.trust_domains, first.scopes) == (("partner.example", "other.example"), ("read:ledger.*",))
    where = "https://auth.partner.example/jwks"
    assert keys.asked == [(where, AgentID.parse("spiffe://partner.example/authority")), (where, None)]
    assert partners.find("https://auth.partner.example/") is None


def test_without_a_way_to_their_keys_there_are_no_partners() -> None:
    assert read("", None).find("https://auth.partner.example") is None
    with pytest.raises(ConfigurationError, match="has a partner: expected none"):
        read(table(), None)


WRONG: dict[str, tuple[str, type[Exception]]] = {
    "no issuer": (table(issuer=None), ConfigurationError),
    "issuer not https": (table(issuer='"http://auth.partner.example"'), ConfigurationError),
    "issuer a number": (table(issuer="7"), ConfigurationError),
    "no jwks_uri": (table(jwks_uri=None), ConfigurationError),
    "jwks_uri not https": (table(jwks_uri='"http://auth.partner.example/jwks"'), ConfigurationError),
    "jwks_uri with a password": (table(jwks_uri='"https://u:secret@auth.partner.example/jwks"'), ConfigurationError),
    "agent_id no agent": (table(agent_id='"spiffe://partner.example"'), ConfigurationError),
    "agent_id a number": (table(agent_id="7"), ConfigurationError),
    "no trust domains": (table(trust_domains=None), ConfigurationError),
    "trust domains empty": (table(trust_domains="[]"), ConfigurationError),
    "a trust domain for a list": (table(trust_domains='"partner.example"'), ConfigurationError),
    "a trust domain in capitals": (table(trust_domains='["Partner.example"]'), ConfigurationError),
    "a number among them": (table(trust_domains='["partner.example", 7]'), ConfigurationError),
    "every trust domain": (table(trust_domains='["*"]'), ConfigurationError),
    "no scopes": (table(scopes=None), ConfigurationError),
    "scopes empty": (table(scopes="[]"), ConfigurationError),
    "scope outside the grammar": (table(scopes='["openid"]'), ConfigurationError),
    "misspelt member": (table(scope='["read:x"]'), ConfigurationError),
    "one table": (table().replace("[[partner]]", "[partner]"), ConfigurationError),
    "a list of texts": ('partner = ["https://auth.partner.example"]', ConfigurationError),
    "too many": ("".join(table() for _ in range(MAX_PARTNERS + 1)), ConfigurationError),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_partner(name: str) -> None:
    text, expected = WRONG[name]
    with pytest.raises(ConfigurationError) as caught:
        read(text, Keys())
    assert type(caught.value) is expected
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_misspelt_member_is_told_with_the_right_ones() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(table(scope='["read:x"]'), Keys())
    assert str(caught.value) == (
        "partner https://auth.partner.example: unknown members: got scope, "
        "expected some of agent_id, issuer, jwks_uri, scopes, trust_domains"
    )


def test_whoever_may_speak_for_our_own_agents_is_to_be_looked_at() -> None:
    ours = "it may speak for the agents of fleet.example, which is our own trust domain"
    theirs = "its keys are served by an agent of partner.example, and it speaks for fleet.example"
    usual = table() + table(issuer='"https://b.example"', agent_id=None)
    assert read(usual, Keys()).notes("fleet.example") == []
    elsewhere = table(trust_domains='["fleet.example"]')
    told = [f"partner https://auth.partner.example: {note}" for note in (ours, theirs)]
    assert read(elsewhere, Keys()).notes("fleet.example") == told
    assert read(elsewhere, Keys()).notes() == told[1:]


def test_each_issuer_is_one_partner() -> None:
    assert Partners([partner(), partner(issuer="https://b.example")]).find("https://b.example") is not None
    with pytest.raises(ConfigurationError):
        Partners([partner(), partner()])


def test_keys_are_not_shown() -> None:
    assert "keys" not in repr(partner())
