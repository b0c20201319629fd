"""The clients of a file and of the database, while both change."""

from __future__ import annotations

import asyncio
import logging
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.authority import Authority, ask
from tests.forge import NOW
from trust.errors import ConfigurationError
from trust.oauth.server.clients import Client, ClientPattern, ClientRegistry, clients_of, digest_of
from trust.oauth.server.registrations import Registrations, register
from trust.oauth.server.store import Store
from trust.sources import Live

BILLING, PLANNER = "spiffe://fleet.example/billing", "spiffe://fleet.example/planner"
WORKERS = "spiffe://fleet.example/workers/*"
RIGHTS = {"scopes": ["read:rates"], "resources": ["spiffe://fleet.example/ledger"]}
FILE = f"""
[[client]]
agent_id = "{PLANNER}"
scopes = ["agent:execute"]
resources = ["{BILLING}"]
"""


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[list[Store]]:
    """Of a server, and of a command in another process."""
    stores = [Store(f"sqlite:///{tmp_path / 'oauth.db'}") for _ in range(2)]
    yield stores
    for store in stores:
        store.close()


def read(text: str) -> ClientRegistry:
    return clients_of(tomllib.loads(text)["client"], "clients.toml")


@pytest.fixture
def declared() -> ClientRegistry:
    return read(FILE)


def test_both_places_are_one_list_that_changes_at_once(stores: list[Store], declared: ClientRegistry) -> None:
    server, command = stores
    source = Registrations(declared, server.clients)
    before = source.current()
    assert before is source.current()  # so that whoever asks at every request pays for changes only
    assert before.find(PLANNER) is not None and before.find(BILLING) is None

    added = register(command.clients, BILLING, RIGHTS, digest=digest_of("s"), now=NOW)
    assert isinstance(added, Client) and added.secrets is None  # the caller has it, and nobody else
    found = source.current().find(BILLING)
    assert found is not None and found.secrets is not None and len(found.secrets) == 1
    register(command.clients, WORKERS, RIGHTS, digest=None, now=NOW)
    assert source.current().find("spiffe://fleet.example/workers/1") is not None

    for name in (BILLING, PLANNER, WORKERS):
        command.clients.disable(name, now=NOW)
        assert source.current().find(name.replace("*", "1")) is None
    command.clients.enable(PLANNER, now=NOW)
    assert source.current().find(PLANNER) is not None


def test_who_is_in_both_places_gets_nothing_and_the_log_says_so_once(
    stores: list[Store], declared: ClientRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    server, command = stores
    source = Registrations(declared, server.clients)
    register(command.clients, PLANNER, RIGHTS, digest=None, now=NOW)
    with caplog.at_level(logging.WARNING):
        assert source.current().find(PLANNER) is None
        register(command.clients, BILLING, {**RIGHTS, "scopes": ["read:**"]}, digest=None, now=NOW)
        assert source.current().find(BILLING) is not None
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        f"client is registered twice: got {PLANNER}, expected each agent once; it is refused until one of them is gone",
        f"client registration to look at: {BILLING}: scopes: read:** is everything that begins with read:",
    ]
    command.clients.disable(PLANNER, now=NOW)
    command.clients.remove(PLANNER)
    assert source.current().find(PLANNER) is not None


NAMED = "spiffe://fleet.example/named"
SEVENTH = "spiffe://fleet.example/workers/7"


