"""The trail of the service: written before the answer is given, and by nobody whom others wait for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.pki.service.parts import Running, certificates

LONG = 20.0


class Stuck:
    """A trail whose disk does not answer until it is released."""

    def __init__(self, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.released = threading.Event(), threading.Event()
        real = running.trail.record

        def record(**facts: Any) -> None:
            self.begun.set()
            assert self.released.wait(LONG)
            real(**facts)

        monkeypatch.setattr(running.trail, "record", record)


@pytest.fixture
def stuck(service: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stuck]:
    found = Stuck(service, monkeypatch)
    yield found
    found.released.set()


@pytest.mark.parametrize("good", [True, False], ids=["allowed", "refused"])
def test_a_trail_that_hangs_holds_up_nobody_else_and_no_answer_goes_out_before_it(
    good: bool, service: Running, stuck: Stuck
) -> None:
    token = service.token() if good else "a2ae_" + "0" * 24 + "_" + "0" * 64
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(service.enrol, token)
        assert stuck.begun.wait(LONG)
        assert service.get("/health").status_code == 200, "the event loop goes on"
        assert service.ask("GET", "/.well-known/est/cacerts").status_code == 200
        assert not asked.done()
        stuck.released.set()
        assert asked.result(LONG).status_code == (200 if good else 401)
    assert service.trail.of("enrol")[-1]["decision"] == ("allow" if good else "deny")


class Panic(BaseException):
    """What PyO3 raises where Rust panics is no `Exception`, either."""


@pytest.mark.parametrize("defect", [ZeroDivisionError, Panic])
def test_a_defect_is_an_answer_and_a_line(
    defect: type[BaseException], service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise defect("internal words")

    monkeypatch.setattr(service.ca, "ca_certificates", broken)
    answer = service.ask("GET", "/.well-known/est/cacerts")
    assert answer.status_code == 500
    assert answer.json() == {"error": "server_error", "request": answer.headers["x-request-id"]}
    line = service.trail.of("cacerts")[-1]
    assert (line["decision"], line["check"], line["reason"]) == ("deny", "server", "")


def test_what_comes_together_is_recorded_one_by_one(service: Running, stuck: Stuck) -> None:
    """All that waited while the trail hung is issued in one go, and each has its own line, under its own number."""
    before = len(service.trail.records)
    tokens = [service.token() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(service.enrol, token) for token in tokens]
        assert stuck.begun.wait(LONG)
        stuck.released.set()
        answers = [one.result(LONG) for one in asked]
    serials = {f"{certificates(answer)[0].serial_number:x}" for answer in answers}
    lines = service.trail.records[before:]
    assert {line["serial"] for line in lines} == serials
    assert {line["request"] for line in lines} == {answer.headers["x-request-id"] for answer in answers}
    assert len(lines) == len(serials) == len({line["request"] for line in lines}) == 8
