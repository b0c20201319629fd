"""`a2a-trust approval`: what a person sees is what was asked for, and what they say is what counts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.authority import BILLING, PLANNER, Authority, ask
from trust.cli import main
from trust.clock import wall_clock
from trust.oauth.server.approvals import ApprovalRules


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


def asked(server: Authority) -> tuple[int, str]:
    form = ask(scope="agent:execute read:ledger.eu delegate:billing temporal:20min", binding_message="[b]the books[/b]")
    answer = asyncio.run(server.post(PLANNER, form))
    return answer.status_code, answer.json().get("error", "")


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["approval", *arguments])
    return code, *capfd.readouterr()


def waiting(capfd: pytest.CaptureFixture[str]) -> dict[str, str]:
    code, out, err = run(capfd, "list", "--state", ".", "--json")
    assert (code, err) == (0, "")
    found: dict[str, str] = json.loads(out)
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
    assert asked(server) == (200, "")
    assert server.trail.last["approved_by"] == "alice"


def test_a_person_says_no(server: Authority, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capfd, "deny", waiting(capfd)["id"], "--by", "alice", "--state", ".", "--json")
    assert (code, json.loads(out)["state"]) == (0, "denied")
    assert asked(server) == (400, "access_denied")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("approve", "ABCD-EFGH", "--state", "."), "no request ABCD-EFGH waits for a decision"),
        (("deny", "../../etc", "--state", "."), "no request ../../ETC waits"),
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
