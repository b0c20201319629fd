"""Which operation a request is, compared with a2a-sdk's own routing, and what it needs.

With a2a-sdk's server and client: tests/interop/test_a2a_scopes.py.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_rest_routes
from a2a.server.routes.jsonrpc_dispatcher import JsonRpcDispatcher
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import AgentCard
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Match, Mount, Route

from tests.world import BODY, World
from trust.errors import ConfigurationError, InsufficientScope, OperationMalformed, OperationUnknown, PolicyDenied
from trust.gate_policy import RequestFacts
from trust.oauth.operations import MAX_DEPTH, MAX_SKILL_CHARACTERS, OPERATIONS, Operation, SkillScopes
from trust.oauth.policy import CedarPolicy

SCOPES = SkillScopes(
    default="agent:execute",
    operations={"GetTask": "task:read", "ListTasks": "task:read", "CreateTaskPushNotificationConfig": "task:push"},
    skills={"bill": "bill:write", "pay": "pay:write bill:write"},
    jsonrpc="/rpc",
    rest="/rest",
)


def rpc(method: str = "SendMessage", /, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()


def message(**metadata: Any) -> dict[str, Any]:
    return {"message": {"role": "ROLE_USER", "messageId": "1", "parts": [{"text": "x"}], "metadata": metadata}}


def by_rpc(body: bytes) -> Operation:
    return SCOPES.operation(method="POST", path="/rpc", body=body)


def by_rest(method: str, path: str, body: bytes = b"") -> Operation:
    return SCOPES.operation(method=method, path=path, body=body)


# As the SDK has it


def test_the_operations_are_those_of_the_sdk() -> None:
    assert set(JsonRpcDispatcher.METHOD_TO_MODEL) == OPERATIONS


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_json_rpc_names_the_operation(name: str) -> None:
    assert by_rpc(rpc(name)) == Operation(name=name)


NAMES = {
    "on_message_send": "SendMessage",
    "on_message_send_stream": "SendStreamingMessage",
    "on_cancel_task": "CancelTask",
    "on_subscribe_to_task": "SubscribeToTask",
    "on_get_task": "GetTask",
    "get_push_notification": "GetTaskPushNotificationConfig",
    "delete_push_notification": "DeleteTaskPushNotificationConfig",
    "set_push_notification": "CreateTaskPushNotificationConfig",
    "list_push_notifications": "ListTaskPushNotificationConfigs",
    "list_tasks": "ListTasks",
    "handle_authenticated_agent_card": "GetExtendedAgentCard",
}
HANDLER = DefaultRequestHandler(agent_executor=None, task_store=InMemoryTaskStore(), agent_card=AgentCard())  # type: ignore[arg-type]
PREFIXES = {prefix: create_rest_routes(HANDLER, path_prefix=prefix) for prefix in ("", "/rest", "/tasks")}


def routed(routes: Any, scope: dict[str, Any]) -> str | None:
    """The operation that a server of the SDK takes a request for: that of the first route that matches."""
    for route in routes:
        match, child = route.matches(scope)
        if match is Match.FULL:
            if isinstance(route, Mount):
                return routed(route.routes, {**scope, **child})
            assert isinstance(route, Route)
            return NAMES[route.endpoint.__name__]
    return None


WORDS = """tasks message:send message:stream message x x:cancel x:subscribe x:y:cancel :cancel rest a.b
pushNotificationConfigs extendedAgentCard {c} .. %2F ü"""
words = st.sampled_from([*WORDS.split(), "", "\n", "tasks\n", "x:subscribe\n", "pushNotificationConfigs\n"])
templates = st.sampled_from(
    [route.path for routes in PREFIXES.values() for route in routes if isinstance(route, Route)]
)
paths = st.lists(words, min_size=1, max_size=6).map(lambda segments: "/" + "/".join(segments)) | st.builds(
    lambda template, word, tenant: tenant + template.replace("{id}", word).replace("{push_id}", word),
    templates,
    words,
    st.sampled_from(["", "/t", "/tasks", "/rest"]),
)
methods = st.sampled_from(["GET", "POST", "HEAD", "DELETE", "PUT", "get"])


@given(method=methods, path=paths, prefix=st.sampled_from(["", "/rest", "/tasks"]))
def test_whatever_the_sdk_takes_a_path_for_needs_its_scope(method: str, path: str, prefix: str) -> None:
    theirs = routed(PREFIXES[prefix], {"type": "http", "method": method, "path": path, "root_path": ""})
    try:
        ours = SkillScopes(default="a:b", rest=prefix).operation(method=method, path=path, body=b"{}")
    except OperationUnknown:
        # Starlette's patterns end before a last line break, too: nothing that a client could mean.
        assert theirs is None or "\n" in path
    else:
        assert theirs is None or theirs in (ours.name, *ours.also)


@pytest.mark.parametrize(
    ("method", "path", "name", "also"),
    [
        ("POST", "/message:send", "SendMessage", ()),
        ("POST", "/message:stream", "SendStreamingMessage", ()),
        ("GET", "/tasks", "ListTasks", ()),
        ("GET", "/tasks/1", "GetTask", ()),
        ("HEAD", "/tasks/1", "GetTask", ()),
        ("GET", "/tasks/1:cancel", "GetTask", ()),  # of the task "1:cancel"
        ("POST", "/tasks/1:cancel", "CancelTask", ()),
        ("GET", "/tasks/1:subscribe", "SubscribeToTask", ()),
        ("POST", "/tasks/1:subscribe", "SubscribeToTask", ()),
        ("POST", "/tasks/1/pushNotificationConfigs", "CreateTaskPushNotificationConfig", ()),
        ("GET", "/tasks/1/pushNotificationConfigs", "ListTaskPushNotificationConfigs", ()),
        ("GET", "/tasks/1/pushNotificationConfigs/2", "GetTaskPushNotificationConfig", ()),
        ("DELETE", "/tasks/1/pushNotificationConfigs/2", "DeleteTaskPushNotificationConfig", ()),
        ("GET", "/extendedAgentCard", "GetExtendedAgentCard", ()),
    ],
)
@pytest.mark.parametrize("tenant", ["{0}{1}", "/t{0}{1}", "{0}/t{1}"], ids=["no tenant", "before", "behind"])
def test_rest_says_the_operation_by_method_and_path(
    method: str, path: str, name: str, also: tuple[str, ...], tenant: str
) -> None:
    found = by_rest(method, tenant.format("/rest", path), b"{}")
    assert (found.name, found.also) == (name, also)


# What it needs

SENT: dict[str, tuple[dict[str, Any], str]] = {
    "no skill": (message(), "agent:execute bill:write pay:write"),
    "no metadata": ({"message": {}}, "agent:execute bill:write pay:write"),
    "no message": ({}, "agent:execute bill:write pay:write"),
    "null": (message(skillId=None), "agent:execute bill:write pay:write"),
    "one skill": (message(skillId="bill"), "agent:execute bill:write"),
    "another": (message(skillId="pay"), "agent:execute pay:write bill:write"),
    "a skill of the request": ({**message(), "metadata": {"skillId": "bill"}}, "agent:execute bill:write pay:write"),
    "with a webhook": (
        {**message(skillId="bill"), "configuration": {"taskPushNotificationConfig": {"url": "https://x.example"}}},
        "agent:execute task:push bill:write",
    ),
    "with a webhook, spelt as in protobuf": (
        {**message(skillId="bill"), "configuration": {"task_push_notification_config": {}}},
        "agent:execute task:push bill:write",
    ),
    "with a webhook, as 0.3 has it": (
        {**message(skillId="bill"), "configuration": {"pushNotification": {"url": "https://x.example"}}},
        "agent:execute task:push bill:write",
    ),
    "with another configuration": (
        {**message(skillId="bill"), "configuration": {"historyLength": 3}},
        "agent:execute bill:write",
    ),
}


@pytest.mark.parametrize("name", SENT)
@pytest.mark.parametrize("streaming", [False, True], ids=["at once", "streaming"])
def test_both_bindings_need_the_same(name: str, streaming: bool) -> None:
    params, needed = SENT[name]
    one = by_rpc(rpc("SendStreamingMessage" if streaming else "SendMessage", **params))
    other = by_rest("POST", "/rest/message:stream" if streaming else "/rest/message:send", json.dumps(params).encode())
    assert one == other
    assert SCOPES.required(one) == needed


@pytest.mark.parametrize(
    ("name", "needed"),
    [("GetTask", "task:read"), ("CancelTask", "agent:execute"), ("SubscribeToTask", "agent:execute")],
)
def test_other_operations_need_no_skill(name: str, needed: str) -> None:
    assert SCOPES.required(by_rpc(rpc(name, **message(skillId=7)))) == needed


def test_a_path_that_could_be_two_operations_needs_both() -> None:
    scopes = SkillScopes(default="agent:execute", operations={"ListTasks": "task:list"}, rest="")
    assert scopes.required(scopes.operation(method="GET", path="/tasks/tasks", body=b"")) == "agent:execute task:list"


def test_without_skills_a_message_may_name_any() -> None:
    scopes = SkillScopes(default="agent:execute", jsonrpc="/rpc")
    for skill in ("bill", 7, None):
        operation = scopes.operation(method="POST", path="/rpc", body=rpc(**message(skillId=skill)))
        assert (scopes.required(operation), operation.skill) == ("agent:execute", None)


def test_what_every_caller_needs() -> None:
    assert SCOPES.calling() == "agent:execute bill:write pay:write task:read"
    assert SCOPES.calling("bill") == "agent:execute bill:write task:read"


# What is refused

DEEP = b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH
ONE = rpc(**message(skillId="bill"))

ATTACKS: dict[str, tuple[str, str, bytes, type[Exception]]] = {
    "another path": ("POST", "/other", ONE, OperationUnknown),
    "the path of JSON-RPC with a slash": ("POST", "/rpc/", ONE, OperationUnknown),
    "the path of JSON-RPC in capitals": ("POST", "/RPC", ONE, OperationUnknown),
    "JSON-RPC by GET": ("GET", "/rpc", ONE, OperationUnknown),
    "JSON-RPC by PUT": ("PUT", "/rpc", ONE, OperationUnknown),
    "an unknown method": ("POST", "/rpc", rpc("DeleteEverything"), OperationUnknown),
    "a method of 0.3": ("POST", "/rpc", rpc("message/send"), OperationUnknown),
    "a method in other letters": ("POST", "/rpc", rpc("sendMessage"), OperationUnknown),
    "a method with a space": ("POST", "/rpc", rpc("SendMessage "), OperationUnknown),
    "an empty method": ("POST", "/rpc", rpc(""), OperationUnknown),
    "no method": ("POST", "/rpc", b'{"jsonrpc":"2.0","id":1}', OperationMalformed),
    "a method that is a list": ("POST", "/rpc", b'{"jsonrpc":"2.0","method":["GetTask"]}', OperationMalformed),
    "a method twice": ("POST", "/rpc", ONE[:-1] + b',"method":"GetTask"}', OperationMalformed),
    "a skill twice": ("POST", "/rpc", ONE.replace(b'"bill"', b'"bill","skillId":"pay"'), OperationMalformed),
    "a message twice": ("POST", "/rpc", ONE[:-2] + b',"message":{}}}', OperationMalformed),
    "a message twice, by another name in 0.3": (
        "POST",
        "/rest/v1/message:send",
        json.dumps({**message(skillId="bill"), "request": {}}).encode(),
        OperationMalformed,
    ),
    "a batch": ("POST", "/rpc", b"[" + ONE + b"]", OperationMalformed),
    "an empty batch": ("POST", "/rpc", b"[]", OperationMalformed),
    "no version": ("POST", "/rpc", b'{"id":1,"method":"SendMessage"}', OperationMalformed),
    "another version": ("POST", "/rpc", ONE.replace(b'"2.0"', b'"1.0"'), OperationMalformed),
    "no body": ("POST", "/rpc", b"", OperationMalformed),
    "not JSON": ("POST", "/rpc", b"SendMessage", OperationMalformed),
    "UTF-16, which the application would read": ("POST", "/rpc", ONE.decode().encode("utf-16"), OperationMalformed),
    "a byte order mark": ("POST", "/rpc", b"\xef\xbb\xbf" + ONE, OperationMalformed),
    "NaN": ("POST", "/rpc", ONE.replace(b'"id": 1', b'"id": NaN'), OperationMalformed),
    "more after the end": ("POST", "/rpc", ONE + b"{}", OperationMalformed),
    "too deep": ("POST", "/rpc", b'{"a":' + DEEP + b"}", OperationMalformed),
    "parameters in a list": ("POST", "/rpc", ONE.replace(b'"params": {', b'"params": [{') + b"]", OperationMalformed),
    "a message that is a text": ("POST", "/rpc", rpc(message="x"), OperationMalformed),
    "metadata that is a list": ("POST", "/rpc", rpc(message={"metadata": []}), OperationMalformed),
    "a configuration that is a text": (
        "POST",
        "/rpc",
        rpc(**message(skillId="bill"), configuration="x"),
        OperationMalformed,
    ),
    "an unknown skill": ("POST", "/rpc", rpc(**message(skillId="admin")), OperationUnknown),
    "a skill in capitals": ("POST", "/rpc", rpc(**message(skillId="Bill")), OperationUnknown),
    "an empty skill": ("POST", "/rpc", rpc(**message(skillId="")), OperationUnknown),
    "a skill that is a number": ("POST", "/rpc", rpc(**message(skillId=1)), OperationMalformed),
    "skills in a list": ("POST", "/rpc", rpc(**message(skillId=["bill"])), OperationMalformed),
    "a skill that is false": ("POST", "/rpc", rpc(**message(skillId=False)), OperationMalformed),
    "a long skill": ("POST", "/rpc", rpc(**message(skillId="b" * (MAX_SKILL_CHARACTERS + 1))), OperationMalformed),
    "REST: no body": ("POST", "/rest/message:send", b"", OperationMalformed),
    "REST: a batch": ("POST", "/rest/message:send", b"[{}]", OperationMalformed),
    "REST: an unknown skill": (
        "POST",
        "/rest/message:send",
        json.dumps(message(skillId="x")).encode(),
        OperationUnknown,
    ),
    "REST: by GET": ("GET", "/rest/message:send", b"{}", OperationUnknown),
    "REST: by PUT": ("PUT", "/rest/message:send", b"{}", OperationUnknown),
    "REST: in lower case": ("post", "/rest/message:send", b"{}", OperationUnknown),
    "REST: without the prefix": ("POST", "/message:send", b"{}", OperationUnknown),
    "REST: with another prefix": ("POST", "/restx/message:send", b"{}", OperationUnknown),
    "REST: a path that begins as the prefix": ("GET", "/restricted/x/tasks/1", b"", OperationUnknown),
    "REST: two tenants": ("POST", "/a/b/rest/message:send", b"{}", OperationUnknown),
    "REST: an unknown verb": ("POST", "/rest/tasks/1:delete", b"{}", OperationUnknown),
    "REST: a slash more": ("GET", "/rest//tasks/", b"", OperationUnknown),
    "REST: the prefix alone": ("GET", "/rest", b"", OperationUnknown),
    "REST: nothing": ("GET", "", b"", OperationUnknown),
    "REST: a line break": ("GET", "/rest/tasks\n", b"", OperationUnknown),
    "REST: a line break behind a verb": ("GET", "/rest/tasks/1:subscribe\n", b"", OperationUnknown),
    "REST: a line break behind a path that could be two": (
        "GET",
        "/rest/tasks/tasks/pushNotificationConfigs\n",
        b"",
        OperationUnknown,
    ),
    "REST: of 0.3": ("POST", "/rest/v1/message:send/x", b"{}", OperationUnknown),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_no_operation_is_refused(attack: str) -> None:
    method, path, body, expected = ATTACKS[attack]
    with pytest.raises((OperationMalformed, OperationUnknown)) as caught:
        SCOPES.operation(method=method, path=path, body=body)
    assert type(caught.value) is expected and "\n" not in str(caught.value)


def test_a_binding_that_is_not_served_is_refused() -> None:
    with pytest.raises(OperationUnknown):
        SkillScopes(default="a:b", rest="").operation(method="POST", path="/rpc", body=ONE)
    with pytest.raises(OperationUnknown):
        SkillScopes(default="a:b", jsonrpc="/rpc").operation(method="POST", path="/message:send", body=b"{}")


@pytest.mark.parametrize(
    "changes",
    [
        {"default": ""},
        {"default": "agent"},
        {"default": "temporal:office"},
        {"default": "a:b temporal:30min"},
        {"operations": {"GetTask": "temporal:office"}},
        {"skills": {"bill": "temporal:office"}},
        {"operations": {"Send": "a:b"}},
        {"operations": {"GetTask": ""}},
        {"skills": {"bill": "bill"}},
        {"skills": {"bill": ""}},
        {"skills": {f"s{n}": f"s:{n}" for n in range(128)}},
        {"jsonrpc": None},
        {"jsonrpc": "rpc"},
        {"jsonrpc": ""},
        {"rest": "rest"},
        {"rest": "/"},
        {"rest": "/rest/"},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_scopes_that_cannot_be_meant(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        SkillScopes(**{"default": "a:b", "jsonrpc": "/rpc", **changes})
    assert type(caught.value) is ConfigurationError


# At the gate

W = World()


def test_the_gate_tells_the_application_what_it_compared() -> None:
    scopes = SkillScopes(default="agent:execute", skills={"bill": "bill:write"}, jsonrpc="/a2a/jsonrpc")
    with pytest.raises(InsufficientScope) as caught:
        W.admit(W.request(), scope=scopes)
    assert caught.value.required == "agent:execute bill:write"
    assert "what a message without skillId in its metadata needs" in str(caught.value)
    admission = W.admit(W.request(token=W.token(scope="agent:execute bill:*")), scope=scopes)
    assert admission.operation == Operation(name="SendMessage")
    assert W.admit(W.request()).operation is None
    assert b"SendMessage" in BODY


PERMIT = "permit (principal, action, resource);"
SENT_TO_THE_POLICY = {
    "a webhook in a message": (
        'forbid (principal, action == Action::"CreateTaskPushNotificationConfig", resource);',
        {**message(skillId="bill"), "configuration": {"taskPushNotificationConfig": {"url": "https://x.example"}}},
    ),
    "a message for any skill": (
        'forbid (principal, action, resource) when { context has skill && context.skill == "pay" };',
        message(),
    ),
    "a message for no skill that is permitted": (
        "forbid (principal, action, resource) unless { context has skill };",
        message(),
    ),
}


@pytest.mark.parametrize("name", SENT_TO_THE_POLICY)
def test_the_policy_is_asked_about_all_that_a_request_may_come_to(name: str) -> None:
    policy, params = SENT_TO_THE_POLICY[name]
    scopes = dataclasses.replace(SCOPES, jsonrpc="/a2a/jsonrpc")

    def request(body: bytes) -> RequestFacts:
        return W.request(
            body=body, signature=W.signature(body=body), token=W.token(scope="agent:* bill:* pay:* task:*")
        )

    with pytest.raises(PolicyDenied) as caught:
        W.admit(request(rpc(**params)), scope=scopes, permit=CedarPolicy(PERMIT + policy))
    assert type(caught.value) is PolicyDenied
    allowed = request(rpc(**message(skillId="bill")))
    assert W.admit(allowed, scope=scopes, permit=CedarPolicy(PERMIT + policy)).operation is not None
