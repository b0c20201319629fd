"""What the service does by itself, by the wall clock: rotation, revocation lists, its own certificate, its health.

A failure here is logged once, shown by /ready, and tried again; it never ends the service, and heals by itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypedDict

from pki import ledger
from pki.authority import CertificateAuthority
from pki.errors import ClockJumped, RenewalRefused
from pki.health import HealthCheck
from pki.policy import DEFAULT_LIFETIME
from pki.records import State
from pki.service.steady import Steady
from pki.store import Counts
from trust.bundles import TrustBundles
from trust.clock import Clock
from trust.credentials import Credentials
from trust.errors import TrustError
from trust.sources import Live

ROUND_SECONDS = 3.0  # between two rounds: how soon a rotation, another process's too, and an outage are seen
FIGURES_EVERY = timedelta(seconds=15)  # counting a million certificates takes the database a moment
STALE_SECONDS = 60.0  # a round that takes longer hangs, on a database that locks or a disk that does not answer

logger = logging.getLogger("a2a_pki.service")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What metrics show of the CA."""

    certificates: Counts
    ledger_size: int
    crl_age: float  # seconds, of the oldest list
    ca_remaining: Mapping[str, float]  # seconds, by kind


class _Names(TypedDict):
    dns_names: Collection[str]
    ip_addresses: Collection[str]
    lifetime: timedelta


class Upkeep:
    """The background work of one service over one CA.

    `credentials` and `bundles` are sources for its TLS: what this keeps up to date.
    """

    def __init__(
        self,
        ca: CertificateAuthority,
        *,
        clock: Clock,
        dns_names: Collection[str] = (),
        ip_addresses: Collection[str] = (),
        lifetime: timedelta = DEFAULT_LIFETIME,
    ) -> None:
        """Make the service's first certificate; without one it cannot start.

        Args:
            clock: the time, aware.
            dns_names, ip_addresses: by which EST clients that do not know SPIFFE call the service.
            lifetime: of its own certificate, which is renewed at two thirds of it.

        Raises:
            PKIError: the CA cannot issue.
        """
        self._ca = ca
        self._clock = clock
        self._steady = Steady(ca.last_write(), clock())  # before anything is written by a clock that may be wrong
        self._names = _Names(dns_names=dns_names, ip_addresses=ip_addresses, lifetime=lifetime)
        self.bundles = Live(TrustBundles.of(ca.bundle()))
        self.credentials: Live[Credentials] = Live(ca.service_credentials(now=clock(), **self._names))
        self.figures: Figures | None = None
        self._checks: tuple[HealthCheck, ...] = ()
        self._problems: dict[str, str] = {}  # by the name of the step
        self._counted: datetime | None = None
        self._more: dict[str, Callable[[], None]] = {}
        self._last_round = time.monotonic()
        self._thread = ThreadPoolExecutor(1, "a2a-pki-upkeep")

    def add(self, name: str, work: Callable[[], None]) -> None:
        """Have something more done in every round; when it raises, /ready says so."""
        self._more[name] = work

    async def forever(self) -> None:
        """One round after the other, in a thread of its own, until the task is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await loop.run_in_executor(self._thread, self.round)
            await asyncio.sleep(ROUND_SECONDS)

    def close(self) -> None:
        """Wait for the round that is under way."""
        self._thread.shutdown()

    def round(self) -> None:
        """Do what is due; never raises."""
        now = self._clock()
        self._step("rotation", lambda: self._rotate(now))
        self._step("bundle", self._refresh_bundle)
        self._step("certificate", lambda: self._renew(now))
        for name, work in tuple(self._more.items()):
            self._step(name, work)
        self._step("health", lambda: self._examine(now))
        if self._counted is None or not self._counted <= now < self._counted + FIGURES_EVERY:
            self._counted = now
            self._step("figures", lambda: self._count(now))
        self._last_round = time.monotonic()

    @property
    def checks(self) -> tuple[HealthCheck, ...]:
        """The CA's health checks, and a failed one for each step that does not succeed."""
        own = [HealthCheck(name=f"upkeep.{name}", ok=False, says=says) for name, says in self._problems.items()]
        if time.monotonic() - self._last_round > STALE_SECONDS:
            own.append(HealthCheck(name="upkeep", ok=False, says="background work hangs"))
        return (*self._checks, *own)

    def _rotate(self, now: datetime) -> None:
        wait = self._steady.wait(now)
        if wait > 0:
            raise ClockJumped(
                "the clock has jumped", got=f"{now:%Y-%m-%d %H:%M} UTC", do=f"set it; rotation waits {wait:.0f} s"
            )
        for step in self._ca.rotate(now):
            logger.warning("rotation: %s", step.says)

    def _refresh_bundle(self) -> None:
        bundle = self._ca.bundle()
        if bundle != self.bundles.current().by_domain[bundle.trust_domain]:
            self.bundles.replace(TrustBundles.of(bundle))  # a source's value stays the same object while it is the same

    def _renew(self, now: datetime) -> None:
        """As any agent does it, but that no lost database and no revocation keeps the service from trying."""
        if self._to_be_renewed(now):
            fresh = self._ca.service_credentials(now=now, **self._names)
            self.credentials.replace(fresh)
            logger.info("own certificate renewed, until %s", fresh.certificate.not_valid_after_utc.isoformat())

    def _to_be_renewed(self, now: datetime) -> bool:
        own = self.credentials.current()
        try:
            info = self._ca.renewal_info(own.chain_der[0], now)
        except RenewalRefused:  # revoked; or the database was restored from a backup of before
            return True
        return info.urgent or now >= info.renew_at or now < own.certificate.not_valid_before_utc

    def _examine(self, now: datetime) -> None:
        """Asks everything; the lists that are due are made by that."""
        before = {check.name for check in self._checks if not check.ok}
        self._checks = self._ca.health(now)
        for check in self._checks:
            if check.ok is (check.name in before):
                logger.log(logging.INFO if check.ok else logging.ERROR, "health, %s: %s", check.name, check.says)

    def _count(self, now: datetime) -> None:
        oldest = min((crl.last_update_utc for crl in self._ca.crl(now).crls), default=now)
        active = [issuer for issuer in self._ca.issuers() if issuer.state is State.ACTIVE]
        self.figures = Figures(
            certificates=self._ca.counts(now),
            # A figure, no proof: nobody has verified the signature of what is read here, nor need they.
            ledger_size=ledger.claimed_head(self._ca.ledger_head()).size,
            crl_age=(now - oldest).total_seconds(),
            ca_remaining={issuer.kind: (issuer.not_after - now).total_seconds() for issuer in active},
        )

    def _step(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            says = error.check if isinstance(error, TrustError) else type(error).__name__
            if self._problems.get(name) != says:
                told = None if isinstance(error, TrustError) else error  # ours say what is wrong in one line
                logger.error("%s failed, and will be tried again: %s", name, error, exc_info=told)
            self._problems[name] = says
        else:
            if self._problems.pop(name, None) is not None:
                logger.warning("%s works again", name)
