"""Credentials that renew themselves: a `CredentialSource` for programs, synchronous and asynchronous alike.

    with RenewingCredentials("/etc/billing") as agent:
        serve(app, source=agent, bundles=agent.bundles, crls=agent.crls, ...)

A daemon thread looks at the wall clock every few seconds and does what is due. `current` is a read of an attribute, so
whatever asks for credentials, TLS contexts, token sources, signers, never waits for a network.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from types import TracebackType

from pki.client import answers
from pki.client.est import service_url
from pki.client.folder import AgentFolder, token_digest
from pki.client.health import Condition, Health
from pki.client.renewer import Renewer, is_refusal
from pki.client.schedule import Schedule
from pki.errors import AuthorityUnreachable, PKIError
from trust.bundles import BundleSource, RevocationSource, TrustBundles
from trust.clock import Clock, shown, wall_clock
from trust.credentials import Credentials, read_bounded
from trust.errors import ConfigurationError, CredentialsError, TrustError

SHORTEST_POLL = 1.0  # seconds between two looks at bundle and advice; in practice the bundle's refresh hint
LONGEST_POLL = 3600.0
POLL_SPREAD = 0.1
POLLS_A_LIFE = 4  # at least, however long the hint: a tainted issuer must be noticed well before the end
SHORTEST_GAP = 0.2  # seconds between two attempts by a clock that nobody sets, whatever the wall clock does
FIRST_TRUST_SECONDS = 10.0  # that `start` waits for revocation lists where none are known
JOIN_SECONDS = 5.0
MAX_TOKEN_BYTES = 4096

TokenSource = Callable[[], str | None]

logger = logging.getLogger("a2a_pki.client")
_DICE = random.SystemRandom()  # of our own: a thread of ours leaves the program's seeded numbers alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to the credentials; told in the renewing thread."""

    # "renewed", "replaced" (by somebody else), "trust" (a new bundle); "failed" when a renewal does, and then when it
    # fails in another way; "stale" when bundle or lists cannot be had, "fresh" when they can again
    kind: str
    says: str
    credentials: Credentials


