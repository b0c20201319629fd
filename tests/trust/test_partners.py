"""Partners: what may be configured, which bundle may follow which, and what is kept for the next start."""

from __future__ import annotations

import json
import logging
import stat
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.endpoints import bundle_of
from tests.forge import NOW, Forge
from trust.bundles import TrustBundle
from trust.errors import BundleError, ConfigurationError, IdentityError, TrustError
from trust.identity import AgentID
from trust.partners import BundleCache, Partner, successor

OTHER, THIRD = Forge("other.example"), Forge("third.example")
ENDPOINT = AgentID.parse("spiffe://other.example/bundles")
WEB: dict[str, Any] = {"trust_domain": "other.example", "url": "https://other.example/bundle", "profile": "https_web"}
SPIFFE = {**WEB, "profile": "https_spiffe", "endpoint_id": ENDPOINT, "bundle": OTHER.bundle}


REFUSED: list[tuple[str, dict[str, Any], type[TrustError]]] = [
    ("a malformed domain", {**WEB, "trust_domain": "Other"}, IdentityError),
    ("plain http", {**WEB, "url": "http://other.example/bundle"}, ConfigurationError),
    ("no host", {**WEB, "url": "https:///bundle"}, ConfigurationError),
    ("no URL", {**WEB, "url": "https://other.example:port/"}, ConfigurationError),
    ("a host that is no IDN", {**WEB, "url": "https://xn--a/bundle"}, ConfigurationError),
    ("not even text", {**WEB, "url": None}, ConfigurationError),
    ("a user in the URL", {**WEB, "url": "https://me@other.example/"}, ConfigurationError),
    ("a fragment", {**WEB, "url": "https://other.example/#a"}, ConfigurationError),
    ("another profile", {**WEB, "profile": "https"}, ConfigurationError),
    ("the bundle of another domain", {**WEB, "bundle": THIRD.bundle}, ConfigurationError),
    ("https_web with a SPIFFE ID", {**WEB, "endpoint_id": ENDPOINT}, ConfigurationError),
    ("https_spiffe without", {**SPIFFE, "endpoint_id": None}, ConfigurationError),
    ("https_spiffe without a first bundle", {**SPIFFE, "bundle": None}, ConfigurationError),
    ("https_spiffe with web roots", {**SPIFFE, "ca_file": Path("ca.pem")}, ConfigurationError),
]


@pytest.mark.parametrize(("name", "settings", "expected"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_cannot_be_configured(name: str, settings: dict[str, Any], expected: type[TrustError]) -> None:
    with pytest.raises(TrustError) as caught:
        Partner(**settings)
    assert type(caught.value) is expected


def test_what_can() -> None:
    Partner(**WEB)
    Partner(**{**WEB, "bundle": OTHER.bundle, "url": "https://other.example:8443/a/b?c=d"})
    Partner(**SPIFFE)
    Partner(**{**SPIFFE, "endpoint_id": AgentID.parse("spiffe://third.example/bundles"), "bundle": None})


def test_the_fingerprint_is_of_every_part_of_the_configuration() -> None:
    changes: list[dict[str, Any]] = [
        WEB,
        {**WEB, "url": "https://other.example/new"},
        {**WEB, "ca_file": Path("ca.pem")},
        {**WEB, "bundle": OTHER.bundle},
        {**WEB, "bundle": bundle_of(OTHER, 2)},
        {**WEB, "bundle": bundle_of(OTHER, 0, OTHER.root, OTHER.intermediate)},
        {**WEB, "trust_domain": "other2.example"},
        SPIFFE,
        {**SPIFFE, "endpoint_id": AgentID.parse("spiffe://other.example/new")},
    ]
    assert len({Partner(**change).fingerprint() for change in changes}) == len(changes)
    assert Partner(**WEB).fingerprint() == Partner(**WEB).fingerprint()


# Succession


def b(sequence: int, *roots: Any, hint: int = 300) -> TrustBundle:
    return TrustBundle(trust_domain="other.example", roots=roots, sequence=sequence, refresh_hint=hint)


A, B = OTHER.root, OTHER.intermediate
TAKEN: list[tuple[str, TrustBundle | None, TrustBundle, bool]] = [
    ("the first", None, b(0, A), True),
    ("a higher sequence", b(1, A), b(2, B), True),
    ("a higher sequence, the same roots", b(1, A), b(2, A), True),
    ("a higher sequence, nothing trusted any more", b(1, A), b(2), True),
    ("a domain that comes back", b(2), b(3, A), True),
    ("the very same", b(5, A, B), b(5, A, B), False),
    ("the same in another order", b(5, A, B), b(5, B, A), False),
    ("without sequences, the latest", b(0, A), b(0, B), True),
    ("without sequences, the same", b(0, A), b(0, A), False),
    ("the first sequence", b(0, A), b(1, B), True),
]
REFUSED_BUNDLES: list[tuple[str, TrustBundle, TrustBundle]] = [
    ("a lower sequence", b(5, A), b(4, B)),
    ("a lower sequence with the same roots", b(5, A), b(4, A)),
    ("a lower sequence that revokes", b(5, A), b(4)),
    ("no sequence any more", b(5, A), b(0, B)),
    ("the same sequence, another root", b(5, A), b(5, B)),
    ("the same sequence, a root more", b(5, A), b(5, A, B)),
    ("the same sequence, a root less", b(5, A, B), b(5, A)),
    ("the same sequence, no root", b(5, A), b(5)),
    ("a revoked domain, the same sequence", b(5), b(5, A)),
]


@pytest.mark.parametrize(("name", "known", "offered", "taken"), TAKEN, ids=[row[0] for row in TAKEN])
def test_what_may_follow(name: str, known: TrustBundle | None, offered: TrustBundle, taken: bool) -> None:
    assert successor(known, offered) is (offered if taken else known)


@pytest.mark.parametrize(("name", "known", "offered"), REFUSED_BUNDLES, ids=[row[0] for row in REFUSED_BUNDLES])
def test_what_may_not_follow(name: str, known: TrustBundle, offered: TrustBundle) -> None:
    with pytest.raises(BundleError) as caught:
        successor(known, offered)
    assert type(caught.value) is BundleError


@given(st.lists(st.tuples(st.integers(0, 4), st.sets(st.sampled_from([A, B]))), min_size=1))
def test_a_sequence_never_goes_back_and_one_sequence_is_one_content(offers: list[tuple[int, set[Any]]]) -> None:
    known: TrustBundle | None = None
    contents: dict[int, set[Any]] = {}
    for sequence, roots in offers:
        before = known
        try:
            known = successor(known, b(sequence, *roots))
        except BundleError:
            continue
        assert before is None or known.sequence >= before.sequence
        if known.sequence:
            assert contents.setdefault(known.sequence, set(known.roots)) == set(known.roots)


# The cache


def test_what_was_fetched_is_kept_privately(tmp_path: Path) -> None:
    partner, folder = Partner(**WEB), tmp_path / "a" / "cache"
    cache = BundleCache(folder)
    assert cache.read(partner) is None
    bundle = bundle_of(OTHER, 7)
    cache.write(partner, bundle, NOW)
    assert cache.read(partner) == (bundle, NOW)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "other.example.json").stat().st_mode) == 0o600


