"""A small CA's books, as values: what a store would answer, to be audited, and altered row by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from pki import keys, ledger
from pki.ledger import Entry, Frontier, Head, leaf_hash
from pki.records import IssuerRecord, LedgerRow, ListRow, Record, SealedHead, Settings, State, TokenRecord

DOMAIN = "fleet.example"
AGENT = f"spiffe://{DOMAIN}/billing"
NOW = datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC)
POLICY = "[[allow]]\n"
ROOT_KEY, KEY, OTHER_KEY = keys.generate(), keys.generate(), keys.generate()


def certify(
    spiffe_id: str, serial: int, public_key: ec.EllipticCurvePublicKey, signer: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    """A certificate with what an audit looks at, and nothing else."""
    name = x509.Name([])
    builder = x509.CertificateBuilder(name, name, public_key, serial, NOW, NOW + timedelta(days=1))
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id)])
    ski = x509.SubjectKeyIdentifier.from_public_key(public_key)
    return keys.sign(builder.add_extension(san, critical=True).add_extension(ski, critical=False), signer)


def key_id(key: ec.EllipticCurvePrivateKey) -> str:
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()


def ca(kind: str, serial: int, key: ec.EllipticCurvePrivateKey) -> tuple[IssuerRecord, Record]:
    certificate = certify(f"spiffe://{DOMAIN}", serial, key.public_key(), ROOT_KEY)
    issuer = IssuerRecord(
        key_id=key_id(key),
        kind=kind,
        parent=key_id(ROOT_KEY),
        state=State.ACTIVE,
        since=NOW,
        serial=serial,
        der=certificate.public_bytes(Encoding.DER),
    )
    return issuer, Record.of(certificate, kind=kind, issuer=issuer.parent, spiffe_id=f"spiffe://{DOMAIN}")


def agent(serial: int, spiffe_id: str = AGENT, signer: ec.EllipticCurvePrivateKey = KEY) -> Record:
    certificate = certify(spiffe_id, serial, OTHER_KEY.public_key(), signer)
    return Record.of(certificate, kind="agent", issuer=key_id(signer), spiffe_id=spiffe_id)


ROOT, ROOT_RECORD = ca("root", 1, ROOT_KEY)
ISSUER, ISSUER_RECORD = ca("intermediate", 2, KEY)
RECORD = agent(0x10)
KEYS = {ROOT.key_id: ROOT_KEY.public_key(), ISSUER.key_id: KEY.public_key()}


@dataclass
class Books:
    """What `pki.ledger_audit` asks of a store. Everything in it may be altered."""

    domain: str = DOMAIN
    policy: str | None = None
    cas: list[IssuerRecord] = field(default_factory=list)
    banned: dict[str, datetime] = field(default_factory=dict)
    certificates: list[Record] = field(default_factory=list)
    rows: list[LedgerRow] = field(default_factory=list)
    sealed: list[SealedHead] = field(default_factory=list)
    tokens: list[TokenRecord] = field(default_factory=list)
    lists: list[ListRow] = field(default_factory=list)
    sequence: int = 1

    def append(self, *entries: Entry, signer: ec.EllipticCurvePrivateKey | None = KEY) -> None:
        """One transaction: the entries, and a head, signed unless there is no signer."""
        for entry in entries:
            data = entry.encode()
            self.rows.append(LedgerRow(position=len(self.rows), entry=data, leaf=leaf_hash(data)))
        self.seal(signer)

    def seal(self, signer: ec.EllipticCurvePrivateKey | None = KEY) -> None:
        tree = Frontier().extended(row.leaf for row in self.rows)
        head = Head(trust_domain=self.domain, size=tree.size, root=tree.root(), time=NOW)
        text = None if signer is None else ledger.sign_head(head, signer, key_id(signer))
        self.sealed.append(
            SealedHead(size=head.size, root=head.root, time=head.time, frontier=tree.to_bytes(), jws=text)
        )

    def issue(self, *records: Record) -> None:
        self.certificates.extend(records)
        self.append(*(ledger.entry_for_record(record) for record in records))

    def settings(self) -> Settings:
        return Settings(trust_domain=self.domain)

    def policy_text(self) -> str | None:
        return self.policy

    def bundle_sequence(self) -> int:
        return self.sequence

    def each_token(self) -> Iterator[TokenRecord]:
        return iter(list(self.tokens))

    def each_list(self) -> Iterator[ListRow]:
        return iter(list(self.lists))

    def issuers(self) -> list[IssuerRecord]:
        return list(self.cas)

    def bans(self) -> list[tuple[str, datetime]]:
        return list(self.banned.items())

    def each_record(self) -> Iterator[Record]:
        return iter(list(self.certificates))

    def ledger_rows(self, start: int = 0) -> Iterator[LedgerRow]:
        return iter([row for row in self.rows if row.position >= start or start == 0])

    def heads(self) -> Iterator[SealedHead]:
        return iter(list(self.sealed))


def founded() -> Books:
    """A root and an intermediate, and nothing else yet."""
    books = Books(cas=[ROOT, ISSUER], certificates=[ROOT_RECORD, ISSUER_RECORD])
    entries: Sequence[Entry] = [
        entry
        for issuer, record in ((ROOT, ROOT_RECORD), (ISSUER, ISSUER_RECORD))
        for entry in (ledger.entry_for_record(record), ledger.entry_for_issuer(issuer))
    ]
    books.append(*entries)
    return books
