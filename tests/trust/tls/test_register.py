"""The register of a server's connections: who gets a place, who gives it up, who is looked at."""

from __future__ import annotations

import asyncio

import pytest

from tests.trust.tls.parts import until
from trust.errors import HandshakeGaveWay, TooManyConnections, TrustError
from trust.identity import AgentID
from trust.tls import register as register_module
from trust.tls.register import TRIFLE_SECONDS, TURN_SECONDS, Limits, Register, Turns

ONE, TWO = AgentID.parse("spiffe://fleet.example/one"), AgentID.parse("spiffe://fleet.example/two")


class Link:
    def __init__(self) -> None:
        self.gave_way: TrustError | None = None
        self.looks = 0

    def give_way(self, error: TrustError) -> None:
        self.gave_way = error

    def check_trust(self) -> None:
        self.looks += 1


def entered(register: Register, number: int) -> list[Link]:
    links = [Link() for _ in range(number)]
    for link in links:
        register.enter(link)
    return links


def gave_way(links: list[Link]) -> list[bool]:
    assert {type(link.gave_way) for link in links} <= {HandshakeGaveWay, type(None)}
    return [link.gave_way is not None for link in links]


def test_the_oldest_handshake_gives_way() -> None:
    register = Register(Limits(handshakes=3), 1)
    links = entered(register, 5)
    assert gave_way(links) == [True] * 2 + [False] * 3
    assert len(register) == 3


def test_a_silent_flood_takes_no_place_of_those_who_spoke() -> None:
    register = Register(Limits(handshakes=10), 1)
    honest = entered(register, 4)
    for link in honest:
        register.spoke(link)
    flood = entered(register, 100)
    assert not any(gave_way(honest)) and gave_way(flood) == [True] * 94 + [False] * 6


def test_a_flood_of_those_who_speak_takes_no_place_of_who_has_not_spoken_yet() -> None:
    register = Register(Limits(handshakes=10), 1)
    flood, honest = [], []
    for number in range(100):
        flood += entered(register, 1)
        register.spoke(flood[-1])
        if number in (90, 93, 96, 99):
            honest += entered(register, 1)
    assert not any(gave_way(honest)) and sum(gave_way(flood)) == 94


def test_those_who_were_turned_away_give_way_first() -> None:
    """One agent at its limit, whose connections linger, takes nobody's place but its own."""
    register = Register(Limits(handshakes=10), 1)
    honest, hog = entered(register, 6), entered(register, 2)
    for link in (*honest[:3], *hog):
        register.spoke(link)
    for link in hog:
        register.refuse(link)
    later = entered(register, 4)
    assert gave_way(hog) == [True, True] and not any(gave_way(honest + later))
    register.spoke(hog[0])  # it has left, and does not come back
    assert len(register) == 10


def test_places() -> None:
    async def main() -> None:
        register = Register(Limits(handshakes=10, connections=3, peer=2), 1000)
        links = entered(register, 6)
        for link, peer in zip(links[:3], (ONE, ONE, None), strict=True):
            register.admit(link, peer)
        for peer, why in ((ONE, "peer has too many"), (TWO, "server has too many"), (None, "server has too many")):
            with pytest.raises(TooManyConnections, match=why):
                register.admit(links[3], peer)
        register.leave(links[0])
        register.leave(links[0])
        register.admit(links[3], TWO)
        with pytest.raises(TooManyConnections):
            register.admit(links[4], ONE)
        for link in links:
            register.leave(link)
        assert len(register) == 0 and not register._of_peer

    asyncio.run(main())


def test_clients_without_a_certificate_are_one_peer() -> None:
    async def main() -> None:
        register = Register(Limits(peer=2), 1000)
        links = entered(register, 3)
        register.admit(links[0], None)
        register.admit(links[1], None)
        with pytest.raises(TooManyConnections, match="without a certificate"):
            register.admit(links[2], None)

    asyncio.run(main())


