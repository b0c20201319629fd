"""One answer of the Workload API that is right, and everything about it that may be wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.forge import Forge
from tests.trust.workload_agent import answer, ders, svid
from trust.errors import WorkloadAPIRefused
from trust.private_keys import generate
from trust.workload_messages import MAX_CHAIN, MAX_DOMAINS, MAX_IDENTITIES, MAX_LISTS, read

FORGE, PARTNER = Forge(), Forge("partner.example")
BILLING = FORGE.leaf("/billing")
ROOTS = (FORGE.root,)
PKCS8 = (Encoding.DER, PrivateFormat.PKCS8)
FOREIGN = {"spiffe://partner.example": ders([PARTNER.root])}


def test_an_answer_as_a_whole() -> None:
    second = Forge(make_key=lambda: generate("ML-DSA-44"))
    rotating = (FORGE.root, second.root)
    lists = FORGE.crls(BILLING).crls
    read_back = read(
        answer(
            svid(BILLING, rotating),
            svid(PARTNER.leaf("/here-too"), [PARTNER.root]),
            svid(FORGE.leaf("/third", key=generate("ML-DSA-44")), rotating, hint="external"),
            federated={"spiffe://third.example": ders([Forge("third.example").root]), "fourth.example": b""},
            crl=lists,
        )
    )
    assert [one.agent_id.path for one in read_back.credentials] == ["/billing", "/here-too", "/third"]
    first = read_back.credentials[0]
    assert (first.chain, first.thumbprint) == (BILLING.chain, BILLING.thumbprint)
    assert first.private_key.public_key() == BILLING.private_key.public_key()
    by_domain = read_back.bundles.by_domain
    assert by_domain["fleet.example"].roots == rotating
    assert by_domain["partner.example"].roots == (PARTNER.root,)
    assert {d: len(b.roots) for d, b in by_domain.items()} == {
        "fleet.example": 2, "partner.example": 1, "third.example": 1, "fourth.example": 0
    }  # fmt: skip
    assert read_back.crls.crls == lists
    assert read_back.crls.required_in == frozenset()


def test_equal_answers_are_equal_trust() -> None:
    data = answer(svid(BILLING, ROOTS), federated=FOREIGN, crl=FORGE.crls().crls)
    assert read(data).bundles == read(data).bundles
    assert read(data).crls == read(data).crls
    assert read(data).bundles != read(answer(svid(BILLING, ROOTS))).bundles


def _rsa_key() -> bytes:
    return rsa.generate_private_key(65537, 2048).private_bytes(*PKCS8, NoEncryption())


def _locked_key() -> bytes:
    return BILLING.private_key.private_bytes(*PKCS8, BestAvailableEncryption(b"secret"))


def _many(count: int) -> bytes:
    one = svid(BILLING, ROOTS)
    return answer(*[one] * count)


LEAF = ders(BILLING.chain[:1])
ANOTHER = ders(FORGE.leaf("/another").chain)
WRONG: list[tuple[str, Callable[[], bytes], str]] = [
    ("not a message", lambda: b"\xff\xff\xff", "X509SVIDResponse"),
    ("half a message", lambda: answer(svid(BILLING, ROOTS))[:-9], "X509SVIDResponse"),
    ("no identity", answer, "0 identities"),
    ("nothing", lambda: b"", "0 identities"),
    ("too many identities", lambda: _many(MAX_IDENTITIES + 1), f"{MAX_IDENTITIES + 1} identities"),
    ("no certificate", lambda: answer(svid(BILLING, ROOTS, x509_svid=b"")), "no certificate"),
    ("no key", lambda: answer(svid(BILLING, ROOTS, x509_svid_key=b"")), "private key that cannot be read"),
    ("no bundle", lambda: answer(svid(BILLING, ())), "no roots of fleet.example"),
    ("no name", lambda: answer(svid(BILLING, ROOTS, spiffe_id="")), "under its own name"),
    ("another's name", lambda: answer(svid(BILLING, ROOTS, spiffe_id="spiffe://fleet.example/a")), "its own name"),
    ("another's certificate", lambda: answer(svid(BILLING, ROOTS, x509_svid=ANOTHER)), "another certificate"),
    ("the chain upside down", lambda: answer(svid(BILLING, ROOTS, x509_svid=ders(BILLING.chain[::-1]))), "another"),
    ("a cut certificate", lambda: answer(svid(BILLING, ROOTS, x509_svid=LEAF[:-1])), "as X.509 has them"),
    ("a byte too many", lambda: answer(svid(BILLING, ROOTS, x509_svid=LEAF + b"0")), "as X.509 has them"),
    ("a length without end", lambda: answer(svid(BILLING, ROOTS, x509_svid=b"\x30\xff" + b"\xff" * 99)), "X.509"),
    ("an endless chain", lambda: answer(svid(BILLING, ROOTS, x509_svid=LEAF * (MAX_CHAIN + 1))), "in a row"),
    ("PEM", lambda: answer(svid(BILLING, ROOTS, x509_svid=BILLING.chain_pem)), "as X.509 has them"),
    ("a locked key", lambda: answer(svid(BILLING, ROOTS, x509_svid_key=_locked_key())), "without a password"),
    ("a key that agents have not", lambda: answer(svid(BILLING, ROOTS, x509_svid_key=_rsa_key())), "EC, Ed25519"),
    ("a CA for an agent", lambda: answer(svid(BILLING, ROOTS, x509_svid=ders(ROOTS))), "another certificate"),
    ("no certificates as roots", lambda: answer(svid(BILLING, ROOTS, bundle=b"roots")), "as X.509 has them"),
    ("more roots than anybody has", lambda: answer(svid(BILLING, ROOTS, bundle=ders(ROOTS * 65))), "in a row"),
    (
        "two bundles of one domain",
        lambda: answer(svid(BILLING, ROOTS), svid(FORGE.leaf("/b"), [PARTNER.root])),
        "two bundles of fleet.example",
    ),
    (
        "a federated bundle of our own domain",
        lambda: answer(svid(BILLING, ROOTS), federated={"spiffe://fleet.example": ders([PARTNER.root])}),
        "two bundles of fleet.example",
    ),
    (
        "a domain under two names",
        lambda: answer(svid(BILLING, ROOTS), federated={**FOREIGN, "partner.example": b""}),
        "two bundles of partner.example",
    ),
    (
        "an agent for a domain",
        lambda: answer(svid(BILLING, ROOTS), federated={"spiffe://partner.example/a": b""}),
        "partner.example/a",
    ),
    (
        "too many domains",
        lambda: answer(svid(BILLING, ROOTS), federated={f"d{n}.example": b"" for n in range(MAX_DOMAINS + 1)}),
        "federated trust domains",
    ),
    ("rubbish for a list", lambda: answer(svid(BILLING, ROOTS), crl=[b"list"]), "as X.509 has them"),
    ("too many lists", lambda: answer(svid(BILLING, ROOTS), crl=[b""] * (MAX_LISTS + 1)), "revocation lists"),
]


@pytest.mark.parametrize(("make", "words"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_an_answer_that_is_wrong_is_refused_as_a_whole(make: Callable[[], bytes], words: str) -> None:
    with pytest.raises(WorkloadAPIRefused) as caught:
        read(make())
    assert type(caught.value) is WorkloadAPIRefused
    assert words in str(caught.value)


def test_no_secret_is_in_a_message_of_ours() -> None:
    key = BILLING.private_key.private_bytes(*PKCS8, NoEncryption())
    with pytest.raises(WorkloadAPIRefused) as caught:
        read(answer(svid(BILLING, ROOTS, x509_svid_key=key[:-1])))
    assert key[40:48].hex() not in str(caught.value) and caught.value.__cause__ is None
    assert repr(key)[2:20] not in repr(read(answer(svid(BILLING, ROOTS))))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_comes_is_read_or_refused(data: st.DataObject) -> None:
    good = answer(svid(BILLING, ROOTS), federated=FOREIGN)
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + data.draw(st.binary(max_size=4)) + good[at + data.draw(st.integers(0, 4)) :]
    try:
        read_back = read(bad)
    except WorkloadAPIRefused:
        return
    assert all(isinstance(c, x509.Certificate) for one in read_back.credentials for c in one.chain)
