"""What an authorization server declares for all of its clients: in their TOML file; those of the start hold.

    policy = "tokens.cedar"                             # beside this file: asked before a token is issued

    [includes]                                          # the hierarchy of scopes
    "agent:admin" = ["agent:execute", "agent:read"]

    [[calendar]]                                        # the hours of a time scope: `trust.oauth.calendars`
    name = "business-hours"
    ...

    [approval]                                          # what a person approves each time: `approvals`
    scopes = ["approve:**", "execute:payment.*"]
    lifetime_seconds = 900                              # how long a request waits for that person

The receivers of tokens decide by their own catalogue and calendars: they are to be given the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from trust.errors import ConfigurationError, ScopeMalformed
from trust.oauth.calendars import Calendar, calendars_of
from trust.oauth.policy import CedarPolicy, Permit
from trust.oauth.scopes import Catalogue
from trust.oauth.server.approvals import DECISION_TIME, MAX_DECISION_TIME, ApprovalRules

RULES = ("policy", "includes", "calendar", "approval")  # the members of the file that are read here
MAX_INCLUDES = 256  # entries of a hierarchy that somebody can still oversee


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What holds for all clients."""

    catalogue: Catalogue
    calendars: Mapping[str, Calendar]
    permit: Permit | None
    approvals: ApprovalRules | None


def rules_of(document: Mapping[str, object], path: Path) -> Rules:
    """What the parsed file of the clients declares for all of them. Not checked: its members beside `RULES`.

    Args:
        path: of the file, which a policy is beside.

    Raises:
        ConfigurationError: (or its CredentialsError) values as in this module's docstring are not what they should be.
    """
    policy = document.get("policy")
    if policy is not None and not (isinstance(policy, str) and policy):
        raise ConfigurationError(f"{path}: policy", got=policy, expected="the name of a file")
    return Rules(
        catalogue=_catalogue(document.get("includes", {}), path),
        calendars=calendars_of(document.get("calendar", [])),
        permit=None if policy is None else CedarPolicy.load(path.parent / policy),
        approvals=_approvals(document["approval"], path) if "approval" in document else None,
    )


def _approvals(table: object, path: Path) -> ApprovalRules:
    expected = 'scopes = ["approve:**"], and lifetime_seconds where a quarter of an hour is not meant'
    if not isinstance(table, dict) or not {"scopes"} <= table.keys() <= {"scopes", "lifetime_seconds"}:
        raise ConfigurationError(f"{path}: approval", expected=expected)
    scopes, seconds = table["scopes"], table.get("lifetime_seconds", int(DECISION_TIME.total_seconds()))
    if not isinstance(scopes, list) or not all(isinstance(s, str) for s in scopes) or type(seconds) is not int:
        raise ConfigurationError(f"{path}: approval", expected=expected)
    if not 0 < seconds <= MAX_DECISION_TIME.total_seconds():
        raise ConfigurationError(
            f"{path}: approval: lifetime_seconds", got=seconds, expected=f"at most {MAX_DECISION_TIME}"
        )
    return ApprovalRules(scopes=tuple(scopes), lifetime=timedelta(seconds=seconds))


def _catalogue(includes: object, path: Path) -> Catalogue:
    expected = f'at most {MAX_INCLUDES} entries such as "agent:admin" = ["agent:execute"]'
    if not isinstance(includes, dict) or len(includes) > MAX_INCLUDES:
        raise ConfigurationError(f"{path}: includes", expected=expected)
    if not all(isinstance(included, list) for included in includes.values()):
        raise ConfigurationError(f"{path}: includes", expected=expected)
    if itself := [entry for entry, included in includes.items() if entry in included]:
        raise ConfigurationError(f"{path}: includes", got=f"{itself[0]} in itself", expected="others that it includes")
    try:
        return Catalogue(includes)
    except ScopeMalformed as error:
        raise ConfigurationError(f"{path}: includes: {error}") from None
