"""The SPIFFE Workload API as a source of identity and trust: what SPIRE's agent, or another one, gives this process.

One stream brings certificate, key, bundles and revocation lists together, and brings all of them again whenever
something changes. Needs the extra `spiffe`. The client in the package of that name is not used: it drops the
revocation lists, and it stops for good at the first update that it cannot read.

Whoever can open the endpoint's socket is believed, for it hands out private keys: how it is protected is a matter of
the operating system, and nothing but this machine is asked.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import random
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from trust.bundles import RevocationLists, TrustBundles
from trust.credentials import Credentials
from trust.errors import (
    ConfigurationError,
    TrustError,
    WorkloadAPIDenied,
    WorkloadAPIRefused,
    WorkloadAPIUnavailable,
)
from trust.identity import AgentID
from trust.sources import Live

if TYPE_CHECKING:
    from trust.workload_messages import Answer

ENDPOINT_VARIABLE = "SPIFFE_ENDPOINT_SOCKET"  # SPIFFE Workload Endpoint, section 4

ANSWER_SECONDS = 10.0  # for the first answer of a stream, which is to come "without delay" (section 4.3)
FIRST_REST = 0.1  # seconds between two streams; it doubles
LONGEST_REST = 5.0  # an endpoint that is back must not be found a minute later
QUIET_PART = 5 / 6  # of a certificate's life: an endpoint that has not replaced it by then is asked anew,
QUIET_SECONDS = 60.0  # and then every minute: it may hang, and a stream on which nothing is said does not show it

logger = logging.getLogger(__name__)
_DICE = random.SystemRandom()  # of our own: a thread of ours leaves the program's seeded numbers alone


class WorkloadSource:
    """The credentials that the Workload API gives this process: a `Source` that follows it, with its trust beside it.

        with trust.WorkloadSource() as source:
            trust.serve(app, source=source, bundles=source.bundles, crls=source.crls, authorize=...)

    While the endpoint is away or says what cannot be used, the last good answer stays in use until it expires, and
    `problem` and the log say so. When the endpoint says that this process no longer has the identity, `current()`
    raises, and no new connection is made with it (section 5.2.1); all is well again when it has.

    Not checked: that the certificate leads to a root of the bundle; whoever is shown it checks that.

    Args:
        endpoint: "unix:///path", or "tcp://127.0.0.1:port" (any loopback address); None for the one that the
            environment variable SPIFFE_ENDPOINT_SOCKET names.
        agent_id: which identity to take where there are several; None for the first (section 5.3), and then it is
            that one for good.
        timeout: seconds that the first answer may take.

    Attributes:
        bundles: a `Source` of the trust bundles, by trust domain; those of the last answer and no others.
        crls: a `Source` of revocation lists, as far as the endpoint sends any. What they list is refused.
        problem: what is wrong now, in one line; None when nothing is.

    Raises:
        WorkloadAPIUnavailable: there is no such socket, nobody listens, or nobody answers in time.
        WorkloadAPIDenied: this process has no identity there, or not the one that was asked for.
        WorkloadAPIRefused: the answer cannot be used.
        ConfigurationError: no endpoint, a malformed one, or the extra is not installed.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        agent_id: AgentID | str | None = None,
        timeout: float = ANSWER_SECONDS,
    ) -> None:
        self._endpoint = _target(endpoint)
        self._wanted = AgentID.parse(agent_id) if isinstance(agent_id, str) else agent_id
        self._grpc, self._messages = _libraries()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._first = threading.Event()  # there is a first answer, or a first error
        self._error: TrustError | None = None  # of the last attempt
        self._value: Credentials | None = None
        self._withdrawn: str | None = None  # why there is no identity any more
        self._call: Any = None
        self.problem: str | None = None
        self.bundles: Live[TrustBundles] = Live(TrustBundles({}))
        self.crls: Live[RevocationLists] = Live(RevocationLists())
        self._thread = threading.Thread(target=self._run, name="workload-api", daemon=True)
        self._thread.start()
        self._first.wait(timeout)
        if self._value is None:
            self.close()
            late = WorkloadAPIUnavailable(
                "Workload API does not answer",
                got=f"nothing within {timeout:g} s from {self._endpoint}",
                expected="an identity",
                do="check that the SPIFFE agent runs",
            )
            raise self._error or late

    def current(self) -> Credentials:
        """The credentials of the last answer.

        Raises:
            WorkloadAPIDenied: the endpoint has taken the identity back.
        """
        if self._withdrawn is not None:
            raise WorkloadAPIDenied(self._withdrawn)  # anew each time: connections write into their errors
        assert self._value is not None  # noqa: S101 - there is none only while `__init__` waits
        return self._value

    def close(self) -> None:
        """Stop following. The last values stay."""
        self._closed.set()
        with self._lock:
            call = self._call
        if call is not None:
            call.cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join(ANSWER_SECONDS)

    def __enter__(self) -> WorkloadSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The thread.

    def _run(self) -> None:
        rest = FIRST_REST
        options = [
            ("grpc.max_receive_message_length", self._messages.MAX_MESSAGE_BYTES),
            ("grpc.enable_http_proxy", 0),  # private keys come this way
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", int(LONGEST_REST * 1000)),
        ]
        with self._grpc.insecure_channel(self._endpoint, options=options) as channel:
            while not self._closed.is_set():
                try:
                    self._follow(channel)
                    if self._error is None:
                        rest = FIRST_REST
                except TrustError as error:
                    self._failed(error)
                except Exception as error:  # a defect must not end the following
                    self._failed(WorkloadAPIRefused("answer of the Workload API", got=type(error).__name__))
                self._closed.wait(rest * _DICE.uniform(0.5, 1.0))
                rest = min(rest * 2, LONGEST_REST)

    def _follow(self, channel: Any) -> None:
        """One stream, to its end."""
        fetch = channel.unary_stream(
            "/SpiffeWorkloadAPI/FetchX509SVID",
            request_serializer=lambda _: b"",  # an X509SVIDRequest has no fields
            response_deserializer=lambda data: data,
        )
        # SPIFFE Workload Endpoint, section 5: the header shows that no other program was tricked into asking.
        call = fetch(None, metadata=(("workload.spiffe.io", "true"),))
        with self._lock:
            self._call = call
            if self._closed.is_set():
                call.cancel()
        quiet = _Alarm(call.cancel)
        quiet.set(ANSWER_SECONDS)
        heard = False
        try:
            for data in call:
                quiet.set(None)
                heard = True
                self._take(data)
                quiet.set(self._quiet_seconds())
        except self._grpc.RpcError as error:
            if quiet.rang and not heard:
                raise self._unavailable("no answer in time") from None
            if not quiet.rang:  # after it, the endpoint is asked anew
                raise self._explained(error) from None
        finally:
            quiet.set(None)
            call.cancel()

    def _take(self, data: bytes) -> None:
        """Take over one answer, all of it or nothing."""
        try:
            answer: Answer = self._messages.read(data)
            chosen = self._chosen(answer)
        except WorkloadAPIRefused as error:
            self._failed(error)
            return
        # Trust first: nobody is to be shown a certificate whose root we would not know ourselves.
        if self.bundles.current() != answer.bundles:
            self.bundles.replace(answer.bundles)
        if self.crls.current() != answer.crls:
            self.crls.replace(answer.crls)
        if chosen is None:
            names = ", ".join(str(one.agent_id) for one in answer.credentials)
            self._failed(
                WorkloadAPIDenied(
                    "Workload API has another identity for this process", got=names, expected=str(self._wanted)
                )
            )
            return
        self._wanted = chosen.agent_id
        if self._value is None or self._value.chain != chosen.chain:
            self._value = chosen
        self._error = self._withdrawn = self.problem = None
        self._first.set()

    def _chosen(self, answer: Answer) -> Credentials | None:
        if self._wanted is None:
            return answer.credentials[0]
        return next((one for one in answer.credentials if one.agent_id == self._wanted), None)

    def _failed(self, error: TrustError) -> None:
        if self._closed.is_set():
            return
        if isinstance(error, WorkloadAPIDenied) and self._value is not None:
            self._withdrawn = str(error)
        self._error = error
        if str(error) != self.problem:
            stays = "nothing is" if self._value is None or self._withdrawn else "the last good answer stays"
            logger.warning("%s; %s in use", error, stays)
        self.problem = str(error)
        # What may pass is waited for, as long as there is time.
        if not isinstance(error, WorkloadAPIUnavailable) or self._is_missing():
            self._first.set()

    def _is_missing(self) -> bool:
        path = self._endpoint.removeprefix("unix:")
        return path != self._endpoint and not os.path.exists(path)  # noqa: PTH110

    def _quiet_seconds(self) -> float:
        """How long nothing need be heard."""
        if self._value is None or self._error is not None:
            return QUIET_SECONDS
        certificate = self._value.certificate
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        left = (start + (end - start) * QUIET_PART - datetime.now(UTC)).total_seconds()
        return max(left, QUIET_SECONDS)

    def _explained(self, error: Any) -> TrustError:
        code, codes = error.code(), self._grpc.StatusCode
        if code is codes.PERMISSION_DENIED:
            return WorkloadAPIDenied(
                "Workload API has no identity for this process",
                got=f"PERMISSION_DENIED from {self._endpoint}",
                expected="a registered workload",
                do="register this process with the SPIFFE server",
            )
        if code is codes.UNAVAILABLE:
            return self._unavailable("nobody listens")
        return WorkloadAPIRefused(
            "Workload API refuses", got=f"status {code.name} from {self._endpoint}", expected="an identity"
        )

    def _unavailable(self, why: str) -> WorkloadAPIUnavailable:
        missing = self._is_missing()
        return WorkloadAPIUnavailable(
            "Workload API cannot be reached",
            got=f"{'no such socket' if missing else why}: {self._endpoint}",
            expected="the socket of a SPIFFE agent",
            do="check that the agent runs, and that this process may open its socket",
        )


