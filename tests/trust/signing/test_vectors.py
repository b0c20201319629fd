"""The shared vectors: made as they are committed, and each verified or refused here at the step that it names."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from tests import vectors
from trust import errors
from trust.authorize import unsafe_allow_any_peer
from trust.bundles import TrustBundles
from trust.identity import AgentID
from trust.peers import PeerVerifier
from trust.replay import MemoryReplayGuard
from trust.signing.http import verify_request, verify_response
from trust.signing.jws import decode

DOCUMENT: dict[str, Any] = json.loads(vectors.FILE.read_bytes())
NOW = datetime.fromtimestamp(DOCUMENT["now"], UTC)
VERIFIER = PeerVerifier(TrustBundles.from_json(json.dumps(DOCUMENT["bundles"])))


def verify(vector: dict[str, Any], replay: MemoryReplayGuard) -> AgentID:
    facts: dict[str, Any] = {
        "body": decode(vector["body"]),
        "verifier": VERIFIER,
        "peer": None,
        "now": NOW,
        "signers": unsafe_allow_any_peer(),
        "content_type": vector["cty"] or "",
        "algorithms": vector["algorithms"],
    }
    bound = vector["bound"]
    if vector["typ"] == "a2a-req+jws":
        message = verify_request(
            vector["jws"],
            method=bound.get("htm", "POST"),
            url=bound.get("htu", vectors.HTU),
            version=bound.get("ver", ""),
            extensions=bound.get("ext", []),
            audience=vector["audience"],
            replay=replay,
            **facts,
        )
    else:
        audience = AgentID.parse(vector["audience"])
        request = vectors.asked(vector)
        message = verify_response(vector["jws"], request=request, status=bound["st"], audience=audience, **facts)
    return message.signer.agent_id


def judged(many: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """By name, the error; empty for those that verify."""
    replay = MemoryReplayGuard(started_at=NOW - timedelta(hours=1))
    found = []
    for vector in many:
        try:
            verify(vector, replay)
            found.append((vector["name"], ""))
        except errors.TrustError as error:
            found.append((vector["name"], type(error).__name__))
    return found


def test_the_committed_vectors_are_what_the_command_writes() -> None:
    assert vectors.FILE.read_bytes() == vectors.make()


def test_each_is_verified_or_refused_by_the_error_that_it_names() -> None:
    expected = [(v["name"], v["refused"]["error"] if v["refused"] else "") for v in DOCUMENT["vectors"]]
    assert judged(DOCUMENT["vectors"]) == expected
    assert len({name for name, _ in expected}) == len(expected)


def test_every_step_has_its_vectors() -> None:
    steps = {vector["refused"]["step"] for vector in DOCUMENT["vectors"] if vector["refused"]}
    assert steps == set(range(10))
    assert sum(vector["refused"] is None for vector in DOCUMENT["vectors"]) == 14
