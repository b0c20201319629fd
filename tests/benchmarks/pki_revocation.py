"""Revocation of a large CA: a million certificates in 16 shards, every tenth revoked, beside one of a thousand.

The rows are written straight into the store's table, and hold no certificates: to sign a million of them would show
how fast the machine signs. What reads them, and what is signed here, is all real.
"""

from __future__ import annotations

import random
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from pki.list_names import crl_file_name
from pki.ocsp import IssuerHash
from pki.store import DATABASE_FILE
from tests.benchmarks.harness import Row, medians
from tests.pki.conftest import DOMAIN, NOW
from tests.pki.small_ca import DAY, SmallCA
from trust.bundles import TrustBundle, TrustBundles
from trust.peers import PeerVerifier

LARGE, SMALL = 1_000_000, 1_000
SHARD = 1 << 16
REVOKED_OF = 10
ASKED = 1_000  # different certificates, so that nothing is found where it was found just now

T = TypeVar("T")

_INSERT = """INSERT INTO certificates (position, serial, kind, issuer, shard, spiffe_id, thumbprint, not_before,
not_after, der, revoked_at, reason, revoked_position) VALUES (?, ?, 'agent', ?, ?, ?, ?, ?, ?, x'', ?, ?, ?)"""


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        large, small = (_Filled(Path(folder) / str(size), size) for size in (LARGE, SMALL))
        build, again = large.list_seconds(shard=7)
        ours = medians(large.status, small.status, large.respond, small.respond)
        (known, first), (known_small, _) = large.verifier(shard=7), small.verifier(shard=0)
        peers = medians(known, known_small)
        names = f"{LARGE:,} certificates, {LARGE // REVOKED_OF:,} revoked"
        result = [
            Row(name=f"{names}: list of a shard", ours=build, peer_name="the goal", peer=1.0, goal="<= 1x"),
            Row(name="the same list, unchanged", ours=again, peer_name="made anew", peer=build, goal="< 1x"),
            Row(name=f"{names}: status", ours=ours[0], peer_name=f"of {SMALL:,}", peer=ours[1], goal="~ 1x"),
            Row(name=f"{names}: OCSP answer", ours=ours[2], peer_name=f"of {SMALL:,}", peer=ours[3], goal="~ 1x"),
            Row(name=f"{names}: known peer", ours=peers[0], peer_name=f"of {SMALL:,}", peer=peers[1], goal="~ 1x"),
            Row(name="first peer after all lists", ours=first, peer_name="known peer", peer=peers[0], goal="-"),
        ]
        large.ca.store.close()
        small.ca.store.close()
    return result


class _Filled:
    """A CA with that many rows."""

    def __init__(self, folder: Path, size: int) -> None:
        self.ca = SmallCA.make(folder)
        self._random = random.Random(7)
        serials: list[int] = []
        with closing(sqlite3.connect(folder / DATABASE_FILE)) as connection, connection:
            connection.executemany(_INSERT, self._rows(size, serials))
        connection.close()
        self.revocations = self.ca.revocations()
        asked = self._random.choices(serials, k=ASKED)
        self._serials = _endless(asked)
        self._requests = _endless([self._request(serial) for serial in asked])
        self.revocations.respond(next(self._requests), NOW)  # makes the responder's certificate

    def _rows(self, size: int, serials: list[int]) -> Iterator[tuple[object, ...]]:
        issuer, at = self.ca.intermediate.key_id, int(NOW.timestamp())
        for number in range(size):
            serial = self._random.getrandbits(158) | 1 << 157
            serials.append(serial)
            gone = number % REVOKED_OF == 0
            yield (
                number + 1000,
                f"{serial:040x}",
                issuer,
                number // SHARD,
                f"spiffe://{DOMAIN}/agents/{number}",
                f"{number:043}",
                at,
                at + 7 * 86_400,
                at if gone else None,
                "keyCompromise" if gone else None,
                size + number if gone else None,
            )

    def _request(self, serial: int) -> bytes:
        issuer = IssuerHash.all_of(self.ca.intermediate.certificate)[1]
        builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(issuer.name, issuer.key, serial, hashes.SHA256())
        return builder.build().public_bytes(Encoding.DER)

    def list_seconds(self, shard: int) -> tuple[float, float]:
        """A list made anew, and the same one again."""
        name = crl_file_name(self.ca.intermediate.key_id, shard)
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            der = self.revocations.named(name, NOW)
            seconds.append(time.perf_counter() - start)
        crl = x509.load_der_x509_crl(der)
        assert abs(len(crl) - SHARD / REVOKED_OF) <= 1
        return seconds[0], seconds[1]

    def status(self) -> None:
        assert self.ca.store.status(next(self._serials)).known

    def respond(self) -> None:
        self.revocations.respond(next(self._requests), NOW)

    def verifier(self, shard: int) -> tuple[Callable[[], object], float]:
        """The check of a peer of that shard against all lists, and the CPU seconds of the first such check."""
        bundle = TrustBundle(trust_domain=DOMAIN, roots=(self.ca.root.certificate,))
        lists = self.revocations.lists(NOW)
        leaf = self.ca.intermediate.agent(lifetime=DAY, shard=shard)
        chain = [c.public_bytes(Encoding.DER) for c in (leaf, self.ca.intermediate.certificate)]
        start = time.process_time()
        verifier = PeerVerifier(TrustBundles.of(bundle), lists)
        verifier.verify(chain, now=NOW, usage="client")
        return lambda: verifier.verify(chain, now=NOW, usage="client"), time.process_time() - start


def _endless(values: list[T]) -> Iterator[T]:
    while True:
        yield from values
