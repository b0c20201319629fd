"""What holds for every test, from before the first of their modules is imported: many of them make a CA then."""

from __future__ import annotations

import functools
import gc
import logging
import os
import threading
import time
from collections.abc import Iterator

import pytest
import typer.main
from hypothesis import HealthCheck, settings

from trust import private_keys

# Keys are encrypted with little work: hundreds of CAs are made here. Processes of their own do all of it.
_SCRYPT = {"SCRYPT_N": private_keys.SCRYPT_N, "SCRYPT_P": private_keys.SCRYPT_P}
private_keys.SCRYPT_N, private_keys.SCRYPT_P = 2**10, 1

# Typer makes its commands anew for each call, which is most of what a small one costs: hundreds are run here.
typer.main.get_command = functools.cache(typer.main.get_command)

# A busy machine is slow, and that is no failure of what is tested. The gate says the same of the same code each time;
# whoever looks for more has other examples in every run.
settings.register_profile(
    "patient",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    derandomize="A2A_TRUST_CI" in os.environ,
)
settings.load_profile("patient")

OF_GRPC = ("_poll_wrapper", "Dummy-")  # parts of names of threads that gRPC keeps for as long as the process


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: else one of them is still at work when all others have ended."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def full_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much work as users have."""
    for name, value in _SCRYPT.items():
        monkeypatch.setattr(private_keys, name, value)


@pytest.fixture(autouse=True)
def no_log_goes_where_a_former_test_was_listening() -> Iterator[None]:
    """uvicorn's own configuration writes to the stream that was captured then, which is closed when its test ends."""
    loggers = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "uvicorn.access")]
    before = [(logger, logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, handlers, propagate, level in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(scope="module", autouse=True)
def threads_end_with_their_module() -> Iterator[None]:
    """What goes on behind the tests of others breaks one of them now and then."""
    before = set(threading.enumerate())
    yield
    end = time.monotonic() + 20
    while left := [t for t in threading.enumerate() if t not in before and not any(n in t.name for n in OF_GRPC)]:
        assert time.monotonic() < end, f"threads that outlive the tests of this module: {left}"
        gc.collect()  # an executor that nobody holds any more ends its threads
        time.sleep(0.02)
