"""The agent's way in and its staying in: one-time tokens, enrolment, renewal."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from pki.cli.app import AsJson, KeyType, PasswordFile, PinFile, Where, app, duration, opened, secret, unlocked
from pki.cli.output import hint, iso, now, say, show_table, words
from pki.errors import EnrolmentTokenMissing, EnrolmentTokenUnknown
from trust.identity import AgentID

TOKEN_VARIABLE = "A2A_PKI_TOKEN"  # noqa: S105 - the name of a variable


@app.command()
def token(
    where: Where,
    spiffe_id: Annotated[str, typer.Argument(metavar="SPIFFE-ID", help="Such as spiffe://fleet.example/billing.")],
    dns: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="DNS name that its certificates carry; repeatable.")
    ] = None,
    lifetime: Annotated[str, typer.Option(help="Of its certificates, such as 45m, 24h or 7d.")] = "24h",
    valid_for: Annotated[str, typer.Option(help="How long the token can be used; at most 24h.")] = "30m",
    password_file: PasswordFile = None,
    pin_file: PinFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a one-time token with which one agent enrols. It is signed by the CA, printed once and kept nowhere."""
    with unlocked(where, password_file, pin_file) as ca:
        made = ca.create_token(
            AgentID.parse(spiffe_id), dns_names=dns or (), lifetime=duration(lifetime), valid_for=duration(valid_for)
        )
    say({"token": made.text, "id": made.id, "expires_at": iso(made.expires_at)}, as_json, made.text)
    if not as_json and sys.stdout.isatty():
        hint(f"for {spiffe_id}, once, until {iso(made.expires_at)}: `a2a-pki enrol --ca URL --root-fingerprint ...`")


@app.command()
def tokens(
    where: Where,
    cancel: Annotated[str | None, typer.Option(metavar="ID", help="Make this one worthless.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the one-time tokens that can still be used, or cancel one."""
    with opened(where) as ca:
        if cancel is not None:
            if not ca.cancel_token(cancel):
                raise EnrolmentTokenUnknown("token id", got=cancel, expected="one that `a2a-pki tokens` lists")
            say({"id": cancel, "cancelled": True}, as_json, f"token {cancel} is worthless now")
            return
        waiting = [t for t in ca.tokens() if t.used_at is None and t.expires_at > now()]
    if as_json:
        say(
            [
                {
                    "id": t.id,
                    "agent_id": t.spiffe_id,
                    "dns_names": list(t.dns_names),
                    "expires_at": iso(t.expires_at),
                }
                for t in waiting
            ],
            True,
        )
        return
    table = Table("Token id", Column("SPIFFE ID", overflow="fold"), "DNS names", "Expires")
    for t in waiting:
        table.add_row(Text(t.id), Text(t.spiffe_id), ", ".join(t.dns_names), words(t.expires_at))
    show_table(table)


@app.command()
def enrol(
    ca: Annotated[str, typer.Option("--ca", metavar="URL", help="The CA service, such as https://pki.example:8443.")],
    root_fingerprint: Annotated[
        str, typer.Option(metavar="sha256:...", help="Of the CA's root; `a2a-pki init` and `serve` print it.")
    ],
    token: Annotated[
        str | None,
        typer.Option(help=f"The one-time token; other users see arguments, so rather ${TOKEN_VARIABLE} or a file."),
    ] = None,
    token_file: Annotated[Path | None, typer.Option(metavar="FILE", help="File with the token.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Gets chain.pem, key.pem and bundle.json.")] = Path(),
    key: Annotated[KeyType, typer.Option(help="Kind of the new key; ML-DSA where the CA's policy names it.")] = "P-256",
    as_json: AsJson = False,
) -> None:
    """Get an agent's first certificate: the key is made here and stays here. Interrupted? Run it again."""
    from pki import client  # brings the HTTP client, which no other command needs

    text = token or secret(token_file) or os.environ.get(TOKEN_VARIABLE)
    if not text:
        raise EnrolmentTokenMissing("no token", expected=f"--token, --token-file or ${TOKEN_VARIABLE}")
    made = client.enrol(ca, root_fingerprint=root_fingerprint, token=text, folder=out, key_type=key)
    end = made.certificate.not_valid_after_utc
    say(
        {
            "agent_id": str(made.agent_id),
            "thumbprint": made.thumbprint,
            "serial": f"{made.certificate.serial_number:x}",
            "not_after": iso(end),
            "folder": str(out),
        },
        as_json,
        f"{made.agent_id}: enrolled, expires {words(end)}; written to {out}",
    )


@app.command()
def renew(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Written by `a2a-pki enrol`.")] = Path(),
    daemon: Annotated[bool, typer.Option("--daemon", help="Keep it renewed, until told to stop.")] = False,
    hook: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND", help="Run after each renewal, without a shell, such as 'systemctl reload agent'."
        ),
    ] = None,
    ca: Annotated[
        str | None, typer.Option("--ca", metavar="URL", help="The CA service, where it has moved since the enrolment.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Renew an agent's certificate now, or keep it renewed: for agents in other languages."""
    from pki import client

    with _defects_only_logged():
        if daemon:
            client.renew_forever(folder, url=ca, hook=hook)
            return
        made = client.renew_once(folder, url=ca, hook=hook)
    end = made.certificate.not_valid_after_utc
    say(
        {"agent_id": str(made.agent_id), "thumbprint": made.thumbprint, "not_after": iso(end)},
        as_json,
        f"{made.agent_id}: renewed, expires {words(end)}",
    )


@contextmanager
def _defects_only_logged() -> Iterator[None]:
    """What the client logs besides is for programs: here its errors and events are the lines, once each."""
    logger = logging.getLogger("a2a_pki.client")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
