"""The examples, run as their READMEs say: the commands are read from the README, so that it stays true."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ports import free_port

FOLDER = Path(__file__).parent.parent / "examples" / "two_agents"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the example whose two ports are free ones: nothing else of it is changed."""
    ports = {"8400": str(free_port()), "8443": str(free_port())}
    copy = tmp_path / "two_agents"
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("__pycache__", "fleet"))
    for file in copy.iterdir():
        # In one go: a new port may have the digits of the other old one in it.
        file.write_text(re.sub("|".join(ports), lambda found: ports[found[0]], file.read_text()))
    return copy


@pytest.fixture
def background() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.terminate()
        process.communicate(timeout=20)


def _start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    here = Path(sys.executable).parent
    program = {"python": [sys.executable]}.get(command[0], [sys.executable, str(here / command[0])])
    return subprocess.Popen(
        [*program, *command[1:]], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _finish(command: list[str], folder: Path) -> str:
    process = _start(command, folder)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


def _listening(port: int, process: subprocess.Popen[str]) -> None:
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            raise AssertionError(process.communicate()[1])
        time.sleep(0.1)
    raise AssertionError(f"nothing listens on {port}")


def test_two_agents_in_five_commands(folder: Path, background: list[subprocess.Popen[str]]) -> None:
    readme = (folder / "README.md").read_text()
    lines = re.search(r"```\n(.*?)```", readme, re.S)
    assert lines
    init, issue, authority, server, client = [shlex.split(line) for line in lines[1].strip().splitlines()]
    _finish(init, folder)
    _finish(issue, folder)
    ports = [int(p) for p in re.findall(r"localhost:(\d+)", (folder / "client.py").read_text())]
    for command, port in zip((authority, server), ports, strict=True):
        background.append(_start(command, folder))
        _listening(port, background[-1])
    printed = _finish(client, folder)
    promised = re.findall(r"```\n(.*?)```", readme, re.S)[1]
    assert printed == promised
