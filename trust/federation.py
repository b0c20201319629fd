"""The trust bundles of other domains, fetched from where the operator says (SPIFFE Federation, sections 4 to 6).

Each partner is configured: its trust domain, the URL, and how the endpoint is authenticated. Nothing of that is ever
taken from a document, which can only fill the domain that it was asked for. What was fetched last stays in use while
an endpoint is down, and is kept on disk, so that a program that was stopped for long starts from there.

Not done: redirects are not followed, for an endpoint is an address that the operator chose (section 7.5.1).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType

import httpx

from trust.authorize import exactly
from trust.bundles import (
    MAX_BUNDLE_BYTES,
    REFRESH_HINT_SECONDS,
    BundleSource,
    TrustBundle,
    TrustBundles,
)
from trust.clock import Clock, utc, wall_clock
from trust.errors import (
    BundleError,
    ConfigurationError,
    PeerError,
    TrustError,
    UnknownTrustDomain,
    UntrustedChain,
)
from trust.partners import BundleCache, Partner, successor
from trust.tls.client import AgentTransport

MIN_REFRESH = timedelta(seconds=10)  # whatever a document hints, an endpoint is not asked more often
MAX_REFRESH = timedelta(days=1)  # and a revoked root is not trusted for longer than this for want of asking
MAX_BACKOFF = timedelta(hours=1)  # between two tries of an endpoint that fails
JITTER = 0.1  # up to this part sooner, so that a fleet that was started at once does not ask at once
FETCH_SECONDS = 20.0  # from connecting to the last byte
POLL_SECONDS = 1.0  # how often the thread compares the wall clock, which may have jumped: laptops sleep


logger = logging.getLogger("a2a_trust.federation")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartnerHealth:
    """How it stands with one partner; `problem` is one line for people, None when the last fetch was good."""

    trust_domain: str
    ok: bool
    sequence: int | None  # of the bundle in use; None where there is none
    roots: int  # how many it has; with 0 nothing of the domain is trusted
    fetched_at: datetime | None  # when the bundle was last confirmed by its endpoint
    next_at: datetime | None  # when it is asked again; None before the first time
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """What is known of one partner."""

    partner: Partner
    bundle: TrustBundle | None
    fetched_at: datetime | None = None
    tried_at: datetime | None = None
    next_at: datetime | None = None
    failures: int = 0
    kept: bool = False  # in the cache
    problem: str | None = None

    def due(self, now: datetime) -> bool:
        # A clock that was set back must not silence the refresh for as long as it was ahead.
        return self.tried_at is None or self.next_at is None or not self.tried_at <= now < self.next_at


class FederatedBundles:
    """Our own trust bundles and those of the partners, each domain by itself: a `Source` of them all.

    As a context manager it refreshes them in a thread of its own, each by the hint of its document (bounded by
    `MIN_REFRESH` and `MAX_REFRESH`); a program may call `refresh` itself instead. A partner nothing is known of yet
    is not trusted.

    Args:
        own: our bundles. What they have of a domain stands: no partner can replace it.
        partners: one for each other domain.
        cache: a folder (made 0700) that keeps what was fetched; None keeps it in memory only. Whoever can write
            there decides whom we trust.
        clock: returns the aware time now.

    Raises:
        ConfigurationError: two partners of one domain, one of a domain of our own, or one whose endpoint is in a domain
            that is not configured.
    """

    def __init__(
        self, own: BundleSource, partners: Sequence[Partner], *, cache: Path | None = None, clock: Clock | None = None
    ) -> None:
        self._own = own
        self._clock = clock or wall_clock
        self._cache = None if cache is None else BundleCache(cache)
        known = {*own.current().by_domain, *(partner.trust_domain for partner in partners)}
        for partner in partners:
            _check(partner, own.current(), partners, known)
        self._changing = threading.Lock()  # held while the state of a partner is replaced
        self._joining = threading.Lock()
        self._states = {partner.trust_domain: self._restored(partner) for partner in partners}
        self._bundles = {domain: state.bundle for domain, state in self._states.items() if state.bundle is not None}
        self._joined: tuple[object, object, TrustBundles] = (None, None, own.current())
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], object] = lambda: None

    # The source.

    def current(self) -> TrustBundles:
        own, bundles = self._own.current(), self._bundles
        joined = self._joined
        if joined[0] is own and joined[1] is bundles:
            return joined[2]
        with self._joining:
            own, bundles = self._own.current(), self._bundles
            if self._joined[0] is not own or self._joined[1] is not bundles:
                self._joined = (own, bundles, TrustBundles({**bundles, **own.by_domain}))
            return self._joined[2]

    def _restored(self, partner: Partner) -> _State:
        cached = self._cache.read(partner) if self._cache else None
        if cached is None:
            return _State(partner=partner, bundle=partner.bundle)
        return _State(partner=partner, bundle=cached[0], fetched_at=cached[1], kept=True)

    def _keep(self, partner: Partner, bundle: TrustBundle, now: datetime) -> str | None:
        """Write a bundle to the cache; what is wrong with that, for `health`."""
        try:
            if self._cache is not None:
                self._cache.write(partner, bundle, now)
        except (TrustError, OSError) as error:
            return f"fetched, but not kept for the next start: {error}"
        return None

    def health(self) -> tuple[PartnerHealth, ...]:
        """How it stands with each partner, in the order of the configuration."""
        return tuple(_health(state) for state in self._states.values())

    # Refreshing.

    def __enter__(self) -> FederatedBundles:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Refresh from now on, in a thread of its own. What is known already is served meanwhile."""
        if self._thread is None:
            ready = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(ready,), name="a2a-trust-federation", daemon=True)
            self._thread.start()
            ready.wait()

    def stop(self) -> None:
        """End the thread; a fetch that is under way is given up. What is known stays in use."""
        thread, self._thread = self._thread, None
        if thread is not None:
            with suppress(RuntimeError):  # its loop is closed: it has ended by itself
                self._stop()
            thread.join()

    def _run(self, ready: threading.Event) -> None:
        with suppress(asyncio.CancelledError):
            asyncio.run(self._keep_refreshing(ready))

    async def _keep_refreshing(self, ready: threading.Event) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        self._stop = lambda: loop.call_soon_threadsafe(task.cancel)
        ready.set()
        asked: dict[str, asyncio.Task[None]] = {}  # each by itself: a slow endpoint holds up no other
        while True:
            try:
                now = utc(self._clock())
                for domain, state in self._states.items():
                    if state.due(now) and (domain not in asked or asked[domain].done()):
                        asked[domain] = asyncio.create_task(self._refresh(state, now))
            except Exception:  # a defect must not end what keeps the trust of this program up to date
                logger.exception("trust bundles of partners were not refreshed")
            await asyncio.sleep(POLL_SECONDS)

    async def refresh(self, now: datetime) -> None:
        """Ask every endpoint that is due at `now`, all at once. Failures are told by `health` and the log, not raised.

        Raises:
            IdentityError: `now` has no time zone.
        """
        now = utc(now)
        await asyncio.gather(*(self._refresh(state, now) for state in list(self._states.values()) if state.due(now)))

    async def _refresh(self, state: _State, now: datetime) -> None:
        partner = state.partner
        try:
            self._accept(partner, await self._offered(partner), now)
        except TimeoutError:
            self._failed(partner, f"no answer within {FETCH_SECONDS:g} s", now)
        except PeerError as error:
            self._failed(partner, self._unverified(partner, error), now)
        except TrustError as error:
            self._failed(partner, str(error), now)
        except Exception as error:  # whatever a partner does, the others are refreshed
            reason = BundleError("bundle endpoint cannot be asked", got=str(error) or type(error).__name__)
            self._failed(partner, str(reason), now)

    async def _offered(self, partner: Partner) -> TrustBundle:
        """What the endpoint has for the domain that it was configured for."""
        async with asyncio.timeout(FETCH_SECONDS):
            text = await self._fetch(partner)
        return TrustBundle.from_json(text, partner.trust_domain)

    async def _fetch(self, partner: Partner) -> bytes:
        """The document, from the endpoint that the profile authenticates."""
        async with (
            httpx.AsyncClient(transport=self._transport(partner), timeout=FETCH_SECONDS, trust_env=False) as client,
            client.stream(
                "GET", partner.url, headers={"accept": "application/json", "accept-encoding": "identity"}
            ) as response,
        ):
            if response.status_code != 200:
                raise BundleError("bundle endpoint", got=f"HTTP {response.status_code}", expected="200, no redirect")
            if response.headers.get("content-encoding", "identity") != "identity":  # a bomb, perhaps
                raise BundleError("bundle endpoint", got="a compressed answer", expected="none was asked for")
            body = bytearray()
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > MAX_BUNDLE_BYTES:
                    raise BundleError("trust bundle is too large", expected=f"at most {MAX_BUNDLE_BYTES} bytes")
            return bytes(body)

    def _transport(self, partner: Partner) -> httpx.AsyncBaseTransport:
        if partner.endpoint_id is None:
            return httpx.AsyncHTTPTransport(verify=partner.web_trust(), trust_env=False)
        # The latest bundle of the endpoint's own domain, and of no other (section 5.2.2.4).
        known = self.current().by_domain.get(partner.endpoint_id.trust_domain)
        bundles = TrustBundles.of(*([known] if known else []))
        return AgentTransport(None, bundles, exactly(partner.endpoint_id))

    def _accept(self, partner: Partner, offered: TrustBundle, now: datetime) -> None:
        with self._changing:
            state = self._states[partner.trust_domain]
            bundle = successor(state.bundle, offered)
            problem = None
            if bundle is not state.bundle or not state.kept:
                problem = self._keep(partner, bundle, now)
            if state.problem is not None and problem is None:
                logger.warning("trust bundle of %s: refreshed again", partner.trust_domain)
            self._set(
                replace(
                    state,
                    bundle=bundle,
                    fetched_at=now,
                    tried_at=now,
                    next_at=now + _sooner(_interval(offered)),
                    failures=0,
                    kept=problem is None,
                    problem=problem,
                )
            )

    def _failed(self, partner: Partner, problem: str, now: datetime) -> None:
        with self._changing:
            state = self._states[partner.trust_domain]
            if problem != state.problem:
                logger.warning("trust bundle of %s: %s; what is known of it stays", partner.trust_domain, problem)
            backoff = MIN_REFRESH * 2 ** min(state.failures, 16)
            wait = _sooner(min(backoff, MAX_BACKOFF, _interval(state.bundle)))
            self._set(replace(state, tried_at=now, next_at=now + wait, failures=state.failures + 1, problem=problem))

    def _set(self, state: _State) -> None:
        """Replace what is known of a partner; the caller holds `_changing`."""
        domain = state.partner.trust_domain
        self._states = {**self._states, domain: state}
        if state.bundle is not None and state.bundle is not self._bundles.get(domain):
            self._bundles = {**self._bundles, domain: state.bundle}

    def _unverified(self, partner: Partner, error: PeerError) -> str:
        """What to tell of an endpoint whose certificate was refused."""
        if partner.endpoint_id is None or not isinstance(error, (UntrustedChain, UnknownTrustDomain)):
            return str(error)
        # Every root may have been replaced while nobody asked: https_spiffe cannot find back from that by itself.
        domain = partner.endpoint_id.trust_domain
        known, state = self.current().by_domain.get(domain), self._states.get(domain)
        since = f", fetched {state.fetched_at:%Y-%m-%d %H:%M}Z" if state and state.fetched_at else ""
        sequence = f"sequence {known.sequence}{since}" if known else "none"
        return (
            f"{error}; its endpoint cannot be verified with the bundle known of {domain} ({sequence}): if all roots of "
            f"{domain} were replaced meanwhile, get its bundle anew from its operator and configure that"
        )


