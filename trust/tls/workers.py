"""One server in several processes, each with sources of its own."""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections.abc import Callable
from typing import Any

from uvicorn.config import STARTUP_FAILURE
from uvicorn.importer import ImportFromStringError, import_from_string
from uvicorn.supervisors import Multiprocess

from trust.errors import ConfigurationError, TrustError
from trust.tls.server import TrustConfig, listen, url_of

Make = str | Callable[[], TrustConfig]

START_SECONDS = 60  # for a worker to import the application, at first
SILENCE_SECONDS = 20  # a worker that says nothing for so long is replaced


def serve_workers(make: Make, *, workers: int, host: str = "127.0.0.1", port: int = 8443) -> None:
    """Serve in several processes until this one is told to stop (SIGTERM, SIGINT), and say on stderr where.

    Connections, credentials and the threads of sources cannot be handed to another process, so each worker makes its
    own: it calls `make`, and follows renewed certificates, bundles and lists by itself. A worker that dies is replaced,
    SIGHUP replaces all of them, one after the other. When told to stop, each finishes what is in flight, as `serve`.

    Not shared between workers: `Limits` (each has its own), and whatever the application keeps in memory. A replay
    guard in memory would admit a message once in each worker: give `Gate` one that they share (Redis).

    Args:
        make: makes the configuration of one worker by `uvicorn_config`; the host and port of that are not used. Either
            an import string, "package.module:function", or a function at the top level of a module. The program that
            calls this is imported by the workers, so the call stands under `if __name__ == "__main__":`.
        workers: how many processes; one for each core is usual.
        host, port: where to listen; port 0 picks a free one.

    Raises:
        ConfigurationError: `make` cannot be found by another process, the address is taken, or the workers do not
            start; they say on stderr why.
    """
    if workers < 1:
        raise ConfigurationError("number of workers", got=workers, expected=">= 1")
    recipe: Any = _Recipe(make, workers)
    with contextlib.ExitStack() as stack:
        sockets = listen(host, port, stack)
        sys.stderr.write(f"serving with {workers} workers on {url_of(sockets[0])}\n")
        supervisor = _Supervisor(recipe, sockets=sockets)
        supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        raise ConfigurationError("workers did not start", do="see what they say above")


class _Supervisor(Multiprocess):
    def init_processes(self) -> None:
        super().init_processes()
        for process in self.processes:  # one that dies now is noticed at once, and not after its silence
            process.wait_until_ready(START_SECONDS, self.should_exit)


class _Recipe:
    """What the supervisor takes for a `uvicorn.Config`. On its way into a worker it becomes a real one."""

    timeout_worker_healthcheck = SILENCE_SECONDS

    def __init__(self, make: Make, workers: int) -> None:
        if isinstance(make, str):
            module, _, name = make.partition(":")
            known = bool(module and name)
        else:
            try:
                pickle.dumps(make)
                known = callable(make)
            except (pickle.PicklingError, AttributeError, TypeError):
                known = False
        if not known:
            raise ConfigurationError(
                "workers cannot find what makes their server",
                got=make,
                expected='"package.module:function", or a function at the top level of a module',
            )
        self.make = make
        self.workers = workers

    def __reduce__(self) -> tuple[Any, ...]:
        return made, (self.make, self.workers)


def made(make: Make, workers: int) -> TrustConfig:
    """In a worker: its configuration. What fails is said in one line, and ends the whole server."""
    try:
        function = import_from_string(make) if isinstance(make, str) else make
        config = function()
        if not isinstance(config, TrustConfig):
            raise ConfigurationError(
                "server of a worker", got=type(config).__name__, expected="what trust.uvicorn_config(...) returns"
            )
    except (TrustError, ImportFromStringError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(STARTUP_FAILURE)
    config.workers = workers  # on Windows uvicorn shares its sockets only where it knows of several processes
    return config
