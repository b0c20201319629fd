"""`a2a-trust demo` as a user runs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trust import cli


def test_the_demo_as_a_user_runs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["demo", "--json", "--folder", str(tmp_path / "demo")])
    output = capsys.readouterr().out
    assert code == 0, output
    steps = [json.loads(line) for line in output.splitlines()]
    assert {step["chapter"] for step in steps} == {1, 2, 3, 4, 5, 6}
    assert all(step["ok"] for step in steps)
    refused = {step["what"]: (step["check"], step["status"]) for step in steps if step["chapter"] == 5}
    assert refused == {
        "no client certificate": ("peer.certificate", "TLS alert certificate_required"),
        "certificate of a foreign CA": ("peer.chain", "TLS alert unknown_ca"),
        "certificate of another trust domain": ("peer.trust_domain", "TLS alert unknown_ca"),
        "a peer that is not on the list": ("peer.allowed", "TLS alert handshake_failure"),
        "a token stolen and used with another certificate": ("token.binding", "HTTP 401"),
        "a token for another audience": ("token.audience", "HTTP 401"),
        "a missing scope": ("scope.insufficient", "HTTP 403"),
        "a body with one byte changed": ("signature.value", "HTTP 401"),
        "a signature for another receiver": ("signature.audience", "HTTP 401"),
        "a replay": ("replay", "HTTP 401"),
        "an answer that belongs to another request": ("signature.response", "error"),
        "an expired token": ("token.expired", "HTTP 401"),
        "a revoked certificate on an open connection": ("peer.revoked", "HTTP 401"),
        "a revoked certificate on a new connection": ("peer.revoked", "TLS alert certificate_revoked"),
    }
    trail = (tmp_path / "demo" / "audit.jsonl").read_text()
    assert all(json.loads(line)["check"] for line in trail.splitlines())
    assert not re.search(r"eyJ[\w-]*\.", trail)  # with the dot: an identifier may have those letters by chance
    assert "PRIVATE" not in trail
    groups = [step["outcome"] for step in steps if step["chapter"] == 2]
    assert groups == ["TLSv1.3, key exchange X25519MLKEM768"] * 3


def test_the_demo_refuses_a_folder_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("keep")
    assert cli.main(["demo", "--folder", str(tmp_path)]) == 1
    assert "is in use" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "keep"


def test_the_demo_without_a2a_sdk_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "trust.demo", None)
    assert cli.main(["demo"]) == 1
    error = capsys.readouterr().err
    assert "install the extra `a2a` of a2a-trust" in error
    assert error.count("\n") == 1


def test_a_demo_step_that_goes_wrong_is_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import trust.demo

    async def journey(folder: Path) -> object:
        yield trust.demo.Step(chapter=1, what="one", outcome="fine")
        yield trust.demo.Step(chapter=5, what="two", outcome="accepted", ok=False, check="x", status="HTTP 200")

    monkeypatch.setattr(trust.demo, "journey", journey)
    assert cli.main(["demo"]) == 1
    output = capsys.readouterr().out
    assert "!!  two: accepted  [x, HTTP 200]" in output
    assert "1 of the steps went wrong" in output
    monkeypatch.setattr(trust.demo, "journey", lambda folder: journey(folder))
    assert cli.main(["demo", "--json"]) == 1


def test_a_reader_that_has_enough_is_no_error() -> None:
    command = [sys.executable, "-m", "trust.cli", "demo", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        assert json.loads(process.stdout.readline())["ok"]
        process.stdout.close()
        assert process.stderr.read() == ""