@pytest.mark.parametrize(
    ("asks", "client_id", "change", "told"),
    [
        (PLANNER, PLANNER, ("add", PLANNER), "client is registered twice, in the file and in the database: client_id"),
        (SEVENTH, SEVENTH, ("add", "spiffe://fleet.example/*/7"), f"two patterns are this agent: {WORKERS} and "),
        ("spiffe://fleet.example/x/7",) * 2
        + (
            ("add", "spiffe://fleet.example/*/7"),
            "two patterns can be the same agent, in the file and in the database",
        ),
        (PLANNER, PLANNER, ("disable", PLANNER), "disabled: client_id"),
        (SEVENTH, SEVENTH, ("disable", WORKERS), "disabled: client_id"),
        (PLANNER, PLANNER, ("disable", "spiffe://fleet.example/*"), "disabled: client_id"),
        (PLANNER, "planner", None, "no such client: client_id"),
        (BILLING, BILLING, None, "no such client: client_id"),
        (NAMED, NAMED, None, "registered by another client_id than its SPIFFE ID"),
        (PLANNER, SEVENTH, None, "registered for another SPIFFE ID"),
        (None, PLANNER, None, f"client_id {PLANNER} from no certificate"),
    ],
)
def test_the_trail_says_why_somebody_is_no_client_and_the_wire_never_does(
    tmp_path: Path, asks: str | None, client_id: str, change: tuple[str, str] | None, told: str
) -> None:
    table = "[[client]]\nagent_id = '{}'\nscopes = ['read:rates']\nresources = ['spiffe://fleet.example/x']\n"
    text = FILE + table.format(WORKERS) + table.format(NAMED) + "client_id = 'other'\n"
    authority = Authority(tmp_path)
    authority.clients = Live(read(text))
    authority.serve()
    if change is not None and change[0] == "add":
        register(authority.store.clients, change[1], RIGHTS, digest=None, now=NOW)
    elif change is not None:
        authority.store.clients.disable(change[1], now=NOW)
    answer = asyncio.run(authority.post(asks, ask(client_id=client_id)))
    assert (answer.status_code, answer.json()) == (401, {"error": "invalid_client"})
    assert authority.trail.last["reason"].startswith(f"client is not authenticated: got {told}")


def test_a_time_scope_that_nobody_could_use_is_told(stores: list[Store], caplog: pytest.LogCaptureFixture) -> None:
    server, _ = stores
    rights = {**RIGHTS, "scopes": ["read:rates", "temporal:office", "temporal:nope"]}
    register(server.clients, BILLING, rights, digest=None, now=NOW)
    Registrations(Live(ClientRegistry(())), server.clients, calendars=["office"]).current()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"client registration to look at: {BILLING}: temporal:nope: no [[calendar]] of that name"


def test_a_row_that_says_nothing_that_can_be_used_is_no_client_and_stops_no_other(
    stores: list[Store], caplog: pytest.LogCaptureFixture
) -> None:
    server, _ = stores
    register(server.clients, BILLING, RIGHTS, digest=None, now=NOW)
    rows: dict[str, tuple[dict[str, object], bytes | None]] = {
        PLANNER: ({"scopes": "agent:execute"}, None),
        WORKERS: (RIGHTS, b"x" * 32),  # a second factor that nobody could be asked for
        "spiffe://fleet.example/work*": (RIGHTS, None),
    }
    for name, (rights, digest) in rows.items():
        server.clients.add(name, rights, digest=digest, now=NOW, check=lambda rows: None)
    source = Registrations(Live(ClientRegistry(())), server.clients)
    assert source.current().find(PLANNER) is None and source.current().find(BILLING) is not None
    assert source.current().find(WORKERS.replace("*", "1")) is None
    for name in rows:
        assert f"client {name}: what the database says of it cannot be used" in caplog.text
    assert "cannot be used" in Registrations(read(FILE), server.clients).current().why_not(PLANNER)


@pytest.mark.parametrize(
    ("name", "rights", "digest", "told"),
    [
        (BILLING, RIGHTS, None, "one of that name"),
        ("spiffe://fleet.example/*", {**RIGHTS, "scopes": []}, None, "at least one in scopes"),
        ("spiffe://fleet.example/workers/7/*", {}, None, "at least one in scopes"),
        ("spiffe://fleet.example/workers/**", RIGHTS, None, "two patterns can be the same agent"),
        ("spiffe://fleet.example/new/*", RIGHTS, b"x" * 32, "a secret for many agents"),
        ("spiffe://fleet.example/new", {**RIGHTS, "more": 1}, None, "unknown members"),
        ("spiffe://fleet.example/new", {**RIGHTS, "client_id": "x"}, None, "client_id: got x"),
        ("billing", RIGHTS, None, "SPIFFE ID scheme"),
    ],
)
def test_what_does_not_go_together_is_not_registered(
    stores: list[Store], name: str, rights: dict[str, object], digest: bytes | None, told: str
) -> None:
    server, command = stores
    register(server.clients, BILLING, RIGHTS, digest=None, now=NOW)
    made = register(server.clients, WORKERS, RIGHTS, digest=None, now=NOW)
    assert isinstance(made, ClientPattern)
    before = server.clients.changes()
    with pytest.raises(ConfigurationError, match=told) as caught:
        register(command.clients, name, rights, digest=digest, now=NOW)
    assert type(caught.value) is ConfigurationError
    assert server.clients.changes() == before and len(server.clients.all()) == 2
