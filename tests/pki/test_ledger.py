"""The ledger's tree against another implementation and the text of RFC 9162, its entries, its signed heads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache

import pymerkle
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from jwcrypto import jwk
from jwcrypto import jws as judge

from pki import keys, ledger, proofs
from pki.errors import LedgerDamaged
from pki.ledger import Entry, Frontier, Head, leaf_hash
from pki.records import Record
from tests.pki.books import AGENT, ISSUER, NOW, POLICY, RECORD
from trust.signing import jws

# The test vectors of the Certificate Transparency project: eight leaves, and the root after each of them.
DATA = [bytes.fromhex(text) for text in ["", "00", "10", "2021", "3031", "40414243", "5051525354555657"]]
DATA.append(bytes(range(0x60, 0x70)))
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
SIZES = [*range(1, 34), 63, 64, 65, 100]
LEAVES = [leaf_hash(b"entry %d" % number) for number in range(max(SIZES))]


@cache
def root(size: int) -> bytes:
    return Frontier().extended(LEAVES[:size]).root()


@cache
def other_tree() -> pymerkle.InmemoryTree:
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    for number in range(max(SIZES)):
        tree.append_entry(b"entry %d" % number)
    return tree


@pytest.mark.parametrize("size", range(9))
def test_roots_of_certificate_transparency(size: int) -> None:
    tree = Frontier().extended(leaf_hash(data) for data in DATA[:size])
    assert (tree.size, tree.root().hex()) == (size, ROOTS[size])


@pytest.mark.parametrize("size", SIZES)
def test_roots_and_inclusion_as_another_implementation_has_them(size: int) -> None:
    assert root(size) == other_tree().get_root(size)
    for index in range(size):
        proof = proofs.inclusion_proof(LEAVES[:size], index)
        other = other_tree().prove_inclusion(index + 1, size)
        assert proof == other.path[1:]
        proofs.verify_inclusion(LEAVES[index], index, size=size, root=root(size), proof=proof)


def subproof(m: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    """SUBPROOF of RFC 9162 section 2.1.4.1, word for word."""
    n = len(leaves)
    if m == n:
        return [] if whole else [mth(leaves)]
    k = 1
    while k * 2 < n:
        k *= 2
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def mth(leaves: list[bytes]) -> bytes:
    """MTH of section 2.1.1, over leaf hashes."""
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


@pytest.mark.parametrize("size", SIZES)
def test_consistency_as_the_rfc_defines_it_between_roots_of_another_implementation(size: int) -> None:
    for old in range(1, size + 1):
        proof = proofs.consistency_proof(LEAVES[:size], old)
        assert proof == subproof(old, LEAVES[:size], True)
        proofs.verify_consistency(
            old_size=old,
            old_root=other_tree().get_root(old),
            new_size=size,
            new_root=other_tree().get_root(size),
            proof=proof,
        )


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 20])
def test_every_tree_begins_with_the_empty_one(size: int) -> None:
    proof = proofs.consistency_proof(LEAVES[:size], 0)
    assert proof == []
    proofs.verify_consistency(old_size=0, old_root=Frontier().root(), new_size=size, new_root=root(size), proof=proof)


@given(st.lists(st.integers(0, 9)))
def test_it_does_not_matter_in_which_batches_a_tree_grows(batches: list[int]) -> None:
    tree, position = Frontier(), 0
    for batch in batches:
        leaves = [leaf_hash(b"%d" % number) for number in range(position, position + batch)]
        tree = Frontier.from_bytes(tree.extended(leaves).to_bytes())
        position += batch
    assert tree == Frontier().extended(leaf_hash(b"%d" % number) for number in range(position))
    assert len(tree.hashes) == position.bit_count()


def test_a_node_cannot_stand_for_an_entry() -> None:
    assert leaf_hash(LEAVES[0] + LEAVES[1]) != root(2)


@pytest.mark.parametrize("data", [b"", b"\0" * 7, bytes(7) + b"\1", bytes(7) + b"\1" + bytes(64), bytes(9)])
def test_a_frontier_of_another_length_is_refused(data: bytes) -> None:
    with pytest.raises(LedgerDamaged):
        Frontier.from_bytes(data)


def test_there_is_no_proof_of_what_is_not_there() -> None:
    for index in (-1, 5):
        with pytest.raises(LedgerDamaged, match="no such entry"):
            proofs.inclusion_proof(LEAVES[:5], index)
        with pytest.raises(LedgerDamaged):
            proofs.verify_inclusion(LEAVES[0], index, size=5, root=root(5), proof=[])
    for size in (-1, 6):
        with pytest.raises(LedgerDamaged, match="no such tree"):
            proofs.consistency_proof(LEAVES[:5], size)


# Entries.

ENTRIES: list[tuple[Entry, dict[str, object]]] = [
    (
        ledger.entry_for_record(RECORD),
        {
            "kind": "issued",
            "time": int(RECORD.not_before.timestamp()),
            "serial": f"{RECORD.serial:040x}",
            "spiffe_id": AGENT,
            "role": "agent",
            "issuer": ISSUER.key_id,
            "x5t#S256": RECORD.thumbprint,
            "not_after": int(RECORD.not_after.timestamp()),
            "shard": 0,
        },
    ),
    (
        ledger.entry_for_revocation(RECORD, reason=x509.ReasonFlags.key_compromise, now=NOW),
        {
            "kind": "revoked",
            "time": int(NOW.timestamp()),
            "serial": f"{RECORD.serial:040x}",
            "spiffe_id": AGENT,
            "reason": "keyCompromise",
        },
    ),
    (ledger.entry_for_ban(AGENT, NOW), {"kind": "banned", "time": int(NOW.timestamp()), "spiffe_id": AGENT}),
    (ledger.entry_for_unban(AGENT, NOW), {"kind": "unbanned", "time": int(NOW.timestamp()), "spiffe_id": AGENT}),
    (
        ledger.entry_for_pruning(ISSUER.key_id, before=NOW, removed=7, now=NOW),
        {
            "kind": "pruned",
            "time": int(NOW.timestamp()),
            "issuer": ISSUER.key_id,
            "before": int(NOW.timestamp()),
            "removed": 7,
        },
    ),
    (
        ledger.entry_for_retirement(ISSUER, NOW),
        {
            "kind": "retired",
            "time": int(NOW.timestamp()),
            "serial": f"{ISSUER.serial:040x}",
            "key_id": ISSUER.key_id,
        },
    ),
    (
        ledger.entry_for_policy(POLICY, NOW),
        {"kind": "policy", "time": int(NOW.timestamp()), "sha256": hashlib.sha256(POLICY.encode()).hexdigest()},
    ),
]


@pytest.mark.parametrize(("entry", "says"), ENTRIES, ids=[entry.kind for entry, _ in ENTRIES])
def test_an_entry_is_one_line_of_json_and_comes_back(entry: Entry, says: dict[str, object]) -> None:
    text = entry.encode()
    assert text == json.dumps(says, separators=(",", ":")).encode()
    assert Entry.decode(text) == entry
    assert entry.encode() == text


def test_the_entry_of_a_ca_holds_its_public_key() -> None:
    entry = ledger.entry_for_issuer(ISSUER)
    assert Entry.decode(entry.encode()) == entry
    assert (entry.serial, entry.time, entry.facts["state"]) == (ISSUER.serial, ISSUER.since, "active")
    encoded = ISSUER.certificate.public_key().public_bytes(
        ledger.Encoding.DER, ledger.PublicFormat.SubjectPublicKeyInfo
    )
    assert jws.decode(str(entry.facts["spki"])) == encoded


TEXT = ENTRIES[0][0].encode()


def changed(**members: object) -> bytes:
    return json.dumps(json.loads(TEXT) | members, separators=(",", ":")).encode()


NOT_ENTRIES: list[tuple[str, bytes]] = [
    ("nothing", b""),
    ("not JSON", b"issued"),
    ("not an object", b"[]"),
    ("a number", b"7"),
    ("white space", TEXT.replace(b",", b", ")),
    ("another order", json.dumps(dict(sorted(json.loads(TEXT).items())), separators=(",", ":")).encode()),
    ("an escape that need not be", TEXT.replace(b"issued", b"\\u0069ssued")),
    ("a member twice", TEXT.replace(b'"shard":0', b'"shard":0,"shard":0')),
    ("a member more", changed(note="x")),
    ("a member less", TEXT.replace(b',"shard":0', b"")),
    ("unknown kind", changed(kind="forged")),
    ("a kind that is a list", changed(kind=[])),
    ("time as text", changed(time="1")),
    ("time that is true", changed(time=True)),
    ("time with a fraction", changed(time=1.5)),
    ("time beyond all calendars", changed(time=2**52)),
    ("shard as text", changed(shard="0")),
    ("shard that is true", changed(shard=True)),
    ("serial as a number", changed(serial=7)),
    ("serial in capitals", changed(serial="A" * 40)),
    ("short serial", changed(serial="7")),
    ("serial with a sign", changed(serial="+" + "7" * 39)),
    ("no serial", changed(serial="x" * 40)),
    ("ID as a number", changed(spiffe_id=1)),
    ("too long", changed(spiffe_id="spiffe://" + "a" * 5000)),
    ("nested", changed(issuer={"a": []})),
]


@pytest.mark.parametrize("text", [row[1] for row in NOT_ENTRIES], ids=[row[0] for row in NOT_ENTRIES])
def test_other_texts_are_no_entries(text: bytes) -> None:
    with pytest.raises(LedgerDamaged) as caught:
        Entry.decode(text)
    assert type(caught.value) is LedgerDamaged


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_else_than_being_refused(data: bytes) -> None:
    with pytest.raises(LedgerDamaged):
        Entry.decode(data)


@given(st.integers(0, len(TEXT) - 1), st.integers(0, 255))
def test_what_decodes_is_what_encodes(at: int, byte: int) -> None:
    text = TEXT[:at] + bytes([byte]) + TEXT[at + 1 :]
    try:
        entry = Entry.decode(text)
    except LedgerDamaged:
        return
    assert entry.encode() == text


@pytest.mark.parametrize(
    "change",
    [
        lambda record: {"serial": record.serial + 1},
        lambda record: {"kind": "ocsp"},
        lambda record: {"issuer": "00" * 20},
        lambda record: {"spiffe_id": AGENT + "2"},
        lambda record: {"thumbprint": "A" * 43},
        lambda record: {"not_before": record.not_before - timedelta(seconds=1)},
        lambda record: {"not_after": record.not_after + timedelta(seconds=1)},
        lambda record: {"shard": 1},
    ],
)
def test_every_column_of_a_certificate_is_in_its_entry(change: Callable[[Record], dict[str, object]]) -> None:
    columns = {name: getattr(RECORD, name) for name in Record.__slots__} | change(RECORD)
    assert ledger.entry_for_record(Record(**columns)).encode() != TEXT


# Tree heads.

HEAD = Head(trust_domain="fleet.example", size=7, root=root(7), time=NOW)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()], ids=lambda c: c.name)
def test_a_head_is_signed_by_the_key_of_a_ca_and_read_by_other_jose_libraries(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    text = ledger.sign_head(HEAD, key, "ab" * 20)
    assert ledger.head_signer(text) == "ab" * 20
    assert ledger.verify_head(text, key.public_key()) == HEAD
    other = judge.JWS()
    other.deserialize(text, jwk.JWK.from_pyca(key.public_key()))
    assert json.loads(other.payload) == {
        "trust_domain": "fleet.example",
        "tree_size": 7,
        "root_hash": jws.encode(root(7)),
        "time": int(NOW.timestamp()),
    }
    assert other.jose_header["typ"] == "a2a-ledger-head+jws"


def test_heads_are_deterministic() -> None:
    key = keys.generate()
    assert ledger.sign_head(HEAD, key, "ab") == ledger.sign_head(HEAD, key, "ab")


def test_times_are_utc() -> None:
    entry = Entry.decode(ledger.entry_for_ban(AGENT, NOW).encode())
    assert entry.time == NOW and entry.time.tzinfo is UTC
    assert isinstance(entry.time, datetime)
