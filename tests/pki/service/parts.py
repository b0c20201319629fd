"""What the service's tests are made of: a real CA behind real sockets, and requests to it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from pki import CertificateAuthority
from pki.service import Serving, serving
from trust.authorize import exactly
from trust.bundles import BundleSource
from trust.credentials import Credentials
from trust.tls import AgentTransport

DOMAIN = "fleet.example"
PASSWORD = "correct horse"
AGENT = f"spiffe://{DOMAIN}/billing"
SERVER = f"spiffe://{DOMAIN}/a2a-pki/server"
PUBLIC_URL = "http://pki.fleet.example"
EST = "/.well-known/est"
LOCAL: dict[str, Any] = {"http_port": 0, "dns_names": ("localhost",), "ip_addresses": ("127.0.0.1",)}

T = TypeVar("T")


class Trail:
    """An audit sink that keeps its records."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def record(self, **facts: Any) -> None:
        self.records.append(facts)

    def of(self, event: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["event"] == event]


class Clock:
    """The wall clock, and a hand that a test may turn."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


def new_ca(folder: Path, **options: Any) -> CertificateAuthority:
    """A CA of a moment ago, with less scrypt than usual."""
    return CertificateAuthority.create(
        folder, trust_domain=DOMAIN, password=PASSWORD, **{"public_url": PUBLIC_URL, **options}
    )


@dataclass
class Running:
    """A service in a thread of its own, and ways to ask it something."""

    ca: CertificateAuthority
    serving: Serving
    trail: Trail
    clock: Clock
    stop: Callable[[], None]
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return self.serving.url

    @property
    def http_url(self) -> str:
        assert self.serving.http_url is not None
        return self.serving.http_url

    def ask(self, method: str, path: str, *, credentials: Credentials | None = None, **options: Any) -> httpx.Response:
        """One request to the TLS side."""
        return run(self.asked(method, path, credentials=credentials, **options))

    async def asked(
        self, method: str, path: str, *, credentials: Credentials | None = None, **options: Any
    ) -> httpx.Response:
        async with agent(self.serving.upkeep.bundles, credentials) as client:
            return await client.request(method, self.url + path, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        """One request to the plain side."""
        return httpx.request(options.pop("method", "GET"), self.http_url + path, trust_env=False, timeout=60, **options)

    def enrol(self, token: str | None, csr: bytes | None = None, **options: Any) -> httpx.Response:
        headers = {"Content-Type": "application/pkcs10", **options.pop("headers", {})}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        body = base64.b64encode(csr or request()) if "content" not in options else options.pop("content")
        return self.ask("POST", f"{EST}/simpleenroll", headers=headers, content=body, **options)

    def renew(self, credentials: Credentials | None, csr: bytes | None = None) -> httpx.Response:
        return self.ask(
            "POST",
            f"{EST}/simplereenroll",
            credentials=credentials,
            headers={"Content-Type": "application/pkcs10"},
            content=base64.b64encode(csr or request()),
        )

    def token(self, agent_id: str = AGENT, **options: Any) -> str:
        return self.ca.create_token(agent_id, **options).text


@contextlib.contextmanager
def started(
    ca: CertificateAuthority, *, clock: Clock | None = None, loop: Any = None, **options: Any
) -> Iterator[Running]:
    """The service over `ca`, while the block runs."""
    trail, clock = Trail(), clock or Clock()
    ready, found = threading.Event(), []

    async def main() -> None:
        stop, here = asyncio.Event(), asyncio.get_running_loop()
        async with serving(ca, audit=trail, clock=clock, **{**LOCAL, **options}) as one:
            found.append(Running(ca, one, trail, clock, lambda: here.call_soon_threadsafe(stop.set)))
            ready.set()
            await stop.wait()
        found[0].ended.set()

    def thread() -> None:
        try:
            with asyncio.Runner(loop_factory=loop) as runner:
                runner.run(main())
        except BaseException as error:
            found.append(error)
        finally:
            ready.set()

    worker = threading.Thread(target=thread)
    worker.start()
    ready.wait()
    if isinstance(found[0], BaseException):
        worker.join()
        raise found[0]
    try:
        yield found[0]
    finally:
        if worker.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop is closed: it was stopped before
                found[0].stop()
        worker.join()
        for error in found[1:]:
            raise error


def run(main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(main)


def agent(bundles: BundleSource, credentials: Credentials | None = None) -> httpx.AsyncClient:
    """A client that knows the CA's roots and takes an answer from its service only."""
    transport = AgentTransport(credentials, bundles, exactly(SERVER))
    return httpx.AsyncClient(transport=transport, trust_env=False, timeout=60)


def request(agent_id: str | None = AGENT, key: Any = None) -> bytes:
    """A certificate request, DER."""
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    if agent_id is not None:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(agent_id)])
        builder = builder.add_extension(names, critical=True)
    key = key or ec.generate_private_key(ec.SECP256R1())
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def certificates(response: httpx.Response) -> list[x509.Certificate]:
    """What an EST answer holds, in any order."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/pkcs7-mime; smime-type=certs-only"
    assert response.headers["content-transfer-encoding"] == "base64"
    assert response.headers["cache-control"] == "no-store"
    return pkcs7.load_der_pkcs7_certificates(base64.b64decode(response.content))


def raw(running: Running, data: bytes) -> bytes:
    """Bytes to the plain side, and all that comes back."""
    address = running.http_url.removeprefix("http://").rsplit(":", 1)
    with socket.create_connection((address[0], int(address[1])), timeout=15) as connection:
        connection.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(65536):
                answer += chunk
        return answer


def copied(template: Path, folder: Path) -> Path:
    return Path(shutil.copytree(template, folder))


def until(condition: object, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]  # any callable
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def ready(running: Running) -> dict[str, bool]:
    response = running.get("/ready")
    members = response.json()
    assert response.status_code == (200 if members["ready"] else 503)
    assert members["ready"] is all(members["checks"].values())
    return dict(members["checks"])
