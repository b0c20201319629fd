"""What people decide by command is in the audit trail of a server: each decision once, and none is lost."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.authority import BILLING, ISSUER, PLANNER, Clock, Trail
from tests.forge import NOW
from trust import cli, private_keys
from trust.audit import AuditSink
from trust.cli import options
from trust.oauth.server import decisions
from trust.oauth.server.decisions import ToldDecisions
from trust.oauth.server.state import authorization_server
from trust.oauth.server.store import Operator, Store

SECONDS = 20
CLIENTS = f"""
[[client]]
agent_id = "{PLANNER}"
scopes = ["agent:execute"]
resources = ["{BILLING}"]
"""


class Heard(Trail):
    """A trail that one can wait for, and that can be made to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = False
        self._changed = threading.Condition()

    def record(self, **facts: Any) -> None:
        with self._changed:
            self._changed.notify_all()
            if self.fails:
                raise OSError("disk full")
            super().record(**facts)

    def of_people(self) -> list[dict[str, Any]]:
        return [record for record in self.records if "account" in record]

    def wait(self, count: int) -> list[dict[str, Any]]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.of_people()) >= count, SECONDS)
            return self.of_people()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_keys, "SCRYPT_N", 2)
    monkeypatch.setattr(decisions, "ROUND_SECONDS", 0.02)


@pytest.fixture
def serve(tmp_path: Path) -> Callable[[AuditSink], contextlib.AbstractContextManager[object]]:
    """A server in the folder `state`, as often as one likes."""
    file = tmp_path / "clients.toml"
    file.write_text(CLIENTS)

    def start(audit: AuditSink) -> contextlib.AbstractContextManager[object]:
        return authorization_server(
            clients=file, issuer=ISSUER, folder=tmp_path / "state", url=None, password=None, audit=audit
        )

    return start


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(
        Store(f"sqlite:///{tmp_path / 'oauth.db'}", by=Operator(account="alice@desk", clock=Clock()))
    ) as store:
        yield store


def test_a_command_in_another_process_is_in_the_trail_of_the_running_server(
    tmp_path: Path, serve: Callable[[AuditSink], contextlib.AbstractContextManager[object]]
) -> None:
    trail = Heard()
    with serve(trail):
        command = [sys.executable, "-m", "trust.cli", "client", "disable", PLANNER, "--state", str(tmp_path / "state")]
        pretending = {**os.environ, "USER": "mallory", "LOGNAME": "mallory", "LNAME": "mallory", "USERNAME": "mallory"}
        subprocess.run(command, check=True, timeout=120, capture_output=True, env=pretending)
        (record,) = trail.wait(1)
    assert {k: record[k] for k in ("event", "decision", "check", "target", "revoked")} == {
        **{"event": "client disable", "decision": "allow", "check": "all"},
        **{"target": PLANNER, "revoked": 0},
    }
    account = options.operator().account
    assert (record["by"], record["account"]) == (account, account)
    assert "mallory" not in account
    assert record["at"].endswith("+00:00")


def test_what_was_decided_while_no_server_ran_is_told_by_the_next_one(
    tmp_path: Path,
    serve: Callable[[AuditSink], contextlib.AbstractContextManager[object]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with serve(Trail()):
        pass
    for words in (
        ["client", "add", BILLING, "--scope", "read:rates", "--resource", PLANNER, "--needs-secret"],
        ["client", "rotate-secret", BILLING],
        ["client", "disable", BILLING],
        ["client", "enable", BILLING],
        ["client", "disable", BILLING],
        ["client", "remove", BILLING],
        ["authority", "rotate"],
        ["authority", "rotate"],  # which is under way, so nothing is decided
        ["authority", "rotate", "--compromised"],
    ):
        assert cli.main([*words, "--state", str(tmp_path / "state"), "--json"]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"secret"' in line]
    trail = Heard()
    with serve(trail):
        found = trail.wait(8)
    assert [record["event"] for record in found] == [
        *("client add", "client rotate-secret", "client disable", "client enable", "client disable", "client remove"),
        *("authority rotate", "authority rotate"),
    ]
    assert found[0]["scope"] == "read:rates"
    for secret in [answer["secret"] for answer in printed]:
        assert secret not in str(found)
    again = Trail()
    with serve(again):
        pass
    assert [record for record in again.records if "account" in record] == []


def test_what_the_trail_does_not_take_waits(table: Store) -> None:
    trail = Heard()
    trail.fails = True
    with ToldDecisions(table.decisions, trail, clock=Clock()) as told:
        table.clients.disable(PLANNER, now=NOW)
        table.clients.disable(BILLING, now=NOW)
        until = threading.Event()
        for _ in range(SECONDS * 50):
            if told.problem is not None:
                break
            until.wait(0.02)
        assert told.problem == "OSError"
        assert trail.records == []
        trail.fails = False
        assert [record["target"] for record in trail.wait(2)] == [PLANNER, BILLING]
        for _ in range(SECONDS * 50):
            if told.problem is None:
                break
            until.wait(0.02)
        assert told.problem is None
    assert len(trail.records) == 2


def test_of_two_servers_one_tells_each(tmp_path: Path, table: Store) -> None:
    with contextlib.closing(Store(f"sqlite:///{tmp_path / 'oauth.db'}")) as other:
        trail = Heard()
        with (
            ToldDecisions(table.decisions, trail, clock=Clock()),
            ToldDecisions(other.decisions, trail, clock=Clock()),
        ):
            for n in range(10):
                table.clients.disable(f"agent-{n}", now=NOW)
            trail.wait(10)
        assert sorted(record["number"] for record in trail.records) == list(range(1, 11))
        assert table.decisions.take(now=NOW) is None


@pytest.mark.skipif(sys.platform == "win32", reason="accounts have no numbers there")
def test_an_account_without_a_name_is_told_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_name(number: int) -> object:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr("pwd.getpwuid", no_name)
    assert options.operator().account.startswith(f"uid {os.getuid()}@")


DAMAGES: dict[str, tuple[str, str | int]] = {
    "no JSON": ("facts", "{"),
    "no object": ("facts", "[]"),
    "another event": ("facts", '{"event": "x"}'),
    "another time": ("facts", '{"time": "x"}'),
    "an object in it": ("facts", '{"a": {}}'),
    "a truth in it": ("facts", '{"a": true}'),
    "deep": ("facts", "[" * 9999),
    "a time beyond the calendar": ("decided_at", 10**18),
}


@pytest.mark.parametrize(("column", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_decision_keeps_no_other_from_the_trail(tmp_path: Path, column: str, damage: str | int) -> None:
    database, trail = f"sqlite:///{tmp_path}/t.db", Heard()
    with contextlib.closing(Store(database, by=Operator(account="alice@desk", clock=Clock()))) as desk:
        desk.clients.disable("spiffe://fleet.example/one", now=NOW)
        with desk._engine.begin() as connection:
            connection.execute(sa.text(f"UPDATE oauth_decisions SET {column} = :damage"), {"damage": damage})
        desk.clients.disable("spiffe://fleet.example/two", now=NOW)
        with ToldDecisions(desk.decisions, trail, clock=Clock()):
            one, two = trail.wait(2)
    assert (one["target"], two["target"]) == ("spiffe://fleet.example/one", "spiffe://fleet.example/two")
    assert (one["event"], one["account"]) == ("client disable", "alice@desk")
    assert "damaged" not in two
    assert column == "decided_at" or one["damaged"] == damage
