"""The service as a whole: its background work, outages, its end, its processes."""

from __future__ import annotations

import functools
import json
import logging
import multiprocessing
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from pki import CertificateAuthority, rotation
from pki.service import program, serve, steady
from pki.service.server import Endpoints, Sockets
from tests.pki.service.parts import (
    AGENT,
    EST,
    PASSWORD,
    Clock,
    Running,
    agent,
    certificates,
    copied,
    raw,
    ready,
    request,
    run,
    started,
    until,
)
from tests.pki.service.test_publications import WebCA
from trust.errors import ConfigurationError
from trust.identity import fingerprint
from trust.tls import peer_of_response


def test_ready_from_the_first_answer_on(service: Running) -> None:
    assert len(ready(service)) >= 4 and all(ready(service).values())
    assert service.get("/health").json() == {"status": "ok"}
    assert service.ask("GET", "/ready").status_code == 200


def test_its_own_certificate_is_renewed(own_ca: CertificateAuthority) -> None:
    """At two thirds of its life, while it serves."""
    with started(own_ca, lifetime=timedelta(seconds=12)) as running:
        seen = set()
        deadline = time.monotonic() + 14
        while time.monotonic() < deadline:
            response = running.ask("GET", f"{EST}/cacerts")
            assert response.status_code == 200
            seen.add(own_serial(running))
            time.sleep(0.2)
        assert len(seen) >= 2


def own_serial(running: Running) -> int:
    async def main() -> int:
        async with agent(running.serving.upkeep.bundles) as client:
            return peer_of_response(await client.get(running.url + "/health")).serial

    return run(main())


def test_rotation_by_the_clock(own_ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch) -> None:
    """The intermediate that comes to its end is replaced, and agents enrol under the next one."""
    monkeypatch.setattr(steady, "SETTLED_SECONDS", 0.0)
    clock = Clock()
    with started(own_ca, clock=clock, lifetime=timedelta(days=1)) as running:
        first = own_ca.intermediate
        left = first.not_valid_after_utc - clock() - timedelta(days=5)
        clock.ahead = left
        running.serving.upkeep.round()
        clock.ahead += rotation.LISTED
        until(lambda: own_ca.intermediate != first)
        assert own_ca.intermediate.not_valid_after_utc > first.not_valid_after_utc
        upkeep = running.serving.upkeep
        clock.ahead += timedelta(days=1)
        upkeep.round()
        assert upkeep.credentials.current().chain[1] == own_ca.intermediate  # past two thirds by that clock


def test_a_clock_that_jumps_rotates_nothing_for_a_while(own_ca: CertificateAuthority) -> None:
    clock = Clock()
    with started(own_ca, clock=clock) as running:
        before, upkeep = own_ca.issuers(), running.serving.upkeep
        clock.ahead = timedelta(days=3700)
        upkeep.round()
        assert [(c.name, c.says) for c in upkeep.checks if c.name == "upkeep.rotation"] == [
            ("upkeep.rotation", "pki.clock")
        ]
        assert ready(running)["upkeep.rotation"] is False
        clock.ahead = timedelta()
        upkeep.round()
        assert own_ca.issuers() == before


def test_how_long_a_clock_is_not_gone_by() -> None:
    now, tick = datetime.now(UTC), [1000.0]
    clock = steady.Steady(now - timedelta(days=39), now, ticks=lambda: tick[0])
    assert clock.wait(now + timedelta(minutes=59)) == 0, "NTP, and a clock that was set to another minute"
    tick[0] += 7200
    assert clock.wait(now + timedelta(hours=3)) == 0, "both went on"
    for step in (timedelta(days=100), -timedelta(days=100)):
        now += step
        assert clock.wait(now + timedelta(hours=3)) == steady.SETTLED_SECONDS
        tick[0] += steady.SETTLED_SECONDS / 2
        now += timedelta(seconds=steady.SETTLED_SECONDS / 2)
        assert clock.wait(now + timedelta(hours=3)) == steady.SETTLED_SECONDS / 2
    tick[0] += steady.SETTLED_SECONDS / 2
    now += timedelta(seconds=steady.SETTLED_SECONDS / 2)
    assert clock.wait(now + timedelta(hours=3)) == 0, "and not for ever"
    absent = steady.Steady(now - timedelta(days=41), now, ticks=lambda: tick[0])
    assert absent.wait(now) == steady.SETTLED_SECONDS
    assert steady.Steady(None, now, ticks=lambda: tick[0]).wait(now) == 0


