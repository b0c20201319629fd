"""Connections: how many, and of whom; over real sockets."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from pki import CertificateAuthority
from pki.service import door, listeners
from pki.service.door import Door, raise_file_limit
from pki.service.seldom import SparingAudit
from tests.pki.service.parts import Running, Trail, started
from trust.audit import Decision
from trust.seldom import LINES
from trust.tls import Limits, uvicorn_config

HELD = 1500


@pytest.fixture
def files() -> Iterator[None]:
    """Enough for both ends of all connections."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    raise_file_limit()
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 3 * HELD:
        pytest.skip("this system allows too few open files")
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def idle(stack: ExitStack, port: int, count: int) -> None:
    for _ in range(count):
        one = stack.enter_context(socket.socket())
        one.setblocking(False)
        one.connect_ex(("127.0.0.1", port))


@pytest.mark.skipif(sys.platform != "linux", reason="needs a second loopback address")
def test_idle_connections_of_one_address_keep_nobody_else_out(
    files: None, service: Running, caplog: pytest.LogCaptureFixture
) -> None:
    ports = [int(url.rpartition(":")[2]) for url in (service.url, service.http_url)]
    with ExitStack() as stack, caplog.at_level(logging.WARNING, "a2a_pki.service"):
        for port in ports:
            idle(stack, port, HELD // 2)
        transport = httpx.HTTPTransport(local_address="127.0.0.2", verify=False)
        with httpx.Client(transport=transport, trust_env=False, timeout=30) as honest:
            assert honest.get(service.http_url + "/health").status_code == 200
            assert honest.get(service.url + "/health").status_code == 200
    told = [record for record in caplog.records if "was refused" in record.getMessage()]
    assert len(told) == 1, "and not once for each of them"
    assert "127.0.0.1" in told[0].getMessage()


def test_clients_without_a_certificate_are_not_one_agent(
    own_ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent's share of a server (here 2, so that few are enough) keeps nobody out of the CA who is to enrol."""
    monkeypatch.setitem(uvicorn_config.__kwdefaults__, "limits", Limits(peer=2))
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # strangers, who do not ask who answers
    with started(own_ca) as running, ExitStack() as stack:
        port = int(running.url.rpartition(":")[2])
        for _ in range(4):  # each of them stays, as those do who enrol
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            client = stack.enter_context(context.wrap_socket(one))
            client.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("soft", "connections", "share"),
    [(1024, 768, 96), (300, 64, 64), (65_536, 4000, 500), (resource.RLIM_INFINITY, 4000, 500)],
)
def test_there_are_fewer_connections_than_files(
    soft: int, connections: int, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    made = Door.for_files(listeners.MAX_CONNECTIONS)
    assert (made.connections, made.share) == (connections, share)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1024, 4096), (4096, 4096)),
        ((1024, resource.RLIM_INFINITY), (door.WANTED_FILES, resource.RLIM_INFINITY)),
        ((4096, 4096), None),
        ((1_048_576, 1_048_576), None),
    ],
)
def test_the_limit_of_open_files_is_raised(
    before: tuple[int, int], after: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: before)
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: set_to.append(limits))
    raise_file_limit()
    assert set_to == ([] if after is None else [after])


def test_where_there_is_no_such_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "resource", None)
    raise_file_limit()
    assert Door.for_files(10).connections == 10


class _Transport(asyncio.Transport):
    def __init__(self, address: str) -> None:
        super().__init__({"peername": (address, 1)})
        self.aborted = False
        self.protocol: asyncio.BaseProtocol | None = None

    def abort(self) -> None:
        self.aborted = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol


def test_who_hangs_up_makes_room() -> None:
    """A network of IPv6 is one address; all addresses together have a limit too."""
    guarded = Door(66).guarding(type("Application", (asyncio.Protocol,), {}))

    def come(address: str) -> tuple[asyncio.Protocol, bool]:
        protocol, transport = guarded(), _Transport(address)
        protocol.connection_made(transport)
        return protocol, not transport.aborted

    first = [come(f"2001:db8::{number:x}") for number in range(65)]
    assert [admitted for _, admitted in first] == [True] * 64 + [False]
    assert come("2001:db8:0:1::1")[1]
    other, admitted = come("192.0.2.1")
    assert admitted
    assert not come("192.0.2.2")[1], "all of them are taken"
    other.connection_lost(None)
    assert not come("2001:db8::ffff")[1]
    assert come("192.0.2.2")[1]


def test_the_trail_of_what_is_to_be_had_without_limit_is_bounded() -> None:
    trail = Trail()
    sparing = SparingAudit(trail)
    agent, stranger, every = "spiffe://fleet.example/a", "192.0.2.1:443", LINES + 10
    expected: dict[tuple[str, Decision, str], int] = {
        ("handshake", "deny", stranger): every,
        ("ocsp", "allow", stranger): every,
        ("enrol", "allow", stranger): every,
        **{(event, "deny", stranger): LINES for event in ("ocsp", "enrol", "renew", "renewal-info")},
        **{(event, "deny", agent): every for event in ("enrol", "renew", "renewal-info")},
    }
    for event, decision, peer in expected:
        for _ in range(every):
            sparing.record(event=event, decision=decision, check="x", peer=peer)
    assert Counter((r["event"], r["decision"], r["peer"]) for r in trail.records) == expected
    sparing.record(event="enrol", decision="deny", check="y", peer=stranger)
    assert trail.records[-1]["check"] == "y", "a flood of one kind hides no other"
