"""Who gets in: a bounded number of connections, in all and from each address.

A connection costs a stranger nothing, and takes one of the files that the process may have open. Once those are gone
nobody is served, and neither is the database: so there are fewer connections than files, and no address has more than
its share of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from pki.service.attempts import network
from trust.seldom import Seldom

try:
    import resource
except ModuleNotFoundError:  # Windows, which has no such limit
    resource = None  # type: ignore[assignment]

WANTED_FILES = 65_536  # enough for everything here; some systems take no "unlimited"
RESERVED_FILES = 256  # for the database, listening sockets, files of certificates and logs, and the event loop
MIN_CONNECTIONS = 64
SHARE = 8  # an eighth of all connections may come from one address
MIN_SHARE = 64  # a site of agents behind one address that all start at once

logger = logging.getLogger("a2a_pki.service")


def raise_file_limit() -> None:
    """Let this process and its children open as many files as the system allows them to; often that is 1,024 before."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # then there are fewer connections
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Door:
    """Counts the open connections of one event loop."""

    def __init__(self, connections: int) -> None:
        """Args: connections: how many there may be, of all listeners together."""
        self.connections = connections
        self.share = min(connections, max(MIN_SHARE, connections // SHARE))
        self._open: Counter[str] = Counter()
        self._total = 0
        self._says = Seldom(lines=1)

    @classmethod
    def for_files(cls, connections: int) -> Door:
        """At most so many, and fewer where the process may not open as many files."""
        if resource is not None:
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            if soft != resource.RLIM_INFINITY:
                connections = min(connections, max(MIN_CONNECTIONS, soft - RESERVED_FILES))
        return cls(connections)

    def guarding(self, make: Callable[..., asyncio.Protocol]) -> Callable[..., asyncio.Protocol]:
        """A protocol factory whose protocols are told of admitted connections only; all others end at once."""

        def made(*args: Any, **options: Any) -> asyncio.Protocol:
            protocol = make(*args, **options)
            self._stand_before(protocol)
            return protocol

        return made

    def _stand_before(self, protocol: Any) -> None:
        begin, end = protocol.connection_made, protocol.connection_lost

        def connection_made(transport: asyncio.Transport) -> None:
            name = transport.get_extra_info("peername")
            address = network(name[0]) if name else ""
            if not self._admit(address):
                transport.set_protocol(asyncio.Protocol())  # which hears of the end, and does nothing
                transport.abort()
                return

            def connection_lost(error: Exception | None) -> None:
                self._leave(address)
                end(error)

            protocol.connection_lost = connection_lost
            begin(transport)

        protocol.connection_made = connection_made

    def _admit(self, address: str) -> bool:
        full = self._total >= self.connections
        if full or self._open[address] >= self.share:
            if self._says.says():
                why = f"{self._total} connections are open" if full else f"{address} has {self.share} open connections"
                logger.warning("a connection was refused: %s%s", why, self._says.left_out())
            return False
        self._open[address] += 1
        self._total += 1
        return True

    def _leave(self, address: str) -> None:
        self._total -= 1
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]
