"""Which addresses a client connects to when others say where."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trust.errors import AddressRefused, ConfigurationError
from trust.tls import reach
from trust.tls.reach import MAX_TRIED, Reach, connected, first, is_public

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
ADDRESSES = st.ip_addresses() | st.ip_addresses(v=6, network="2000::/3") | st.ip_addresses(v=6, network=NAT64)


@given(ADDRESSES)
def test_what_is_public_is_what_python_takes_for_global(address: Any) -> None:
    """A second opinion, for the direction that matters: nothing is public to us alone."""
    if is_public(address):
        if address in NAT64:
            address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        assert address.is_global
        assert not (address.is_multicast or address.is_private or address.is_loopback or address.is_reserved)


@pytest.mark.parametrize("network", reach._SPECIAL, ids=str)
def test_special_addresses_to_their_ends(network: Any) -> None:
    assert not is_public(network[0])
    assert not is_public(network[-1])


@pytest.mark.parametrize(
    "text",
    ["1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.0", "172.32.0.1", "2606:4700::1111", "64:ff9b::808:808"],
)
def test_public_addresses(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))
    assert asyncio.run(_addresses(Reach(), text)) == [str(ipaddress.ip_address(text))]


async def _addresses(there: Reach, host: str, port: int = 443) -> list[str]:
    with contextlib.closing(there):
        return await there.addresses(host, port)


def test_what_is_allowed_besides() -> None:
    networks, ports = ["10.8.0.0/16", "fd00::/8", "127.0.0.1"], [443, 8443]
    for host in ("10.8.255.255", "fd12::1", "127.0.0.1"):
        assert asyncio.run(_addresses(Reach(networks, ports), host, 8443)) == [host]
    for host in ("10.9.0.1", "127.0.0.2", "::ffff:10.8.0.1"):
        with pytest.raises(AddressRefused):
            asyncio.run(_addresses(Reach(networks, ports), host))
    with pytest.raises(AddressRefused, match=r"got 80 of 10\.8\.0\.1, expected 443 or 8443"):
        asyncio.run(_addresses(Reach(networks, ports), "10.8.0.1", 80))


@pytest.mark.parametrize(
    "arguments",
    [
        {"networks": "10.8.0.0/16"},
        {"networks": ["10.8.0.1/16"]},
        {"networks": ["inside"]},
        {"networks": ["0.0.0.0/0"]},
        {"networks": ["::/0"]},
        {"ports": []},
        {"ports": [0]},
        {"ports": [65536]},
        {"ports": ["443"]},
        {"ports": [True]},
    ],
    ids=str,
)
def test_what_cannot_be_meant(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Reach(**arguments)


def test_names_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AddressRefused, match="expected the name of a host"):
        asyncio.run(_addresses(Reach(), "x" * 64 + ".example"))
    monkeypatch.setattr(socket, "getaddrinfo", _nobody)
    with pytest.raises(OSError, match="no such name"):
        asyncio.run(_addresses(Reach(), "nowhere.example"))


def _nobody(*_: Any, **__: Any) -> Any:
    raise socket.gaierror(-2, "no such name")


def test_a_name_with_many_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are judged, few are tried, each once."""
    many = [f"1.0.0.{last}" for last in range(200)]
    monkeypatch.setattr(reach, "_resolve", lambda host, port: many)
    assert asyncio.run(_addresses(Reach(), "many.example")) == many[:MAX_TRIED]
    many.append("10.0.0.1")
    with pytest.raises(AddressRefused, match=r"got many\.example at 10\.0\.0\.1"):
        asyncio.run(_addresses(Reach(), "many.example"))


def test_names_that_never_resolve_hold_up_no_other_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()

    def resolve(host: str, port: int) -> list[str]:
        if host.endswith("dark.example"):
            answer.wait(60)
        return ["1.1.1.1"]

    async def main() -> None:
        there = Reach()
        pool = there._pool("x.dark.example")
        dark = [f"x{n}.DARK.example." if n % 2 else f"{n}.x.dark.example" for n in range(100)]
        waiting = [asyncio.ensure_future(there.addresses(host.lower().rstrip("."), 443)) for host in dark]
        assert {there._pool(host) for host in dark} == {pool}
        others = [f"hooks.good{n}.example" for n in range(50)]
        free = [host for host in others if there._pool(host) is not pool]
        assert len(free) > 25
        async with asyncio.timeout(20):
            assert await asyncio.gather(*(there.addresses(host, 443) for host in free)) == [["1.1.1.1"]] * len(free)
        assert not any(task.done() for task in waiting)
        answer.set()
        assert await asyncio.gather(*waiting) == [["1.1.1.1"]] * 100
        there.close()

    monkeypatch.setattr(reach, "_resolve", resolve)
    asyncio.run(main())


def test_a_resolver_that_does_not_answer_leaves_the_loop_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(reach, "_resolve", lambda host, port: time.sleep(1))
        there = Reach()
        waiting = [asyncio.ensure_future(there.addresses("slow.example", 443)) for _ in range(100)]
        await asyncio.sleep(0)
        assert await asyncio.to_thread(lambda: 7) == 7  # the loop's own threads are free
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        there.close()

    asyncio.run(main())


def test_the_next_address_when_one_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "ADDRESS_SECONDS", 0.05)
    tried: list[str] = []

    async def connect(address: str) -> str:
        tried.append(address)
        if address == "silent":
            await asyncio.sleep(60)
        if address == "closed":
            raise ConnectionRefusedError(address)
        return address

    assert asyncio.run(first(["silent", "closed", "open", "other"], connect)) == "open"
    assert tried == ["silent", "closed", "open"]
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(first(["silent", "closed"], connect))


def test_a_connection_that_fails_leaves_no_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with asyncio.run(connected("127.0.0.1", port)) as plain:
            assert plain.getpeername() == ("127.0.0.1", port)
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(connected("127.0.0.1", port))
