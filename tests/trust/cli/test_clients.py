"""`a2a-trust client ...`, as an operator uses it beside a server that runs."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.authority import BILLING, PLANNER, Authority, ask
from trust import cli
from trust.oauth.server.store import Store

WORKER, WORKERS = "spiffe://fleet.example/workers/7", "spiffe://fleet.example/workers/*"
ADD = ("--scope", "read:rates", "--resource", BILLING)
FORM = {"scope": "read:rates", "resource": BILLING}
NOT_HERE = "nobody of that name is registered here: it holds for whom the server's file names so"


class Operator:
    def __init__(self, database: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.url = f"sqlite:///{database}"
        self._capsys = capsys

    def __call__(self, *words: str, code: int = 0) -> str:
        """What the command prints on standard output, or on standard error where it is to fail."""
        assert cli.main(["client", *words, "--store", self.url]) == code
        told = self._capsys.readouterr()
        return told.err.strip() if code else told.out.strip()

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json"))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    authority = Authority(tmp_path)
    authority.clock.now = datetime.now(UTC)  # as the commands have it, which look at which tokens still live
    return authority


@pytest.fixture
def client(authority: Authority, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(tmp_path / "oauth.db", capsys)


def status(authority: Authority, agent: str, **options: Any) -> int:
    return asyncio.run(authority.post(agent, ask(client_id=agent, **FORM), **options)).status_code


def test_a_client_from_its_registration_to_its_end(authority: Authority, client: Operator) -> None:
    assert status(authority, WORKER) == 401
    assert client.json("add", WORKERS, *ADD) == {"client": WORKERS, "notes": []}
    assert status(authority, WORKER) == 200
    assert client.json("disable", WORKER) == {"client": WORKER, "disabled": True, "revoked_tokens": 1}
    assert status(authority, WORKER) == 401
    assert {row["client"]: row["state"] for row in client.json("list")} == {WORKER: "disabled", WORKERS: "enabled"}
    assert client("enable", WORKER) == f"{WORKER}: enabled"
    assert status(authority, WORKER) == 200
    assert client("disable", WORKERS) == f"{WORKERS}: disabled; 1 token revoked"
    assert status(authority, WORKER) == 401
    assert client.json("remove", WORKERS) == {"client": WORKERS, "removed": True}
    assert client.json("list") == []


def test_a_command_in_another_process_stops_a_declared_client_at_once(authority: Authority, client: Operator) -> None:
    form = ask(scope="agent:execute temporal:20min")
    token = asyncio.run(authority.token(PLANNER, form))
    held = authority.validate(token, audience=BILLING, holder=PLANNER).token_id
    command = [sys.executable, "-m", "trust.cli", "client", "disable", PLANNER, "--store", client.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr.splitlines()) == (0, [NOT_HERE])
    assert done.stdout == f"{PLANNER}: disabled; 1 token revoked\n"
    assert asyncio.run(authority.post(PLANNER, form)).json() == {"error": "invalid_client"}
    found = authority.store.tokens.find(held)
    assert found is not None and found.revoked


def test_a_second_factor_is_printed_once_and_replaced(authority: Authority, client: Operator) -> None:
    first = client("add", WORKER, *ADD, "--needs-secret")
    assert status(authority, WORKER) == 401
    assert status(authority, WORKER, auth=(encoded(WORKER), first)) == 200
    answer = client.json("rotate-secret", WORKER, "--overlap-hours", "1")
    assert set(answer) == {"client", "old_ends_at", "secret"} and answer["secret"] != first
    for secret in (first, answer["secret"]):
        assert status(authority, WORKER, auth=(encoded(WORKER), secret)) == 200
    last = client("rotate-secret", WORKER, "--now")
    assert [status(authority, WORKER, auth=(encoded(WORKER), s)) for s in (first, last)] == [401, 200]
    shown = client("list") + client("list", "--json")
    assert "1 secret(s)" in shown
    assert not any(secret in shown for secret in (first, last))


def encoded(client_id: str) -> str:
    return client_id.replace(":", "%3A").replace("/", "%2F")


def test_what_is_broad_is_said_on_the_way(client: Operator, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["client", "add", "spiffe://fleet.example/**", "--store", client.url, "--resource", BILLING]
    assert cli.main([*command, "--scope", "read:**"]) == 0
    told = capsys.readouterr()
    assert told.out == "spiffe://fleet.example/**: added\n"
    assert told.err.splitlines() == [
        "look at this twice: spiffe://fleet.example/**: is every agent of fleet.example",
        "look at this twice: spiffe://fleet.example/**: scopes: read:** is everything that begins with read:",
        "if the server's file of clients names it, too, it gets nothing until one of them is gone",
    ]
    for name, said in ((WORKER, NOT_HERE + "\n"), ("spiffe://fleet.example/**", "")):
        assert cli.main(["client", "disable", name, "--store", client.url]) == 0
        assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("words", "told", "code"),
    [
        (("add", "billing", *ADD), "agent_id: SPIFFE ID scheme", 1),
        (("add", WORKER), "scopes: got none", 1),
        (("add", WORKER, "--scope", "read:rates"), "resources: got none", 1),
        (("add", WORKER, "--scope", "read", "--resource", BILLING), "scope: got 'read'", 1),
        (("add", WORKERS, *ADD, "--needs-secret"), "a secret for many agents", 1),
        (("add", WORKER, *ADD, "--lifetime-minutes", "31"), "less than or equal to 30", 2),
        (("disable", "spiffe://fleet.example/work*"), "SPIFFE ID pattern", 1),
        (("disable", "spiffe://Fleet.example/billing"), "trust domain", 1),
        (("disable", ""), "name of a client", 1),
        (("enable", WORKER), "none of that name", 1),
        (("remove", WORKER), "got none that was registered by command", 1),
        (("rotate-secret", WORKER), "register it with --needs-secret", 1),
        (("rotate-secret", WORKER, "--overlap-hours", "0"), "greater than or equal to 1", 2),
        (("rotate-secret", WORKER, "--overlap-hours", "3", "--now"), "--now or --overlap-hours, not both", 2),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    client: Operator, words: tuple[str, ...], told: str, code: int
) -> None:
    line = client(*words, code=code)
    assert told in line and line.startswith("a2a-trust: ") and "\n" not in line
    assert client.json("list") == []


def test_a_row_that_somebody_has_damaged_is_listed_too(client: Operator) -> None:
    client("add", WORKER, *ADD)
    with Store(client.url) as store, store._engine.begin() as connection:
        connection.exec_driver_sql("""UPDATE oauth_clients SET rights = '{"scopes": 5, "lifetime_seconds": "x"}'""")
    assert WORKER in client("list")


def test_one_that_is_enabled_is_not_removed(client: Operator) -> None:
    client("add", WORKER, *ADD)
    line = client("remove", WORKER, code=1)
    assert "got an enabled one" in line and line.endswith("; disable it first")
    (row,) = client.json("list")
    assert row["client"] == WORKER and row["lifetime_seconds"] == 600 and row["scopes"] == ["read:rates"]


@pytest.mark.parametrize("command", [("add", WORKER, *ADD), ("list",), ("disable", WORKER)])
def test_a_folder_that_is_misspelt_stays_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    assert cli.main(["client", *command, "--state", str(tmp_path / "nowhere")]) == 1
    line = capsys.readouterr().err
    assert "no authorization server in" in line and "`a2a-trust serve --authority` makes" in line
    assert cli.main(["client", *command, "--store", f"sqlite:///{tmp_path}/nowhere.db"]) == 1
    assert f"no authorization server's database: {tmp_path}/nowhere.db" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