class _Alarm:
    """Calls a function once, unless it is set anew in time."""

    def __init__(self, ring: Callable[[], object]) -> None:
        self._ring = ring
        self._timer: threading.Timer | None = None
        self.rang = False

    def set(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            self._timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self._call)
            self._timer.daemon = True
            self._timer.start()

    def _call(self) -> None:
        self.rang = True
        self._ring()


# The endpoint and the library.


def _target(endpoint: str | None) -> str:
    """The endpoint as grpc has it (SPIFFE Workload Endpoint, section 4)."""
    text = endpoint or os.environ.get(ENDPOINT_VARIABLE, "")
    wrong = ConfigurationError(
        "Workload API endpoint",
        got=repr(text),
        expected="unix:///path/to/socket, or tcp:// with a loopback address and a port",
        do=f"give the endpoint, or set {ENDPOINT_VARIABLE}",
    )
    try:
        url = urlsplit(text)
        if url.query or url.fragment or url.username or url.password:
            raise wrong
        if url.scheme == "unix" and not url.netloc and url.path.startswith("/"):
            return f"unix:{url.path}"
        # A private key comes in the clear: not from another machine.
        if url.scheme == "tcp" and url.port and not url.path and ipaddress.ip_address(url.hostname or "").is_loopback:
            return url.netloc
    except ValueError:
        pass
    raise wrong


def _libraries() -> tuple[Any, Any]:
    """grpc, and what reads the messages. Most programs need neither."""
    try:
        import grpc

        from trust import workload_messages
    except ImportError:
        raise ConfigurationError(
            "the Workload API needs grpcio and protobuf", do="pip install 'a2a-trust[spiffe]'"
        ) from None
    return grpc, workload_messages
