"""The CA's ledger: an append-only Merkle tree over everything that it did (RFC 9162 section 2.1, SHA-256).

Each certificate, revocation, ban, change of a CA and change of policy is one entry, a short JSON text. The entries'
hashes are the leaves of a tree, and a tree head, signed with the CA's key, commits to all of them: whoever has kept a
head can tell whether anything before it was altered, removed or inserted since, even by someone who holds the key.

Pure: entries, tree and heads. `pki.store` keeps them, in the transaction of what they record; `pki.proofs` shows to
others what is in the tree; `pki.ledger_audit` compares the entries with the store's other tables.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pki import keys
from pki.errors import LedgerDamaged
from trust.errors import SignatureError
from trust.identity import thumbprint
from trust.json_text import NotStrictJson, parse
from trust.signing import jws

if TYPE_CHECKING:
    from pki.records import IssuerRecord, Record, Settings

HEAD_TYPE = "a2a-ledger-head+jws"  # a typ of its own: no token and no message can stand for a tree head
MAX_ENTRY_BYTES = 4096  # a SPIFFE ID has at most 2048 characters, all else together some 500
HASH_BYTES = 32

# What an entry of each kind says beside its time, and which of it is a number. The order is the order in the text.
_SERIAL, _ID = "serial", "spiffe_id"
_FACTS: Mapping[str, tuple[str, ...]] = {
    "issued": (_SERIAL, _ID, "role", "issuer", "x5t#S256", "not_after", "shard"),
    "revoked": (_SERIAL, _ID, "reason"),
    "banned": (_ID,),
    "unbanned": (_ID,),
    "issuer": (_SERIAL, "role", "key_id", "parent", "state", "x5t#S256", "spki"),
    "pruned": ("issuer", "before", "removed"),
    "retired": (_SERIAL, "key_id"),
    "policy": ("sha256",),
}
_NUMBERS = frozenset({"not_after", "shard", "before", "removed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the ledger. Made by the `entry_for_…` functions, read by `Entry.decode`."""

    kind: str
    time: datetime  # whole seconds
    serial: int | None = None
    spiffe_id: str | None = None
    facts: Mapping[str, str | int] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The one JSON text of this entry."""
        members: dict[str, str | int] = {"kind": self.kind, "time": int(self.time.timestamp())}
        if self.serial is not None:
            members[_SERIAL] = f"{self.serial:040x}"
        if self.spiffe_id is not None:
            members[_ID] = self.spiffe_id
        members.update(self.facts)
        return _ENCODER.encode(members).encode()

    def describe(self) -> str:
        """In a few words, for people."""
        about = self.facts.get("key_id") or self.facts.get("issuer") or ""
        if self.spiffe_id is not None:
            about = self.spiffe_id if self.serial is None else f"certificate {self.serial:x} of {self.spiffe_id}"
        return f"{self.kind} {about}".strip()

    @classmethod
    def decode(cls, data: bytes) -> Entry:
        """Read what `encode` wrote.

        Raises:
            LedgerDamaged: any other text, also one that only means the same.
        """
        try:
            members = parse(data, max_bytes=MAX_ENTRY_BYTES, max_depth=1)
            kind, time = members.pop("kind"), members.pop("time")
            expected = _FACTS[kind]
            if tuple(members) != expected:
                raise ValueError(f"members {' '.join(members)}")
            for name in expected:
                if type(members[name]) is not (int if name in _NUMBERS else str):
                    raise ValueError(f"{name} is {type(members[name]).__name__}")
            serial = members.pop(_SERIAL, None)
            entry = cls(
                kind=kind,
                time=_moment(time),
                serial=None if serial is None else int(serial, 16),
                spiffe_id=members.pop(_ID, None),
                facts=members,
            )
        except (NotStrictJson, ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError) as error:
            raise _damaged("entry of the ledger cannot be read", error) from None
        if entry.encode() != data:
            raise _damaged("entry of the ledger cannot be read", "another spelling than ours")
        return entry


def entry_for_record(record: Record) -> Entry:
    """A certificate was issued. The time is the start of its validity; every column of its row is covered."""
    return Entry(
        kind="issued",
        time=record.not_before,
        serial=record.serial,
        spiffe_id=record.spiffe_id,
        facts={
            "role": record.kind,
            "issuer": record.issuer,
            "x5t#S256": record.thumbprint,
            "not_after": int(record.not_after.timestamp()),
            "shard": record.shard,
        },
    )


def entry_for_revocation(record: Record, *, reason: x509.ReasonFlags, now: datetime) -> Entry:
    """A certificate was revoked; `now` is what the revocations table says, too."""
    return Entry(
        kind="revoked", time=now, serial=record.serial, spiffe_id=record.spiffe_id, facts={"reason": reason.value}
    )


def entry_for_ban(spiffe_id: str, now: datetime) -> Entry:
    """An ID was banned; `now` is the `since` of the table."""
    return Entry(kind="banned", time=now, spiffe_id=spiffe_id)


def entry_for_unban(spiffe_id: str, now: datetime) -> Entry:
    """A ban was lifted."""
    return Entry(kind="unbanned", time=now, spiffe_id=spiffe_id)


def entry_for_issuer(issuer: IssuerRecord) -> Entry:
    """A CA was added or has changed its state: the whole row as it is from now on; the time is its `since`."""
    spki = issuer.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Entry(
        kind="issuer",
        time=issuer.since,
        serial=issuer.serial,
        facts={
            "role": issuer.kind,
            "key_id": issuer.key_id,
            "parent": issuer.parent,
            "state": str(issuer.state),
            "x5t#S256": thumbprint(issuer.der),
            "spki": jws.encode(spki),  # so that its tree heads can be verified when its row has been pruned
        },
    )


def entry_for_pruning(issuer: str, *, before: datetime, removed: int, now: datetime) -> Entry:
    """The certificates that `issuer` (a key id) signed and that ended before `before` were removed, `removed` of them.

    It accounts for nothing else: not for the certificate and the row of the CA itself (`entry_for_retirement`).
    """
    return Entry(
        kind="pruned",
        time=now,
        facts={"issuer": issuer, "before": int(before.timestamp()), "removed": removed},
    )


def entry_for_retirement(issuer: IssuerRecord, now: datetime) -> Entry:
    """The row of a CA that nothing depends on any more was removed, and the row of its own certificate with it."""
    return Entry(kind="retired", time=now, serial=issuer.serial, facts={"key_id": issuer.key_id})


def entry_for_policy(text: str, now: datetime) -> Entry:
    """The policy file was replaced."""
    return Entry(kind="policy", time=now, facts={"sha256": policy_digest(text)})


def needs_key(entry: Entry) -> bool:
    """Whether only a CA with its key open writes such an entry, and so under a signed head.

    A CA without its password revokes, bans, prunes and takes a policy. An entry of another kind under an unsigned head
    is by somebody who can write the database, and has no key.
    """
    if entry.kind == "issuer":
        return entry.facts["state"] != "revoked"
    return entry.kind == "issued"


def policy_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def settings_digest(settings: Settings) -> bytes:
    """Of what was decided once, when the CA was made."""
    values = [settings.trust_domain, settings.crl_base_url, settings.public_url, settings.name_constraint]
    return hashlib.sha256(_ENCODER.encode(values).encode()).digest()


# The tree. RFC 9162 section 2.1.1: a leaf and a node are hashed with different prefixes, or a node could be passed off
# as an entry.


def leaf_hash(data: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """All that is needed of a tree in order to append to it: the roots of its full subtrees, the largest first."""

    size: int = 0
    hashes: tuple[bytes, ...] = ()

    def extended(self, leaf_hashes: Iterable[bytes]) -> Frontier:
        """The tree with these leaves appended; about two hashes for each."""
        size, hashes = self.size, list(self.hashes)
        for node in leaf_hashes:
            carry = size
            while carry & 1:
                node = node_hash(hashes.pop(), node)
                carry >>= 1
            hashes.append(node)
            size += 1
        return Frontier(size=size, hashes=tuple(hashes))

    def root(self) -> bytes:
        return _root(self.hashes)

    def to_bytes(self) -> bytes:
        return self.size.to_bytes(8) + b"".join(self.hashes)

    @classmethod
    def from_bytes(cls, data: bytes) -> Frontier:
        """Read what `to_bytes` wrote.

        Raises:
            LedgerDamaged: a tree of that size has another number of full subtrees.
        """
        size = int.from_bytes(data[:8])
        if len(data) != 8 + HASH_BYTES * size.bit_count():
            raise _damaged("frontier of the ledger", f"{len(data)} bytes for {size} entries")
        return cls(size=size, hashes=tuple(data[at : at + HASH_BYTES] for at in range(8, len(data), HASH_BYTES)))


@lru_cache(maxsize=16)  # asked when a head is written, and again when something is appended to it
def _root(hashes: tuple[bytes, ...]) -> bytes:
    if not hashes:
        return hashlib.sha256(b"").digest()
    root = hashes[-1]
    for node in reversed(hashes[:-1]):
        root = node_hash(node, root)
    return root


# Tree heads.


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a signature commits to: the first `size` entries of the ledger of one trust domain.

    And what has no entry: heads of earlier releases lack it, and those without a change of roots lack `bundle`.
    """

    trust_domain: str
    size: int
    root: bytes
    time: datetime  # whole seconds
    settings: bytes | None = None  # `settings_digest` of the CA
    bundle: int | None = None  # the sequence number of the trust bundle, which never goes back


