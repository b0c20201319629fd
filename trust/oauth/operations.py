"""Which operation of A2A 1.0 a request is, and the scopes that it needs: by operation, and by skill.

A request is read as an A2A server reads it, by either binding: JSON-RPC names the operation in `method`, HTTP+JSON in
method and path. What is not exactly one of the operations below is refused, JSON-RPC batches and the methods of A2A 0.3
too. Its paths begin with `/v1`, which here is a tenant: what is asked for there needs the same scopes.

A2A 1.0 has no member for the skill that a message is meant for. Here it is `metadata.skillId` of the message, a string.
It is the caller's word: an agent that chooses among its skills by reading the text must not go by it. Hence:

- a message that names a skill needs the scope of that skill, beside the one of the operation;
- a message that names none needs the scopes of all skills;
- an agent that routes by `request.auth.operation.skill` does what was asked for and paid for; one that routes otherwise
  asks again where it does, `"report:write" in request.auth.scopes`.

Nothing here does IO.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from trust.errors import ConfigurationError, OperationMalformed, OperationUnknown, ScopeMalformed
from trust.json_text import NotStrictJson, parse
from trust.oauth.scopes import check_rules, parse_scope_list

SKILL_MEMBER = "skillId"

MAX_DEPTH = 128  # of a body; a message that is deeper is no message
MAX_SKILL_CHARACTERS = 256

_SENDING = ("SendMessage", "SendStreamingMessage")
_PUSH = "CreateTaskPushNotificationConfig"
# Inside of a message that is sent, in either of the spellings that ProtoJSON reads, and as A2A 0.3 has it.
_PUSH_MEMBERS = (
    "taskPushNotificationConfig",
    "task_push_notification_config",
    "pushNotification",
    "push_notification",
)

# HTTP method and path of each operation (A2A 1.0 section 11), in the order in which a path is looked up: an ID may hold
# a colon, so what ends in a verb comes first.
_ID = "[^/]+"
_ROUTES = tuple(
    (frozenset(methods.split()), re.compile(path), name)
    for methods, path, name in (
        ("POST", "/message:send", "SendMessage"),
        ("POST", "/message:stream", "SendStreamingMessage"),
        ("POST", f"/tasks/{_ID}:cancel", "CancelTask"),
        ("GET HEAD POST", f"/tasks/{_ID}:subscribe", "SubscribeToTask"),
        ("GET HEAD", f"/tasks/{_ID}", "GetTask"),
        ("GET HEAD", f"/tasks/{_ID}/pushNotificationConfigs/{_ID}", "GetTaskPushNotificationConfig"),
        ("DELETE", f"/tasks/{_ID}/pushNotificationConfigs/{_ID}", "DeleteTaskPushNotificationConfig"),
        ("POST", f"/tasks/{_ID}/pushNotificationConfigs", _PUSH),
        ("GET HEAD", f"/tasks/{_ID}/pushNotificationConfigs", "ListTaskPushNotificationConfigs"),
        ("GET HEAD", "/tasks", "ListTasks"),
        ("GET HEAD", "/extendedAgentCard", "GetExtendedAgentCard"),
    )
)
OPERATIONS = frozenset(name for _, _, name in _ROUTES)

# What every caller of an agent does: it sends a message, and follows the task that comes of it.
_FOLLOWING = ("GetTask", "SubscribeToTask", "CancelTask")


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What a request asks for."""

    name: str  # of A2A 1.0, such as "SendMessage"
    also: tuple[str, ...] = ()  # operations that come with it, or that a server could take the path for
    skill: str | None = None  # that the message names


