"""What can be done to a ledger, its proofs, its heads and the tables that it covers: each is refused, or named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from pki import keys, ledger, proofs
from pki.errors import LedgerDamaged, PKIError
from pki.ledger import Entry, Frontier, Head, leaf_hash
from pki.ledger_audit import audit
from pki.records import LedgerRow, Record, State
from tests.pki.books import (
    AGENT,
    DOMAIN,
    ISSUER,
    ISSUER_RECORD,
    KEY,
    KEYS,
    NOW,
    OTHER_KEY,
    ROOT,
    ROOT_KEY,
    Books,
    agent,
    founded,
    key_id,
)
from trust.identity import thumbprint
from trust.signing import jws

# Proofs.

LEAVES = [leaf_hash(b"%d" % number) for number in range(11)]
ROOT_OF = [Frontier().extended(LEAVES[:size]).root() for size in range(12)]
INCLUSION: dict[str, Any] = {
    "leaf": LEAVES[4],
    "index": 4,
    "size": 11,
    "root": ROOT_OF[11],
    "proof": proofs.inclusion_proof(LEAVES, 4),
}
CONSISTENCY: dict[str, Any] = {
    "old_size": 6,
    "old_root": ROOT_OF[6],
    "new_size": 11,
    "new_root": ROOT_OF[11],
    "proof": proofs.consistency_proof(LEAVES, 6),
}
FROM_FULL = CONSISTENCY | {"old_size": 4, "old_root": ROOT_OF[4], "proof": proofs.consistency_proof(LEAVES, 4)}


def flipped(data: bytes, at: int = 0) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def on_proof(change: Callable[[list[bytes]], list[Any]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda given: {"proof": change(list(given["proof"]))}


Change = Callable[[dict[str, Any]], dict[str, Any]]
ANY_PROOF: list[tuple[str, Change]] = [
    ("hash altered", on_proof(lambda proof: [flipped(proof[0]), *proof[1:]])),
    ("last hash altered", on_proof(lambda proof: [*proof[:-1], flipped(proof[-1])])),
    ("hash removed", on_proof(lambda proof: proof[1:])),
    ("last hash removed", on_proof(lambda proof: proof[:-1])),
    ("hash inserted", on_proof(lambda proof: [LEAVES[0], *proof])),
    ("hash appended", on_proof(lambda proof: [*proof, LEAVES[0]])),
    ("hashes swapped", on_proof(lambda proof: [proof[1], proof[0], *proof[2:]])),
    ("nothing", on_proof(lambda proof: [])),
    ("short hash", on_proof(lambda proof: [proof[0][:-1], *proof[1:]])),
    ("hashes joined", on_proof(lambda proof: [proof[0] + proof[1], *proof[2:]])),
    ("text", on_proof(lambda proof: [proof[0].hex()[:32], *proof[1:]])),
]
INCLUSION_ATTACKS: list[tuple[str, Change]] = [
    ("another entry", lambda _: {"leaf": leaf_hash(b"forged")}),
    ("a node instead of an entry", lambda given: {"leaf": given["proof"][0]}),
    ("position before", lambda _: {"index": 3}),
    ("position after", lambda _: {"index": 5}),
    ("position beyond", lambda _: {"index": 11}),
    ("negative position", lambda _: {"index": -1}),
    ("smaller tree", lambda _: {"size": 5}),
    ("larger tree", lambda _: {"size": 23}),
    ("empty tree", lambda _: {"size": 0}),
    ("another root", lambda _: {"root": ROOT_OF[10]}),
    ("the leaf as root", lambda _: {"root": LEAVES[4]}),
    *ANY_PROOF,
]
CONSISTENCY_ATTACKS: list[tuple[str, Change]] = [
    ("another old root", lambda _: {"old_root": ROOT_OF[5]}),
    ("another new root", lambda _: {"new_root": ROOT_OF[10]}),
    ("roots swapped", lambda given: {"old_root": given["new_root"], "new_root": given["old_root"]}),
    ("larger old size", lambda given: {"old_size": given["old_size"] + 1}),
    ("smaller old size", lambda given: {"old_size": given["old_size"] - 1}),
    ("old size 0", lambda _: {"old_size": 0}),
    ("old size 0 without a proof", lambda _: {"old_size": 0, "proof": []}),
    ("negative old size", lambda _: {"old_size": -1}),
    ("smaller new size", lambda _: {"new_size": 8}),
    ("larger new size", lambda _: {"new_size": 29}),
    ("sizes swapped", lambda given: {"old_size": given["new_size"], "new_size": given["old_size"]}),
    ("same size, other roots", lambda _: {"new_size": 6, "old_size": 6, "proof": []}),
    ("same size, same root, a proof", lambda given: {"old_size": 11, "old_root": given["new_root"]}),
    *ANY_PROOF,
]


def test_the_proofs_are_good() -> None:
    proofs.verify_inclusion(**INCLUSION)
    proofs.verify_consistency(**CONSISTENCY)
    proofs.verify_consistency(**FROM_FULL)


@pytest.mark.parametrize("change", [row[1] for row in INCLUSION_ATTACKS], ids=[row[0] for row in INCLUSION_ATTACKS])
def test_no_other_inclusion_is_proven(change: Change) -> None:
    with pytest.raises(PKIError) as caught:
        proofs.verify_inclusion(**INCLUSION | change(INCLUSION))
    assert type(caught.value) is LedgerDamaged


@pytest.mark.parametrize("given", [CONSISTENCY, FROM_FULL], ids=["old size 6", "old size 4"])
@pytest.mark.parametrize("change", [row[1] for row in CONSISTENCY_ATTACKS], ids=[row[0] for row in CONSISTENCY_ATTACKS])
def test_no_other_consistency_is_proven(given: dict[str, Any], change: Change) -> None:
    with pytest.raises(PKIError) as caught:
        proofs.verify_consistency(**given | change(given))
    assert type(caught.value) is LedgerDamaged


# Heads.

HEAD = Head(trust_domain=DOMAIN, size=7, root=ROOT_OF[7], time=NOW)
PAYLOAD = {"trust_domain": DOMAIN, "tree_size": 7, "root_hash": jws.encode(ROOT_OF[7]), "time": int(NOW.timestamp())}


def signed(
    payload: object = None,
    *,
    key: object = KEY,
    typ: object = ledger.HEAD_TYPE,
    text: bytes | None = None,
    **header: object,
) -> str:
    data = json.dumps(PAYLOAD if payload is None else payload, separators=(",", ":")).encode() if text is None else text
    return jws.sign_compact(data, key=key, header={"typ": typ, "kid": ISSUER.key_id} | header)


GOOD = signed()
HEADS: list[tuple[str, str]] = [
    ("nothing", ""),
    ("not a JWS", "head"),
    ("detached", GOOD.split(".")[0] + ".." + GOOD.split(".")[2]),
    ("signature altered", GOOD[:-4] + "AAAA"),
    ("payload altered", GOOD.split(".")[0] + "." + GOOD.split(".")[1][:-2] + "AA." + GOOD.split(".")[2]),
    ("another key", signed(key=OTHER_KEY)),
    ("another curve", signed(key=ec.generate_private_key(ec.SECP384R1()))),
    ("an access token", signed(typ="at+jwt")),
    ("a message", signed(typ="a2a-msg+jws")),
    ("crit", signed(crit=["kid2"], kid2="x")),
    ("a list", signed([])),
    ("a number", signed(7)),
    ("not JSON", signed(text=b"head")),
    ("white space", signed(text=json.dumps(PAYLOAD).encode())),
    ("another order", signed(dict(sorted(PAYLOAD.items())))),
    ("a member twice", signed(text=json.dumps(PAYLOAD)[:-1].encode() + b',"time":0}')),
    ("a member more", signed(PAYLOAD | {"note": "x"})),
    ("no size", signed({name: value for name, value in PAYLOAD.items() if name != "tree_size"})),
    ("negative size", signed(PAYLOAD | {"tree_size": -1})),
    ("size that is true", signed(PAYLOAD | {"tree_size": True})),
    ("size as text", signed(PAYLOAD | {"tree_size": "7"})),
    ("size with a fraction", signed(PAYLOAD | {"tree_size": 7.5})),
    ("short root", signed(PAYLOAD | {"root_hash": jws.encode(ROOT_OF[7][:-1])})),
    ("padded root", signed(PAYLOAD | {"root_hash": jws.encode(ROOT_OF[7]) + "="})),
    ("root as a number", signed(PAYLOAD | {"root_hash": 7})),
    ("time as text", signed(PAYLOAD | {"time": "now"})),
    ("time beyond all calendars", signed(PAYLOAD | {"time": 2**52})),
    ("settings as a number", signed(PAYLOAD | {"settings": 7})),
    ("settings that are padded", signed(PAYLOAD | {"settings": jws.encode(bytes(32)) + "="})),
    ("settings that are null", signed(PAYLOAD | {"settings": None})),
    ("bundle as text", signed(PAYLOAD | {"bundle_sequence": "7"})),
    ("bundle that is true", signed(PAYLOAD | {"bundle_sequence": True})),
    ("bundle that is null", signed(PAYLOAD | {"bundle_sequence": None})),
    ("bundle before settings", signed(PAYLOAD | {"bundle_sequence": 7, "settings": jws.encode(bytes(32))})),
    ("nested", signed(PAYLOAD | {"trust_domain": {"a": {}}})),
]


def test_the_head_is_good() -> None:
    assert ledger.sign_head(HEAD, KEY, ISSUER.key_id) == GOOD
    assert ledger.verify_head(GOOD, KEY.public_key()) == HEAD
    more = replace(HEAD, settings=bytes(32), bundle=7)
    text = ledger.sign_head(more, KEY, ISSUER.key_id)
    assert text == signed(PAYLOAD | {"settings": jws.encode(bytes(32)), "bundle_sequence": 7})
    assert ledger.verify_head(text, KEY.public_key()) == more


@pytest.mark.parametrize("text", [row[1] for row in HEADS], ids=[row[0] for row in HEADS])
def test_no_other_head_is_believed(text: str) -> None:
    with pytest.raises(PKIError) as caught:
        ledger.verify_head(text, KEY.public_key())
    assert type(caught.value) is LedgerDamaged


def test_a_head_must_name_its_key() -> None:
    text = jws.sign_compact(b"{}", key=KEY, header={"typ": ledger.HEAD_TYPE})
    for other in (text, signed(kid=7), "head"):
        with pytest.raises(LedgerDamaged):
            ledger.head_signer(other)


# The books. Entries 0 to 3 are the two CAs', then there are batches of three, one, and so on.

OTHER = f"spiffe://{DOMAIN}/planner"
FIRST, SECOND, THIRD, FOURTH = agent(0x10), agent(0x11, OTHER), agent(0x12), agent(0x13, OTHER)
POLICY = "[[allow]]\n"


def books() -> Books:
    made = founded()
    made.issue(FIRST, SECOND, THIRD)  # entries 4, 5, 6
    made.append(ledger.entry_for_revocation(FIRST, reason=x509.ReasonFlags.superseded, now=NOW))  # 7
    revoke(made, FIRST)
    made.append(ledger.entry_for_ban(OTHER, NOW), ledger.entry_for_policy(POLICY, NOW))  # 8, 9
    made.banned[OTHER] = NOW
    made.policy = POLICY
    made.issue(FOURTH)  # 10
    return made


def revoke(made: Books, record: Record, reason: x509.ReasonFlags | None = x509.ReasonFlags.superseded) -> None:
    alter(made, record, revoked_at=None if reason is None else NOW, reason=reason)


def alter(made: Books, record: Record, **columns: Any) -> None:
    made.certificates = [replace(one, **columns) if one.serial == record.serial else one for one in made.certificates]


def entry(made: Books, position: int, change: Callable[[bytes], bytes], *, and_leaf: bool) -> None:
    row = made.rows[position]
    data = change(row.entry)
    assert data != row.entry
    made.rows[position] = replace(row, entry=data, leaf=leaf_hash(data) if and_leaf else row.leaf)


def forged(record: Record, signer: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
    """The columns of another certificate with the same serial and names."""
    other = agent(record.serial, record.spiffe_id, signer)
    return {"der": other.der, "thumbprint": other.thumbprint}


def altered_entry(made: Books) -> None:
    entry(made, 5, lambda data: data.replace(b'"shard":0', b'"shard":1'), and_leaf=False)


def altered_entry_and_leaf(made: Books) -> None:
    entry(made, 5, lambda data: data.replace(b'"shard":0', b'"shard":1'), and_leaf=True)


def altered_entry_leaf_and_row(made: Books) -> None:
    altered_entry_and_leaf(made)
    alter(made, SECOND, shard=1)


def altered_everything_below_the_signature(made: Books) -> None:
    altered_entry_leaf_and_row(made)
    tampered = made.sealed
    made.sealed = []
    for head in tampered:
        rows, made.rows = made.rows, made.rows[: head.size]
        made.seal(None)
        made.rows = rows
        made.sealed[-1] = replace(made.sealed[-1], jws=head.jws)


def two_rewritten_parts(made: Books) -> None:
    altered_entry_leaf_and_row(made)
    entry(made, 10, lambda data: data.replace(b'"shard":0', b'"shard":1'), and_leaf=True)
    alter(made, FOURTH, shard=1)


def altered_leaf(made: Books) -> None:
    made.rows[5] = replace(made.rows[5], leaf=flipped(made.rows[5].leaf))


def unreadable_entry(made: Books) -> None:
    entry(made, 9, lambda data: data[:-1], and_leaf=False)


def removed_entry(made: Books) -> None:
    del made.rows[5]


def removed_entry_and_row(made: Books) -> None:
    del made.rows[5]
    made.certificates.remove(SECOND)


def truncated(made: Books) -> None:
    del made.rows[10:]
    made.certificates.remove(FOURTH)


def inserted_entry(made: Books) -> None:
    forged_one = agent(0x66, signer=OTHER_KEY)
    data = ledger.entry_for_record(forged_one).encode()
    made.rows.append(LedgerRow(position=11, entry=data, leaf=leaf_hash(data)))


def issued_twice(made: Books) -> None:
    made.append(ledger.entry_for_record(FOURTH))


def with_head(index: int, **columns: Any) -> Callable[[Books], None]:
    def change(made: Books) -> None:
        made.sealed[index] = replace(made.sealed[index], **columns)

    return change


def head_of_another_domain(made: Books) -> None:
    head = made.sealed[-1]
    other = Head(trust_domain="other.example", size=head.size, root=head.root, time=head.time)
    made.sealed[-1] = replace(head, jws=ledger.sign_head(other, KEY, ISSUER.key_id))


def head_by_a_stranger(made: Books) -> None:
    made.sealed.pop()
    made.seal(OTHER_KEY)


def head_in_the_name_of_the_ca(made: Books) -> None:
    head = made.sealed[-1]
    forged_one = Head(trust_domain=DOMAIN, size=head.size, root=head.root, time=head.time)
    made.sealed[-1] = replace(head, jws=ledger.sign_head(forged_one, OTHER_KEY, ISSUER.key_id))


def removed_row(made: Books) -> None:
    made.certificates.remove(SECOND)


def inserted_row(made: Books) -> None:
    made.certificates.append(agent(0x66))


def inserted_row_of_a_stranger(made: Books) -> None:
    made.certificates.append(agent(0x66, signer=OTHER_KEY))


def doubled_row(made: Books) -> None:
    made.certificates.append(SECOND)


def swapped_certificate(made: Books) -> None:
    alter(made, SECOND, **forged(SECOND, OTHER_KEY))


def swapped_der(made: Books) -> None:
    alter(made, SECOND, der=THIRD.der)


def certificate_by_a_stranger_everywhere(made: Books) -> None:
    """As somebody does who may write the database but has no key: row, entry and hash agree."""
    alter(made, SECOND, **forged(SECOND, OTHER_KEY))
    record = next(one for one in made.certificates if one.serial == SECOND.serial)
    entry(made, 5, lambda _: ledger.entry_for_record(record).encode(), and_leaf=True)


def columns(**changed: Any) -> Callable[[Books], None]:
    return lambda made: alter(made, SECOND, **changed)


def not_a_certificate(made: Books) -> None:
    alter(made, SECOND, der=b"junk", thumbprint=thumbprint(b"junk"))


def ca_state(made: Books) -> None:
    made.cas[1] = replace(ISSUER, state=State.RETIRING)


def ca_removed(made: Books) -> None:
    made.cas.remove(ISSUER)


def ca_inserted(made: Books) -> None:
    made.cas.append(replace(ISSUER, key_id=key_id(OTHER_KEY)))


def ca_swapped(made: Books) -> None:
    made.cas[1] = replace(ISSUER, der=FIRST.der, key_id=key_id(OTHER_KEY), serial=FIRST.serial)


def ca_damaged(made: Books) -> None:
    made.cas[1] = replace(ISSUER, der=b"junk")


def ban_lifted(made: Books) -> None:
    made.banned.clear()


def ban_inserted(made: Books) -> None:
    made.banned[AGENT] = NOW


def ban_postponed(made: Books) -> None:
    made.banned[OTHER] = NOW + timedelta(days=1)


def policy_altered(made: Books) -> None:
    made.policy = POLICY * 2


def policy_removed(made: Books) -> None:
    made.policy = None


LONG_AFTER = NOW + timedelta(days=30)


def retire(made: Books, which: int = 1) -> None:
    made.cas[which] = replace(made.cas[which], state=State.RETIRING)
    made.append(ledger.entry_for_issuer(made.cas[which]))


def pruned_before_its_end(made: Books) -> None:
    retire(made)
    made.append(ledger.entry_for_pruning(ISSUER.key_id, before=SECOND.not_after, removed=0, now=LONG_AFTER))
    made.certificates.remove(SECOND)


def pruned_under_another_ca(made: Books) -> None:
    retire(made, 0)
    made.append(ledger.entry_for_pruning(ROOT.key_id, before=NOW + timedelta(days=9), removed=0, now=LONG_AFTER))
    made.certificates.remove(SECOND)


def pruned_before_it_was_issued(made: Books) -> None:
    retire(made)
    made.append(ledger.entry_for_pruning(ISSUER.key_id, before=NOW + timedelta(days=9), removed=4, now=LONG_AFTER))
    made.certificates = made.certificates[:2]
    late = agent(0x20)
    made.append(ledger.entry_for_record(late))


# What somebody does who can write the database, and has no key: all of it agrees, and the last head is unsigned.


def forged_pruning(made: Books) -> None:
    made.append(
        ledger.entry_for_pruning(ISSUER.key_id, before=NOW + timedelta(days=9), removed=4, now=LONG_AFTER), signer=None
    )
    made.certificates = made.certificates[:2]


def forged_pruning_of_too_much(made: Books) -> None:
    retire(made)
    made.append(
        ledger.entry_for_pruning(ISSUER.key_id, before=NOW + timedelta(days=9), removed=1, now=NOW), signer=None
    )
    made.certificates.remove(SECOND)


def wrong_count(made: Books) -> None:
    retire(made)
    made.append(
        ledger.entry_for_pruning(ISSUER.key_id, before=NOW + timedelta(days=9), removed=1, now=LONG_AFTER), signer=None
    )
    made.certificates = made.certificates[:2]


def retired_agent(made: Books) -> None:
    made.append(Entry(kind="retired", time=LONG_AFTER, serial=SECOND.serial, facts={"key_id": "x"}), signer=None)
    made.certificates.remove(SECOND)


def issued_without_a_signature(made: Books) -> None:
    late = agent(0x20)
    made.certificates.append(late)
    made.append(ledger.entry_for_record(late), signer=None)


def revoked_ca_active_again(made: Books) -> None:
    revoked = replace(ISSUER, state=State.REVOKED)
    made.append(ledger.entry_for_issuer(revoked), signer=ROOT_KEY)
    made.append(ledger.entry_for_issuer(ISSUER), signer=None)


def head_by_a_revoked_ca(made: Books) -> None:
    made.cas[1] = replace(ISSUER, state=State.REVOKED)
    made.append(ledger.entry_for_issuer(made.cas[1]), signer=None)
    made.append(ledger.entry_for_unban(OTHER, NOW), signer=KEY)
    made.banned.clear()


def goes_on_with_a_revoked_certificate(made: Books) -> None:
    made.append(ledger.entry_for_revocation(ISSUER_RECORD, reason=x509.ReasonFlags.superseded, now=NOW))
    revoke(made, ISSUER_RECORD)


def no_signatures(made: Books) -> None:
    made.sealed = [replace(made.sealed[-1], jws=None)]


def negative_entry(made: Books) -> None:
    made.rows.insert(0, replace(made.rows[4], position=-7))


def negative_head(made: Books) -> None:
    made.sealed.insert(0, replace(made.sealed[0], size=-7))


S_10, S_11, S_13 = (f"certificate {serial:x} of" for serial in (0x10, 0x11, 0x13))
AT_5 = f"entry 5 of the ledger (issued {S_11} {OTHER})"
REWRITTEN = "entries 4 to 6 of the ledger are not those that the tree head at 7 commits to: issued certificate 10 of"

Mutation = Callable[[Books], None]
BOOKS: list[tuple[str, Mutation, list[str]]] = [
    (
        "entry altered",
        altered_entry,
        [f"entry 5 of the ledger is not what its hash was made of: issued {S_11} {OTHER}", f"{AT_5}: the row"],
    ),
    ("entry and hash altered", altered_entry_and_leaf, [REWRITTEN, f"{AT_5}: the row of the certificate differs"]),
    ("entry, hash and row altered", altered_entry_leaf_and_row, [REWRITTEN]),
    (
        "entry, hash, row and heads altered, but for the signatures",
        altered_everything_below_the_signature,
        [
            "tree head at 7: the row differs",
            REWRITTEN,
            "tree head at 8: the row differs",
            "tree head at 10: the row differs",
            "tree head at 11: the row differs",
        ],
    ),
    (
        "two parts rewritten",
        two_rewritten_parts,
        [
            REWRITTEN,
            f"entries 10 to 10 of the ledger are not those that the tree head at 11 commits to: issued {S_13} {OTHER}",
        ],
    ),
    (
        "hash altered",
        altered_leaf,
        [f"entry 5 of the ledger is not what its hash was made of: issued {S_11}", REWRITTEN],
    ),
    (
        "entry cut",
        unreadable_entry,
        ["entry 9 of the ledger: entry of the ledger cannot be read", "policy was inserted"],
    ),
    (
        "entry removed",
        removed_entry,
        ["entries 5 to 5 of the ledger are missing", REWRITTEN, f"{S_11} {OTHER} was inserted"],
    ),
    ("entry and row removed", removed_entry_and_row, ["entries 5 to 5 of the ledger are missing", REWRITTEN]),
    ("end removed", truncated, ["entries 10 to 10 of the ledger are missing: there is a tree head at 11"]),
    (
        "entry appended",
        inserted_entry,
        [
            f"entry 11 of the ledger (issued certificate 66 of {AGENT}): the row of the certificate was removed",
            f"entry 11 of the ledger (issued certificate 66 of {AGENT}) is under no signed head",
        ],
    ),
    ("issued twice", issued_twice, [f"entry 11 of the ledger: issued {S_13} {OTHER}, for the second time"]),
    ("head's signature altered", with_head(-1, jws="x.y.z"), ["tree head at 11: tree head cannot be read"]),
    ("head's root altered", with_head(-1, root=bytes(32)), ["tree head at 11: the row differs from what was signed"]),
    ("head's time altered", with_head(-1, time=NOW + timedelta(1)), ["tree head at 11: the row differs"]),
    ("head's size altered", with_head(1, size=6), ["tree head at 6: the row differs from what was signed"]),
    ("unsigned head's root altered", with_head(-1, root=bytes(32), jws=None), ["entries 10 to 10 of the ledger"]),
    ("head of another domain", head_of_another_domain, ["tree head at 11: another trust domain"]),
    ("head by a stranger", head_by_a_stranger, ["tree head at 11: signed by an unknown CA"]),
    ("head by a stranger in the CA's name", head_in_the_name_of_the_ca, ["tree head at 11: tree head is not signed"]),
    ("row removed", removed_row, [f"{AT_5}: the row of the certificate was removed"]),
    ("row inserted", inserted_row, [f"certificate 66 of {AGENT} was inserted: the ledger has no entry about it"]),
    (
        "row of a stranger inserted",
        inserted_row_of_a_stranger,
        [f"certificate 66 of {AGENT} is by a CA that is not known", f"certificate 66 of {AGENT} was inserted"],
    ),
    ("row doubled", doubled_row, [f"{S_11} {OTHER} is there twice"]),
    (
        "certificate swapped",
        swapped_certificate,
        [f"{S_11} {OTHER} was not signed by its CA, {ISSUER.key_id}", f"{AT_5}: the row of the certificate differs"],
    ),
    ("only its bytes swapped", swapped_der, [f"{S_11} {OTHER} is not the certificate that its thumbprint was made of"]),
    (
        "certificate swapped, entry and hash too",
        certificate_by_a_stranger_everywhere,
        [REWRITTEN, f"{S_11} {OTHER} was not signed by its CA"],
    ),
    (
        "not a certificate",
        not_a_certificate,
        [f"{S_11} {OTHER} is not a certificate", f"{AT_5}: the row of the certificate differs"],
    ),
    ("shard altered", columns(shard=1), [f"{AT_5}: the row of the certificate differs from this entry"]),
    (
        "end altered",
        columns(not_after=NOW),
        [f"{S_11} {OTHER} has a row that differs from the certificate", f"{AT_5}: the row"],
    ),
    ("start altered", columns(not_before=NOW - timedelta(1)), [f"{S_11} {OTHER} has a row", f"{AT_5}: the row"]),
    ("ID altered", columns(spiffe_id=AGENT), [f"{S_11} {AGENT} has a row that differs", f"{AT_5}: the row"]),
    ("kind altered", columns(kind="root"), [f"{AT_5}: the row of the certificate differs from this entry"]),
    ("issuer altered", columns(issuer=ROOT.key_id), [f"{S_11} {OTHER} was not signed by", f"{AT_5}: the row"]),
    (
        "revocation removed",
        lambda made: revoke(made, FIRST, None),
        [f"entry 7 of the ledger (revoked {S_10} {AGENT}): the revocation was removed"],
    ),
    (
        "revocation inserted",
        lambda made: revoke(made, SECOND),
        [f"{S_11} {OTHER} is revoked, and the ledger has no entry about it"],
    ),
    (
        "reason altered",
        lambda made: revoke(made, FIRST, x509.ReasonFlags.unspecified),
        [f"entry 7 of the ledger (revoked {S_10} {AGENT}): the revocation differs from this entry"],
    ),
    ("CA's state altered", ca_state, [f"CA {ISSUER.key_id} differs from the last entry about it"]),
    ("CA removed", ca_removed, [f"CA {ISSUER.key_id} was removed"]),
    ("CA inserted", ca_inserted, [f"CA {key_id(OTHER_KEY)}: CA database is damaged", "was inserted"]),
    (
        "CA swapped",
        ca_swapped,
        [f"CA {key_id(OTHER_KEY)} has another public key", "was inserted", f"CA {ISSUER.key_id} was removed"],
    ),
    ("CA damaged", ca_damaged, [f"CA {ISSUER.key_id}: CA database is damaged", "differs from the last entry"]),
    ("ban lifted", ban_lifted, [f"ban of {OTHER} was removed"]),
    ("ban inserted", ban_inserted, [f"ban of {AGENT} was inserted"]),
    ("ban postponed", ban_postponed, [f"ban of {OTHER} differs from the last entry about it"]),
    ("policy altered", policy_altered, ["policy differs from the last entry about it"]),
    ("policy removed", policy_removed, ["policy was removed"]),
    ("removed as pruned, but not expired", pruned_before_its_end, [f"{AT_5}: the row of the certificate was removed"]),
    ("removed as pruned of another CA", pruned_under_another_ca, [f"{AT_5}: the row of the certificate was removed"]),
    (
        "pruning forged",
        forged_pruning,
        ["entry 11 of the ledger (pruned", *["the row of the certificate was removed"] * 4],
    ),
    (
        "pruning of what lists name forged",
        forged_pruning_of_too_much,
        ["entry 12 of the ledger (pruned", f"{AT_5}: the row of the certificate was removed"],
    ),
    ("pruning with another number", wrong_count, ["1 certificates removed, and 4 could be"]),
    (
        "agent retired as if it were a CA",
        retired_agent,
        ["no CA that has ended", f"{AT_5}: the row of the certificate was removed"],
    ),
    ("issued under an unsigned head", issued_without_a_signature, ["entry 11 of the ledger (issued certificate 20"]),
    (
        "revoked CA active again",
        revoked_ca_active_again,
        [
            f"entry 12 of the ledger (issuer {ISSUER.key_id}): that CA was revoked, and is active",
            f"entry 12 of the ledger (issuer {ISSUER.key_id}) is under no signed head",
        ],
    ),
    ("head by a revoked CA", head_by_a_revoked_ca, ["tree head at 13: signed by a CA that was revoked before"]),
    (
        "CA that goes on with a revoked certificate",
        goes_on_with_a_revoked_certificate,
        [f"CA {ISSUER.key_id} goes on, and its certificate is revoked"],
    ),
    ("all signatures removed", no_signatures, ["is under no signed head: only a CA with its key"]),
    ("entry at a negative position", negative_entry, ["there is an entry of the ledger at position -7"]),
    ("head of a negative size", negative_head, ["there is a tree head at -7"]),
    (
        "pruned, issued again, removed",
        pruned_before_it_was_issued,
        ["entry 13 of the ledger (issued certificate 20 of"],
    ),
]


def test_the_books_are_good() -> None:
    made = books()
    report = audit(made, keys=KEYS, head=made.sealed[-1].jws)
    assert (report.size, report.sealed, report.problems) == (11, 11, ())


@pytest.mark.parametrize(("change", "expected"), [row[1:] for row in BOOKS], ids=[row[0] for row in BOOKS])
def test_what_was_altered_is_named(change: Mutation, expected: list[str]) -> None:
    made = books()
    change(made)
    problems = audit(made, keys=KEYS).problems
    assert len(problems) == len(expected), problems
    for part in expected:
        assert any(part in problem for problem in problems), (part, problems)


# Somebody who has the CA's key can rewrite the whole ledger and sign it again. A head kept elsewhere tells.


def rewritten(made: Books) -> Books:
    """Entry 5 is another one, and every head is signed again."""
    changed = founded()
    changed.issue(FIRST, agent(0x99, OTHER), THIRD)
    for row, certificate in zip(made.rows[7:], [None, None, None, FOURTH], strict=True):
        changed.rows.append(replace(row, position=len(changed.rows)))
        changed.seal()
        if certificate is not None:
            changed.certificates.append(certificate)
    revoke(changed, FIRST)
    changed.banned, changed.policy = made.banned, made.policy
    return changed


def cut(made: Books) -> Books:
    truncated(made)
    made.sealed.pop()
    return made


KEPT: list[tuple[str, Callable[[Books], Books], str, list[str]]] = [
    ("rewritten with the CA's key", rewritten, "", ["the first 11 entries of the ledger are not those that the tree"]),
    ("cut with its heads", cut, "", ["the tree head kept elsewhere is about 11 entries, and the ledger has 10"]),
    ("not a head", lambda made: made, "x.y.z", ["tree head kept elsewhere: tree head cannot be read"]),
    (
        "a stranger's head",
        lambda made: made,
        ledger.sign_head(HEAD, OTHER_KEY, key_id(OTHER_KEY)),
        ["the first 7 entries of the ledger are not those", "tree head kept elsewhere: signed by an unknown CA"],
    ),
    (
        "a stranger's head in the CA's name",
        lambda made: made,
        ledger.sign_head(HEAD, OTHER_KEY, ISSUER.key_id),
        [
            "the first 7 entries of the ledger are not those",
            "tree head kept elsewhere: tree head is not signed by this CA",
        ],
    ),
    (
        "another domain's head",
        lambda made: made,
        ledger.sign_head(replace(HEAD, trust_domain="other.example"), KEY, ISSUER.key_id),
        ["the first 7 entries of the ledger are not those", "tree head kept elsewhere: another trust domain"],
    ),
]


@pytest.mark.parametrize(("change", "text", "expected"), [row[1:] for row in KEPT], ids=[row[0] for row in KEPT])
def test_a_head_kept_elsewhere_tells(change: Callable[[Books], Books], text: str, expected: list[str]) -> None:
    made = books()
    kept = text or made.sealed[-1].jws
    changed = change(made)
    if not text:
        assert audit(changed, keys=KEYS).problems == (), "without the kept head, nothing is seen"
    problems = audit(changed, keys=KEYS, head=kept).problems
    assert len(problems) == len(expected), problems
    for part, problem in zip(expected, problems, strict=True):
        assert part in problem


def test_the_keys_are_the_callers() -> None:
    """Somebody who writes the database, CAs and all, has to sign with a key that the audit was not given."""
    other = keys.generate()
    problems = audit(books(), keys=KEYS | {ISSUER.key_id: other.public_key()}).problems
    assert sum("was not signed by its CA" in problem for problem in problems) == 4
    assert sum("tree head is not signed by this CA" in problem for problem in problems) == 5
    assert any(f"CA {ISSUER.key_id} has another public key" in problem for problem in problems)
