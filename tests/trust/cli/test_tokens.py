"""`a2a-trust token`: what is valid is shown, and what an operator revokes is revoked, with what came from it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any, Self

import pytest

from tests.authority import BILLING, LEDGER, PLANNER, Authority, ask, exchange
from trust.cli import main
from trust.cli import tokens as commands
from trust.cli.options import operator
from trust.clock import wall_clock
from trust.oauth.server.store import Issued

Run = tuple[int, str, str]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """A running server whose database is in a state folder, with the tokens of two agents."""
    monkeypatch.chdir(tmp_path)
    server = Authority(tmp_path)
    server.clock.now = wall_clock()
    for name in ("tokens.db", "tokens.db-wal", "tokens.db-shm"):  # the name that it has in such a folder
        (tmp_path / name).symlink_to(tmp_path / name.replace("tokens", "oauth"))

    async def issue() -> None:
        first = await server.token(PLANNER, ask())
        await server.token(BILLING, exchange(first))
        await server.token(BILLING, ask(client_id=BILLING, resource=LEDGER, scope="read:rates"))

    asyncio.run(issue())
    return server


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> Run:
    code = main(["token", *arguments, "--state", "."])
    return code, *capfd.readouterr()


def shown(capfd: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    code, out, err = run(capfd, "list", "--json", *arguments)
    assert (code, err) == (0, "")
    found: list[dict[str, Any]] = json.loads(out)
    return found


def test_what_is_valid_is_shown(server: Authority, capfd: pytest.CaptureFixture[str]) -> None:
    tokens = shown(capfd)
    assert sorted((t["client_id"], t["subject"]) for t in tokens) == [
        (BILLING, BILLING),
        (BILLING, PLANNER),
        (PLANNER, PLANNER),
    ]
    assert {t["id"] for t in tokens if t["client_id"] == PLANNER} == {t["parent"] for t in tokens if t["parent"]}
    assert len(shown(capfd, "--client", BILLING)) == len(shown(capfd, "--subject", PLANNER)) == 2
    code, out, err = run(capfd, "list")
    assert (code, err) == (0, "")
    assert tokens[0]["id"] in out
    assert run(capfd, "list", "--client", "nobody") == (0, "", "no token of nobody\n")


def test_one_token_is_revoked_with_what_came_from_it(server: Authority, capfd: pytest.CaptureFixture[str]) -> None:
    [parent] = [t["id"] for t in shown(capfd, "--client", PLANNER)]
    assert run(capfd, "revoke", parent) == (0, "Revoked 2 tokens.\n", "")
    assert sorted(t["revoked"] for t in shown(capfd)) == [False, True, True]
    said = run(capfd, "list")[1]
    assert all(word in said for word in ("state", "revoked", "valid"))
    assert run(capfd, "revoke", parent) == (0, "Revoked 0 tokens.\n", "")  # it is revoked: that was asked for
    first, second = (server.store.decisions.take(now=wall_clock()) for _ in range(2))
    assert first is not None and second is not None
    assert [(d.event, d.target, d.facts["revoked"], d.by) for d in (first, second)] == [
        ("token revoke", parent, 2, operator().account),
        ("token revoke", parent, 0, operator().account),
    ]


def test_all_of_a_client_or_about_a_subject(server: Authority, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd, "revoke", "--client", PLANNER, "--json") == (0, '{"revoked": 2}\n', "")
    assert run(capfd, "revoke", "--subject", BILLING) == (0, "Revoked 1 token.\n", "")
    assert run(capfd, "revoke", "--subject", BILLING) == (0, "Revoked 0 tokens.\n", "")
    told = f"a2a-trust: no token of {PLANNER} about nobody; see `token list`\n"
    assert run(capfd, "revoke", "--client", PLANNER, "--subject", "nobody") == (1, "", told)


def test_a_token_that_has_just_ended_by_this_clock_may_live_by_another(
    server: Authority, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    end = max(i.expires_at for i in server.store.tokens.living(now=wall_clock(), client_id=PLANNER, limit=9))

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls.fromtimestamp(end.timestamp() + 5, tz)

    monkeypatch.setattr(commands, "datetime", Ahead)
    assert run(capfd, "list", "--client", PLANNER)[2] == f"no token of {PLANNER}\n"
    assert run(capfd, "revoke", "--client", PLANNER) == (0, "Revoked 2 tokens.\n", "")


def test_what_goes_wrong_is_one_line(server: Authority, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What the shell was given in another encoding, and a database that lost a table."""
    told = "a2a-trust: text for the token store: expected UTF-8\n"
    assert run(capfd, "revoke", "\udcff") == run(capfd, "list", "--client", "\udcff") == (1, "", told)
    with contextlib.closing(sqlite3.connect(tmp_path / "oauth.db")) as database:
        database.execute("DROP TABLE oauth_tokens")
    told = f"a2a-trust: token store {tmp_path / 'tokens.db'}: got no such table: oauth_tokens, "
    told += "expected a database that answers; try again\n"
    assert run(capfd, "list") == run(capfd, "revoke", "--client", PLANNER) == (1, "", told)


def test_an_identifier_may_look_like_an_option(server: Authority, capfd: pytest.CaptureFixture[str]) -> None:
    now = server.clock.now
    token = Issued(
        token_id="-sJ",
        parent_id=None,
        root_id="-sJ",
        root_issued_at=now,
        client_id=PLANNER,
        subject=PLANNER,
        issued_at=now,
        expires_at=now.replace(year=now.year + 1, day=1),
    )
    server.store.tokens.add(token, now=now)
    assert run(capfd, "revoke", "-sJ") == (0, "Revoked 1 token.\n", "")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["revoke", "unknown"], 1, "expected one that this server issued"),
        (["revoke"], 2, "either the ID of one token, or --client or --subject"),
        (["revoke", "x", "--client", PLANNER], 2, "either the ID of one token, or --client or --subject"),
        (["revoke", "--cleint", PLANNER], 2, ""),
        (["list", "--store", "sqlite:////no/such/folder/x.db"], 1, "/no/such/folder/x.db"),
    ],
    ids=["unknown", "nothing", "both", "misspelt", "no store"],
)
def test_what_cannot_be_done_is_said_in_one_line(
    server: Authority, capfd: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
) -> None:
    found, out, err = run(capfd, *arguments)
    assert (found, out) == (code, "")
    assert says in " ".join(err.split())
    assert "Traceback" not in err
    assert server.store.tokens.revocations() == 0


def test_where_there_is_no_server_there_is_nothing_to_revoke(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "list", "--state", str(tmp_path)]) == 1
    assert "no authorization server in" in capfd.readouterr().err
