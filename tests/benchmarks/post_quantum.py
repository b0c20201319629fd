"""What post-quantum costs: one mutual handshake, both ends in this process, in CPU time and in bytes on the wire."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.harness import Row, medians
from tests.forge import Forge
from trust.authorize import members_of
from trust.private_keys import generate
from trust.tls import client_context, server_context
from trust.tls.connection import _lib
from trust.tls.engine import TrustContext

Ends = tuple[TrustContext, TrustContext]

CLASSICAL = "P-256"  # for keys and, in the first row, for the key exchange with X25519


def rows() -> list[Row]:
    elliptic = Forge()
    kinds = {"X25519 and P-256": _ends(elliptic, CLASSICAL, hybrid=False), "ML-KEM": _ends(elliptic, CLASSICAL)}
    for kind in ("ML-DSA-44", "ML-DSA-65", "ML-DSA-87"):
        kinds[f"ML-KEM, {kind} leaves"] = _ends(elliptic, kind)
        kinds[f"ML-KEM, {kind} leaves and CAs"] = _ends(Forge(make_key=lambda kind=kind: generate(kind)), kind)
    (peer, *names), sizes = kinds, [_handshake(*ends) for ends in kinds.values()]
    first, *others = medians(*(lambda ends=ends: _handshake(*ends) for ends in kinds.values()))  # type: ignore[misc]
    times = [
        Row(name=f"handshake: {name}", ours=own, peer_name=peer, peer=first, goal="-")
        for name, own in zip(names, others, strict=True)
    ]
    return times + [
        Row(name=f"handshake: {name}", ours=size, peer_name=peer, peer=sizes[0], goal="-", unit="bytes")
        for name, size in zip(names, sizes[1:], strict=True)
    ]


def _ends(forge: Forge, kind: str, *, hybrid: bool = True) -> Ends:
    own: list[Any] = [forge.leaf(name, key=generate(kind)) for name in ("/client", "/server")]
    fleet = members_of(forge.domain)
    client, server = client_context(own[0], forge.bundles, fleet), server_context(own[1], forge.bundles, fleet)
    if not hybrid:
        assert _lib.SSL_CTX_set1_curves_list(client._snapshot.openssl._context, b"X25519")
    return client, server


def _handshake(client: TrustContext, server: TrustContext) -> int:
    """Both directions, to the first byte that the application could send; how many bytes that took."""
    here, there = client.connection("agent.example"), server.connection()
    size = 0
    while not (here.established and there.established):
        for end, other in ((here, there), (there, here)):
            end.handshake()
            data = end.output()
            other.receive(data)
            size += len(data)
    return size
