"""Federation against real endpoints: fetched, followed, kept while they are down, healed after long absence."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.endpoints import Endpoint, bundle_of, over_spiffe, over_web, web_roots
from tests.forge import HOUR, NOW, Forge
from trust import federation as module
from trust.authorize import exactly
from trust.bundles import TrustBundle, TrustBundles
from trust.errors import ConfigurationError, IdentityError, PeerError, UnknownTrustDomain
from trust.federation import FederatedBundles, PartnerHealth
from trust.identity import AgentID
from trust.partners import Partner
from trust.peers import verify_peer
from trust.sources import Live
from trust.tls import AgentTransport

OWN, OTHER, THIRD = Forge("fleet.example"), Forge("other.example"), Forge("third.example")
ENDPOINT_ID = AgentID.parse("spiffe://other.example/bundles")


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def web(url: str, folder: Path, **changes: Any) -> Partner:
    settings: dict[str, Any] = {"trust_domain": "other.example", "profile": "https_web", "ca_file": web_roots(folder)}
    return Partner(url=url, **{**settings, **changes})


def spiffe(url: str, **changes: Any) -> Partner:
    settings: dict[str, Any] = {
        "trust_domain": "other.example",
        "profile": "https_spiffe",
        "endpoint_id": ENDPOINT_ID,
        "bundle": bundle_of(OTHER),
    }
    return Partner(url=url, **{**settings, **changes})


def state(source: FederatedBundles, domain: str = "other.example") -> PartnerHealth:
    return next(health for health in source.health() if health.trust_domain == domain)


def trusts(source: FederatedBundles, forge: Forge) -> bool:
    """Whether an agent of that CA is accepted."""
    chain = forge.leaf("/agent").chain_der
    try:
        verify_peer(chain, bundles=source, now=NOW, usage="client")
    except PeerError:
        return False
    return True


# Fetching


def test_https_web(tmp_path: Path) -> None:
    async def main() -> None:
        endpoint = Endpoint(bundle_of(OTHER, 3, hint=120))
        async with over_web(endpoint, tmp_path) as url:
            source = FederatedBundles(OWN.bundles, [web(url + "?domain=other", tmp_path)])
            assert source.current().by_domain == {"fleet.example": OWN.bundle}
            assert not trusts(source, OTHER)  # nothing is known yet
            assert state(source).problem == "not fetched yet: nothing of the domain is trusted"
            assert not state(source).ok
            await source.refresh(NOW)
            assert trusts(source, OTHER) and trusts(source, OWN)
            assert source.current().by_domain["other.example"] == bundle_of(OTHER, 3, hint=120)
            health = state(source)
            assert (health.ok, health.problem, health.sequence, health.roots) == (True, None, 3, 1)
            assert health.fetched_at == NOW
            assert health.next_at is not None and timedelta(seconds=108) <= health.next_at - NOW <= timedelta(minutes=2)
        (scope,) = endpoint.asked
        assert (scope["path"], scope["query_string"]) == ("/bundle", b"domain=other")
        headers = dict(scope["headers"])
        assert headers[b"accept-encoding"] == b"identity" and b"authorization" not in headers

    run(main())


def test_https_spiffe_follows_the_rotation_of_the_roots_that_it_is_verified_with(tmp_path: Path) -> None:
    async def main() -> None:
        old, new = OTHER, Forge("other.example")
        serving = Live(old.leaf(str(ENDPOINT_ID)))
        endpoint = Endpoint(bundle_of(old, 1))
        async with over_spiffe(endpoint, serving, old) as url:
            source = FederatedBundles(OWN.bundles, [spiffe(url)])
            assert trusts(source, old)  # from the configured bundle, before anything was fetched
            await source.refresh(NOW)
            assert state(source).ok
            endpoint.document = bundle_of(old, 2, old.root, new.root)
            await source.refresh(NOW + HOUR)
            assert trusts(source, old) and trusts(source, new)
            serving.replace(new.leaf(str(ENDPOINT_ID)))
            endpoint.document = bundle_of(new, 3)
            await source.refresh(NOW + 2 * HOUR)
            assert trusts(source, new) and not trusts(source, old)
            assert state(source).ok and state(source).sequence == 3
        assert all(scope["extensions"]["tls"]["client_cert_name"] is None for scope in endpoint.asked)

    run(main())


def test_an_endpoint_in_another_domain_is_verified_with_the_bundle_of_that_domain() -> None:
    """SPIFFE Federation section 5.2.2.4, not self-serving: here our own domain serves what it knows of another."""

    async def main() -> None:
        endpoint = Endpoint(bundle_of(OTHER, 1))
        async with over_spiffe(endpoint, OWN.leaf("/relay"), OWN) as url:
            partner = spiffe(url, endpoint_id=AgentID.parse("spiffe://fleet.example/relay"), bundle=None)
            source = FederatedBundles(OWN.bundles, [partner])
            await source.refresh(NOW)
            assert state(source).ok and trusts(source, OTHER)

    run(main())


def test_the_value_is_the_same_object_until_something_changes(tmp_path: Path) -> None:
    async def main() -> None:
        own = Live(OWN.bundles)
        endpoint = Endpoint(bundle_of(OTHER))
        async with over_web(endpoint, tmp_path) as url:
            source = FederatedBundles(own, [web(url, tmp_path)])
            first = source.current()
            assert source.current() is first
            await source.refresh(NOW)
            second = source.current()
            assert second is not first and source.current() is second
            await source.refresh(NOW + HOUR)
            assert len(endpoint.asked) == 2 and source.current() is second
            own.replace(TrustBundles.of(OWN.bundle, THIRD.bundle))
            assert trusts(source, THIRD) and trusts(source, OTHER)

    run(main())


def test_many_partners_are_asked_at_once_and_one_does_not_hold_up_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FETCH_SECONDS", 1.0)

    async def main() -> None:
        slow, swift = Endpoint(bundle_of(OTHER)), Endpoint(bundle_of(THIRD))
        slow.wait = 30.0
        (tmp_path / "a").mkdir()
        async with over_web(slow, tmp_path / "a") as first, over_web(swift, tmp_path) as second:
            source = FederatedBundles(
                OWN.bundles, [web(first, tmp_path), web(second, tmp_path, trust_domain="third.example")]
            )
            started = time.monotonic()
            await source.refresh(NOW)
            assert time.monotonic() - started < 25  # the slow one answers after 30
        assert trusts(source, THIRD) and not trusts(source, OTHER)
        assert state(source).problem == "no answer within 1 s"
        assert state(source, "third.example").ok

    run(main())


# When


@pytest.mark.parametrize(
    ("hint", "expected"),
    [(0, 10), (1, 10), (60, 60), (86_400, 86_400), (10**9, 86_400), (2**53 - 1, 86_400)],
)
def test_the_hint_is_bounded(hint: int, expected: int, tmp_path: Path) -> None:
    assert module._interval(bundle_of(OTHER, hint=hint)) == timedelta(seconds=expected)


def test_an_endpoint_is_asked_when_it_is_due_by_the_wall_clock(tmp_path: Path) -> None:
    async def main() -> None:
        endpoint = Endpoint(bundle_of(OTHER, hint=600))
        async with over_web(endpoint, tmp_path) as url:
            source = FederatedBundles(OWN.bundles, [web(url, tmp_path)])
            await source.refresh(NOW)
            await source.refresh(NOW + timedelta(seconds=500))
            assert len(endpoint.asked) == 1
            await source.refresh(NOW + timedelta(seconds=601))
            assert len(endpoint.asked) == 2
            await source.refresh(NOW - 100 * HOUR)  # the clock was ahead, and was set back
            assert len(endpoint.asked) == 3
            await source.refresh(NOW + 1000 * HOUR)  # or the machine slept
            assert len(endpoint.asked) == 4
            with pytest.raises(IdentityError):
                await source.refresh(datetime(2026, 1, 1))

    run(main())


def test_a_fleet_does_not_ask_all_at_once() -> None:
    waits = {module._sooner(timedelta(seconds=1000)) for _ in range(50)}
    assert len(waits) > 40
    assert all(timedelta(seconds=900) <= wait <= timedelta(seconds=1000) for wait in waits)


# Failures


def test_an_endpoint_that_is_down_takes_nothing_away_and_is_tried_with_backoff(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)

    async def main() -> None:
        endpoint = Endpoint(bundle_of(OTHER, hint=86_400))
        async with over_web(endpoint, tmp_path) as url:
            source = FederatedBundles(OWN.bundles, [web(url, tmp_path)])
            await source.refresh(NOW)
            endpoint.status = 503
            now, waits = NOW + 25 * HOUR, []
            for _ in range(12):
                await source.refresh(now)
                health = state(source)
                assert health.next_at is not None and not health.ok and health.fetched_at == NOW
                waits.append((health.next_at - now).total_seconds())
                now = health.next_at
            assert trusts(source, OTHER)
            for tries, wait in enumerate(waits):
                expected = min(10 * 2**tries, 3600)
                assert 0.9 * expected <= wait <= expected
            assert state(source).problem is not None and "HTTP 503" in state(source).problem
            assert len(caplog.records) == 1
            endpoint.status = 200
            await source.refresh(now)
            assert state(source).ok
            assert "refreshed again" in caplog.records[-1].getMessage()

    run(main())


def test_an_endpoint_nobody_listens_at() -> None:
    async def main() -> None:
        source = FederatedBundles(OWN.bundles, [spiffe("https://127.0.0.1:1/bundle")])
        await source.refresh(NOW)
        problem = state(source).problem
        assert problem is not None and problem.startswith("bundle endpoint cannot be asked")
        assert trusts(source, OTHER)

    run(main())


def test_a_domain_that_withdraws_all_its_roots_is_not_trusted(tmp_path: Path) -> None:
    async def main() -> None:
        endpoint = Endpoint(bundle_of(OTHER, 1))
        async with over_web(endpoint, tmp_path) as url:
            source = FederatedBundles(OWN.bundles, [web(url, tmp_path)], cache=tmp_path / "cache")
            await source.refresh(NOW)
            assert trusts(source, OTHER)
            endpoint.document = b'{"keys": [], "spiffe_sequence": 2}'
            await source.refresh(NOW + HOUR)
            assert not trusts(source, OTHER)
            health = state(source)
            assert (health.ok, health.roots, health.sequence) == (False, 0, 2)
            assert health.problem == "the domain has withdrawn all its roots: nothing of it is trusted"
            again = FederatedBundles(OWN.bundles, [web(url, tmp_path)], cache=tmp_path / "cache")
            assert not trusts(again, OTHER)  # a restart does not bring them back
            endpoint.document = bundle_of(OTHER, 3)
            await again.refresh(NOW + HOUR)
            assert trusts(again, OTHER)

    run(main())


# The cache, and long absence


def test_a_restart_goes_on_from_what_was_fetched_last(tmp_path: Path) -> None:
    async def main() -> None:
        new = Forge("other.example")
        endpoint = Endpoint(bundle_of(new, 9))
        async with over_web(endpoint, tmp_path) as url:
            partner = web(url, tmp_path, bundle=bundle_of(OTHER, 1))
            await FederatedBundles(OWN.bundles, [partner], cache=tmp_path / "cache").refresh(NOW)
        source = FederatedBundles(OWN.bundles, [partner], cache=tmp_path / "cache")
        assert trusts(source, new) and not trusts(source, OTHER)
        assert (state(source).sequence, state(source).fetched_at, state(source).next_at) == (9, NOW, None)
        await source.refresh(NOW + HOUR)  # nobody is there any more
        assert trusts(source, new)

    run(main())


def test_https_web_heals_by_itself_after_long_absence(tmp_path: Path) -> None:
    async def main() -> None:
        later = Forge("other.example")
        endpoint = Endpoint(bundle_of(OTHER, 1))
        async with over_web(endpoint, tmp_path) as url:
            partner = web(url, tmp_path)
            await FederatedBundles(OWN.bundles, [partner], cache=tmp_path / "cache").refresh(NOW)
            endpoint.document = bundle_of(later, 40)  # every root was replaced while we were away
            source = FederatedBundles(OWN.bundles, [partner], cache=tmp_path / "cache")
            assert trusts(source, OTHER)
            await source.refresh(NOW + 1000 * HOUR)
            assert trusts(source, later) and not trusts(source, OTHER) and state(source).ok

    run(main())


def test_https_spiffe_says_what_to_do_after_long_absence(tmp_path: Path) -> None:
    async def main() -> None:
        later = Forge("other.example")
        endpoint = Endpoint(bundle_of(OTHER, 5))
        serving = Live(OTHER.leaf(str(ENDPOINT_ID)))
        async with over_spiffe(endpoint, serving, OTHER) as url:
            partner = spiffe(url)
            await FederatedBundles(OWN.bundles, [partner], cache=tmp_path).refresh(NOW)
            serving.replace(later.leaf(str(ENDPOINT_ID)))
            endpoint.document = bundle_of(later, 2)  # began anew, even its sequence
            source = FederatedBundles(OWN.bundles, [partner], cache=tmp_path)
            await source.refresh(NOW)
            problem = state(source).problem
            assert problem is not None
            assert f"bundle known of other.example (sequence 5, fetched {NOW:%Y-%m-%d %H:%M}Z)" in problem
            assert "get its bundle anew from its operator" in problem
            assert not trusts(source, later)
            assert len(endpoint.asked) == 1  # it was not asked anything before it was verified
            # The operator does so, and restarts: what was fetched under the old bundle no longer counts.
            cured = FederatedBundles(OWN.bundles, [spiffe(url, bundle=bundle_of(later, 2))], cache=tmp_path)
            await cured.refresh(NOW)
            assert state(cured).ok and trusts(cured, later) and not trusts(cured, OTHER)

    run(main())


def test_https_spiffe_of_a_domain_without_roots_says_what_to_do() -> None:
    async def main() -> None:
        async with over_spiffe(Endpoint(b""), OTHER.leaf(str(ENDPOINT_ID)), OTHER) as url:
            empty = TrustBundle(trust_domain="other.example", roots=(), sequence=3)
            source = FederatedBundles(OWN.bundles, [spiffe(url, bundle=empty)])
            await source.refresh(NOW)
            problem = state(source).problem
            assert problem is not None and "get its bundle anew" in problem and "(sequence 3)" in problem

    run(main())


def test_an_endpoint_of_a_domain_nothing_is_known_of_yet(tmp_path: Path) -> None:
    async def main() -> None:
        async with over_spiffe(Endpoint(b""), THIRD.leaf("/relay"), THIRD) as url:
            relay = AgentID.parse("spiffe://third.example/relay")
            partners = [
                spiffe(url, endpoint_id=relay, bundle=None),
                web("https://127.0.0.1:1/", tmp_path, trust_domain="third.example"),
            ]
            source = FederatedBundles(OWN.bundles, partners)
            await source.refresh(NOW)
            problem = state(source).problem
            assert problem is not None and "bundle known of third.example (none)" in problem

    run(main())


def test_a_cache_that_cannot_be_written_is_told_and_tried_again(tmp_path: Path) -> None:
    async def main() -> None:
        in_the_way = tmp_path / "cache"
        in_the_way.write_bytes(b"")
        async with over_web(Endpoint(bundle_of(OTHER, 4)), tmp_path) as url:
            source = FederatedBundles(OWN.bundles, [web(url, tmp_path)], cache=in_the_way)
            for now in (NOW, NOW + HOUR):
                await source.refresh(now)
                problem = state(source).problem
                assert problem is not None and problem.startswith("fetched, but not kept for the next start")
                assert trusts(source, OTHER)
            in_the_way.unlink()
            await source.refresh(NOW + 2 * HOUR)
            assert state(source).ok and (in_the_way / "other.example.json").exists()

    run(main())


# Configuration


CONTRADICTIONS: dict[str, Callable[[Path], list[Partner]]] = {
    "our own domain": lambda p: [web("https://localhost/", p, trust_domain="fleet.example")],
    "one domain twice": lambda p: [web("https://localhost/", p), spiffe("https://localhost/")],
    "an endpoint in an unknown domain": lambda p: [
        spiffe("https://localhost/", endpoint_id=AgentID.parse("spiffe://unknown.example/x"), bundle=None)
    ],
    "no web roots": lambda p: [web("https://localhost/", p, ca_file=p / "nowhere.pem")],
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_configuration_that_contradicts_itself(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        FederatedBundles(OWN.bundles, CONTRADICTIONS[name](tmp_path))
    assert type(caught.value) is ConfigurationError


def test_what_our_own_bundles_have_of_a_domain_stands(tmp_path: Path) -> None:
    """Also where they learn of it later: a partner never replaces it."""

    async def main() -> None:
        own = Live(OWN.bundles)
        async with over_web(Endpoint(bundle_of(Forge("other.example"), 99)), tmp_path) as url:
            source = FederatedBundles(own, [web(url, tmp_path)])
            own.replace(TrustBundles.of(OWN.bundle, OTHER.bundle))
            await source.refresh(NOW)
            assert source.current().by_domain["other.example"] is own.current().by_domain["other.example"]

    run(main())


# The thread


def test_the_thread_keeps_the_bundles_fresh_until_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    offset = 0.0

    def clock() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=offset)

    async def main() -> None:
        nonlocal offset
        new = Forge("other.example")
        endpoint = Endpoint(bundle_of(OTHER, 1, hint=3600))
        async with over_web(endpoint, tmp_path) as url:
            with FederatedBundles(OWN.bundles, [web(url, tmp_path)], clock=clock) as source:
                source.start()  # once more is once
                await until(lambda: trusts(source, OTHER))
                endpoint.document = bundle_of(new, 2)
                offset = 7200.0
                await until(lambda: trusts(source, new))
            assert not [t for t in threading.enumerate() if t.name == "a2a-trust-federation"]
            asked = len(endpoint.asked)
            offset = 72_000.0
            await asyncio.sleep(0.1)
            assert len(endpoint.asked) == asked
            source.stop()
            assert trusts(source, new)

    run(main())


def test_in_the_thread_a_slow_endpoint_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    offset = 0.0

    def clock() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=offset)

    async def main() -> None:
        nonlocal offset
        slow, swift = Endpoint(bundle_of(OTHER)), Endpoint(bundle_of(THIRD))
        slow.wait = 30.0
        (tmp_path / "a").mkdir()
        async with over_web(slow, tmp_path / "a") as first, over_web(swift, tmp_path) as second:
            partners = [web(first, tmp_path), web(second, tmp_path, trust_domain="third.example")]
            with FederatedBundles(OWN.bundles, partners, clock=clock):
                for times in (1, 2, 3):
                    await until(lambda times=times: len(swift.asked) == times, 5)  # type: ignore[misc]
                    await asyncio.sleep(0.1)
                    offset += 7200.0
                assert len(slow.asked) == 1, "one fetch of an endpoint at a time"

    run(main())


def test_stopping_does_not_wait_for_a_slow_endpoint(tmp_path: Path) -> None:
    async def main() -> None:
        endpoint = Endpoint(bundle_of(OTHER))
        endpoint.wait = 30.0
        async with over_web(endpoint, tmp_path) as url:
            with FederatedBundles(OWN.bundles, [web(url, tmp_path)]):
                await until(lambda: endpoint.asked)
                started = time.monotonic()
            assert time.monotonic() - started < 25  # the slow one answers after 30

    run(main())


def test_a_defect_does_not_end_the_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    broken = True

    def clock() -> datetime:
        if broken:
            raise RuntimeError("no clock")
        return NOW

    async def main() -> None:
        nonlocal broken
        async with over_web(Endpoint(bundle_of(OTHER)), tmp_path) as url:
            with FederatedBundles(OWN.bundles, [web(url, tmp_path)], clock=clock) as source:
                await until(lambda: "no clock" in caplog.text)
                broken = False
                await until(lambda: trusts(source, OTHER))

    run(main())


def test_a_thread_that_has_ended_by_itself_can_be_stopped() -> None:
    source = FederatedBundles(OWN.bundles, [])
    source.start()
    thread = source._thread
    assert thread is not None
    source._stop()
    thread.join(5)
    source.stop()
    assert source._thread is None


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


# In use


def test_agents_of_two_domains_call_each_other_through_federation(tmp_path: Path) -> None:
    """A call fails while the domains do not know each other, and works once each has fetched the other's bundle."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"served"})

    async def main() -> None:
        ours = FederatedBundles(OWN.bundles, [web("https://localhost/", tmp_path)])
        async with contextlib.AsyncExitStack() as stack:
            (tmp_path / "a").mkdir()
            here = await stack.enter_async_context(over_web(Endpoint(OWN.bundle), tmp_path / "a"))
            there = await stack.enter_async_context(over_web(Endpoint(OTHER.bundle), tmp_path))
            ours = FederatedBundles(OWN.bundles, [web(there, tmp_path)])
            theirs = FederatedBundles(OTHER.bundles, [web(here, tmp_path, trust_domain="fleet.example")])
            url = await stack.enter_async_context(
                over_spiffe_with(app, OTHER.leaf("/server"), theirs, "spiffe://fleet.example/agent")
            )
            transport = AgentTransport(OWN.leaf("/agent"), ours, exactly("spiffe://other.example/server"))
            client = await stack.enter_async_context(httpx.AsyncClient(transport=transport, trust_env=False))
            with pytest.raises(UnknownTrustDomain):
                await client.get(url)
            await ours.refresh(NOW)
            await theirs.refresh(NOW)
            assert (await client.get(url)).text == "served"

    run(main())


@contextlib.asynccontextmanager
async def over_spiffe_with(app: Any, credentials: Any, bundles: Any, allowed: str) -> Any:
    from trust.tls import serving

    async with serving(app, source=credentials, bundles=bundles, authorize=exactly(allowed), lifespan="off") as server:
        yield server.url
