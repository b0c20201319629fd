"""Messages signed inside JSON: they keep their signatures through SDKs and relays, each of which can be verified."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from a2a.types import a2a_pb2
from google.protobuf.json_format import MessageToDict, ParseDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.a2a_objects import EXAMPLES, MESSAGE, OBJECTS
from tests.forge import HOUR, NOW, Forge
from tests.trust.signing.test_proto_json import through_the_sdk
from trust.authorize import exactly, members_of
from trust.errors import (
    CanonicalizationError,
    ConfigurationError,
    MessageNotPortable,
    Replayed,
    SignatureMalformed,
    SignatureWrong,
)
from trust.peers import PeerVerifier
from trust.replay import MemoryReplayGuard
from trust.signing.http import new_message_id
from trust.signing.messages import (
    EXTENSION,
    MAX_CONTAINERS,
    MAX_SIGNATURES,
    MAX_VALUES,
    authenticate_message,
    sign_message,
    verify_message,
)
from trust.signing.proto_json import KINDS, Kind, canonical_form

FORGE = Forge()
PLANNER = FORGE.leaf("/planner")
RELAY = FORGE.leaf("/relay")
BILLING = FORGE.leaf("/billing")
VERIFIER = PeerVerifier(FORGE.bundles)


def sign(message: Any, kind: Kind = "Message", **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "credentials": PLANNER,
        "audience": BILLING.agent_id,
        "now": NOW,
        "jti": new_message_id(),
        **changes,
    }
    return sign_message(message, kind, **settings)


def verify(message: Any, kind: Kind = "Message", **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "audience": BILLING.agent_id,
        "verifier": VERIFIER,
        "now": NOW,
        "signers": exactly(PLANNER.agent_id),
        **changes,
    }
    return authenticate_message(message, kind, **settings)


def rewritten(message: Any) -> bytes:
    """The same JSON, as another program may write it."""
    text = json.dumps(dict(reversed(message.items())), indent=1, ensure_ascii=True)
    return text.replace(": 5,", ": 5.0e0,").encode()


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_survives_the_sdk_and_other_writers(kind: Kind) -> None:
    signed = sign(EXAMPLES[kind], kind)
    for received in (signed, json.dumps(signed).encode(), through_the_sdk(kind, signed), rewritten(signed)):
        verified = verify(received, kind)
        assert verified.signer.agent_id == PLANNER.agent_id
        assert verified.payload == canonical_form(kind, EXAMPLES[kind])
        assert verified.header["a2a"]["kind"] == kind
    assert sign(signed, kind)["metadata"][EXTENSION]["signatures"][0] == signed["metadata"][EXTENSION]["signatures"][0]


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(st.sampled_from(KINDS).flatmap(lambda kind: st.tuples(st.just(kind), OBJECTS[kind])))
def test_whatever_can_be_signed_survives(drawn: tuple[Kind, Any]) -> None:
    kind, value = drawn
    signed = sign(value, kind)
    assert verify(through_the_sdk(kind, through_the_sdk(kind, signed)), kind).payload == canonical_form(kind, value)
    assert verify(rewritten(signed), kind).payload == canonical_form(kind, value)


def test_what_is_signed_is_in_the_form() -> None:
    """What is sent on is what was signed, and it is what every SDK sends on."""
    signed = sign(MESSAGE)
    signatures = signed["metadata"].pop(EXTENSION)
    assert json.dumps(signed, sort_keys=True) == json.dumps(json.loads(canonical_form("Message", MESSAGE)))
    assert set(signatures) == {"signatures"}
    assert [set(entry) for entry in signatures["signatures"]] == [{"protected", "signature"}]
    assert EXTENSION not in MESSAGE["metadata"]  # the caller's object is its own


def test_brackets_and_commas_in_text_are_no_values() -> None:
    message = {"messageId": "m", "parts": [{"text": '\\"[{,,\\\\' * MAX_CONTAINERS}]}
    assert json.loads(verify(json.dumps(sign(message)).encode()).payload) == message


def test_a_message_without_metadata_has_none_but_the_signature() -> None:
    signed = sign({"messageId": "m"})
    assert set(signed["metadata"]) == {EXTENSION}
    assert verify(signed).payload == b'{"messageId":"m"}'
    assert verify(sign(b'{"messageId":"m","metadata":{}}')).payload == b'{"messageId":"m"}'


def test_objects_of_the_sdk() -> None:
    message = a2a_pb2.Message(message_id="m", role=a2a_pb2.ROLE_USER, parts=[a2a_pb2.Part(text="hello")])
    message.metadata.update({"amount": 5})
    signed = ParseDict(sign(MessageToDict(message)), a2a_pb2.Message())
    assert json.loads(verify(MessageToDict(signed)).payload)["metadata"] == {"amount": 5}


def test_a_message_is_received_once() -> None:
    guard = MemoryReplayGuard(started_at=NOW - HOUR)
    arguments: dict[str, Any] = {
        "audience": BILLING.agent_id,
        "verifier": VERIFIER,
        "now": NOW,
        "signers": exactly(PLANNER.agent_id),
        "replay": guard,
    }
    signed = sign(MESSAGE)
    with pytest.raises(SignatureWrong):
        verify_message({**signed, "messageId": "m-2"}, "Message", **arguments)
    assert len(guard) == 0  # a forgery does not use up the identifier
    assert verify_message(signed, "Message", **arguments).message_id
    with pytest.raises(Replayed):
        verify_message(rewritten(signed), "Message", **arguments)


def test_a_relay_signs_beside_the_author() -> None:
    """Author -> relay -> relay -> receiver: each signature names the one that it passes on."""
    signed = sign(MESSAGE)
    author = verify(signed)
    once = sign(through_the_sdk("Message", signed), credentials=RELAY, relaying=author)
    relay = verify(once, signers=exactly(RELAY.agent_id), relayed=author)
    assert relay.header["a2a"]["rel"] == {"jti": author.message_id, "s256": author.digest}
    twice = sign(once, credentials=BILLING, relaying=relay)
    received = through_the_sdk("Message", twice)
    everybody = members_of("fleet.example")  # roles are told apart even where everybody may have any
    assert verify(received, signers=everybody).signer.agent_id == PLANNER.agent_id
    assert verify(received, signers=everybody, relayed=author).signer.agent_id == RELAY.agent_id
    assert verify(received, signers=everybody, relayed=relay).signer.agent_id == BILLING.agent_id
    assert len({verify(received, signers=everybody).payload, author.payload, relay.payload}) == 1


def test_two_authors_and_two_receivers() -> None:
    """Four eyes, and one message for several: each receiver finds the signature that is meant for it."""
    signed = sign(sign(sign(MESSAGE), audience=RELAY.agent_id), credentials=RELAY)
    assert verify(signed).signer.agent_id == PLANNER.agent_id
    assert verify(signed, signers=exactly(RELAY.agent_id)).signer.agent_id == RELAY.agent_id
    assert verify(signed, audience=RELAY.agent_id).audience == str(RELAY.agent_id)


def test_a_signature_of_another_version_does_not_disturb() -> None:
    signed = sign(MESSAGE)
    entries = signed["metadata"][EXTENSION]["signatures"]
    entries.insert(0, {"protected": "eyJhbGciOiJNTC1EU0EtNDQifQ", "signature": "AA"})
    assert verify(signed).signer.agent_id == PLANNER.agent_id


def test_objects_inside_are_verified_by_themselves() -> None:
    message = sign(MESSAGE)
    task = {"id": "t", "status": {"state": "TASK_STATE_WORKING"}, "history": [message]}
    signed = through_the_sdk("Task", sign(task, "Task", credentials=BILLING, audience=PLANNER.agent_id))
    assert verify(signed, "Task", audience=PLANNER.agent_id, signers=exactly(BILLING.agent_id))
    assert verify(signed["history"][0]).payload == canonical_form("Message", MESSAGE)
    del signed["history"][0]["metadata"][EXTENSION]  # covered as it stands
    with pytest.raises(SignatureWrong):
        verify(signed, "Task", audience=PLANNER.agent_id, signers=exactly(BILLING.agent_id))


def full() -> dict[str, Any]:
    signed = sign(MESSAGE)
    entries = signed["metadata"][EXTENSION]["signatures"]
    entries *= MAX_SIGNATURES
    return signed


@pytest.mark.parametrize(
    ("message", "changes", "error"),
    [
        ({"messageId": "m", "priority": 1}, {}, MessageNotPortable),
        ([], {}, MessageNotPortable),
        (b'{"messageId":"a","messageId":"b"}', {}, CanonicalizationError),
        (b'{"metadata":{"a":NaN}}', {}, CanonicalizationError),
        (b'{"metadata":{"a":9007199254740993}}', {}, CanonicalizationError),
        ({"metadata": {"a": 2**53}}, {}, CanonicalizationError),
        ({"metadata": {"a": float("nan")}}, {}, CanonicalizationError),
        ({"metadata": {"a": [[]] * MAX_CONTAINERS}}, {}, CanonicalizationError),
        ({"metadata": {"a": [1] * MAX_VALUES}}, {}, CanonicalizationError),
        ({"metadata": {"a": NOW}}, {}, CanonicalizationError),
        ({"metadata": {1: "a"}}, {}, CanonicalizationError),
        ({"messageId": "\ud800"}, {}, CanonicalizationError),
        ({"metadata": {EXTENSION: []}}, {}, SignatureMalformed),
        (MESSAGE, {"kind": "Part"}, ConfigurationError),
        (MESSAGE, {"lifetime": timedelta(seconds=301)}, ConfigurationError),
        (MESSAGE, {"jti": "short"}, ConfigurationError),
        (full(), {}, ConfigurationError),
    ],
)
def test_what_cannot_be_signed(message: Any, changes: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        sign(message, **changes)
    assert type(caught.value) is error


def test_a_relay_passes_on_only_what_it_verified() -> None:
    signed = sign(MESSAGE)
    author = verify(signed)
    for other in ({**signed, "messageId": "m-2"}, sign(MESSAGE), MESSAGE):
        with pytest.raises(ConfigurationError):
            sign(other, credentials=RELAY, relaying=author)