def sign_head(head: Head, signer: keys.Signer, key_id: str) -> str:
    """The head as a compact JWS (RFC 7515) with the CA's key: ES256, or ES384 for a P-384 key.

    Args:
        key_id: the subject key identifier of the CA, lower-case hex.
    """
    header = {"typ": HEAD_TYPE, "kid": key_id}
    return jws.sign_compact(_payload(head), key=keys.private_key(signer), header=header)


def head_signer(text: str) -> str:
    """The key id of the CA that claims to have signed a head: which key to verify it with, and nothing more.

    Raises:
        LedgerDamaged: it is no head.
    """
    kid = _parsed(text).header.get("kid")
    if not isinstance(kid, str):
        raise _damaged("tree head names no key", kid)
    return kid


def verify_head(text: str, public_key: ec.EllipticCurvePublicKey) -> Head:
    """Verify a signed tree head.

    Not checked: that the ledger has such a root; for which trust domain and how old it is.

    Raises:
        LedgerDamaged: not a head, or not signed with this key.
    """
    parsed = _parsed(text)
    try:
        return _head(parsed.verify(public_key))
    except SignatureError as error:
        raise _damaged("tree head is not signed by this CA", error) from None


def claimed_head(text: str) -> Head:
    """What a head says, with its signature not verified: good for nothing but to know where to look.

    Raises:
        LedgerDamaged: it is no head.
    """
    return _head(_parsed(text).payload)


