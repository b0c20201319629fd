"""SPIFFE IDs and thumbprints: the one door for each."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import FrozenInstanceError

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from tests.forge import NOW, Forge, spiffe
from trust.errors import IdentityError, MalformedCertificate, NoSpiffeID, SeveralSpiffeIDs
from trust.identity import (
    MAX_ID_BYTES,
    PEER_EXTENSION,
    AgentID,
    Caller,
    PeerIdentity,
    fingerprint,
    peer_of,
    thumbprint,
    trust_domain,
)
from trust.peers import verify_peer

FORGE = Forge()

GOOD = [
    "spiffe://fleet.example/billing",
    "spiffe://fleet.example/ns/default/sa/billing",
    "spiffe://a/b",
    "spiffe://a-b_c.d/A-Z_0.9",
    "spiffe://10.0.0.1/x",
    "spiffe://fleet.example/...",
    "spiffe://fleet.example/.hidden",
    "spiffe://" + "d" * 255 + "/x",
    "spiffe://fleet.example/" + "p" * (MAX_ID_BYTES - 23),
]

BAD = {
    "empty": "",
    "no scheme": "fleet.example/billing",
    "another scheme": "https://fleet.example/billing",
    "scheme in upper case": "SPIFFE://fleet.example/billing",
    "one slash": "spiffe:/fleet.example/billing",
    "no domain": "spiffe:///billing",
    "no path": "spiffe://fleet.example",
    "root path": "spiffe://fleet.example/",
    "trailing slash": "spiffe://fleet.example/billing/",
    "empty segment": "spiffe://fleet.example//billing",
    "dot": "spiffe://fleet.example/./billing",
    "dots": "spiffe://fleet.example/a/../billing",
    "dots at the end": "spiffe://fleet.example/a/..",
    "domain in upper case": "spiffe://Fleet.example/billing",
    "port": "spiffe://fleet.example:8443/billing",
    "user": "spiffe://user@fleet.example/billing",
    "password": "spiffe://user:pass@fleet.example/billing",
    "query": "spiffe://fleet.example/billing?x=1",
    "fragment": "spiffe://fleet.example/billing#x",
    "percent-encoding": "spiffe://fleet.example/b%69lling",
    "space before": " spiffe://fleet.example/billing",
    "newline after": "spiffe://fleet.example/billing\n",
    "newline after the domain": "spiffe://fleet.example\n/billing",
    "NUL": "spiffe://fleet.example/bill\0ing",
    "a letter beyond ASCII": "spiffe://fleet.example/bílling",
    "a domain beyond ASCII": "spiffe://flëet.example/billing",
    "a digit beyond ASCII": "spiffe://fleet.example/\u0661",
    "Kelvin sign": "spiffe://fleet.example/\u212a",
    "backslash": "spiffe://fleet.example/a\\b",
    "wildcard": "spiffe://fleet.example/*",
    "domain of 256 bytes": "spiffe://" + "d" * 256 + "/x",
    "2049 bytes": "spiffe://fleet.example/" + "p" * (MAX_ID_BYTES - 22),
}


@pytest.mark.parametrize("text", GOOD)
def test_a_spiffe_id_is_parsed_and_printed_as_it_was(text: str) -> None:
    agent = AgentID.parse(text)
    assert str(agent) == text
    assert f"spiffe://{agent.trust_domain}{agent.path}" == text
    assert repr(agent) == f"AgentID({text!r})"
    assert AgentID(agent.trust_domain, agent.path) == agent
    assert hash(AgentID.parse(text)) == hash(agent)


@pytest.mark.parametrize("name", BAD)
def test_anything_else_is_refused(name: str) -> None:
    with pytest.raises(IdentityError) as caught:
        AgentID.parse(BAD[name])
    assert isinstance(caught.value, ValueError)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", [None, 7, b"spiffe://fleet.example/billing", ["spiffe://fleet.example/billing"]])
def test_only_text_is_parsed(value: object) -> None:
    with pytest.raises(IdentityError):
        AgentID.parse(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("domain", "path"),
    [("Fleet", "/a"), ("fleet", "a"), ("fleet", ""), ("", "/a"), ("f/g", "/a"), ("f", "/" + "p" * MAX_ID_BYTES)],
)
def test_the_constructor_is_as_strict_as_the_parser(domain: str, path: str) -> None:
    with pytest.raises(IdentityError):
        AgentID(domain, path)


def test_ids_are_values() -> None:
    one = AgentID.parse("spiffe://fleet.example/a")
    with pytest.raises(FrozenInstanceError):
        one.path = "/b"  # type: ignore[misc]
    assert sorted([AgentID("b", "/a"), AgentID("a", "/b"), AgentID("a", "/a")])[0] == AgentID("a", "/a")
    assert AgentID.parse("spiffe://fleet.example/A") != AgentID.parse("spiffe://fleet.example/a")


@given(st.text())
def test_parsing_refuses_or_keeps_every_character(text: str) -> None:
    for candidate in (text, "spiffe://" + text, "spiffe://fleet.example/" + text):
        try:
            agent = AgentID.parse(candidate)
        except IdentityError:
            continue
        assert str(agent) == candidate
        assert candidate.isascii() and "//" not in candidate[9:] and not candidate.endswith("/")


@pytest.mark.parametrize("text", ["fleet.example", "a", "10.0.0.1", "x" * 255, "a_b-c"])
def test_trust_domain(text: str) -> None:
    assert trust_domain(text) == text


@pytest.mark.parametrize("text", ["", "Fleet", "a/b", "a:1", "a\n", "x" * 256, "spiffe://a", "é", None, b"a"])
def test_no_trust_domain(text: object) -> None:
    with pytest.raises(IdentityError):
        trust_domain(text)  # type: ignore[arg-type]


# IDs in certificates


def test_the_id_of_a_certificate() -> None:
    assert AgentID.of(FORGE.leaf("/a/b").certificate) == AgentID("fleet.example", "/a/b")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, NoSpiffeID),
        ([x509.DNSName("fleet.example")], NoSpiffeID),
        ([spiffe("spiffe://fleet.example/a"), spiffe("spiffe://fleet.example/b")], SeveralSpiffeIDs),
        ([spiffe("spiffe://fleet.example/a"), spiffe("https://fleet.example/b")], SeveralSpiffeIDs),
        ([spiffe("https://fleet.example/b")], MalformedCertificate),
        ([spiffe("spiffe://fleet.example")], MalformedCertificate),
        ([spiffe("spiffe://fleet.example/a b\n")], MalformedCertificate),
    ],
)
def test_a_certificate_without_one_id(names: list[x509.GeneralName] | None, expected: type[Exception]) -> None:
    with pytest.raises(expected) as caught:
        AgentID.of(FORGE.leaf(sans=names).certificate)
    assert type(caught.value) is expected


@pytest.mark.parametrize(
    ("names", "content"),
    [([spiffe("spiffe://fleet.example/a")], b"\x30\x00"), (None, b"\x30\x02\xa3\x00"), (None, b"\x05\x00")],
    ids=["two subjectAltNames", "an x400Address", "not a list"],
)
def test_a_certificate_whose_names_cannot_be_read(names: list[x509.GeneralName] | None, content: bytes) -> None:
    extra = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.99"), content)
    der = FORGE.leaf(sans=names, extra=[(extra, False)]).chain_der[0]
    odd = x509.load_der_x509_certificate(der.replace(b"\x06\x03\x55\x1d\x63", b"\x06\x03\x55\x1d\x11"))
    with pytest.raises(MalformedCertificate):
        AgentID.of(odd)


# Thumbprints, peers, times


def test_thumbprint_is_that_of_rfc_8705() -> None:
    der = FORGE.leaf().chain_der[0]
    text = thumbprint(der)
    assert base64.urlsafe_b64decode(text + "=") == hashlib.sha256(der).digest()
    assert len(text) == 43
    assert thumbprint(b"") == "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"  # SHA-256 of nothing


def test_a_fingerprint_is_what_sha256sum_prints() -> None:
    assert fingerprint(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def peer() -> PeerIdentity:
    return verify_peer(FORGE.leaf().chain_der, bundles=FORGE.bundles, now=NOW, usage="client")


def test_a_peer_prints_no_bytes() -> None:
    assert "chain" not in repr(peer())


def test_the_peer_of_a_connection() -> None:
    known = peer()
    assert peer_of({"extensions": {PEER_EXTENSION: known}}) is known
    for scope in ({}, {"extensions": None}, {"extensions": {}}, {"extensions": {PEER_EXTENSION: str(known.agent_id)}}):
        assert peer_of(scope) is None


def test_a_caller_is_a_user_of_starlette_and_of_the_a2a_sdk() -> None:
    known = peer()
    caller = Caller(
        peer=known,
        subject="spiffe://fleet.example/alice",
        actors=("spiffe://fleet.example/billing",),
        client_id="billing",
        scopes=("agent:execute",),
        token_id="t1",
        issued_at=NOW,
        expires_at=NOW,
        access_token="secret-token",
        signer=None,
        message_id=None,
    )
    assert caller.is_authenticated
    assert caller.agent_id == known.agent_id
    assert caller.display_name == caller.identity == caller.user_name == "spiffe://fleet.example/alice"
    assert "secret-token" not in repr(caller)
