"""What scopes cannot say: a policy that is asked after them, by a `Gate` and by the authorization server.

It takes away and never gives: it is asked only about what the scopes allow, and everything but a clear yes is a no.
`CedarPolicy` is one in the language Cedar (the extra `cedar`); any object with its one method `check` will do.

    permit (principal in Domain::"fleet.example", action, resource);
    forbid (principal, action == Action::"SendMessage", resource)
    when { context has skill && context.skill == "pay" && context.now.toTime() > duration("18h") };

The caller is `Agent::"<SPIFFE ID>"`, with the attribute `path`, in `Domain::"<trust domain>"`; the receiver is
`Resource::"<audience>"`. The action is the operation of A2A where the gate's scope is a `SkillScopes`, and `Request`
where it is not; at the authorization server it is `IssueToken` or `ExchangeToken`. `SCHEMA` has the context. Where a
relay forwards a request to a gate, it is asked about each: the relay, the holder of the token, and who signed.

A gate asks about all that a request may come to, and all of it must be allowed: a message with a webhook is
`CreateTaskPushNotificationConfig`, too, and one that names no skill may be for any of them.

Cedar's `has` takes any word: `context has skil` is never true, and nobody says so. Try a `forbid` before relying on it.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from trust.clock import utc
from trust.credentials import read_bounded
from trust.errors import ConfigurationError, PolicyDenied, must_be
from trust.identity import AgentID
from trust.oauth.operations import OPERATIONS

ISSUE, EXCHANGE, REQUEST = "IssueToken", "ExchangeToken", "Request"

MAX_POLICY_BYTES = 256 << 10  # a thousand policies; each of them is looked at in each decision
MAX_ERROR_CHARACTERS = 200  # of what Cedar says about a policy

logger = logging.getLogger("a2a_trust")

SCHEMA = f"""
entity Domain;
entity Agent in [Domain] {{ path: String }};
entity Resource;
type Circumstances = {{
  scopes: Set<String>,
  subject: String,
  client: String,
  actors: Set<String>,
  now: datetime,
  skill?: String,
  path?: String,
}};
action {", ".join((ISSUE, EXCHANGE, REQUEST, *sorted(OPERATIONS)))}
  appliesTo {{ principal: Agent, resource: Resource, context: Circumstances }};
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """May this agent do this to that, under these circumstances? Everything in it is verified.

    Args:
        scopes: what the token grants, or will grant.
        subject, client, actors: on whose behalf: `sub`, `client_id` and the chain of `act`, the current actor first.
        skill, path: at a gate, of the request; each skill in turn for a message that names none.
    """

    agent: AgentID
    action: str
    resource: str
    scopes: tuple[str, ...]
    subject: str
    client: str
    actors: tuple[str, ...]
    now: datetime
    skill: str | None = None
    path: str | None = None


class Permit(Protocol):
    """A policy. It must not wait: it is asked at every request, in the event loop."""

    def check(self, question: Question) -> None:
        """Return if it is allowed.

        Raises:
            PolicyDenied: it is not.
        """


def ask(permit: Permit | None, question: Question) -> None:
    """Ask a policy, where there is one; one that fails denies.

    Raises:
        PolicyDenied: it does not allow it, or failed.
    """
    try:
        if permit is not None:
            permit.check(question)
    except PolicyDenied:
        raise
    except Exception:
        logger.exception("policy failed")
        raise PolicyDenied("policy failed", do="see the log of this process") from None


class CedarPolicy:
    """Policies in the language Cedar, checked against `SCHEMA` when they are read.

    Raises:
        ConfigurationError: they are not policies, do not fit the schema, are none, or are too large; or the extra
            `cedar` is not installed.
    """

    def __init__(self, text: str) -> None:
        must_be("Cedar policies", text, str, expected="their text", do="read a file with CedarPolicy.load(path)")
        try:
            import cedarpy  # the extra `cedar`, which most agents do without
        except ImportError:
            raise ConfigurationError("Cedar is not installed", do="pip install 'a2a-trust[cedar]'") from None
        if len(text.encode()) > MAX_POLICY_BYTES:
            raise ConfigurationError("Cedar policies are too large", expected=f"at most {MAX_POLICY_BYTES} bytes")
        found = cedarpy.validate_policies(text, SCHEMA)
        if not found:
            first = str(found.errors[0])[:MAX_ERROR_CHARACTERS] if found.errors else "no reason given"
            raise ConfigurationError(
                "Cedar policies", got=first, expected="policies of the schema in trust.oauth.policy"
            )
        self._cedar = cedarpy
        self._policies = cedarpy.PolicySet.from_str(text)
        if self._policies.templates():  # a `forbid` that is one would never forbid anything
            raise ConfigurationError(
                "Cedar policies", got="a template", expected="policies without ?principal, ?resource"
            )
        if not len(self._policies):  # that would refuse everything, silently
            raise ConfigurationError("Cedar policies", got="none", expected="at least one, `permit` among them")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CedarPolicy:
        """Read a file of policies.

        Raises:
            ConfigurationError: (or its CredentialsError) unreadable, or as for the class.
        """
        try:
            text = read_bounded(Path(path), MAX_POLICY_BYTES).decode()
        except UnicodeDecodeError:
            raise ConfigurationError(f"{path} is not UTF-8", expected="Cedar policies") from None
        try:
            return cls(text)
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from None

    def check(self, question: Question) -> None:
        """As `Permit`. A policy that fails for this question denies: Cedar would leave it out, a `forbid` too."""
        agent = {"type": "Agent", "id": str(question.agent)}
        domain = {"type": "Domain", "id": question.agent.trust_domain}
        answer = self._cedar.is_authorized(
            {
                "principal": agent,
                "action": {"type": "Action", "id": question.action},
                "resource": {"type": "Resource", "id": question.resource},
                "context": _context(question),
            },
            self._policies,
            [
                {"uid": agent, "attrs": {"path": question.agent.path}, "parents": [domain]},
                {"uid": domain, "attrs": {}, "parents": []},
            ],
        )
        if answer.diagnostics.errors or not answer.allowed:
            names = answer.diagnostics.id_annotations_by_reason
            reasons = [names.get(reason, reason) for reason in answer.diagnostics.reasons]
            raise PolicyDenied(
                f"policy does not allow {question.action}",
                got="; ".join(answer.diagnostics.errors)[:MAX_ERROR_CHARACTERS] or ", ".join(reasons) or "no permit",
                expected="a policy that permits it, and none that forbids it or fails",
            )


def _context(question: Question) -> dict[str, Any]:
    now = utc(question.now).strftime("%Y-%m-%dT%H:%M:%SZ")
    context: dict[str, Any] = {
        "scopes": list(question.scopes),
        "subject": question.subject,
        "client": question.client,
        "actors": list(question.actors),
        "now": {"__extn": {"fn": "datetime", "arg": now}},
    }
    optional = {"skill": question.skill, "path": question.path}
    return {**context, **{name: value for name, value in optional.items() if value is not None}}
