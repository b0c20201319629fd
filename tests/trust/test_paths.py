"""Which path is found, and how long it is looked for; what a path must be is in tests/attacks/test_peers_attacks.py."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.forge import HOUR, NOW, Forge, _usage
from trust import paths
from trust.certificates import Certificate
from trust.errors import CertificateExpired, PeerError, UntrustedChain
from trust.paths import MAX_PATHS, Root, build_path

FORGE = Forge()
NAMES = ("root", "a", "b", "c", "stranger")
KEYS = {name: ec.generate_private_key(ec.SECP256R1()) for name in NAMES}


def named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def issued(
    subject: str, issuer: str, *, key: Any = None, signer: Any = None, expired: bool = False, identifiers: bool = True
) -> Certificate:
    """A certificate of the CA `subject` by the CA `issuer`."""
    key, signer = key or KEYS[subject], signer or KEYS[issuer]
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(subject))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - 9 * HOUR)
        .not_valid_after(NOW - HOUR if expired else NOW + HOUR)
        .add_extension(x509.BasicConstraints(True, None), True)
        .add_extension(_usage(key_cert_sign=True), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    )
    if identifiers:
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = builder.add_extension(identifier, False)
    return read(builder.sign(signer, hashes.SHA256()))


def read(certificate: x509.Certificate) -> Certificate:
    return Certificate.read(certificate.public_bytes(Encoding.DER))


def leaf_of(issuer: str) -> Certificate:
    signing = issued(issuer, "root").parsed
    return read(FORGE.leaf(issuer=signing, issuer_key=KEYS[issuer]).certificate)


ROOT = Root.of(issued("root", "root").parsed, FORGE.domain)
LEAF = leaf_of("a")


def found(*others: Certificate, roots: tuple[Root, ...] = (ROOT,)) -> tuple[Certificate, ...]:
    return build_path([LEAF, *others], roots, now=NOW, usage="client")


def test_the_shortest_path_is_taken() -> None:
    near, far, step = issued("a", "root"), issued("a", "b"), issued("b", "root")
    for others in ((near, far, step), (step, far, near)):
        assert [c.der for c in found(*others)] == [LEAF.der, near.der, ROOT.der]


def test_a_longer_path_is_taken_where_the_shortest_has_expired() -> None:
    dead, far, step = issued("a", "root", expired=True), issued("a", "b"), issued("b", "root")
    assert [c.der for c in found(dead, far, step)] == [LEAF.der, far.der, step.der, ROOT.der]


def test_the_error_is_that_of_the_first_path() -> None:
    with pytest.raises(CertificateExpired):
        found(issued("a", "root", expired=True), issued("a", "b"), issued("b", "root", signer=KEYS["c"]))


def test_two_roots_of_one_name_are_told_apart_by_their_keys() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    other = Root.of(issued("root", "root", key=key, signer=key).parsed, FORGE.domain)
    for roots in ((ROOT, other), (other, ROOT)):
        assert found(issued("a", "root"), roots=roots)[-1].der == ROOT.der


def test_cas_that_signed_one_another_make_no_circle() -> None:
    circle = (issued("a", "b"), issued("b", "a"))
    with pytest.raises(UntrustedChain):
        found(*circle)
    assert len(found(*circle, issued("b", "root"))) == 4


def test_a_peer_does_not_decide_how_often_signatures_are_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven CAs of the root's name, none of which says which key signed it: 13,700 paths by name."""
    asked = []
    verified = paths._verified

    def counted(*arguments: Any) -> tuple[Certificate, ...]:
        asked.append(arguments)
        return verified(*arguments)

    monkeypatch.setattr(paths, "_verified", counted)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(7)]
    crowd = [issued("root", "root", key=key, signer=keys[0], identifiers=False) for key in keys]
    leaf = read(FORGE.leaf(issuer=crowd[0].parsed, issuer_key=keys[0]).certificate)
    with pytest.raises(PeerError):
        build_path([leaf, *crowd], (ROOT,), now=NOW, usage="client")
    assert 1 < len(asked) <= MAX_PATHS


Edges = list[tuple[str, str, bool]]
edges = st.tuples(st.sampled_from(NAMES[1:]), st.sampled_from(NAMES), st.sampled_from([False, False, True]))


@given(st.lists(edges, max_size=7))
@settings(max_examples=150, deadline=timedelta(seconds=2))
def test_a_path_is_found_exactly_where_there_is_one(graph: Edges) -> None:
    """Against reachability, computed on the graph and not on certificates."""
    reached = {"root"}
    for _ in NAMES:
        reached |= {subject for subject, issuer, expired in graph if issuer in reached and not expired}
    others = [issued(subject, issuer, expired=expired) for subject, issuer, expired in graph]
    try:
        path = found(*others)
    except PeerError:
        assert "a" not in reached
    else:
        assert "a" in reached
        assert path[0] is LEAF
        assert path[-1].der == ROOT.der
