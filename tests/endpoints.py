"""Real bundle endpoints in the test's own event loop, of both profiles of SPIFFE Federation."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.forge import Forge
from trust.authorize import unsafe_allow_any_peer
from trust.bundles import TrustBundle
from trust.credentials import Credentials
from trust.tls import serving

WEB = Forge("web.example")  # a CA of the web's PKI, as far as the tests are concerned


def bundle_of(forge: Forge, sequence: int = 1, *roots: x509.Certificate, hint: int = 300) -> TrustBundle:
    return TrustBundle(trust_domain=forge.domain, roots=roots or (forge.root,), sequence=sequence, refresh_hint=hint)


class Endpoint:
    """An ASGI application that answers with a document, and that can be told to misbehave."""

    def __init__(self, document: TrustBundle | bytes) -> None:
        self.document = document
        self.status = 200
        self.headers: dict[str, str] = {"content-type": "application/json"}
        self.wait = 0.0
        self.asked: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(scope)
        await asyncio.sleep(self.wait)
        document = self.document
        body = document if isinstance(document, bytes) else document.to_json().encode()
        headers = [(name.encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def over_web(app: Any, folder: Path, certificate: Credentials | None = None) -> AsyncIterator[str]:
    """https_web: ordinary TLS, with a certificate of WEB for localhost."""
    certificate = certificate or WEB.leaf("/web")
    certificate.save(folder / "web")
    config = uvicorn.Config(
        app,
        log_level="critical",
        lifespan="off",
        ssl_certfile=folder / "web" / "chain.pem",
        ssl_keyfile=folder / "web" / "key.pem",
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[assignment, method-assign]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        task = asyncio.ensure_future(server.serve([listening]))
        while not server.started:
            await asyncio.sleep(0.005)
        try:
            yield f"https://localhost:{listening.getsockname()[1]}/bundle"
        finally:
            server.should_exit = server.force_exit = True
            await task


def web_roots(folder: Path) -> Path:
    file = folder / "web-roots.pem"
    file.write_bytes(WEB.root.public_bytes(Encoding.PEM))
    return file


@contextlib.asynccontextmanager
async def over_spiffe(app: Any, credentials: Any, forge: Forge) -> AsyncIterator[str]:
    """https_spiffe: an X509-SVID, and no certificate asked of the client."""
    async with serving(
        app,
        source=credentials,
        bundles=forge.bundles,
        authorize=unsafe_allow_any_peer(),
        client_certificates="optional",
        lifespan="off",
    ) as server:
        yield server.url + "/bundle"
