"""Every command runs in an empty folder, with nobody at the keyboard."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from pki import cli
from tests.pki.cli.parts import Answer, Run
from tests.pki.conftest import PASSWORD


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("A2A_PKI_PASSWORD", raising=False)
    monkeypatch.delenv("A2A_PKI_TOKEN", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO())

    def run(*arguments: object) -> Answer:
        code = cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return run


@pytest.fixture
def password(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setenv("A2A_PKI_PASSWORD", PASSWORD)
