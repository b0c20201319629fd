"""Attacks on enrolment and renewal: one thing that is granted, one change a row, and the refusal that it must meet.

The victim is a CA with an agent `billing`, its token and its certificate. The attacker has what each row says.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from pki import CertificateAuthority, Issued, PKIError, enrolment, keys
from pki.errors import (
    AgentBanned,
    AuthorityDamaged,
    CertificateAlreadyExpired,
    CertificateAlreadyRevoked,
    EnrolmentTokenExpired,
    EnrolmentTokenForged,
    EnrolmentTokenMalformed,
    EnrolmentTokenUnknown,
    EnrolmentTokenUsed,
    IDRefused,
    KeyTypeRefused,
    NotIssuedHere,
    PossessionNotProven,
    RequestKeyRefused,
    RequestMalformed,
    RequestTooLarge,
)
from pki.records import State
from tests.pki.conftest import AGENT, DOMAIN, NOW, PASSWORD, Clock
from tests.pki.judges import request, uri
from trust.credentials import Credentials
from trust.identity import AgentID

HOUR = timedelta(hours=1)
OTHER = f"spiffe://{DOMAIN}/payroll"


@dataclass
class World:
    """A CA, a second one of the same trust domain with other keys, and what the agent `billing` has."""

    ca: CertificateAuthority
    foreign: CertificateAuthority
    clock: Clock
    key: ec.EllipticCurvePrivateKey
    token: str
    agent: Credentials

    @property
    def leaf(self) -> bytes:
        return self.agent.chain_der[0]

    @property
    def csr(self) -> bytes:
        return request(uri(AGENT), key=self.key)

    def signed(self, signer: ec.EllipticCurvePrivateKey, issuer: x509.Certificate, **changes: object) -> bytes:
        """A copy of the agent's certificate by another signer, with other parts."""
        own = self.agent.certificate
        names = changes.get("names", own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(issuer.subject)
            .public_key(self.key.public_key())
            .serial_number(changes.get("serial", own.serial_number))  # type: ignore[arg-type]
            .not_valid_before(own.not_valid_before_utc)
            .not_valid_after(own.not_valid_after_utc + changes.get("longer", timedelta(0)))  # type: ignore[operator]
        )
        for extension in own.extensions:
            if not isinstance(extension.value, x509.SubjectAlternativeName):
                builder = builder.add_extension(extension.value, extension.critical)
        builder = builder.add_extension(names, critical=True)  # type: ignore[arg-type]
        return keys.sign(builder, signer).public_bytes(Encoding.DER)

    def stolen(self, kind: str) -> ec.EllipticCurvePrivateKey:
        """A CA's own private key, as whoever has its database and password gets it."""
        record = next(r for r in self.ca.issuers() if r.kind == kind)
        return keys.read(record.key_pem or b"", PASSWORD)

    def issuer(self, kind: str) -> str:
        return next(r.key_id for r in self.ca.issuers() if r.kind == kind and r.state is State.ACTIVE)


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two CAs, made once; tests work on copies of them."""
    folder = tmp_path_factory.mktemp("attacks")
    for name in ("ca", "foreign"):
        CertificateAuthority.create(folder / name, trust_domain=DOMAIN, password=PASSWORD, now=NOW).close()
    return folder


@pytest.fixture
def world(founded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    shutil.copytree(founded, tmp_path, dirs_exist_ok=True)
    clock = Clock(NOW)
    with (
        CertificateAuthority.open(tmp_path / "ca", password=PASSWORD, clock=clock) as ca,
        CertificateAuthority.open(tmp_path / "foreign", password=PASSWORD, clock=clock) as foreign,
    ):
        key = keys.generate()
        agent = ca.issue(request(key=key), AGENT).credentials(key)
        token = ca.create_token(AGENT).text
        yield World(ca=ca, foreign=foreign, clock=clock, key=keys.generate(), token=token, agent=agent)


def agents(ca: CertificateAuthority) -> int:
    return len([record for record in ca.certificates() if record.kind == "agent"])


# Enrolment.


def test_the_agent_itself_enrols(world: World) -> None:
    issued = world.ca.enrol(world.csr, world.token)
    assert issued.agent_id == AgentID.parse(AGENT)
    assert issued.certificate.public_key() == world.key.public_key()


def _changed(text: str, position: int) -> str:
    """The token with one digit of it replaced by another."""
    digit = "1" if text[position] != "1" else "2"
    return text[:position] + digit + text[position:][1:]


def _after(world: World, step: Callable[[World], object]) -> str:
    step(world)
    return world.token


TOKENS: list[tuple[str, Callable[[World], str], type[PKIError]]] = [
    ("no token", lambda w: "", EnrolmentTokenMalformed),
    ("its ID alone", lambda w: w.token.split("_")[1], EnrolmentTokenMalformed),
    ("without its secret", lambda w: w.token.rpartition("_")[0] + "_", EnrolmentTokenMalformed),
    ("the last digit missing", lambda w: w.token[:-1], EnrolmentTokenMalformed),
    ("half of it", lambda w: w.token[:47], EnrolmentTokenMalformed),
    ("one digit more", lambda w: w.token + "0", EnrolmentTokenMalformed),
    ("a newline more", lambda w: w.token + "\n", EnrolmentTokenMalformed),
    ("a space before", lambda w: " " + w.token, EnrolmentTokenMalformed),
    ("a NUL more", lambda w: w.token + "\x00", EnrolmentTokenMalformed),
    ("twice", lambda w: w.token * 2, EnrolmentTokenMalformed),
    ("in upper case", lambda w: w.token.upper(), EnrolmentTokenMalformed),
    ("digits of another alphabet", lambda w: w.token[:-1] + "\u0661", EnrolmentTokenMalformed),
    ("another prefix", lambda w: "a2af" + w.token[4:], EnrolmentTokenMalformed),
    ("a megabyte", lambda w: "a2ae_" + "0" * 1_000_000, EnrolmentTokenMalformed),
    ("a wildcard for its ID", lambda w: "a2ae_%_" + w.token.rpartition("_")[2], EnrolmentTokenMalformed),
    ("its digest", lambda w: w.ca.tokens()[0].digest.hex(), EnrolmentTokenMalformed),
    ("its digest as the secret", lambda w: w.token[:30] + w.ca.tokens()[0].digest.hex(), EnrolmentTokenUnknown),
    ("a wrong secret, first digit", lambda w: _changed(w.token, 30), EnrolmentTokenUnknown),
    ("a wrong secret, last digit", lambda w: _changed(w.token, 93), EnrolmentTokenUnknown),
    ("a secret of nothing", lambda w: w.token[:30] + "0" * 64, EnrolmentTokenUnknown),
    ("another ID", lambda w: _changed(w.token, 5), EnrolmentTokenUnknown),
    ("ID and secret of nothing", lambda w: f"a2ae_{'0' * 24}_{'0' * 64}", EnrolmentTokenUnknown),
    ("another CA's token", lambda w: w.foreign.create_token(AGENT).text, EnrolmentTokenUnknown),
    (
        "the secret of another token",
        lambda w: w.token[:30] + w.ca.create_token(OTHER).text[30:],
        EnrolmentTokenUnknown,
    ),
    ("cancelled", lambda w: _after(w, lambda w: w.ca.cancel_token(w.ca.tokens()[0].id)), EnrolmentTokenUnknown),
    ("at its end", lambda w: _after(w, lambda w: w.clock.forward(HOUR / 2)), EnrolmentTokenExpired),
    ("a day later", lambda w: _after(w, lambda w: w.clock.forward(24 * HOUR)), EnrolmentTokenExpired),
    ("a day earlier", lambda w: _after(w, lambda w: w.clock.forward(-24 * HOUR)), EnrolmentTokenExpired),
    ("used by another key", lambda w: _after(w, lambda w: w.ca.enrol(request(), w.token)), EnrolmentTokenUsed),
    ("of a banned agent", lambda w: _after(w, lambda w: w.ca.ban(AGENT)), AgentBanned),
    (
        "of an agent that the policy has no more",
        lambda w: _after(w, lambda w: w.ca.set_policy('[[allow]]\nids = ["/payroll"]')),
        IDRefused,
    ),
    (
        "of a CA whose intermediate is revoked",
        lambda w: _after(w, lambda w: w.ca.revoke(w.ca.intermediate.serial_number)),
        EnrolmentTokenForged,
    ),
]


@pytest.mark.parametrize(("attack", "expected"), [row[1:] for row in TOKENS], ids=[row[0] for row in TOKENS])
def test_attacks_with_a_token(attack: Callable[[World], str], expected: type[PKIError], world: World) -> None:
    token = attack(world)
    before = agents(world.ca)
    with pytest.raises(PKIError) as caught:
        world.ca.enrol(world.csr, token)
    assert type(caught.value) is expected
    assert agents(world.ca) == before, "nothing was issued"
    secret = world.token.rpartition("_")[2]
    assert secret not in str(caught.value)
    assert secret not in repr(caught.value)


# Who can write the CA's database, and has neither its password nor its keys. He has the text of each token, too.


def _written(world: World, statement: str, *values: object) -> str:
    with world.ca._store._database.write() as connection:
        connection.exec_driver_sql(statement, values)
    return world.token


def _made_up(world: World, seal: str) -> str:
    """A token of his own, in a row like others."""
    text = enrolment.spell(bytes(12), bytes(32))
    presented = enrolment.parse(text)
    columns = "spiffe_id, dns_names, lifetime, created_at, expires_at"
    _written(
        world,
        f"INSERT INTO tokens (id, digest, {columns}, seal) SELECT ?, ?, {columns}, {seal} FROM tokens",
        presented.id,
        presented.digest,
    )
    return text


def _freshened(world: World, *others: str) -> str:
    world.ca.enrol(request(), world.token)
    for statement in ("UPDATE tokens SET used_at = NULL, used_by = NULL, serial = NULL", *others):
        _written(world, statement)
    return world.token


_STRANGER = keys.generate()


def _sealed_by_a_stranger(world: World, key_id: str) -> str:
    return _written(world, "UPDATE tokens SET seal = ?", enrolment.seal(world.ca.tokens()[0], _STRANGER, key_id))


def _sealed_by_a_ca_of_his_own(world: World) -> str:
    """Whose row he writes, too, below the root; its key does not open with the password."""
    _written(
        world,
        "INSERT INTO issuers (key_id, kind, parent, state, since, serial, der, key_pem, position)"
        " SELECT key_id, kind, parent, state, since, serial, der, key_pem, 99 FROM "
        "(SELECT ? AS key_id, kind, parent, 'retiring' AS state, since, ? AS serial, ? AS der, ? AS key_pem"
        " FROM issuers WHERE kind = 'intermediate')",
        "00" * 20,
        "77" * 20,
        world.foreign.issuers()[1].der,
        keys.write(_STRANGER, "his own"),
    )
    return _sealed_by_a_stranger(world, "00" * 20)


DATABASE: list[tuple[str, Callable[[World], str], type[PKIError]]] = [
    ("a token of his own", lambda w: _made_up(w, "''"), EnrolmentTokenForged),
    ("a token of his own, with the seal of another", lambda w: _made_up(w, "seal"), EnrolmentTokenForged),
    (
        "a token of his own, with the signed head of the ledger",
        lambda w: _made_up(w, f"'{w.ca.ledger_head()}'"),
        EnrolmentTokenForged,
    ),
    ("sealed by a stranger", lambda w: _sealed_by_a_stranger(w, "11" * 20), EnrolmentTokenForged),
    (
        "sealed by a stranger in the name of the CA",
        lambda w: _sealed_by_a_stranger(w, w.issuer("intermediate")),
        EnrolmentTokenForged,
    ),
    (
        "sealed by another CA of that trust domain",
        lambda w: _written(
            w,
            "UPDATE tokens SET seal = ?",
            enrolment.seal(
                w.ca.tokens()[0],
                keys.read(w.foreign.issuers()[1].key_pem or b"", PASSWORD),
                w.foreign.issuers()[1].key_id,
            ),
        ),
        EnrolmentTokenForged,
    ),
    ("for another agent", lambda w: _written(w, "UPDATE tokens SET spiffe_id = ?", OTHER), EnrolmentTokenForged),
    (
        "with a DNS name",
        lambda w: _written(w, "UPDATE tokens SET dns_names = ?", '["payroll.example"]'),
        EnrolmentTokenForged,
    ),
    (
        "for a longer certificate",
        lambda w: _written(w, "UPDATE tokens SET lifetime = lifetime + 3600"),
        EnrolmentTokenForged,
    ),
    (
        "expired, and living longer",
        lambda w: _after(
            w,
            lambda w: (
                w.clock.forward(HOUR),
                _written(w, "UPDATE tokens SET expires_at = expires_at + 36000"),
            ),
        ),
        EnrolmentTokenForged,
    ),
    (
        "made anew",
        lambda w: _written(w, "UPDATE tokens SET created_at = created_at + 1"),
        EnrolmentTokenForged,
    ),
    ("used, and fresh again", _freshened, EnrolmentTokenUsed),
    (
        "used, and fresh again, with the certificate revoked",
        lambda w: _freshened(w, "UPDATE certificates SET revoked_at = 1, reason = 'superseded', revoked_position = 1"),
        EnrolmentTokenUsed,
    ),
]


@pytest.mark.parametrize(("attack", "expected"), [row[1:] for row in DATABASE], ids=[row[0] for row in DATABASE])
def test_who_can_write_the_database_enrols_nobody(
    attack: Callable[[World], str], expected: type[PKIError], world: World
) -> None:
    token = attack(world)
    before = agents(world.ca)
    with pytest.raises(PKIError) as caught:
        world.ca.enrol(world.csr, token)
    assert type(caught.value) is expected
    assert agents(world.ca) == before, "nothing was issued"
    with CertificateAuthority.open(world.ca._store._database.location.file.parent) as audited:  # type: ignore[union-attr]
        problems = audited.audit_ledger().problems
    assert any("token" in problem for problem in problems), "and it is found"


def test_a_second_certificate_for_one_token_is_found(world: World) -> None:
    """Made fresh again, and the certificate taken out: the audit names the entry whose certificate is gone."""
    first = world.ca.enrol(request(), world.token)
    _written(world, "UPDATE tokens SET used_at = NULL, used_by = NULL, serial = NULL")
    _written(world, "DELETE FROM certificates WHERE serial = ?", f"{first.serial:040x}")
    second = world.ca.enrol(world.csr, world.token)
    assert second.serial == first.serial
    assert second.thumbprint != first.thumbprint
    problems = world.ca.audit_ledger().problems
    assert any(f"issued certificate {first.serial:x}" in problem for problem in problems)


def test_a_ca_of_his_own_vouches_for_nothing(world: World) -> None:
    token = _sealed_by_a_ca_of_his_own(world)
    with pytest.raises(PKIError) as caught:
        world.ca.enrol(world.csr, token)
    assert type(caught.value) is AuthorityDamaged


def _broken(world: World) -> bytes:
    data = bytearray(world.csr)
    data[-1] ^= 1
    return bytes(data)


def _of_someone_else(world: World) -> bytes:
    """A request with the public key of the agent's own certificate, signed by the attacker."""
    data = world.csr
    own = world.key.public_key().public_numbers()
    theirs = world.agent.certificate.public_key()
    assert isinstance(theirs, ec.EllipticCurvePublicKey)
    point = theirs.public_numbers()
    return data.replace(own.x.to_bytes(32) + own.y.to_bytes(32), point.x.to_bytes(32) + point.y.to_bytes(32))


