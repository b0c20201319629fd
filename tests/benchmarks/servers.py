"""Servers over mutual TLS: ours beside uvicorn with the standard library's `ssl`, hypercorn, granian and nginx.

Each is a process of its own on loopback and answers the same request with the same few bytes; one client, which is the
same for all of them, asks. What a server costs is the CPU time of its processes, read from outside: a busy machine
disturbs that less than the wall clock. The servers take turns in short rounds.

Of one server with 1,000 connections: what a new revocation list costs, until every revoked peer is disconnected.
"""

from __future__ import annotations

import resource
import select
import selectors
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.benchmarks.harness import Row
from tests.benchmarks.loads import Process
from tests.benchmarks.mtls_servers import BODY, CHANGES, ROOT_FILE, available, crl_files, running
from tests.forge import Forge
from trust.credentials import BUNDLE_FILE, CHAIN_FILE, KEY_FILE

OURS = "ours"
PEERS = {
    "uvicorn": "uvicorn, stdlib ssl",
    "hypercorn": "hypercorn, stdlib ssl",
    "granian": "granian (rustls)",
    "nginx": "nginx, no application",
}
AGENTS = 100

ROUNDS = 9
GROUP = 3  # neighbouring rounds with a median of their own, the best of which counts
REQUESTS = 400  # of one round, on one connection kept alive
NEW_CONNECTIONS = 30  # of one round, with one request each
TOGETHER = 32  # connections, each with its next request once it has its answer
ANSWERS = 100  # of one round, for each of them
IDLE = 2_000
CONNECTING = 8  # at once

WATCHED = 1_000  # connections when peers are revoked
REVOKED = 10  # agents for each change, and with them a tenth of the connections
OTHERS_REVOKED = 2_000  # serial numbers on the list besides
QUIET_SECONDS = 1.0
PAUSE_SECONDS = 0.002  # between two requests of the one who watches

REQUEST = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
CHANGE = b"GET /change HTTP/1.1\r\nhost: localhost\r\n\r\n"
ANSWER_SECONDS = 20.0


@dataclass(slots=True)
class Figures:
    """What was measured of one server, by round; seconds and bytes."""

    keep_alive: list[float] = field(default_factory=list)  # CPU
    keep_alive_wall: list[float] = field(default_factory=list)
    new: list[float] = field(default_factory=list)  # CPU
    new_wall: list[float] = field(default_factory=list)
    together: list[float] = field(default_factory=list)  # CPU
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)


class Client:
    """Asks one server, as any of the agents. Blocking, with the standard library's TLS."""

    def __init__(self, port: int, contexts: list[ssl.SSLContext]) -> None:
        self._address = ("127.0.0.1", port)
        self._contexts = contexts

    def connect(self, agent: int = 0) -> ssl.SSLSocket:
        tcp = socket.create_connection(self._address, ANSWER_SECONDS)
        return self._contexts[agent].wrap_socket(tcp, server_hostname="localhost")

    @contextmanager
    def kept(self, count: int) -> Iterator[list[ssl.SSLSocket]]:
        """So many connections, of all agents in turn, each after a request: what the pools of clients keep."""
        with ThreadPoolExecutor(CONNECTING) as pool:
            kept = list(pool.map(self._asked, range(count)))
        try:
            yield kept
        finally:
            for tls in kept:
                tls.close()

    def _asked(self, number: int) -> ssl.SSLSocket:
        tls = self.connect(number % AGENTS)
        ask(tls)
        return tls


def ask(tls: ssl.SSLSocket, request: bytes = REQUEST) -> None:
    """One request, until the end of its answer."""
    tls.sendall(request)
    answer = b""
    while not answer.endswith(BODY):
        data = tls.recv(4096)
        assert data, "server closed the connection"
        answer += data
    assert answer.startswith(b"HTTP/1.1 200"), answer


def keep_alive(process: Process, client: Client, figures: Figures) -> None:
    with client.connect() as tls:
        ask(tls)
        cpu, wall = process.cpu(), time.perf_counter()
        for _ in range(REQUESTS):
            ask(tls)
        figures.keep_alive_wall.append((time.perf_counter() - wall) / REQUESTS)
        figures.keep_alive.append((process.cpu() - cpu) / REQUESTS)


def new_connections(process: Process, client: Client, figures: Figures) -> None:
    cpu, wall = process.cpu(), time.perf_counter()
    for _ in range(NEW_CONNECTIONS):
        with client.connect() as tls:
            ask(tls)
    figures.new_wall.append((time.perf_counter() - wall) / NEW_CONNECTIONS)
    figures.new.append((process.cpu() - cpu) / NEW_CONNECTIONS)


