"""Running a2a-pki, in this process and in others, and looking at its answers."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.pki.conftest import DOMAIN, PASSWORD
from tests.ports import free_port

ROOT = Path(__file__).parents[3]
SECONDS = 150
Run = Callable[..., "Answer"]


class Answer:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        assert (self.code, self.err) == (0, ""), self.err
        return json.loads(self.out)


def one_line(answer: Answer, code: int = 1) -> str:
    assert answer.code == code
    assert answer.out == ""
    assert answer.err.startswith("a2a-pki: ")
    assert answer.err.endswith("\n")
    assert answer.err.count("\n") == 1, "one line, and no traceback"
    return answer.err


def mode(path: Path | str) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


def a2a_pki(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pki.cli", *map(str, arguments)],
        env={**os.environ, "A2A_PKI_PASSWORD": PASSWORD},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        cwd=ROOT,
    )


def answer(*arguments: object) -> Any:
    done = a2a_pki(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Service:
    """A CA in a folder, served by a process of its own."""

    partner: socket.socket  # where another authorization server is to listen
    redis: str

    def __init__(self, folder: Path, *more: object) -> None:
        self.port, self.http_port = free_port(), free_port()
        self.ca = folder / "ca"
        made = answer("init", self.ca, "--trust-domain", DOMAIN, "--public-url", f"http://127.0.0.1:{self.http_port}")
        self.fingerprint = made["root_fingerprint"]
        self.url = f"https://127.0.0.1:{self.port}"
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "pki.cli", "serve", str(self.ca)),
                *("--port", str(self.port), "--http-port", str(self.http_port)),
                *(str(argument).replace("{port}", str(self.port)) for argument in more),
            ],
            env={**os.environ, "A2A_PKI_PASSWORD": PASSWORD},
            stderr=self.log,
            cwd=ROOT,
        )
        deadline = time.monotonic() + SECONDS
        while not self.ready():
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.http_port}/ready").status_code == 200
        except httpx.TransportError:
            return False

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def enrol(self, token: str, out: Path) -> tuple[object, ...]:
        return ("enrol", "--ca", self.url, "--root-fingerprint", self.fingerprint, "--token", token, "--out", out)
