from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from trust.errors import ConfigurationError, CredentialsError
from trust.identity import AgentID
from trust.oauth.keys import SigningKey, StaticKeys, public_jwks
from trust.oauth.server.clients import ClientRegistry
from trust.oauth.server.grants.partners import MAX_PARTNERS, PartnerIssuer, Partners, WatchedPartners

PARTNER = {
    "issuer": '"https://auth.partner.example"',
    "jwks_uri": '"https://auth.partner.example/jwks"',
    "agent_id": '"spiffe://partner.example/authority"',
    "trust_domains": '["partner.example", "other.example"]',
    "scopes": '["read:ledger.*"]',
}
CLIENT = (
    '[[client]]\nagent_id = "spiffe://fleet.example/a"\nscopes = ["x:y"]\nresources = ["spiffe://fleet.example/b"]\n'
)
T = TypeVar("T")
KEYS = StaticKeys(public_jwks([SigningKey.generate()]))


def table(**changes: str | None) -> str:
    members = {name: value for name, value in {**PARTNER, **changes}.items() if value is not None}
    return "[[partner]]\n" + "".join(f"{name} = {value}\n" for name, value in members.items())


def partner(**changes: Any) -> PartnerIssuer:
    wanted = {"issuer": "https://auth.partner.example", "keys": KEYS, "trust_domains": ("partner.example",)}
    return PartnerIssuer(**{**wanted, "scopes": ("read:x",), **changes})


class Clients:
    """What is asked to make the clients that fetch keys."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, AgentID | None]] = []

    def __call__(self, url: str, agent: AgentID | None) -> httpx.AsyncClient:
        self.asked.append((url, agent))
        return httpx.AsyncClient()


def test_partners_stand_beside_the_clients(tmp_path: Path) -> None:
    path, http = tmp_path / "clients.toml", Clients()
    path.write_text(CLIENT + table() + table(issuer='"https://second.example"', agent_id=None))
    partners = WatchedPartners(path, http).current()
    first, second = partners.find("https://auth.partner.example"), partners.find("https://second.example")
    assert first is not None
    assert second is not None
    assert (first.trust_domains, first.scopes) == (("partner.example", "other.example"), ("read:ledger.*",))
    where = "https://auth.partner.example/jwks"
    assert http.asked == [(where, AgentID.parse("spiffe://partner.example/authority")), (where, None)]
    assert partners.find("https://auth.partner.example/") is None
    assert ClientRegistry.load(path).find("spiffe://fleet.example/a") is not None


def test_the_file_is_followed_and_known_keys_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trust.files.LOOK_SECONDS", 0.0)
    path, http = tmp_path / "clients.toml", Clients()
    path.write_text(CLIENT + table())
    partners = WatchedPartners(path, http)
    before = partners.current().find("https://auth.partner.example")
    path.write_text(CLIENT + table(scopes='["read:x"]'))
    after = eventually(lambda: partners.current().find("https://auth.partner.example"), lambda p: p != before)
    assert before is not None
    assert after is not None
    assert after.keys is before.keys
    assert len(http.asked) == 1
    path.write_text(CLIENT)
    assert eventually(lambda: partners.current().find("https://auth.partner.example"), lambda p: p is None) is None


def eventually(read: Callable[[], T], wanted: Callable[[T], bool]) -> T:
    """What it reads, once it is as wanted: files are looked at about once a second."""
    end = time.monotonic() + 20
    while not wanted(value := read()) and time.monotonic() < end:
        time.sleep(0.05)
    return value


def test_without_a_way_to_their_keys_there_are_no_partners(tmp_path: Path) -> None:
    path = tmp_path / "clients.toml"
    path.write_text(CLIENT)
    assert WatchedPartners(path, None).current().find("https://auth.partner.example") is None
    path.write_text(CLIENT + table())
    with pytest.raises(ConfigurationError, match="serve --authority"):
        WatchedPartners(path, None)


WRONG: dict[str, tuple[str, type[Exception]]] = {
    "no issuer": (table(issuer=None), ConfigurationError),
    "issuer not https": (table(issuer='"http://auth.partner.example"'), ConfigurationError),
    "issuer a number": (table(issuer="7"), ConfigurationError),
    "no jwks_uri": (table(jwks_uri=None), ConfigurationError),
    "jwks_uri not https": (table(jwks_uri='"http://auth.partner.example/jwks"'), ConfigurationError),
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
    "not TOML": ("[[partner", ConfigurationError),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_partner(tmp_path: Path, name: str) -> None:
    text, expected = WRONG[name]
    path = tmp_path / "clients.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        WatchedPartners(path, Clients())
    assert type(caught.value) is expected
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError):
        WatchedPartners(tmp_path / "nothing.toml", Clients())


def test_each_issuer_is_one_partner() -> None:
    assert Partners([partner(), partner(issuer="https://b.example")]).find("https://b.example") is not None
    with pytest.raises(ConfigurationError):
        Partners([partner(), partner()])


def test_keys_are_not_shown() -> None:
    assert "keys" not in repr(partner())
