"""Ports of this machine: one that is free, and whether somebody listens there."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Callable
from typing import Any

# Below the ports that the system gives to whoever asks for any: those go to other tests before the program has begun.
FIRST, COUNT = 10_000, 20_000
_tried = itertools.count(os.getpid() * 101)  # each process of the tests has a hundred of its own


def free_port() -> int:
    """For programs that cannot choose one: free a moment ago, and never the same one twice."""
    for number in itertools.islice(_tried, COUNT):
        port = FIRST + number % COUNT
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until_listens(port: int, ended: Callable[[], Any], seconds: float = 30.0) -> None:
    """Wait for a program; `ended` (a process's `poll`) says None for as long as it runs."""
    until = time.monotonic() + seconds
    while not listens(port):
        assert ended() is None, f"who should listen on port {port} ended"
        assert time.monotonic() < until, f"nobody listens on port {port} after {seconds:g} s"
        time.sleep(0.02)
