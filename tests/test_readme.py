"""The README is true: its block prints what it says, its links lead somewhere, its table names each check."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import pki.cli.commands
import pki.rules
import trust.cli.commands

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_first_block_prints_what_stands_below_it(tmp_path: Path) -> None:
    match = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", README, re.S)
    assert match
    code, promised = match.groups()
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stdout == promised, done.stderr


def test_the_two_commands_are_the_first_ones() -> None:
    blocks = re.findall(r"```\n(python3 -m venv.*?)\n```", README)
    assert blocks == [
        "python3 -m venv .venv && .venv/bin/pip install -q '.[a2a]' && .venv/bin/a2a-trust demo",
        "python3 -m venv .venv && .venv/bin/pip install -q '.[test]' && .venv/bin/pytest",
    ]


def test_every_check_of_the_gate_has_a_row_that_links_its_file() -> None:
    gate = (ROOT / "trust" / "gate.py").read_text()
    checks = re.findall(r"^    \((\d)\) (\w+) +.*$", gate, re.M)
    rows = re.findall(r"^\| (\d) \| \*\*(\w+)\*\*: .*\[`(trust/[\w/]+\.py)`\]\(\3\)", README, re.M)
    assert [(number, name) for number, name, _ in rows] == checks
    assert len(checks) == 7


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_name_exists() -> None:
    for dotted in sorted(set(re.findall(r"\b((?:trust|pki)\.[A-Za-z_][\w.]*\w)", README))):
        if dotted.endswith((".py", ".example")):
            continue
        package, *names = dotted.split(".")
        value = importlib.import_module(package)
        for name in names:
            if not hasattr(value, name):
                importlib.import_module(f"{value.__name__}.{name}")
            value = getattr(value, name)


@pytest.mark.parametrize(("program", "app"), [("a2a-pki", pki.cli.commands.app), ("a2a-trust", trust.cli.commands.app)])
def test_every_command_exists(program: str, app: typer.Typer) -> None:
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    written = set(re.findall(rf"\b{program} ([a-z]+)", README))
    assert written and written <= known, written - known


def test_the_policy_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(\[\[allow\]\].*?)```", README, re.S)
    rules = pki.rules.Rules.parse(text, "fleet.example")
    assert (len(rules.allow), len(rules.deny)) == (1, 1)
