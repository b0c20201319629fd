"""`a2a-trust token list | revoke`: the access tokens that an authorization server has issued."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from trust.cli.app import AsJson, app
from trust.cli.options import STATE, StateFolder, StoreURL, opened_store
from trust.cli.output import iso, say, show_table
from trust.errors import ConfigurationError
from trust.oauth.server.store import Issued
from trust.oauth.server.store.tokens import KEPT_SECONDS

MAX_SHOWN = 1000  # tokens of one answer, the newest

OfClient = Annotated[str | None, typer.Option("--client", metavar="ID", help="Those that were issued to this client.")]
OfSubject = Annotated[
    str | None, typer.Option("--subject", metavar="ID", help="Those about this subject, whoever acts for it.")
]

_token = typer.Typer(no_args_is_help=True, help="Access tokens that the authorization server has issued.")
app.add_typer(_token, name="token")


@_token.command("list")
def living(
    client: OfClient = None,
    subject: OfSubject = None,
    as_json: AsJson = False,
    state: StateFolder = STATE,
    store: StoreURL = None,
) -> None:
    """Show the tokens that have not expired, the newest first; at most 1,000."""
    with opened_store(state, store) as opened:
        found = opened.tokens.living(now=datetime.now(UTC), client_id=client, subject=subject, limit=MAX_SHOWN)
    if as_json:
        say([_facts(issued) for issued in found], True)
        return
    if not found:
        if named := _of(client, subject):
            typer.echo(f"no token{named}", err=True)  # it may be misspelt
        else:
            typer.echo("No token is valid.")
        return
    headings = ("ID", "issued to", "about", "exchanged from", "until", "state")
    rows: list[tuple[str, ...]] = [
        (t.token_id, t.client_id, t.subject, t.parent_id or "", iso(t.expires_at), "revoked" if t.revoked else "valid")
        for t in found
    ]
    show_table(headings, rows)


# One identifier in 64 begins with a hyphen, and looks like an option.
@_token.command(context_settings={"ignore_unknown_options": True})
def revoke(
    token_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Its `jti`, as `token list` shows it.")] = None,
    client: OfClient = None,
    subject: OfSubject = None,
    as_json: AsJson = False,
    state: StateFolder = STATE,
    store: StoreURL = None,
) -> None:
    """Revoke one token, or all of a client or about a subject; and all tokens that were exchanged from them.

    Agents that follow the server's list of revoked tokens refuse them about ten seconds later. New tokens are still
    issued: `client disable` is for that.
    """
    if (token_id is None) == (client is None and subject is None):
        raise typer.BadParameter("give either the ID of one token, or --client or --subject")
    with opened_store(state, store) as opened:
        if token_id is None:
            now = datetime.now(UTC)
            kept = now - timedelta(seconds=KEPT_SECONDS)  # as `revoke_all`
            if not opened.tokens.living(now=kept, client_id=client, subject=subject, limit=1):
                raise ConfigurationError(f"no token{_of(client, subject)}", do="see `token list`")
            count = opened.tokens.revoke_all(now=now, client_id=client, subject=subject)
        elif opened.tokens.find(token_id) is None:
            raise ConfigurationError("token", got=token_id, expected="one that this server issued", do="see token list")
        else:
            count = opened.tokens.revoke(token_id)
    say({"revoked": count}, as_json, f"Revoked {count} token{'' if count == 1 else 's'}.")


def _of(client: str | None, subject: str | None) -> str:
    """Whose tokens were asked for, in words."""
    return (f" of {client}" if client is not None else "") + (f" about {subject}" if subject is not None else "")


def _facts(issued: Issued) -> dict[str, str | bool | None]:
    return {
        "id": issued.token_id,
        "client_id": issued.client_id,
        "subject": issued.subject,
        "parent": issued.parent_id,
        "issued_at": iso(issued.issued_at),
        "expires_at": iso(issued.expires_at),
        "revoked": issued.revoked,
    }
