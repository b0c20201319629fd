"""`a2a-trust approval list | approve | deny`: the requests for tokens that wait for a person."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from typing import Annotated

import typer

from trust.cli.app import AsJson, app
from trust.cli.options import STATE, StateFolder, StoreURL, opened_store
from trust.cli.output import iso, say, show_table
from trust.errors import ConfigurationError
from trust.oauth.server.store import Approval, Store

MAX_NAME_CHARACTERS = 256

ApprovalID = Annotated[str, typer.Argument(metavar="ID", help="As `approval list` shows it, such as K7QF-2MNP.")]
By = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Who decides, for the audit trail; default: the user at work."),
]

_approval = typer.Typer(no_args_is_help=True, help="Requests for tokens that wait for a person.")
app.add_typer(_approval, name="approval")


@_approval.command("list")
def waiting(as_json: AsJson = False, state: StateFolder = STATE, store: StoreURL = None) -> None:
    """Show the requests that wait, the oldest first. What a client says of its request nothing vouches for."""
    with opened_store(state, store) as opened:
        found = opened.approvals.waiting(now=datetime.now(UTC))
    if as_json:
        say([_facts(approval) for approval in found], True)
        return
    if not found:
        typer.echo("Nothing waits.")
        return
    for approval in found:  # each in a table of its own: names are long, and terminals are narrow
        asked = approval.asked
        rows: list[tuple[str, ...]] = [
            ("agent", asked.agent_id),
            ("on behalf of", asked.subject),
            *(("through", actor) for actor in asked.actors),
            ("wants to call", asked.resource),
            *(("with the scope", scope) for scope in asked.scope.split()),
            ("until", iso(approval.expires_at)),
            ("and says", asked.message),  # last, and in a column of its own: it looks like nothing else
        ]
        show_table(("ID", approval.approval_id), rows)


@_approval.command()
def approve(
    approval_id: ApprovalID,
    by: By = None,
    as_json: AsJson = False,
    state: StateFolder = STATE,
    store: StoreURL = None,
) -> None:
    """Say yes: the agent gets one token for this very request, if it asks within five minutes."""
    _decide(approval_id, by, as_json, opened_store(state, store), approve=True)


@_approval.command()
def deny(
    approval_id: ApprovalID,
    by: By = None,
    as_json: AsJson = False,
    state: StateFolder = STATE,
    store: StoreURL = None,
) -> None:
    """Say no: the agent is refused, and asks nobody again before the request would have expired."""
    _decide(approval_id, by, as_json, opened_store(state, store), approve=False)


def _decide(approval_id: str, by: str | None, as_json: bool, store: Store, *, approve: bool) -> None:
    with store:
        name = by or _user()
        if not name.isprintable() or len(name) > MAX_NAME_CHARACTERS:
            raise ConfigurationError("--by", expected=f"at most {MAX_NAME_CHARACTERS} printable characters")
        if not approval_id.isascii():  # what is no text cannot even be looked for
            raise ConfigurationError("ID", got=approval_id, expected="as `approval list` shows it")
        decided = store.approvals.decide(approval_id.upper(), approve=approve, by=name, now=datetime.now(UTC))
    word = "Approved" if approve else "Denied"
    asked = decided.asked
    line = f"{word} by {name}: {asked.agent_id} may{'' if approve else ' not'} call {asked.resource} with {asked.scope}"
    say(_facts(decided), as_json, line)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, ImportError, OSError):  # a container's user need not have a name
        raise ConfigurationError("user at work", got="no name", do="say who decides with --by") from None


def _facts(approval: Approval) -> dict[str, str | list[str] | None]:
    return {
        "id": approval.approval_id,
        "state": approval.state,
        "agent_id": approval.asked.agent_id,
        "client_id": approval.asked.client_id,
        "subject": approval.asked.subject,
        "actors": list(approval.asked.actors),
        "resource": approval.asked.resource,
        "scope": approval.asked.scope,
        "message": approval.asked.message,
        "asked_at": iso(approval.asked_at),
        "expires_at": iso(approval.expires_at),
        "decided_by": approval.decided_by,
        "decided_at": None if approval.decided_at is None else iso(approval.decided_at),
    }
