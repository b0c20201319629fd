"""What both programs do when somebody ends them: one line, an exit code, and nothing left behind."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from trust import command_line

ROOT = Path(__file__).parents[2]
PROGRAMS = {"a2a-trust": "trust.cli", "a2a-pki": "pki.cli"}


def python(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_there_before_its_imports(name: str) -> None:
    done = python(f"""
        import sys
        from {PROGRAMS[name]} import main
        heavy = {{"cryptography", "httpx", "jwcrypto", "OpenSSL", "rich", "sqlalchemy", "typer", "uvicorn"}}
        print(sorted(heavy & set(sys.modules)))
    """)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(("number", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
@pytest.mark.parametrize("name", PROGRAMS)
def test_whoever_ends_it_while_it_imports_gets_one_line(name: str, number: str, code: int, word: str) -> None:
    """The signal comes when the commands have begun to be imported, at a place that each run meets."""
    done = python(f"""
        import os, signal, sys
        from {PROGRAMS[name]} import main

        signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it

        class Signals:
            def find_spec(self, name, *_):
                if name == "cryptography":
                    os.kill(os.getpid(), signal.{number})

        sys.meta_path.insert(0, Signals())
        sys.exit(main(["--help"]))
    """)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"{name}: {word}\n")


def commands(monkeypatch: pytest.MonkeyPatch, work: Any) -> str:
    module = ModuleType("commands_of_a_test")
    app = typer.Typer()
    app.command()(work)
    module.app = app  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.__name__


def test_a_command_that_is_terminated_puts_away_what_it_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        (tmp_path / "copy").write_text("secret")
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)  # whoever is impatient does not interrupt this
            (tmp_path / "copy").unlink()

    assert command_line.run(commands(monkeypatch, work), "program", []) == 143
    assert capsys.readouterr().err == "program: terminated\n"
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("swallowed", [False, True], ids=["cancelled", "made something else of it"])
def test_a_loop_that_is_terminated_ends_by_cancelling(
    swallowed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is raised where the loop happens to be: tasks see what they see at ctrl-C, and nobody a traceback."""
    before, put_away = signal.getsignal(signal.SIGTERM), []

    async def main() -> None:
        try:
            for _ in range(2):  # whoever is impatient does not interrupt what is put away
                signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            if swallowed:
                raise ValueError("a library") from None
            raise
        finally:
            await asyncio.sleep(0)
            put_away.append(True)

    assert command_line.run(commands(monkeypatch, lambda: command_line.run_loop(main())), "program", []) == 143
    assert (capsys.readouterr().err, put_away) == ("program: terminated\n", [True])
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_loop_that_fails_by_itself_is_not_taken_for_a_signal() -> None:
    async def main() -> None:
        raise ValueError("by itself")

    with pytest.raises(ValueError, match="by itself"):
        command_line.run_loop(main())


def test_a_loop_elsewhere_than_in_the_main_thread() -> None:
    async def main() -> str:
        return "done"

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: command_line.run_loop(main())).result() == "done"


def test_what_ends_by_itself_is_not_taken_for_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        raise SystemExit("by itself")

    with pytest.raises(SystemExit, match="by itself"):
        command_line.run(commands(monkeypatch, work), "program", [])