class RenewingCredentials:
    """Credentials that are renewed at 2/3 of their life, until `close`.

    With a folder, what is renewed is written there before it is used, so that programs and restarts find it. Several
    processes may share one: one of them renews, the others take over what it wrote, and its part when it ends.

    Once the certificate has expired or was refused, only a token helps: enrol again into the folder, or give `token`.
    It keeps trying all the same, ever more rarely, for it may be a clock that is wrong. `health` tells.

    Args:
        source: a folder that `enrol` wrote, or credentials in memory.
        url: of the CA service; by default what the folder's `ca.json` says.
        bundles: whom we trust, at the start, for credentials in memory; of a folder it is its `bundle.json`.
        password: of the folder's key.
        token: a file, or a function, that gives a one-time token for the time when the certificate is not accepted any
            more. Each token is tried once.
        on_event: called with each `Event`, in the renewing thread.
        clock: returns the aware time now.

    Attributes:
        bundles: `Source` of the trust bundles; that of our own domain is refreshed, and its sequence never goes back.
        crls: `Source` of the CA's revocation lists: all of them, fetched from the CA service. They are required in our
            own trust domain only. Until the first have come, nobody passes where our certificates name lists, and
            nothing is checked where they name none.

    Raises:
        CredentialsError, BundleError: the folder or the values cannot be used.
        ConfigurationError: no URL, or none that is https.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Credentials,
        *,
        url: str | None = None,
        bundles: TrustBundles | None = None,
        password: str | bytes | None = None,
        token: str | os.PathLike[str] | TokenSource | None = None,
        on_event: Callable[[Event], None] | None = None,
        clock: Clock = wall_clock,
    ) -> None:
        self._files: AgentFolder | None = None
        if isinstance(source, Credentials):
            credentials = source
        else:
            files = self._files = AgentFolder(source, password)
            if bundles is not None:
                raise ConfigurationError("bundles", got="with a folder", expected="with credentials in memory only")
            credentials, bundles = files.credentials(), files.bundles()
            if url is None and (enrolment := files.enrolment()) is not None:
                url = enrolment.url
        if url is None:
            raise ConfigurationError(
                "CA service of the agent", got="no URL", expected="its URL (`--ca`), or a folder with ca.json"
            )
        if bundles is None:
            raise ConfigurationError("trust bundles of the agent", got="none", expected="bundles=")
        self._renewer = Renewer(service_url(url), credentials, bundles, self._files, clock)
        self._live = self._renewer.credentials
        self.bundles: BundleSource = self._renewer.bundles
        self.crls: RevocationSource = self._renewer.crls
        self._token = _token_source(token)
        self._tried: set[str] = set()  # digests of the tokens that were used up or refused
        self._noticed = ""  # digest of the token that the schedule knows of
        self._on_event = on_event
        self._lease = self._files.renewer_lock() if self._files else None
        self._doing = threading.RLock()  # one attempt at a time, whoever makes it
        self._schedule = self._scheduled(received=None)
        self._problem: TrustError | None = None
        self._refused = False
        self._told: object = None  # the failure that listeners know of
        self._trust_problem: TrustError | None = None
        self._last_try: float | None = None  # by the monotonic clock
        self._last_poll: datetime | None = None
        self._next_poll: datetime | None = None  # None: now
        self._polled = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def current(self) -> Credentials:
        return self._live.current()

    # Running.

    def start(self) -> None:
        """Begin to renew. Waits a moment for revocation lists where certificates name some and none are known."""
        if self._thread is not None:
            return
        self._thread = threading.Thread(target=self._run, name="a2a-pki renewal", daemon=True)
        self._thread.start()
        if self._renewer.crls.awaited:
            self._polled.wait(FIRST_TRUST_SECONDS)

    def close(self) -> None:
        """Stop renewing; what is under way is broken off. The credentials stay as they are."""
        self._stop.set()
        self._renewer.talk.hang_up()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(JOIN_SECONDS)
        if self._lease is not None:
            self._lease.release()

    def __enter__(self) -> RenewingCredentials:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def health(self) -> Health:
        now, schedule, credentials = self._renewer.now(), self._schedule, self.current()
        skew = self._renewer.skew
        problem = str(self._problem) if self._problem else None
        if now > schedule.end:
            condition = Condition.EXPIRED
        elif self._refused:
            condition = Condition.REFUSED
        elif schedule.failures or now > schedule.renew_at + schedule.life / 10:
            condition = Condition.LATE
        else:
            condition = Condition.HEALTHY
        return Health(
            condition=condition,
            agent_id=credentials.agent_id,
            not_after=credentials.certificate.not_valid_after_utc,
            next_attempt=schedule.next_attempt(),
            failures=schedule.failures,
            problem=problem,
            our_clock=now,
            ca_clock=None if skew is None else now + skew,
            trust_problem=None if self._trust_problem is None else str(self._trust_problem),
        )

    # What is done.

    def renew(self) -> Credentials:
        """Renew now, in this thread, whether or not it is due.

        Raises:
            TrustError: by what went wrong; the credentials are as they were.
        """
        with self._doing:
            self._attempt(self._renewer.renew)
            return self.current()

    def poll(self) -> None:
        """Fetch bundle, revocation lists and the service's advice now, in this thread. Failures are in `health`."""
        with self._doing:
            self._poll(self._renewer.now())

    def _run(self) -> None:
        while True:
            try:
                with self._doing:
                    self._look()
                    pause = self._schedule.pause(self._renewer.now())
            except asyncio.CancelledError:
                return
            except Exception as error:  # a defect must not end the thread that keeps the agent alive, nor make it race
                logger.exception("renewal failed in an unexpected way")
                self._failed(
                    PKIError("renewal failed in an unexpected way", got=type(error).__name__, do="see the log")
                )
                now = self._renewer.now()
                self._last_poll, self._next_poll = now, now + timedelta(seconds=self._poll_seconds())
                pause = self._schedule.pause(now)
            if self._stop.wait(pause):
                return

    def _look(self) -> None:
        """Do what is due by the wall clock."""
        now = self._renewer.now()
        try:
            leads = self._lease is None or self._lease.acquire()
            if self._renewer.follow():
                self._succeeded(received=now)
                self._tell("replaced", "took over what was written into the folder")
        except TrustError as error:
            # Without its folder an agent must not use what it gets; it says so when that begins to matter.
            leads = False
            if self._schedule.due(now):
                self._failed(error)
        token = self._fresh_token(now) if leads else None
        if token and token_digest(token) != self._noticed:
            self._noticed = token_digest(token)
            self._schedule = replace(self._schedule, renew_at=min(self._schedule.renew_at, now), retry_at=None)
        if leads and self._schedule.due(now) and self._rested():
            with contextlib.suppress(TrustError):  # told, and in `health`
                self._attempt(self._renewer.renew if token is None else partial(self._enrol_again, token))
        now = self._renewer.now()
        if self._next_poll is None or now >= self._next_poll or (self._last_poll and now < self._last_poll):
            self._poll(now)

    def _enrol_again(self, token: str) -> None:
        try:
            self._renewer.enrol_again(token)
        except TrustError as error:
            if is_refusal(error):
                self._tried.add(token_digest(token))
            raise
        self._tried.add(token_digest(token))

    def _attempt(self, work: Callable[[], None]) -> None:
        self._last_try = time.monotonic()
        try:
            work()
        except TrustError as error:
            if answers.concerns_time(error):
                self._renewer.look_at_clock()
            self._failed(error)
            raise self._problem or error from None
        self._succeeded(received=self._renewer.now())
        self._tell("renewed", f"{self.current().agent_id}: renewed until {shown(self._schedule.end)}")

    def _succeeded(self, *, received: datetime | None) -> None:
        self._schedule = self._scheduled(received=received)
        self._problem, self._refused, self._told = None, False, None
        if self._renewer.crls.awaited:
            self._next_poll = None

    def _failed(self, error: TrustError) -> None:
        now, skew = self._renewer.now(), self._renewer.skew
        self._refused = is_refusal(error)
        self._schedule = self._schedule.failed(now, refused=self._refused, dice=_DICE.random())
        self._problem = answers.explained(error, now, None if skew is None else now + skew)
        health = self.health
        told = (health.condition, type(self._problem), self._problem.failed)  # each attempt has its own time and number
        if told != self._told:
            self._told = told
            self._tell("failed", str(health))

    def _poll(self, now: datetime) -> None:
        """Bundle, advice, revocation lists: each for itself. What fails is kept as it was, and said."""
        wait = self._poll_seconds()
        problems: list[TrustError] = []
        try:
            for step in (self._refresh_bundle, self._ask_advice, self._renewer.refresh_lists):
                try:
                    step()
                except TrustError as error:
                    problems.append(error)
                    if type(error) is AuthorityUnreachable:  # no answer, and each attempt may take half a minute
                        break
        finally:
            self._polled.set()
        problem = problems[0] if problems else None
        before, self._trust_problem = self._trust_problem, problem
        if problem is not None and (before is None or (type(before), before.failed) != (type(problem), problem.failed)):
            self._tell("stale", f"{self.current().agent_id}: trust is not fresh: {problem}")
        elif problem is None and before is not None:
            self._tell("fresh", f"{self.current().agent_id}: trust is fresh again")
        if problem is not None:
            wait = max(SHORTEST_POLL, wait / 10)
        spread = 1 - POLL_SPREAD * _DICE.random()
        self._last_poll, self._next_poll = now, now + timedelta(seconds=wait * spread)

    def _refresh_bundle(self) -> None:
        if self._renewer.refresh_bundle():
            self._tell("trust", "a new trust bundle")

    def _ask_advice(self) -> None:
        now = self._renewer.now()
        if not self._refused and now <= self._schedule.end and self._renewer.advice().urgent:
            self._schedule = self._schedule.sooner(now)

    def _poll_seconds(self) -> float:
        bundle = self._renewer.bundle
        hint = float(bundle.refresh_hint) if bundle else SHORTEST_POLL
        life = self._schedule.life.total_seconds()
        return min(LONGEST_POLL, max(SHORTEST_POLL, min(hint, life / POLLS_A_LIFE)))

    def _scheduled(self, *, received: datetime | None) -> Schedule:
        leaf = self.current().certificate
        return Schedule.of(
            leaf.not_valid_before_utc,
            leaf.not_valid_after_utc,
            received=received,
            dice=_DICE.random(),
        )

    def _rested(self) -> bool:
        return self._last_try is None or time.monotonic() - self._last_try >= SHORTEST_GAP

    def _fresh_token(self, now: datetime) -> str | None:
        """A token that was not tried, where there is need of one."""
        if not self._refused and now <= self._schedule.end:
            return None
        try:
            token = self._token()
        except (TrustError, OSError) as error:
            logger.warning("no token for a new enrolment: %s", error)
            return None
        return token if token and token_digest(token) not in self._tried else None

    def _tell(self, kind: str, says: str) -> None:
        logger.log(logging.WARNING if kind in ("failed", "stale") else logging.INFO, "%s", says)
        if self._on_event is None:
            return
        try:
            self._on_event(Event(kind=kind, says=says, credentials=self.current()))
        except Exception:  # whoever listens must not decide about renewal
            logger.exception("on_event failed")


def _token_source(token: str | os.PathLike[str] | TokenSource | None) -> TokenSource:
    if token is None:
        return lambda: None
    if callable(token):
        return token
    file = Path(token)

    def read() -> str | None:
        if not file.exists():
            return None
        try:
            return read_bounded(file, MAX_TOKEN_BYTES).decode("ascii").strip()
        except UnicodeDecodeError:
            raise CredentialsError(f"{file}", expected="a token") from None

    return read
