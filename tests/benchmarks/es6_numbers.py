"""All hundred million published numbers (RFC 8785 appendix B): their hashes, and the cost of writing one.

Half an hour of work, so it only runs where it is named: `python -m tests.benchmarks es6_numbers`.
"""

from __future__ import annotations

import json
import time

import rfc8785

from tests.benchmarks.harness import Row
from tests.es6_numbers import PUBLISHED, hashes
from trust.signing.canonical import canonicalize

LINES = max(PUBLISHED)
OF_THE_PEER = 100_000


def rows() -> list[Row]:
    start = time.process_time()
    for lines, digest in hashes(canonicalize, LINES):
        assert digest == PUBLISHED[lines], f"the first {lines} numbers are written differently"
    ours = (time.process_time() - start) / LINES
    start = time.process_time()
    for lines, digest in hashes(lambda text: bytes(rfc8785.dumps(json.loads(text))), OF_THE_PEER):
        assert digest == PUBLISHED[lines]
    peer = (time.process_time() - start) / OF_THE_PEER
    return [Row(name="make, write and hash a number", ours=ours, peer_name="rfc8785", peer=peer, goal="")]
