"""A CA service that says what it is told to, over real TLS with forged certificates."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tests.forge import NOW, Forge
from tests.pki.client.threads import InThread
from trust.authorize import members_of
from trust.bundles import TrustBundle
from trust.tls import serving

TOKEN = "a2ae_0123456789abcdef01234567_" + "5a" * 32
FORGE, IMPOSTOR, ELSEWHERE = Forge(), Forge(), Forge("other.example")
BILLING = "spiffe://fleet.example/billing"


class Service:
    """A CA service that says what it is told to. As it is made, every one of its answers is right."""

    def __init__(self) -> None:
        self.source = FORGE.leaf("/a2a-pki/server")
        self.forge = FORGE
        self.cacerts: list[x509.Certificate] = [FORGE.root, FORGE.intermediate]
        self.trusted = TrustBundle(trust_domain="fleet.example", roots=(FORGE.root,), sequence=7)
        self.leaf: dict[str, Any] = {}  # changes of the certificate that it issues
        self.answer: Callable[[list[x509.Certificate]], list[x509.Certificate]] = lambda chain: chain
        self.instead: dict[str, Response | Callable[[], Response]] = {}  # whole answers, by path
        self.urgent = False
        self.tokens: list[str] = []  # that it has seen
        self.paths: list[str] = []

    def app(self) -> Starlette:
        async def any_path(request: Request) -> Response:
            path = request.url.path
            self.paths.append(path)
            if authorization := request.headers.get("authorization"):
                self.tokens.append(base64.b64decode(authorization.removeprefix("Basic ")).decode())
            if (instead := self.instead.get(path)) is not None:
                return instead if isinstance(instead, Response) else instead()
            if path == "/crl":
                names = [name.removeprefix("/crl/") for name in self.instead if name.startswith("/crl/")]
                return JSONResponse({"lists": names})
            match path.rpartition("/")[2]:
                case "cacerts":
                    return certificates(self.cacerts)
                case "bundle":
                    return Response(self.trusted.to_json(), media_type="application/json")
                case "renewal-info":
                    return JSONResponse({"renewAt": NOW.isoformat(), "urgent": self.urgent, "explanation": ""})
                case "simpleenroll" | "simplereenroll":
                    csr = x509.load_der_x509_csr(base64.b64decode(await request.body()))
                    return certificates(self.answer(self.issue(csr.public_key())))
            return PlainTextResponse("no", 404)

        return Starlette(routes=[Route("/{path:path}", any_path, methods=["GET", "POST"])])

    def issue(self, public_key: Any) -> list[x509.Certificate]:
        """As the forge signs it: `key` is asked for nothing but its public half."""
        key = SimpleNamespace(public_key=lambda: public_key)
        options = {"agent": "/billing", "key": key, **self.leaf}
        return list(self.forge.leaf(**options).chain)

    @contextmanager
    def running(self) -> Iterator[str]:
        def enter() -> Any:
            return serving(
                self.app(),
                source=self.source,
                bundles=FORGE.bundles,
                authorize=members_of("fleet.example"),
                client_certificates="optional",
            )

        with InThread(enter) as here:
            yield here.url


def certificates(chain: list[x509.Certificate]) -> Response:
    body = base64.encodebytes(pkcs7.serialize_certificates(chain, Encoding.DER))
    return Response(body, media_type="application/pkcs7-mime; smime-type=certs-only")