def together(process: Process, client: Client, figures: Figures) -> None:
    with ExitStack() as stack:
        asking = [Asking(stack.enter_context(client.connect())) for _ in range(TOGETHER)]
        cpu = process.cpu()
        _drive(asking, lambda: all(len(one.seconds) >= ANSWERS for one in asking))
        answers = sorted(seconds for one in asking for seconds in one.seconds)
        figures.together.append((process.cpu() - cpu) / len(answers))
        figures.p50.append(answers[len(answers) // 2])
        figures.p99.append(answers[len(answers) * 99 // 100])


def idle(process: Process, client: Client, figures: Figures) -> None:
    before = process.resident()
    with client.kept(IDLE):
        figures.idle.append((process.resident() - before) / IDLE)


class Asking:
    """A connection with a request under way at every time, and how long each answer took."""

    def __init__(self, tls: ssl.SSLSocket) -> None:
        tls.setblocking(False)
        self.tls = tls
        self.seconds: list[float] = []
        self.send()

    def send(self) -> None:
        self._answer = b""
        self._sent = time.perf_counter()
        self.tls.send(REQUEST)

    def receive(self) -> None:
        while not self._answer.endswith(BODY):
            try:
                data = self.tls.recv(4096)
            except ssl.SSLWantReadError:
                return
            assert data, "server closed the connection"
            self._answer += data
        self.seconds.append(time.perf_counter() - self._sent)
        self.send()


def _drive(asking: list[Asking], done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + ANSWER_SECONDS
    with selectors.DefaultSelector() as selector:
        for one in asking:
            selector.register(one.tls, selectors.EVENT_READ, one)
        while not done():
            assert time.monotonic() < deadline, "server does not answer in time"
            for key, _ in selector.select(0.05):
                key.data.receive()


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """What one change of the revocation lists did."""

    seconds: float  # until the last revoked peer was disconnected
    longest: float  # answer to another agent meanwhile
    cpu: float


def revocations(process: Process, client: Client) -> tuple[float, list[Revocation]]:
    """The longest answer while nothing happens, and what each change did, with `WATCHED` connections open."""
    with client.kept(WATCHED) as connections, client.connect(AGENTS - 1) as probe:
        until, cpu = time.monotonic() + QUIET_SECONDS, process.cpu()
        quiet = _watch(probe, lambda: time.monotonic() > until)
        each = (process.cpu() - cpu) / len(quiet)
        found = []
        for change in range(CHANGES):
            revoked = range(change * REVOKED, (change + 1) * REVOKED)
            ended = _Ended([tls for number, tls in enumerate(connections) if number % AGENTS in revoked])
            cpu, start = process.cpu(), time.perf_counter()
            probe.sendall(CHANGE)
            answers = _watch(probe, ended.all, request=b"")
            seconds, cpu = time.perf_counter() - start, process.cpu() - cpu
            # What the probe's own requests cost is not the change's.
            found.append(Revocation(seconds=seconds, longest=max(answers), cpu=cpu - each * len(answers)))
        for number, tls in enumerate(connections):
            if number % AGENTS >= revoked.stop:
                ask(tls)  # none of the others was disconnected
    return max(quiet), found


def _watch(probe: ssl.SSLSocket, done: Callable[[], bool], request: bytes = REQUEST) -> list[float]:
    """Ask every now and then, and return how long each answer took. `request`: the first one."""
    deadline = time.monotonic() + ANSWER_SECONDS
    answers: list[float] = []
    while not done():
        assert time.monotonic() < deadline, "nothing happens"
        start = time.perf_counter()
        ask(probe, REQUEST if answers else request)
        answers.append(time.perf_counter() - start)
        time.sleep(PAUSE_SECONDS)
    return answers


class _Ended:
    """Connections that the server is to end, without another word."""

    def __init__(self, connections: list[ssl.SSLSocket]) -> None:
        self._left = {tls.fileno(): tls for tls in connections}
        self._poll = select.poll()
        for number in self._left:
            self._poll.register(number, select.POLLIN)

    def all(self) -> bool:
        for number, _ in self._poll.poll(0):
            self._poll.unregister(number)
            assert self._left.pop(number).recv(1) == b"", "a revoked peer got an answer"
        return not self._left


def rows() -> list[Row]:
    if sys.platform != "linux":
        sys.stderr.write("servers: the CPU time of another process is read the way of Linux; left out\n")
        return []
    _open_files(4 * IDLE)
    names = [OURS, *(name for name in PEERS if available(name))]
    for name in PEERS.keys() - set(names):
        sys.stderr.write(f"servers: {name} is not installed; left out\n")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        contexts = prepare(folder)
        processes = {name: stack.enter_context(running(name, folder)) for name in names}
        clients = {name: Client(process.port, contexts) for name, process in processes.items()}
        figures = {name: Figures() for name in names}
        for measure, rounds in ((keep_alive, ROUNDS), (new_connections, ROUNDS), (together, ROUNDS), (idle, 1)):
            for _ in range(rounds):
                for name in names:
                    measure(processes[name], clients[name], figures[name])
        quiet, changes = revocations(processes[OURS], clients[OURS])
    compared = [
        row
        for name, figure, goal in (
            ("mTLS keep-alive request, server CPU", "keep_alive", "<= 1.25x"),
            ("mTLS keep-alive request, wall", "keep_alive_wall", "-"),
            ("new mTLS connection + request, server CPU", "new", "<= 0.9x"),
            ("new mTLS connection + request, wall", "new_wall", "-"),
            (f"{TOGETHER} connections, server CPU", "together", "-"),
            (f"{TOGETHER} connections, median answer", "p50", "-"),
            (f"{TOGETHER} connections, 99th percentile", "p99", "-"),
            (f"memory of one of {IDLE:,} idle connections", "idle", "-"),
        )
        for row in _compared(figures, name, figure, goal)
    ]
    return compared + _of_revocation(quiet, changes, figures["uvicorn"])


def _compared(figures: dict[str, Figures], name: str, figure: str, goal: str) -> Iterator[Row]:
    unit, scale = ("KB", 1e-3) if figure == "idle" else ("us", 1.0)
    ours, *peers = [(server, typical(getattr(found, figure)) * scale) for server, found in figures.items()]
    for peer, its in peers:
        goes_for = goal if peer == "uvicorn" else "-"
        yield Row(name=name, ours=ours[1], peer_name=PEERS[peer], peer=its, goal=goes_for, unit=unit)


def typical(rounds: list[float]) -> float:
    return min(statistics.median(rounds[start : start + GROUP]) for start in range(0, len(rounds), GROUP))


def _of_revocation(quiet: float, changes: list[Revocation], uvicorn: Figures) -> list[Row]:
    name = f"revocation list changed, {WATCHED:,} connections"
    figures = (
        ("last revoked peer gone after", "seconds", "allowed", 1.0, "<= 1x"),
        ("longest answer meanwhile", "longest", "longest before", quiet, "-"),
        ("server CPU", "cpu", "uvicorn, all connecting again", typical(uvicorn.new) * WATCHED, "-"),
    )
    return [
        Row(
            name=f"{name}: {what}",
            ours=statistics.median(getattr(change, figure) for change in changes) * 1e3,
            peer_name=peer,
            peer=seconds * 1e3,
            goal=goal,
            unit="ms",
        )
        for what, figure, peer, seconds, goal in figures
    ]


def prepare(folder: Path) -> list[ssl.SSLContext]:
    """Everything that the servers read, and what each agent connects with."""
    forge = Forge()
    root = forge.root.public_bytes(Encoding.PEM).decode()
    (folder / ROOT_FILE).write_text(root)
    (folder / BUNDLE_FILE).write_text(forge.bundles.to_json())
    forge.leaf("/server").save(folder)
    contexts, serials = [], [x509.random_serial_number() for _ in range(OTHERS_REVOKED)]
    for number in range(AGENTS):
        agent, its = forge.leaf(f"/agent-{number}"), folder / f"agent-{number}"
        agent.save(its)
        context = ssl.create_default_context(cadata=root)
        context.load_cert_chain(its / CHAIN_FILE, its / KEY_FILE)
        contexts.append(context)
        if number % REVOKED == 0 and number <= CHANGES * REVOKED:  # the list before these agents are on it
            _write_crl(forge, folder, number // REVOKED, serials)
        serials.append(agent.certificate.serial_number)
    return contexts


def _write_crl(forge: Forge, folder: Path, change: int, serials: list[int]) -> None:
    agents, root = crl_files(folder, change)
    agents.write_bytes(forge.crl(forge.intermediate, forge.key, serials).public_bytes(Encoding.DER))
    root.write_bytes(forge.crl(forge.root, forge.root_key, []).public_bytes(Encoding.DER))


def _open_files(number: int) -> None:
    """Let this process, and the servers that it starts, hold so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (number if hard == resource.RLIM_INFINITY else min(number, hard), hard)
        )