def test_everybody_is_looked_at_and_the_loop_has_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when every single look takes longer than a slice; and nobody is looked at after having left."""
    monkeypatch.setattr(register_module, "SLICE_SECONDS", 0.0)

    async def main() -> None:
        register = Register(Limits(), 0.01)
        links = entered(register, 20)
        for link in links[:10]:
            register.admit(link, ONE)
        await until(lambda: all(link.looks > 1 for link in links[:10]), 20)
        assert not any(link.looks for link in links[10:])
        for link in links:
            register.leave(link)
        await until(lambda: not register._looking, 20)
        looks = [link.looks for link in links]
        register.enter(links[0])
        register.admit(links[0], ONE)  # it begins to look again
        await until(lambda: links[0].looks > looks[0], 20)
        assert [link.looks for link in links[1:]] == looks[1:]

    asyncio.run(main())


class Busy:
    """A connection that takes some time in each of its turns, and so many of them."""

    def __init__(self, turns: Turns, seconds: float, times: int, peer: AgentID | None = None) -> None:
        self.turns, self.seconds, self.times, self.peer = turns, seconds, times, peer

    def catch_up(self) -> None:
        done.append((turn, self))
        self.times -= 1
        self.turns.spend(self.seconds)
        if self.times:
            self.turns.put_off(self)


turn = 0
done: list[tuple[int, Busy]] = []


def taken(seconds: float, times: int) -> tuple[list[Busy], list[tuple[int, Busy]]]:
    """Three connections that are late, and in which turn of the loop each of them went on."""

    async def main() -> list[Busy]:
        global turn
        turn, turns = 0, Turns()
        done.clear()
        busy = [Busy(turns, seconds, times) for _ in range(3)]
        for connection in busy:
            turns.put_off(connection)
        while len(done) < 3 * times:
            turn += 1
            await asyncio.sleep(0)
        assert turns.left() <= TURN_SECONDS
        await asyncio.sleep(0)
        assert turns.left() == TURN_SECONDS
        return busy

    return asyncio.run(main()), done


def test_all_connections_together_have_one_turn() -> None:
    (one, two, three), order = taken(TURN_SECONDS, 2)
    assert [connection for _, connection in order] == [one, two, three] * 2
    assert len({turn for turn, _ in order}) == 6


def test_what_takes_no_time_does_not_wait() -> None:
    (one, two, three), order = taken(TRIFLE_SECONDS, 2)
    assert [connection for _, connection in order] == [one, two, three] * 2
    assert len({turn for turn, _ in order}) == 2


def test_small_times_add_up() -> None:
    """Many connections that take next to no time each do not make one long turn."""

    async def main() -> None:
        turns = Turns()
        busy = [Busy(turns, TRIFLE_SECONDS / 2, 1) for _ in range(100)]
        for connection in busy:
            turns.put_off(connection)
        done.clear()
        passed = 0
        while len(done) < 100:
            passed += 1
            await asyncio.sleep(0)
        assert passed >= 4 and [connection for _, connection in done] == busy

    asyncio.run(main())


def test_peers_take_turns() -> None:
    """Whoever has many connections does not come before one who has one; nor is any of the many left out."""

    async def main() -> None:
        turns = Turns()
        many = [Busy(turns, TURN_SECONDS, 2, ONE) for _ in range(3)]
        single, stranger = Busy(turns, TURN_SECONDS, 3, TWO), Busy(turns, TURN_SECONDS, 1)
        for connection in (*many, single, stranger):
            turns.put_off(connection)
        done.clear()
        await until(lambda: len(done) == 10)
        a, b, c = many
        assert [connection for _, connection in done] == [a, single, stranger, b, single, c, single, a, b, c]
        assert not turns._late

    asyncio.run(main())


def test_a_look_that_fails_is_the_last_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A panic of a library in Rust is no Exception."""

    class Panic(BaseException):
        pass

    class Defect(Link):
        def check_trust(self) -> None:
            super().check_trust()
            raise Panic

    async def main() -> None:
        told: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(type(context["exception"])))
        register = Register(Limits(), 0.01)
        links = [Link(), Defect(), Link(), Defect()]
        for link in links:
            register.enter(link)
            register.admit(link, ONE)
        await until(lambda: all(link.looks > 2 for link in links))
        assert set(told) == {Panic}
        for link in links:
            register.leave(link)
        await until(lambda: not register._looking)

    asyncio.run(main())


def test_a_connection_that_fails_holds_up_no_other() -> None:
    async def main() -> None:
        seen: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context["exception"]))
        turns, failure = Turns(), ValueError("a defect")

        class Defect:
            peer = None

            def catch_up(self) -> None:
                raise failure

        class Other:
            peer = None

            def catch_up(self) -> None:
                seen.append(self)

        other = Other()
        turns.put_off(Defect())
        turns.put_off(other)
        await until(lambda: len(seen) == 2)
        assert seen == [failure, other]

    asyncio.run(main())
