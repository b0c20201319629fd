"""HTTP/2 over mutual TLS: ours beside the servers that speak it. In CPU time of the server, on one connection.

The client is one program for all of them. Why hypercorn is not used, for all its numbers, `trust.tls.http2` says.
"""

from __future__ import annotations

import ssl
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import h2.config
import h2.connection
import h2.events

from tests.benchmarks.harness import Row
from tests.benchmarks.loads import Process
from tests.benchmarks.mtls_servers import BODY, available, running
from tests.benchmarks.servers import OURS, PEERS, Client, prepare, typical

ROUNDS = 9
REQUESTS = 320  # of one round
STREAMS = 32  # at once
RECEIVE_BYTES = 65536

HEADERS = [(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", "/")]


def ask(tls: ssl.SSLSocket, connection: h2.connection.H2Connection, count: int) -> None:
    """So many requests at once, until the end of their answers."""
    waiting = set()
    for _ in range(count):
        stream = connection.get_next_available_stream_id()
        connection.send_headers(stream, HEADERS, end_stream=True)
        waiting.add(stream)
    tls.sendall(connection.data_to_send())
    good = 0
    while waiting:
        data = tls.recv(RECEIVE_BYTES)
        assert data, "server closed the connection"
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                assert (b":status", b"200") in (event.headers or ())
            elif isinstance(event, h2.events.DataReceived):
                good += event.data == BODY
                connection.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
            elif isinstance(event, h2.events.StreamEnded):
                waiting.discard(event.stream_id)
        tls.sendall(connection.data_to_send())
    assert good == count


def cost(process: Process, client: Client, at_once: int) -> float:
    """CPU seconds of the server for a request."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
    with client.connect() as tls:
        assert tls.selected_alpn_protocol() == "h2"
        connection.initiate_connection()
        ask(tls, connection, 1)
        before = process.cpu()
        for _ in range(REQUESTS // at_once):
            ask(tls, connection, at_once)
        return (process.cpu() - before) / REQUESTS


def rows() -> list[Row]:
    if sys.platform != "linux":
        sys.stderr.write("http2: the CPU time of another process is read the way of Linux; left out\n")
        return []
    names = [OURS, *(name for name in PEERS if available(name, http2=True))]
    found: list[Row] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        contexts = prepare(folder)
        contexts[0].set_alpn_protocols(["h2"])
        processes = {name: stack.enter_context(running(name, folder, http2=True)) for name in names}
        clients = {name: Client(process.port, contexts) for name, process in processes.items()}
        for at_once in (1, STREAMS):
            costs: dict[str, list[float]] = {name: [] for name in names}
            for _ in range(ROUNDS):
                for name in names:
                    costs[name].append(cost(processes[name], clients[name], at_once))
            label = f"HTTP/2 request over mTLS, {at_once} at once, server CPU"
            found += [
                Row(name=label, ours=typical(costs[OURS]), peer_name=PEERS[peer], peer=typical(costs[peer]), goal="-")
                for peer in names[1:]
            ]
    return found
