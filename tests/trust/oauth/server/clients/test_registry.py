from __future__ import annotations

import tomllib
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trust.errors import ConfigurationError
from trust.identity import AgentID
from trust.oauth.metadata import is_resource
from trust.oauth.server.clients import AgentPattern, Client, ClientPattern, ClientRegistry, clients_of

BILLING = AgentID.parse("spiffe://fleet.example/billing")
VALID: dict[str, Any] = {
    "agent_id": BILLING,
    "scopes": ("read:rates",),
    "exchange_scopes": ("read:ledger.eu",),
    "resources": ("spiffe://fleet.example/ledger",),
}

FILE = """
[[client]]
agent_id = "spiffe://fleet.example/billing"
scopes = ["read:rates"]
exchange_scopes = ["read:ledger.*"]
resources = ["spiffe://fleet.example/ledger", "https://ledger.example/api"]
lifetime_seconds = 300

[[client]]
client_id = "the-planner"
agent_id = "spiffe://fleet.example/planner"
scopes = ["agent:execute"]
resources = ["spiffe://fleet.example/billing"]
audiences = ["https://planner.example/"]
"""


def read(text: str) -> ClientRegistry:
    return clients_of(tomllib.loads(text).get("client", []), "clients.toml")


def test_a_file_is_read_with_defaults() -> None:
    registry = read(FILE)
    billing, planner = registry.find(str(BILLING)), registry.find("the-planner")
    assert billing == Client(
        agent_id=BILLING,
        scopes=("read:rates",),
        exchange_scopes=("read:ledger.*",),
        resources=("spiffe://fleet.example/ledger", "https://ledger.example/api"),
        lifetime=timedelta(minutes=5),
    )
    assert billing is not None and billing.client_id == str(BILLING) and billing.audiences == (str(BILLING),)
    assert planner is not None and planner.lifetime == timedelta(minutes=10)
    assert planner.audiences == ("https://planner.example/",)
    assert registry.find("spiffe://fleet.example/planner") is None
    assert registry.current() is registry


def test_wildcards_are_allowed_and_noted() -> None:
    assert read(FILE).notes() == [
        f"{BILLING}: exchange_scopes: read:ledger.* is a wildcard: what is named like that tomorrow is granted today"
    ]


@pytest.mark.parametrize(
    "old, new",
    [
        ("lifetime_seconds", "lifetime_second"),
        ("lifetime_seconds = 300", "lifetime_seconds = 1801"),
        ("lifetime_seconds = 300", "lifetime_seconds = 0"),
        ("lifetime_seconds = 300", "lifetime_seconds = true"),
        ("lifetime_seconds = 300", 'lifetime_seconds = "300"'),
        ('scopes = ["agent:execute"]', 'tls_client_auth_subject_dn = "CN=planner"'),
        ('scopes = ["agent:execute"]', 'client_secret = "hunter2"'),
        ('scopes = ["agent:execute"]', 'scopes = "agent:execute"'),
        ('scopes = ["agent:execute"]', "scopes = [1]"),
        ('scopes = ["agent:execute"]', 'scopes = ["agent"]'),
        ('scopes = ["agent:execute"]', "scopes = []"),
        ('agent_id = "spiffe://fleet.example/planner"', 'agent_id = "fleet.example/planner"'),
        ('agent_id = "spiffe://fleet.example/planner"', "agent_id = 7"),
        ('agent_id = "spiffe://fleet.example/planner"', ""),
        ('client_id = "the-planner"', 'client_id = "the planner"'),
        ('client_id = "the-planner"', "client_id = 7"),
        (FILE, "client = 1"),
        (FILE, "client = [1]"),
        (FILE, "[client]"),
    ],
)
def test_a_file_that_says_something_else_is_refused(old: str, new: str) -> None:
    assert old in FILE
    with pytest.raises(ConfigurationError) as caught:
        read(FILE.replace(old, new, 1))
    assert type(caught.value) is ConfigurationError


@pytest.mark.parametrize("text", ["", "client = []", "# nobody yet"])
def test_a_file_may_declare_nobody(text: str) -> None:
    assert read(text).is_empty
    assert not read(FILE).is_empty
    pattern = '[[client]]\nagent_id = "spiffe://fleet.example/w/*"\nscopes = ["read:rates"]\nresources = ["https://x"]'
    assert not read(pattern).is_empty