REQUESTS: list[tuple[str, Callable[[World], bytes], type[PKIError]]] = [
    ("for another ID", lambda w: request(uri(OTHER), key=w.key), IDRefused),
    ("for the ID and another", lambda w: request(uri(AGENT), uri(OTHER), key=w.key), IDRefused),
    ("for the CA service", lambda w: request(uri(f"spiffe://{DOMAIN}/a2a-pki/server"), key=w.key), IDRefused),
    ("for the trust domain", lambda w: request(uri(f"spiffe://{DOMAIN}"), key=w.key), IDRefused),
    ("for the ID in other letters", lambda w: request(uri(AGENT.replace("billing", "Billing")), key=w.key), IDRefused),
    ("for the ID and a slash", lambda w: request(uri(AGENT + "/"), key=w.key), IDRefused),
    ("signature broken", _broken, PossessionNotProven),
    ("key of somebody else", _of_someone_else, PossessionNotProven),
    ("RSA", lambda w: request(key=rsa.generate_private_key(65537, 2048)), RequestKeyRefused),
    ("P-521", lambda w: request(key=ec.generate_private_key(ec.SECP521R1())), RequestKeyRefused),
    ("a certificate", lambda w: w.leaf, RequestMalformed),
    ("nothing", lambda w: b"", RequestMalformed),
    ("cut", lambda w: w.csr[:-1], RequestMalformed),
    ("followed by more", lambda w: w.csr + b"\x00", RequestMalformed),
    ("too large", lambda w: w.csr + bytes(20_000), RequestTooLarge),
]


