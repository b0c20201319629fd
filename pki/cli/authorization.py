"""`a2a-pki serve --authority`: the authorization server in the CA's process. The one module here that knows it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette

from pki.service.beside import Lent, Opener
from trust.errors import ConfigurationError
from trust.identity import AgentID
from trust.oauth.server.state import KEYS_PASSWORD_VARIABLE, authorization_server, declared
from trust.tls.client import fetch_client


def beside(domain: str, *, clients: Path, issuer: str, folder: Path, url: str | None, redis_url: str | None) -> Opener:
    """As `authorization_server`; the password of its keys comes from the environment, or the folder.

    Args:
        domain: the CA's trust domain. Partners that are agents are of that one: the CA knows no other.

    Raises:
        ConfigurationError: the file of clients, the issuer, or the URL of Redis.
    """
    declared(clients, issuer, redis_url, partial(_http, domain, None))  # before anybody is told that we serve
    password = os.environ.get(KEYS_PASSWORD_VARIABLE)
    settings = {"clients": clients, "issuer": issuer, "folder": folder, "url": url, "redis_url": redis_url}
    return partial(_opened, domain, {**settings, "password": password})


@contextmanager
def _opened(domain: str, settings: dict[str, Any], lent: Lent) -> Iterator[Starlette]:
    http = partial(_http, domain, lent)
    with authorization_server(**settings, http=http, audit=lent.audit, trust_domain=domain, clock=lent.clock) as app:
        yield app


def _http(domain: str, lent: Lent | None, url: str, server: AgentID | None) -> httpx.AsyncClient:
    """What fetches the keys of a partner; with nothing lent, one that fetches nothing."""
    if server is not None and server.trust_domain != domain:
        raise ConfigurationError(
            f"partner's keys at {url}",
            got=f"an agent of {server.trust_domain}",
            expected=f"one of {domain}, or a server of the web's PKI",
            do="use a2a-trust serve --authority, which is given the bundles of other trust domains",
        )
    if lent is None:
        return httpx.AsyncClient(transport=httpx.AsyncBaseTransport())
    return fetch_client(url, server, source=lent.credentials, bundles=lent.bundles, crls=lent.crls)