@pytest.mark.parametrize(
    "table, told",
    [
        ('scopes = ["a:b"]', "client 2: agent_id is missing"),
        ('client_id = "x"', "client x: agent_id is missing"),
        ("agent_id = 0", "client 2: agent_id"),
        ("lifetime = 3", "client 2: unknown members: got lifetime, expected some of agent_id, .*lifetime_seconds"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(table: str, told: str) -> None:
    first = FILE[: FILE.index("[[client]]", 5)]
    with pytest.raises(ConfigurationError, match=told):
        read(f"{first}\n[[client]]\n{table}\n")


@pytest.mark.parametrize("name", ["spiffe://fleet.example/other", "spiffe://fleet.example/*", "the-*", "spiffe:x"])
def test_nobody_has_the_name_of_another_agent(name: str) -> None:
    with pytest.raises(ConfigurationError, match="no SPIFFE ID and no pattern"):
        ClientRegistry.of(Client(**{**VALID, "client_id": name}))


def test_each_agent_and_each_client_id_once() -> None:
    other = AgentID.parse("spiffe://fleet.example/other")
    named = {**VALID, "client_id": "named"}
    for second in (VALID, {**VALID, "client_id": "again"}, {**named, "agent_id": other}):
        with pytest.raises(ConfigurationError, match="twice"):
            ClientRegistry.of(Client(**named), Client(**second))
    with pytest.raises(ConfigurationError, match="no clients"):
        ClientRegistry.of()


def test_a_delegation_never_means_the_agents_of_two_trust_domains() -> None:
    foreign = {**VALID, "agent_id": AgentID.parse("spiffe://partner.example/billing")}
    with pytest.raises(ConfigurationError, match=r"billing and spiffe://partner\.example/billing"):
        ClientRegistry.of(Client(**VALID), Client(**foreign))
    ClientRegistry.of(Client(**VALID), Client(**{**foreign, "exchange_scopes": ()}))


@pytest.mark.parametrize(
    "uri, good",
    [
        ("spiffe://fleet.example/billing", True),
        ("https://billing.example/api?v=1", True),
        ("https://[::1]:8443/", True),
        ("urn:example:ledger", True),
        ("", False),
        ("https:", False),
        ("//billing.example", False),
        ("/api", False),
        ("HTTPS://billing.example", False),
        ("https://billing.example/#", False),
        ("https://billing.example/a b", False),
        ("https://user@billing.example/", False),
        ("https://[::1", False),
        ("https://billing.example/\n", False),
        ("https://b\u00fcro.example/", False),
        ("urn:" + "x" * 2045, False),
    ],
)
def test_resources(uri: str, good: bool) -> None:
    assert is_resource(uri) is good


@given(st.text())
def test_is_resource_never_raises(text: str) -> None:
    assert is_resource("https:" + text) in (True, False)
    assert is_resource(text) in (True, False)


WORKERS: dict[str, Any] = {
    "pattern": AgentPattern.parse("spiffe://fleet.example/workers/*"),
    "scopes": ("read:rates",),
    "exchange_scopes": ("read:ledger.eu",),
    "resources": ("spiffe://fleet.example/ledger",),
}
SEVENTH = AgentID.parse("spiffe://fleet.example/workers/7")


def test_each_agent_of_a_pattern_is_a_client_by_its_own_spiffe_id() -> None:
    text = FILE.replace('agent_id = "spiffe://fleet.example/billing"', 'agent_id = "spiffe://fleet.example/workers/*"')
    registry = read(text)
    found = registry.find(str(SEVENTH))
    assert found == Client(
        agent_id=SEVENTH,
        scopes=("read:rates",),
        exchange_scopes=("read:ledger.*",),
        resources=("spiffe://fleet.example/ledger", "https://ledger.example/api"),
        lifetime=timedelta(minutes=5),
    )
    assert found is not None and found.client_id == str(SEVENTH) and found.audiences == (str(SEVENTH),)
    for other in ("spiffe://fleet.example/workers/*", "spiffe://fleet.example/workers", "spiffe://fleet.example/x/7"):
        assert registry.find(other) is None
    # No scope can name this one, so no caller could consent to what it exchanges.
    assert registry.find("spiffe://fleet.example/workers/a..b") is None
    with pytest.raises(ConfigurationError, match="client_id: got one for many agents"):
        read(text.replace('agent_id = "', 'client_id = "x"\nagent_id = "', 1))
    with pytest.raises(ConfigurationError, match="SPIFFE ID pattern"):
        read(text.replace("workers/*", "work*"))


def test_an_agent_that_is_registered_by_itself_is_so_before_any_pattern() -> None:
    alone = Client(agent_id=SEVENTH, client_id="seven", scopes=("read:rates",), resources=VALID["resources"])
    registry = ClientRegistry.of(ClientPattern(**WORKERS), alone)
    assert registry.find("seven") is alone
    assert registry.find(str(SEVENTH)) is None  # which would give it what the pattern gives
    assert registry.find("spiffe://fleet.example/workers/8") is not None
    assert [note for note in registry.notes() if "workers" in note] == []


@pytest.mark.parametrize(
    ("clients", "told"),
    [
        ((WORKERS, {"pattern": "spiffe://fleet.example/*/7"}), "two patterns can be the same agent"),
        ((WORKERS, {"pattern": "spiffe://fleet.example/**"}), "two patterns can be the same agent"),
        ((WORKERS, {"pattern": "spiffe://partner.example/*/7"}), "two clients that exchange tokens have one name"),
        (({"agent_id": "spiffe://partner.example/workers/7"}, WORKERS), "two clients that exchange tokens have one"),
        ((WORKERS, {"agent_id": "spiffe://partner.example/workers/7"}), "two clients that exchange tokens have one"),
    ],
)
def test_patterns_that_cannot_be_told_apart_are_refused(clients: tuple[dict[str, Any], ...], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        ClientRegistry.of(*map(made, clients))
    harmless = [made(c) if c is WORKERS else replace(made(c), exchange_scopes=()) for c in clients]
    if "name" in told or "one" in told:
        ClientRegistry.of(*harmless)


def made(members: dict[str, Any]) -> Client | ClientPattern:
    members = {**WORKERS, **members}
    if "agent_id" in members:
        del members["pattern"]
        return Client(**{**members, "agent_id": AgentID.parse(members["agent_id"])})
    if isinstance(members["pattern"], str):
        members["pattern"] = AgentPattern.parse(members["pattern"])
    return ClientPattern(**members)


PLANNER = Client(**{**VALID, "agent_id": AgentID.parse("spiffe://fleet.example/planner"), "exchange_scopes": ()})


@pytest.mark.parametrize(
    ("others", "disabled", "still"),
    [
        # (what the other list has, who is disabled, who is found besides the planner)
        ((), (), {"billing", "workers/7", "workers/8"}),
        ((Client(**VALID),), (), {"workers/7", "workers/8"}),
        ((Client(**VALID, client_id="b"),), (), {"workers/7", "workers/8"}),
        ((Client(**{**VALID, "agent_id": SEVENTH}),), (), {"billing", "workers/7", "workers/8"}),
        ((made({"pattern": "spiffe://fleet.example/*/7"}),), (), {"billing", "workers/8"}),
        ((made({"pattern": "spiffe://fleet.example/**"}),), (), {"billing"}),
        ((made({"agent_id": "spiffe://partner.example/billing"}),), (), {"billing", "workers/7", "workers/8"}),
        ((), (str(BILLING),), {"workers/7", "workers/8"}),
        ((), (str(SEVENTH),), {"billing", "workers/8"}),
        ((Client(**{**VALID, "agent_id": SEVENTH}),), (str(SEVENTH),), {"billing", "workers/8"}),
        ((), ("spiffe://fleet.example/workers/*",), {"billing"}),
        ((Client(**{**VALID, "agent_id": SEVENTH}),), ("spiffe://fleet.example/*/7",), {"billing", "workers/8"}),
        ((), ("spiffe://fleet.example/*",), {"workers/7", "workers/8"}),
    ],
)
def test_two_lists_never_give_more_than_each(others: Any, disabled: tuple[str, ...], still: set[str]) -> None:
    declared = ClientRegistry.of(PLANNER, Client(**VALID), ClientPattern(**WORKERS))
    both, problems = declared.joined(others, disabled)
    names = {"billing", "workers/7", "workers/8"}
    assert {name for name in names if both.find(f"spiffe://fleet.example/{name}")} == still
    planner_is_stopped = "spiffe://fleet.example/*" in disabled
    assert (both.find(str(PLANNER.agent_id)) is None) is planner_is_stopped
    assert both.find("b") is None and both.find("spiffe://partner.example/billing") is None
    assert bool(problems) == (bool(others) and others[0] != Client(**{**VALID, "agent_id": SEVENTH}))
    assert declared.find(str(BILLING)) is not None  # which is as it was
