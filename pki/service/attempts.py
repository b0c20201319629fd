"""How often somebody may have something done, by client address or by certificate.

Failing to name a valid token: tokens have far more bits than anybody could guess; what is limited is the work that a
stranger can have done for free. Renewing: each renewal is a row in the database and an entry in the ledger, for good.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from array import array
from ipaddress import IPv6Address, ip_address

BURST = 20  # failures at once: a script that runs on a few machines behind one address with yesterday's tokens
INTERVAL = 6.0  # seconds until one more is allowed
RENEWALS_BURST = 30  # of one certificate: replicas that share it, each of which tries several times
RENEWALS_INTERVAL = 10.0
AGENT_RENEWALS_BURST = 300  # of one ID, whatever the certificate: a fleet of replicas, after a compromise all at once
AGENT_RENEWALS_INTERVAL = 1.0
BUCKETS = 1 << 16  # half a megabyte, for good: nobody makes it grow by coming from many addresses


class Attempts:
    """Counts, and says who has had too many. Safe for threads.

    A leaky bucket for each name: so many at once, then one every so many seconds. Names share a fixed number of
    buckets, by a keyed hash, so that nobody can choose whose bucket to fill. An address is counted by its `network`.
    """

    def __init__(self, burst: int | None = None, interval: float | None = None) -> None:
        """Args: burst: at once, `BURST` when left out. interval: seconds until one more, `INTERVAL` when left out."""
        self._burst = BURST if burst is None else burst
        self._interval = INTERVAL if interval is None else interval
        self._key = secrets.token_bytes(16)
        self._full_until = array("d", bytes(8 * BUCKETS))  # when the bucket will have leaked empty
        self._lock = threading.Lock()

    def wait(self, name: str, now: float) -> float:
        """Seconds until this one may try again; 0 where it may now.

        Args:
            name: of whatever is counted.
            now: seconds, by a clock that does not go back.
        """
        return max(0.0, self._full_until[self._bucket(name)] - now - (self._burst - 1) * self._interval)

    def count(self, name: str, now: float) -> None:
        """Count one."""
        bucket = self._bucket(name)
        with self._lock:
            # Bounded, so that what many requests at once have added does not lock anybody out for hours.
            full = max(self._full_until[bucket], now) + self._interval
            self._full_until[bucket] = min(full, now + self._burst * self._interval)

    def _bucket(self, name: str) -> int:
        digest = hashlib.blake2b(name.encode(), digest_size=8, key=self._key).digest()
        return int.from_bytes(digest) % BUCKETS


def network(address: str) -> str:
    """What counts as one address: an IPv4 address, the /64 that an IPv6 host owns, and anything else as it is."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, IPv6Address):
        return str(ip.ipv4_mapped) if ip.ipv4_mapped else str(int(ip) >> 64)
    return str(ip)
