"""`a2a-trust authority keys | rotate`: the keys that an authorization server signs tokens with."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Annotated, Literal

import typer

from trust.cli.app import AsJson, app
from trust.cli.options import STATE, StateFolder, StoreURL, opened_store
from trust.cli.output import iso, say, show_table
from trust.oauth.server.rotation import begin_rotation, replace_all_keys
from trust.oauth.server.signing_keys import KeyStep, plan, published
from trust.oauth.server.state import KEYS_PASSWORD_VARIABLE, kept_password, named_password
from trust.oauth.server.store.signing_keys import KeyRecord

_authority = typer.Typer(no_args_is_help=True, help="The keys that an authorization server signs tokens with.")
app.add_typer(_authority, name="authority")


@_authority.command()
def keys(as_json: AsJson = False, state: StateFolder = STATE, store: StoreURL = None) -> None:
    """Show the keys, and what will happen to them when. `serve --authority` does it by itself."""
    now = datetime.now(UTC)
    with opened_store(state, store) as opened:
        records = opened.signing_keys.all()
    steps = plan(records, now)
    if as_json:
        say({"keys": [_facts(record) for record in published(records)], "plan": [_step(s) for s in steps]}, True)
        return
    show_table(
        ("key", "algorithm", "state", "since"),
        [(r.kid, r.alg, r.state.value, iso(r.since)) for r in published(records)],
    )
    say(None, False, *(f"{iso(step.at)}: {step.says}" for step in steps))


@_authority.command()
def rotate(
    algorithm: Annotated[
        Literal["ES256", "ES384", "Ed25519"] | None,
        typer.Option(help="Of the new key, and of those that follow; default: as before."),
    ] = None,
    compromised: Annotated[
        bool,
        typer.Option("--compromised", help="Give up all keys at once: every token that is in use will be refused."),
    ] = False,
    as_json: AsJson = False,
    state: StateFolder = STATE,
    store: StoreURL = None,
) -> None:
    """Begin with a new key now: it is published, and signs as soon as every agent can know it."""
    now, alg = datetime.now(UTC), algorithm or ""
    with opened_store(state, store) as opened:
        given = os.environ.get(KEYS_PASSWORD_VARIABLE)
        password = kept_password(state, given)
        with named_password(state, given):
            if compromised:
                record = replace_all_keys(opened.signing_keys, password, now=now, alg=alg)
                say(_facts(record), as_json, f"All keys are given up; {record.kid} signs ({record.alg})")
                return
            steps = begin_rotation(opened.signing_keys, password, now=now, alg=alg)
    say([_step(step) for step in steps], as_json, *(f"{iso(step.at)}: {step.says}" for step in steps))


def _facts(record: KeyRecord) -> dict[str, str]:
    return {"kid": record.kid, "alg": record.alg, "state": record.state.value, "since": iso(record.since)}


def _step(step: KeyStep) -> dict[str, str | None]:
    kid = None if step.record is None else step.record.kid
    return {"at": iso(step.at), "action": step.action.value, "kid": kid, "says": step.says}
