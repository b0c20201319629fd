"""The audit trail: one JSON object a line, only named facts, and no way to forge a line."""

from __future__ import annotations

import io
import json
import logging

import pytest

from tests.forge import NOW
from trust.audit import LOGGER, MAX_FACT_CHARACTERS, AuditLog


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
