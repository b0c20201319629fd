"""The CA service as a program: one process, or several behind the same listening sockets.

Several serve more requests a second than one interpreter can. Each worker opens the CA for itself: the database is made
for several processes, and so is rotation.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event as EventOfProcesses
from typing import Unpack

import uvicorn
from cryptography.hazmat.primitives.serialization import Encoding

from pki.authority import CertificateAuthority
from pki.service.door import raise_file_limit
from pki.service.listeners import GRACE_SECONDS, check_pair, url_of
from pki.service.server import Endpoints, Options, Sockets, serving
from trust.audit import AuditLog, AuditSink
from trust.errors import ConfigurationError, TrustError
from trust.identity import fingerprint

PORT = 8443
# A worker that ends sooner, or has not even opened the CA, would end again: so the service stops, and stderr says why.
SETTLED_SECONDS = 10.0
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # read by prometheus-client when a worker imports it

# Opens the CA in a worker, and may configure logging there. It goes to another process: a function of a module, or a
# `functools.partial` of one. A password in it travels through a pipe, and over no command line.
Opener = Callable[[], CertificateAuthority]


def serve(
    ca: CertificateAuthority,
    *,
    audit: AuditSink | None = None,
    workers: int = 1,
    opener: Opener | None = None,
    **options: Unpack[Options],
) -> None:
    """Serve the CA until the process is told to stop (SIGTERM, Ctrl-C), and finish what is in flight then.

    Says on stderr where it listens, and the root's fingerprint, which agents enrol with.

    Args:
        audit: gets every decision; when left out, and from workers, they go to stderr, one JSON object a line.
        workers: processes. With several, `opener` opens the CA in each of them, as `Opener` has it.
        options: where to listen (the port is 8443 when left out), and under which names.

    Raises: as `serving`.
    """
    if workers > 1 and (opener is None or audit is not None):
        raise ConfigurationError("several workers", expected="an opener for each to open the CA by, and no audit sink")
    raise_file_limit()
    endpoints: Options = {"port": PORT, **options}
    asked = Endpoints(**endpoints)
    if asked.web_certificate is not None:  # before anybody is told that we serve
        check_pair(*asked.web_certificate)
    sockets = Sockets(asked)
    _announce(ca, sockets)
    if workers > 1 and opener is not None:
        _run_workers(opener, endpoints, sockets, workers)
    else:
        _run(ca, endpoints, sockets, audit=audit)


def _announce(ca: CertificateAuthority, sockets: Sockets) -> None:
    lines = [f"serving the CA of {ca.trust_domain} on {url_of(sockets.secure, 'https')}"]
    if sockets.plain is not None:
        metrics = ", health and metrics" if find_spec("prometheus_client") else " and health"  # the extra `metrics`
        lines.append(f"revocation lists, OCSP{metrics} on {url_of(sockets.plain, 'http')}")
    if sockets.web is not None:
        lines.append(f"trust bundle (https_web) on {url_of(sockets.web, 'https')}/bundle")
    lines.append(f"root fingerprint {fingerprint(ca.root.public_bytes(Encoding.DER))}")
    sys.stderr.write("\n".join(lines) + "\n")


def _run(
    ca: CertificateAuthority,
    options: Options,
    sockets: Sockets,
    *,
    audit: AuditSink | None = None,
    stopped: Callable[[Callable[[], None]], None] = lambda stop: None,
) -> None:
    """Serve on bound sockets until a signal. `stopped` is given a function that stops the service as a signal does."""

    audit = AuditLog.to(sys.stderr) if audit is None else audit

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def ask(*_: object) -> None:
            loop.call_soon_threadsafe(stop.set)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, ask)
        stopped(ask)
        async with serving(ca, audit=audit, sockets=sockets, **options):
            await stop.wait()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with asyncio.Runner(loop_factory=uvicorn.Config("").get_loop_factory()) as runner:
            runner.run(main())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_workers(opener: Opener, options: Options, sockets: Sockets, count: int) -> None:
    """Serve in `count` processes until a signal; replace one that dies.

    Args:
        opener: opens the CA in a worker, and may configure logging there. It goes to another process: a function of a
            module, or a `functools.partial` of one. A password in it travels through a pipe, and no command line.

    Raises:
        ConfigurationError: a worker ended as soon as it had begun.
    """
    stopping = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopping.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    with tempfile.TemporaryDirectory(prefix="a2a-pki-metrics-") as folder:

        def start() -> tuple[SpawnProcess, EventOfProcesses, float]:
            context = multiprocessing.get_context("spawn")
            opened = context.Event()
            process = context.Process(target=_worker, args=(opener, options, sockets, folder, opened), daemon=True)
            process.start()
            return process, opened, time.monotonic()

        workers = [start() for _ in range(count)]
        try:
            while not stopping.is_set():
                wait([process.sentinel for process, *_ in workers], timeout=0.5)
                for index, (process, opened, started) in enumerate(workers):
                    if process.is_alive() or stopping.is_set():
                        continue
                    if not opened.is_set() or time.monotonic() - started < SETTLED_SECONDS:
                        raise ConfigurationError(
                            "worker ended at once", got=f"exit code {process.exitcode}", do="see what it said on stderr"
                        )
                    sys.stderr.write(
                        f"worker {process.pid} ended with exit code {process.exitcode}; starting another\n"
                    )
                    workers[index] = start()
        finally:
            _end([process for process, *_ in workers])
            sockets.close()
            for number, handler in before.items():
                signal.signal(number, handler)


def _end(workers: list[SpawnProcess]) -> None:
    for process in workers:
        process.terminate()  # SIGTERM: finish what is in flight
    deadline = time.monotonic() + GRACE_SECONDS + 5
    for process in workers:
        process.join(max(0.1, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _worker(opener: Opener, options: Options, sockets: Sockets, folder: str, opened: EventOfProcesses) -> None:
    os.environ[METRICS_FOLDER] = folder
    try:
        with opener() as ca:
            opened.set()
            _run(ca, options, sockets, stopped=_with_parent)
    except TrustError as error:
        sys.exit(f"worker: {error}")  # exit code 1


def _with_parent(stop: Callable[[], None]) -> None:
    """Stop when the parent is gone, however it went: orphans would go on to hold the sockets."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch(sentinel: int) -> None:
            wait([sentinel])
            stop()

        threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
