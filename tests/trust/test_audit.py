"""The audit trail: one JSON object a line, only named facts, and no way to forge a line."""

from __future__ import annotations

import io
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.forge import NOW
from trust.audit import LOGGER, MAX_FACT_CHARACTERS, MAX_WRITE, AuditLog, record_all


def _lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [json.loads(record.getMessage()) for record in caplog.records]


def test_a_decision_is_one_json_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    log = AuditLog(clock=lambda: NOW)
    log.record(event="request", decision="allow", check="all", peer="spiffe://a/b", subject="s", target="GET /", n=1)
    assert _lines(caplog) == [
        {
            "time": NOW.isoformat(timespec="milliseconds"),
            "event": "request",
            "decision": "allow",
            "check": "all",
            "peer": "spiffe://a/b",
            "subject": "s",
            "target": "GET /",
            "n": 1,
        }
    ]


def test_denials_are_warnings(caplog: pytest.LogCaptureFixture) -> None:
    AuditLog().record(event="request", decision="deny", check="replay")
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "peer" not in _lines(caplog)[0]


def test_allowances_are_silent_where_info_is_off(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, LOGGER)
    AuditLog().record(event="request", decision="allow", check="all")
    assert not caplog.records


def test_a_trail_on_a_stream_needs_no_configuration(caplog: pytest.LogCaptureFixture) -> None:
    stream = io.StringIO()
    AuditLog.to(stream).record(event="request", decision="allow", check="all")
    assert json.loads(stream.getvalue())["decision"] == "allow"
    assert not caplog.records


def test_hostile_facts_cannot_forge_or_flood(caplog: pytest.LogCaptureFixture) -> None:
    AuditLog().record(
        event="request", decision="deny", check="x", target='GET /\n{"decision":"allow"}', peer="p" * 9999
    )
    message = caplog.records[0].getMessage()
    assert "\n" not in message
    assert len(str(_lines(caplog)[0]["peer"])) == MAX_FACT_CHARACTERS + 3


def test_of_what_was_granted_nothing_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    scope = " ".join(f"read:ledger.n{n}" for n in range(100)) + " pay:all"
    with caplog.at_level("INFO", logger=LOGGER):
        AuditLog().record(event="token", decision="allow", check="all", scope=scope)
    assert _lines(caplog)[0]["scope"] == scope


def test_characters_that_json_writes_long_are_bounded_as_it_writes_them(caplog: pytest.LogCaptureFixture) -> None:
    AuditLog().record(event="token", decision="deny", check="x", reason="\U0001f600" * 9999)
    line = caplog.records[0].getMessage()
    assert len(line) < 2 * MAX_FACT_CHARACTERS
    assert str(_lines(caplog)[0]["reason"]).endswith("...")


DECISION = {"event": "enrol", "decision": "allow", "check": "all", "peer": "spiffe://a/b", "n": 1}


class Pipe(io.StringIO):
    """Remembers what reaches the system, and in how many goes."""

    def __init__(self) -> None:
        super().__init__()
        self.goes: list[str] = []

    def flush(self) -> None:
        self.goes.append(self.getvalue())
        self.seek(0)
        self.truncate()


def test_many_are_written_in_few_goes_and_no_line_is_torn() -> None:
    """What is longer than a pipe takes at once is mixed with what other processes write into it."""
    pipe = Pipe()
    decisions = [{**DECISION, "target": "x" * 240, "n": n} for n in range(100)]
    record_all(AuditLog.to(pipe), decisions)
    assert [json.loads(line)["n"] for go in pipe.goes for line in go.splitlines()] == list(range(100))
    assert all(go.endswith("\n") and len(go) <= MAX_WRITE for go in pipe.goes)
    assert 100 * 350 / MAX_WRITE <= len(pipe.goes) <= 12


def test_many_at_the_logger_are_records_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    record_all(AuditLog(clock=lambda: NOW), [DECISION, {**DECISION, "decision": "deny", "subject": ""}])
    assert [r.levelno for r in caplog.records] == [logging.INFO, logging.WARNING]
    assert _lines(caplog) == [
        {"time": NOW.isoformat(timespec="milliseconds"), **DECISION},
        {"time": NOW.isoformat(timespec="milliseconds"), **DECISION, "decision": "deny"},
    ]


def test_another_sink_gets_them_one_by_one() -> None:
    class Sink:
        def __init__(self) -> None:
            self.got: list[dict[str, Any]] = []

        def record(self, **facts: Any) -> None:
            self.got.append(facts)

    sink = Sink()
    record_all(sink, [DECISION, DECISION])
    assert sink.got == [DECISION, DECISION]


@pytest.mark.parametrize("fails", ["write", "flush"])
def test_what_the_stream_raises_is_raised(fails: str) -> None:
    class Full(io.StringIO):
        pass

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    stream = Full()
    setattr(stream, fails, full)
    for record in (
        lambda log: log.record(event="request", decision="allow", check="all"),
        lambda log: record_all(log, [DECISION]),
    ):
        with pytest.raises(OSError, match="No space"):
            record(AuditLog.to(stream))


def test_threads_do_not_mix_their_lines() -> None:
    pipe = Pipe()
    log = AuditLog.to(pipe)
    together = threading.Barrier(4)

    def many(thread: int) -> None:
        together.wait(20)
        for n in range(200):
            record_all(log, [{**DECISION, "thread": thread, "n": n}, {**DECISION, "thread": thread, "n": n}])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(many, range(4)))
    lines = [json.loads(line) for go in pipe.goes for line in go.splitlines()]
    assert len(lines) == 4 * 200 * 2
    assert len(pipe.goes) == 4 * 200
    assert all(len(go.splitlines()) == 2 for go in pipe.goes)