def _interval(bundle: TrustBundle | None) -> timedelta:
    """How long a document is fresh, by its own hint, within our bounds."""
    hint = bundle.refresh_hint if bundle else REFRESH_HINT_SECONDS
    return min(max(timedelta(seconds=min(hint, 10**9)), MIN_REFRESH), MAX_REFRESH)


def _sooner(wait: timedelta) -> timedelta:
    return wait * (1 - JITTER * secrets.SystemRandom().random())


def _check(partner: Partner, own: TrustBundles, partners: Sequence[Partner], known: set[str]) -> None:
    """Refuse what contradicts the rest of the configuration."""
    domain = partner.trust_domain
    if domain in own.by_domain:
        raise ConfigurationError("federation", got=f"{domain} as a partner", expected="a domain that is not our own")
    if [other.trust_domain for other in partners].count(domain) > 1:
        raise ConfigurationError("federation", got=f"{domain} twice", expected="one partner a domain")
    if partner.endpoint_id is not None and partner.endpoint_id.trust_domain not in known:
        raise ConfigurationError(
            f"bundle endpoint of {domain}",
            got=f"{partner.endpoint_id}, of a domain that is not configured",
            expected="a partner, or our own domain",
        )
    if partner.ca_file is not None:
        partner.web_trust()  # raises


def _health(state: _State) -> PartnerHealth:
    bundle, problem = state.bundle, state.problem
    if problem is None and bundle is None:
        problem = "not fetched yet: nothing of the domain is trusted"
    elif problem is None and bundle is not None and not bundle.roots:
        problem = "the domain has withdrawn all its roots: nothing of it is trusted"
    return PartnerHealth(
        trust_domain=state.partner.trust_domain,
        ok=problem is None,
        sequence=bundle.sequence if bundle else None,
        roots=len(bundle.roots) if bundle else 0,
        fetched_at=state.fetched_at,
        next_at=state.next_at,
        problem=problem,
    )
