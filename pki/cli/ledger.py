"""`a2a-pki ledger`: the append-only log of what was issued and revoked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from pki.cli.app import TAKES_THUMBPRINT, AsJson, PasswordFile, PinFile, Where, app, opened, unlocked
from pki.cli.certificates import find
from pki.cli.files import kept_head
from pki.cli.output import say
from pki.errors import PKIError

FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)

ledger = typer.Typer(no_args_is_help=True, help="The append-only log (RFC 9162) of what was issued and revoked.")


@ledger.command()
def head(where: Where, password_file: PasswordFile = None, pin_file: PinFile = None) -> None:
    """Print the signed head of the log, to be kept elsewhere: whoever has it notices if the past is rewritten."""
    with unlocked(where, password_file, pin_file) as ca:
        typer.echo(ca.ledger_head())


@ledger.command(context_settings=TAKES_THUMBPRINT)
def prove(
    where: Where,
    serial: Annotated[
        str, typer.Argument(metavar="SERIAL", help="Serial number (hexadecimal or decimal) or thumbprint.")
    ],
    password_file: PasswordFile = None,
    pin_file: PinFile = None,
) -> None:
    """Print a proof (RFC 9162) that a certificate is in the log, as JSON: whoever knows the CA's key can verify it."""
    with unlocked(where, password_file, pin_file) as ca:
        shown = ca.prove(find(ca, serial).serial)
    answer = {
        "entry": shown.entry.decode(),
        "index": shown.index,
        "tree_size": shown.size,
        "root_hash": shown.root.hex(),
        "audit_path": [node.hex() for node in shown.path],
        "signed_head": shown.signed_head,
    }
    say(answer, True)


@ledger.command()
def verify(
    where: Where,
    kept: Annotated[
        Path | None,
        typer.Option(
            "--head", metavar="FILE", help="What `ledger head` printed, kept elsewhere: has its past been rewritten?"
        ),
    ] = None,
    root: Annotated[
        str | None,
        typer.Option(metavar="sha256:...", help="Fingerprint of the root, kept elsewhere: is it this CA at all?"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the log, its signed heads and the database, row by row: exit code 0 only if all agree.

    Without --head or --root the database is compared with itself only: one that was replaced as a whole, with keys of
    its own, agrees with itself.
    """
    text = kept_head(kept)
    if root is not None and not FINGERPRINT.fullmatch(root):
        raise PKIError("--root", got=root, expected="sha256: and 64 hexadecimal digits, as `a2a-pki status` prints it")
    with opened(where) as ca:
        report = ca.audit_ledger(text, root=root)
    say(
        {"size": report.size, "sealed": report.sealed, "problems": list(report.problems)},
        as_json,
        *report.problems,
        f"{report.size:,} entries, {report.sealed:,} of them under a signed head: "
        + ("all as they were written" if not report.problems else f"{len(report.problems):,} problems"),
    )
    if report.problems:
        raise typer.Exit(1)


app.add_typer(ledger, name="ledger")
