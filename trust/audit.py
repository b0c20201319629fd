"""The audit trail: who asked for what, what was decided, and which check decided it - one JSON object a line.

Only the named facts are written: never a token, a key, a signature, a header or a body. The trail is a standard
`logging` logger, so where it goes is the program's configuration.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TextIO

from trust.clock import Clock, wall_clock

LOGGER = "a2a_trust.audit"
MAX_FACT_CHARACTERS = 256  # a hostile method, path or name must not flood the trail
MAX_SCOPE_CHARACTERS = 2048  # of what was granted nothing is cut: the authorization server grants no longer list
MAX_WRITE = 4096  # characters: of POSIX's pipes, which mix what is longer with what other processes write

Decision = Literal["allow", "deny"]


class AuditSink(Protocol):
    def record(
        self,
        *,
        event: str,
        decision: Decision,
        check: str,
        peer: str = "",
        subject: str = "",
        target: str = "",
        **facts: str | int,
    ) -> None:
        """Write one decision.

        Args:
            event: what was asked, or what broke: "request", "push", "handshake", "connection", "token".
            decision: what was decided.
            check: the check that refused (`TrustError.check`); "all" where everything passed.
            peer: the SPIFFE ID proved by the channel, or the address where none was.
            subject: on whose behalf.
            target: what it was about: method and path, or the audience of a token.
            facts: further identifiers, such as a token's `jti`; never secrets.
        """


def record_all(sink: AuditSink, decisions: Sequence[Mapping[str, Any]]) -> None:
    """Write several decisions, each given as the arguments of `AuditSink.record`: in one go where the sink can.

    When it raises, some of them may have been written.
    """
    if isinstance(sink, AuditLog):
        sink.record_many(decisions)
    else:
        for decision in decisions:
            sink.record(**decision)


class AuditLog:
    """Writes to the standard logger `a2a_trust.audit`: allowed at INFO, denied at WARNING.

    `logging` shows no INFO until it is configured to; `AuditLog.to(sys.stdout)` needs no configuration. Safe for
    threads.
    """

    def __init__(self, logger: logging.Logger | None = None, *, clock: Clock = wall_clock) -> None:
        self._logger = logger or logging.getLogger(LOGGER)
        self._clock = clock
        self._stream: TextIO | None = None
        self._writing = threading.Lock()

    @classmethod
    def to(cls, stream: TextIO) -> AuditLog:
        """A trail on a stream of its own, such as an open file or `sys.stdout`, whatever `logging` is configured to.

        `record` raises what the stream raises: a decision that cannot be recorded is not to be carried out. (`logging`
        prints what goes wrong to stderr, or nothing at all, and lets the caller go on.)
        """
        log = cls()
        log._stream = stream
        return log

    def record(
        self,
        *,
        event: str,
        decision: Decision,
        check: str,
        peer: str = "",
        subject: str = "",
        target: str = "",
        **facts: str | int,
    ) -> None:
        facts = {"check": check, "peer": peer, "subject": subject, "target": target, **facts}
        self.record_many([{"event": event, "decision": decision, **facts}])

    def record_many(self, decisions: Sequence[Mapping[str, Any]]) -> None:
        """As `record` for each, with its arguments by name; a stream is written to, and flushed, once for many."""
        time = self._clock().isoformat(timespec="milliseconds")
        if self._stream is not None:
            self._write(self._stream, [_line(time, decision) + "\n" for decision in decisions])
            return
        for decision in decisions:
            level = logging.INFO if decision["decision"] == "allow" else logging.WARNING
            if self._logger.isEnabledFor(level):
                self._logger.log(level, _line(time, decision))

    def _write(self, stream: TextIO, lines: Sequence[str]) -> None:
        with self._writing:
            waiting: list[str] = []
            size = 0
            for line in lines:
                if waiting and size + len(line) > MAX_WRITE:
                    stream.write("".join(waiting))
                    stream.flush()
                    waiting, size = [], 0
                waiting.append(line)
                size += len(line)
            stream.write("".join(waiting))
            stream.flush()


def _line(time: str, decision: Mapping[str, Any]) -> str:
    # JSON escapes control characters, so that a hostile name cannot forge a line of its own.
    return json.dumps({"time": time, **{name: _bounded(name, fact) for name, fact in decision.items() if fact != ""}})


def _bounded(name: str, fact: str | int) -> str | int:
    most = MAX_SCOPE_CHARACTERS if name == "scope" else MAX_FACT_CHARACTERS
    if isinstance(fact, str) and len(fact) > most:
        fact = fact[:most] + "..."
    if isinstance(fact, str) and not fact.isascii():  # as JSON writes it, a character has six or twelve
        while len(json.dumps(fact)) > most + 5:
            fact = fact[: len(fact) * 3 // 4] + "..."
    return fact
