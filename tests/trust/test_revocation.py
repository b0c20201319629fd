"""CRLs: which of them answer for a certificate, and at what cost. Seen through the verifier that uses them."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.forge import HOUR, NOW, Forge, _usage
from trust.bundles import RevocationLists, TrustBundle, TrustBundles
from trust.certificates import Certificate
from trust.credentials import Credentials
from trust.errors import CertificateRevoked, PeerError, RevocationUnknown
from trust.peers import PeerVerifier, verify_peer
from trust.revocation import RevocationIndex
from trust.sources import Live

FORGE = Forge()
SECOND = timedelta(seconds=1)
NO_REV_AVAIL = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.56"), b"\x05\x00")
POINT = x509.UniformResourceIdentifier("http://ca.fleet.example/crl/3")
OTHER_POINT = x509.UniformResourceIdentifier("http://ca.fleet.example/crl/4")


def with_points(*points: x509.DistributionPoint) -> Credentials:
    return FORGE.leaf(extra=[(x509.CRLDistributionPoints(list(points)), False)])


def point(*names: x509.GeneralName, **changes: Any) -> x509.DistributionPoint:
    parts = {"full_name": list(names) or None, "relative_name": None, "reasons": None, "crl_issuer": None}
    return x509.DistributionPoint(**(parts | changes))


AGENT = with_points(point(POINT))


def scope(**changes: Any) -> x509.IssuingDistributionPoint:
    parts: dict[str, Any] = {
        "full_name": None,
        "relative_name": None,
        "only_contains_user_certs": False,
        "only_contains_ca_certs": False,
        "only_some_reasons": None,
        "indirect_crl": False,
        "only_contains_attribute_certs": False,
    }
    return x509.IssuingDistributionPoint(**(parts | changes))


def crl(
    *serials: int,
    extensions: list[tuple[x509.ExtensionType, bool]] | None = None,
    reason: x509.ReasonFlags | None = None,
    invalid: x509.ExtensionType | None = None,
    key: Any = FORGE.key,
    issuer: x509.Certificate = FORGE.intermediate,
    algorithm: hashes.HashAlgorithm | None = None,
    this_update: datetime = NOW - HOUR,
    next_update: datetime = NOW + HOUR,
    numbered: bool = True,
) -> x509.CertificateRevocationList:
    entries = []
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - HOUR)
        if reason is not None:
            entry = entry.add_extension(x509.CRLReason(reason), False)
        if invalid is not None:
            entry = entry.add_extension(invalid, False)
        entries.append(entry.build())
    # The entries go in at once: adding them one by one copies the list each time.
    builder = x509.CertificateRevocationListBuilder(
        issuer.subject,
        this_update,
        next_update,
        [],
        entries,  # type: ignore[arg-type]
    )
    extensions = extensions or []
    if numbered and not any(isinstance(extension, x509.CRLNumber) for extension, _ in extensions):
        extensions = [*extensions, (x509.CRLNumber(1), False)]
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(key, algorithm or hashes.SHA256())


ROOT_CRL = crl(key=FORGE.root_key, issuer=FORGE.root)


def judge(*crls: x509.CertificateRevocationList, agent: Credentials = AGENT, now: datetime = NOW) -> None:
    verify_peer(agent.chain_der, bundles=FORGE.bundles, now=now, crls=[*crls, ROOT_CRL], usage="client")


def unknown_critical(oid: str) -> list[tuple[x509.ExtensionType, bool]]:
    return [(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), b"\x05\x00"), True)]


GOOD = {
    "no extension but a number": crl(),
    "a number and a key identifier": crl(
        extensions=[
            (x509.CRLNumber(7), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(FORGE.key.public_key()), False),
        ]
    ),
    "a freshest CRL beside it": crl(extensions=[(x509.FreshestCRL([point(POINT)]), False)]),
    "user certificates only": crl(extensions=[(scope(only_contains_user_certs=True), True)]),
    "our distribution point": crl(extensions=[(scope(full_name=[POINT]), True)]),
    "ours among several": crl(extensions=[(scope(full_name=[OTHER_POINT, POINT]), True)]),
    "SHA-384": crl(algorithm=hashes.SHA384()),
}

# Arguments of `crl`, and the problem that is told. First those that the issuer has signed.
AUTHENTIC: dict[str, tuple[dict[str, Any], str]] = {
    "a CRL that has ended": ({"this_update": NOW - 2 * HOUR, "next_update": NOW - SECOND}, "by our clock"),
    "a CRL that lies ahead": ({"this_update": NOW + 61 * SECOND, "next_update": NOW + HOUR}, "by our clock"),
    "a delta CRL": ({"extensions": [(x509.DeltaCRLIndicator(1), True)]}, "delta"),
    "a delta CRL that hides it": ({"extensions": [(x509.DeltaCRLIndicator(1), False)]}, "delta"),
    "an indirect CRL": ({"extensions": [(scope(indirect_crl=True), True)]}, "indirect or partial"),
    "some reasons only": (
        {"extensions": [(scope(only_some_reasons=frozenset([x509.ReasonFlags.key_compromise])), True)]},
        "indirect or partial",
    ),
    "attribute certificates only": (
        {"extensions": [(scope(only_contains_attribute_certs=True), True)]},
        "indirect or partial",
    ),
    "CA certificates only": ({"extensions": [(scope(only_contains_ca_certs=True), True)]}, "other kind"),
    "another distribution point": ({"extensions": [(scope(full_name=[OTHER_POINT]), True)]}, "another distribution"),
    "a relative distribution point": (
        {
            "extensions": [
                (
                    scope(
                        relative_name=x509.RelativeDistinguishedName(
                            [x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")]
                        )
                    ),
                    True,
                )
            ]
        },
        "relative",
    ),
    "no number": ({"numbered": False}, "without a number"),
    "a number that is critical": ({"extensions": [(x509.CRLNumber(7), True)]}, "critical extension 2.5.29.20"),
    "an unknown critical extension": (
        {"extensions": unknown_critical("1.2.3.4")},
        "unknown critical extension 1.2.3.4",
    ),
    "a scope that cannot be read": ({"extensions": unknown_critical("2.5.29.28")}, "cannot be read"),
}
UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    **AUTHENTIC,
    "SHA-224": ({"algorithm": hashes.SHA224()}, "signature algorithm"),
    "the key of the root": ({"key": FORGE.root_key}, "another key"),
    "a key of another kind": ({"key": rsa.generate_private_key(65537, 2048)}, "another key"),
    "the name of the root": ({"key": FORGE.key, "issuer": FORGE.root}, "no CRL of"),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_crl_answers(name: str) -> None:
    judge(GOOD[name])


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_crl_that_is_not_understood_answers_nothing(name: str) -> None:
    arguments, problem = UNUSABLE[name]
    unusable = crl(**arguments)
    with pytest.raises(RevocationUnknown, match=problem):
        judge(unusable)
    judge(unusable, crl())  # and does not stand in the way of one that is


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_its_issuer_has_listed_is_revoked_whatever_else_is_wrong_with_the_list(name: str) -> None:
    listing = crl(AGENT.certificate.serial_number, **UNUSABLE[name][0])
    if name not in AUTHENTIC:  # anybody may have made it
        judge(listing, crl())
        return
    for others in ((), (crl(),)):
        with pytest.raises(CertificateRevoked):
            judge(listing, *others)
        with pytest.raises(CertificateRevoked):
            judge(*others, listing)


def test_a_revocation_does_not_lapse_with_its_list() -> None:
    """The next list is still to come; the certificate says that nobody need ask."""
    short = FORGE.leaf(extra=[(NO_REV_AVAIL, False)])
    listing = crl(short.certificate.serial_number, this_update=NOW - 2 * HOUR, next_update=NOW - SECOND)
    with pytest.raises(CertificateRevoked):
        judge(listing, agent=short)
    judge(crl(this_update=NOW - 2 * HOUR, next_update=NOW - SECOND), agent=short)


def test_a_list_that_makes_no_difference_is_not_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    delta = crl(extensions=[(x509.DeltaCRLIndicator(1), True)])
    index = RevocationIndex(RevocationLists.of([delta]))

    def refuse(*_: object) -> str:
        raise AssertionError("the signature of a large list takes long")

    monkeypatch.setattr("trust.revocation._Indexed.signed_by", refuse)
    path = tuple(Certificate.read(der) for der in AGENT.chain_der)
    (answer,) = index.answers(path, "fleet.example")
    assert (answer.listing, answer.crls) == ((), ())


# noRevAvail


def exempt(value: bytes = b"\x05\x00", *extra: tuple[x509.ExtensionType, bool], **changes: Any) -> Credentials:
    no_rev_avail = x509.UnrecognizedExtension(NO_REV_AVAIL.oid, value)
    return FORGE.leaf(extra=[(no_rev_avail, False), *extra], **changes)


BELIEVED = {
    "of a day, set back by an hour": exempt(),
    "of an hour": exempt(not_after=NOW + HOUR),
    "beside an OCSP responder": exempt(
        b"\x05\x00",
        (
            x509.AuthorityInformationAccess(
                [x509.AccessDescription(AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier("http://x"))]
            ),
            False,
        ),
    ),
}
NOT_BELIEVED = {
    "longer than a day and an hour": exempt(not_after=NOW + 24 * HOUR + SECOND),
    "no value": exempt(b""),
    "another value": exempt(b"\x01\x01\x00"),
    "a value with more behind it": exempt(b"\x05\x00\x00"),
    "a NULL in the long form": exempt(b"\x05\x81\x00"),
    "beside a place for CRLs": exempt(b"\x05\x00", (x509.CRLDistributionPoints([point(POINT)]), False)),
    "beside a place for newer CRLs": exempt(b"\x05\x00", (x509.FreshestCRL([point(POINT)]), False)),
}


@pytest.mark.parametrize("name", BELIEVED)
def test_no_rev_avail_of_a_short_life_is_believed(name: str) -> None:
    judge(agent=BELIEVED[name])


@pytest.mark.parametrize("name", NOT_BELIEVED)
def test_no_rev_avail_that_breaks_its_rules_is_not_believed(name: str) -> None:
    with pytest.raises(RevocationUnknown):
        judge(agent=NOT_BELIEVED[name])
    judge(crl(), agent=NOT_BELIEVED[name])  # it is not there, and that is all


@pytest.mark.parametrize("reason", [None, *(r for r in x509.ReasonFlags)])
def test_every_entry_means_revoked(reason: x509.ReasonFlags | None) -> None:
    with pytest.raises(CertificateRevoked):
        judge(crl(AGENT.certificate.serial_number, reason=reason))


def test_an_entry_with_an_unknown_critical_extension_means_revoked() -> None:
    entry = (
        x509.RevokedCertificateBuilder()
        .serial_number(AGENT.certificate.serial_number)
        .revocation_date(NOW + HOUR)  # and one that lies ahead makes no difference
        .add_extension(x509.CertificateIssuer([x509.DirectoryName(FORGE.root.subject)]), True)
        .build()
    )
    builder = x509.CertificateRevocationListBuilder(FORGE.intermediate.subject, NOW - HOUR, NOW + HOUR, [], [entry])
    with pytest.raises(CertificateRevoked):
        judge(builder.sign(FORGE.key, hashes.SHA256()))


@pytest.mark.parametrize(
    "agent",
    [
        FORGE.leaf(),
        with_points(point(OTHER_POINT)),
        with_points(point(POINT, reasons=frozenset([x509.ReasonFlags.key_compromise]))),
        with_points(point(POINT, crl_issuer=[x509.DirectoryName(FORGE.root.subject)])),
        with_points(point(crl_issuer=[x509.DirectoryName(FORGE.root.subject)])),
    ],
    ids=["no point", "another point", "some reasons", "another issuer", "only an issuer"],
)
def test_the_crl_of_a_distribution_point_is_not_about_others(agent: Credentials) -> None:
    sharded = crl(extensions=[(scope(full_name=[POINT]), True)])
    with pytest.raises(RevocationUnknown, match="another distribution point"):
        judge(sharded, agent=agent)


def test_a_crl_about_user_certificates_says_nothing_about_a_ca() -> None:
    users = crl(extensions=[(scope(only_contains_user_certs=True), True)], key=FORGE.root_key, issuer=FORGE.root)
    with pytest.raises(RevocationUnknown, match="other kind"):
        verify_peer(AGENT.chain_der, bundles=FORGE.bundles, now=NOW, crls=[crl(), users], usage="client")


def test_a_ca_that_may_not_sign_crls() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    silent = FORGE._certificate(
        "silent",
        key.public_key(),
        FORGE.root,
        FORGE.root_key,
        [(x509.BasicConstraints(True, 0), True), (_usage(key_cert_sign=True), True)],
        HOUR,
    )
    agent = FORGE.leaf(issuer=silent, issuer_key=key)
    chain = [agent.chain_der[0], silent.public_bytes(Encoding.DER)]
    with pytest.raises(RevocationUnknown, match="may not sign CRLs"):
        verify_peer(chain, bundles=FORGE.bundles, now=NOW, crls=[crl(key=key, issuer=silent), ROOT_CRL], usage="client")


def test_two_cas_of_one_name_have_a_crl_each() -> None:
    """A CA got a new key under its old name; certificates of both keys are in use."""
    new = Forge()
    renewed = new.ca("fleet.example intermediate", new.key, FORGE.root, FORGE.root_key, pathlen=0)
    agent = new.leaf(issuer=renewed)
    chain = [agent.chain_der[0], renewed.public_bytes(Encoding.DER)]
    crls = RevocationLists.of([crl(), crl(agent.certificate.serial_number, key=new.key, issuer=renewed), ROOT_CRL])
    verifier = PeerVerifier(FORGE.bundles, crls)
    for _ in range(2):
        verifier.verify(AGENT.chain_der, now=NOW, usage="client")
        with pytest.raises(CertificateRevoked):
            verifier.verify(chain, now=NOW, usage="client")
    verifier = PeerVerifier(FORGE.bundles, RevocationLists.of([crl(), ROOT_CRL]))
    verifier.verify(AGENT.chain_der, now=NOW, usage="client")
    with pytest.raises(RevocationUnknown, match="another key"):  # the old key's CRL does not answer for the new key
        verifier.verify(chain, now=NOW, usage="client")


def tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    return (
        bytes([tag, size] if size < 128 else [tag, 0x81, size] if size < 256 else [tag, 0x82, *divmod(size, 256)])
        + content
    )


def moment(text: str | datetime) -> bytes:
    if isinstance(text, datetime):
        return tlv(0x17, f"{text:%y%m%d%H%M%S}Z".encode())
    return tlv(0x18, text.encode())


def entry(serial: int, revoked: bytes) -> bytes:
    return tlv(0x30, tlv(0x02, serial.to_bytes(serial.bit_length() // 8 + 1, "big")) + revoked)


def handmade(*times: bytes, entries: bytes = b"") -> x509.CertificateRevocationList:
    """Signed by its issuer, with what no builder writes."""
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256
    number = tlv(0xA0, tlv(0x30, tlv(0x30, bytes.fromhex("0603551d14") + tlv(0x04, b"\x02\x01\x01"))))
    parts = [b"\x02\x01\x01", algorithm, FORGE.intermediate.subject.public_bytes(), *times]
    parts += [tlv(0x30, entries), number] if entries else [number]
    body = tlv(0x30, b"".join(parts))
    signature = FORGE.key.sign(body, ec.ECDSA(hashes.SHA256()))
    made = x509.load_der_x509_crl(tlv(0x30, body + algorithm + tlv(0x03, b"\0" + signature)))
    assert made.is_signature_valid(FORGE.key.public_key())
    return made


SERIAL = AGENT.certificate.serial_number
LISTED = entry(SERIAL, moment(NOW - HOUR))
FIRST, LAST = moment("00010101000000Z"), moment("99991231235959Z")
NO_TIME = moment("00000101000000Z")


@pytest.mark.parametrize(
    ("times", "problem"),
    [  # RFC 5280 section 5.1.2.5 requires nextUpdate
        pytest.param((moment(NOW - HOUR),), "without nextUpdate", id="no end"),
        pytest.param((FIRST,), "without nextUpdate", id="the first day, no end"),
        pytest.param((LAST, LAST), "by our clock", id="the last day"),
        pytest.param((FIRST, FIRST), "by our clock", id="the first day"),
        pytest.param((NO_TIME, LAST), "cannot be read", id="before the first day"),
        pytest.param((FIRST, NO_TIME), "cannot be read", id="ends before the first day"),
    ],
)
def test_a_crl_of_odd_times_answers_nothing_and_stands_in_nobodys_way(times: tuple[bytes, ...], problem: str) -> None:
    odd = handmade(*times)
    with pytest.raises(RevocationUnknown, match=problem):
        judge(odd)
    judge(odd, crl())
    with pytest.raises(CertificateRevoked):
        judge(handmade(*times, entries=LISTED), crl())


def test_a_crl_from_the_first_day_of_the_calendar_to_the_last_is_current() -> None:
    judge(handmade(FIRST, LAST))
    path = tuple(Certificate.read(der) for der in AGENT.chain_der)
    (answer,) = RevocationIndex(RevocationLists.of([handmade(FIRST, LAST)])).answers(path, FORGE.domain)
    for now in (datetime.min, datetime.max.replace(microsecond=0)):
        assert answer.current(now.replace(tzinfo=UTC)), now


@pytest.mark.parametrize(
    ("times", "since"),
    [
        pytest.param((moment(NOW), moment(NOW - HOUR), moment(NOW + HOUR)), NOW - HOUR, id="three times"),
        pytest.param((moment(NOW), FIRST), datetime.min.replace(tzinfo=UTC), id="on the first day"),
        pytest.param((NO_TIME,), datetime.min.replace(tzinfo=UTC), id="before the first day"),
    ],
)
def test_the_earliest_entry_says_since_when(times: tuple[bytes, ...], since: datetime) -> None:
    others = entry(SERIAL + 1, moment(NOW - 2 * HOUR))
    revoking = handmade(
        moment(NOW - HOUR), moment(NOW + HOUR), entries=others + b"".join(entry(SERIAL, time) for time in times)
    )
    verifier = PeerVerifier(FORGE.bundles, RevocationLists.of([revoking, ROOT_CRL]))
    agent = PeerVerifier(FORGE.bundles).verify(AGENT.chain_der, now=NOW, usage="client")
    assert verifier.revocation(agent, now=NOW, usage="client").revoked_since == since


def test_the_issuer_of_a_crl_is_shown_where_there_is_none() -> None:
    with pytest.raises(
        RevocationUnknown, match=r"no CRL of spiffe://fleet\.example, for spiffe://fleet\.example/billing"
    ):
        judge()


def test_crls_are_indexed_once() -> None:
    rng = random.Random(7)
    big = crl(*{rng.getrandbits(152) + 1 for _ in range(30_000)})
    crls = Live(RevocationLists.of([big, ROOT_CRL]))
    verifier = PeerVerifier(FORGE.bundles, crls)
    verifier.verify(AGENT.chain_der, now=NOW, usage="client")
    indexed = verifier._snapshot.revocation._indexed[0]
    crls.replace(RevocationLists.of([big, crl(key=FORGE.root_key, issuer=FORGE.root)]))
    verifier.verify(AGENT.chain_der, now=NOW, usage="client")
    assert verifier._snapshot.revocation._indexed[0] is indexed


def test_a_crl_whose_issuer_cannot_be_read_is_a_crl_all_the_same() -> None:
    """It answers nothing, and it does not count as "no CRLs", which would switch the check off."""
    name = b"\x0c\x1afleet.example intermediate"
    der = crl().public_bytes(Encoding.DER)
    assert name in der
    odd = x509.load_der_x509_crl(der.replace(name, b"\x03" + name[1:]))
    with pytest.raises(RevocationUnknown):
        verify_peer(AGENT.chain_der, bundles=FORGE.bundles, now=NOW, crls=[odd], usage="client")


def test_without_crls_there_is_nothing_to_ask() -> None:
    assert RevocationIndex(RevocationLists()).answers((), "fleet.example") == ()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_crls_of_any_bytes_are_judged(data: st.DataObject) -> None:
    der = bytearray(GOOD["a number and a key identifier"].public_bytes(Encoding.DER))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(der) - 1))
        der[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        altered = x509.load_der_x509_crl(bytes(der))
    except ValueError:
        return
    try:
        judge(altered)
    except PeerError:
        return
    assert bytes(der) == GOOD["a number and a key identifier"].public_bytes(Encoding.DER)


def test_a_root_and_bundle_of_two_roots_with_their_own_crls() -> None:
    other = Forge()
    bundles = TrustBundles.of(TrustBundle(trust_domain=FORGE.domain, roots=(FORGE.root, other.root)))
    crls = [*FORGE.crls(AGENT).crls, *other.crls().crls]
    verify_peer(other.leaf().chain_der, bundles=bundles, now=NOW, crls=crls, usage="server")
    with pytest.raises(CertificateRevoked):
        verify_peer(AGENT.chain_der, bundles=bundles, now=NOW + timedelta(seconds=1), crls=crls, usage="server")


@pytest.mark.parametrize(
    ("invalid", "since"),
    [
        (None, NOW - HOUR),
        (x509.InvalidityDate(NOW - 2 * HOUR), NOW - 2 * HOUR),
        (x509.InvalidityDate(NOW), NOW - HOUR),
        (x509.UnrecognizedExtension(x509.InvalidityDate.oid, b"when?"), datetime.min.replace(tzinfo=UTC)),
    ],
)
def test_since_when(invalid: x509.ExtensionType | None, since: datetime) -> None:
    """RFC 5280 section 5.3.2: a key may be known to have been stolen before its certificate was revoked."""
    verifier = PeerVerifier(FORGE.bundles)
    agent = verifier.verify(AGENT.chain_der, now=NOW, usage="client")
    facts = verifier.revocation(agent, now=NOW, usage="client")
    assert (facts.crls, facts.known, facts.revoked_since) == ((), False, None)
    revoking = crl(AGENT.certificate.serial_number, invalid=invalid)
    old = crl(next_update=NOW - HOUR / 2)
    verifier = PeerVerifier(FORGE.bundles, RevocationLists.of([old, revoking, ROOT_CRL]))
    facts = verifier.revocation(agent, now=NOW, usage="client")
    assert facts.crls == (revoking, ROOT_CRL)
    assert facts.revoked_since == since
    without = PeerVerifier(FORGE.bundles, RevocationLists.of([old, ROOT_CRL]))
    assert not without.revocation(agent, now=NOW, usage="client").known
