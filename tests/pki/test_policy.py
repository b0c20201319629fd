"""Who may have which certificate: one sound request, and one wrong thing a row."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from pki import policy
from pki.errors import IDRefused, KeyTypeRefused, LifetimeRefused, NameRefused, PolicyRefused, ReasonRefused
from pki.requests import Request
from pki.rules import Rules
from tests.pki.conftest import AGENT, DOMAIN
from trust.identity import AgentID

KEY = ec.generate_private_key(ec.SECP256R1()).public_key()


RULES = Rules.parse(
    """
    [[allow]]
    ids = ["/billing"]
    dns = ["billing.fleet.example"]
    ip = ["127.0.0.0/8"]
    keys = ["P-256"]
    max_lifetime = "24h"

    [[deny]]
    ip = ["127.0.0.9"]
    """,
    DOMAIN,
)


def approve(uris: tuple[str, ...] = (AGENT,), agent_id: str = AGENT, **changes: Any) -> policy.Approved:
    grant: dict[str, Any] = {
        "trust_domain": DOMAIN,
        "dns_names": ("billing.fleet.example",),
        "ip_addresses": ("127.0.0.1",),
        "lifetime": timedelta(hours=24),
    }
    return policy.approve(Request(public_key=KEY, uris=uris), AgentID.parse(agent_id), **{**grant, **changes})


@pytest.mark.parametrize("uris", [(AGENT,), ()])
def test_approved(uris: tuple[str, ...]) -> None:
    assert approve(uris) == policy.Approved(
        agent_id=AgentID.parse(AGENT),
        public_key=KEY,
        dns_names=("billing.fleet.example",),
        ip_addresses=(ip_address("127.0.0.1"),),
        lifetime=timedelta(hours=24),
    )


def test_approved_by_the_rules() -> None:
    assert approve(rules=RULES) == approve()


RULED_OUT: list[tuple[str, dict[str, Any], type[PolicyRefused]]] = [
    ("ID", {"agent_id": "spiffe://fleet.example/payroll", "uris": ()}, IDRefused),
    ("name", {"dns_names": ("Payroll.Fleet.Example",)}, NameRefused),
    ("one name of two", {"dns_names": ("billing.fleet.example", "localhost")}, NameRefused),
    ("address", {"ip_addresses": ("128.0.0.1",)}, NameRefused),
    ("denied address", {"ip_addresses": ("127.0.0.1", "127.0.0.9")}, NameRefused),
    ("lifetime", {"lifetime": timedelta(hours=25)}, LifetimeRefused),
]


@pytest.mark.parametrize(("changes", "expected"), [row[1:] for row in RULED_OUT], ids=[row[0] for row in RULED_OUT])
def test_refused_by_the_rules(changes: dict[str, Any], expected: type[PolicyRefused]) -> None:
    approve(**changes)
    with pytest.raises(PolicyRefused, match="the policy of this CA refuses it") as caught:
        approve(rules=RULES, **changes)
    assert type(caught.value) is expected


def test_names_are_judged_in_lower_case() -> None:
    assert approve(dns_names=("BILLING.fleet.example",), rules=RULES).dns_names == ("billing.fleet.example",)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (ec.generate_private_key(ec.SECP256R1()), "P-256"),
        (ec.generate_private_key(ec.SECP384R1()), "P-384"),
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
    ],
    ids=["P-256", "P-384", "Ed25519"],
)
def test_kinds_of_keys(key: Any, name: str) -> None:
    assert policy.key_type(key.public_key()) == name
    request = Request(public_key=key.public_key(), uris=())
    asked: dict[str, Any] = {
        "trust_domain": DOMAIN, "dns_names": (), "ip_addresses": (), "lifetime": timedelta(hours=1), "rules": RULES
    }  # fmt: skip
    if name == "P-256":
        assert policy.approve(request, AgentID.parse(AGENT), **asked).public_key == key.public_key()
    else:
        with pytest.raises(KeyTypeRefused):
            policy.approve(request, AgentID.parse(AGENT), **asked)


def test_the_ca_has_ids_of_its_own() -> None:
    asked: dict[str, Any] = {"trust_domain": DOMAIN, "ip_addresses": (), "lifetime": timedelta(hours=1)}
    own = policy.approve_own(KEY, "server", dns_names=("CA.Fleet.Example",), **asked)
    assert (str(own.agent_id), own.dns_names) == ("spiffe://fleet.example/a2a-pki/server", ("ca.fleet.example",))
    with pytest.raises(NameRefused):
        policy.approve_own(KEY, "server", dns_names=("*.fleet.example",), **asked)
    with pytest.raises(LifetimeRefused):
        policy.approve_own(KEY, "server", dns_names=(), **{**asked, "lifetime": timedelta(days=8)})


def test_names_are_in_lower_case_and_there_once() -> None:
    content = approve(dns_names=["A.Example", "a.example", "localhost"], ip_addresses=["::1", "0:0::1", ip_address(9)])
    assert content.dns_names == ("a.example", "localhost")
    assert content.ip_addresses == (ip_address("::1"), ip_address("0.0.0.9"))


ATTACKS: list[tuple[str, dict[str, Any], type[PolicyRefused]]] = [
    ("ID of another domain", {"agent_id": "spiffe://other.example/billing", "uris": ()}, IDRefused),
    ("ID of a subdomain", {"agent_id": "spiffe://a.fleet.example/billing", "uris": ()}, IDRefused),
    ("ID of the parent domain", {"agent_id": "spiffe://example/billing", "uris": ()}, IDRefused),
    ("the CA's own server", {"agent_id": "spiffe://fleet.example/a2a-pki/server", "uris": ()}, IDRefused),
    ("below the CA's own", {"agent_id": "spiffe://fleet.example/a2a-pki/a/b", "uris": ()}, IDRefused),
    ("the CA's own folder", {"agent_id": "spiffe://fleet.example/a2a-pki", "uris": ()}, IDRefused),
    ("request for another ID", {"uris": ("spiffe://fleet.example/payroll",)}, IDRefused),
    ("request for another domain", {"uris": ("spiffe://other.example/billing",)}, IDRefused),
    ("request for a longer ID", {"uris": (AGENT + "/admin",)}, IDRefused),
    ("request for the ID in capitals", {"uris": (AGENT.upper(),)}, IDRefused),
    ("request for the ID with a slash", {"uris": (AGENT + "/",)}, IDRefused),
    ("request for the CA's own ID", {"uris": ("spiffe://fleet.example",)}, IDRefused),
    ("request for two IDs", {"uris": (AGENT, "spiffe://fleet.example/payroll")}, IDRefused),
    ("request for the ID twice", {"uris": (AGENT, AGENT)}, IDRefused),
    ("request for a web address beside it", {"uris": (AGENT, "https://fleet.example")}, IDRefused),
    ("wildcard", {"dns_names": ["*.fleet.example"]}, NameRefused),
    ("empty name", {"dns_names": [""]}, NameRefused),
    ("empty label", {"dns_names": ["a..example"]}, NameRefused),
    ("final dot", {"dns_names": ["a.example."]}, NameRefused),
    ("leading dot", {"dns_names": [".example"]}, NameRefused),
    ("underscore", {"dns_names": ["a_b.example"]}, NameRefused),
    ("hyphen first", {"dns_names": ["-a.example"]}, NameRefused),
    ("long label", {"dns_names": ["a" * 64 + ".example"]}, NameRefused),
    ("long name", {"dns_names": [".".join(["abcdefg"] * 32)]}, NameRefused),
    ("not ASCII", {"dns_names": ["bücher.example"]}, NameRefused),
    ("capital that lower() turns into ASCII", {"dns_names": ["\u212aelvin.example"]}, NameRefused),
    ("NUL", {"dns_names": ["bank.example\0.fleet.example"]}, NameRefused),
    ("newline", {"dns_names": ["bank.example\n"]}, NameRefused),
    ("address as a name", {"dns_names": ["127.0.0.1"]}, NameRefused),
    ("number as a name", {"dns_names": ["a.0x7f"]}, NameRefused),
    ("one text instead of names", {"dns_names": "localhost"}, NameRefused),
    ("one text instead of addresses", {"ip_addresses": "127.0.0.1"}, NameRefused),
    ("name as an address", {"ip_addresses": ["localhost"]}, NameRefused),
    ("network as an address", {"ip_addresses": ["10.0.0.0/8"]}, NameRefused),
    ("address with a zone", {"ip_addresses": ["fe80::1%eth0"]}, NameRefused),
    ("IPv4 address in IPv6 form", {"ip_addresses": ["::ffff:127.0.0.1"]}, NameRefused),
    ("too many names", {"dns_names": [f"a{i}.example" for i in range(policy.MAX_NAMES)]}, NameRefused),
    ("no lifetime", {"lifetime": timedelta(0)}, LifetimeRefused),
    ("negative lifetime", {"lifetime": timedelta(hours=-1)}, LifetimeRefused),
    ("less than a second", {"lifetime": timedelta(milliseconds=999)}, LifetimeRefused),
    ("more than 7 days", {"lifetime": timedelta(days=7, microseconds=1)}, LifetimeRefused),
]


@pytest.mark.parametrize(("changes", "expected"), [row[1:] for row in ATTACKS], ids=[row[0] for row in ATTACKS])
def test_refused(changes: dict[str, Any], expected: type[PolicyRefused]) -> None:
    with pytest.raises(PolicyRefused) as caught:
        approve(**changes)
    assert type(caught.value) is expected


@pytest.mark.parametrize("lifetime", [timedelta(seconds=1), timedelta(days=7)])
def test_lifetimes_at_the_edge(lifetime: timedelta) -> None:
    assert approve(lifetime=lifetime).lifetime == lifetime


@given(st.text(max_size=80))
def test_a_dns_name_is_plain_or_refused(text: str) -> None:
    try:
        name = policy.dns_name(text)
    except NameRefused:
        return
    assert name == text.lower()
    assert text.isascii()
    assert not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789-.")
    x509.DNSName(name)


@pytest.mark.parametrize(
    ("given_reason", "expected"),
    [
        (x509.ReasonFlags.key_compromise, x509.ReasonFlags.key_compromise),
        ("keyCompromise", x509.ReasonFlags.key_compromise),
        ("unspecified", x509.ReasonFlags.unspecified),
    ],
)
def test_reasons(given_reason: x509.ReasonFlags | str, expected: x509.ReasonFlags) -> None:
    assert policy.revocation_reason(given_reason) is expected


@pytest.mark.parametrize(
    "reason",
    [x509.ReasonFlags.certificate_hold, x509.ReasonFlags.remove_from_crl, "certificateHold", "", "keycompromise"],
)
def test_reasons_that_would_bring_a_certificate_back_or_mean_nothing(reason: x509.ReasonFlags | str) -> None:
    with pytest.raises(ReasonRefused, match=r"got .*expected one of unspecified, keyCompromise"):
        policy.revocation_reason(reason)


def test_crl_base_url() -> None:
    assert policy.crl_base_url("http://pki.example/crl/") == "http://pki.example/crl"
    assert policy.crl_base_url("https://pki.example:8443") == "https://pki.example:8443"
    assert policy.public_url("http://pki.example/") == "http://pki.example"


@pytest.mark.parametrize(
    "url",
    [
        "", "pki.example/crl", "ftp://pki.example", "ldap://pki.example", "http://", "http:///crl", "http://a b",
        "http://pki.example/?q", "http://pki.example/#f", "http://pki.example/\n", "http://pkì.example", "http://[::1",
        "http://a/../b c", "http://u:p@pki.example",
    ],
)  # fmt: skip
def test_url_refused(url: str) -> None:
    for read in (policy.crl_base_url, policy.public_url):
        with pytest.raises(PolicyRefused) as caught:
            read(url)
        assert type(caught.value) is PolicyRefused
