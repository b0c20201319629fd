"""`renew --daemon` and its hook, in processes of their own where signals are concerned."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from pki.client import Event, RenewingCredentials, renew_forever, renew_once
from pki.client.hook import FOLDER_VARIABLE, ID_VARIABLE, Hook
from pki.errors import EnrolmentFailed, PKIError
from tests.forge import HOUR, NOW
from tests.pki.client.fake import BILLING, FORGE, Service
from tests.pki.client.test_renewal import REENROLL, folder, listed, until
from trust.bundles import TrustBundles
from trust.credentials import Credentials
from trust.errors import ConfigurationError
from trust.identity import AgentID

ROOT = Path(__file__).parents[3]
ID = AgentID.parse(BILLING)
BUNDLE = "/bundle"
DUE = FORGE.leaf("/billing", not_before=NOW - 24 * HOUR, not_after=NOW + HOUR)  # to be renewed, and good for now


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    with made.running() as url:
        made.url = url  # type: ignore[attr-defined]
        yield made


@pytest.fixture
def home(service: Service, tmp_path: Path) -> Path:
    return folder(tmp_path / "agent", FORGE.leaf("/billing"), service.url)  # type: ignore[attr-defined]


def recorder(path: Path) -> list[str]:
    """A hook that writes its environment down, one line each time."""
    code = f"import json, os; open({str(path)!r}, 'a').write(json.dumps(dict(os.environ)) + chr(10))"
    return [sys.executable, "-c", code]


# Once.


def test_once_renews_and_runs_the_hook(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A2A_PKI_PASSWORD", "secret")
    monkeypatch.setenv("A2A_PKI_TOKEN", "secret")
    monkeypatch.setenv("A2A_TRUST_PASSWORD", "secret")
    monkeypatch.setenv("OTHER", "kept")
    before = Credentials.load(home)
    made = renew_once(home, hook=recorder(tmp_path / "hook"))
    assert Credentials.load(home).thumbprint == made.thumbprint != before.thumbprint
    assert TrustBundles.load(home / "bundle.json").by_domain["fleet.example"].sequence == 7
    environment = json.loads((tmp_path / "hook").read_text())
    assert environment[FOLDER_VARIABLE] == str(home) and environment[ID_VARIABLE] == BILLING
    assert environment["OTHER"] == "kept"
    assert "secret" not in environment.values()


def test_once_says_why_not(service: Service, home: Path, tmp_path: Path) -> None:
    service.instead = {REENROLL: JSONResponse({"check": "pki.renewal.expired"}, 403)}
    before = Credentials.load(home)
    with pytest.raises(EnrolmentFailed, match=r"this certificate has expired.*enrol again with a new token"):
        renew_once(home, hook=recorder(tmp_path / "hook"))
    assert Credentials.load(home).thumbprint == before.thumbprint
    assert not (tmp_path / "hook").exists()


def test_once_with_a_hook_that_fails_tells_and_has_renewed(home: Path) -> None:
    before = Credentials.load(home)
    with pytest.raises(PKIError, match="exit code 3"):
        renew_once(home, hook=f"{sys.executable} -c 'raise SystemExit(3)'")
    assert Credentials.load(home).thumbprint != before.thumbprint


# Hooks.


@pytest.mark.parametrize("command", ["", [], "'unclosed", "/nowhere/reload", "no-such-program", "/", __file__])
def test_a_hook_that_is_no_command(command: Any) -> None:
    with pytest.raises(ConfigurationError, match="hook: got"):
        Hook(command)


def test_a_hook_that_is_not_there_is_told_before_anything_is_renewed(service: Service, home: Path) -> None:
    for start in (renew_once, renew_forever):
        with pytest.raises(ConfigurationError, match="got /nowhere/reload, expected a program that is there"):
            start(home, hook="/nowhere/reload")
    assert service.paths == []


def test_a_line_is_split_and_nothing_in_it_is_expanded(tmp_path: Path) -> None:
    code = 'import sys; open(sys.argv[1], "w").write(sys.argv[2])'
    line = f"{sys.executable} -c '{code}' {tmp_path / 'out'} '$HOME; ls *'"
    assert Hook(line).run(tmp_path, ID) is None
    assert (tmp_path / "out").read_text() == "$HOME; ls *"


def test_a_hook_that_has_gone_since(tmp_path: Path) -> None:
    program = tmp_path / "reload"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    hook = Hook(str(program))
    assert hook.run(tmp_path, ID) is None
    program.unlink()
    assert hook.run(tmp_path, ID) == f"{program}: No such file or directory"


def test_a_hook_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    child = f"import time; time.sleep(5); open({str(tmp_path / 'late')!r}, 'w')"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert Hook([sys.executable, "-c", code], seconds=1).run(tmp_path, ID) == f"{sys.executable}: ended after 1 s"
    time.sleep(5)
    assert not (tmp_path / "late").exists()


def test_nothing_is_run_after_the_end(tmp_path: Path) -> None:
    hook = Hook([sys.executable, "-c", "import time; time.sleep(30)"])
    hook.end()
    assert hook.run(tmp_path, ID) is not None
    hook.end()


# Forever.


class Daemon:
    def __init__(self, home: Path, hook: list[str] | None = None, command: list[str] | None = None) -> None:
        code = f"from pki.client import renew_forever; renew_forever({str(home)!r}, hook={hook!r})"
        self.process = subprocess.Popen(
            command or [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ}
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    def said(self, text: str) -> bool:
        return any(text in line for line in self.lines)

    def __enter__(self) -> Daemon:
        until(lambda: self.lines, 20)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(5)
        assert self.process.stderr
        self.process.stderr.close()


def test_it_renews_runs_the_hook_says_so_and_stops_at_once(service: Service, home: Path, tmp_path: Path) -> None:
    listed(service)  # else it warns of that, too, and a program without a log has the warning on stderr
    DUE.save(home)
    with Daemon(home, recorder(tmp_path / "hook")) as daemon:
        until(lambda: daemon.said("renewed until"), 20)
        until(lambda: (tmp_path / "hook").exists())
        until(lambda: daemon.said("a new trust bundle"))
        assert str(Credentials.load(home).agent_id) == BILLING
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(20) == 0  # it would sleep for an hour
        until(lambda: daemon.said("no longer renewed"))
    assert all(line[:4].isdigit() and line[10] == "T" for line in daemon.lines), daemon.lines


def test_the_end_ends_a_hook_that_runs(service: Service, home: Path, tmp_path: Path) -> None:
    code = f"import time; open({str(tmp_path / 'began')!r}, 'w').close(); time.sleep(30)"
    with Daemon(home, [sys.executable, "-c", code]) as daemon:
        Credentials.load(home)
        FORGE.leaf("/billing").save(home)  # somebody enrols
        until(lambda: (tmp_path / "began").exists(), 20)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(20) == 0


def test_a_second_daemon_is_told(home: Path) -> None:
    with Daemon(home), pytest.raises(ConfigurationError, match="another daemon"):
        renew_forever(home)


def test_failures_are_told_and_the_hook_is_not_run(service: Service, home: Path, tmp_path: Path) -> None:
    service.instead = {REENROLL: JSONResponse({"check": "pki.policy.banned"}, 403)}
    service.trusted = FORGE.bundle
    DUE.save(home)
    with Daemon(home, recorder(tmp_path / "hook")) as daemon:
        until(lambda: daemon.said("the CA has banned this agent"), 20)
        assert daemon.process.poll() is None
    assert not (tmp_path / "hook").exists()


def test_one_line_for_each_change_of_state(service: Service, home: Path) -> None:
    """Refused again and again, in the same way: each answer has its own time and request number, and is no news."""
    numbers = itertools.count()
    service.instead[REENROLL] = lambda: JSONResponse(
        {"check": "pki.renewal.revoked", "error": "access_denied", "request": f"number-{next(numbers)}"}, 403
    )
    now = datetime.now(UTC).replace(microsecond=0)
    # Late whatever the dice say, and still valid for a daemon that is slow to start.
    FORGE.leaf("/billing", not_before=now - timedelta(seconds=150), not_after=now + timedelta(seconds=25)).save(home)
    command = [sys.executable, "-m", "pki.cli", "renew", str(home), "--daemon"]
    with Daemon(home, command=command) as daemon:
        until(lambda: daemon.said("billing: expired, ended"), 60)
        assert service.paths.count(REENROLL) >= 3
        service.instead = {}
        FORGE.leaf("/billing").save(home)  # somebody enrols again
        until(lambda: daemon.said("took over"))
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(20) == 0
    states = [line.partition(" ")[2].removeprefix(f"{BILLING}: ") for line in daemon.lines]
    told = [line.partition(",")[0] for line in states]
    assert [word for word in told if word in ("late", "refused", "expired")] == ["late", "refused", "expired"]
    (refused,) = (line for line in states if line.startswith("refused"))
    assert ": the CA has revoked this certificate: got status 403" in refused
    assert refused.endswith("ask whoever runs the CA; then enrol again") and "clock" not in refused
    assert all(line[:4].isdigit() and line[10] == "T" for line in daemon.lines), daemon.lines


def test_trust_that_is_not_fresh_is_told_once_and_its_end_too(service: Service, home: Path) -> None:
    listed(service)
    service.instead[BUNDLE] = PlainTextResponse("", 503)
    events: list[Event] = []
    agent = RenewingCredentials(home, on_event=events.append)
    for _ in range(3):
        agent.poll()
    del service.instead[BUNDLE]
    agent.poll()
    agent.poll()
    agent.close()
    kinds = [event.kind for event in events if event.kind != "trust"]
    assert kinds == ["stale", "fresh"]
    assert "trust is not fresh: CA service" in events[0].says


def test_in_another_thread_and_with_a_hook_that_fails(service: Service, home: Path) -> None:
    lines: list[str] = []
    over = threading.Event()

    def log(line: str) -> None:
        lines.append(line)
        if over.is_set():
            raise InterruptedError  # nobody else can end it: in a program it ends with the process

    def renew() -> None:
        with contextlib.suppress(InterruptedError):
            renew_forever(home, hook="false", log=log)

    service.urgent = True
    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    until(lambda: any("hook failed: false: exit code 1" in line for line in lines))
    until(lambda: any("renewed until" in line for line in lines))
    assert thread.is_alive()
    over.set()
    FORGE.leaf("/billing").save(home)  # somebody enrols, which is worth a line
    thread.join(20)
    assert not thread.is_alive()
