"""The endpoints for agents: EST (RFC 7030), and when to renew."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from pki.authority import CertificateAuthority, Issued
from pki.errors import (
    CertificateNotPresented,
    EnrolmentRefused,
    PolicyRefused,
    RequestRefused,
    TooManyAttempts,
    TooManyRenewals,
)
from pki.service import attempts, est
from pki.service.answers import body_of
from pki.service.attempts import Attempts, network
from pki.service.batches import Batches
from pki.service.edge import Edge, address_of
from pki.steps import Steps
from trust.clock import Clock
from trust.identity import PeerIdentity, peer_of

MAX_BODY_BYTES = 16 << 10  # base64 of a request of 12 KiB; one with a dozen names has 1 KiB

EST = "/.well-known/est"

# What was issued is nobody else's, and an answer about trust that a cache holds is an old one.
_HEADERS = {"Cache-Control": "no-store", "Content-Transfer-Encoding": "base64"}
_ISSUED_HEADERS = Response(headers=_HEADERS, media_type=est.CERTIFICATES_TYPE, status_code=204).raw_headers


class Enrolment:
    """For agents that have a token, and for agents that have a certificate."""

    def __init__(self, ca: CertificateAuthority, edge: Edge, clock: Clock) -> None:
        self._ca = ca
        self._edge = edge
        self._clock = clock
        self._attempts = Attempts()
        self._of_tokens = Attempts()  # by their text, of which only a keyed hash is looked at
        self._renewals = Attempts(attempts.RENEWALS_BURST, attempts.RENEWALS_INTERVAL)
        self._of_agents = Attempts(attempts.AGENT_RENEWALS_BURST, attempts.AGENT_RENEWALS_INTERVAL)
        self._batches: Batches[Mapping[str, str]] = Batches(ca.together, self._record)

    def close(self) -> None:
        """Wait for what is being issued."""
        self._batches.close()

    def posts(self) -> dict[str, ASGIApp]:
        """What agents post all the time, by its path."""
        direct = self._edge.direct
        return {
            f"{EST}/simplereenroll": direct("renew", self._renew),
            f"{EST}/simpleenroll": direct("enrol", self._enrol),
        }

    def routes(self) -> list[Route]:
        """Everything else."""
        endpoint = self._edge.endpoint
        return [
            Route(f"{EST}/cacerts", endpoint("cacerts", self._ca_certificates)),
            Route(f"{EST}/csrattrs", endpoint("csrattrs", self._attributes)),
            Route("/renewal-info", endpoint("renewal-info", self._renewal_info)),
        ]

    async def _enrol(self, request: Request) -> Response:
        """RFC 7030 section 4.2.1. The token is the only authentication: a client certificate changes nothing.

        1. There is a token; a request without one costs nobody anything.
        2. The address has not failed too often, or the token is good, and has not failed too often: agents share
           addresses with whoever else is behind the same NAT.
        3. The body is small, and a certificate request.
        4. The rest is decided by the CA, which burns the token in the transaction that stores the certificate.
        """
        token = est.token_of(request.headers.getlist("authorization"))
        address = network(address_of(request))
        if self._wait(address) > 0:
            await self._edge.reading(lambda: self._may_try(address, token))
        try:
            csr = await _request(request)
        except RequestRefused:
            self._count(address, token)
            raise
        asked = self._edge.asked(request, "enrol")
        return _answer(await self._batches.issued(self._enrolling(csr, token, address), asked))

    def _enrolling(self, csr: bytes, token: str, address: str) -> Steps[Issued]:
        try:
            return (yield from self._ca.enrolling(csr, token, now=self._clock()))
        except (EnrolmentRefused, RequestRefused, PolicyRefused) as error:
            wait = self._wait(address)
            if wait > 0 and isinstance(error, EnrolmentRefused):  # it came at once with others that have failed
                raise _too_many(wait) from None
            self._count(address, token)
            raise

    def _count(self, address: str, token: str) -> None:
        """A failure: of the address, and of the token, which is good for an address that has failed too often."""
        now = time.monotonic()
        self._attempts.count(address, now)
        self._of_tokens.count(token, now)

    def _wait(self, address: str) -> float:
        return self._attempts.wait(address, time.monotonic())

    def _may_try(self, address: str, token: str) -> None:
        """Whether the token is good takes one look in an index.

        Raises:
            TooManyAttempts: by that address, and the token is none, or was tried too often as well.
        """
        wait = self._wait(address)
        if wait > 0 and (of_token := self._of_tokens.wait(token, time.monotonic())) > 0:
            raise _too_many(min(wait, of_token))
        if wait > 0 and not self._ca.is_good_token(token, now=self._clock()):
            raise _too_many(wait)

    async def _renew(self, request: Request) -> Response:
        """RFC 7030 section 4.2.2. The handshake has proved who asks; whether it may is for the CA's store to say."""
        peer = _presented(request)
        self._may_renew(peer)
        csr = await _request(request)
        asked = self._edge.asked(request, "renew")
        return _answer(await self._batches.issued(self._ca.renewing(csr, peer.chain[0], now=self._clock()), asked))

    def _may_renew(self, peer: PeerIdentity) -> None:
        """Count a renewal. Raises: TooManyRenewals: of that certificate, or of that ID."""
        now = time.monotonic()
        counted = ((self._renewals, peer.thumbprint), (self._of_agents, str(peer.agent_id)))
        for renewals, name in counted:
            wait = renewals.wait(name, now)
            if wait > 0:
                raise TooManyRenewals("renewal", got=f"too many of {name}", do=f"try again in {wait:.0f} s")
        for renewals, name in counted:
            renewals.count(name, now)

    def _record(self, made: Sequence[tuple[Mapping[str, str], Issued]]) -> None:
        self._edge.allow(
            [
                {
                    **asked,
                    "subject": str(issued.agent_id),
                    "serial": f"{issued.serial:x}",
                    "certificate": issued.thumbprint,
                }
                for asked, issued in made
            ]
        )

    async def _ca_certificates(self, _: Request) -> Response:
        """RFC 7030 section 4.1.3: the roots, and the intermediates that make a chain of what was issued."""
        chain = await self._edge.reading(self._ca.ca_certificates)
        return Response(est.certificates(chain), headers=_HEADERS, media_type=est.CERTIFICATES_TYPE)

    async def _attributes(self, _: Request) -> Response:
        """RFC 7030 section 4.5.2."""
        return Response(est.attributes(), headers=_HEADERS, media_type=est.ATTRIBUTES_TYPE)

    async def _renewal_info(self, request: Request) -> Response:
        """When the certificate that is presented should be renewed; at once, if its CA was taken out of trust."""
        presented = _presented(request).chain[0]
        info = await self._edge.reading(lambda: self._ca.renewal_info(presented, now=self._clock()))
        return JSONResponse(
            {"renewAt": info.renew_at.isoformat(), "urgent": info.urgent, "explanation": info.reason},
            headers={"Cache-Control": "no-store"},
        )


def _too_many(wait: float) -> TooManyAttempts:
    return TooManyAttempts("enrolment", got="too many failures", do=f"try again in {wait:.0f} s")


def _answer(issued: Issued) -> Response:
    """The issued certificate alone (RFC 7030 section 4.2.3); the CA certificates above it are in cacerts."""
    response = Response(est.certificate(issued.der))
    response.raw_headers += _ISSUED_HEADERS
    return response


async def _request(request: Request) -> bytes:
    body = await body_of(request, MAX_BODY_BYTES)
    return est.request_of(body, request.headers.get("content-type", ""))


def _presented(request: Request) -> PeerIdentity:
    peer = peer_of(request.scope)
    if peer is None:
        raise CertificateNotPresented(
            "renewal", got="no client certificate", expected="mutual TLS with the certificate to renew"
        )
    return peer
