"""The service over PostgreSQL, whose server goes away and comes back."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import make_url

from pki import CertificateAuthority
from pki.store import database
from pki.store import postgresql as driver
from tests.pki.service.parts import certificates, new_ca, ready, started, until
from tests.pki.store import parts


class Wire:
    """What lies between the CA and its database, to be cut: connections break, and new ones are refused."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._open: list[socket.socket] = []
        self.port = 0
        self._flowing = threading.Event()
        self._flowing.set()
        self.join()

    def freeze(self) -> None:
        """Nothing arrives any more, and nothing is refused: as from a machine that hangs."""
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def join(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def cut(self) -> None:
        self.thaw()
        for one in (self._listening, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = listening.accept()[0]
                far = socket.create_connection(self._target)
                self._open += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def wire() -> Iterator[tuple[Wire, str]]:
    with parts.postgresql() as url:
        there = make_url(url)
        wire = Wire(there.host or "127.0.0.1", there.port or 5432)
        try:
            yield wire, there.set(host="127.0.0.1", port=wire.port).render_as_string(hide_password=False)
        finally:
            wire.cut()


def ca_at(url: str) -> CertificateAuthority:
    return new_ca(url)  # type: ignore[arg-type]


def test_a_database_server_that_goes_away_and_comes_back(wire: tuple[Wire, str]) -> None:
    between, url = wire
    with ca_at(url) as ca, started(ca) as running:
        certificates(running.enrol(running.token()))
        token = running.token()
        between.cut()
        running.serving.upkeep.round()
        assert ready(running)["store"] is False
        assert running.get("/health").status_code == 200
        refused = running.enrol(token)
        assert refused.status_code == 503
        assert refused.json().keys() == {"error", "request"}
        assert running.trail.of("enrol")[-1]["check"].startswith("pki.store")
        between.join()
        until(lambda: all(ready(running).values()))
        certificates(running.enrol(token))  # the token was not burnt by what failed


def test_a_database_server_that_hangs(wire: tuple[Wire, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks waits for a bounded time, and is told to come again."""
    monkeypatch.setattr(database, "BUSY_TIMEOUT", timedelta(seconds=2))  # to connect, and for its turn
    between, url = wire
    with ca_at(url) as ca, started(ca) as running:
        certificates(running.enrol(running.token()))
        token = running.token()
        monkeypatch.setattr(driver, "ANSWER_TIMEOUT", timedelta(seconds=1))
        between.freeze()
        refused = running.enrol(token)  # within the client's own 60 s
        assert refused.status_code == 503
        assert refused.headers["retry-after"].isdigit()
        assert refused.json().keys() == {"error", "request"}
        assert running.trail.of("enrol")[-1]["check"].startswith("pki.store")
        assert running.get("/health").status_code == 200
        between.thaw()
        until(lambda: all(ready(running).values()))
        certificates(running.enrol(token))
