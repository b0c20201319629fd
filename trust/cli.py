"""a2a-trust: agents that know each other, on the command line.

Every command exits with 0 only when the thing asked for is true, and says in one line on stderr what failed, what was
expected and what to do.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from trust.agent import serve as serve_app
from trust.audit import AuditLog
from trust.authorize import Authorizer, any_of, exactly, members_of
from trust.bundles import BundleSource, RevocationSource
from trust.command_line import run, silence
from trust.credentials import BUNDLE_FILE, CredentialSource, read_bounded, write_atomically
from trust.errors import ConfigurationError, TrustError, WrongPassword
from trust.files import WatchedBundles, WatchedCredentials, WatchedRevocationLists
from trust.identity import AgentID, trust_domain
from trust.oauth.clients import ClientRegistry
from trust.oauth.keys import SigningKey
from trust.oauth.server import create_app
from trust.oauth.store import Store
from trust.peers import PeerVerifier

PASSWORD_VARIABLE = "A2A_TRUST_PASSWORD"  # noqa: S105 (the name of a variable)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Agents that know which agent is calling, what it may do, and that nobody altered what it said.",
)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


def main(arguments: Sequence[str] | None = None) -> int:
    return run(app, "a2a-trust", arguments)


@app.command()
def demo(
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep everything in this new folder; default: a temporary one.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Run the whole journey: a CA, two agents, an authorization server, and fourteen attacks that must fail."""
    try:
        from trust.demo import CHAPTERS, Step, journey
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "the demo needs a2a-sdk",
            got=f"no module {error.name}",
            do="install the extra `a2a` of a2a-trust",
        ) from None
    console = Console(highlight=False, soft_wrap=True)
    wrong = 0
    chapter = 0

    def show(step: Step) -> None:
        nonlocal wrong, chapter
        wrong += not step.ok
        if as_json:
            typer.echo(json.dumps(asdict(step)))
            return
        if step.chapter != chapter:
            chapter = step.chapter
            console.print(Text(f"\n{chapter}. {CHAPTERS[chapter]}", style="bold"))
        mark = "      " if step.ok and chapter == max(CHAPTERS) else "  ok  " if step.ok else "  !!  "
        line = Text(mark, style="green" if step.ok else "bold red")
        line.append(f"{step.what}: {step.outcome}", style="default")
        if step.check:
            line.append(f"  [{step.check}, {step.status}]", style="cyan")
        console.print(line)

    async def walk(where: Path) -> None:
        async for step in journey(where):
            try:
                show(step)
            except BrokenPipeError:  # `| head` has read enough; the servers still want to be stopped in order
                silence()

    if folder is not None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigurationError(f"{folder} is in use", expected="a new or empty folder")
        asyncio.run(walk(folder))
    else:
        with tempfile.TemporaryDirectory(prefix="a2a-trust-demo-") as temporary:
            asyncio.run(walk(Path(temporary)))
    if not as_json:
        summary = f"{wrong} of the steps went wrong" if wrong else "Every step and every refusal happened as it must."
        console.print(Text(f"\n{summary}", style="bold red" if wrong else "bold green"))
    return 1 if wrong else 0


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
    state: Annotated[
        Path, typer.Option(metavar="DIR", help="With --authority: its database and its signing key, encrypted.")
    ] = Path("authority-state"),
    credentials: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Folder with chain.pem and key.pem, svid.pem and svid_key.pem, or tls.crt and tls.key; "
            f"a password is read from ${PASSWORD_VARIABLE}.",
        ),
    ] = Path(),
    bundles: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Trust bundles; default: bundle.json beside the credentials. Or, repeatable, DOMAIN=FILE: the SPIFFE "
            "bundle or the PEM roots of one trust domain.",
        ),
    ] = None,
    crl: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="Revocation list; repeatable.")] = None,
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

    Credentials, bundles and revocation lists are followed: what is written to their files is in use about a second
    later, without a restart. The audit trail is printed.
    """
    if (application is None) == (authority is None):
        raise typer.BadParameter("give either MODULE:APP or --authority CLIENTS")
    if (authority is None) != (issuer is None):
        raise typer.BadParameter("--authority and --issuer URL go together")
    ours = WatchedCredentials(credentials, password=os.environ.get(PASSWORD_VARIABLE))
    trusted = _bundles(bundles or [str(credentials / BUNDLE_FILE)])
    revoked = WatchedRevocationLists(*(crl or ()))
    rule = _rule(allow, trusted)
    proxies = exactly(*proxy) if proxy else None
    _check_ourselves(ours, trusted, revoked)
    audit = AuditLog.to(sys.stdout)
    served: Any
    if authority is not None and issuer is not None:
        served = _authority(authority, issuer, state, audit)
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


def _bundles(given: list[str]) -> WatchedBundles:
    """One bundle map, or a file for each trust domain."""
    pairs = [(domain, file) for domain, equals, file in (text.partition("=") for text in given) if equals]
    if not pairs and len(given) == 1:
        return WatchedBundles(given[0])
    if len(dict(pairs)) != len(given):
        raise typer.BadParameter("--bundles: give either one FILE, or DOMAIN=FILE once for each trust domain")
    return WatchedBundles(dict(pairs))


def _check_ourselves(ours: CredentialSource, trusted: BundleSource, revoked: RevocationSource) -> None:
    """A certificate that every caller will refuse is told now, and not to each of them."""
    try:
        PeerVerifier(trusted, revoked).verify(ours.current().chain_der, now=datetime.now(UTC), usage="server")
    except TrustError as error:
        raise ConfigurationError(f"our own certificate would be refused: {error}") from None


def _rule(allow: list[str] | None, trusted: BundleSource) -> Authorizer:
    if not allow:
        raise typer.BadParameter("nobody may connect: give --allow spiffe://... or --allow trust.domain")
    known = trusted.current().by_domain
    for domain in (AgentID.parse(a).trust_domain if a.startswith("spiffe://") else a for a in allow):
        if trust_domain(domain) not in known:
            raise ConfigurationError("--allow", got=f"trust domain {domain}", expected="one of " + ", ".join(known))
    return any_of(*(exactly(a) if a.startswith("spiffe://") else members_of(a) for a in allow))


def _authority(clients: Path, issuer: str, state: Path, audit: AuditLog) -> Any:
    registry = ClientRegistry.load(clients)
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    return create_app(
        issuer=issuer,
        clients=registry,
        store=Store(f"sqlite:///{(state / 'tokens.db').absolute()}"),
        keys=[_signing_key(state)],
        audit=audit,
    )


def _signing_key(state: Path) -> SigningKey:
    """The key that signs tokens: encrypted at rest, made at the first start; its password from the environment or,
    where there is none, generated into a 0600 file of its own."""
    key_file, password_file = state / "signing-key.pem", state / "signing-key.password"
    password = os.environ.get(PASSWORD_VARIABLE, "").encode()
    if not password and password_file.exists():
        password = read_bounded(password_file).strip()
    if key_file.exists():
        if not password:
            raise WrongPassword(f"{key_file} is encrypted", do=f"set {PASSWORD_VARIABLE}")
        return SigningKey.from_pem(read_bounded(key_file), password)
    if not password:
        password = secrets.token_urlsafe(24).encode()
        write_atomically(password_file, password + b"\n", mode=0o600)
        typer.echo(f"Password of the signing key generated and kept in {password_file}", err=True)
    key = SigningKey.generate()
    write_atomically(key_file, key.to_pem(password), mode=0o600)
    return key


def _import(target: str) -> Any:
    module, colon, name = target.partition(":")
    if not module or not colon or not name:
        raise typer.BadParameter(f"got {target}, expected MODULE:APP, such as agent:app")
    sys.path.insert(0, "")
    try:
        application = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigurationError(f"cannot import {target}", got=error, expected="a module in this folder") from None
    if not callable(application):
        raise ConfigurationError(target, got=type(application).__name__, expected="an ASGI application")
    return application
