"""Name constraints before signing, against OpenSSL, which refuses the same certificates afterwards."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from cryptography import x509

from pki import constraints, keys, profiles
from pki.errors import NameRefused
from pki.policy import Approved
from pki.profiles import Issuer
from tests.pki.conftest import DOMAIN, NOW
from tests.pki.judges import needs_openssl, verify
from tests.pki.small_ca import AGENT_KEY, DAY, Authority
from trust.identity import AgentID


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


def dns(text: str) -> x509.GeneralName:
    return x509.DNSName(text)


def address(text: str) -> x509.GeneralName:
    return x509.IPAddress(ip_network(text) if "/" in text else ip_address(text))


HOST = uri("fleet.example")
BILLING = uri("spiffe://fleet.example/billing")
# (name, permitted, excluded, is it inside)
TABLE: list[tuple[x509.GeneralName, list[x509.GeneralName], list[x509.GeneralName], bool]] = [
    (BILLING, [HOST], [], True),
    (BILLING, [uri("FLEET.example")], [], True),
    (uri("spiffe://a.fleet.example/billing"), [HOST], [], False),
    (uri("spiffe://example/billing"), [HOST], [], False),
    (uri("spiffe://notfleet.example/billing"), [HOST], [], False),
    (uri("spiffe://a.fleet.example/billing"), [uri(".fleet.example")], [], True),
    (BILLING, [uri(".fleet.example")], [], False),
    (BILLING, [uri("other.example"), HOST], [], True),
    (BILLING, [], [HOST], False),
    (BILLING, [HOST], [HOST], False),
    (BILLING, [dns("other.example")], [], True),
    (dns("billing.svc"), [dns("svc")], [], True),
    (dns("svc"), [dns("svc")], [], True),
    (dns("notsvc"), [dns("svc")], [], False),
    (dns("billing.svc.example"), [dns("svc")], [], False),
    (dns("billing.svc"), [dns("SVC")], [], True),
    (dns("a.billing.svc"), [dns("billing.svc")], [], True),
    (dns("a.billing.svc"), [], [dns("svc")], False),
    (dns("a.billing.svc"), [dns("svc")], [dns("billing.svc")], False),
    (dns("b.svc"), [dns("svc")], [dns("billing.svc")], True),
    (dns("b.svc"), [], [dns("")], False),
    (dns("b.svc"), [HOST], [], True),
    (address("10.1.2.3"), [address("10.0.0.0/8")], [], True),
    (address("11.1.2.3"), [address("10.0.0.0/8")], [], False),
    (address("fd00::1"), [address("10.0.0.0/8")], [], False),
    (address("fd00::1"), [address("10.0.0.0/8"), address("fd00::/8")], [], True),
    (address("10.1.2.3"), [], [address("0.0.0.0/0")], False),
    (address("fd00::1"), [], [address("0.0.0.0/0")], True),
]


def limits(permitted: list[x509.GeneralName], excluded: list[x509.GeneralName]) -> x509.NameConstraints:
    return x509.NameConstraints(permitted or None, excluded or None)


def told(name: x509.GeneralName, row: x509.NameConstraints) -> bool:
    try:
        constraints.check([BILLING, name] if not row.permitted_subtrees else [name], row)
    except NameRefused:
        return False
    return True


@pytest.mark.parametrize(("name", "permitted", "excluded", "inside"), TABLE)
def test_inside(
    name: x509.GeneralName, permitted: list[x509.GeneralName], excluded: list[x509.GeneralName], inside: bool
) -> None:
    assert told(name, limits(permitted, excluded)) == inside


def test_without_constraints_everything_is_inside() -> None:
    constraints.check([BILLING, dns("a"), address("::1")], None)


def test_every_name_has_to_be_inside() -> None:
    with pytest.raises(NameRefused, match=r"b\.example"):
        constraints.check([dns("a.svc"), dns("b.example")], limits([dns("svc")], []))


def test_a_name_of_a_kind_that_is_not_known_here_is_refused() -> None:
    with pytest.raises(NameRefused, match="RFC822Name"):
        constraints.check([x509.RFC822Name("a@fleet.example")], limits([HOST], []))


def constrained(permitted: list[x509.GeneralName], excluded: list[x509.GeneralName]) -> tuple[Authority, Authority]:
    root = Authority.root()
    key = keys.generate()
    builder = profiles.intermediate(
        trust_domain=DOMAIN, public_key=key.public_key(), issuer=root.issuer, serial=7, now=NOW
    ).add_extension(limits(permitted, excluded), critical=True)
    return root, Authority("intermediate", Issuer.of(keys.sign(builder, root.key)), key, root.key_id)


def content(name: x509.GeneralName) -> Approved:
    return Approved(
        agent_id=AgentID.parse(str(name.value))
        if isinstance(name, x509.UniformResourceIdentifier)
        else AgentID(DOMAIN, "/a"),
        public_key=AGENT_KEY.public_key(),
        dns_names=(str(name.value),) if isinstance(name, x509.DNSName) else (),
        ip_addresses=(name.value,) if isinstance(name, x509.IPAddress) else (),  # type: ignore[arg-type]
        lifetime=DAY,
    )


@needs_openssl
@pytest.mark.parametrize(("name", "permitted", "excluded", "inside"), TABLE)
def test_openssl_agrees(
    name: x509.GeneralName,
    permitted: list[x509.GeneralName],
    excluded: list[x509.GeneralName],
    inside: bool,
    tmp_path: Path,
) -> None:
    root, ca = constrained(permitted, excluded)
    blind = Issuer(
        certificate=ca.certificate,
        key_id=ca.key_id,
        authority_key=ca.issuer.authority_key,
        name=ca.issuer.name,
        constraints=None,
        not_before=ca.issuer.not_before,
        not_after=ca.issuer.not_after,
    )
    leaf, _ = keys.sign_agent(profiles.agent(content(name), issuer=blind, serial=8, now=NOW), ca.key)
    judged = verify(tmp_path, [leaf, ca.certificate], root.certificate, purpose="sslclient")
    assert (judged.returncode == 0) == inside, judged.stderr
    if inside:
        profiles.agent(content(name), issuer=ca.issuer, serial=8, now=NOW)
    else:
        with pytest.raises(NameRefused):
            profiles.agent(content(name), issuer=ca.issuer, serial=8, now=NOW)
