"""The endpoints for everybody: revocation lists, CA certificates, OCSP and the trust bundle."""

from __future__ import annotations

import json
import time
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pki.authority import CertificateAuthority
from pki.errors import RequestMalformed, UnknownName
from pki.service.answers import Publication, Shelf, body_of
from pki.service.edge import Edge
from pki.service.est import strict_base64
from trust.bundles import TrustBundles
from trust.clock import Clock
from trust.sources import Source

MAX_OCSP_BYTES = 8 << 10  # one certificate takes about 100 bytes, a nonce 130 at most
OCSP_TYPE = "application/ocsp-response"
INDEX_AGE = timedelta(seconds=5)  # whoever asks for the index asks for the lists in it next
OCSP_AGE = timedelta(minutes=2)  # of an answer in a cache: what is revoked meanwhile is known that much later
MAX_AGE = timedelta(seconds=60)  # of lists and certificates: a revocation or a rotation may replace them at any time


class Publications:
    """Everything here is signed, or a root that its reader compares with a fingerprint: it may go over plain HTTP."""

    def __init__(self, ca: CertificateAuthority, edge: Edge, bundles: Source[TrustBundles], clock: Clock) -> None:
        self._ca = ca
        self._edge = edge
        self._bundles = bundles
        self._clock = clock
        self._shelf = Shelf(time.monotonic)

    def signed_routes(self) -> list[Route]:
        return [
            Route("/crl", self._edge.endpoint("lists", self._lists)),
            Route("/crl/{name}", self._edge.endpoint("crl", self._crl)),
            Route("/ca/{name}", self._edge.endpoint("issuer", self._issuer)),
        ]

    def ocsp_routes(self) -> list[Route]:
        return [
            Route("/ocsp", self._edge.endpoint("ocsp", self._ocsp_post), methods=["POST"]),
            Route("/ocsp/{request:path}", self._edge.endpoint("ocsp", self._ocsp_get)),
        ]

    def bundle_routes(self) -> list[Route]:
        return [Route("/bundle", self._edge.endpoint("bundle", self._bundle))]

    async def _lists(self, request: Request) -> Response:
        """The index of the lists: `{"lists": ["KEYID.crl", "KEYID-3.crl"]}`. Each is served below this path.

        It is no more than a table of contents and is not signed: verifiers refuse whatever a missing list would answer
        for. Deltas are left out: the lists name theirs.
        """

        def make() -> Publication:
            names = self._ca.revocations.names(self._clock())
            return Publication.of(json.dumps({"lists": names}).encode(), "application/json", max_age=INDEX_AGE)

        publication = await self._shelf.get("index", lambda: self._edge.reading(make))
        return publication.answer(request)

    async def _crl(self, request: Request) -> Response:
        name: str = request.path_params["name"]

        def make() -> Publication:
            now = self._clock()
            der = self._ca.revocations.named(name, now)
            made = x509.load_der_x509_crl(der).last_update_utc
            return Publication.of(der, "application/pkix-crl", max_age=MAX_AGE, modified=made)

        publication = await self._shelf.get(f"crl {name}", lambda: self._edge.reading(make))
        return publication.answer(request)

    async def _issuer(self, request: Request) -> Response:
        """A CA certificate in DER, under the name that certificates have for it (RFC 5280 section 4.2.2.1)."""
        name: str = request.path_params["name"]

        def make() -> Publication:
            for issuer in self._ca.published_issuers():
                if name == f"{issuer.key_id}.cer":
                    return Publication.of(
                        issuer.certificate.public_bytes(Encoding.DER), "application/pkix-cert", max_age=MAX_AGE
                    )
            raise UnknownName("CA certificate", got=name, expected="the key ID of a CA and .cer")

        publication = await self._shelf.get(f"ca {name}", lambda: self._edge.reading(make))
        return publication.answer(request)

    async def _bundle(self, request: Request) -> Response:
        """SPIFFE Federation section 5. The document does not name its trust domain: that is its reader's to know."""
        bundle = self._bundles.current().by_domain[self._ca.trust_domain]
        return Publication.of(
            bundle.to_json().encode(), "application/json", max_age=timedelta(seconds=bundle.refresh_hint)
        ).answer(request)

    async def _ocsp_post(self, request: Request) -> Response:
        """RFC 6960 appendix A.1; caches keep no answers to POST."""
        body = await body_of(request, MAX_OCSP_BYTES)
        der, _ = await self._status(request, body)
        return Response(der, media_type=OCSP_TYPE, headers={"Cache-Control": "no-store"})

    async def _ocsp_get(self, request: Request) -> Response:
        """As POST, with the headers of RFC 5019 section 6.2: whatever is between may keep the answer for a while.

        Not for its whole time, as that section would have it: a revocation would be half a day late behind a cache.
        """
        der, answer = await self._status(request, ocsp_request(request.path_params["request"]))
        if answer.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL or answer.next_update_utc is None:
            return Response(der, media_type=OCSP_TYPE, headers={"Cache-Control": "no-store"})
        remaining = answer.next_update_utc - self._clock()
        return Publication.of(der, OCSP_TYPE, max_age=min(remaining, OCSP_AGE), modified=answer.this_update_utc).answer(
            request
        )

    async def _status(self, request: Request, body: bytes) -> tuple[bytes, ocsp.OCSPResponse]:
        der = await self._edge.reading(lambda: self._ca.revocations.respond(body, self._clock()))
        answer = ocsp.load_der_ocsp_response(der)
        if answer.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            await self._edge.deny(request, "ocsp", f"pki.ocsp.{answer.response_status.name.lower()}")
        return der, answer


def ocsp_request(path: str) -> bytes:
    """The OCSP request in the path of a GET (RFC 6960 appendix A.1): base64, whose percent-encoding is undone already.

    Raises:
        RequestMalformed: not base64, or too long.
    """
    if len(path) > MAX_OCSP_BYTES * 4 // 3:
        raise RequestMalformed("OCSP request", got=f"{len(path)} characters", expected="less than 8 KiB")
    try:
        return strict_base64(path.encode("ascii"))
    except ValueError:
        raise RequestMalformed(
            "OCSP request", got="no base64", expected="base64 in the path, percent-encoded"
        ) from None
