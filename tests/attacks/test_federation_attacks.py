"""Attacks on federation: one endpoint that is right, one thing about it changed, and nothing of it is taken."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.endpoints import WEB, Endpoint, bundle_of, over_spiffe, over_web, web_roots
from tests.forge import HOUR, NOW, Forge
from trust.authorize import unsafe_allow_any_peer
from trust.bundles import MAX_BUNDLE_BYTES, TrustBundle, TrustBundles
from trust.credentials import Credentials
from trust.errors import (
    BundleError,
    CertificateExpired,
    HandshakeRefused,
    PeerNotAllowed,
    UnknownTrustDomain,
    UntrustedChain,
    WrongExtendedKeyUsage,
)
from trust.federation import FederatedBundles
from trust.identity import AgentID
from trust.partners import Partner, successor
from trust.peers import verify_peer
from trust.tls import serving

OWN, OTHER, THIRD = Forge("fleet.example"), Forge("other.example"), Forge("third.example")
NEXT = Forge("other.example")  # the CA that the valid document brings in
KNOWN = bundle_of(OTHER, 5)
VALID = bundle_of(OTHER, 6, OTHER.root, NEXT.root)
ID = AgentID.parse("spiffe://other.example/bundles")


def text(**members: Any) -> bytes:
    return json.dumps({**VALID.to_document(), **members}).encode()


async def refused(source: FederatedBundles, partner: Partner, expected: type[Exception]) -> None:
    """The endpoint is refused with this very error, `health` says so, and the bundles are what they were."""
    before = source.current()
    with pytest.raises(Exception) as caught:
        offered = await source._offered(partner)
        successor(KNOWN, offered)
    assert type(caught.value) is expected
    await source.refresh(NOW)
    assert source.current() is before and before.by_domain["other.example"] is KNOWN
    (health,) = source.health()
    assert not health.ok and health.problem and "\n" not in health.problem
    assert (health.sequence, health.fetched_at) == (5, None)


# What is served


def change(headers: dict[str, str] | None = None, **changes: Any) -> Callable[[Endpoint], None]:
    def apply(endpoint: Endpoint) -> None:
        endpoint.headers.update(headers or {})
        for name, value in changes.items():
            setattr(endpoint, name, value)

    return apply


OF_OURS = TrustBundles.of(TrustBundle(trust_domain="fleet.example", roots=(NEXT.root,))).to_json().encode()
DOCUMENTS: list[tuple[str, Callable[[Endpoint], None], type[Exception]]] = [
    ("a lower sequence", change(document=bundle_of(NEXT, 4)), BundleError),
    ("the same sequence, other roots", change(document=bundle_of(NEXT, 5)), BundleError),
    ("the same sequence, a root more", change(document=bundle_of(OTHER, 5, OTHER.root, NEXT.root)), BundleError),
    ("no sequence any more", change(document=json.dumps({"keys": VALID.to_document()["keys"]}).encode()), BundleError),
    ("an old document that revokes all", change(document=b'{"keys": [], "spiffe_sequence": 4}'), BundleError),
    ("a sequence beyond the doubles", change(document=text(spiffe_sequence=2**64)), BundleError),
    ("a negative sequence", change(document=text(spiffe_sequence=-1)), BundleError),
    ("a hint that is none", change(document=text(spiffe_refresh_hint="often")), BundleError),
    ("keys twice", change(document=text()[:-1] + b', "keys": []}'), BundleError),
    ("a sequence twice", change(document=text()[:-1] + b', "spiffe_sequence": 9}'), BundleError),
    ("something after the document", change(document=text() + b"{}"), BundleError),
    ("NaN", change(document=text(spiffe_refresh_hint=float("nan"))), BundleError),
    ("a byte order mark", change(document=b"\xef\xbb\xbf" + text()), BundleError),
    ("UTF-16", change(document=text().decode().encode("utf-16")), BundleError),
    ("nested too deeply", change(document=b'{"keys":[],"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}"), BundleError),
    ("not JSON", change(document=b"<html>Welcome to our hotspot</html>"), BundleError),
    ("nothing", change(document=b""), BundleError),
    ("a bundle map that names our own domain", change(document=OF_OURS), BundleError),
    (
        "two certificates in one entry",
        change(document=text(keys=[{"use": "x509-svid", "x5c": VALID.to_document()["keys"][0]["x5c"] * 2}])),
        BundleError,
    ),
    ("too large", change(document=text(padding="x" * MAX_BUNDLE_BYTES)), BundleError),
    (
        "a compressed bomb",
        change(document=gzip.compress(b" " * (64 << 20)), headers={"content-encoding": "gzip"}),
        BundleError,
    ),
    ("a redirect to another host", change(status=302, headers={"location": "https://evil.example/b"}), BundleError),
    ("a redirect to itself", change(status=308, headers={"location": "/bundle2"}), BundleError),
    ("a redirect to plain http", change(status=301, headers={"location": "http://localhost/"}), BundleError),
    ("an error with a good document", change(status=500), BundleError),
    ("another success", change(status=206), BundleError),
]


@pytest.mark.parametrize(("name", "apply", "expected"), DOCUMENTS, ids=[row[0] for row in DOCUMENTS])
def test_a_document_that_is_refused(
    name: str, apply: Callable[[Endpoint], None], expected: type[Exception], tmp_path: Path
) -> None:
    async def main() -> None:
        endpoint = Endpoint(VALID)
        async with over_web(endpoint, tmp_path) as url:
            partner = Partner(
                trust_domain="other.example", url=url, profile="https_web", bundle=KNOWN, ca_file=web_roots(tmp_path)
            )
            valid = FederatedBundles(OWN.bundles, [partner])
            await valid.refresh(NOW)
            assert valid.current().by_domain["other.example"] == VALID
            endpoint.asked.clear()
            apply(endpoint)
            await refused(FederatedBundles(OWN.bundles, [partner]), partner, expected)
            assert {scope["path"] for scope in endpoint.asked} == {"/bundle"}  # no redirect was followed

    asyncio.run(main())


# Who serves it: https_web


WEB_SERVERS: list[tuple[str, Credentials]] = [
    ("by a CA that is not of the web", Forge("web.example").leaf("/web")),
    ("by the CA of the partner itself", OTHER.leaf(str(ID))),
    ("by our own CA", OWN.leaf("/web")),
    ("for another host", WEB.leaf("/web", sans=[])),
    ("expired", WEB.leaf("/web", not_before=NOW - 3 * HOUR, not_after=NOW - HOUR)),
    ("not yet valid", WEB.leaf("/web", not_before=NOW + HOUR)),
]


@pytest.mark.parametrize(("name", "certificate"), WEB_SERVERS, ids=[row[0] for row in WEB_SERVERS])
def test_a_web_endpoint_with_a_certificate(name: str, certificate: Credentials, tmp_path: Path) -> None:
    async def main() -> None:
        endpoint = Endpoint(VALID)
        async with over_web(endpoint, tmp_path) as url:  # `certificate` is in its place, and all else is as it was
            partner = Partner(
                trust_domain="other.example", url=url, profile="https_web", bundle=KNOWN, ca_file=web_roots(tmp_path)
            )
            await FederatedBundles(OWN.bundles, [partner]).refresh(NOW)
            assert len(endpoint.asked) == 1
        endpoint = Endpoint(VALID)
        async with over_web(endpoint, tmp_path, certificate) as url:
            partner = Partner(
                trust_domain="other.example", url=url, profile="https_web", bundle=KNOWN, ca_file=web_roots(tmp_path)
            )
            await refused(FederatedBundles(OWN.bundles, [partner]), partner, httpx.ConnectError)
        assert endpoint.asked == []

    asyncio.run(main())


# Who serves it: https_spiffe


SPIFFE_SERVERS: list[tuple[str, Credentials, type[Exception]]] = [
    ("by a CA that nobody knows", Forge("other.example").leaf(str(ID)), UntrustedChain),
    ("by our own CA, in the partner's name", OWN.leaf(str(ID)), UntrustedChain),
    ("by the CA of another partner, in this one's name", THIRD.leaf(str(ID)), UntrustedChain),
    ("by the CA that its own document brings in", NEXT.leaf(str(ID)), UntrustedChain),
    ("by a web CA", WEB.leaf("/web"), UnknownTrustDomain),
    ("another agent of the domain", OTHER.leaf("/bundles2"), PeerNotAllowed),
    ("an agent of ours", OWN.leaf("/bundles"), UnknownTrustDomain),
    ("an agent of another partner", THIRD.leaf("/bundles"), UnknownTrustDomain),
    ("expired", OTHER.leaf(str(ID), not_before=NOW - 3 * HOUR, not_after=NOW - HOUR), CertificateExpired),
    ("not for servers", OTHER.leaf(str(ID), eku=None), WrongExtendedKeyUsage),
]


@pytest.mark.parametrize(("name", "credentials", "expected"), SPIFFE_SERVERS, ids=[row[0] for row in SPIFFE_SERVERS])
def test_a_spiffe_endpoint_with_a_certificate(name: str, credentials: Credentials, expected: type[Exception]) -> None:
    async def main() -> None:
        endpoint = Endpoint(VALID)
        own = TrustBundles.of(OWN.bundle, THIRD.bundle)  # both are trusted, for their own agents
        for serving_as in (OTHER.leaf(str(ID)), credentials):
            async with over_spiffe(endpoint, serving_as, OTHER) as url:
                partner = Partner(
                    trust_domain="other.example", url=url, profile="https_spiffe", endpoint_id=ID, bundle=KNOWN
                )
                if serving_as is not credentials:
                    await FederatedBundles(own, [partner]).refresh(NOW)
                    assert len(endpoint.asked) == 1
                else:
                    await refused(FederatedBundles(own, [partner]), partner, expected)
        assert len(endpoint.asked) == 1  # nothing was asked of the wrong one

    asyncio.run(main())


def test_an_endpoint_that_wants_to_know_who_asks() -> None:
    """Section 5.2.2.3: servers must not require client authentication; we never present a certificate."""

    async def main() -> None:
        async with serving(
            Endpoint(VALID),
            source=OTHER.leaf(str(ID)),
            bundles=TrustBundles.of(OWN.bundle, OTHER.bundle),
            authorize=unsafe_allow_any_peer(),
            lifespan="off",
        ) as server:
            partner = Partner(
                trust_domain="other.example", url=server.url, profile="https_spiffe", endpoint_id=ID, bundle=KNOWN
            )
            await refused(FederatedBundles(OWN.bundles, [partner]), partner, HandshakeRefused)

    asyncio.run(main())


# What a partner can do at worst


def test_a_partner_fills_its_own_domain_and_no_other(tmp_path: Path) -> None:
    """Whatever its document claims, and whatever certificates its CA makes: it speaks for its own agents only."""

    async def main() -> None:
        claims = text(trust_domain="fleet.example", trust_domains={"fleet.example": VALID.to_document()})
        async with over_web(Endpoint(claims), tmp_path) as url:
            partner = Partner(trust_domain="other.example", url=url, profile="https_web", ca_file=web_roots(tmp_path))
            source = FederatedBundles(TrustBundles.of(OWN.bundle, THIRD.bundle), [partner])
            await source.refresh(NOW)
        assert set(source.current().by_domain) == {"fleet.example", "other.example", "third.example"}
        for domain in ("fleet.example", "third.example"):
            for forge in (OTHER, NEXT):
                chain = forge.leaf(f"spiffe://{domain}/agent").chain_der
                with pytest.raises(UntrustedChain):
                    verify_peer(chain, bundles=source, now=NOW, usage="client")
        assert verify_peer(NEXT.leaf().chain_der, bundles=source, now=NOW, usage="client").agent_id.path == "/billing"
        # And ours does not speak for the partner's.
        with pytest.raises(UntrustedChain):
            verify_peer(OWN.leaf(str(ID)).chain_der, bundles=source, now=NOW, usage="client")

    asyncio.run(main())


def test_a_file_name_in_the_cache_is_no_path(tmp_path: Path) -> None:
    """A trust domain may be called `..`: it still writes into the cache folder and nowhere else."""

    async def main() -> None:
        async with over_web(Endpoint(b'{"keys": []}'), tmp_path) as url:
            partner = Partner(trust_domain="..", url=url, profile="https_web", ca_file=web_roots(tmp_path))
            source = FederatedBundles(OWN.bundles, [partner], cache=tmp_path / "cache" / "deep")
            await source.refresh(NOW)
        assert [file.name for file in (tmp_path / "cache" / "deep").iterdir()] == ["...json"]

    asyncio.run(main())