def test_a_tainted_intermediate_takes_the_services_own_certificate_along(own_ca: CertificateAuthority) -> None:
    with started(own_ca) as running:
        tainted = own_ca.intermediate
        key_id = next(i.key_id for i in own_ca.issuers() if i.serial == tainted.serial_number)
        own_ca.taint(key_id)
        running.serving.upkeep.round()
        assert running.serving.upkeep.credentials.current().chain[1] == own_ca.intermediate != tainted


class Locked:
    """Somebody else holds the write lock of the CA's database, for as long as the block runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        self._connection = sqlite3.connect(self._folder / "ca.db", isolation_level=None)
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, *_: object) -> None:
        self._connection.rollback()
        self._connection.close()


def test_a_lost_database_heals(own_ca: CertificateAuthority, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """/ready says so, issuance says try again, lists go on, and nothing has to be restarted."""
    with started(own_ca) as running:
        token, key = running.token(), ec.generate_private_key(ec.SECP256R1())
        with Locked(tmp_path / "ca"):
            answers: list[httpx.Response] = []
            asking = threading.Thread(target=lambda: answers.append(running.enrol(token, request(key=key))))
            asking.start()
            running.serving.upkeep.round()
            assert ready(running)["store"] is False
            assert running.get("/health").status_code == 200
            assert running.get("/ocsp", method="POST", content=b"x").status_code == 200
            asking.join()
            assert answers[0].status_code == 503
            assert answers[0].json().keys() == {"error", "request"}
            assert answers[0].json()["error"] == "temporarily_unavailable"
            assert answers[0].headers["retry-after"]
            assert running.trail.of("enrol")[-1]["check"] == "pki.store.locked"
        until(lambda: all(ready(running).values()))
        certificates(running.enrol(token, request(key=key)))


def test_a_failing_step_is_logged_once_and_heals(
    own_ca: CertificateAuthority, caplog: pytest.LogCaptureFixture
) -> None:
    with started(own_ca) as running, caplog.at_level(logging.WARNING, "a2a_pki.service"):
        upkeep, broken = running.serving.upkeep, [True]

        def work() -> None:
            if broken:
                raise OSError("disk on fire")

        upkeep.add("test", work)
        for _ in range(3):
            upkeep.round()
        assert ready(running)["upkeep.test"] is False
        assert "disk on fire" not in running.get("/ready").text
        broken.clear()
        upkeep.round()
        assert all(ready(running).values())
    said = [record.getMessage() for record in caplog.records]
    assert said.count("test failed, and will be tried again: disk on fire") == 1
    assert said.count("test works again") == 1


def test_background_work_that_hangs_is_seen(own_ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch) -> None:
    with started(own_ca) as running:
        monkeypatch.setattr("pki.service.upkeep.STALE_SECONDS", -1.0)
        assert ready(running)["upkeep"] is False


def test_a_request_in_flight_is_finished(own_ca: CertificateAuthority, tmp_path: Path) -> None:
    """The service is told to stop while an enrolment waits for the database; the agent gets its certificate."""
    with started(own_ca) as running:
        token, answers = running.token(), []
        with Locked(tmp_path / "ca"):
            asking = threading.Thread(target=lambda: answers.append(running.enrol(token)))
            asking.start()
            time.sleep(0.5)
            running.stop()
            time.sleep(0.5)
            assert not answers
        asking.join()
        certificates(answers[0])
        assert running.ended.wait(30)
        with pytest.raises(httpx.ConnectError):
            running.ask("GET", "/health")


def test_an_endless_body_is_cut(service: Running) -> None:
    """What nobody declares is counted while it comes."""
    head = b"POST /ocsp HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = raw(service, head + (b"400\r\n" + b"A" * 1024 + b"\r\n") * 9)
    assert answer.split()[1] == b"413"
    assert b"connection: close" in answer.lower() and b'"check":"pki.request.size"' in answer


def test_a_head_without_an_end_is_cut(service: Running) -> None:
    assert raw(service, b"GET /health HTTP/1.1\r\nX: " + b"a" * (256 << 10)).partition(b" ")[2][:3] in (b"", b"400")


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"99999999999999999999999"])
def test_a_length_that_is_none(service: Running, length: bytes) -> None:
    answer = raw(service, b"POST /ocsp HTTP/1.1\r\nHost: x\r\nContent-Length: " + length + b"\r\n\r\n")
    assert answer == b"" or answer.split()[1] in (b"400", b"413")


def test_an_address_that_is_taken(own_ca: CertificateAuthority) -> None:
    with started(own_ca) as running:
        port = int(running.url.rsplit(":", 1)[1])
        with pytest.raises(ConfigurationError, match="cannot listen on"):
            Sockets(Endpoints(port=port))
        with pytest.raises(ConfigurationError, match="cannot listen on"), started(own_ca, http_port=port):
            pass


@pytest.mark.parametrize("options", [{"web_port": 0}, {"web_certificate": (Path("a"), Path("b"))}])
def test_a_web_listener_needs_both(options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="web listener"):
        Endpoints(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_web_certificate_that_is_none(own_ca: CertificateAuthority, tmp_path: Path, content: str | None) -> None:
    files = tmp_path / "web.pem", tmp_path / "web-key.pem"
    if content is not None:
        for file in files:
            file.write_text(content)
    with pytest.raises(ConfigurationError, match="certificate"), started(own_ca, web_port=0, web_certificate=files):
        pass


def test_several_workers_need_an_opener(own_ca: CertificateAuthority) -> None:
    with pytest.raises(ConfigurationError, match="several workers"):
        serve(own_ca, workers=2)


SERVE = """
import functools, sys
from pki import CertificateAuthority
from pki.service import serve

