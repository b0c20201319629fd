"""The real CA service for the client's tests: over real sockets, in a thread of its own, with a clock to be set."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pki.authority import CertificateAuthority
from pki.service.server import serving
from tests.pki.client.threads import InThread
from trust.identity import AgentID, fingerprint

DOMAIN = "fleet.example"
BILLING = AgentID.parse("spiffe://fleet.example/billing")
PASSWORD = "correct horse"


class Clock:
    """The wall clock, set forward or back."""

    def __init__(self) -> None:
        self.offset = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.offset

    def advance(self, **by: float) -> None:
        self.offset += timedelta(**by)


class CA:
    """A CA, and the service that can be stopped and started again at the same port."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.clock = Clock()
        self.ca = CertificateAuthority.create(
            folder / "ca", trust_domain=DOMAIN, password=PASSWORD, clock=self.clock, **options
        )
        self.port = 0
        self._running: InThread | None = None
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.ca.root.public_bytes(Encoding.DER))

    def start(self) -> None:
        self._running = InThread(self._serving)
        url = self._running.__enter__().url
        self.port = int(url.rpartition(":")[2])

    def stop(self) -> None:
        if self._running is not None:
            self._running.__exit__()
            self._running = None

    def close(self) -> None:
        self.stop()
        self.ca.close()

    def token(self, agent: AgentID | str = BILLING, **options: Any) -> str:
        return self.ca.create_token(agent, **options).text

    def enrolling(self, folder: Path, **changes: Any) -> dict[str, Any]:
        """The arguments of one valid enrolment; each of `changes` replaces one."""
        valid = {
            "url": self.url,
            "root_fingerprint": self.fingerprint,
            "folder": folder,
            "clock": self.clock,
            **changes,
        }
        return valid if "token" in valid else {**valid, "token": self.token()}

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[Any]:
        async with serving(self.ca, clock=self.clock, audit=_Trail(self.requests), port=self.port) as service:
            yield service


class _Trail:
    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def record(self, **facts: Any) -> None:
        self._lines.append(" ".join(f"{k}={v}" for k, v in facts.items()))


def serial(certificate: x509.Certificate) -> int:
    return certificate.serial_number
