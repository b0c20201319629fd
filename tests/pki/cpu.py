"""An end to what takes for ever, in processor time: on a busy machine it is the same."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """The block takes no more of this process's time, or fails. Choose it a hundred times too large."""
    if not hasattr(signal, "SIGVTALRM"):
        pytest.skip("no timer of processor time here")

    def late(*_: object) -> None:
        pytest.fail(f"not done after {seconds:g} s of processor time")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
