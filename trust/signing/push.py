"""Signed push notifications: `JWS-Signature` over the exact body of the POST that a webhook gets.

The protected header is that of the wire format with the `typ` a2a-push+jws. Its `aud` is the webhook's URL, as the
receiver gave it to the agent, and so one signature is good for one webhook. `cty` is the Content-Type. The signer's
certificates always come along (`x5c`): a webhook need not ask for client certificates, and may be behind a proxy that
ends TLS. Nothing else is bound: the method is always POST, and A2A's headers have no meaning here.

NOT signed: other headers, X-A2A-Notification-Token and Authorization among them, which a2a-sdk sends where the push
configuration has them. They are secrets that the receiver compares for itself. NOT shown by a signature: that nothing
was lost on the way, and in which order things happened; the task itself tells, when it is asked for.

`trust.push_client` makes the client for an agent that notifies; `PushReceiver` is the other end.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

import httpx

from trust.authorize import Authorizer
from trust.clock import Clock, wall_clock
from trust.credentials import Credentials, CredentialSource, check_source
from trust.errors import BindingMismatch, ConfigurationError, WebhookRefused
from trust.identity import PeerIdentity
from trust.peers import PeerVerifier
from trust.replay import ReplayGuard
from trust.signing import envelope
from trust.signing.algorithms import signer
from trust.signing.envelope import DEFAULT_ALGORITHMS, DEFAULT_LIFETIME, Binding, VerifiedMessage
from trust.signing.exchange import HEADER, content_type_of
from trust.signing.http import new_message_id
from trust.signing.targets import origin_of, target_uri, without_query

PUSH_TYPE = "a2a-push+jws"
# In the extensions of an `httpx.Request`: the webhook's URL as the configuration has it, where httpx spells it in
# another way. A str.
WEBHOOK_EXTENSION = "a2a-trust.webhook"
MAX_WEBHOOK_CHARACTERS = 4096  # as `aud` it has to fit into a header line, beside certificates


def sign_push(
    credentials: Credentials,
    *,
    webhook: str,
    body: bytes,
    now: datetime,
    jti: str,
    content_type: str = "",
    lifetime: timedelta = DEFAULT_LIFETIME,
) -> str:
    """Sign a notification for one webhook; returns the value of the header.

    Args:
        webhook: its URL, exactly as its receiver gave it.
        body: the exact bytes.
        jti: 128 random bits in base64url.
        content_type: the exact value of the header Content-Type; empty where there is none.
        lifetime: how long the receiver may take it for fresh; at most 300 s.

    Raises:
        WebhookRefused: the URL is not one that every reader reads alike.
        ConfigurationError: another argument that no verifier would accept.
    """
    webhook_uri(webhook)
    return envelope.sign(
        body,
        credentials=credentials,
        binding=_binding(content_type),
        audience=webhook,
        now=now,
        jti=jti,
        lifetime=lifetime,
        chain=True,
    )


def verify_push(
    jws: str,
    *,
    webhook: str,
    body: bytes,
    verifier: PeerVerifier,
    peer: PeerIdentity | None,
    now: datetime,
    signers: Authorizer,
    replay: ReplayGuard,
    content_type: str = "",
    algorithms: Collection[str] = DEFAULT_ALGORITHMS,
) -> VerifiedMessage:
    """Verify a notification completely.

    (0) to (8) `envelope.verify`
    (9) `signers` allows the signer; the notification was not received before
    (10) return the verified notification

    NOT checked: that the signer is the peer of the channel. It is the signature that says who notifies, and what it
    says holds behind a proxy, too.

    Args:
        jws: the value of the header (`trust.signing.http.signature_of`).
        webhook: the URL that we gave away, never one made from what was received: a Host header is the sender's.
        body, content_type: what was really received.
        peer: the other end of the channel; None where there is none that proved who it is.
        signers: which agents may notify.
        replay: remembers the notification; only after everything else has passed.

    Raises:
        SignatureError: its leaf classes name the check that failed. PeerError: the certificate of the signer;
            PeerNotAllowed: it is not one of `signers`.
        Replayed, ReplayGuardFull, ReplayStoreUnavailable: from the guard.
    """
    notification = envelope.verify(
        jws,
        body,
        binding=_binding(content_type),
        audience=webhook,
        verifier=verifier,
        peer=peer,
        usage="client",  # whoever notifies is the client of its receiver
        now=now,
        algorithms=algorithms,
    )
    # (9)
    signers.check(notification.signer.agent_id)
    notification.remember(replay)
    # (10)
    return notification


class PushSigningTransport(httpx.AsyncBaseTransport):
    """Signs every request of an `httpx.AsyncClient`, each of which is a notification, for the webhook that it goes to.

    Not done: the answer is not verified. Nobody acts on it but for its status.

    Args:
        inner: carries the requests.
        source: our credentials; renewed ones are used from the next notification on.

    Raises:
        ConfigurationError: the key of `source` signs nothing here (ML-DSA).

    Raises (from the client's calls; nothing was sent):
        WebhookRefused: the URL as it was given, and as httpx reads it, are not the same; or it has a user, a fragment
            or what else parsers differ about.
        ConfigurationError: another method than POST, or a Content-Type that cannot be signed.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport, source: CredentialSource, *, clock: Clock = wall_clock) -> None:
        check_source(source)
        signer(source.current().private_key)
        self._inner = inner
        self._source = source
        self._clock = clock

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method != "POST":
            raise ConfigurationError("request is no push notification", got=request.method, expected="POST")
        webhook = str(request.extensions.get(WEBHOOK_EXTENSION, request.url))
        # From the raw parts: exactly where it goes.
        goes_to = (request.url.raw_scheme + b"://" + request.url.netloc + request.url.raw_path).decode("latin-1")
        if webhook_uri(webhook) != webhook_uri(goes_to):
            raise WebhookRefused(
                "URL of a webhook is read in two ways", got=without_query(webhook), expected="its normal form"
            )
        request.headers[HEADER] = sign_push(
            self._source.current(),
            webhook=webhook,
            body=await request.aread(),
            now=self._clock(),
            jti=new_message_id(),
            content_type=content_type_of(request.headers.raw, ConfigurationError),
        )
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


def webhook_uri(url: str) -> str:
    """The normal form of a webhook's URL, as `trust.signing.http.target_uri` has it.

    Raises:
        WebhookRefused: not an absolute https URL; or one that parsers read differently, that has a fragment, or that is
            longer than 4096 characters.
    """
    if len(url) > MAX_WEBHOOK_CHARACTERS:
        raise WebhookRefused("webhook", got=f"{len(url)} characters", expected=f"at most {MAX_WEBHOOK_CHARACTERS}")
    try:
        normal = target_uri(url)
    except BindingMismatch as error:
        raise WebhookRefused(f"webhook: {error}") from None
    if origin_of(normal).endswith(":0"):
        raise WebhookRefused("webhook leads nowhere", got="port 0", expected="a port from 1 to 65535")
    if "#" in url or not normal.startswith("https://"):
        got = without_query(url)
        raise WebhookRefused("webhook", got=got, expected="an https URL without a fragment")
    return normal


def _binding(content_type: str) -> Binding:
    return Binding(typ=PUSH_TYPE, members={}, content_type=content_type, mismatch=BindingMismatch)
