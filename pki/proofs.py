"""Proofs about the ledger for those who have a tree head and not the ledger. RFC 9162 section 2.1, pure.

A root hash is good for as much as the signed head (`pki.ledger.verify_head`) that it came from. So whoever got what
`a2a-pki ledger prove` printed, and knows the CA's certificates, verifies it in two steps:

    shown = json.loads(printed)
    head = verify_head(shown["signed_head"], key)  # the CA's, named by `pki.ledger.head_signer`
    path = [bytes.fromhex(node) for node in shown["audit_path"]]
    leaf = leaf_hash(shown["entry"].encode())
    verify_inclusion(leaf, shown["index"], size=head.size, root=head.root, proof=path)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pki.errors import LedgerDamaged
from pki.ledger import HASH_BYTES, Frontier, claimed_head, leaf_hash, node_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class Inclusion:
    """An entry of the ledger, and what shows that a signed head commits to it."""

    entry: bytes  # the text that was hashed (`pki.ledger.Entry`)
    index: int
    size: int  # of the tree
    root: bytes
    path: tuple[bytes, ...]
    signed_head: str  # JWS


def prove(entry: bytes, leaves: Sequence[bytes], signed_head: str) -> Inclusion:
    """Show that an entry is under a head.

    Not checked: the head's signature; it is of the one who asks.

    Args:
        leaves: the hashes of all leaves, as they are stored; what came after the head is left out.

    Raises:
        LedgerDamaged: the entry is not among them, or they are not what the head commits to.
    """
    head, leaf = claimed_head(signed_head), leaf_hash(entry)
    under = leaves[: head.size]
    if leaf not in under:
        raise LedgerDamaged("ledger lacks an entry", expected=entry.decode(), do="run `a2a-pki ledger verify`")
    index = under.index(leaf)
    path = inclusion_proof(under, index)
    verify_inclusion(leaf, index, size=head.size, root=head.root, proof=path)
    return Inclusion(
        entry=entry, index=index, size=head.size, root=head.root, path=tuple(path), signed_head=signed_head
    )


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The hashes that lead from the leaf at `index` to the root. RFC 9162 section 2.1.3.1.

    Args:
        leaves: the hashes of all leaves of the tree.

    Raises:
        LedgerDamaged: there is no such leaf.
    """
    if not 0 <= index < len(leaves):
        raise LedgerDamaged("no such entry", got=f"position {index}", expected=f"less than {len(leaves)}")
    proof: list[bytes] = []
    start, end = 0, len(leaves)
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            proof.append(_root(leaves, middle, end))
            end = middle
        else:
            proof.append(_root(leaves, start, middle))
            start = middle
    return proof[::-1]


def verify_inclusion(leaf: bytes, index: int, *, size: int, root: bytes, proof: Sequence[bytes]) -> None:
    """Return where `leaf` is the hash at `index` in the tree of `size` leaves with this root. RFC 9162 section 2.1.3.2.

    Not checked: that the root is the CA's; that is what a signed head is for.

    Raises:
        LedgerDamaged: it is not, or the proof does not show it.
    """
    if not 0 <= index < size:
        raise _unproven("inclusion", f"position {index} of {size}")
    position, last, found = index, size - 1, leaf
    for sibling in _hashes(proof, "inclusion"):
        if last == 0:
            raise _unproven("inclusion", "more hashes than the tree is deep")
        if position & 1 or position == last:
            found = node_hash(sibling, found)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        position, last = position >> 1, last >> 1
    if last != 0 or found != root:
        raise _unproven("inclusion", "another root")


def consistency_proof(leaves: Sequence[bytes], old_size: int) -> list[bytes]:
    """The hashes that show that the first `old_size` leaves are still what they were. RFC 9162 section 2.1.4.1.

    Raises:
        LedgerDamaged: the tree was never that large.
    """
    if not 0 <= old_size <= len(leaves):
        raise LedgerDamaged("no such tree", got=f"{old_size} entries", expected=f"at most {len(leaves)}")
    proof: list[bytes] = []
    start, end, whole = 0, len(leaves), True
    if old_size in (0, end):
        return proof
    while old_size != end:
        middle = start + _split(end - start)
        if old_size <= middle:
            proof.append(_root(leaves, middle, end))
            end = middle
        else:
            proof.append(_root(leaves, start, middle))
            start, whole = middle, False
    if not whole:
        proof.append(_root(leaves, start, end))
    return proof[::-1]


def verify_consistency(
    *, old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Return where the old tree is the beginning of the new one. RFC 9162 section 2.1.4.2.

    Not checked: that the roots belong to trees of these sizes. A signed head says so; one proof can fit several sizes.

    Raises:
        LedgerDamaged: it is not, or the proof does not show it.
    """
    hashes = _hashes(proof, "consistency")
    if not 0 <= old_size <= new_size:
        raise _unproven("consistency", f"{old_size} entries before {new_size}")
    if old_size in (0, new_size):
        # Nothing is in between; and every tree begins with the empty one.
        if (
            hashes
            or (old_size == new_size and old_root != new_root)
            or (not old_size and old_root != Frontier().root())
        ):
            raise _unproven("consistency", "another root")
        return
    if old_size.bit_count() == 1:  # a full subtree of the new tree: its root is not repeated in the proof
        hashes = [old_root, *hashes]
    if not hashes:
        raise _unproven("consistency", "no hashes")
    position, last = old_size - 1, new_size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    old = new = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise _unproven("consistency", "more hashes than the tree is deep")
        if position & 1 or position == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        position, last = position >> 1, last >> 1
    if last != 0 or old != old_root or new != new_root:
        raise _unproven("consistency", "another root")


def _split(size: int) -> int:
    """The largest power of two smaller than `size`, which is at least 2."""
    return 1 << ((size - 1).bit_length() - 1)


def _root(leaves: Sequence[bytes], start: int, end: int) -> bytes:
    return Frontier().extended(leaves[at] for at in range(start, end)).root()


def _hashes(proof: Sequence[bytes], what: str) -> list[bytes]:
    if any(type(node) is not bytes or len(node) != HASH_BYTES for node in proof):
        raise _unproven(what, "what is no hash")
    return list(proof)


def _unproven(what: str, got: str) -> LedgerDamaged:
    return LedgerDamaged(f"{what} is not proven", got=got, expected="a proof that leads to the root")
