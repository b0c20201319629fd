"""`a2a-trust approval`: what a person sees is what was asked for, and what they say is what counts."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.authority import BILLING, LEDGER, PLANNER, STRANGER, Authority, ask
from trust.cli import main
from trust.cli.options import operator
from trust.clock import wall_clock
from trust.oauth.server.approvals import ApprovalRules
from trust.oauth.server.store.approvals import Asked


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """A running server whose database is in a state folder, and the request of one agent."""
    monkeypatch.chdir(tmp_path)
    server = Authority(tmp_path, approvals=ApprovalRules(scopes=("read:ledger.**",)))
    server.clock.now = wall_clock()
    for name in ("tokens.db", "tokens.db-wal", "tokens.db-shm"):  # the name that it has in such a folder
        (tmp_path / name).symlink_to(tmp_path / name.replace("tokens", "oauth"))
    assert asked(server) == (400, "authorization_pending")
    return server


LONG = "read:ledger.eu" + "-and-nothing-else" * 20 + "-but"  # as long as a client likes it


def asked(server: Authority, scope: str = "read:ledger.eu", message: str = "[b]the books[/b]") -> tuple[int, str]:
    form = ask(scope=f"agent:execute {scope} delegate:billing temporal:20min", binding_message=message)
    answer = asyncio.run(server.post(PLANNER, form))
    return answer.status_code, answer.json().get("error", "")


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["approval", *arguments])
    return code, *capfd.readouterr()


def waiting(capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    code, out, err = run(capfd, "list", "--state", ".", "--json")
    assert (code, err) == (0, "")
    found: dict[str, Any]
    (found,) = json.loads(out)
    return found


def test_a_person_sees_all_of_it_and_says_yes(server: Authority, capfd: pytest.CaptureFixture[str]) -> None:
    shown = waiting(capfd)
    assert (shown["agent_id"], shown["resource"], shown["state"]) == (PLANNER, BILLING, "pending")
    code, out, err = run(capfd, "list", "--state", ".")
    assert (code, err) == (0, "")
    for part in (shown["id"], PLANNER, "read:ledger.eu", "[b]the books[/b]"):  # and nothing of it is markup
        assert part in "".join(out.split()) or part in out
    code, out, err = run(capfd, "approve", shown["id"].lower(), "--by", "alice", "--state", ".")
    assert (code, err) == (0, "")
    assert out.startswith(f"Approved by alice: {PLANNER} may call {BILLING} with ")
    assert run(capfd, "list", "--state", ".") == (0, "Nothing waits.\n", "")
    decided = server.store.decisions.take(now=wall_clock())
    assert decided is not None
    assert (decided.event, decided.by, decided.account) == ("approval approve", "alice", operator().account)
    assert (decided.target, decided.facts["approval"]) == (BILLING, shown["id"])
    assert asked(server) == (200, "")
    assert server.trail.last["approved_by"] == "alice"


def test_nothing_that_a_person_decides_by_is_cut_off(server: Authority, capfd: pytest.CaptureFixture[str]) -> None:
    waiting_before = waiting(capfd)["id"]
    run(capfd, "deny", waiting_before, "--state", ".", "--by", "alice")
    assert asked(server, scope=LONG, message="  until 2099 " * 15) == (400, "authorization_pending")
    shown = waiting(capfd)
    code, out, err = run(capfd, "list", "--state", ".")
    cells = [line.split("\u2502")[1:3] for line in out.splitlines() if line.startswith("\u2502")]
    assert (code, err, "\u2026" in out) == (0, "", False)
    named = {name.strip() for name, _ in cells} - {""}
    assert named == {"agent", "on behalf of", "wants to call", "with the scope", "until", "and says"}
    values = "".join(value.strip() for _, value in cells)
    for whole in (shown["agent_id"], shown["resource"], LONG, *shown["scope"].split()):
        assert whole in values
    assert [name.strip() for name, _ in cells if name.strip()][-1] == "and says"  # what it says pushes nothing away


def test_a_person_sees_through_whom_it_came(server: Authority, capfd: pytest.CaptureFixture[str]) -> None:
    run(capfd, "deny", waiting(capfd)["id"], "--state", ".", "--by", "alice")
    asked = Asked(
        request="0" * 64,
        client_id=BILLING,
        agent_id=BILLING,
        subject=PLANNER,
        actors=(LEDGER, STRANGER),
        resource=LEDGER,
        scope="read:ledger.eu",
        message="",
    )
    server.store.approvals.ask(asked, now=wall_clock(), lifetime=timedelta(minutes=15))
    out = run(capfd, "list", "--state", ".")[1]
    names = [line.split("\u2502")[1:3] for line in out.splitlines() if line.startswith("\u2502")]
    assert [value.strip() for name, value in names if name.strip() == "through"] == [LEDGER, STRANGER]
    assert waiting(capfd)["actors"] == [LEDGER, STRANGER]


def test_what_somebody_wrote_into_the_database_is_one_line(
    server: Authority, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = waiting(capfd)
    with server.store._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE oauth_approvals SET resource = 'x\x1b[2J\nDenied by alice'")
    code, out, _ = run(capfd, "approve", shown["id"], "--state", ".", "--by", "alice")
    assert (code, out.count("\n")) == (0, 1)
    assert "may call x\\x1b[2J\\x0aDenied by alice with" in out


def test_whoever_has_no_name_says_who_decides(
    server: Authority, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's user is often a bare number."""

    def no_name() -> str:
        raise KeyError("getpwuid(): uid not found: 54321")

    monkeypatch.setattr("getpass.getuser", no_name)
    code, out, err = run(capfd, "approve", waiting(capfd)["id"], "--state", ".")
    assert (code, out) == (1, "")
    assert err == "a2a-trust: user at work: got no name; say who decides with --by\n"
    assert waiting(capfd)["state"] == "pending"


def test_a_person_says_no(server: Authority, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capfd, "deny", waiting(capfd)["id"], "--by", "alice", "--state", ".", "--json")
    assert (code, json.loads(out)["state"]) == (0, "denied")
    assert asked(server) == (400, "access_denied")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("approve", "ABCD-EFGH", "--state", "."), "no request ABCD-EFGH waits for a decision"),
        (("deny", "../../etc", "--state", "."), "no request ../../ETC waits"),
        (("approve", "\udcff", "--state", "."), "ID: got \\xdcff, expected as `approval list` shows it"),
        (("approve", "ABCD-EFGH", "--state", "nowhere"), "no authorization server in nowhere"),
        (("approve", "ABCD-EFGH", "--state", ".", "--by", "two\nlines"), "--by: expected at most 256 printable"),
        (("list", "--store", "nonsense"), "URL of the database: got another one"),
    ],
)
def test_one_line_says_what_is_wrong(
    server: Authority, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], expected: str
) -> None:
    code, out, err = run(capfd, *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"a2a-trust: {expected}")
    assert waiting(capfd)["state"] == "pending"
