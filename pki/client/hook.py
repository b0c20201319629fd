"""The command that is run after a renewal, so that a program in any language takes up its new files."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from trust.errors import ConfigurationError
from trust.identity import AgentID

HOOK_SECONDS = 60.0  # a reload is done in a second or two; a command that hangs must not stop the renewals

# What the hook learns from its environment. Nothing of ours that is secret is in it: not a password, not a token.
FOLDER_VARIABLE = "A2A_AGENT_FOLDER"
ID_VARIABLE = "A2A_AGENT_ID"
_OURS = ("A2A_PKI_", "A2A_TRUST_")  # A2A_PKI_PASSWORD, A2A_PKI_TOKEN, A2A_TRUST_PASSWORD and whatever comes

HookCommand = str | Sequence[str]


class Hook:
    """A command without a shell, run one at a time, and for no longer than it may take.

    Args:
        command: words, or one line that is split as a shell would; nothing in it is expanded.
    """

    def __init__(self, command: HookCommand, *, seconds: float = HOOK_SECONDS) -> None:
        try:
            self._words = shlex.split(command) if isinstance(command, str) else list(command)
        except ValueError as error:
            raise ConfigurationError("hook", got=error, expected="a command") from None
        if not self._words:
            raise ConfigurationError("hook", got="nothing", expected="a command")
        if shutil.which(self._words[0]) is None:  # told now, and not after the first renewal, which nobody may see
            raise ConfigurationError("hook", got=self._words[0], expected="a program that is there and may be run")
        self._seconds = seconds
        self._running: subprocess.Popen[bytes] | None = None
        self._over = False

    def run(self, folder: Path, agent_id: AgentID) -> str | None:
        """Run it to its end; None when it succeeded, else what went wrong. Its output goes to our stderr."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        environment |= {FOLDER_VARIABLE: str(folder.absolute()), ID_VARIABLE: str(agent_id)}
        try:
            self._running = subprocess.Popen(  # noqa: S603 - the operator's own command, and no shell
                self._words,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
                start_new_session=True,  # with all that it starts it can be ended
            )
        except OSError as error:
            return f"{self._words[0]}: {error.strerror}"
        if self._over:  # by a signal that came just before there was something to end
            self._kill()
        try:
            code = self._running.wait(self._seconds)
        except subprocess.TimeoutExpired:
            self._kill()
            self._running.wait()
            return f"{self._words[0]}: ended after {self._seconds:g} s"
        finally:
            self._running = None
        return None if code == 0 else f"{self._words[0]}: exit code {code}"

    def end(self) -> None:
        """End what runs, and what is still to be run. May be called from a signal handler: it waits for nothing."""
        self._over = True
        self._kill()

    def _kill(self) -> None:
        running = self._running
        if running is None or running.returncode is not None:
            return
        with contextlib.suppress(OSError):  # it ended by itself
            if os.name == "nt":
                running.kill()
            else:
                os.killpg(running.pid, signal.SIGKILL)
