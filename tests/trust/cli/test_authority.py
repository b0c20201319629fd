"""`a2a-trust authority keys | rotate`, and the served authorization server that goes on with what they begin."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from tests.authority import BILLING, PLANNER, Trail
from tests.forge import Forge
from tests.ports import free_port, wait_until_listens
from trust import cli
from trust.agent import agent_client
from trust.authorize import exactly
from trust.credentials import Credentials
from trust.oauth.server.signing_keys import PUBLISHED_BEFORE
from trust.oauth.server.state import KEYS_PASSWORD_VARIABLE, authorization_server

AUTHORITY = "spiffe://fleet.example/authority"
POSTGRESQL = os.environ.get("A2A_TRUST_POSTGRESQL")
SECONDS = 60
FORGE = Forge()
CLIENTS = f"""
[[client]]
agent_id = "{PLANNER}"
scopes = ["agent:execute"]
resources = ["{BILLING}"]
"""


@pytest.fixture(autouse=True)
def no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A2A_TRUST_AUTHORITY_PASSWORD", raising=False)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The folder of a server that was started once."""
    (tmp_path / "clients.toml").write_text(CLIENTS)
    folder = tmp_path / "state"
    with authorization_server(
        clients=tmp_path / "clients.toml",
        issuer="https://localhost",
        folder=folder,
        url=None,
        password=None,
        audit=Trail(),
    ):
        pass
    return folder


def said(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    assert cli.main([str(a) for a in arguments]) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    return json.loads(said(capsys, *arguments, "--json"))


def test_an_operator_sees_the_keys_and_begins_a_rotation(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ("--state", state)
    (first,) = told(capsys, "authority", "keys", *at)["keys"]
    assert (first["alg"], first["state"]) == ("ES256", "active")
    (step,) = told(capsys, "authority", "rotate", "--algorithm", "ES384", *at)
    assert step["action"] == "activate"
    when = datetime.fromisoformat(step["at"])
    assert timedelta(0) <= datetime.now(UTC) + PUBLISHED_BEFORE - when < timedelta(minutes=5)
    shown = told(capsys, "authority", "keys", *at)
    assert [(k["alg"], k["state"]) for k in shown["keys"]] == [("ES256", "active"), ("ES384", "next")]
    assert shown["plan"] == [step]
    text = said(capsys, "authority", "keys", *at)
    assert first["kid"] in text
    assert "and the active one is retired" in text
    assert told(capsys, "authority", "rotate", *at) == [step]


def test_all_keys_are_given_up_when_they_are_compromised(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ("--state", state)
    (first,) = told(capsys, "authority", "keys", *at)["keys"]
    told(capsys, "authority", "rotate", *at)
    new = told(capsys, "authority", "rotate", "--compromised", "--algorithm", "Ed25519", *at)
    assert (new["alg"], new["state"]) == ("Ed25519", "active")
    assert told(capsys, "authority", "keys", *at)["keys"] == [new]
    assert new["kid"] != first["kid"]
    assert "All keys are given up" in said(capsys, "authority", "rotate", "--compromised", *at)


def test_what_is_refused_is_one_line(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = told(capsys, "authority", "keys", "--state", state)
    monkeypatch.setenv("A2A_TRUST_AUTHORITY_PASSWORD", "wrong")
    refused = [
        (("authority", "rotate", "--state", state), 1, f"the password is that of {KEYS_PASSWORD_VARIABLE}"),
        (("authority", "rotate", "--compromised", "--state", state), 1, "cannot be opened"),
        (("authority", "keys", "--state", state / "nowhere"), 1, "no authorization server in"),
        (("authority", "rotate", "--algorithm", "HS256", "--state", state), 2, "HS256"),
    ]
    for arguments, code, words in refused:
        error = said(capsys, *arguments, code=code)
        assert words in error
        assert error.count("\n") == 1
    monkeypatch.delenv("A2A_TRUST_AUTHORITY_PASSWORD")
    (state / "signing-key.password").unlink()
    assert "set A2A_TRUST_AUTHORITY_PASSWORD" in said(capsys, "authority", "rotate", "--state", state, code=1)
    assert told(capsys, "authority", "keys", "--state", state) == before


@contextlib.contextmanager
def database() -> Iterator[str]:
    """The URL of a new database."""
    assert POSTGRESQL is not None
    server = sa.make_url(POSTGRESQL)
    name = f"served_{uuid4().hex[:12]}"
    admin = sa.create_engine(server.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
        admin.dispose()


@pytest.mark.skipif(not POSTGRESQL, reason="no PostgreSQL")  # with SQLite: tests/pki/cli/test_journey.py
def test_a_served_authority_takes_over_what_the_command_began_and_ends_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clients.toml").write_text(CLIENTS)
    FORGE.leaf(AUTHORITY).save(tmp_path / "authority")
    (tmp_path / "authority" / "bundle.json").write_text(FORGE.bundles.to_json())
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "signing-key.password").write_text("secret\n")
    port = free_port()
    issuer = f"https://127.0.0.1:{port}"
    with database() as store, (tmp_path / "trail").open("w+") as trail:
        where = ("--state", str(tmp_path / "state"), "--store", store)
        command = ["serve", "--authority", str(tmp_path / "clients.toml"), "--issuer", issuer, "--port", str(port)]
        command += ["--credentials", str(tmp_path / "authority"), "--allow", "fleet.example", *where]
        process = subprocess.Popen([sys.executable, "-m", "trust.cli", *command], stdout=trail, stderr=trail)
        try:
            wait_until_listens(port, process.poll, SECONDS)
            asyncio.run(_rotated(issuer, FORGE.leaf(PLANNER), where, capsys))
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(SECONDS)
        trail.seek(0)
        written = trail.read()
    assert code == 0, written
    assert "Traceback" not in written
    records = [json.loads(line) for line in written.splitlines() if line.startswith("{")]
    assert [(r["event"], r.get("state")) for r in records if r["event"] in ("token", "signing key")] == [
        ("signing key", "active"),
        ("token", None),
        ("signing key", "next"),
    ]


async def _rotated(
    issuer: str, planner: Credentials, where: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    form = {"grant_type": "client_credentials", "client_id": PLANNER, "resource": BILLING, "scope": "agent:execute"}
    async with agent_client(source=planner, bundles=FORGE.bundles, authorize=exactly(AUTHORITY)) as http:
        assert (await http.post(f"{issuer}/token", data=form)).status_code == 200
        ready = (await http.get(f"{issuer}/ready")).json()
        assert ready["ready"] and set(ready["checks"]) == {"store", "signing_keys", "decisions"}
        (before,) = (await http.get(f"{issuer}/jwks")).json()["keys"]
        (step,) = await asyncio.to_thread(told, capsys, "authority", "rotate", *where)
        until = time.monotonic() + SECONDS
        while len(keys := (await http.get(f"{issuer}/jwks")).json()["keys"]) < 2:
            assert time.monotonic() < until, "the next key is not published"
            await asyncio.sleep(0.1)
        assert [key["kid"] for key in keys] == [before["kid"], step["kid"]]
