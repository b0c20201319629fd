"""What is asked of an authorization server, and what it may answer: values, and no IO."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from trust.errors import ConfigurationError, IdentityError, ScopeNotGranted, TokenResponseRefused
from trust.identity import AgentID
from trust.oauth.metadata import (
    ACCESS_TOKEN_TYPE,
    APPROVED,
    CLIENT_CREDENTIALS,
    REFRESH_TOKEN,
    TOKEN_EXCHANGE,
    is_resource,
)
from trust.oauth.scopes import parse_scope_list
from trust.signing.jws import MAX_COMPACT_BYTES

MAX_EXPIRES_IN = 24 * 3600  # seconds; a longer promise is a mistake or a lie
REFRESH_MARGIN = timedelta(seconds=60)  # a token is renewed this long before its end, or at 4/5 of a short life

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # b64token, RFC 6750 section 2.1
_REFRESH_TOKEN = re.compile(rf"[\x20-\x7e]{{1,{MAX_COMPACT_BYTES}}}")  # VSCHAR, RFC 6749 appendix A.17


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """An access token as this side knows it: opaque, with what the server said about it."""

    value: str = field(repr=False)
    scopes: tuple[str, ...]
    asked_at: datetime
    expires_at: datetime
    refresh_at: datetime
    refresh_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is asked for; with `subject_token` on behalf of its subject."""

    resource: str
    scopes: tuple[str, ...]
    subject_token: str | None = field(default=None, repr=False)
    step_up: bool = False  # a person has to approve it, whatever the server's own rules are (RFC 9470)
    message: str = ""  # for that person

    def form(self, client_id: str) -> dict[str, str]:
        form = {"client_id": client_id, "resource": self.resource, "scope": " ".join(self.scopes), **self.approval}
        if self.subject_token is None:
            return {"grant_type": CLIENT_CREDENTIALS, **form}
        return {
            "grant_type": TOKEN_EXCHANGE,
            "subject_token": self.subject_token,
            "subject_token_type": ACCESS_TOKEN_TYPE,
            "requested_token_type": ACCESS_TOKEN_TYPE,
            **form,
        }

    @property
    def approval(self) -> dict[str, str]:
        """What is said of the person who approves it; to the server that issues the token, and to no other."""
        members = {"acr_values": APPROVED if self.step_up else "", "binding_message": self.message}
        return {name: value for name, value in members.items() if value}

    def refresh_form(self, client_id: str, refresh_token: str) -> dict[str, str]:
        """The same once more, by what the server gave for it. RFC 6749 section 6."""
        form = {"client_id": client_id, "resource": self.resource, "scope": " ".join(self.scopes)}
        return {"grant_type": REFRESH_TOKEN, "refresh_token": refresh_token, **form}


def ask_for(agent: AgentID | str, scopes: Iterable[str], subject_token: str | None = None) -> Ask:
    resource = str(agent)
    if not is_resource(resource):
        raise ConfigurationError("resource", got=resource, expected="an absolute URI without fragment (RFC 8707)")
    if resource.startswith("spiffe:"):
        try:
            AgentID.parse(resource)
        except IdentityError as error:  # no agent has such an ID, and so no gate takes such a token
            raise ConfigurationError(f"resource is no agent's: {error}") from None
    wanted = parse_scope_list(scopes if isinstance(scopes, str) else " ".join(scopes))
    if not wanted:
        raise ConfigurationError("no scopes", expected="at least one: a token that may nothing is of no use")
    return Ask(resource=resource, scopes=wanted, subject_token=subject_token)


def read_token(
    members: Mapping[str, object],
    ask: Ask,
    asked_at: datetime,
    *,
    kind: str = "Bearer",
    refreshed_by: str | None = None,
) -> Token:
    """RFC 6749 section 5.1, strictly. No message here shows the answer: it holds the token.

    Args:
        kind: the type of token that was asked for: "Bearer", or "DPoP" where a proof was sent. A server that knows no
            proofs answers with a token that is not bound to the key (RFC 9449 section 5).
        refreshed_by: the refresh token that was used; it stays where the server gives no new one (section 6).
    """
    value, found, seconds = members.get("access_token"), members.get("token_type"), members.get("expires_in")
    if not isinstance(value, str) or len(value) > MAX_COMPACT_BYTES or not _TOKEN.fullmatch(value):
        raise TokenResponseRefused("access_token", got=type(value).__name__, expected="a bearer token (RFC 6750)")
    if not isinstance(found, str) or found.lower() != kind.lower():
        raise TokenResponseRefused("token_type", got=found, expected=kind)
    if type(seconds) is not int or not 0 < seconds <= MAX_EXPIRES_IN:
        raise TokenResponseRefused("expires_in", got=seconds, expected=f"1 to {MAX_EXPIRES_IN} seconds")
    exchanged = ask.subject_token is not None and refreshed_by is None
    if exchanged and members.get("issued_token_type") != ACCESS_TOKEN_TYPE:
        raise TokenResponseRefused("issued_token_type", got=members.get("issued_token_type"), expected="access_token")
    refresh_token = members.get("refresh_token", refreshed_by)
    if refresh_token is not None and not (isinstance(refresh_token, str) and _REFRESH_TOKEN.fullmatch(refresh_token)):
        raise TokenResponseRefused("refresh_token", expected=f"at most {MAX_COMPACT_BYTES} printable characters")
    scope = members.get("scope", " ".join(ask.scopes))  # left out where it is what was asked for
    granted = tuple(scope.split()) if isinstance(scope, str) else ()
    if missing := sorted(set(ask.scopes) - set(granted)):
        raise ScopeNotGranted(
            "authorization server granted less than was asked for",
            got=" ".join(granted) or "nothing",
            expected="also " + " ".join(missing),
            do="register the client for these scopes",
        )
    lifetime = timedelta(seconds=seconds)
    expires_at = asked_at + lifetime
    return Token(
        value=value,
        scopes=granted,
        asked_at=asked_at,
        expires_at=expires_at,
        refresh_at=expires_at - min(REFRESH_MARGIN, lifetime / 5),
        refresh_token=refresh_token,
    )
