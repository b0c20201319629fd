"""Where a client may connect to when others say where: the defence against server-side request forgery (CWE-918).

A webhook's URL comes from whoever wants to be notified. It may name this machine, a neighbour behind the firewall or a
cloud's metadata service; its name may lead there, or may do so a moment after it was looked at (DNS rebinding). So what
is judged is the address that is then connected to: a name is resolved once, every address that it has must be allowed,
and the connection goes to one of these.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from trust.errors import AddressRefused, ConfigurationError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_TRIED = 4  # addresses of one name, one after the other
ADDRESS_SECONDS = 3.0  # for each but the last of them
POOLS = 32  # of threads that wait for resolvers, with nothing else to do; they start when they are needed
THREADS = 2  # of each; the names of one domain share a pool, so that a resolver that never answers holds up few others

# IANA's registries of special-purpose addresses (RFC 6890). Not by `ipaddress.is_global`, for what that says differs
# between releases of Python.
_SPECIAL = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8",  # this host
            "10.0.0.0/8",  # private, RFC 1918
            "100.64.0.0/10",  # behind a carrier's NAT, RFC 6598; a cloud's metadata service, too
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # of Azure's own services: a public address that leads elsewhere for each guest
            "169.254.0.0/16",  # link-local: the metadata services
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # relays of 6to4, RFC 7526
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
            "2001::/23",  # protocol assignments; Teredo, which has an IPv4 address inside
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4, which has an IPv4 address inside
            "3fff::/20",  # documentation
        ),
    )
)
# What is outside of it is loopback, unspecified, unique local, link-local, multicast or IPv4 in another notation
# (::ffff:0:0/96 and its kin), but for NAT64 (RFC 6052): there the IPv4 address inside is what is reached.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

# What the C library takes for an IPv4 address although it is not written as one: 0x7f.1, 2130706433, 0177.0.0.1, 127.1
# (inet_aton; the test is that of the URL standard, whether a host ends in a number).
_NUMBER_AT_THE_END = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9A-Fa-f]*)\.?", re.DOTALL)

T = TypeVar("T")


class Reach:
    """The addresses and ports that URLs of others may lead to.

    NOT covered: which address within a network translates to which behind it. Of NAT64 the well-known prefix is seen
    through; a prefix of the network's own looks like any public address, and is for the firewall. Nor names that never
    resolve: those of one domain (the last two labels) hold up each other and what shares their pool, one domain in 32;
    whoever has many such domains can hold up every name that is looked up here. Origins that are known are not.

    Args:
        networks: of addresses that are not public and are allowed, such as "10.8.0.0/16".
        ports: at which servers may be.

    Raises:
        ConfigurationError: a network is none, or all there is; a port is none.
    """

    def __init__(self, networks: Collection[str] = (), ports: Collection[int] = (443,)) -> None:
        if isinstance(networks, str):
            raise ConfigurationError("networks", got="a str", expected="a collection of networks")
        self._networks = tuple(map(_network, networks))
        self._ports = frozenset(ports)
        if not self._ports or not all(port.__class__ is int and 0 < port < 65536 for port in self._ports):
            raise ConfigurationError("ports", got=sorted(map(str, ports)), expected="ports from 1 to 65535")
        self._pools = [ThreadPoolExecutor(THREADS, thread_name_prefix="a2a-trust-resolve") for _ in range(POOLS)]

    async def addresses(self, host: str, port: int) -> list[str]:
        """What to connect to, and nothing else, in the resolver's order; at most `MAX_TRIED`.

        Args:
            host: a name, or an address as `httpx.URL` has it.

        Raises:
            AddressRefused: the port is not one of ours; the host is an address in an odd spelling; or an address that
                it has, be it one of many, is not allowed.
            OSError: the name cannot be resolved.
        """
        if port not in self._ports:
            raise AddressRefused(
                "port of a URL that others gave",
                got=f"{port} of {host}",
                expected=" or ".join(map(str, sorted(self._ports))),
            )
        try:
            ipaddress.ip_address(host)
        except ValueError:
            if _NUMBER_AT_THE_END.fullmatch(host):
                raise AddressRefused("address in an odd spelling", got=host, expected="the usual one") from None
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._pool(host), _resolve, host, port)
        except ValueError:  # UnicodeError is one
            raise AddressRefused("URL that others gave", got=host, expected="the name of a host") from None
        for text in found:
            if not self._allows(text):
                raise AddressRefused(
                    "URL that others gave leads inside",
                    got=f"{host} at {text}",
                    expected="public addresses only",
                    do="allow the network, or the origin, if it is meant",
                )
        return found[:MAX_TRIED]

    def close(self) -> None:
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)

    def _pool(self, host: str) -> ThreadPoolExecutor:
        """By the domain. Hashes differ in each process: nobody can choose a name that holds up a certain other."""
        domain = host.lower().rstrip(".").split(".")[-2:]
        return self._pools[hash(tuple(domain)) % POOLS]

    def _allows(self, text: str) -> bool:
        address = ipaddress.ip_address(text)
        return is_public(address) or any(address in network for network in self._networks)


def is_public(address: Address) -> bool:
    """Whether an address is one host's of the internet, the same from everywhere."""
    if address.version == 6 and address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if address.version == 6 and address not in _GLOBAL_UNICAST:
        return False
    return not any(address in network for network in _SPECIAL)


async def first(addresses: list[str], connect: Callable[[str], Awaitable[T]]) -> T:
    """Connect to the first address that answers; raises what `connect` does for the last."""
    for address in addresses[:-1]:
        try:
            async with asyncio.timeout(ADDRESS_SECONDS):
                return await connect(address)
        except Exception:  # noqa: S112 - whatever is wrong with it, the next may be sound; the last one tells
            continue
    return await connect(addresses[-1])


async def connected(address: str, port: int) -> socket.socket:
    """A socket that is connected to an address, never to a name."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    plain = socket.socket(family, socket.SOCK_STREAM)
    try:
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, (address, port))
    except BaseException:  # a cancelled call, too
        plain.close()
        raise
    return plain


def _resolve(host: str, port: int) -> list[str]:
    found = [str(name[0]) for *_, name in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    return list(dict.fromkeys(found))


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        network = None
    if network is None or network.prefixlen == 0:
        raise ConfigurationError("network", got=text, expected='one such as "10.8.0.0/16"; not everything')
    return network