def test_another_process_may_have_been_faster(tmp_path: Path) -> None:
    partner, cache = Partner(**WEB), BundleCache(tmp_path)
    for sequence in (7, 6):
        bundle = bundle_of(OTHER, sequence)
        cache.write(partner, bundle, NOW + timedelta(seconds=sequence))
    kept = cache.read(partner)
    assert kept is not None and kept[0].sequence == 7


def test_what_was_fetched_under_another_configuration_does_not_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The operator's way out: a partner that began anew has a lower sequence, and a fresh bundle file says so."""
    before, cache = Partner(**SPIFFE), BundleCache(tmp_path)
    old = bundle_of(OTHER, 1000)
    cache.write(before, old, NOW)
    after = replace(before, bundle=bundle_of(Forge("other.example"), 1))
    assert cache.read(after) is None
    assert "of another configuration" in caplog.text
    new = after.bundle
    assert new is not None
    cache.write(after, new, NOW)
    assert cache.read(after) == (new, NOW)


DAMAGED: dict[str, Any] = {
    "empty": b"",
    "cut": b'{"configured": "',
    "another form": b"[]",
    "no members": b"{}",
    "no time": {"fetched": 7},
    "a time without a zone": {"fetched": "2026-01-01T00:00:00"},
    "no bundle": {"bundle": {}},
    "a bundle of rubbish": {"bundle": {"keys": [{"use": "x509-svid", "x5c": ["AAAA"]}]}},
    "nothing as text": None,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_cache_is_not_used_and_is_replaced(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    partner, cache = Partner(**WEB), BundleCache(tmp_path)
    bundle = bundle_of(OTHER, 7)
    cache.write(partner, bundle, NOW)
    file = tmp_path / "other.example.json"
    change = DAMAGED[name]
    if isinstance(change, dict):
        change = json.dumps({**json.loads(file.read_bytes()), **change}).encode()
    file.write_bytes(b"null" if change is None else change)
    assert cache.read(partner) is None
    assert "is not used" in caplog.text
    cache.write(partner, bundle_of(OTHER, 1), NOW)
    kept = cache.read(partner)
    assert kept is not None and kept[0].sequence == 1


def test_web_roots(tmp_path: Path) -> None:
    assert Partner(**WEB).web_trust().cert_store_stats()["x509_ca"] > 50  # the public ones
    file = tmp_path / "ca.pem"
    with pytest.raises(ConfigurationError, match="ca_file of other"):
        Partner(**WEB, ca_file=file).web_trust()
    file.write_bytes(b"rubbish")
    with pytest.raises(ConfigurationError, match="ca_file of other"):
        Partner(**WEB, ca_file=file).web_trust()