def _head(payload: bytes) -> Head:
    try:
        members = parse(payload, max_bytes=MAX_ENTRY_BYTES, max_depth=1)
        head = Head(
            trust_domain=members["trust_domain"],
            size=members["tree_size"],
            root=jws.decode(members["root_hash"]),
            time=_moment(members["time"]),
            settings=jws.decode(members["settings"]) if "settings" in members else None,
            bundle=members.get("bundle_sequence"),
        )
        if payload != _payload(head) or type(head.size) is not int or head.size < 0 or len(head.root) != HASH_BYTES:
            raise ValueError("another payload than ours")
        if head.bundle is not None and type(head.bundle) is not int:
            raise ValueError("bundle_sequence is no number")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError, SignatureError) as error:
        raise _damaged("tree head cannot be read", error) from None
    return head


def _parsed(text: str) -> jws.Parsed:
    try:
        return jws.parse_compact(text, algorithms=("ES256", "ES384"), typ=HEAD_TYPE)
    except SignatureError as error:
        raise _damaged("tree head cannot be read", error) from None


def _payload(head: Head) -> bytes:
    members: dict[str, str | int] = {
        "trust_domain": head.trust_domain,
        "tree_size": head.size,
        "root_hash": jws.encode(head.root),
        "time": int(head.time.timestamp()),
    }
    if head.settings is not None:
        members["settings"] = jws.encode(head.settings)
    if head.bundle is not None:
        members["bundle_sequence"] = head.bundle
    return _ENCODER.encode(members).encode()


def _moment(seconds: object) -> datetime:
    if type(seconds) is not int:
        raise TypeError(f"time is {type(seconds).__name__}")
    return datetime.fromtimestamp(seconds, UTC)


def _damaged(what: str, got: object) -> LedgerDamaged:
    return LedgerDamaged(what, got=got, expected="what this CA wrote", do="run `a2a-pki ledger verify`")


_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
