"""`a2a-trust client add | list | disable | enable | remove | rotate-secret`: who may ask an authorization server."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from trust.cli.app import AsJson, app
from trust.cli.options import STATE, StateFolder, StoreURL, opened_store
from trust.cli.output import iso, say, show_table
from trust.oauth.server.clients import DEFAULT_LIFETIME, digest_of, new_secret
from trust.oauth.server.registrations import register
from trust.oauth.server.store.clients import Registered
from trust.oauth.tokens import MAX_LIFETIME

Name = Annotated[
    str, typer.Argument(metavar="ID", help="SPIFFE ID, or a pattern such as spiffe://fleet.example/workers/*.")
]
_OVERLAP_HOURS = 24
_MINUTE = timedelta(minutes=1)

_client = typer.Typer(no_args_is_help=True, help="Who may ask an authorization server for tokens, and for which.")
app.add_typer(_client, name="client")


def _several(option: str, metavar: str, what: str) -> Any:
    return typer.Option(option, metavar=metavar, help=f"{what}; repeatable.")


@_client.command()
def add(
    client: Name,
    scope: Annotated[list[str] | None, _several("--scope", "SCOPE", "What it may have for itself")] = None,
    exchange_scope: Annotated[
        list[str] | None, _several("--exchange-scope", "SCOPE", "What it may have for others, by token exchange")
    ] = None,
    resource: Annotated[list[str] | None, _several("--resource", "URI", "Whom its tokens may be for")] = None,
    audience: Annotated[
        list[str] | None, _several("--audience", "URI", "Its own name in tokens; default: its SPIFFE ID")
    ] = None,
    assertion_audience: Annotated[
        list[str] | None,
        _several("--assertion-audience", "ISSUER", "Server of another domain that it may take a caller's authority to"),
    ] = None,
    assertion_scope: Annotated[
        list[str] | None,
        _several("--assertion-scope", "SCOPE", "What an agent of another domain may have by its server's assertion"),
    ] = None,
    lifetime_minutes: Annotated[
        int, typer.Option(min=1, max=MAX_LIFETIME // _MINUTE, help="Of its tokens.")
    ] = DEFAULT_LIFETIME // _MINUTE,
    needs_secret: Annotated[
        bool, typer.Option("--needs-secret", help="It has to give a secret beside its certificate; printed once.")
    ] = False,
    as_json: AsJson = False,
    state: StateFolder = STATE,
    store: StoreURL = None,
) -> None:
    """Register a client. Running servers know it at once."""
    rights: dict[str, Any] = {
        "scopes": scope,
        "exchange_scopes": exchange_scope,
        "resources": resource,
        "audiences": audience,
        "assertion_audiences": assertion_audience,
        "assertion_scopes": assertion_scope,
        "lifetime_seconds": lifetime_minutes * 60,
    }
    rights = {name: value for name, value in rights.items() if value}
    secret = new_secret() if needs_secret else None
    digest = None if secret is None else digest_of(secret)
    with opened_store(state, store) as opened:
        registered = register(opened.clients, client, rights, digest=digest, now=datetime.now(UTC))
    notes = registered.notes()
    if not as_json:
        for note in notes:
            typer.echo(f"look at this twice: {note}", err=True)
        typer.echo("if the server's file of clients names it, too, it gets nothing until one of them is gone", err=True)
    _tell_secret({"client": registered.client_id, "notes": notes}, secret, as_json, f"{registered.client_id}: added")


@_client.command("list")
def show(as_json: AsJson = False, state: StateFolder = STATE, store: StoreURL = None) -> None:
    """Show the clients that were registered by command, and everybody who is disabled."""
    with opened_store(state, store) as opened:
        rows = opened.clients.all()
    now = datetime.now(UTC)
    if as_json:
        say([_facts(row, now) for row in rows], True)
        return
    headings = ("client", "state", "scopes", "for others", "resources", "lifetime", "second factor", "changed")
    show_table(headings, [_cells(row, now) for row in rows])


@_client.command()
def disable(client: Name, as_json: AsJson = False, state: StateFolder = STATE, store: StoreURL = None) -> None:
    """Refuse a client from now on, in every running server, and revoke its tokens; also one that a file declares.

    A pattern disables every agent that it names, also one that is registered by itself.
    """
    with opened_store(state, store) as opened:
        known = any(row.name == client for row in opened.clients.all())
        revoked = opened.clients.disable(client, now=datetime.now(UTC))
    if not known and not as_json:
        typer.echo("nobody of that name is registered here: it holds for whom the server's file names so", err=True)
    words = f"{client}: disabled; {revoked} token{'' if revoked == 1 else 's'} revoked"
    say({"client": client, "disabled": True, "revoked_tokens": revoked}, as_json, words)


@_client.command()
def enable(client: Name, as_json: AsJson = False, state: StateFolder = STATE, store: StoreURL = None) -> None:
    """Take `disable` back. The tokens that it revoked stay revoked."""
    with opened_store(state, store) as opened:
        opened.clients.enable(client, now=datetime.now(UTC))
    say({"client": client, "disabled": False}, as_json, f"{client}: enabled")


@_client.command()
def remove(client: Name, as_json: AsJson = False, state: StateFolder = STATE, store: StoreURL = None) -> None:
    """Forget a client that is disabled."""
    with opened_store(state, store) as opened:
        opened.clients.remove(client)
    say({"client": client, "removed": True}, as_json, f"{client}: removed")


@_client.command("rotate-secret")
def rotate_secret(
    client: Name,
    overlap_hours: Annotated[
        int | None,
        typer.Option(
            min=1, max=24 * 30, help=f"How long the secret before this one still counts; default: {_OVERLAP_HOURS}."
        ),
    ] = None,
    at_once: Annotated[bool, typer.Option("--now", help="The secret before this one ends now.")] = False,
    as_json: AsJson = False,
    state: StateFolder = STATE,
    store: StoreURL = None,
) -> None:
    """Give a client a new secret, printed once and kept nowhere."""
    if at_once and overlap_hours is not None:
        raise typer.BadParameter("--now or --overlap-hours, not both")
    secret, now = new_secret(), datetime.now(UTC)
    overlap = timedelta(0) if at_once else timedelta(hours=overlap_hours or _OVERLAP_HOURS)
    with opened_store(state, store) as opened:
        opened.clients.rotate_secret(client, digest_of(secret), overlap=overlap, now=now)
    ends = now + overlap
    _tell_secret(
        {"client": client, "old_ends_at": iso(ends)}, secret, as_json, f"{client}: the one before ends {iso(ends)}"
    )


def _tell_secret(answer: dict[str, Any], secret: str | None, as_json: bool, line: str) -> None:
    """The secret alone on standard output, so that it can go into a file; what is said of it beside."""
    if secret is None:
        say(answer, as_json, line)
    elif as_json:
        say({**answer, "secret": secret}, True)
    else:
        typer.echo(line, err=True)
        typer.echo(secret)
        if sys.stdout.isatty():
            typer.echo("It is shown this once.", err=True)


def _facts(row: Registered, now: datetime) -> dict[str, Any]:
    return {
        "client": row.name,
        "state": _state(row, now),
        **(row.rights or {}),
        "needs_secret": row.needs_secret,
        "secrets": [{"ends_at": None if end is None else iso(end)} for _, end in _living(row, now)],
        "changed_at": iso(row.changed_at),
    }


def _cells(row: Registered, now: datetime) -> tuple[str, ...]:
    rights = row.rights or {}
    factor = f"{len(_living(row, now))} secret(s)" if row.needs_secret else ""
    seconds = rights.get("lifetime_seconds")
    lifetime = f"{seconds // 60} min" if isinstance(seconds, int) else ""
    told = (
        _words(rights, "scopes"),
        _words(rights, "exchange_scopes", "assertion_scopes"),
        _words(rights, "resources"),
    )
    return (row.name, _state(row, now), *told, lifetime, factor, iso(row.changed_at))


def _words(rights: Mapping[str, Any], *members: str) -> str:
    """Of a row that somebody may have damaged."""
    found = [rights.get(member) for member in members]
    return " ".join(str(one) for value in found if isinstance(value, list) for one in value)


def _state(row: Registered, now: datetime) -> str:
    if row.disabled:
        return "disabled"
    return "without a secret" if row.needs_secret and not _living(row, now) else "enabled"


def _living(row: Registered, now: datetime) -> list[tuple[bytes, datetime | None]]:
    return [(digest, end) for digest, end in row.secrets if end is None or now < end]
