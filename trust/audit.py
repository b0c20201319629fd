"""The audit trail: who asked for what, what was decided, and which check decided it - one JSON object a line.

Only the named facts are written: never a token, a key, a signature, a header or a body. The trail is a standard
`logging` logger, so where it goes is the program's configuration.
"""

from __future__ import annotations

import json
import logging
from typing import Literal, Protocol, TextIO

from trust.clock import Clock, wall_clock

LOGGER = "a2a_trust.audit"
MAX_FACT_CHARACTERS = 256  # a hostile method, path or name must not flood the trail

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
            event: what was asked: "request", "handshake", "token".
            decision: what was decided.
            check: the check that refused (`TrustError.check`); "all" where everything passed.
            peer: the SPIFFE ID proved by the channel, or the address where none was.
            subject: on whose behalf.
            target: what it was about: method and path, or the audience of a token.
            facts: further identifiers, such as a token's `jti`; never secrets.
        """


class AuditLog:
    """Writes to the standard logger `a2a_trust.audit`: allowed at INFO, denied at WARNING.

    `logging` shows no INFO until it is configured to; `AuditLog.to(sys.stdout)` needs no configuration.
    """

    def __init__(self, logger: logging.Logger | None = None, *, clock: Clock = wall_clock) -> None:
        self._logger = logger or logging.getLogger(LOGGER)
        self._clock = clock

    @classmethod
    def to(cls, stream: TextIO) -> AuditLog:
        """A trail on a stream of its own, such as an open file or `sys.stdout`, whatever `logging` is configured to.

        `record` raises what the stream raises: a decision that cannot be recorded is not to be carried out.
        """
        logger = logging.Logger(LOGGER)
        logger.addHandler(_Strict(stream))
        return cls(logger)

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
        level = logging.INFO if decision == "allow" else logging.WARNING
        if not self._logger.isEnabledFor(level):
            return
        line = {
            "time": self._clock().isoformat(timespec="milliseconds"),
            "event": event,
            "decision": decision,
            "check": check,
            "peer": peer,
            "subject": subject,
            "target": target,
            **facts,
        }
        # JSON escapes control characters, so that a hostile name cannot forge a line of its own.
        self._logger.log(level, json.dumps({k: _bounded(v) for k, v in line.items() if v != ""}))


class _Strict(logging.StreamHandler[TextIO]):
    """`logging` prints what goes wrong to stderr, or nothing at all, and lets the caller go on."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise


def _bounded(value: str | int) -> str | int:
    if isinstance(value, str) and len(value) > MAX_FACT_CHARACTERS:
        return value[:MAX_FACT_CHARACTERS] + "..."
    return value