@pytest.mark.parametrize("way", ["enrol", "renew"])
@pytest.mark.parametrize(("attack", "expected"), [row[1:] for row in REQUESTS], ids=[row[0] for row in REQUESTS])
def test_attacks_with_a_request(
    way: str, attack: Callable[[World], bytes], expected: type[PKIError], world: World
) -> None:
    before = agents(world.ca)
    with pytest.raises(PKIError) as caught:
        if way == "enrol":
            world.ca.enrol(attack(world), world.token)
        else:
            world.ca.renew(attack(world), world.leaf)
    assert type(caught.value) is expected
    assert agents(world.ca) == before
    # What was tried with the token has not burnt it.
    world.ca.enrol(world.csr, world.token)


def test_names_in_a_request_do_not_survive(world: World) -> None:
    wished = request(
        uri(AGENT),
        x509.DNSName("admin.example"),
        key=world.key,
        extensions=[(x509.BasicConstraints(ca=True, path_length=None), True)],
        subject=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "admin")]),
    )
    ways: list[Callable[[], Issued]] = [
        lambda: world.ca.enrol(wished, world.token),
        lambda: world.ca.renew(wished, world.leaf),
    ]
    for way in ways:
        leaf = way().certificate
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert list(names) == [uri(AGENT)]
        assert leaf.subject == x509.Name([])
        assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


