"""The transport that a protocol inside of our TLS sees, such as one of uvicorn."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from trust.tls.sslobject import peer_certificate

if TYPE_CHECKING:
    from trust.tls.transport import TlsProtocol


class TlsTransport(asyncio.Transport):
    def __init__(self, tls: TlsProtocol, raw: asyncio.Transport) -> None:
        super().__init__()
        self._tls = tls
        self._raw = raw

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        connection = self._tls.tls
        if name == "ssl_object":
            return connection
        if name == "sslcontext":
            return self._tls._context
        if name == "peercert":
            return peer_certificate(connection.peer, False)
        if name == "cipher":
            return connection.cipher
        return self._raw.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._tls.app = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._tls.app or self._tls

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._tls.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self._tls.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        self._tls.close()

    def cut(self) -> None:
        """Close in the middle of an answer, and let the client see that."""
        self._tls.close(whole=False)

    def abort(self) -> None:
        self._tls.abort()

    def is_closing(self) -> bool:
        return self._tls.ended or self._raw.is_closing()

    def pause_reading(self) -> None:
        if not self._tls.paused and not self.is_closing():
            self._tls.paused = True
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        if self._tls.paused and not self.is_closing():
            self._tls.paused = False
            self._tls.read_on()
            # What is decrypted already must not wait for the next byte from the client.
            self._tls._loop.call_soon(self._tls.pump)

    def is_reading(self) -> bool:
        return not self._tls.paused and not self.is_closing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._tls.unsent()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._raw.get_write_buffer_limits()
