"""The servers that are measured over HTTP, and what loads them: one Go program for every one of them.

It sends requests that were made before, so that it takes little of the cores that it shares with the server.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.harness import Spent

SOURCE = Path(__file__).parent.parent / "interop" / "go" / "load" / "main.go"
CONNECTIONS = 16
START_SECONDS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A server that runs."""

    pid: int
    port: int

    def resident(self) -> int:
        """Bytes of memory that it and the processes that it has started hold."""
        return sum(resident(pid) for pid in (self.pid, *_children(self.pid)))

    def cpu(self) -> float:
        """Seconds of CPU time that they have spent; as Linux gives it, by the clock of each process."""
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in (self.pid, *_children(self.pid)))


class Load:
    """Sends requests and counts the answers."""

    def __init__(self, folder: Path) -> None:
        """Builds the program; needs `go`."""
        self._folder = folder
        self._program = folder / "load"
        environment = {**os.environ, "GO111MODULE": "off", "CGO_ENABLED": "0"}
        subprocess.run(["go", "build", "-o", str(self._program), str(SOURCE)], check=True, env=environment)

    def seconds(self, url: str, lines: Iterable[dict[str, str]], *, requests: int, **options: str | bool) -> float:
        """Seconds for an answer; every one of them must be good.

        Args:
            lines: the requests, `{"header": ..., "body": ...}`.
            requests: how many to send; the lines are used in turn.
            options: of the program.
        """
        file = self._folder / "requests.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        command = [str(self._program), "-url", url, "-file", str(file), "-requests", str(requests)]
        command += ["-connections", str(CONNECTIONS)]
        command += [f"-{name}={value if isinstance(value, str) else 'true'}" for name, value in options.items()]
        answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert answer["good"] == requests, answer["problem"]
        return float(answer["seconds"]) / requests

    def spent(
        self, server: Process, url: str, lines: Iterable[dict[str, str]], *, requests: int, **options: str | bool
    ) -> Spent:
        """As `seconds`, with the CPU time that the server spends for an answer."""
        before = server.cpu()
        wall = self.seconds(url, lines, requests=requests, **options)
        return Spent(wall=wall, cpu=(server.cpu() - before) / requests)


@contextlib.contextmanager
def server(command: Sequence[str], *, port: int, log: Path, **environment: str) -> Iterator[Process]:
    """A program that serves on a port, for as long as the block runs."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **environment})
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not serve: {log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield Process(pid=process.pid, port=port)
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def our_server(folder: Path, password: str, *, workers: int) -> Iterator[Process]:
    """`a2a-pki serve`, with its audit trail in a file."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.serving",
        "serve",
        str(folder),
        "--port",
        str(port),
        "--workers",
        str(workers),
    ]
    with server(command, port=port, log=folder.parent / "serve.log", A2A_PKI_PASSWORD=password) as process:
        if workers > 1:
            time.sleep(3)  # the sockets listen before the processes behind them have started
        yield process


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def resident(pid: int | str = "self") -> int:
    """Bytes of memory that a process holds; 0 where the system does not say, or the process is gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []
