"""The agent's side of the CA service's wire: EST (RFC 7030), the SPIFFE bundle, renewal hints, revocation lists.

Everything the service sends is bounded in size and time and parsed strictly; redirects, proxies and the environment
are not followed. Nothing here decides what an answer is good for: that is `pki.client.answers`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from types import TracebackType

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.hazmat.primitives.serialization.pkcs7 import load_der_pkcs7_certificates

from pki.errors import AnswerRefused, AuthorityUnreachable, EnrolmentFailed
from pki.list_names import LIST_FILE
from trust import json_text
from trust.authorize import exactly
from trust.bundles import (
    MAX_BUNDLE_BYTES,
    MAX_CRL_BYTES,
    BundleSource,
    RevocationLists,
    RevocationSource,
    TrustBundle,
)
from trust.certificates import UNREADABLE, Certificate
from trust.clock import Clock
from trust.credentials import CredentialSource
from trust.errors import BundleError, ConfigurationError, HandshakeFailed, PeerError
from trust.identity import PeerIdentity
from trust.json_text import NotStrictJson
from trust.tls.client import AgentTransport, peer_of_response

EXCHANGE_SECONDS = 30.0  # one request and its whole answer; issuing takes milliseconds, a slow service is a down one
CONNECT_SECONDS = 10.0
MAX_ANSWER_BYTES = 256 << 10  # a dozen certificates in base64 have 16 KiB
MAX_CERTIFICATES = 64
MAX_LISTS = 1024  # of 65,536 certificates each, none of which lives for more than a week; the index has 60 KiB then
SERVER_PATH = "/a2a-pki/server"  # of the service's own SPIFFE ID, in the trust domain that it serves

EST = "/.well-known/est"
MAX_REFUSAL_BYTES = 4096  # of a refusal's body that is looked at
MAX_JSON_DEPTH = 8  # the service's answers have 2

_NEW_TOKEN = "make another with `a2a-pki token`"  # noqa: S105 - advice
_ASK = "ask whoever runs the CA"
# What the service's checks (`pki.errors`) mean to the agent, and what to do about them.
REFUSALS = {
    "pki.token.used": ("the token was used already", _NEW_TOKEN),
    "pki.token.expired": ("the token has expired", _NEW_TOKEN),
    "pki.token.unknown": ("the CA does not know the token", "look whether it is this CA's, whole and not cancelled"),
    "pki.token.forged": ("no CA that is trusted now has made that token", _NEW_TOKEN),
    "pki.token.malformed": ("that is no token", "copy it as `a2a-pki token` printed it"),
    "pki.policy.id": ("the token is for another agent", "ask for the ID that the token was made for"),
    "pki.policy": ("the CA's policy does not allow this certificate", _ASK),
    "pki.policy.key": ("the CA's policy does not allow this kind of key", "choose another --key, or " + _ASK),
    "pki.policy.name": ("the CA's policy does not allow these names", _ASK),
    "pki.policy.lifetime": ("the CA's policy does not allow so long a lifetime", _ASK),
    "pki.policy.banned": ("the CA has banned this agent", _ASK),
    "pki.renewal.revoked": ("the CA has revoked this certificate", _ASK + "; then enrol again"),
    "pki.renewal.expired": ("this certificate has expired", "enrol again with a new token"),
    "pki.renewal.unknown": ("the CA did not issue this certificate", "look at the URL, or enrol again"),
}

_WHITESPACE = re.compile(rb"[ \t\r\n]+")
_TIMEOUT = httpx.Timeout(EXCHANGE_SECONDS, connect=CONNECT_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One whole answer of the service."""

    status: int
    content_type: str
    body: bytes = field(repr=False)
    date: datetime | None  # the service's clock (RFC 9110 section 6.6.1): evidence for people, never trusted
    peer: PeerIdentity | None  # who answered; None over unverified TLS


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """When the service would like us to renew; modelled on RFC 9773."""

    renew_at: datetime
    urgent: bool  # now: our issuer is not to be trusted any longer
    explanation: str


class Wire:
    """One conversation with a CA service; an async context manager that closes its connections.

    Raises (from every method):
        AuthorityUnreachable: no answer, a slow one, or one that says that the service is in trouble.
        EnrolmentFailed: the service refuses.
        AnswerRefused: the answer is not what such a service sends.
        PeerError, TransportError: TLS; the service is not the one of our trust domain, or refuses our certificate.

    Attributes:
        date: the service's clock, as its last answer had it.
    """

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport) -> None:
        self.url = service_url(url)
        self.date: datetime | None = None
        self._http = httpx.AsyncClient(transport=transport, timeout=_TIMEOUT, trust_env=False, follow_redirects=False)

    @classmethod
    def unverified(cls, url: str) -> Wire:
        """Over TLS that proves nothing: for what is public and is compared with a pin, and for nothing else."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return cls(url, httpx.AsyncHTTPTransport(verify=context, trust_env=False))

    @classmethod
    def verified(
        cls,
        url: str,
        trust_domain: str,
        bundles: BundleSource,
        source: CredentialSource | None,
        clock: Clock,
        listed: RevocationSource = RevocationLists(),  # noqa: B008 - immutable
    ) -> Wire:
        """To the CA service of a trust domain and nobody else; with `source`, as the agent that it names.

        Args:
            listed: revocation lists that are required of nobody (`RevocationLists.required_in`): an agent that
                refused the service because its lists have ended would get no others.
        """
        server = exactly(f"spiffe://{trust_domain}{SERVER_PATH}")
        return cls(url, AgentTransport(source, bundles, server, crls=listed, clock=clock))

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def cacerts(self) -> tuple[x509.Certificate, ...]:
        """The CA certificates, in no particular order. RFC 7030 section 4.1."""
        return _certificates(await self._expect("GET", f"{EST}/cacerts"))

    async def simpleenroll(self, csr: bytes, token: str) -> tuple[x509.Certificate, ...]:
        """The certificate for a one-time token, and perhaps its issuers. RFC 7030 section 4.2.1.

        Args:
            csr: PKCS#10, DER.
        """
        # HTTP Basic, because that is what EST has (section 3.2.3). The user name means nothing.
        credential = base64.b64encode(b"agent:" + token.encode("ascii")).decode()
        headers = {"authorization": f"Basic {credential}"}
        return _certificates(await self._expect("POST", f"{EST}/simpleenroll", csr=csr, headers=headers, secret=token))

    async def simplereenroll(self, csr: bytes) -> tuple[x509.Certificate, ...]:
        """The certificate that follows the one which this connection presents. RFC 7030 section 4.2.2."""
        return _certificates(await self._expect("POST", f"{EST}/simplereenroll", csr=csr))

    async def bundle(self, trust_domain: str) -> tuple[TrustBundle, PeerIdentity | None]:
        """The trust bundle of the service's own domain, and who sent it."""
        answer = await self._expect("GET", "/bundle", limit=MAX_BUNDLE_BYTES)
        try:
            return TrustBundle.from_json(answer.body, trust_domain), answer.peer
        except BundleError as error:
            raise AnswerRefused(str(error)) from None

    async def renewal_info(self) -> Advice:
        """What the service advises the certificate that this connection presents."""
        answer = await self._expect("GET", "/renewal-info")
        try:
            members = json_text.parse(answer.body, max_bytes=MAX_ANSWER_BYTES, max_depth=MAX_JSON_DEPTH)
            renew_at = datetime.fromisoformat(members["renewAt"])
            urgent, explanation = members["urgent"], members.get("explanation", "")
            if renew_at.tzinfo is None or type(urgent) is not bool or not isinstance(explanation, str):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise AnswerRefused(
                "renewal information", got="another form", expected='{"renewAt": time, "urgent": bool}'
            ) from None
        return Advice(renew_at=renew_at.astimezone(UTC), urgent=urgent, explanation=explanation)

    async def crl_names(self) -> tuple[str, ...]:
        """The file names of all revocation lists that the service publishes; at least one, and none of them twice."""
        answer = await self._expect("GET", "/crl")
        try:
            names = json_text.parse(answer.body, max_bytes=MAX_ANSWER_BYTES, max_depth=MAX_JSON_DEPTH)["lists"]
            if not isinstance(names, list) or not all(isinstance(n, str) and LIST_FILE.fullmatch(n) for n in names):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise AnswerRefused(
                "index of the revocation lists", got="another form", expected='{"lists": ["KEYID.crl", ...]}'
            ) from None
        # No lists at all would mean that nobody asks for any.
        if not 0 < len(set(names)) == len(names) <= MAX_LISTS:
            raise AnswerRefused(
                "index of the revocation lists", got=f"{len(names)} names", expected=f"1 to {MAX_LISTS}, each once"
            )
        return tuple(names)

    async def crl(self, name: str) -> x509.CertificateRevocationList:
        """A revocation list by its file name."""
        answer = await self._expect("GET", f"/crl/{name}", limit=MAX_CRL_BYTES)
        try:
            return x509.load_der_x509_crl(answer.body)
        except (ValueError, x509.InvalidVersion):
            raise AnswerRefused(f"revocation list {name}", expected="a CRL in DER") from None

    async def _expect(
        self,
        method: str,
        path: str,
        *,
        csr: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        secret: str = "",
        limit: int = MAX_ANSWER_BYTES,
    ) -> Answer:
        answer = await self._exchange(method, path, csr=csr, headers=headers or {}, limit=limit)
        _check_status(answer, self.url, secret)
        return answer

    async def _exchange(
        self,
        method: str,
        path: str,
        *,
        csr: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        limit: int,
    ) -> Answer:
        """One request and its answer. Nothing that comes can be larger or slower than allowed."""
        sent = {"accept-encoding": "identity", **(headers or {})}  # a compressed answer has a size that nobody counted
        if csr is not None:
            sent |= {"content-type": "application/pkcs10", "content-transfer-encoding": "base64"}
        content = None if csr is None else base64.encodebytes(csr)
        body = bytearray()
        try:
            async with (
                asyncio.timeout(EXCHANGE_SECONDS),
                self._http.stream(method, self.url + path, content=content, headers=sent) as response,
            ):
                self.date = _date(response)
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise AnswerRefused("answer is compressed", expected="what was asked for: no encoding")
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > limit:
                        raise AnswerRefused(f"answer to {path} is too large", expected=f"at most {limit} bytes")
                peer = peer_of_response(response) if self._is_verified() else None
        except (httpx.HTTPError, TimeoutError, HandshakeFailed) as error:
            plain = "wrong_version_number" in str(error).lower().replace(" ", "_")  # OpenSSL's words for no TLS at all
            if isinstance(error, HandshakeFailed) and not plain:
                raise
            raise AuthorityUnreachable(
                "CA service cannot be reached",
                got=str(error) or type(error).__name__,
                expected=f"an answer from {self.url}",
                do="this port speaks plain HTTP: is it the --http-port?"
                if plain
                else "look at the URL, and at `a2a-pki serve` there",
            ) from None
        return Answer(
            status=response.status_code,
            content_type=response.headers.get("content-type", "").partition(";")[0].strip().lower(),
            body=bytes(body),
            date=self.date,
            peer=peer,
        )

    def _is_verified(self) -> bool:
        return isinstance(self._http._transport, AgentTransport)


def service_url(text: str) -> str:
    """The URL of a CA service, without a slash at its end.

    Raises:
        ConfigurationError: not an https URL, or one with a user, a query or a fragment.
    """
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, TypeError):
        url = httpx.URL("")
    if url.scheme != "https" or not url.host or url.userinfo or url.query or url.fragment:
        raise ConfigurationError("URL of the CA service", got=text, expected="https://host:port")
    return str(url).rstrip("/")


def _check_status(answer: Answer, url: str, secret: str) -> None:
    """Only 200 is an answer. 202 (come back later, RFC 7030 section 4.2.3) is none: our service decides at once."""
    status = answer.status
    if status == HTTPStatus.OK:
        return
    said = _said(answer, secret)
    if status >= 500 or status == HTTPStatus.TOO_MANY_REQUESTS:
        raise AuthorityUnreachable("CA service is in trouble", got=said, do="try again later, and look at its log")
    if status in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.CONFLICT):
        raise _refusal(answer, secret)
    raise AnswerRefused("this is not a CA service", got=said, expected=f"EST at {url}{EST}")


def _refusal(answer: Answer, secret: str) -> EnrolmentFailed:
    """Our words for the check that refused, where the service names one; else what it says."""
    check = _members(answer.body).get("check")
    failed, do = (
        REFUSALS.get(check, ("CA service refuses", "")) if isinstance(check, str) else ("CA service refuses", "")
    )
    if check == "pki.policy.id" and not secret:  # a renewal: there is no token that could be another agent's
        failed, do = "the CA's policy refuses this agent", "ask whoever runs the CA"
    return EnrolmentFailed(failed, got=_said(answer, secret), do=do)


def _said(answer: Answer, secret: str) -> str:
    """What the service says about its refusal, in one bounded line. It must not make us log the token."""
    if answer.content_type == "application/json":
        members = _members(answer.body)
        words = [
            f"{name} {members[name]}" for name in ("check", "error", "request") if isinstance(members.get(name), str)
        ]
        text = ", ".join(words)
    else:
        text = answer.content_type
    if secret:
        text = text.replace(secret, "[the token]")
    return f"status {answer.status} {text}".strip()


def _members(body: bytes) -> dict[str, object]:
    try:
        members = json_text.parse(body, max_bytes=MAX_REFUSAL_BYTES, max_depth=MAX_JSON_DEPTH)
    except NotStrictJson:
        members = None
    return members if isinstance(members, dict) else {}


def _certificates(answer: Answer) -> tuple[x509.Certificate, ...]:
    """Certs-only PKCS#7 in base64, with or without line breaks (RFC 8951 section 2)."""
    if answer.content_type != "application/pkcs7-mime":
        raise _no_certificates(answer.content_type or "no content type")
    try:
        der = binascii.a2b_base64(_WHITESPACE.sub(b"", answer.body), strict_mode=True)
        certificates = load_der_pkcs7_certificates(der)
        for certificate in certificates:
            Certificate.read(certificate.public_bytes(Encoding.DER))  # no part of it can surprise us later
    except (*UNREADABLE, PeerError) as error:  # binascii.Error is a ValueError
        raise _no_certificates(type(error).__name__) from None
    if not 0 < len(certificates) <= MAX_CERTIFICATES:
        raise _no_certificates(f"{len(certificates)} certificates")
    return tuple(certificates)


def _no_certificates(got: str) -> AnswerRefused:
    return AnswerRefused("answer of the CA service", got=got, expected="certificates as PKCS#7 in base64 (RFC 7030)")


def _date(response: httpx.Response) -> datetime | None:
    try:
        date = parsedate_to_datetime(response.headers["date"])
    except (KeyError, ValueError, IndexError):
        return None
    return date.astimezone(UTC) if date.tzinfo else None
