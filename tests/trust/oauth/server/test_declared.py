"""The file of an authorization server as one: whatever part of a change is wrong, nothing of it is taken."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.authority import ISSUER, Clock, Trail, WithPeer, ask
from tests.forge import NOW, Forge
from trust import files
from trust.errors import ConfigurationError, CredentialsError
from trust.identity import AgentID
from trust.oauth.scopes import parse
from trust.oauth.server import declared, state
from trust.oauth.server.declared import DeclaredFile
from trust.oauth.server.state import authorization_server
from trust.peers import PeerVerifier

PLANNER, BILLING = "spiffe://fleet.example/planner", "spiffe://fleet.example/billing"
PARTNER, SECOND = "https://auth.partner.example", "https://auth.second.example"


def client(agent: str, more: str = "") -> str:
    return f'[[client]]\nagent_id = "{agent}"\nscopes = ["agent:execute"{more}]\nresources = ["{PLANNER}"]\n'


def partner(issuer: str, scopes: str = '["read:ledger.*"]') -> str:
    return (
        f'[[partner]]\nissuer = "{issuer}"\njwks_uri = "{issuer}/jwks"\nscopes = {scopes}\n'
        'agent_id = "spiffe://partner.example/authority"\ntrust_domains = ["partner.example"]\n'
    )


INCLUDES = '[includes]\n"agent:admin" = ["agent:execute"]\n'
CALENDAR = '[[calendar]]\nname = "office"\nzone = "UTC"\ndays = ["mon"]\nopens = "08:00"\ncloses = "18:00"\n'
FILE = INCLUDES + CALENDAR + client(PLANNER) + partner(PARTNER)
BETTER = FILE + client(BILLING) + partner(SECOND)


class Http:
    """What is asked to make the clients that fetch keys."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, AgentID | None]] = []

    def __call__(self, url: str, agent: AgentID | None) -> httpx.AsyncClient:
        self.asked.append((url, agent))
        return httpx.AsyncClient(transport=httpx.AsyncBaseTransport())


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(files, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(files, "SETTLE_SECONDS", 0.0)
    path = tmp_path / "clients.toml"
    path.write_text(FILE)
    return path


def until(file: DeclaredFile, settled: Callable[[], bool]) -> None:
    for _ in range(10):  # a change is believed at the second look
        file.clients.current()
        if settled():
            return
    raise AssertionError(file.problem)


def test_what_the_file_declares(path: Path) -> None:
    http = Http()
    file = DeclaredFile(path, http)
    assert file.clients.current().find(PLANNER) is not None
    found = file.partners.current().find(PARTNER)
    assert found is not None and (found.trust_domains, found.scopes) == (("partner.example",), ("read:ledger.*",))
    assert http.asked == [(f"{PARTNER}/jwks", AgentID.parse("spiffe://partner.example/authority"))]
    assert file.rules.catalogue.covers(parse("agent:admin"), parse("agent:execute"))
    assert list(file.rules.calendars) == ["office"]
    assert file.clients.current() is file.clients.current() and file.partners.current() is file.partners.current()


HELD_BACK: dict[str, tuple[str, str]] = {
    "partner misspelt": (BETTER.replace("trust_domains", "trust_domain"), "unknown members: got trust_domain"),
    "partner without scopes": (BETTER + partner("https://c.example", "[]"), "no trust domain or no scope"),
    "partner twice": (BETTER + partner(PARTNER), "partner is declared twice"),
    "client misspelt": (BETTER.replace("resources", "resource", 1), "unknown members: got resource"),
    "client twice": (BETTER + client(BILLING), "client is registered twice"),
    "client of no calendar": (BETTER + client(f"{BILLING}/2", ', "temporal:night"'), "no [[calendar]] of that name"),
    "includes changed": (BETTER.replace("agent:admin", "agent:root"), "rules have changed: got includes"),
    "calendar changed": (BETTER.replace("08:00", "09:00"), "rules have changed: got calendar"),
    "approval new": ('[approval]\nscopes = ["agent:**"]\n' + BETTER, "rules have changed: got approval"),
    "policy new": ('policy = "tokens.cedar"\n' + BETTER, "rules have changed: got policy"),
    "rules gone": (BETTER.replace(INCLUDES + CALENDAR, ""), "rules have changed: got includes, calendar"),
    "nothing": ("", "is empty"),
    "nothing but lines": ("\n \n", "is empty"),
    "unknown member": ("[[clients]]\n" + BETTER, "unknown members: got clients"),
    "not TOML": (BETTER + "[[partner", "is not TOML"),
    "not UTF-8": (BETTER + "# \udcff", "is not TOML"),
    "too large": (BETTER + "#" * 5000, "5000 bytes"),
}


@pytest.mark.parametrize("name", HELD_BACK)
def test_a_change_that_is_wrong_somewhere_is_held_back_whole_until_it_is_mended(
    path: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text, told = HELD_BACK[name]
    monkeypatch.setattr(declared, "MAX_FILE_BYTES", 5000)
    file = DeclaredFile(path, Http())
    clients, partners = file.clients.current(), file.partners.current()
    path.write_bytes(text.encode(errors="surrogateescape"))
    until(file, lambda: file.problem is not None)
    assert file.clients.current() is clients and file.partners.current() is partners
    problem = str(file.problem)
    assert told in problem and "\n" not in problem
    lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert lines == [f"{problem}; the last good value stays in use"]
    path.write_text(BETTER)
    until(file, lambda: file.problem is None)
    assert file.clients.current().find(BILLING) is not None
    assert file.partners.current().find(SECOND) is not None


def test_the_last_client_can_be_taken_away(path: Path) -> None:
    file = DeclaredFile(path, Http())
    path.write_text(FILE.replace(client(PLANNER), ""))
    until(file, lambda: file.clients.current().find(PLANNER) is None)
    assert file.problem is None and file.partners.current().find(PARTNER) is not None
    (note,) = file.notes("fleet.example")
    assert note == f"{path} declares no client: only those that were registered by command get tokens"
    path.write_text("# nobody any more")
    assert DeclaredFile(path, None).notes() == [note]


def test_a_file_that_is_gone_leaves_the_last_declaration(path: Path) -> None:
    file = DeclaredFile(path, Http())
    clients, partners = file.clients.current(), file.partners.current()
    path.unlink()
    until(file, lambda: file.problem is not None)
    assert file.clients.current() is clients and file.partners.current() is partners


def test_both_parts_change_at_once_whichever_is_asked_and_known_keys_are_kept(path: Path) -> None:
    http = Http()
    file = DeclaredFile(path, http)
    before = file.partners.current().find(PARTNER)
    path.write_text(FILE.replace('"read:ledger.*"', '"read:x"') + client(BILLING))
    until(file, lambda: file.clients.current().find(BILLING) is not None)
    after = file.partners.current().find(PARTNER)
    assert before is not None and after is not None and after.scopes == ("read:x",)
    assert after.keys is before.keys and len(http.asked) == 1
    path.write_text(FILE.replace(partner(PARTNER), ""))
    for _ in range(10):
        if file.partners.current().find(PARTNER) is None:
            break
    assert file.partners.current().find(PARTNER) is None
    assert file.clients.current().find(BILLING) is None


def test_the_rules_of_the_start_are_those_of_the_first_whole_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = client(PLANNER, ', "temporal:office"')
    path.write_text(half)
    monkeypatch.setattr(time, "sleep", lambda _: path.write_text(half + CALENDAR))
    file = DeclaredFile(path, None)
    assert file.clients.current().find(PLANNER) is not None
    assert list(file.rules.calendars) == ["office"]


WRONG: dict[str, tuple[str, str, type[Exception]]] = {
    "too deep": ("x = " + "[" * 2400 + "]" * 2400, "is not TOML", ConfigurationError),
    "an endless number": ("x = " + "9" * 4900, "is not TOML", ConfigurationError),
    "not TOML": ("[[client", "is not TOML", ConfigurationError),
    "not UTF-8": ("\udcff", "is not TOML", ConfigurationError),
    "empty": ("", "is empty: expected [[client]] tables, or a comment", ConfigurationError),
    "unknown table": (
        "[[clients]]\n",
        "unknown members: got clients, expected [[client]], [[partner]], [[calendar]], [includes], [approval], policy",
        ConfigurationError,
    ),
    "unknown member": ("default = 1\n" + FILE, "unknown members: got default", ConfigurationError),
    "policy below a client": (
        client(PLANNER) + 'policy = "a.cedar"\n',
        "policy belongs at the top: expected before the first table",
        ConfigurationError,
    ),
    "policy below a table": ('[includes]\npolicy = "a.cedar"\n', "policy belongs at the top", ConfigurationError),
    "policy that is not there": ('policy = "a.cedar"\n' + client(PLANNER), "a.cedar", CredentialsError),
    "rules with a mistake": (FILE.replace('"UTC"', '"Mars/Olympus"'), "calendar office", ConfigurationError),
    "client of no calendar": (client(PLANNER, ', "temporal:night"'), "temporal:night: no", ConfigurationError),
    "partner, and nobody to fetch its keys": (FILE, "has a partner: expected none", ConfigurationError),
    "too large": (client(PLANNER) + "#" * 5000, "5000 bytes", CredentialsError),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_at_the_start_is_one_line(path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, told, expected = WRONG[name]
    monkeypatch.setattr(declared, "MAX_FILE_BYTES", 5000)
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigurationError) as caught:
        DeclaredFile(path, None)
    assert type(caught.value) is expected
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there(path: Path) -> None:
    with pytest.raises(CredentialsError, match="cannot read"):
        DeclaredFile(path.with_name("none.toml"), None)


def test_a_running_server_takes_a_new_client_with_its_partner_and_not_before(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forge = Forge()
    peer = PeerVerifier(forge.bundles).verify(forge.leaf("/billing").chain_der, now=NOW, usage="client")
    form = ask(client_id=BILLING, resource=PLANNER, scope="agent:execute")

    async def work() -> None:
        settings = {"clients": path, "issuer": ISSUER, "folder": tmp_path / "state", "url": None, "password": "secret"}
        with authorization_server(**settings, audit=Trail(), clock=Clock(NOW), http=Http()) as app:  # type: ignore[arg-type]
            transport = httpx.ASGITransport(WithPeer(app, peer))
            async with httpx.AsyncClient(transport=transport, base_url=ISSUER) as http:
                assert (await http.post("/token", data=form)).status_code == 401
                path.write_text(BETTER.replace('scopes = ["read', 'scope = ["read'))
                limit = time.monotonic() + 20
                while "scopes, trust_domains; the last good value stays in use" not in caplog.text:
                    assert time.monotonic() < limit
                    assert (await http.post("/token", data=form)).status_code == 401
                path.write_text(BETTER)
                while (await http.post("/token", data=form)).status_code == 401:
                    assert time.monotonic() < limit
                assert (await http.post("/token", data=form)).status_code == 200

    asyncio.run(work())


def test_a_running_server_says_what_its_file_says_also_while_nobody_asks(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(state, "LOOK_SECONDS", 0.02)

    def told(words: str) -> None:
        limit = time.monotonic() + 20
        while words not in caplog.text:
            assert time.monotonic() < limit, caplog.text
            time.sleep(0.02)

    settings = {"clients": path, "issuer": ISSUER, "folder": tmp_path / "state", "url": None, "password": "secret"}
    path.write_text(FILE.replace('["partner.example"]', '["partner.example", "fleet.example"]'))
    with authorization_server(**settings, audit=Trail(), http=Http(), trust_domain="fleet.example"):  # type: ignore[arg-type]
        told("it may speak for the agents of fleet.example, which is our own trust domain")
        path.write_text(FILE.replace("agent:admin", "agent:root"))
        told("rules have changed: got includes, expected those of the start; restart the server; the last good value")
        path.write_text(FILE.replace(client(PLANNER), ""))
        told("declares no client: only those that were registered by command get tokens")
    lines = [record.getMessage() for record in caplog.records]
    assert sum("may speak for" in line for line in lines) == 1
    assert sum("declares no client" in line for line in lines) == 1
