"""How often somebody may fail to name a valid token, by client address.

Tokens have far more bits than anybody could guess; what is limited is the work that a stranger can have done for free.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from array import array
from ipaddress import IPv6Address, ip_address

BURST = 20  # failures at once: a script that runs on a few machines behind one address with yesterday's tokens
INTERVAL = 6.0  # seconds until one more is allowed
BUCKETS = 1 << 16  # half a megabyte, for good: nobody makes it grow by coming from many addresses


class Attempts:
    """Counts failures, and says who has had too many. Safe for threads.

    A leaky bucket for each address: `BURST` failures at once, then one every `INTERVAL` seconds. Addresses share a
    fixed number of buckets, by a keyed hash, so that nobody can choose whose bucket to fill. An IPv6 host owns a /64,
    which therefore counts as one address.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(16)
        self._full_until = array("d", bytes(8 * BUCKETS))  # when the bucket will have leaked empty
        self._lock = threading.Lock()

    def wait(self, address: str, now: float) -> float:
        """Seconds until this address may try again; 0 where it may now.

        Args:
            address: of the client, as the socket has it.
            now: seconds, by a clock that does not go back.
        """
        return max(0.0, self._full_until[self._bucket(address)] - now - (BURST - 1) * INTERVAL)

    def failed(self, address: str, now: float) -> None:
        """Count one failure."""
        bucket = self._bucket(address)
        with self._lock:
            # Bounded, so that what many requests at once have added does not lock an address out for hours.
            full = max(self._full_until[bucket], now) + INTERVAL
            self._full_until[bucket] = min(full, now + BURST * INTERVAL)

    def _bucket(self, address: str) -> int:
        digest = hashlib.blake2b(_network(address).encode(), digest_size=8, key=self._key).digest()
        return int.from_bytes(digest) % BUCKETS


def _network(address: str) -> str:
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, IPv6Address):
        return str(ip.ipv4_mapped) if ip.ipv4_mapped else str(int(ip) >> 64)
    return str(ip)
