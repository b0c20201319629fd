"""A client of the authorization server: one agent by its SPIFFE ID, or many in one pattern, and what each may have."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from datetime import timedelta

from trust.errors import ConfigurationError, ScopeMalformed
from trust.identity import AgentID
from trust.oauth.metadata import check_issuer, is_resource
from trust.oauth.scopes import Catalogue, broad, delegate_scope, parse
from trust.oauth.server.clients.patterns import AgentPattern
from trust.oauth.server.clients.secrets import SecretDigest
from trust.oauth.tokens import MAX_LIFETIME

DEFAULT_LIFETIME = timedelta(minutes=10)

_CLIENT_ID = re.compile(r"[\x21-\x7e]{1,2048}")  # RFC 6749 appendix A.1, without the space


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What a client may have.

    Args:
        scopes: for itself, by client credentials.
        exchange_scopes: on behalf of others, by token exchange; never more than their token grants.
        resources: the audiences that its tokens may be for: SPIFFE IDs or absolute URIs without fragment (RFC 8707).
        audiences: the names under which it is itself the audience of tokens; it can exchange only those that were
            sent to it. By default its SPIFFE ID.
        assertion_audiences: the issuers of other trust domains that it may take a caller's authority to (identity
            chaining); it needs `exchange_scopes`, too.
        assertion_scopes: of an agent of another trust domain: what it may have here by an assertion of its own server,
            for those that the assertion speaks for.
        lifetime: of its tokens, at most 30 minutes; the cap of its parent, time scopes and certificate come on top.
    """

    scopes: tuple[str, ...] = ()
    exchange_scopes: tuple[str, ...] = ()
    resources: tuple[str, ...]
    audiences: tuple[str, ...] = ()
    assertion_audiences: tuple[str, ...] = ()
    assertion_scopes: tuple[str, ...] = ()
    lifetime: timedelta = DEFAULT_LIFETIME


@dataclass(frozen=True, slots=True, kw_only=True)
class Client(Rights):
    """One agent that may ask for tokens.

    Args:
        agent_id: the SPIFFE ID of its certificate.
        client_id: its OAuth name; by default the SPIFFE ID.
        secrets: of which it has to give one beside its certificate; an empty list, and it is never authenticated. None
            where it has no second factor, and then it must not come with one.
        scopes and all others: its `Rights`.

    Raises:
        ConfigurationError: a value that no token could be issued for.
    """

    agent_id: AgentID
    client_id: str = ""
    secrets: tuple[SecretDigest, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.client_id:
            object.__setattr__(self, "client_id", str(self.agent_id))
        if not self.audiences:
            object.__setattr__(self, "audiences", (str(self.agent_id),))
        if not _CLIENT_ID.fullmatch(self.client_id):
            raise self._wrong("client_id", self.client_id, "1-2048 printable ASCII characters without spaces")
        if not self.scopes and not self.exchange_scopes and not self.assertion_scopes:
            raise self._wrong("scopes", "none", "at least one in scopes, exchange_scopes or assertion_scopes")
        if not self.resources and not self.assertion_audiences:
            raise self._wrong("resources", "none", "at least one resource")
        for issuer in self.assertion_audiences:
            check_issuer(issuer)
        if self.assertion_audiences and not self.exchange_scopes:
            raise self._wrong("assertion_audiences", "no exchange_scopes", "some: an assertion is for somebody else")
        for uri in (*self.resources, *self.audiences):
            if not is_resource(uri):
                raise self._wrong("resource", uri, "an absolute URI without fragment")
        if not timedelta(0) < self.lifetime <= MAX_LIFETIME:
            raise self._wrong("lifetime", self.lifetime, f"more than 0 and at most {MAX_LIFETIME}")
        # Of the last one: otherwise no caller could ever consent.
        own_name = [delegate_scope(self.agent_id)] if self.exchange_scopes else []
        for text in (*self.scopes, *self.exchange_scopes, *self.assertion_scopes, *own_name):
            try:
                parse(text)
            except ScopeMalformed as error:
                raise ConfigurationError(f"client {self.client_id}: {error}") from None

    @property
    def path(self) -> tuple[str, ...]:
        """Of its SPIFFE ID: by that it is named in `delegate:eu/billing`."""
        return tuple(self.agent_id.path[1:].split("/"))

    def notes(self, catalogue: Catalogue | None = None) -> list[str]:
        """What an operator should look at twice before granting it."""
        return [
            f"{self.client_id}: {member}: {line}"
            for member in ("scopes", "exchange_scopes", "assertion_scopes")
            for line in broad(getattr(self, member), catalogue)
        ]

    def _wrong(self, what: str, got: object, expected: str) -> ConfigurationError:
        return ConfigurationError(f"client {self.client_id}: {what}", got=got, expected=expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPattern(Rights):
    """Many agents with the same rights. Each is a client by its own SPIFFE ID, and has no second factor.

    Raises:
        ConfigurationError: as `Client`.
    """

    pattern: AgentPattern

    def __post_init__(self) -> None:
        self._client(self.pattern.example, self.client_id)

    @property
    def client_id(self) -> str:
        """Its name in a list; no agent's."""
        return str(self.pattern)

    @property
    def path(self) -> tuple[str, ...]:
        return self.pattern.segments

    def client(self, agent: AgentID) -> Client:
        """The client that one of these agents is.

        Raises:
            ConfigurationError: its SPIFFE ID has no `delegate:X`, which exchanging clients need.
        """
        return self._client(agent, str(agent))

    def notes(self, catalogue: Catalogue | None = None) -> list[str]:
        every = [f"{self.client_id}: is every agent of {self.pattern.trust_domain}"]
        found = self._client(self.pattern.example, self.client_id).notes(catalogue)
        return (every if self.pattern.is_whole_domain else []) + found

    def _client(self, agent: AgentID, client_id: str) -> Client:
        rights = {f.name: getattr(self, f.name) for f in fields(Rights)}
        return Client(agent_id=agent, client_id=client_id, **rights)
