"""A root, an intermediate and a store, without an authority around them: what lists and OCSP answers are made of."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from pki import keys, profiles
from pki.errors import KeyStoreError
from pki.policy import Approved
from pki.profiles import Issuer, Urls
from pki.records import Issue, IssuerRecord, Record, Settings, State
from pki.revocation import Revocations
from pki.store import Store
from tests.pki.conftest import DOMAIN, NOW
from trust.identity import AgentID

BASE = "http://pki.fleet.example"
URLS = Urls.of(Settings(trust_domain=DOMAIN, public_url=BASE))
DAY = timedelta(days=1)
AGENT_KEY = keys.generate()  # one for all agents: nobody here asks for it

_serials = count(0x1000_0000_0000_0000_0000_0000_0000_0000)


@dataclass
class Authority:
    """One CA certificate with its key."""

    kind: str
    issuer: Issuer
    key: ec.EllipticCurvePrivateKey
    parent: str

    @classmethod
    def root(cls, now: datetime = NOW) -> Authority:
        key = keys.generate()
        builder = profiles.root(trust_domain=DOMAIN, public_key=key.public_key(), serial=next(_serials), now=now)
        issuer = Issuer.of(keys.sign(builder, key))
        return cls("root", issuer, key, issuer.key_id)

    def intermediate(self, now: datetime = NOW, urls: Urls | None = URLS) -> Authority:
        key = keys.generate()
        builder = profiles.intermediate(
            trust_domain=DOMAIN,
            public_key=key.public_key(),
            issuer=self.issuer,
            serial=next(_serials),
            now=now,
            urls=urls,
        )
        return Authority("intermediate", Issuer.of(keys.sign(builder, self.key)), key, self.issuer.key_id)

    @property
    def key_id(self) -> str:
        return self.issuer.key_id

    @property
    def certificate(self) -> x509.Certificate:
        return self.issuer.certificate

    def agent(
        self,
        path: str = "/billing",
        *,
        now: datetime = NOW,
        lifetime: timedelta = DAY,
        urls: Urls | None = URLS,
        shard: int = 0,
    ) -> x509.Certificate:
        content = Approved(
            agent_id=AgentID(DOMAIN, path),
            public_key=AGENT_KEY.public_key(),
            dns_names=(),
            ip_addresses=(),
            lifetime=lifetime,
        )
        unsigned = profiles.agent(content, issuer=self.issuer, serial=next(_serials), now=now, urls=urls, shard=shard)
        return keys.sign_agent(unsigned, self.key)[0]

    def records(self, state: State = State.ACTIVE) -> tuple[IssuerRecord, Record]:
        """As the store has them. The stored key is no key: these tests hold theirs themselves."""
        issuer = IssuerRecord(
            key_id=self.key_id,
            kind=self.kind,
            parent=self.parent,
            state=state,
            since=NOW,
            serial=self.certificate.serial_number,
            der=self.certificate.public_bytes(Encoding.DER),
            key_pem=b"elsewhere",
        )
        record = Record.of(self.certificate, kind=self.kind, issuer=self.parent, spiffe_id=f"spiffe://{DOMAIN}")
        return issuer, record


@dataclass
class SmallCA:
    """The store, and who signs. `asked` counts how often a key was asked for."""

    store: Store
    root: Authority
    intermediate: Authority
    urls: Urls
    offline: set[str] = field(default_factory=set)
    asked: int = 0

    @classmethod
    def make(cls, folder: Path, urls: Urls = URLS, now: datetime = NOW) -> SmallCA:
        root = Authority.root(now)
        intermediate = root.intermediate(now, urls)
        pairs = [root.records(), intermediate.records()]
        settings = Settings(trust_domain=DOMAIN, crl_base_url=urls.crl_base)
        Store.create(folder, settings, [pair[0] for pair in pairs], [pair[1] for pair in pairs], now=now)
        made = cls(Store.open(folder), root, intermediate, urls)
        weakref.finalize(made, made.store.close)  # Python 3.13 warns of each connection that nobody closed
        return made

    def signer_of(self, key_id: str) -> keys.Signer:
        self.asked += 1
        if key_id in self.offline:
            raise KeyStoreError("key is not here")
        return {one.key_id: one.key for one in (self.root, self.intermediate)}[key_id]

    def revocations(self) -> Revocations:
        return Revocations(self.store, self.signer_of, self.urls)

    def issue(
        self, path: str = "/billing", *, shard: int = 0, now: datetime = NOW, **options: timedelta
    ) -> x509.Certificate:
        certificate = self.intermediate.agent(path, now=now, urls=self.urls, shard=shard, **options)
        record = Record.of(
            certificate,
            kind="agent",
            issuer=self.intermediate.key_id,
            spiffe_id=f"spiffe://{DOMAIN}{path}",
            shard=shard,
        )
        self.store.issue(Issue(record=record, now=now))
        return certificate

    def revoke(
        self,
        *certificates: x509.Certificate,
        now: datetime = NOW,
        reason: x509.ReasonFlags = x509.ReasonFlags.key_compromise,
    ) -> None:
        self.store.revoke([certificate.serial_number for certificate in certificates], reason=reason, now=now)
