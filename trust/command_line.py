"""How our commands speak: exit codes, one line for every error, never a traceback. For a2a-trust and a2a-pki."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any, TypeVar

from trust.errors import TrustError

T = TypeVar("T")

INTERRUPTED = 130  # as a shell has it: 128, and the number of the signal
TERMINATED = 143


def run(commands: str, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code.

    It is 0 when it is done, 1 when it was refused or failed, 2 for wrong usage, 130 after ctrl-C and 143 after SIGTERM,
    which both let everything be put away that is there for the time of the command only.

    Args:
        commands: the module with the Typer `app`. It is imported here: that takes a second, in which somebody may press
            ctrl-C.
        name: of the program.
        arguments: those of the process when left out.
    """
    try:
        with _told_to_end():
            code = _run(commands, name, arguments)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Terminated:
        return _fail(name, "terminated", TERMINATED)
    return _fail(name, "interrupted", code) if code == INTERRUPTED else code


def silence() -> None:
    """Whoever read our output has enough: what is still written goes nowhere, also at the interpreter's exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, which cancels at ctrl-C; and so it does at SIGTERM, in place of raising in the loop's midst."""
    import asyncio  # not before somebody catches an interrupt

    ended = False

    async def cancelled_by_signal() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def end() -> None:
            nonlocal ended
            if task is not None and not ended:  # once is enough, as below
                ended = True
                task.cancel()

        loop.add_signal_handler(signal.SIGTERM, end)
        return await main

    if threading.current_thread() is not threading.main_thread():
        return asyncio.run(main)
    before = signal.getsignal(signal.SIGTERM)
    try:
        return asyncio.run(cancelled_by_signal())
    except BaseException:  # a cancelled task, too
        if ended:  # whatever the parts that were cancelled made of it
            raise Terminated(TERMINATED) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(commands: str, name: str, arguments: Sequence[str] | None) -> int:
    import typer  # not before somebody catches an interrupt

    try:
        app = import_module(commands).app
        return int(app(args=arguments, prog_name=name, standalone_mode=False) or 0)
    except typer.TyperException as error:
        return _fail(name, error.format_message(), error.exit_code)
    except typer.Abort:
        return INTERRUPTED
    except TrustError as error:
        return _fail(name, str(error))
    except BrokenPipeError:
        silence()
        return 1
    except OSError as error:
        return _fail(name, f"{error.filename or 'input or output'}: {error.strerror or type(error).__name__}")


class Terminated(SystemExit):
    """Somebody told the process to end: `finally` blocks run, no line of ours catches it."""


@contextmanager
def _told_to_end() -> Iterator[None]:
    """SIGTERM ends the command as ctrl-C does. Elsewhere than in the main thread nobody gets signals."""

    def end(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # once is enough: what is put away now is put away whole
        raise Terminated(TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(name: str, message: str, code: int = 1) -> int:
    if message:  # without arguments the help says it all
        sys.stderr.write(f"{name}: {message}\n")
    return code
