"""What an agent could try in order to get more than the policy gives it, from the request to the certificate.

One good request for one good grant; each row changes one thing of the request or of the grant.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from pki import keys, policy, profiles, requests
from pki.errors import (
    IDRefused,
    KeyTypeRefused,
    LifetimeRefused,
    NameRefused,
    PolicyMalformed,
    RequestKeyRefused,
    RequestRefused,
)
from pki.rules import Rules
from tests.pki.conftest import DOMAIN, NOW
from tests.pki.small_ca import Authority
from trust.errors import IdentityError, TrustError
from trust.identity import AgentID

POLICY = """
[[allow]]
ids = ["/billing/*"]
dns = ["*.billing.svc"]
ip = ["10.0.0.0/8"]
keys = ["P-256"]
max_lifetime = "24h"

[[allow]]
ids = ["/lab/**"]
dns = ["**.lab.svc"]
ip = ["0.0.0.0/0", "::/0"]

[[deny]]
ids = ["/lab/admin", "/lab/admin/**"]

[[deny]]
dns = ["admin.lab.svc", "**.admin.lab.svc"]
ip = ["10.255.0.0/16"]
"""
RULES = Rules.parse(POLICY, DOMAIN)
CA = Authority.root().intermediate()
GOOD = "spiffe://fleet.example/billing/eu"


def csr(*uris: str, key: Any = None, dns: tuple[str, ...] = ()) -> bytes:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
    names += [x509.DNSName(name) for name in dns]
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    key = key or ec.generate_private_key(ec.SECP256R1())
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)


def certify(agent_id: str = GOOD, request: bytes | None = None, **changes: Any) -> x509.Certificate:
    grant: dict[str, Any] = {
        "dns_names": ("a.billing.svc",), "ip_addresses": ("10.1.2.3",), "lifetime": timedelta(hours=24)
    }  # fmt: skip
    approved = policy.approve(
        requests.parse(request or csr(agent_id)),
        AgentID.parse(agent_id),
        trust_domain=DOMAIN,
        rules=RULES,
        **{**grant, **changes},
    )
    return keys.sign_agent(profiles.agent(approved, issuer=CA.issuer, serial=1, now=NOW), CA.key)[0]


def names(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in found]


def test_the_grant_itself_is_certified() -> None:
    assert names(certify()) == [GOOD, "a.billing.svc", "10.1.2.3"]
    lab = certify("spiffe://fleet.example/lab/x/y", dns_names=("a.b.lab.svc",), ip_addresses=("::1",))
    assert names(lab) == ["spiffe://fleet.example/lab/x/y", "a.b.lab.svc", "::1"]


def test_what_the_request_wishes_for_beside_its_id_is_not_certified() -> None:
    certificate = certify(request=csr(GOOD, dns=("admin.lab.svc", "bank.example")), dns_names=(), ip_addresses=())
    assert names(certificate) == [GOOD]


LAB = "spiffe://fleet.example/lab/x"
NOTHING: dict[str, Any] = {"dns_names": (), "ip_addresses": ()}
ROWS: list[tuple[str, dict[str, Any], type[TrustError]]] = [
    ("an ID beside the pattern", {"agent_id": "spiffe://fleet.example/billings/eu"}, IDRefused),
    ("an ID above the pattern", {"agent_id": "spiffe://fleet.example/billing"}, IDRefused),
    ("an ID below the pattern", {"agent_id": "spiffe://fleet.example/billing/eu/root"}, IDRefused),
    ("an ID in capitals", {"agent_id": "spiffe://fleet.example/Billing/eu"}, IDRefused),
    ("a star as an ID", {"agent_id": "spiffe://fleet.example/billing/*"}, IdentityError),
    ("a way up", {"agent_id": "spiffe://fleet.example/billing/../payroll"}, IdentityError),
    ("an empty segment", {"agent_id": "spiffe://fleet.example/billing//eu"}, IdentityError),
    ("an escaped slash", {"agent_id": "spiffe://fleet.example/billing/eu%2Froot"}, IdentityError),
    ("a final slash", {"agent_id": GOOD + "/"}, IdentityError),
    ("a query", {"agent_id": GOOD + "?x"}, IdentityError),
    ("a line feed", {"agent_id": GOOD + "\n"}, IdentityError),
    ("the same path elsewhere", {"agent_id": "spiffe://other.example/billing/eu"}, IDRefused),
    ("the CA's own ID", {"agent_id": "spiffe://fleet.example/a2a-pki/server", **NOTHING}, IDRefused),
    ("a denied ID", {"agent_id": "spiffe://fleet.example/lab/admin", **NOTHING}, IDRefused),
    ("below a denied ID", {"agent_id": "spiffe://fleet.example/lab/admin/x/y", **NOTHING}, IDRefused),
    ("a request for another ID of the same rule", {"request": csr("spiffe://fleet.example/billing/us")}, IDRefused),
    ("a request for a second ID", {"request": csr(GOOD, "spiffe://fleet.example/billing/us")}, IDRefused),
    ("a name of another rule", {"dns_names": ("a.lab.svc",)}, NameRefused),
    ("a name that begins like the pattern", {"dns_names": ("a.billing.svc.evil.example",)}, NameRefused),
    ("a name without the label", {"dns_names": ("billing.svc",)}, NameRefused),
    ("a name with two labels", {"dns_names": ("a.b.billing.svc",)}, NameRefused),
    ("a wildcard as a name", {"dns_names": ("*.billing.svc",)}, NameRefused),
    ("a final dot", {"dns_names": ("a.billing.svc.",)}, NameRefused),
    ("letters that fold into ASCII", {"dns_names": ("\u212a.billing.svc",)}, NameRefused),
    ("a denied name in capitals", {"agent_id": LAB, "dns_names": ("ADMIN.Lab.Svc",), "ip_addresses": ()}, NameRefused),
    ("below a denied name", {"agent_id": LAB, "dns_names": ("x.admin.lab.svc",), "ip_addresses": ()}, NameRefused),
    ("a denied name among others", {"agent_id": LAB, "dns_names": ("a.lab.svc", "admin.lab.svc"), "ip_addresses": ()},
     NameRefused),
    ("an address of another rule", {"ip_addresses": ("192.0.2.1",)}, NameRefused),
    ("a denied address", {"agent_id": LAB, "dns_names": (), "ip_addresses": ("10.255.0.1",)}, NameRefused),
    ("a denied address in IPv6 form", {"agent_id": LAB, "dns_names": (), "ip_addresses": ("::ffff:10.255.0.1",)},
     NameRefused),
    ("a denied address as a name", {"agent_id": LAB, "dns_names": ("10.255.0.1",), "ip_addresses": ()}, NameRefused),
    ("a second too long", {"lifetime": timedelta(hours=24, seconds=1)}, LifetimeRefused),
    ("longer than any certificate", {"agent_id": LAB, "lifetime": timedelta(days=8), **NOTHING}, LifetimeRefused),
    ("another curve", {"request": csr(GOOD, key=ec.generate_private_key(ec.SECP384R1()))}, KeyTypeRefused),
    ("Ed25519", {"request": csr(GOOD, key=ed25519.Ed25519PrivateKey.generate())}, KeyTypeRefused),
    ("a curve that nobody may have", {"request": csr(GOOD, key=ec.generate_private_key(ec.SECP521R1()))},
     RequestKeyRefused),
    ("RSA", {"request": csr(GOOD, key=rsa.generate_private_key(65537, 2048))}, RequestKeyRefused),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_refused(changes: dict[str, Any], expected: type[TrustError]) -> None:
    # A request that names no ID: what is refused is refused for the grant, unless the row brings its own request.
    with pytest.raises(TrustError) as caught:
        certify(**{"request": csr(), **changes})
    assert type(caught.value) is expected
    assert "\n" not in str(caught.value)


def test_a_request_that_is_altered_proves_nothing() -> None:
    request = bytearray(csr(GOOD))
    at = request.index(b"/billing/eu")
    request[at + 9 : at + 11] = b"us"
    with pytest.raises(RequestRefused):
        certify("spiffe://fleet.example/billing/us", bytes(request))


@pytest.mark.parametrize(
    "trick",
    [
        'dns = ["bank.example"]\n',
        'extra = 1\n[[allow]]\nids = ["/**"]\n',
        '[[Allow]]\nids = ["/**"]\n',
        "[[deny]]\n",
    ],
)
def test_a_policy_with_something_slipped_in_is_refused_as_a_whole(trick: str) -> None:
    with pytest.raises(PolicyMalformed):
        Rules.parse(POLICY + trick, DOMAIN)