if __name__ == "__main__":
    folder, password, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    opener = functools.partial(CertificateAuthority.open, folder, password=password)
    with opener() as ca:
        serve(ca, port=0, http_port=0, workers=workers, opener=opener)
"""


class Program:
    """`serve` in a process of its own."""

    def __init__(self, folder: Path, workers: int) -> None:
        script = folder.parent / "serve.py"
        script.write_text(SERVE)
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(folder), PASSWORD, str(workers)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stderr is not None
        self.said = ""
        while "fingerprint" not in self.said:
            line = self.process.stderr.readline()
            assert line, self.said
            self.said += line
        self.http_url = re.findall(r"http://\S+", self.said)[0]

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.http_url + path, trust_env=False, timeout=30)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        rest = self.process.communicate(timeout=60)[1]
        self.said += rest
        return self.process.returncode


def answers(program: Program) -> bool:
    try:
        return program.get("/ready").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_program(made: Path, tmp_path: Path, number: int) -> None:
    program = Program(copied(made, tmp_path / "ca"), 1)
    try:
        with CertificateAuthority.open(tmp_path / "ca") as ca:
            pin = fingerprint(ca.root.public_bytes(Encoding.DER))
            assert program.said.splitlines()[-1] == f"root fingerprint {pin}"
        assert "serving the CA of fleet.example on https://127.0.0.1:" in program.said
        until(lambda: answers(program))
        httpx.post(f"{program.http_url}/ocsp", content=b"garbage", trust_env=False)
    finally:
        code = program.end(number)
    (record,) = [json.loads(line) for line in program.said.splitlines() if line.startswith("{")]
    assert (record["event"], record["check"]) == ("ocsp", "pki.ocsp.malformed_request")
    assert code == 0, program.said
    assert "Traceback" not in program.said


def test_several_workers(made: Path, tmp_path: Path) -> None:
    """Two processes behind one socket: one that dies is replaced, and metrics add up."""
    program = Program(copied(made, tmp_path / "ca"), 2)
    try:
        until(lambda: answers(program), 60)
        children = subprocess.run(
            ["pgrep", "-P", str(program.process.pid), "-f", "multiprocessing.spawn"], capture_output=True, text=True
        )
        workers = [int(pid) for pid in children.stdout.split()]
        assert len(workers) == 2
        for _ in range(20):
            assert program.get("/health").status_code == 200
        until(lambda: health_count(program) >= 20)
    finally:
        code = program.end()
    assert code == 0, program.said
    assert "Traceback" not in program.said
    with pytest.raises(ProcessLookupError):
        os.kill(workers[0], 0)


def stopped_after(condition: object) -> threading.Thread:
    """Tell this process to stop once something is true; `serve` takes the signal, as in a program."""

    def tell() -> None:
        try:
            until(condition, 60)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=tell)
    thread.start()
    return thread


@pytest.mark.parametrize("workers", [1, 2])
def test_serve_says_where_and_ends_on_a_signal(
    own_ca: CertificateAuthority, tmp_path: Path, capfd: pytest.CaptureFixture[str], workers: int
) -> None:
    """In this very process; with workers the requests are served in others."""
    said = []

    def ready_once() -> bool:
        said.append(capfd.readouterr().err)
        url = re.findall(r"on (http://\S+)", "".join(said))
        try:
            return bool(url) and httpx.get(f"{url[0]}/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    before = signal.getsignal(signal.SIGTERM)
    teller = stopped_after(ready_once)
    serve(
        own_ca,
        port=0,
        http_port=0,
        web_port=0,
        web_certificate=WebCA().write(tmp_path),
        workers=workers,
        opener=functools.partial(CertificateAuthority.open, tmp_path / "ca", password=PASSWORD),
    )
    teller.join()
    assert signal.getsignal(signal.SIGTERM) is before
    lines = "".join(said).splitlines()
    assert [line.split(" on ")[0] for line in lines[:3]] == [
        "serving the CA of fleet.example",
        "revocation lists, OCSP, health and metrics",
        "trust bundle (https_web)",
    ]
    assert lines[3] == f"root fingerprint {fingerprint(own_ca.root.public_bytes(Encoding.DER))}"


@pytest.mark.parametrize("installed", [True, False])
def test_metrics_are_announced_where_there_are_some(
    installed: bool, own_ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "find_spec", lambda _: object() if installed else None)
    sockets = Sockets(Endpoints(port=0, http_port=0))
    try:
        program._announce(own_ca, sockets)
    finally:
        sockets.close()
    assert ("metrics" in capsys.readouterr().err) is installed


def test_a_worker_that_ends_at_once_ends_the_service(own_ca: CertificateAuthority, tmp_path: Path) -> None:
    """The others end with it, and nothing listens any more."""
    with pytest.raises(ConfigurationError, match="worker ended at once: got exit code 1"):
        serve(
            own_ca,
            port=0,
            workers=2,
            opener=functools.partial(CertificateAuthority.open, tmp_path / "nothing", password=PASSWORD),
        )
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_is_replaced(
    own_ca: CertificateAuthority, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "SETTLED_SECONDS", 0.0)
    killed: list[int] = []
    opened: list[Any] = []
    event = multiprocessing.context.BaseContext.Event

    def recorded(context: Any) -> Any:
        opened.append(event(context))
        return opened[-1]

    monkeypatch.setattr(multiprocessing.context.SpawnContext, "Event", recorded)

    def replaced() -> bool:
        children = [child.pid for child in multiprocessing.active_children()]
        if not killed and len(children) == 2 and all(one.is_set() for one in opened):
            killed.append(children[0])
            os.kill(children[0], signal.SIGKILL)
        return bool(killed) and len(children) == 2 and killed[0] not in children

    teller = stopped_after(replaced)
    serve(
        own_ca,
        port=0,
        workers=2,
        opener=functools.partial(CertificateAuthority.open, tmp_path / "ca", password=PASSWORD),
    )
    teller.join()
    assert f"worker {killed[0]} ended with exit code -9; starting another" in capfd.readouterr().err
    assert not multiprocessing.active_children()


def test_what_a_worker_runs(own_ca: CertificateAuthority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function that is started in each worker, here in this process."""
    monkeypatch.setenv(program.METRICS_FOLDER, "")
    own_ca.close()
    sockets = Sockets(Endpoints(http_port=0))
    url = f"http://127.0.0.1:{sockets.plain.getsockname()[1]}"  # type: ignore[union-attr]
    teller = stopped_after(lambda: httpx.get(f"{url}/health", trust_env=False, timeout=30).status_code == 200)
    opener = functools.partial(CertificateAuthority.open, tmp_path / "ca", password=PASSWORD)
    opened = multiprocessing.Event()
    program._worker(opener, {"http_port": 0}, sockets, str(tmp_path), opened)
    teller.join()
    assert opened.is_set()
    assert os.environ[program.METRICS_FOLDER] == str(tmp_path)


