"""The JavaScript SDK's client, which knows nothing of signatures, reads the events of a signed stream as they were."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.event_streams import frames

TIMEOUT_SECONDS = 60
STATUS = {"taskId": "t", "contextId": "c", "status": {"state": "TASK_STATE_WORKING"}}
TEXT = "Grüße\u2028data: {}\n\ndata: x"
EVENTS: list[dict[str, Any]] = [
    {"task": {"id": "t", "contextId": "c", "status": {"state": "TASK_STATE_SUBMITTED"}}},
    {"statusUpdate": {**STATUS, "metadata": {"a": 1}}},
    {"message": {"messageId": "m", "role": "ROLE_AGENT", "parts": [{"text": TEXT}]}},
]


@pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON"])
def test_the_events_are_what_they_were(binding: str, js: Path) -> None:
    rpc = binding == "JSONRPC"
    sent = [{"jsonrpc": "2.0", "id": 1, "result": item} if rpc else item for item in EVENTS]
    failed = {"jsonrpc": "2.0", "id": 1, "error": {"code": -32603, "message": "it failed"}}
    wire = frames(*(json.dumps(item, ensure_ascii=False) for item in (*sent, *[failed] * rpc)))
    wire.insert(2, b":\n\n")
    interface = {"url": "https://billing.example", "protocolBinding": binding, "protocolVersion": "1.0"}
    card = {"name": "billing", "capabilities": {"streaming": True}, "supportedInterfaces": [interface]}
    command = ["node", "stream.mjs", binding, json.dumps(card)]
    done = subprocess.run(
        command, input=b"".join(wire), cwd=js, capture_output=True, check=True, timeout=TIMEOUT_SECONDS
    )
    *got, last = [json.loads(line) for line in done.stdout.decode().rstrip("\n").split("\n")]
    if rpc:
        assert "it failed" in last["error"]
    else:
        got.append(last)
    assert [list(item) for item in got] == [list(item) for item in EVENTS]
    assert got[0]["task"]["status"]["state"] == "TASK_STATE_SUBMITTED"
    assert got[1]["statusUpdate"]["metadata"] == {"a": 1}
    assert got[2]["message"]["parts"][0]["text"] == TEXT
    assert b"urn:a2a-trust" not in done.stdout