# Renewal.


def test_the_agent_itself_renews(world: World) -> None:
    assert world.ca.renew(world.csr, world.leaf).agent_id == AgentID.parse(AGENT)


def _leaf_after(world: World, step: Callable[[World], object]) -> bytes:
    step(world)
    return world.leaf


def _names(*ids: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([uri(text) for text in ids])


def _same_signature_otherwise_spelled(world: World) -> bytes:
    """One byte of the signature changed: the same content, but not what was issued."""
    data = bytearray(world.leaf)
    data[-1] ^= 1
    return bytes(data)


CERTIFICATES: list[tuple[str, Callable[[World], bytes], type[PKIError]]] = [
    ("nothing", lambda w: b"", NotIssuedHere),
    ("no certificate", lambda w: b"certificate", NotIssuedHere),
    ("PEM of it", lambda w: w.agent.certificate.public_bytes(Encoding.PEM), NotIssuedHere),
    ("followed by more", lambda w: w.leaf + b"\x00", NotIssuedHere),
    ("another signature", _same_signature_otherwise_spelled, NotIssuedHere),
    ("another CA's", lambda w: w.foreign.issue_credentials(AGENT).chain_der[0], NotIssuedHere),
    ("by a key of the attacker's", lambda w: w.signed(keys.generate(), w.ca.intermediate), NotIssuedHere),
    ("self-signed", lambda w: w.signed(w.key, w.agent.certificate), NotIssuedHere),
    (
        "by the stolen key of the intermediate",
        lambda w: w.signed(w.stolen("intermediate"), w.ca.intermediate),
        NotIssuedHere,
    ),
    (
        "by the stolen key, for another agent",
        lambda w: w.signed(w.stolen("intermediate"), w.ca.intermediate, names=_names(OTHER)),
        NotIssuedHere,
    ),
    (
        "by the stolen key, living longer",
        lambda w: w.signed(w.stolen("intermediate"), w.ca.intermediate, longer=24 * HOUR),
        NotIssuedHere,
    ),
    ("by the stolen key of the root", lambda w: w.signed(w.stolen("root"), w.ca.root), NotIssuedHere),
    ("the intermediate", lambda w: w.ca.intermediate.public_bytes(Encoding.DER), NotIssuedHere),
    ("the root", lambda w: w.ca.root.public_bytes(Encoding.DER), NotIssuedHere),
    (
        "revoked",
        lambda w: _leaf_after(w, lambda w: w.ca.revoke(w.agent.certificate.serial_number)),
        CertificateAlreadyRevoked,
    ),
    ("of a revoked agent", lambda w: _leaf_after(w, lambda w: w.ca.revoke_agent(AGENT)), CertificateAlreadyRevoked),
    (
        "a second after its end",
        lambda w: _leaf_after(w, lambda w: w.clock.forward(24 * HOUR + timedelta(seconds=1))),
        CertificateAlreadyExpired,
    ),
    (
        "before its start",
        lambda w: _leaf_after(w, lambda w: w.clock.forward(timedelta(minutes=-2))),
        CertificateAlreadyExpired,
    ),
    ("of a banned agent", lambda w: _leaf_after(w, lambda w: w.ca.ban(AGENT)), AgentBanned),
    (
        "of an agent that the policy has no more",
        lambda w: _leaf_after(w, lambda w: w.ca.set_policy('[[allow]]\nids = ["/payroll"]')),
        IDRefused,
    ),
    (
        "with a kind of key that the policy has no more",
        lambda w: _leaf_after(w, lambda w: w.ca.set_policy('[[allow]]\nids = ["/**"]\nkeys = ["P-384"]')),
        KeyTypeRefused,
    ),
    ("of the CA service", lambda w: w.ca.service_credentials().chain_der[0], IDRefused),
    *(
        (
            f"whose row was given {what}",
            lambda w, change=change: _leaf_after(
                w, lambda w: _written(w, f"UPDATE certificates SET {change} WHERE thumbprint = ?", w.agent.thumbprint)
            ),
            AuthorityDamaged,
        )
        for what, change in (
            ("another ID", f"spiffe_id = '{OTHER}'"),
            ("the ID of the service", f"spiffe_id = 'spiffe://{DOMAIN}/a2a-pki/server'"),
            ("an earlier start", "not_before = not_before - 500000"),
            ("a later end", "not_after = not_after + 500000"),
            ("another serial number", "serial = substr(serial, 2) || substr(serial, 1, 1)"),
            ("another issuer", "issuer = (SELECT key_id FROM issuers WHERE kind = 'root')"),
            ("another certificate", "der = (SELECT der FROM certificates WHERE kind = 'root')"),
        )
    ),
]


@pytest.mark.parametrize(
    ("attack", "expected"), [row[1:] for row in CERTIFICATES], ids=[row[0] for row in CERTIFICATES]
)
def test_attacks_with_a_certificate(attack: Callable[[World], bytes], expected: type[PKIError], world: World) -> None:
    presented = attack(world)
    before = agents(world.ca)
    csr = request(key=world.key)
    with pytest.raises(PKIError) as caught:
        world.ca.renew(csr, presented)
    assert type(caught.value) is expected
    assert agents(world.ca) == before


@pytest.mark.parametrize(
    "attack",
    [
        "by the stolen key of the intermediate",
        "another CA's",
        "revoked",
        "a second after its end",
        "the root",
        "whose row was given another ID",
        "whose row was given a later end",
    ],
)
def test_attacks_with_a_certificate_learn_nothing_about_renewal(attack: str, world: World) -> None:
    make, expected = next(row[1:] for row in CERTIFICATES if row[0] == attack)
    with pytest.raises(PKIError) as caught:
        world.ca.renewal_info(make(world))
    assert type(caught.value) is expected


def test_after_a_taint_the_genuine_one_is_renewed_and_the_thief_is_not(world: World) -> None:
    stolen, below = world.stolen("intermediate"), world.ca.intermediate
    forged = world.signed(stolen, below)
    world.ca.taint(world.issuer("intermediate"))
    assert world.ca.renewal_info(world.leaf).urgent
    renewed = world.ca.renew(world.csr, world.leaf)
    assert renewed.chain[1] != below
    for presented in (forged, world.signed(stolen, below, serial=renewed.serial)):
        with pytest.raises(PKIError) as caught:
            world.ca.renew(world.csr, presented)
        assert type(caught.value) is NotIssuedHere


def test_no_token_of_an_old_ca_speaks_for_the_new_one(world: World) -> None:
    """Two CAs of one trust domain have nothing in common: neither tokens, nor certificates, nor bans."""
    world.foreign.ban(OTHER)
    world.ca.issue(request(), OTHER)
    with pytest.raises(NotIssuedHere):
        world.foreign.renew(world.csr, world.leaf)
    with pytest.raises(EnrolmentTokenUnknown):
        world.foreign.enrol(world.csr, world.token)
