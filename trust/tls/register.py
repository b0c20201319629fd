"""All open connections of one server: how many there may be at once, and whether their peers are still trusted."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Protocol

from trust.errors import HandshakeGaveWay, TooManyConnections, TrustError
from trust.identity import AgentID

# One look over many connections goes on for this long before the event loop has its turn again.
SLICE_SECONDS = 0.005

# What all connections together may take of one turn of the loop, before those with more to be read wait for the next.
TURN_SECONDS = 0.01
TRIFLE_SECONDS = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many connections one server process holds at once.

    The process must be allowed as many open files. Nothing is counted by address: behind one there may be a thousand
    agents, and an attacker has many.
    """

    # With verified peers. One more is answered 503 after its handshake.
    connections: int = 10_000
    # Of one agent (SPIFFE ID), in the same way, so that none of them takes the places of all others. Clients without a
    # certificate, where they are let in, are one agent in this.
    peer: int = 500
    # Connections whose peer is not known yet, or was turned away just now. One more takes the place of one that was
    # turned away, or else of the oldest in the larger of two crowds: those who have not said a word, and those who
    # have. So a flood cannot close the door: an honest client has said its word, and is through, before half as many
    # others of its crowd have come behind it.
    handshakes: int = 1_000


class Watched(Protocol):
    """A connection, as far as it concerns the register."""

    def give_way(self, error: TrustError) -> None:
        """End at once: another one needs the place."""

    def check_trust(self) -> None:
        """End if the peer lost its trust."""


class Late(Protocol):
    """A connection with more to be worked on than there was time for."""

    @property
    def peer(self) -> AgentID | None:
        """Whose it is; None for a client without a certificate."""

    def catch_up(self) -> None:
        """Go on."""


class Turns:
    """What connections may take of one turn of the event loop, all of them together: who comes late waits for the next.

    The peers take turns, and so do the connections of each: one peer with many connections holds nobody up for longer
    than one with a single connection does. In its loop only.
    """

    def __init__(self) -> None:
        self._late: dict[AgentID | None, deque[Late]] = {}  # the peer that waits longest comes first
        self._spent = 0.0  # seconds of this turn
        self._trifles = 0.0  # and those that are not counted yet: most turns are over before they are worth it
        self._ending = False  # there is something that must happen when this turn is over

    def left(self) -> float:
        """Seconds that are left of this turn."""
        return TURN_SECONDS - self._spent

    def spend(self, seconds: float) -> None:
        """So long one connection was worked on. What is over in no time counts once there is enough of it."""
        self._trifles += seconds
        if self._trifles > TRIFLE_SECONDS:
            self._spent += self._trifles
            self._trifles = 0.0
            self._end()

    def put_off(self, connection: Late) -> None:
        """It goes on in one of the next turns."""
        self._late.setdefault(connection.peer, deque()).append(connection)
        self._end()

    def _end(self) -> None:
        if not self._ending:
            self._ending = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._spent, self._ending = 0.0, False
        try:
            for turn in range(sum(map(len, self._late.values()))):  # as often as there are connections; once at least
                if turn and self.left() <= 0:
                    break
                peer = next(iter(self._late))
                waiting = self._late.pop(peer)
                connection = waiting.popleft()
                if waiting:
                    self._late[peer] = waiting  # behind the other peers
                connection.catch_up()
        finally:
            if self._late:
                self._end()


class Register:
    """Who is connected to one server. Used in its event loop only.

    Args:
        limits: how many there may be.
        interval: seconds between two looks whether the peers are still trusted.
    """

    def __init__(self, limits: Limits, interval: float) -> None:
        self._limits = limits
        self._interval = interval
        # In the order in which they came.
        self._silent: dict[Watched, None] = {}
        self._speaking: dict[Watched, None] = {}
        self._refused: dict[Watched, None] = {}
        self._verified: dict[Watched, AgentID | None] = {}
        self._of_peer: Counter[AgentID | None] = Counter()
        self._looking = False
        self.turns = Turns()

    def __len__(self) -> int:
        return self._handshakes() + len(self._verified)

    def _handshakes(self) -> int:
        return len(self._silent) + len(self._speaking) + len(self._refused)

    def enter(self, connection: Watched) -> None:
        """A client connected."""
        if self._handshakes() >= self._limits.handshakes:
            crowd = self._silent if len(self._silent) >= len(self._speaking) else self._speaking
            oldest = next(iter(self._refused or crowd))
            self.leave(oldest)
            oldest.give_way(
                HandshakeGaveWay(
                    "handshake gave way to a later one",
                    expected=f"at most {self._limits.handshakes} handshakes at once",
                )
            )
        self._silent[connection] = None

    def spoke(self, connection: Watched) -> None:
        """Something came from a client that is in its handshake."""
        if self._silent.pop(connection, connection) is None:
            self._speaking[connection] = None

    def refuse(self, connection: Watched) -> None:
        """A client was turned away: it is here only until it has read why."""
        self.leave(connection)
        self._refused[connection] = None

    def admit(self, connection: Watched, peer: AgentID | None) -> None:
        """Its handshake is complete; None for a client without a certificate.

        Raises:
            TooManyConnections: there is no place for it.
        """
        if self._of_peer[peer] >= self._limits.peer:
            raise TooManyConnections(
                "peer has too many connections",
                got=peer or "a client without a certificate",
                expected=f"at most {self._limits.peer} at once",
                do="let it use its connections again, or raise Limits.peer",
            )
        if len(self._verified) >= self._limits.connections:
            raise TooManyConnections(
                "server has too many connections",
                got=peer or "a client without a certificate",
                expected=f"at most {self._limits.connections} at once",
                do="add servers, or raise Limits.connections",
            )
        self._silent.pop(connection, None)
        self._speaking.pop(connection, None)
        self._verified[connection] = peer
        self._of_peer[peer] += 1
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_later(self._interval, self._look)

    def leave(self, connection: Watched) -> None:
        """It is closed."""
        for crowd in (self._silent, self._speaking, self._refused):
            crowd.pop(connection, None)
        if connection in self._verified:
            peer = self._verified.pop(connection)
            self._of_peer[peer] -= 1
            if not self._of_peer[peer]:
                del self._of_peer[peer]

    def _look(self) -> None:
        """Look at every connection, a slice at a time."""
        if self._verified:
            self._go_on(list(self._verified))
        else:
            self._looking = False

    def _go_on(self, left: list[Watched]) -> None:
        loop = asyncio.get_running_loop()
        until = time.monotonic() + SLICE_SECONDS
        try:
            while left:
                left.pop().check_trust()
                if time.monotonic() >= until:
                    break
        finally:  # also where a look failed: it is the others' turn
            if left:
                loop.call_soon(self._go_on, left)
            else:
                loop.call_later(self._interval, self._look)
