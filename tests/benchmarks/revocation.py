"""A peer that is known already, checked again against revocation lists of growing length; and a first indexing."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from tests.benchmarks.harness import Row, medians
from tests.forge import NOW, Forge
from trust.bundles import RevocationLists
from trust.peers import PeerVerifier

LENGTHS = (0, 1_000, 100_000)


def rows() -> list[Row]:
    forge = Forge()
    chain = forge.leaf("/planner").chain_der
    root = forge.crl(forge.root, forge.root_key, [])
    checks: list[Callable[[], object]] = []
    indexing = 0.0
    for length in LENGTHS:
        verifier = PeerVerifier(forge.bundles, RevocationLists.of([_crl(forge, length), root]))
        start = time.process_time()
        verifier.verify(chain, now=NOW, usage="client")  # reads the lists, and verifies their signatures
        indexing = time.process_time() - start
        checks.append(lambda verifier=verifier: verifier.verify(chain, now=NOW, usage="client"))  # type: ignore[misc]
    empty, *others = medians(*checks)
    known = [Row(name="known peer, 0 revoked", ours=empty, peer_name="the goal", peer=5e-6, goal="<= 1x")]
    known += [
        Row(name=f"known peer, {length:,} revoked", ours=seconds, peer_name="0 revoked", peer=empty, goal="~ 1x")
        for length, seconds in zip(LENGTHS[1:], others, strict=True)
    ]
    first = Row(
        name=f"first peer after a CRL of {LENGTHS[-1]:,}",
        ours=indexing,
        peer_name="known peer",
        peer=others[-1],
        goal="-",
    )
    return [*known, first]


def _crl(forge: Forge, length: int) -> x509.CertificateRevocationList:
    """A CRL of the intermediate. Its entries are written here: `cryptography`'s builder takes quadratic time."""
    short = forge.crl(forge.intermediate, forge.key, [])
    if not length:
        return short
    when = _time(NOW - timedelta(hours=1))
    entries = b"".join(
        _der(0x30, _der(0x02, (0x40 << 120 | number).to_bytes(16)) + when) for number in range(1, length + 1)
    )
    # TBSCertList: version, signature, issuer, thisUpdate, nextUpdate, revokedCertificates, extensions.
    fields = _fields(_content(short.tbs_certlist_bytes))
    body = _der(0x30, b"".join((*fields[:5], _der(0x30, entries), *fields[5:])))
    signature = forge.key.sign(body, ec.ECDSA(hashes.SHA256()))
    crl = x509.load_der_x509_crl(_der(0x30, body + fields[1] + _der(0x03, b"\0" + signature)))
    assert len(crl) == length
    assert crl.public_bytes(Encoding.DER)
    return crl


def _time(moment: datetime) -> bytes:
    return _der(0x17, f"{moment:%y%m%d%H%M%S}Z".encode())


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(length))) + length + content


def _fields(content: bytes) -> list[bytes]:
    fields = []
    while content:
        end = len(content) - len(_after(content))
        fields.append(content[:end])
        content = content[end:]
    return fields


def _content(element: bytes) -> bytes:
    start, end = _extent(element)
    return element[start:end]


def _after(data: bytes) -> bytes:
    return data[_extent(data)[1] :]


def _extent(data: bytes) -> tuple[int, int]:
    """Where the content of the first element begins and ends."""
    if data[1] < 0x80:
        return 2, 2 + data[1]
    start = 2 + (data[1] & 0x7F)
    return start, start + int.from_bytes(data[2:start])
