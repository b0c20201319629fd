"""What the commands have in common: the program, the arguments that mean the same everywhere, and opening a CA."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from pki import passwords
from pki.authority import CertificateAuthority
from pki.errors import LifetimeRefused, WrongPassword
from trust.command_line import run
from trust.credentials import read_bounded

MAX_SECRET_BYTES = 4096  # of a file with a PIN or a token

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="The agent CA: make it and keep it running, enrol and renew agents, revoke, rotate, publish.",
)

Where = Annotated[
    str, typer.Argument(metavar="CA", help="Folder of the CA, or the URL of its database (postgresql://...).")
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer with JSON.")]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help=f"File with the CA's password. Else: ${passwords.VARIABLE}, then CA.password, then a prompt.",
    ),
]
PinFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="File with the PIN of the PKCS#11 token that holds the CA's keys.")
]


def main(arguments: Sequence[str] | None = None) -> int:
    return run(app, "a2a-pki", arguments)


def unlocked(where: str, password_file: Path | None, pin_file: Path | None = None) -> CertificateAuthority:
    """The CA with its signing keys."""
    return CertificateAuthority.open(where, password=passwords.existing(where, password_file), pin=secret(pin_file))


def opened(where: str) -> CertificateAuthority:
    """The CA without its password: it answers questions, revokes, and signs nothing."""
    return CertificateAuthority.open(where)


def secret(file: Path | None) -> str | None:
    """The one line that a file holds; None where there is no file."""
    if file is None:
        return None
    try:
        text = read_bounded(file, MAX_SECRET_BYTES).decode().strip()
    except UnicodeDecodeError:
        text = ""
    if not text:
        raise WrongPassword(f"{file}", got="nothing readable", expected="a secret in UTF-8")
    return text


def duration(text: str) -> timedelta:
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text.strip(), re.ASCII)
    if match is None:
        raise LifetimeRefused("lifetime", got=repr(text), expected="a number and s, m, h or d, such as 24h")
    unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[match[2]]
    return timedelta(**{unit: int(match[1])})