@dataclass(frozen=True, slots=True, kw_only=True)
class SkillScopes:
    """The scope that each operation and each skill of an agent needs: for the `scope` of a `Gate`.

    A skill is looked for in the message's own metadata, `params.message.metadata.skillId`, and not in that of the
    request, `params.metadata`.

    Args:
        default: what every operation needs that `operations` does not have.
        operations: other scopes, by the operation's name in A2A 1.0, such as {"GetTask": "task:read"}.
        skills: the scope that a message for each skill needs besides, by the skill's `id` in the Agent Card.
        jsonrpc: the path of the JSON-RPC binding; None where it is not served.
        rest: the prefix of the HTTP+JSON binding's paths, "" for none; None where it is not served. A tenant may stand
            before it or behind it.

    A scope here may be several, space-delimited.

    Raises:
        ConfigurationError: a malformed scope or a time scope, an unknown operation, no binding, or a path that cannot
            be one.
    """

    default: str
    operations: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    skills: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    jsonrpc: str | None = None
    rest: str | None = None

    def __post_init__(self) -> None:
        if unknown := self.operations.keys() - OPERATIONS:
            raise ConfigurationError(
                "unknown operations", got=", ".join(sorted(unknown)), expected=", ".join(sorted(OPERATIONS))
            )
        if self.jsonrpc is None and self.rest is None:
            raise ConfigurationError("no binding", expected="the path of `jsonrpc`, the prefix of `rest`, or both")
        if self.jsonrpc is not None and not self.jsonrpc.startswith("/"):
            raise ConfigurationError("path of JSON-RPC", got=self.jsonrpc, expected='an absolute path, such as "/a2a"')
        if self.rest and (not self.rest.startswith("/") or self.rest.endswith("/")):
            raise ConfigurationError("prefix of HTTP+JSON", got=self.rest, expected='"", or such as "/a2a/rest"')
        name = "scopes of operations and skills"
        try:
            for scope in (self.default, *self.operations.values(), *self.skills.values()):
                if not (needed := parse_scope_list(scope)):
                    raise ScopeMalformed("scope", got=repr(scope), expected="at least one")
                check_rules(needed, name)
            parse_scope_list(self.calling())  # as many as a request can need
        except ScopeMalformed as error:
            raise ConfigurationError(f"{name}: {error}") from None

    def operation(self, *, method: str, path: str, body: bytes) -> Operation:
        """The operation that a request asks for.

        Args:
            path: decoded, as the application routes it.
            body: bounded by the caller.

        Raises:
            OperationUnknown: it is none of A2A 1.0, or for a skill that this agent does not have.
            OperationMalformed: its body is not strict JSON, or not a request or message by its shape.
        """
        if path == self.jsonrpc:
            name, params = _json_rpc(method, body)
            also: tuple[str, ...] = ()
        else:
            name, *others = self._by_path(method, path)
            also = tuple(others)
            params = _json(body) if name in _SENDING else {}
        if name not in _SENDING:
            return Operation(name=name, also=also)
        configuration = _object(params, "configuration")
        if any(member in configuration for member in _PUSH_MEMBERS):
            also = (*also, _PUSH)
        return Operation(name=name, also=also, skill=self._skill(params))

    def required(self, operation: Operation) -> str:
        """The scopes that an operation needs, space-delimited."""
        needed = [self.operations.get(name, self.default) for name in (operation.name, *operation.also)]
        if operation.name in _SENDING:
            needed += self.skills.values() if operation.skill is None else [self.skills[operation.skill]]
        return together(needed)

    def scopes(self) -> tuple[str, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys(" ".join((self.default, *self.operations.values(), *self.skills.values())).split()))

    def names_no_skill(self, operation: Operation) -> bool:
        """Whether it is a message that names none of the skills that there are, and so needs the scopes of all."""
        return bool(self.skills) and operation.name in _SENDING and operation.skill is None

    def acts(self, operation: Operation) -> list[tuple[str, str | None]]:
        """All that a request may come to, as operation and skill: for a policy that decides by them.

        A message that names no skill may be for any, and so is each of them, besides none.
        """
        skills = [operation.skill]
        if operation.name in _SENDING and operation.skill is None:
            skills += self.skills
        return [(name, skill) for name in (operation.name, *operation.also) for skill in skills]

    def calling(self, skill: str | None = None) -> str:
        """What a caller needs to send a message, for one skill or for any, and to follow the task that comes of it."""
        sending = (self.required(Operation(name=name, skill=skill)) for name in _SENDING)
        return together([*sending, *(self.required(Operation(name=name)) for name in _FOLLOWING)])

    def _by_path(self, method: str, path: str) -> list[str]:
        if "\n" in path:  # a pattern that ends in `$`, as Starlette's do, ends before a last line break, too
            raise OperationUnknown("path with a line break", got=f"{method} {path}", expected="none")
        # A server may take a path with a tenant or without. Where it could be two operations, both are meant.
        rests = [
            p[len(self.rest) :] for p in (path, _below(path)) if self.rest is not None and p.startswith(self.rest + "/")
        ]
        found = [_routed(method, p) for rest in rests for p in (rest, _below(rest))]
        names = list(dict.fromkeys(name for name in found if name))
        if not names:
            raise OperationUnknown(
                "request is no operation of A2A", got=f"{method} {path}", expected="one of A2A 1.0, at its path"
            )
        return names

    def _skill(self, params: Mapping[str, Any]) -> str | None:
        if "request" in params:  # to a server of A2A 0.3 another name for `message`: both could be there
            raise OperationMalformed("parameters of the request", got="request", expected="the members of A2A 1.0")
        skill = _object(_object(params, "message"), "metadata").get(SKILL_MEMBER)
        if skill is None or not self.skills:
            return None
        if not isinstance(skill, str) or len(skill) > MAX_SKILL_CHARACTERS:
            raise OperationMalformed(f"{SKILL_MEMBER} of the message", expected="the id of a skill, a string")
        if skill not in self.skills:
            raise OperationUnknown("message is for an unknown skill", got=skill, expected=", ".join(self.skills))
        return skill


def _below(path: str) -> str:
    """A path without its first segment."""
    return "".join("/" + segment for segment in path.split("/")[2:])


def _routed(method: str, path: str) -> str | None:
    return next((name for methods, route, name in _ROUTES if method in methods and route.fullmatch(path)), None)


def _json_rpc(method: str, body: bytes) -> tuple[str, Mapping[str, Any]]:
    """The operation and parameters of a JSON-RPC request."""
    if method != "POST":
        raise OperationUnknown("JSON-RPC request", got=method, expected="POST")
    request = _json(body)
    name = request.get("method")
    if request.get("jsonrpc") != "2.0" or not isinstance(name, str):
        raise OperationMalformed("JSON-RPC request", expected='"jsonrpc": "2.0" and a method')
    if name not in OPERATIONS:
        raise OperationUnknown("JSON-RPC method", got=name, expected="an operation of A2A 1.0")
    return name, _object(request, "params")


def _json(body: bytes) -> Mapping[str, Any]:
    # Strictly: a member that is there twice would be one operation to us, and another to the application.
    try:
        value = parse(body, max_bytes=len(body), max_depth=MAX_DEPTH)
    except NotStrictJson as error:
        raise OperationMalformed("body is not strict JSON", got=error, expected="JSON in UTF-8") from None
    if not isinstance(value, dict):
        raise OperationMalformed("body", got=type(value).__name__, expected="one object, no batch")
    return value


def _object(holder: Mapping[str, Any], member: str) -> Mapping[str, Any]:
    value = holder.get(member)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise OperationMalformed(f"{member} of the request", got=type(value).__name__, expected="an object")
    return value


def together(scopes: Iterable[str]) -> str:
    """Several lists of scopes as one, each scope once."""
    return " ".join(dict.fromkeys(one for text in scopes for one in text.split(" ")))
