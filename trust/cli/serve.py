"""`a2a-trust serve`: an application, or the embedded authorization server, over mutual TLS."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from trust.agent import serve as serve_app
from trust.audit import AuditLog
from trust.authorize import exactly
from trust.bundles import BundleSource, RevocationSource
from trust.cli.app import app
from trust.cli.options import (
    STATE,
    BundleFiles,
    CredentialsFolder,
    RevocationFiles,
    StateFolder,
    StoreURL,
    bundles_of,
    credentials_of,
    rule_of,
)
from trust.command_line import Terminated
from trust.credentials import BUNDLE_FILE, CredentialSource
from trust.errors import ConfigurationError, TrustError
from trust.files import WatchedRevocationLists
from trust.oauth.server.state import KEYS_PASSWORD_VARIABLE, authorization_server
from trust.peers import PeerVerifier
from trust.tls.client import fetch_client


@app.command()
def serve(
    application: Annotated[
        str | None, typer.Argument(metavar="[MODULE:APP]", help="An ASGI application to serve, such as agent:app.")
    ] = None,
    authority: Annotated[
        Path | None, typer.Option(metavar="CLIENTS", help="Serve the authorization server, with this TOML of clients.")
    ] = None,
    issuer: Annotated[
        str | None, typer.Option(metavar="URL", help="With --authority: the https URL that agents reach it by.")
    ] = None,
    state: StateFolder = STATE,
    store: StoreURL = None,
    redis: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="With --authority: a Redis server, rediss://..., where agents find the list of revoked tokens and "
            "several authorization servers count requests together.",
        ),
    ] = None,
    credentials: CredentialsFolder = Path(),
    bundles: BundleFiles = None,
    crl: RevocationFiles = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Who may connect: a SPIFFE ID or a whole trust domain; repeatable."),
    ] = None,
    proxy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            help="SPIFFE ID of a TLS proxy in front, whose Client-Cert headers (RFC 9440) are believed; repeatable.",
        ),
    ] = None,
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8443,
) -> None:
    """Serve an application, or the embedded authorization server, over mutual TLS.

    Credentials, bundles, revocation lists and the file of the clients are followed: what is written to them is in use
    about a second later, without a restart. The audit trail is printed.
    """
    if (application is None) == (authority is None):
        raise typer.BadParameter("give either MODULE:APP or --authority CLIENTS")
    if redis is not None and authority is None:
        raise typer.BadParameter("--redis is for --authority")
    if (authority is None) != (issuer is None):
        raise typer.BadParameter("--authority and --issuer URL go together")
    ours = credentials_of(credentials)
    trusted = bundles_of(bundles or [str(credentials / BUNDLE_FILE)])
    revoked = WatchedRevocationLists(*(crl or ()))
    if not allow:
        raise typer.BadParameter("nobody may connect: give --allow spiffe://... or --allow trust.domain")
    rule = rule_of(allow, trusted, "--allow")
    proxies = exactly(*proxy) if proxy else None
    _check_ourselves(ours, trusted, revoked)
    audit = AuditLog.to(sys.stdout)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(Terminated))  # it has ended in order by then
        served: Any
        if authority is not None and issuer is not None:
            password = os.environ.get(KEYS_PASSWORD_VARIABLE)
            served = stack.enter_context(
                authorization_server(
                    clients=authority,
                    issuer=issuer,
                    folder=state,
                    url=store,
                    password=password,
                    audit=audit,
                    redis_url=redis,
                    http=partial(fetch_client, source=ours, bundles=trusted, crls=revoked),
                    trust_domain=ours.current().agent_id.trust_domain,
                )
            )
        else:
            served = _import(application or "")
        serve_app(
            served,
            source=ours,
            bundles=trusted,
            authorize=rule,
            crls=revoked,
            audit=audit,
            proxies=proxies,
            host=host,
            port=port,
        )


def _check_ourselves(ours: CredentialSource, trusted: BundleSource, revoked: RevocationSource) -> None:
    """A certificate that every caller will refuse is told now, and not to each of them."""
    try:
        PeerVerifier(trusted, revoked).verify(ours.current().chain_der, now=datetime.now(UTC), usage="server")
    except TrustError as error:
        raise ConfigurationError(f"our own certificate would be refused: {error}") from None


def _import(target: str) -> Any:
    module, colon, name = target.partition(":")
    if not module or not colon or not name:
        raise typer.BadParameter(f"got {target}, expected MODULE:APP, such as agent:app")
    sys.path.insert(0, "")
    try:
        application = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the code of a module may raise
        raise ConfigurationError(
            f"cannot import {target}", got=_where(error), expected="an application in a module of this folder"
        ) from None
    if not callable(application):
        raise ConfigurationError(target, got=type(application).__name__, expected="an ASGI application")
    return application


def _where(error: Exception) -> str:
    """What a module raised, in one line, with the place."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    inside = "importlib" in place.filename or place.filename == __file__ or isinstance(error, SyntaxError)
    return f"{type(error).__name__}: {text}" + ("" if inside else f" ({place.filename}, line {place.lineno})")
