"""A SPIFFE agent for the tests: a Workload API on a real socket, in the messages that others generated.

It says what it is told to: an answer, another one, nothing, rubbish, no.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe._proto import workload_pb2

from trust.credentials import Credentials

Said = bytes | grpc.StatusCode | None  # an answer, a refusal, or silence


def ders(certificates: Iterable[x509.Certificate]) -> bytes:
    return b"".join(one.public_bytes(Encoding.DER) for one in certificates)


def svid(credentials: Credentials, roots: Iterable[x509.Certificate], **changes: Any) -> workload_pb2.X509SVID:
    """One identity; each of `changes` replaces a field."""
    fields = {
        "spiffe_id": str(credentials.agent_id),
        "x509_svid": ders(credentials.chain),
        "x509_svid_key": credentials.private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        "bundle": ders(roots),
        **changes,
    }
    return workload_pb2.X509SVID(**fields)


def answer(
    *svids: workload_pb2.X509SVID,
    federated: Mapping[str, bytes] | None = None,
    crl: Iterable[x509.CertificateRevocationList | bytes] = (),
) -> bytes:
    lists = [one if isinstance(one, bytes) else one.public_bytes(Encoding.DER) for one in crl]
    made = workload_pb2.X509SVIDResponse(svids=svids, crl=lists, federated_bundles=dict(federated or {}))
    return bytes(made.SerializeToString())


class WorkloadAgent:
    """The endpoint, in a folder or on a port; `say` changes what every stream, open or to come, is told."""

    def __init__(self, folder: Path | None, said: Said = None) -> None:
        self.endpoint = "tcp://127.0.0.1:0" if folder is None else f"unix://{folder}/agent.sock"
        self.streams = 0
        self._changed = threading.Condition()
        self._said, self._version = said, 0
        self._stopped = False
        self._server: grpc.Server | None = None
        self.start()

    def start(self) -> None:
        self._stopped = False
        handler = grpc.unary_stream_rpc_method_handler(
            self._fetch,
            request_deserializer=workload_pb2.X509SVIDRequest.FromString,
            response_serializer=lambda data: data,
        )
        self._server = grpc.server(ThreadPoolExecutor(16))
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("SpiffeWorkloadAPI", {"FetchX509SVID": handler}),)
        )
        port = self._server.add_insecure_port(self.endpoint.removeprefix("tcp://"))
        self.endpoint = self.endpoint.replace("127.0.0.1:0", f"127.0.0.1:{port}")
        self._server.start()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None

    def __enter__(self) -> WorkloadAgent:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def say(self, said: Said) -> None:
        with self._changed:
            self._said, self._version = said, self._version + 1
            self._changed.notify_all()

    def _fetch(self, _: workload_pb2.X509SVIDRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        if ("workload.spiffe.io", "true") not in [(m.key, m.value) for m in context.invocation_metadata()]:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header is missing")

        def wake() -> None:
            with self._changed:
                self._changed.notify_all()

        context.add_callback(wake)
        told = -1
        with self._changed:
            self.streams += 1
        while True:
            with self._changed:
                while not self._stopped and context.is_active() and self._version == told:
                    self._changed.wait()
                if self._stopped or not context.is_active():
                    return
                said, told = self._said, self._version
            if isinstance(said, grpc.StatusCode):
                if said is grpc.StatusCode.OK:
                    return  # the end of the stream, and nothing was said
                context.abort(said, "the agent's own words, which are nobody's business")
            if said is not None:
                yield said