def test_a_defect_is_not_told_to_the_wire(
    own_ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> object:
        raise RuntimeError("the secret of the CA")

    with started(own_ca) as running:
        monkeypatch.setattr(running.ca, "renewal_info", broken)
        response = running.ask("GET", "/renewal-info", credentials=running.ca.issue_credentials(AGENT))
    assert response.status_code == 500
    assert response.json() == {"error": "server_error", "request": response.headers["x-request-id"]}
    assert running.trail.of("renewal-info")[-1]["check"] == "server"
    assert "the secret of the CA" in caplog.text


def test_a_client_that_goes_away_in_its_body(service: Running) -> None:
    address = service.http_url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1]))) as connection:
        connection.sendall(b"POST /ocsp HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
    until(lambda: service.trail.records and service.trail.records[-1]["check"] == "pki.request.malformed")


def test_a_body_that_comes_too_slowly(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pki.service.answers.BODY_SECONDS", 0.2)
    answer = raw(service, b"POST /ocsp HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
    assert answer.split()[1] == b"408" and b"connection: close" in answer.lower()


def test_health_that_changes_is_logged(own_ca: CertificateAuthority, caplog: pytest.LogCaptureFixture) -> None:
    """A clock that was set back, and was set right."""
    clock = Clock()
    with started(own_ca, clock=clock) as running, caplog.at_level(logging.INFO, "a2a_pki.service"):
        clock.ahead = -timedelta(hours=1)
        for _ in range(2):
            running.serving.upkeep.round()
        assert ready(running)["clock"] is False
        clock.ahead = timedelta()
        running.serving.upkeep.round()
        assert ready(running)["clock"] is True
    said = [record.getMessage() for record in caplog.records if "health, clock" in record.getMessage()]
    # The service's own round may run at the very moment of ours, and say it as well.
    assert 2 <= len(said) <= 4 and said[0] != said[-1]


def health_count(program: Program) -> float:
    found = re.search(
        r'a2a_pki_request_seconds_count\{event="health",status="200"\} (\S+)', program.get("/metrics").text
    )
    return float(found[1]) if found else 0.0


def test_uvloop(own_ca: CertificateAuthority) -> None:
    import uvloop

    with started(own_ca, loop=uvloop.new_event_loop) as running:
        certificates(running.enrol(running.token()))
        assert all(ready(running).values())
