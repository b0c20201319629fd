"""What an authorization server declares for all of its clients: in the TOML file of the clients, read once, at start.

    policy = "tokens.cedar"                             # beside this file: asked before a token is issued

    [includes]                                          # the hierarchy of scopes
    "agent:admin" = ["agent:execute", "agent:read"]

    [[calendar]]                                        # the hours of a time scope: `trust.oauth.calendars`
    name = "business-hours"
    ...

The receivers of tokens decide by their own catalogue and calendars: they are to be given the same.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trust.credentials import read_bounded
from trust.errors import ConfigurationError, ScopeMalformed
from trust.oauth.calendars import Calendar, calendars_of
from trust.oauth.policy import CedarPolicy, Permit
from trust.oauth.scopes import Catalogue
from trust.oauth.server.partners import MAX_FILE_BYTES

MEMBERS = ("policy", "includes", "calendar")  # of the file

MAX_INCLUDES = 256  # entries of a hierarchy that somebody can still oversee


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What holds for all clients."""

    catalogue: Catalogue
    calendars: Mapping[str, Calendar]
    permit: Permit | None


def load_rules(path: Path) -> Rules:
    """What the file of the clients declares for all of them. Not checked: its other members.

    Raises:
        ConfigurationError: (or its CredentialsError) unreadable, not TOML, or values as in this module's docstring are
            not what they should be.
    """
    try:
        document = tomllib.loads(read_bounded(path, MAX_FILE_BYTES).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML", got=error, expected="[[client]] tables") from None
    policy = document.get("policy")
    if policy is not None and not (isinstance(policy, str) and policy):
        raise ConfigurationError(f"{path}: policy", got=policy, expected="the name of a file")
    return Rules(
        catalogue=_catalogue(document.get("includes", {}), path),
        calendars=calendars_of(document.get("calendar", [])),
        permit=None if policy is None else CedarPolicy.load(path.parent / policy),
    )


def _catalogue(includes: object, path: Path) -> Catalogue:
    expected = f'at most {MAX_INCLUDES} entries such as "agent:admin" = ["agent:execute"]'
    if not isinstance(includes, dict) or len(includes) > MAX_INCLUDES:
        raise ConfigurationError(f"{path}: includes", expected=expected)
    if not all(isinstance(included, list) for included in includes.values()):
        raise ConfigurationError(f"{path}: includes", expected=expected)
    try:
        return Catalogue(includes)
    except ScopeMalformed as error:
        raise ConfigurationError(f"{path}: includes: {error}") from None
