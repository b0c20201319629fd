"""What servers say of themselves: an authorization server (RFC 8414), and a resource about its servers (RFC 9728)."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import httpx

from trust.clock import Clock
from trust.errors import MetadataRefused
from trust.oauth.client import talk
from trust.oauth.flight import Flight
from trust.oauth.metadata import (
    check_issuer,
    check_metadata,
    metadata_endpoint,
    metadata_url,
    resource_metadata_url,
)

METADATA_LIFETIME = timedelta(hours=1)
MAX_ENTRIES = 64  # of each list in metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerMetadata:
    """What a client needs of an authorization server's metadata. Every endpoint is on the issuer's own origin."""

    token_endpoint: str | None
    revocation_endpoint: str | None
    authentication_methods: tuple[str, ...]  # at the token endpoint
    revocation_methods: tuple[str, ...]  # at the other one


def read_server(members: Mapping[str, object], issuer: str) -> ServerMetadata:
    """Metadata that is really the issuer's. RFC 8414 section 3.3, RFC 8705 sections 3.3 and 5.

    Raises:
        MetadataRefused: another issuer's, an endpoint elsewhere, or tokens that are bound to nothing.
    """
    check_metadata(members, issuer)
    if members.get("tls_client_certificate_bound_access_tokens") is not True:
        raise MetadataRefused("authorization server does not bind tokens to certificates", got=issuer)
    # RFC 8414 section 2 gives this meaning to a server that does not say.
    methods = _strings(members, "token_endpoint_auth_methods_supported")
    methods = ("client_secret_basic",) if methods is None else methods
    # There it means the same by the letter. Servers that do not say anything take what they take for tokens.
    to_revoke = _strings(members, "revocation_endpoint_auth_methods_supported")
    return ServerMetadata(
        token_endpoint=metadata_endpoint(members, issuer, "token_endpoint"),
        revocation_endpoint=metadata_endpoint(members, issuer, "revocation_endpoint"),
        authentication_methods=methods,
        revocation_methods=methods if to_revoke is None else to_revoke,
    )


class Discovery:
    """The metadata of one authorization server: fetched when it is first needed, and then once an hour."""

    def __init__(self, issuer: str, http: httpx.AsyncClient, clock: Clock) -> None:
        self._issuer = issuer
        self._http = http
        self._clock = clock
        self._flight = Flight[ServerMetadata]()
        self._found: tuple[ServerMetadata, datetime] | None = None

    async def current(self) -> ServerMetadata:
        """Raises: MetadataRefused, AuthorizationServerUnavailable."""
        if self._found is not None and self._clock() < self._found[1]:
            return self._found[0]
        # Whoever waits shares the failure, too: with a server that hangs, one try after the other would take for ever.
        return await asyncio.shield(self._flight.begin(self._fetch))

    async def _fetch(self) -> ServerMetadata:
        status, members = await talk.metadata(self._http, metadata_url(self._issuer))
        if status != httpx.codes.OK:
            raise MetadataRefused("authorization server has no metadata", got=f"status {status}")
        found = read_server(members, self._issuer)
        self._found = found, self._clock() + METADATA_LIFETIME
        return found


async def issuer_of(url: str, *, resource: str, issuers: Collection[str], http: httpx.AsyncClient) -> str:
    """Which of our issuers the resource at `url` takes tokens from, by its metadata. RFC 9728 section 3.

    Not checked: what else it says of itself. It chooses among servers that we were configured for, and nothing more.

    Args:
        url: where the resource is.
        resource: its identifier, which the metadata must repeat; `url` itself where it has no other.
        issuers: those that we are configured for.
        http: a client that trusts whoever is to answer at `url`.

    Raises:
        ConfigurationError: a URL or an issuer that can be none.
        MetadataRefused: no metadata, that of another resource, or none of our issuers in it.
        AuthorizationServerUnavailable: no answer.
    """
    ours = [check_issuer(issuer) for issuer in issuers]
    status, members = await talk.metadata(http, resource_metadata_url(url))
    if status != httpx.codes.OK:
        raise MetadataRefused("resource has no metadata", got=f"status {status}", do="name its issuer yourself")
    return read_resource(members, resource, ours)


def read_resource(members: Mapping[str, object], resource: str, issuers: Collection[str]) -> str:
    """The first of our issuers that the metadata of this resource names. RFC 9728 sections 2 and 3.3."""
    if members.get("resource") != resource:
        raise MetadataRefused("metadata is another resource's", got=members.get("resource"), expected=resource)
    if "header" not in (_strings(members, "bearer_methods_supported") or ("header",)):
        raise MetadataRefused("resource takes no tokens in headers", expected="header in bearer_methods_supported")
    theirs = _strings(members, "authorization_servers") or ()
    for issuer in issuers:
        if issuer in theirs:
            return issuer
    raise MetadataRefused(
        "resource takes tokens of other authorization servers",
        got=", ".join(theirs) or "none",
        expected=" or ".join(issuers) or "a configured issuer",
        do="configure the one that should be asked",
    )


def _strings(members: Mapping[str, object], name: str) -> tuple[str, ...] | None:
    value = members.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > MAX_ENTRIES or not all(isinstance(item, str) for item in value):
        raise MetadataRefused(name, got=type(value).__name__, expected=f"a list of at most {MAX_ENTRIES} strings")
    return tuple(value)
