"""Renewal for agents in other languages: files that are replaced, and a hook that says so."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from pki.client.folder import AgentFolder
from pki.client.hook import Hook, HookCommand
from pki.client.renewal import Event, RenewingCredentials, TokenSource
from pki.errors import PKIError
from trust.clock import Clock, wall_clock
from trust.credentials import Credentials
from trust.errors import ConfigurationError

_WORTH_A_HOOK = ("renewed", "replaced", "trust")  # what changed files


def renew_once(
    folder: str | os.PathLike[str],
    *,
    url: str | None = None,
    hook: HookCommand | None = None,
    password: str | bytes | None = None,
    clock: Clock = wall_clock,
) -> Credentials:
    """Renew the credentials in a folder now, whether or not it is time, and run the hook.

    Args:
        folder: written by `enrol`.
        url: of the CA service, where it is not the one of the enrolment.
        hook: a command, run without a shell after the files were replaced.
        password: of the folder's key.

    Raises:
        PKIError: the renewal failed: by the leaf that says why; or the hook failed, after the files were replaced.
        TrustError: as `RenewingCredentials`.
    """
    command = None if hook is None else Hook(hook)
    renewing = RenewingCredentials(folder, url=url, password=password, clock=clock)
    try:
        renewed = renewing.renew()
        renewing.poll()
    finally:
        renewing.close()
    if command is not None and (problem := command.run(Path(folder), renewed.agent_id)):
        raise PKIError("credentials were renewed, but the hook failed", got=problem)
    return renewed


def renew_forever(
    folder: str | os.PathLike[str],
    *,
    url: str | None = None,
    hook: HookCommand | None = None,
    password: str | bytes | None = None,
    token: str | os.PathLike[str] | TokenSource | None = None,
    log: Callable[[str], None] | None = None,
) -> None:
    """Keep the credentials in a folder renewed until SIGTERM or SIGINT, which end it at once.

    One line on stderr for each event. The hook runs after the files have changed: a renewal, an enrolment by somebody
    else, a new bundle. Once for all changes that came while it ran. Where it fails, that is said, and renewal goes on.

    Args:
        log: gets the lines instead of stderr.
        Else as `renew_once` and `RenewingCredentials`.

    Raises:
        ConfigurationError: another daemon renews this folder.
        TrustError: the folder cannot be used.
    """
    say = log or _say
    command = None if hook is None else Hook(hook)
    events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
    renewing = RenewingCredentials(folder, url=url, password=password, token=token, on_event=events.put)
    with _alone(folder), _told_to_stop(events, command) as stopped:
        say(str(renewing.health))
        with renewing:
            while (batch := _next(events)) and not stopped.is_set():
                for event in batch:
                    say(event.says)
                changed = [event for event in batch if event.kind in _WORTH_A_HOOK]
                if command is None or not changed:
                    continue
                if problem := command.run(Path(folder), changed[-1].credentials.agent_id):
                    say(f"hook failed: {problem}")
    say(f"{renewing.current().agent_id}: no longer renewed")


def _next(events: queue.SimpleQueue[Event | None]) -> list[Event]:
    """Wait for an event, and take all that came meanwhile; none at the end."""
    batch = [events.get()]
    while not events.empty():
        batch.append(events.get())
    return [] if None in batch else [event for event in batch if event is not None]


@contextmanager
def _alone(folder: str | os.PathLike[str]) -> Iterator[None]:
    lock = AgentFolder(folder).daemon_lock()
    if not lock.acquire():
        raise ConfigurationError(
            f"{folder} is renewed by another daemon", expected="one a folder", do="stop one of them"
        )
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _told_to_stop(events: queue.SimpleQueue[Event | None], command: Hook | None) -> Iterator[threading.Event]:
    """SIGTERM and SIGINT end the loop, and a hook that runs. Elsewhere than in the main thread nobody gets signals."""

    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()
        events.put(None)
        if command is not None:
            command.end()

    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(line: str) -> None:
    sys.stderr.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}\n")
    sys.stderr.flush()
